"""Asking and setting a balloon, and telling why its VM does not run."""

from __future__ import annotations

import asyncio
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, cast

import pytest
from faults import monitor_of
from hypothesis import given
from hypothesis import strategies as st
from simulation import PATH, SimulatedMonitor, make_balloon, make_machine, run

from qmpballoon.balloon.balloon import Balloon, find_balloon
from qmpballoon.balloon.device import LARGEST_PAGE, PAGE, explain_status, lacks_ram
from qmpballoon.balloon.results import BalloonInfo, DiskReads
from qmpballoon.balloon.sampling import Sampler
from qmpballoon.errors import (
    BalloonBusy,
    BalloonError,
    BalloonUnavailable,
    CommandError,
    CommandNotFound,
    MonitorClosed,
    MonitorTimeout,
    NoBalloonDevice,
    ProtocolError,
    StatsUnavailable,
    UnsafeTarget,
    make_command_error,
)
from qmpballoon.sizes import GiB, MiB
from qmpballoon.testing import SECOND

if TYPE_CHECKING:
    import random
    from collections.abc import Generator, Mapping
    from contextlib import AbstractAsyncContextManager

    from qmpballoon.balloon.sampling import Progress


class ScriptedMonitor(SimulatedMonitor):
    """A monitor of which some commands answer as a test says."""

    def __init__(self, **answers: object) -> None:
        super().__init__(make_machine())
        self._answers = {
            name.replace("_", "-"): value for name, value in answers.items()
        }

    async def execute(
        self, command: str, arguments: Mapping[str, object] | None = None
    ) -> object:
        if command not in self._answers:
            return await super().execute(command, arguments)
        answer = self._answers[command]
        if isinstance(answer, Exception):
            raise answer
        return answer


def scripted(**answers: object) -> Balloon:
    return Balloon(ScriptedMonitor(**answers), PATH, "virtio-balloon-pci")


def test_query_tells_what_is_known() -> None:
    balloon = make_balloon(make_machine(memory=GiB))
    assert run(balloon.query()) == BalloonInfo(actual=GiB, total=GiB, capacity=GiB)
    run(balloon.set_target(GiB // 2 - 1))
    info = run(balloon.query())
    assert info.target == balloon.target == GiB // 2  # QEMU rounds up to a page
    monitor_of(balloon).machine.advance(120 * SECOND)
    assert run(balloon.query()).ballooned == GiB // 2


def test_which_vm_it_is() -> None:
    seen = run(make_balloon(make_machine(name="vm1", paused=True)).query_vm())
    assert (seen.name, seen.status) == ("vm1", "prelaunch")
    assert re.fullmatch(r"10\.0\.\d+", seen.qemu_version or "")
    assert run(make_balloon(make_machine()).query_vm()).name is None
    assert run(scripted(query_version={}).query_vm()).qemu_version is None
    with pytest.raises(ProtocolError, match="query-status returned"):
        run(scripted(query_status={}).query_vm())


def test_members_that_others_add_are_kept() -> None:
    balloon = scripted(query_balloon={"actual": 7, "max_mem": 9})
    assert run(balloon.query()).extra == {"max_mem": 9}


@pytest.mark.parametrize("answer", [{}, {"actual": "7"}, None, [], {"actual": 1.5}])
def test_an_answer_that_is_none_is_told_from_a_size(answer: object) -> None:
    with pytest.raises(ProtocolError, match="query-balloon"):
        run(scripted(query_balloon=answer).query())


def test_an_old_qemu_does_not_tell_the_total() -> None:
    missing = CommandNotFound("query-memory-size-summary", "CommandNotFound", "")
    info = run(scripted(query_memory_size_summary=missing).query())
    assert (info.total, info.ballooned) == (None, None)


def test_only_dimms_count_to_what_can_be_ballooned() -> None:
    devices = [
        {"type": "dimm", "data": {"size": GiB}},
        {"type": "dimm", "data": {"size": 2 * GiB}},
        {"type": "virtio-mem", "data": {"size": 4 * GiB}},
        {"type": "nvdimm", "data": {"size": 8 * GiB}},
        "nonsense",
    ]
    balloon = scripted(
        query_memory_size_summary={"base-memory": GiB, "plugged-memory": 15 * GiB},
        query_memory_devices=devices,
    )
    info = run(balloon.query())
    # What the guest has in all is more: virtio-mem cannot be ballooned.
    assert (info.total, info.capacity) == (4 * GiB, 16 * GiB)


@pytest.mark.parametrize(
    ("size", "ram", "lacks"),
    [
        (GiB, 2 * GiB, True),
        (2 * GiB - LARGEST_PAGE, 2 * GiB, True),
        (2 * GiB - LARGEST_PAGE + PAGE, 2 * GiB, False),  # what rounding may leave
        (2 * GiB, 2 * GiB, False),
        (3 * GiB, 2 * GiB, False),
        (GiB, None, False),
    ],
)
def test_who_lacks_a_large_page_lacks_ram(
    size: int, ram: int | None, *, lacks: bool
) -> None:
    assert lacks_ram(size, ram) is lacks


@pytest.mark.parametrize("target", [0, -1])
def test_targets_that_are_none_are_refused(target: int) -> None:
    balloon = make_balloon(make_machine())
    with pytest.raises(ValueError, match="target"):
        run(balloon.set_target(target))
    assert monitor_of(balloon).calls == 0


def test_a_target_whose_outcome_is_unknown_is_not_claimed() -> None:
    balloon = make_balloon(make_machine())
    run(balloon.set_target(GiB))
    monitor_of(balloon).machine.quit()
    with pytest.raises(MonitorClosed):
        run(balloon.set_target(2 * GiB))
    assert balloon.target is None


@pytest.mark.parametrize(
    ("error_class", "expected"),
    [
        ("DeviceNotActive", NoBalloonDevice),
        ("KVMMissingCap", BalloonUnavailable),
        ("DeviceNotFound", NoBalloonDevice),
        ("GenericError", CommandError),
    ],
)
def test_refusals_are_told_for_what_they_mean(
    error_class: str, expected: type[Exception]
) -> None:
    error = make_command_error("query-balloon", error_class, "words")
    with pytest.raises(expected):
        run(scripted(query_balloon=error).actual())


@pytest.mark.parametrize("error_class", ["DeviceNotActive", "DeviceNotFound"])
def test_a_balloon_that_was_there_is_not_to_be_started_with(error_class: str) -> None:
    error = make_command_error("query-balloon", error_class, "words")
    with pytest.raises(NoBalloonDevice, match="it was unplugged"):
        run(scripted(query_balloon=error).actual())


def test_features_that_this_qemu_knows() -> None:
    balloon = make_balloon(make_machine(deflate_on_oom=True))
    features = run(balloon.features())
    assert features["deflate-on-oom"] is True
    assert features["free-page-reporting"] is False


def test_a_feature_that_this_qemu_does_not_know_hides_no_other() -> None:
    class Older(SimulatedMonitor):
        async def execute(
            self, command: str, arguments: Mapping[str, object] | None = None
        ) -> object:
            if arguments and arguments.get("property") == "deflate-on-oom":
                raise make_command_error(command, "GenericError", "not found")
            return await super().execute(command, arguments)

    balloon = Balloon(Older(make_machine()), PATH, "virtio-balloon-pci")
    assert set(run(balloon.features())) == {
        *("free-page-reporting", "free-page-hint", "page-poison"),
    }


def test_a_paused_vm_does_not_run() -> None:
    balloon = make_balloon(make_machine())
    assert run(balloon.is_running())
    monitor_of(balloon).machine.stop()
    assert not run(balloon.is_running())


def test_the_interval_is_kept_in_a_block_and_restored_behind_it() -> None:
    balloon = make_balloon(make_machine())
    run(balloon.set_stats_interval(30))

    async def use() -> None:
        async with balloon.stats_interval(2):
            assert await balloon.get_stats_interval() == 2
            async with balloon.stats_interval(5):
                assert await balloon.get_stats_interval() == 5
            assert await balloon.get_stats_interval() == 2
            raise KeyError

    with pytest.raises(KeyError):
        run(use())
    assert run(balloon.get_stats_interval()) == 30


class Tasks:
    """Blocks that set the interval, as of tasks that begin and end at any time."""

    def __init__(self, balloon: Balloon) -> None:
        self.balloon = balloon
        self.stack: dict[int, AbstractAsyncContextManager[object]] = {}

    def begin(self, name: int, interval: int | None) -> None:
        balloon = self.balloon
        block: AbstractAsyncContextManager[object] = (
            balloon.sampler() if interval is None else balloon.stats_interval(interval)
        )
        self.stack[name] = block
        run(block.__aenter__())

    def end(self, name: int) -> None:
        run(self.stack.pop(name).__aexit__(None, None, None))


@given(
    st.integers(0, 9),
    st.lists(st.none() | st.integers(0, 9), min_size=1, max_size=5),
    st.randoms(use_true_random=False),
)
def test_blocks_that_overlap_leave_the_interval_as_it_was(
    before: int, intervals: list[int | None], rng: random.Random
) -> None:
    """Two samplers on one VM, for example; one of them sets it to 0 for a moment."""
    balloon = make_balloon(make_machine())
    run(balloon.set_stats_interval(before))
    tasks = Tasks(balloon)
    for name, interval in enumerate(intervals):
        tasks.begin(name, interval)
        if tasks.stack and rng.random() < 0.3:
            tasks.end(rng.choice(list(tasks.stack)))
    for name in rng.sample(list(tasks.stack), len(tasks.stack)):
        tasks.end(name)
    assert run(balloon.get_stats_interval()) == before


def test_who_begins_while_another_sets_it_to_0_does_not_leave_it_at_0() -> None:
    balloon = make_balloon(make_machine())
    run(balloon.set_stats_interval(5))
    tasks = Tasks(balloon)
    tasks.begin(1, None)
    run(balloon.set_stats_interval(0))  # as a sampler does before it asks
    tasks.begin(2, None)
    tasks.end(1)
    tasks.end(2)
    assert run(balloon.get_stats_interval()) == 5


@pytest.mark.parametrize("error", [None, KeyError(), asyncio.CancelledError()])
def test_a_device_that_is_gone_hides_not_how_a_block_ended(
    error: BaseException | None,
) -> None:
    machine = make_machine()
    balloon = make_balloon(machine)

    async def use() -> None:
        async with balloon.stats_interval(2):
            machine.device = None
            machine.tree.remove_child(*PATH.rsplit("/", 1))
            with pytest.raises(NoBalloonDevice):
                await balloon.stats()
            if error is not None:
                raise error

    ended_by: BaseException | None = None
    try:
        run(use())
    except BaseException as caught:  # noqa: BLE001 - a cancellation is none of the others
        ended_by = caught
    assert ended_by is error


def test_an_interval_that_is_none_is_refused() -> None:
    balloon = make_balloon(make_machine())
    with pytest.raises(ValueError, match="seconds"):
        run(balloon.set_stats_interval(-1))
    for interval, error in ((-1, ValueError), (1.0, TypeError), ("1", TypeError)):
        with pytest.raises(error, match="interval is"):
            run(balloon.request_stats(cast("Any", interval)))
    assert monitor_of(balloon).calls == 0
    with pytest.raises(ProtocolError, match="interval"):
        run(scripted(qom_get="soon").get_stats_interval())


# What its monitor tells


class Bare:
    """A monitor with what a monitor must have, and nothing else."""

    def __init__(self, monitor: SimulatedMonitor) -> None:
        self.execute = monitor.execute
        self.sleep = monitor.sleep
        self.now = monitor.now
        self.shield = monitor.shield


def test_age_and_resident_memory_come_from_the_monitor() -> None:
    monitor = SimulatedMonitor(make_machine())
    balloon = run(find_balloon(monitor))
    assert run(balloon.refresh_stats()).age is not None
    assert balloon.resident() == monitor.machine.resident
    bare = run(find_balloon(Bare(monitor)))
    assert run(bare.refresh_stats()).age is None
    assert bare.resident() is None


# Why the VM does not run

# All of QEMU's RunState but "running", and a word of what helps.
REMEDIES = {
    "paused": "(cont)",
    "prelaunch": "(cont)",
    "debug": "(cont)",
    "watchdog": "(cont)",
    "io-error": "repair",
    "inmigrate": "wait",
    "finish-migrate": "wait",
    "save-vm": "wait",
    "restore-vm": "wait",
    "colo": "wait",
    "postmigrate": "where it runs now",
    "guest-panicked": "system_reset",
    "internal-error": "system_reset",
    "shutdown": "system_reset",
    "suspended": "system_wakeup",
    "some-day": "some-day",
}


@pytest.mark.parametrize("status", REMEDIES)
def test_each_state_has_its_remedy(status: str) -> None:
    text = explain_status(status)
    assert REMEDIES[status] in text
    assert "\n" not in text


@pytest.mark.parametrize("status", sorted({*REMEDIES} - {"paused"}))
def test_whoever_asks_is_told_of_the_state(status: str) -> None:
    machine = make_machine()
    machine.status = status
    balloon = make_balloon(machine)
    assert not run(balloon.is_running())
    with pytest.raises(StatsUnavailable) as caught:
        run(balloon.reclaim())
    assert REMEDIES[status] in str(caught.value)
    result = run(balloon.resize(256 * MiB, timeout=2, on_stall="settle"))
    assert result.diagnosis is not None
    assert result.diagnosis.kind == "paused"
    assert REMEDIES[status] in result.diagnosis.detail


def test_a_vm_that_moves_away_in_mid_reclaim_is_not_to_be_resumed() -> None:
    machine = make_machine()

    def move(progress: Progress) -> None:
        if progress.actual < before:
            machine.status = "postmigrate"

    balloon = make_balloon(machine)
    before = run(balloon.actual())
    report = run(balloon.reclaim(on_progress=move))
    assert report.outcome == "stopped"
    assert REMEDIES["postmigrate"] in report.reason


# One movement at a time


@pytest.mark.parametrize(
    "error_class", ["GenericError", "KVMMissingCap", "DeviceNotActive"]
)
def test_a_refused_target_leaves_the_one_that_stands(error_class: str) -> None:
    balloon = make_balloon(make_machine(memory=2 * GiB))
    run(balloon.set_target(GiB))
    monitor = monitor_of(balloon)
    execute = monitor.execute

    async def refuse(command: str, arguments: Any = None) -> object:  # noqa: ANN401 - any
        if command == "balloon":
            raise make_command_error(command, error_class, "no")
        return await execute(command, arguments)

    monitor.execute = refuse  # type: ignore[method-assign]
    with pytest.raises((CommandError, BalloonError)):
        run(balloon.set_target(512 * MiB))
    assert balloon.target == GiB
    assert not balloon.is_target_in_doubt


def test_a_target_without_an_answer_is_not_known() -> None:
    balloon = make_balloon(make_machine(memory=2 * GiB))
    assert not balloon.is_target_in_doubt
    run(balloon.set_target(GiB))
    assert not balloon.is_target_in_doubt

    async def lose(command: str, arguments: Any = None) -> object:  # noqa: ANN401 - any
        del arguments
        raise MonitorTimeout("too late", (command,))

    monitor_of(balloon).execute = lose  # type: ignore[method-assign]
    with pytest.raises(MonitorTimeout):
        run(balloon.set_target(512 * MiB))
    assert balloon.target is None
    assert balloon.is_target_in_doubt


def test_a_second_movement_is_refused_before_anything_is_sent() -> None:
    balloon = make_balloon(make_machine())
    with balloon.claim_movement("keep"):
        for call in (
            balloon.set_target(GiB),
            balloon.resize(GiB),
            balloon.reclaim(),
            balloon.keep(),
        ):
            with pytest.raises(BalloonBusy, match="keep moves this balloon now"):
                run(call)
        assert monitor_of(balloon).calls == 0
        # Asking is no movement.
        assert run(balloon.actual()) == 2 * GiB
        assert run(balloon.plan_reclaim()).amount > 0
    run(balloon.set_target(GiB))


def test_a_failed_movement_is_over() -> None:
    balloon = make_balloon(make_machine())
    with pytest.raises(TypeError):
        run(balloon.resize(1.5))  # type: ignore[arg-type]
    with pytest.raises(UnsafeTarget):
        run(balloon.resize(MiB))
    assert run(balloon.resize(GiB)).outcome == "reached"


def test_of_several_threads_one_moves_it(switching: None) -> None:
    del switching
    balloon = make_balloon(make_machine())
    inside: list[int] = []
    refused: list[int] = []

    def claim(number: int) -> None:
        for _ in range(200):
            try:
                with balloon.claim_movement("resize"):
                    inside.append(number)
                    assert inside == [number]
                    inside.remove(number)
            except BalloonBusy:
                refused.append(number)

    with ThreadPoolExecutor(4) as threads:
        for done in [threads.submit(claim, number) for number in range(4)]:
            done.result()
    assert not inside


@pytest.fixture
def switching() -> Generator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def test_it_says_in_short_what_it_is() -> None:
    balloon = make_balloon(make_machine())
    assert repr(balloon) == "<Balloon /machine/peripheral/balloon0>"
    monitor_of(balloon).name = "vm1"  # type: ignore[attr-defined]
    assert repr(balloon) == "<Balloon vm1: /machine/peripheral/balloon0>"


# Disk reads


def describe_disk(size: object, operations: object, **members: object) -> object:
    return {"stats": {"rd_bytes": size, "rd_operations": operations}, **members}


@pytest.mark.parametrize(
    ("disks", "expected"),
    [
        ([], None),
        (None, None),
        ([1, {}, {"node-name": "a", "stats": 1}], None),
        ([describe_disk(MiB, 1)], None),  # a drive without a medium
        ([describe_disk("1", 1, **{"node-name": "a"})], None),
        ([describe_disk(-1, 1, **{"node-name": "a"})], None),
        (
            [
                describe_disk(MiB, 3, **{"node-name": "a"}),
                describe_disk(GiB, 5),
                describe_disk(2 * MiB, 4, **{"node-name": "#block1"}),
                describe_disk(4 * MiB, 8, **{"node-name": "a", "qdev": "vdb"}),
            ],
            DiskReads(7 * MiB, 15),
        ),
        (CommandNotFound("query-blockstats", "CommandNotFound", "no"), None),
        (CommandError("query-blockstats", "GenericError", "no"), None),
    ],
)
def test_reads_are_the_sum_over_disks_with_a_medium(
    disks: object, expected: DiskReads | None
) -> None:
    balloon = scripted(**{"query-blockstats": disks})
    assert run(balloon.disk_reads()) == expected


class SlowDisks(ScriptedMonitor):
    """A QEMU that takes a while to say what its thousands of disks have read."""

    asked = 0

    async def execute(
        self, command: str, arguments: Mapping[str, object] | None = None
    ) -> object:
        if command == "query-blockstats":
            self.asked += 1
            await self.sleep(0.1)
            return [describe_disk(self.asked * MiB, 1, **{"node-name": "a"})]
        return await super().execute(command, arguments)


def test_who_has_thousands_of_disks_is_sampled_as_often() -> None:
    monitor = SlowDisks()

    async def look() -> list[int | None]:
        sampler = Sampler(Balloon(monitor, PATH, "virtio-balloon-pci"), 1)
        reads: list[int | None] = []
        while monitor.now() < sampler.start + 5:
            reads.append(await sampler.count_reads())
            await monitor.sleep(0.04)
        return reads

    reads = run(look())
    assert len(reads) > 80
    assert 9 <= monitor.asked <= 11
    assert reads[-1] == (monitor.asked - 1) * MiB


def test_a_disk_that_comes_back_or_counts_anew_adds_and_hides_nothing() -> None:
    """A guest opens the tray of a drive, and closes it: that is no 64 GiB of reads."""
    disks: list[object] = []
    device = scripted(**{"query-blockstats": disks})

    async def take(sampler: Sampler, **reads: object) -> int | None:
        disks[:] = [
            {"node-name": name, "stats": {"rd_bytes": size, "rd_operations": 1}}
            for name, size in reads.items()
        ]
        return await sampler.count_reads()

    async def look() -> None:
        sampler = Sampler(device, 1)
        assert await take(sampler, disk=MiB, drive=64 * GiB) == 0
        assert await take(sampler, disk=2 * MiB) == MiB
        assert await take(sampler, disk=3 * MiB, drive=64 * GiB) == 2 * MiB
        assert await take(sampler, disk=4 * MiB, drive=0) == 3 * MiB
        assert await take(sampler, disk=5 * MiB, drive=-1) == 4 * MiB
        assert await take(sampler, disk="much") == 4 * MiB
        assert await take(sampler, disk=2**63, drive=MiB) == 4 * MiB
        assert await take(sampler, drive=2 * MiB) == 5 * MiB

    run(look())


def test_a_look_is_all_that_changes() -> None:
    disk = {"node-name": "d", "stats": {"rd_bytes": 4096, "rd_operations": 1}}
    balloon = scripted(query_blockstats=[disk])
    stats, actual, reads = run(balloon.look())
    assert stats.free == run(balloon.stats()).free is not None
    assert actual == run(balloon.actual())
    assert reads == run(balloon.disk_reads()) == DiskReads(4096, 1)


def test_a_look_goes_without_disks_that_are_not_told() -> None:
    balloon = scripted(query_blockstats=make_refusal("CommandNotFound"))
    assert run(balloon.look())[2] is None


@pytest.mark.parametrize("command", ["query_balloon", "qom_get"])
def test_a_look_at_a_balloon_that_is_gone_says_so(command: str) -> None:
    balloon = scripted(**{command: make_refusal("DeviceNotActive")})
    with pytest.raises(NoBalloonDevice, match="unplugged"):
        run(balloon.look())


def make_refusal(kind: str) -> CommandError:
    return make_command_error("x", kind, "no")
