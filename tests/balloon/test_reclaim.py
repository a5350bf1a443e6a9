"""A reclaim takes what the guest can spare, gives it back, and reports it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from faults import Cancelled, at_every_call, monitor_of
from hypothesis import given, settings
from hypothesis import strategies as st
from simulation import make_balloon, make_machine, plug, run

from qmpballoon.balloon import _reclaim
from qmpballoon.balloon.device import PAGE
from qmpballoon.balloon.guard import Guard
from qmpballoon.errors import (
    CommandNotFound,
    MonitorClosed,
    MonitorTimeout,
    StatsUnavailable,
)
from qmpballoon.sizes import GiB, MiB
from qmpballoon.testing import SECOND, GuestConfig, Machine, WorkloadStep, ramp

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from qmpballoon.balloon._reclaim import ReclaimReport
    from qmpballoon.balloon.balloon import Balloon
    from qmpballoon.balloon.sampling import Progress

BOOTED = 60 * SECOND


def reclaim(
    machine: Machine,
    amount: int | None = None,
    **options: Any,  # noqa: ANN401 - what reclaim takes
) -> ReclaimReport:
    return run(make_balloon(machine).reclaim(amount, **options))


def told(machine: Machine) -> int:
    """Return the size that the guest is told to have."""
    assert machine.device is not None
    return machine.guest.memory.ram - machine.device.asked * PAGE


def check(report: ReclaimReport) -> None:
    """Hold the figures of a report against each other."""
    sizes = [sample.actual for sample in report.timeline]
    assert report.handed_over == report.before.actual - min(sizes)
    last, after = report.timeline[-1], report.after
    assert last.t == report.seconds
    assert (last.actual, last.resident) == (after.actual, after.resident)
    assert (last.free, last.disk_caches) == (after.stats.free, after.stats.disk_caches)
    if report.held:
        assert report.after.actual <= report.before.actual
    else:
        assert report.after.actual == report.before.actual
    printed = report.to_json()
    assert printed["handed_over"] == report.handed_over
    assert printed["after"] == report.after.to_json()
    assert printed["timeline"] == report.timeline.to_json()


def test_the_cache_is_gone_and_the_host_has_it() -> None:
    machine = make_machine(GuestConfig(cache=3 * GiB // 2), memory=2 * GiB)
    report = reclaim(machine)
    check(report)
    assert (report.outcome, report.held) == ("done", False)
    assert report.requested - report.handed_over < 40 * MiB
    before, after = report.before.stats, report.after.stats
    assert before.disk_caches is not None
    assert after.disk_caches is not None
    freed = before.disk_caches - after.disk_caches
    assert freed >= 0.8 * before.disk_caches
    assert report.before.resident is not None
    assert report.after.resident is not None
    assert report.before.resident - report.after.resident >= 0.8 * freed
    assert told(machine) == 2 * GiB


def test_holding_keeps_it() -> None:
    machine = make_machine(memory=2 * GiB)
    report = reclaim(machine, hold=True)
    check(report)
    assert report.held
    assert [sample.mark for sample in report.timeline if sample.mark] == ["spent"]
    # A guest that has said all of it is not asked once more.
    assert report.timeline[-1].t - report.timeline[-2].t < 0.01
    assert told(machine) == report.after.actual
    machine.advance(machine.now + 60 * SECOND)
    assert (
        machine.guest.memory.available >= Guard().compute_limits(2 * GiB).headroom - MiB
    )


@settings(max_examples=30)
@given(st.integers(256, 4096), st.integers(0, 90), st.integers(0, 100))
def test_no_guest_is_taken_below_its_floor_or_headroom(
    megabytes: int, used: int, cache: int
) -> None:
    memory = megabytes * MiB
    rest = memory * (100 - used) // 100
    guest = GuestConfig(used=memory * used // 100, cache=rest * cache // 100)
    machine = make_machine(guest, memory=memory)
    limits = Guard().compute_limits(memory)
    lowest: list[int] = []
    report = reclaim(
        machine,
        on_progress=lambda _: lowest.append(machine.guest.memory.available),
    )
    if report.outcome != "refused":
        check(report)
    assert machine.guest.oom_kills == 0
    assert report.before.actual - report.handed_over >= limits.floor
    if report.handed_over:
        # What is available does not fall evenly with what is taken.
        assert min(lowest) >= limits.headroom * 7 // 8


@pytest.mark.parametrize("amount", [PAGE, 100_000, MiB - PAGE, MiB, 300 * MiB + 1])
@pytest.mark.parametrize("hold", [False, True])
def test_an_amount_is_taken_and_no_more(amount: int, *, hold: bool) -> None:
    report = reclaim(make_machine(memory=2 * GiB), amount, hold=hold)
    check(report)
    assert (report.outcome, report.requested) == ("done", amount)
    assert amount - PAGE < report.handed_over <= amount


def test_more_than_there_is_is_asked_for_and_not_taken() -> None:
    report = reclaim(make_machine(memory=2 * GiB), 5 * GiB)
    check(report)
    assert report.requested == 5 * GiB
    assert report.handed_over < 2 * GiB
    assert "is to keep" in report.reason


def test_no_more_than_the_amount_even_if_the_guest_comes_to_have_it() -> None:
    freed = (WorkloadStep(BOOTED - SECOND, 700 * MiB),)
    machine = make_machine(GuestConfig(cache=0, workload=freed), memory=GiB)
    later: list[Progress] = []

    def free(progress: Progress) -> None:
        if not later:
            machine.guest.memory.release(700 * MiB)
        later.append(progress)

    report = reclaim(machine, 150 * MiB, on_progress=free)
    assert report.handed_over <= 150 * MiB


def test_what_is_less_than_a_page_is_refused() -> None:
    report = reclaim(make_machine(), PAGE - 1)
    assert (report.outcome, report.handed_over, report.requested) == (
        "refused",
        0,
        PAGE - 1,
    )


@pytest.mark.parametrize("amount", [0, -1])
def test_amounts_that_are_none_are_refused(amount: int) -> None:
    balloon = make_balloon(make_machine())
    with pytest.raises(ValueError, match="amount"):
        run(balloon.reclaim(amount))
    assert monitor_of(balloon).calls == 0


@pytest.mark.parametrize(
    "arguments", [{"guard": 0}, {"guard": "much"}, {"on_progress": 5}], ids=str
)
def test_nonsense_is_refused_before_anything_is_sent(arguments: dict[str, Any]) -> None:
    balloon = make_balloon(make_machine())
    for way in (balloon.reclaim, balloon.keep):
        with pytest.raises(TypeError, match=f"^{next(iter(arguments))} is "):
            run(way(**arguments))
    assert monitor_of(balloon).calls == 0


def test_a_guest_without_anything_to_spare_is_left_alone() -> None:
    machine = make_machine(GuestConfig(used=980 * MiB, cache=0), memory=GiB)
    balloon = make_balloon(machine)
    report = run(balloon.reclaim())
    assert report.outcome == "refused"
    assert "nothing to take" in report.reason
    assert report.after is report.before
    assert monitor_of(balloon).targets() == []


def test_a_guest_that_was_ballooned_before_gets_back_what_it_had() -> None:
    machine = make_machine(GuestConfig(cache=500 * MiB), memory=2 * GiB)
    run(make_balloon(machine).resize(GiB))
    report = reclaim(machine)
    check(report)
    assert report.before.actual == report.after.actual == told(machine) == GiB


def test_a_guest_that_is_growing_is_given_back_what_it_was_to_have() -> None:
    machine = make_machine(memory=2 * GiB)
    balloon = make_balloon(machine)
    run(balloon.resize(GiB))
    run(balloon.set_target(2 * GiB))
    assert run(balloon.reclaim()).after.actual == 2 * GiB


def test_memory_plugged_meanwhile_stays_with_the_guest() -> None:
    machine = make_machine(memory=2 * GiB, slots=1, max_memory=8 * GiB)
    at = machine.now + SECOND
    plugged: list[int] = []

    def plug_later(_: Progress) -> None:
        if machine.now >= at and not plugged:
            plugged.append(GiB)
            plug(machine, GiB)

    report = reclaim(machine, on_progress=plug_later)
    assert plugged
    assert report.after.actual == 3 * GiB


def test_memory_plugged_meanwhile_stays_with_the_guest_of_who_is_interrupted() -> None:
    machine = make_machine(memory=2 * GiB, slots=1, max_memory=8 * GiB)

    def plug_and_end(seen: Progress) -> None:
        if seen.actual < GiB:
            plug(machine, GiB)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reclaim(machine, on_progress=plug_and_end)
    assert told(machine) == 3 * GiB


def test_what_the_host_cannot_tell_is_null() -> None:
    balloon = make_balloon(make_machine())
    balloon.resident = lambda: None  # type: ignore[method-assign]
    report = run(balloon.reclaim())
    assert report.before.resident is report.after.resident is None
    assert report.timeline[0].resident is None


def test_an_old_qemu_without_a_total_will_do() -> None:
    balloon = make_balloon(make_machine(memory=2 * GiB))
    monitor = monitor_of(balloon)
    execute = monitor.execute

    async def old(
        command: str, arguments: Mapping[str, object] | None = None
    ) -> object:
        if command == "query-memory-size-summary":
            raise CommandNotFound(command, "CommandNotFound", "no such command")
        return await execute(command, arguments)

    monitor.execute = old  # type: ignore[method-assign]
    report = run(balloon.reclaim())
    check(report)
    assert report.handed_over > GiB


@pytest.mark.parametrize("rate", [1000, MiB, 200 * MiB])
def test_a_rate_cap_is_kept_and_is_no_stall(rate: float) -> None:
    amount = min(int(rate * 10), 500 * MiB)
    report = reclaim(make_machine(), amount, guard=Guard(max_rate=rate))
    check(report)
    assert report.handed_over > amount - PAGE
    for sample in report.timeline:
        taken = report.before.actual - sample.actual
        assert taken <= rate * sample.t + 2 * PAGE


# The guest comes to need its memory


@pytest.mark.parametrize("seconds", [1, 2, 5])
@pytest.mark.parametrize("begins", [0.2, 1.5, 2.8])
@pytest.mark.parametrize("memory", [512 * MiB, 2 * GiB])
def test_a_burst_gets_its_memory(memory: int, begins: float, seconds: int) -> None:
    at = BOOTED + round(begins * SECOND)
    burst = ramp(at, at + seconds * SECOND, memory // 3, steps=100)
    machine = make_machine(
        GuestConfig(cache=memory // 2, workload=burst), memory=memory
    )
    report = reclaim(machine)
    machine.advance(machine.now + 60 * SECOND)
    assert machine.guest.oom_kills == 0
    assert report.after.actual == memory


def test_trouble_stops_it_and_gives_back_at_once_even_if_it_was_to_hold() -> None:
    # When it has little more than its headroom, and is not watched for a moment.
    burst = (WorkloadStep(BOOTED + 2800 * SECOND // 1000, 150 * MiB),)
    guest = GuestConfig(workload=burst, inflate_rate=GiB, reclaim_rate=GiB)
    machine = make_machine(guest, memory=2 * GiB)
    report = reclaim(machine, hold=True, guard=Guard(max_rate=600 * MiB))
    check(report)
    assert (report.outcome, report.held) == ("stopped", False)
    assert "available" in report.reason
    assert [sample.mark for sample in report.timeline if sample.mark] == ["trouble"]


def reset_after_a_second(
    machine: Machine,
) -> tuple[Callable[[Progress], None], list[bool]]:
    """Return what resets it at the first look after that, and notes that it has."""
    at = machine.now + SECOND
    done: list[bool] = []

    def reset(_: Progress) -> None:
        if machine.now >= at and not done:
            done.append(True)
            machine.reset(by_guest=False)

    return reset, done


@pytest.mark.parametrize("version", ["7.2", "10.0"])
def test_a_reset_meanwhile_ends_it_with_the_guest_whole(version: str) -> None:
    machine = make_machine(version=version, memory=2 * GiB)
    reset, _ = reset_after_a_second(machine)
    reclaim(machine, on_progress=reset)
    assert told(machine) == 2 * GiB


@pytest.mark.parametrize("version", ["7.2", "10.0"])
@pytest.mark.parametrize("boot_time", [4, 5])
def test_a_reset_meanwhile_leaves_qemu_with_the_size_that_the_guest_has(
    boot_time: int, version: str
) -> None:
    # Its driver comes back when all has been given back: it finds nothing to do.
    guest = GuestConfig(boot_time=boot_time * SECOND)
    machine = make_machine(guest, version=version, memory=2 * GiB)
    reset, done = reset_after_a_second(machine)
    report = reclaim(machine, on_progress=reset)
    assert done
    assert (report.outcome, report.held) == ("stopped", False)
    assert "has yet to take" not in report.reason
    assert report.after.actual == told(machine) == 2 * GiB
    assert machine.actual == 2 * GiB


def test_a_guest_that_does_not_report_its_size_is_asked_for_it_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[object] = []

    async def ask_in_vain(device: object, *_: int) -> None:
        asked.append(device)

    monkeypatch.setattr(_reclaim, "prompt_size_report", ask_in_vain)
    machine = make_machine(GuestConfig(boot_time=4 * SECOND), memory=2 * GiB)
    reset, _ = reset_after_a_second(machine)
    report = reclaim(machine, on_progress=reset)
    assert len(asked) == 1
    assert "has yet to take" in report.reason


def test_a_vm_paused_meanwhile_is_told_what_it_is_owed() -> None:
    machine = make_machine(memory=2 * GiB)
    at = machine.now + SECOND

    def pause(_: Progress) -> None:
        if machine.now >= at:
            machine.stop()

    report = reclaim(machine, on_progress=pause)
    assert (report.outcome, report.held) == ("stopped", True)
    assert "has yet to take" in report.reason
    assert "the VM is paused" in report.reason
    assert told(machine) == 2 * GiB


@pytest.mark.parametrize(
    ("size", "delay"), [(768 * MiB, 0), (1536 * MiB, 0), (768 * MiB, 2 * SECOND)]
)
def test_another_client_s_target_in_place_of_what_is_given_back_is_told(
    size: int, delay: int
) -> None:
    # A guest on a busy host answers late, and is well.
    machine = make_machine(GuestConfig(stats_delay=delay), memory=2 * GiB)

    def interfere(progress: Progress) -> None:
        if progress.stage == "deflating":  # it is given back
            machine.set_target(size)

    report = reclaim(machine, GiB, on_progress=interfere)
    assert (report.outcome, report.held) == ("done", True)
    assert report.after.actual == size
    assert "has yet to take" in report.reason
    assert "another client sets targets" in report.reason


@pytest.mark.parametrize(
    "guest", [GuestConfig(driver=False), GuestConfig(stats_delay=None)]
)
def test_without_statistics_nothing_is_taken(guest: GuestConfig) -> None:
    balloon = make_balloon(make_machine(guest))
    with pytest.raises(StatsUnavailable):
        run(balloon.reclaim())
    assert monitor_of(balloon).targets() == []


# Whatever happens


def small() -> Machine:
    guest = GuestConfig(
        used=64 * MiB,
        cache=100 * MiB,
        inflate_rate=2 * GiB,
        reclaim_rate=2 * GiB,
        deflate_rate=GiB // 2,
    )
    machine = make_machine(guest, memory=512 * MiB)
    assert machine.device is not None
    machine.device.set_interval(7, machine.guest.now)
    return machine


OPERATIONS: dict[str, Callable[[Balloon], Any]] = {
    "give back": lambda balloon: balloon.reclaim(),
    "hold": lambda balloon: balloon.reclaim(hold=True),
    "amount": lambda balloon: balloon.reclaim(100 * MiB),
    "plan": lambda balloon: balloon.plan_reclaim(),
}


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_cancelled_at_any_await_the_guest_gets_its_memory_back(
    name: str, *, after: bool
) -> None:
    operation = OPERATIONS[name]
    for left in at_every_call(small, operation, lambda _: Cancelled(), after=after):
        assert isinstance(left.raised, Cancelled)
        assert left.target == 512 * MiB
        assert left.interval == 7


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_timeout_at_any_await_leaves_the_guest_whole(name: str) -> None:
    def failure(_: Machine) -> BaseException:
        return MonitorTimeout("too late", ("balloon",))

    for left in at_every_call(small, OPERATIONS[name], failure, after=True):
        assert isinstance(left.raised, MonitorTimeout)
        assert left.target == 512 * MiB


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_end_of_qemu_at_any_await_is_told(name: str) -> None:
    def end(machine: Machine) -> None:
        machine.quit()

    for left in at_every_call(small, OPERATIONS[name], end):
        assert isinstance(left.raised, MonitorClosed)
        assert left.raised.unknown_outcome


@pytest.mark.parametrize("number", [1, 2, 5])
def test_a_callback_that_raises_leaves_the_guest_whole(number: int) -> None:
    machine = small()
    seen: list[Progress] = []

    def broken(progress: Progress) -> None:
        seen.append(progress)
        if len(seen) == number:
            raise KeyError

    with pytest.raises(KeyError):
        reclaim(machine, on_progress=broken)
    assert told(machine) == 512 * MiB
    assert machine.device is not None
    assert machine.device.interval == 7


# Progress


def test_progress_says_the_stage_the_phase_and_the_time_left() -> None:
    seen: list[Progress] = []
    guest = GuestConfig(cache=1536 * MiB)
    report = reclaim(make_machine(guest, memory=2 * GiB), on_progress=seen.append)
    assert [each.sample for each in seen] == list(report.timeline)
    stages = [each.stage for each in seen]
    assert stages == sorted(stages, key=["inflating", "deflating"].index)
    assert set(stages) == {"inflating", "deflating"}
    taking = [each for each in seen if each.stage == "inflating"]
    assert {each.before for each in taking} == {2 * GiB}
    assert {each.target for each in taking} == {2 * GiB - report.requested}
    half = taking[len(taking) // 2]
    assert half.phase == "moving"
    assert half.time_left is not None
    assert half.time_left == (half.actual - half.target) / half.rate
    (last,) = seen[-1:]
    assert (last.phase, last.target, last.actual) == ("reached", 2 * GiB, 2 * GiB)


def test_progress_says_how_long_memory_is_kept_at_most() -> None:
    seen: list[Progress] = []
    balloon = make_balloon(make_machine(memory=2 * GiB))
    run(balloon.keep(seconds=30, on_progress=seen.append))
    kept = [each for each in seen if each.stage == "keeping"]
    left = [each.time_left for each in kept]
    assert all(seconds is not None and 0 <= seconds <= 30 for seconds in left)
    assert left == sorted(left, key=lambda seconds: -(seconds or 0))
    assert {each.phase for each in kept} == {"reached"}
    seen.clear()

    def stop(progress: Progress) -> None:
        if progress.stage == "keeping":
            seen.append(progress)
            raise KeyError

    with pytest.raises(KeyError):
        run(balloon.keep(on_progress=stop))
    assert seen[0].time_left is None
