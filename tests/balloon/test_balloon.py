"""Asking and setting a balloon, over a simulated QEMU."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Any, cast

import pytest
from simulation import PATH, SimulatedMonitor, make_balloon, make_machine, run

from qmpballoon.balloon.balloon import Balloon
from qmpballoon.balloon.results import BalloonInfo
from qmpballoon.errors import (
    BalloonUnavailable,
    CommandError,
    CommandNotFound,
    MonitorClosed,
    NoBalloonDevice,
    ProtocolError,
    StatsUnavailable,
    make_command_error,
)
from qmpballoon.sizes import GiB, MiB
from qmpballoon.testing import SECOND, GuestConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


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


def monitor_of(balloon: Balloon) -> SimulatedMonitor:
    assert isinstance(balloon.monitor, SimulatedMonitor)
    return balloon.monitor


def test_query_tells_what_is_known() -> None:
    balloon = make_balloon(make_machine(memory=GiB))
    assert run(balloon.query()) == BalloonInfo(actual=GiB, total=GiB)
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
    assert run(balloon.query()).total == 4 * GiB


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


def test_a_paused_vm_does_not_run() -> None:
    balloon = make_balloon(make_machine())
    assert run(balloon.is_running())
    monitor_of(balloon).machine.stop()
    assert not run(balloon.is_running())


# Statistics


@pytest.mark.parametrize("interval", [0, 1, 60])
@pytest.mark.parametrize("clock", [True, False])
def test_a_refreshed_sample_is_of_now_and_the_interval_as_before(
    interval: int, *, clock: bool
) -> None:
    balloon = make_balloon(make_machine(), clock=clock)
    monitor = monitor_of(balloon)
    run(balloon.set_stats_interval(interval))
    for _ in range(5):  # several within one second, in which nothing changes
        before = monitor.wall_clock()
        stats = run(balloon.refresh_stats())
        assert stats.last_update is not None
        assert stats.last_update.timestamp() >= int(before)
        assert run(balloon.get_stats_interval()) == interval
        assert monitor.wall_clock() - before < (0.3 if clock else 1.3)


def skewed(machine_clock: Callable[[], float], hours: float) -> Callable[[], float]:
    return lambda: machine_clock() + hours * 3600


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_wrong_clock_neither_hides_a_new_sample_nor_makes_an_old_one_new(
    hours: float,
) -> None:
    machine = make_machine()
    monitor = SimulatedMonitor(machine)
    clock = skewed(monitor.wall_clock, hours)
    balloon = Balloon(monitor, PATH, "virtio-balloon-pci", wall_clock=clock)
    run(balloon.refresh_stats())
    assert run(balloon.refresh_stats()).last_update is not None
    machine.guest.stall(3600 * SECOND)
    with pytest.raises(StatsUnavailable):
        run(balloon.refresh_stats())


def test_statistics_that_a_reset_wipes_out_are_waited_for() -> None:
    machine = make_machine(GuestConfig(boot_time=SECOND))
    balloon = make_balloon(machine)
    run(balloon.refresh_stats())
    machine.reset(by_guest=False)
    assert run(balloon.stats()).last_update is None
    assert run(balloon.refresh_stats()).available is not None


@pytest.mark.parametrize(
    ("guest", "break_it", "why"),
    [
        (GuestConfig(driver=False), lambda _: None, "load virtio_balloon"),
        (GuestConfig(), lambda machine: machine.stop(), "the VM is paused"),
        (
            GuestConfig(),
            lambda machine: machine.guest.stall(3600 * SECOND),
            "the guest hangs",
        ),
    ],
    ids=["no driver", "paused", "hangs"],
)
def test_a_guest_that_does_not_answer_is_given_up_in_time_with_a_reason(
    guest: GuestConfig, break_it: Callable[[object], None], why: str
) -> None:
    balloon = make_balloon(make_machine(guest))
    monitor = monitor_of(balloon)
    break_it(monitor.machine)
    start = monitor.now()
    with pytest.raises(StatsUnavailable, match=why):
        run(balloon.refresh_stats(timeout=2))
    assert monitor.now() - start < 2.1
    assert run(balloon.get_stats_interval()) == 0


def test_the_interval_is_kept_in_a_block_and_restored_behind_it() -> None:
    balloon = make_balloon(make_machine())
    run(balloon.set_stats_interval(30))

    async def use() -> None:
        async with balloon.stats_interval(2):
            assert await balloon.get_stats_interval() == 2
            raise KeyError

    with pytest.raises(KeyError):
        run(use())
    assert run(balloon.get_stats_interval()) == 30


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


# The sampler


def test_a_sampler_sees_the_guest_answer_many_times_a_second() -> None:
    machine = make_machine()
    balloon = make_balloon(machine)

    async def use() -> None:
        async with balloon.sampler() as sampler:
            await balloon.set_target(GiB)
            for number in range(20):
                await balloon.monitor.sleep(0.04)
                sample = await sampler.take("!" if number == 3 else None)
                assert sampler.silence == 0
                # What the guest said, it said when it had that much.
                assert sampler.basis >= sample.actual
                reserve = machine.guest.memory.reserve
                assert sampler.basis - sample.total - reserve <= 8 * MiB  # type: ignore[operator]
                assert (sample.mark == "!") == (number == 3)

    run(use())
    assert run(balloon.get_stats_interval()) == 0


def test_a_sampler_tells_for_how_long_the_guest_is_silent() -> None:
    machine = make_machine()
    balloon = make_balloon(machine)

    async def use() -> None:
        async with balloon.sampler() as sampler:
            await balloon.monitor.sleep(1.1)
            await sampler.take()
            assert sampler.silence == 0
            machine.reset(by_guest=False)  # wipes the statistics out: no answer
            machine.guest.stall(3600 * SECOND)
            await balloon.monitor.sleep(2)
            sample = await sampler.take()
            assert sampler.silence == pytest.approx(2, abs=0.1)
            assert sample.available is None

    run(use())
