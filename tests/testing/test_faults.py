"""What is planned to go wrong goes wrong, at its time, and nothing else does."""

from __future__ import annotations

import contextlib
import json
import random
from typing import TYPE_CHECKING, Any

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qmpballoon.errors import MonitorClosed, MonitorTimeout, QmpBalloonError
from qmpballoon.sizes import GiB, MiB
from qmpballoon.testing import (
    SECOND,
    FaultPlan,
    GuestConfig,
    Machine,
    MachineConfig,
    run_world,
)
from qmpballoon.testing.strategies import (
    fault_plans,
    machines,
)
from qmpballoon.trio import open_balloon, open_monitor

if TYPE_CHECKING:
    from qmpballoon.testing import FakeQemu


def machine(**options: Any) -> Machine:  # noqa: ANN401 -- a configuration's own
    guest = GuestConfig(used=64 * MiB, cache=GiB)
    config = MachineConfig(memory=2 * GiB, guest=guest, **options)
    return Machine(config, rng=random.Random(0))


async def conversation(fake: FakeQemu) -> bytes:
    """Negotiate, resize, and return everything that comes within ten seconds."""
    stream = fake.connect()
    await stream.send_all(
        b'{"execute": "qmp_capabilities"}'
        b'{"execute": "balloon", "arguments": {"value": 1073741824}}'
    )
    data = b""
    with trio.move_on_after(10):
        while chunk := await stream.receive_some():
            data += chunk
    return data


def names(transcript: bytes) -> list[str]:
    return [
        message["event"]
        for message in map(json.loads, transcript.splitlines())
        if "event" in message
    ]


QUIET = run_world(conversation, machine())


@given(chunk=st.integers(1, 300), pause=st.sampled_from([0, SECOND // 10_000]))
@settings(max_examples=20)
def test_chunks_change_nothing_but_the_pace(chunk: int, pause: int) -> None:
    plan = FaultPlan(chunk=chunk, chunk_pause=pause)
    assert run_world(conversation, machine(), plan) == QUIET


@pytest.mark.parametrize("chunk", [1, 7])
def test_no_more_than_a_chunk_comes_at_a_time(chunk: int) -> None:
    async def main(fake: FakeQemu) -> list[tuple[float, int]]:
        stream = fake.connect()
        return [
            (trio.current_time(), len(await stream.receive_some())) for _ in range(5)
        ]

    found = run_world(main, machine(), FaultPlan(chunk=chunk, chunk_pause=SECOND))
    assert [size for _, size in found] == [chunk] * 5
    assert [round(at) for at, _ in found] == [0, 0, 1, 2, 3]  # when it was asked for


@given(cut=st.integers(0, len(QUIET) - 1))
@settings(max_examples=30)
def test_a_cut_comes_in_mid_message_and_once(cut: int) -> None:
    async def main(fake: FakeQemu) -> tuple[bytes, bytes]:
        first = await conversation(fake)
        return first, await conversation(fake)

    first, second = run_world(main, machine(), FaultPlan(cut_after=cut))
    assert first == QUIET[:cut]
    assert b"BALLOON_CHANGE" in second or cut > 300
    assert second.startswith(b'{"QMP"')


def test_events_come_late_and_twice() -> None:
    plan = FaultPlan(event_copies=2, event_delay=SECOND)
    quiet = names(QUIET)
    assert names(run_world(conversation, machine(), plan)) == sorted(quiet * 2)


def test_events_come_late_by_what_is_planned() -> None:
    async def arrival(fake: FakeQemu) -> float:
        async with open_monitor(fake.connect()) as monitor:
            with monitor.subscribe("BALLOON_CHANGE") as events:
                await monitor.execute("balloon", {"value": GiB})
                await events.receive()
                return trio.current_time()

    on_time = run_world(arrival, machine())
    late = run_world(arrival, machine(), FaultPlan(event_delay=3 * SECOND))
    assert late == pytest.approx(on_time + 3)


def test_replies_are_delayed() -> None:
    plan = FaultPlan(reply_delay=2 * SECOND)

    async def main(fake: FakeQemu) -> float:
        async with open_monitor(fake.connect()) as monitor:
            began = trio.current_time()
            await monitor.execute("query-status")
            return trio.current_time() - began

    assert run_world(main, machine(), plan) == pytest.approx(2)


def test_a_frozen_qemu_says_nothing_and_then_goes_on() -> None:
    plan = FaultPlan(freeze_at=SECOND, freeze_for=30 * SECOND)

    async def main(fake: FakeQemu) -> int:
        async with open_monitor(fake.connect()) as monitor:
            await trio.sleep(5)
            with pytest.raises(MonitorTimeout):
                await monitor.execute("query-status")
            await trio.sleep(20)
            await monitor.execute("query-status")
            answer: Any = await monitor.execute("query-balloon")
            actual: int = answer["actual"]
            return actual

    assert run_world(main, machine(), plan) == 2 * GiB


def test_a_killed_qemu_leaves_its_client_alone() -> None:
    async def main(fake: FakeQemu) -> None:
        async with open_monitor(fake.connect()) as monitor:
            await trio.sleep(4)
            await monitor.execute("query-status")
            await trio.sleep(2)
            with pytest.raises(MonitorClosed):
                await monitor.execute("query-status")

    run_world(main, machine(), FaultPlan(kill_at=5 * SECOND))


def test_a_stalled_guest_moves_later() -> None:
    plan = FaultPlan(stall_at=SECOND // 2, stall_for=60 * SECOND)

    async def main(fake: FakeQemu) -> tuple[int, int, int]:
        async with open_balloon(fake.connect()) as balloon:
            await balloon.set_target(GiB)
            await trio.sleep(1)
            first = (await balloon.query()).actual
            await trio.sleep(50)
            second = (await balloon.query()).actual
            await trio.sleep(60)
            return first, second, (await balloon.query()).actual

    first, second, last = run_world(main, machine(), plan)
    assert GiB < first == second < 2 * GiB
    assert last == GiB


def test_a_reboot_and_a_dimm_in_the_middle_of_a_resize() -> None:
    plan = FaultPlan(reset_at=SECOND, plug_at=5 * SECOND, plug_size=256 * MiB)
    plugged = machine(slots=1, max_memory=4 * GiB)

    async def main(fake: FakeQemu) -> bytes:
        data = await conversation(fake)
        await trio.sleep(60)
        return data

    assert "RESET" in names(run_world(main, plugged, plan))
    assert plugged.guest.memory.ram == 2 * GiB + 256 * MiB
    assert plugged.guest.memory.balloon == GiB


@given(plan=fault_plans(), subject=machines(), seed=st.randoms(use_true_random=False))
@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
def test_whatever_goes_wrong_a_client_is_told_in_the_librarys_words(
    plan: FaultPlan, subject: Machine, seed: random.Random
) -> None:
    target = seed.randrange(MiB, subject.config.memory)

    async def main(fake: FakeQemu) -> None:
        # Anything else would leave the world, and fail the test.
        with contextlib.suppress(QmpBalloonError):
            async with open_balloon(fake.connect()) as balloon:
                await balloon.resize(target, timeout=30)

    run_world(main, subject, plan)
