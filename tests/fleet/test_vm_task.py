"""The task of one VM, with whatever can be wrong with it, on a mock clock."""

from __future__ import annotations

import errno
import math
import os
import random
from collections import Counter
from contextlib import asynccontextmanager
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, cast

import pytest
import trio
import trio.testing
from attrs import evolve
from suffering import NEEDS, SUFFERINGS, Suffering, SufferingKind
from worlds import GUEST, become, open_world, simulated, states, supervised, view

from qmpballoon.address import UnixAddress
from qmpballoon.errors import (
    BalloonBusy,
    MonitorBusy,
    MonitorUnreachable,
    UntrustedMonitor,
)
from qmpballoon.fleet.policy import Move
from qmpballoon.fleet.supervisor import open_fleet
from qmpballoon.fleet.vm_spec import Refused, VmSpec
from qmpballoon.fleet.vm_task import Settings
from qmpballoon.sizes import GiB, MiB
from qmpballoon.testing import SECOND, GuestConfig, MachineConfig
from qmpballoon.trio import open_monitor

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from qmpballoon.address import Vm
    from qmpballoon.monitor import Command
    from qmpballoon.testing import FakeQemu
    from qmpballoon.trio import TrioMonitor


def interval(fake: object) -> int:
    return fake.machine.device.interval  # type: ignore[attr-defined, no-any-return]


@simulated
async def test_statistics_are_polled_and_the_interval_is_restored() -> None:
    async with open_world() as world:
        fake = world.start("vm")
        fake.machine.device.set_interval(7, 0)  # type: ignore[union-attr]
        async with supervised(world) as fleet:
            await become(fleet, {"vm": "healthy"})
            assert interval(fake) == 1
        assert interval(fake) == 7


@simulated
async def test_every_ill_is_told_apart_and_harms_nobody_else() -> None:
    async with open_world() as world:
        world.start("well")
        world.start("bare", MachineConfig(balloon=None))
        world.start("no-driver", MachineConfig(guest=evolve(GUEST, driver=False)))
        mute = world.start("mute")
        world.add("gone")
        held = world.start("held")
        async with open_monitor(held.connect()), supervised(world) as fleet:
            await become(fleet, {"mute": "healthy"})
            mute.machine.stop()
            mute.touch()
            await become(
                fleet,
                {
                    "well": "healthy",
                    "bare": "no-balloon",
                    "no-driver": "no-driver",
                    "mute": "stale",
                    "gone": "gone",
                    "held": "busy",
                },
            )
            for name in ("bare", "gone", "held"):
                assert view(fleet, name).detail
            assert [guest.name for guest in fleet.list_guests()] == ["well"]


@simulated
async def test_who_comes_back_is_taken_up_again() -> None:
    async with open_world() as world:
        fake = world.start("vm")
        async with supervised(world) as fleet:
            await become(fleet, {"vm": "healthy"})
            fake.machine.quit()
            fake.touch()
            await become(fleet, {"vm": "gone"})
            world.start("vm")
            await become(fleet, {"vm": "healthy"})
            assert view(fleet, "vm").counters.losses == 1


@simulated
async def test_a_hanging_qemu_costs_nobody_else_anything() -> None:
    async with open_world() as world:
        hanging = world.start("hanging")
        world.start("well")
        async with supervised(world) as fleet:
            await become(fleet, {"hanging": "healthy", "well": "healthy"})
            hanging.machine.reply_delay = 3600 * SECOND
            await become(fleet, {"hanging": "stale", "well": "healthy"})
            await trio.sleep(5)
            assert "did not answer" in view(fleet, "hanging").detail
            assert fleet.poll_delay > 5
            begun = trio.current_time()
            fleet.start_move(Move("well", 2 * GiB, GiB + 512 * MiB, "test"))
            assert await fleet.wait_for_moves(10.0)
            assert view(fleet, "well").actual == GiB + 512 * MiB
            assert trio.current_time() - begun < 5
            hanging.machine.reply_delay = 0
            hanging.touch()
        # Even one that hangs does not hold up the end.


@simulated
async def test_a_balloon_is_lent_to_one_at_a_time() -> None:
    async with open_world() as world:
        fake = world.start("vm")
        async with supervised(world) as fleet:
            with pytest.raises(MonitorUnreachable, match="not connected"):
                async with fleet.borrow("vm", GiB):
                    pass
            await become(fleet, {"vm": "healthy"})
            async with fleet.borrow("vm", GiB) as balloon:
                assert view(fleet, "vm").target == GiB
                with pytest.raises(BalloonBusy, match="is moving"):
                    async with fleet.borrow("vm", GiB):
                        pass
                fleet.start_move(Move("vm", 2 * GiB, 3 * GiB // 2, "test"))
                await balloon.resize(GiB)
                await trio.sleep(3)
                assert view(fleet, "vm").actual == GiB, "it is polled meanwhile"
                fleet.note_size("vm", 7 * MiB)
                assert view(fleet, "vm").actual == 7 * MiB
                fleet.note_size("nobody", 7 * MiB)
            await trio.sleep(3)
            assert fake.machine.guest.memory.balloon == GiB
            assert view(fleet, "vm").target is None
            fleet.start_move(Move("vm", GiB, 2 * GiB, "test"))
            with pytest.raises(BalloonBusy):
                async with fleet.borrow("vm", GiB):
                    pass
            assert await fleet.wait_for_moves(10)


async def flood(stream: trio.abc.Stream, data: bytes) -> None:
    """Greet, then send the same for ever."""
    try:
        await stream.send_all(
            b'{"QMP": {"version": {"qemu": {"major": 1, "minor": 1, "micro": 1},'
            b' "package": ""}, "capabilities": []}}\r\n'
        )
        while True:
            await stream.send_all(data)
            await trio.sleep(0.01)
    except trio.BrokenResourceError:
        pass


@pytest.mark.parametrize(
    "data",
    [
        b'{"event": "X", "timestamp": {"seconds": 1, "microseconds": 1}}',
        b"[" * 2000,
        b"\xff\xfe\x00",
        b'{"return": {}, "id": 77}',
    ],
)
@simulated
async def test_a_hostile_peer_costs_nobody_else_anything(data: bytes) -> None:
    async with open_world() as world, trio.open_nursery() as nursery:
        world.start("well")

        def connect() -> trio.abc.Stream:
            ours, theirs = trio.testing.memory_stream_pair()
            nursery.start_soon(partial(flood, theirs, data))
            return ours

        world.strange["hostile"] = connect
        world.add("hostile")
        async with supervised(world) as fleet:
            await become(fleet, {"hostile": "gone", "well": "healthy"})
            assert view(fleet, "hostile").detail
        nursery.cancel_scope.cancel()


@simulated
async def test_attempts_become_rarer_and_are_spread() -> None:
    async with open_world() as world:
        world.add("gone")
        world.add("also gone")
        async with supervised(world):
            await trio.sleep(600)
        by_name = [
            [when for when, name in world.dialled if name == wanted]
            for wanted in ("gone", "also gone")
        ]
        for times in by_name:
            gaps = [after - before for before, after in pairwise(times)]
            assert gaps[0] < 2
            assert max(gaps) <= 31
            assert min(gaps[8:]) >= 15
            assert 20 < len(times) < 50
            assert len({round(gap, 3) for gap in gaps[8:]}) > 1
        assert not set(by_name[0]) & set(by_name[1])


@simulated
async def test_a_move_is_made_and_seen_through() -> None:
    async with open_world() as world:
        world.start("vm")
        async with supervised(world) as fleet:
            await become(fleet, {"vm": "healthy"})
            fleet.start_move(Move("vm", 2 * GiB, GiB + 256 * MiB, "test"))
            assert view(fleet, "vm").target == GiB + 256 * MiB
            (guest,) = fleet.list_guests()
            assert guest.is_moving
            # Who is on its way is not sent elsewhere, and who is unknown not at all.
            fleet.start_move(Move("vm", 2 * GiB, GiB, "test"))
            fleet.start_move(Move("nobody", 2 * GiB, GiB, "test"))
            assert await fleet.wait_for_moves(20.0)
            seen = view(fleet, "vm")
            assert (seen.actual, seen.target) == (GiB + 256 * MiB, None)
            assert seen.counters.taken == 768 * MiB
            assert fleet.list_guests() == []  # until it has answered at its new size
            assert await fleet.wait_until_known(5.0)
            assert len(fleet.list_guests()) == 1


@simulated
async def test_a_move_leaves_a_guest_the_headroom_of_its_vm() -> None:
    async with open_world() as world:
        fake = world.start("vm")
        world.add("vm", headroom="512MiB")
        async with supervised(world) as fleet:
            await become(fleet, {"vm": "healthy"})
            fleet.start_move(Move("vm", 2 * GiB, 128 * MiB, "test"))
            assert await fleet.wait_for_moves(60.0)
            fake.touch()
            memory = fake.machine.guest.memory
            assert 0.9 * GiB < 2 * memory.available < 1.1 * GiB


@pytest.mark.parametrize("kind", SUFFERINGS)
@simulated
async def test_a_guest_that_suffers_from_a_move_is_let_alone_and_rests(
    kind: SufferingKind,
) -> None:
    guest = GuestConfig(used=128 * MiB, cache=512 * MiB, inflate_rate=512 * MiB)
    async with open_world() as world:
        fake = world.start("vm", MachineConfig(memory=2 * GiB, guest=guest))
        suffering = Suffering(fake.machine, kind)
        async with supervised(world) as fleet, trio.open_nursery() as nursery:
            await become(fleet, {"vm": "healthy"})
            nursery.start_soon(look_all_the_time, fake, suffering)
            fleet.start_move(Move("vm", 2 * GiB, GiB // 2, "test"))
            assert await fleet.wait_for_moves(60.0)
            assert suffering.lowest >= suffering.least
            assert suffering.told >= NEEDS
            seen = view(fleet, "vm")
            assert (seen.counters.moves, seen.counters.stalls) == (1, 1)
            assert seen.state in {"stalled", "stale"}
            nursery.cancel_scope.cancel()


async def look_all_the_time(fake: FakeQemu, suffering: Suffering) -> None:
    while True:
        fake.touch()
        suffering.look()
        await trio.sleep(0.02)


@simulated
async def test_a_guest_without_a_driver_in_need_of_a_move_stalls() -> None:
    async with open_world() as world:
        fake = world.start("vm")
        async with supervised(world) as fleet:
            await become(fleet, {"vm": "healthy"})
            # As if virtio_balloon kept answering, and did not inflate.
            fake.machine.guest.stall(300 * SECOND)
            fleet.start_move(Move("vm", 2 * GiB, GiB, "test"))
            assert await fleet.wait_for_moves(60.0)
            assert view(fleet, "vm").counters.stalls == 1
            # Nothing goes on pulling at it.
            assert fake.machine.guest.target == 0


@pytest.mark.parametrize("insists", [False, True])
@simulated
async def test_a_target_stays_that_is_insisted_on(*, insists: bool) -> None:
    async with open_world() as world:
        guest = world.start("vm").machine.guest
        async with supervised(world) as fleet:
            await become(fleet, {"vm": "healthy"})
            fleet.start_move(Move("vm", 2 * GiB, GiB, "test"))
            assert await fleet.wait_for_moves(60.0)
            guest.stall(300 * SECOND)
            fleet.start_move(Move("vm", GiB, 2 * GiB, "test"), insists=insists)
            assert await fleet.wait_for_moves(60.0)
            assert guest.target == (0 if insists else GiB)


@simulated
async def test_a_socket_that_this_process_may_not_write_to_is_told_as_that() -> None:
    @asynccontextmanager
    async def closed(*_: object, **__: float) -> AsyncGenerator[TrioMonitor, None]:
        error = MonitorUnreachable("no permission for vm: run as the user of QEMU")
        error.errno = errno.EACCES
        raise error
        yield

    def source() -> list[VmSpec]:
        return [VmSpec("vm", UnixAddress("vm"))]

    async with open_fleet(source, random.Random(0), opener=closed) as fleet:
        await become(fleet, {"vm": "no-permission"})
        assert (
            view(fleet, "vm").detail == "no permission for vm: run as the user of QEMU"
        )


@simulated
async def test_what_a_busy_vm_holds_counts() -> None:
    """A limit is for all VMs, those that another client talks to included."""

    @asynccontextmanager
    async def busy(*_: object, **__: float) -> AsyncGenerator[TrioMonitor, None]:
        error = MonitorBusy("another client is served")
        error.pid = os.getpid()
        raise error
        yield

    def source() -> list[VmSpec]:
        return [VmSpec("vm", UnixAddress("vm"))]

    async with open_fleet(source, random.Random(0), opener=busy) as fleet:
        await become(fleet, {"vm": "busy"})
        assert fleet.held > MiB
        assert view(fleet, "vm").resident == fleet.held
        assert fleet.list_guests() == []


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("period", 0, ValueError),
        ("period", math.inf, ValueError),
        ("period", math.nan, ValueError),
        ("rescan", 100_000, ValueError),
        ("open_timeout", -1, ValueError),
        ("command_timeout", "5", TypeError),
    ],
)
def test_settings_that_make_no_sense(
    name: str, value: object, error: type[Exception]
) -> None:
    with pytest.raises(error, match=f"^{name} is"):
        Settings(**{name: cast("Any", value)})


@simulated
async def test_the_ram_is_asked_for_at_once_and_then_once_a_minute() -> None:
    async with open_world() as world:
        fake = world.start("vm")
        summary, asked = fake.machine.commands["query-memory-size-summary"], 0

        def count(arguments: Any) -> Any:  # noqa: ANN401 - JSON
            nonlocal asked
            asked += 1
            return summary.run(arguments)

        fake.machine.commands = {
            **fake.machine.commands,
            "query-memory-size-summary": evolve(summary, run=count),
        }
        async with supervised(world) as fleet:
            await become(fleet, {"vm": "healthy"})
            assert view(fleet, "vm").total == 2 * GiB
            at_first = asked
            await trio.sleep(50)
            assert asked == at_first
            await trio.sleep(20)
            assert asked == at_first + 1


# Which VM is which


@simulated
async def test_who_listens_there_instead_is_refused(
    caplog: pytest.LogCaptureFixture,
) -> None:
    @asynccontextmanager
    async def refuse(*_: object, **__: float) -> AsyncGenerator[TrioMonitor, None]:
        raise UntrustedMonitor("vm belongs to user nobody")
        yield

    def source() -> list[VmSpec | Refused]:
        return [
            VmSpec("vm", UnixAddress("/run/vm")),
            Refused("pid-7", "it is perl", pid=7),
        ]

    async with open_fleet(source, random.Random(0), opener=refuse) as fleet:
        await become(fleet, {"vm": "refused"})
        assert view(fleet, "vm").detail == "vm belongs to user nobody"
        assert fleet.list_refused() == [Refused("pid-7", "it is perl", pid=7)]
        await trio.sleep(60)
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", "pid-7 is refused: it is perl"),
        ("WARNING", "vm: vm belongs to user nobody"),
    ]


@simulated
async def test_the_interval_is_set_again_whoever_has_cleared_it() -> None:
    async with open_world() as world:
        fake = world.start("vm")
        async with supervised(world) as fleet:
            await become(fleet, {"vm": "healthy"})
            for _ in range(3):
                fake.do(lambda machine: machine.device.set_interval(0, machine.now))  # type: ignore[union-attr]
                for _ in range(20):
                    await trio.sleep(0.5)
                    assert states(fleet) == {"vm": "healthy"}
                assert interval(fake) == 1


@simulated
async def test_a_guest_that_answers_has_its_interval_set_once() -> None:
    async with open_world() as world:
        fake = world.start("vm")
        setting, times = fake.machine.commands["qom-set"], 0

        def count(arguments: Any) -> Any:  # noqa: ANN401 - JSON
            nonlocal times
            times += 1
            return setting.run(arguments)

        commands = {**fake.machine.commands, "qom-set": evolve(setting, run=count)}
        fake.machine.commands = commands
        async with supervised(world) as fleet:
            await become(fleet, {"vm": "healthy"})
            await trio.sleep(20)
            assert times == 1


@simulated
async def test_a_vm_that_is_paused_from_the_start_is_not_told_to_load_a_driver() -> (
    None
):
    async with open_world() as world:
        world.start("vm", MachineConfig(paused=True))
        incoming = world.start("incoming", MachineConfig(paused=True))
        incoming.machine.status = "inmigrate"
        async with supervised(world) as fleet:
            await become(fleet, {"vm": "stale", "incoming": "stale"})
            assert "start it (cont)" in view(fleet, "vm").detail
            assert "migration" in view(fleet, "incoming").detail


@pytest.mark.parametrize("value", [10**400, -7, 1.5, "7", 2**64, 5 * GiB])
@simulated
async def test_who_shows_nonsense_moves_nobody(value: object) -> None:
    async with open_world() as world:
        world.start("bad", MachineConfig(shows={"available-memory": value}))
        world.start("good")
        async with supervised(world) as fleet:
            await become(fleet, {"bad": "nonsense", "good": "healthy"})
            for _ in range(20):
                await trio.sleep(1)
                assert [guest.name for guest in fleet.list_guests()] == ["good"]


@simulated
async def test_who_hung_up_counts_with_its_size_until_it_has_ended() -> None:
    async with open_world() as world:
        fake = world.start("vm")
        async with supervised(world) as fleet:
            await become(fleet, {"vm": "healthy"})
            # It breaks the connection, and keeps whoever comes next waiting.
            world.strange["vm"] = lambda: trio.testing.memory_stream_pair()[0]
            del world.fakes["vm"]
            fake.do(lambda machine: machine.die())
            await become(fleet, {"vm": "busy"})
            assert fleet.held == 2 * GiB
            world.strange.clear()
            await become(fleet, {"vm": "gone"})
            assert fleet.held == 0


@simulated
async def test_an_idle_guest_is_polled_less_often_until_it_does_something() -> None:
    looks = Counter[str]()
    async with open_world() as world:
        fakes = {name: world.start(name) for name in ("seen", "unseen")}
        world.seen = {"seen"}

        @asynccontextmanager
        async def reach(vm: Vm, /, **timeouts: float) -> AsyncGenerator[TrioMonitor]:
            async with world.reach(vm, **timeouts) as monitor:
                execute_all = monitor.execute_all

                async def count(commands: Sequence[Command]) -> list[object]:
                    looks[str(vm)] += 1
                    return await execute_all(commands)

                monitor.execute_all = count  # type: ignore[method-assign]
                yield monitor

        async with supervised(world, opener=reach) as fleet:
            await become(fleet, dict.fromkeys(fakes, "healthy"))
            before = looks.copy()
            await trio.sleep(40)
            assert 8 <= looks["seen"] - before["seen"] <= 12
            assert looks["unseen"] - before["unseen"] >= 38
            assert fleet.poll_delay < 0.1
            assert states(fleet) == dict.fromkeys(fakes, "healthy")
            available = view(fleet, "seen").stats.available or 0
            fakes["seen"].do(lambda machine: machine.guest.memory.allocate(available))
            # The guest answers once a second, and is polled in each of its turns.
            await trio.sleep(2.1)
            assert (view(fleet, "seen").stats.available or 0) < available // 8
