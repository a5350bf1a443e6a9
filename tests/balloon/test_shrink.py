"""The loop that shrinks a guest is quick, and watches what the guest needs."""

from __future__ import annotations

import random
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from attrs import evolve
from faults import monitor_of
from hypothesis import given
from hypothesis import strategies as st
from simulation import make_balloon, make_machine, run

from qmpballoon.balloon._shrink import choose_safe_size, make_progress
from qmpballoon.balloon._tracker import Tracker
from qmpballoon.balloon.device import PAGE
from qmpballoon.balloon.guard import Guard
from qmpballoon.balloon.sampling import Sample
from qmpballoon.balloon.stats import GuestStats
from qmpballoon.errors import MonitorTimeout
from qmpballoon.sizes import GiB, MiB, format_size
from qmpballoon.testing import (
    SECOND,
    GuestConfig,
    Machine,
    MachineConfig,
    WorkloadStep,
    ramp,
    run_world,
)
from qmpballoon.trio import open_balloon

if TYPE_CHECKING:
    from collections.abc import Callable

    from qmpballoon.balloon import ReclaimReport
    from qmpballoon.balloon.balloon import Balloon
    from qmpballoon.balloon.results import AlarmKind, ResizeResult
    from qmpballoon.balloon.sampling import Progress
    from qmpballoon.testing import FakeQemu

BOOTED = 60 * SECOND  # by then make_machine's guest is up


def resize(
    machine: Machine,
    target: int,
    **options: Any,  # noqa: ANN401 - what resize takes
) -> tuple[ResizeResult, Balloon]:
    balloon = make_balloon(machine)
    return run(balloon.resize(target, on_stall="settle", **options)), balloon


@given(st.integers(0, 1024))
def test_the_floor_is_found_at_once_and_not_circled_about(pages: int) -> None:
    guest = GuestConfig(used=64 * MiB + pages * PAGE, cache=100 * MiB)
    machine = make_machine(guest, memory=512 * MiB)
    result, balloon = resize(machine, 64 * MiB)
    assert result.seconds < 2
    assert result.outcome == "settled"
    assert monitor_of(balloon).calls < 500


def make_fast_guest(memory: int) -> GuestConfig:
    """Return an idle guest, mostly of cache, that gives a GiB in 50 ms."""
    rate = 20 * GiB
    return GuestConfig(
        used=memory // 8,
        cache=memory * 3 // 4,
        inflate_rate=rate,
        reclaim_rate=rate,
        deflate_rate=rate,
    )


def test_a_guest_that_is_faster_than_its_answers_is_not_circled_about() -> None:
    reports: list[ReclaimReport] = []

    async def main(fake: FakeQemu) -> None:
        async with open_balloon(fake.connect(), wall_clock=fake.wall_clock) as balloon:
            reports.append(await balloon.reclaim(hold=True))

    config = MachineConfig(memory=512 * MiB, guest=make_fast_guest(512 * MiB))
    run_world(main, Machine(config, rng=random.Random(0)))
    # It is not known whether an answer is about the size before or after a step.
    assert len(reports[0].timeline) < 40


def test_a_guest_that_gives_a_step_in_no_time_need_not_wait_for_the_next() -> None:
    machine = make_machine(make_fast_guest(4 * GiB), memory=4 * GiB)
    report = run(make_balloon(machine).reclaim(hold=True))
    sizes = [(sample.t, sample.actual) for sample in report.timeline]
    steps = [t for t, actual in sizes if GiB < actual < 3 * GiB]
    # On the simulated clock: 16 steps of 128 MiB, each of which takes it 6 ms.
    assert steps[-1] - steps[0] < 0.12


def test_a_guest_that_had_to_wait_is_looked_at_by_what_it_gives_now() -> None:
    rate = 5 * GiB
    guest = evolve(make_fast_guest(4 * GiB), inflate_rate=rate, reclaim_rate=rate)
    report = run(make_balloon(make_machine(guest, memory=4 * GiB)).reclaim(hold=True))
    size = report.timeline[-1].actual
    took = next(each.t for each in report.timeline if each.actual <= size + MiB)
    # In the first tenth of a second only free memory is taken.
    assert took < 0.1 + (4 * GiB - size) / rate


@pytest.mark.parametrize("timeout", [0.1, 0.22, 0.5, 1.3])
def test_it_takes_no_longer_than_it_may(timeout: float) -> None:
    machine = make_machine(memory=16 * GiB)
    start = machine.now
    result, _ = resize(machine, GiB, timeout=timeout)
    assert result.outcome == "timed-out"
    assert machine.now - start < (timeout + 0.05) * SECOND


@pytest.mark.parametrize("seconds", [2, 3, 5])
@pytest.mark.parametrize("begins", [0.3, 0.8, 1.2])
def test_a_guest_that_begins_to_allocate_meanwhile_gets_its_memory(
    begins: float, seconds: int
) -> None:
    at = BOOTED + round(begins * SECOND)
    burst = ramp(at, at + seconds * SECOND, 600 * MiB, steps=seconds * 50)
    machine = make_machine(GuestConfig(workload=burst), memory=GiB)
    resize(machine, 200 * MiB)
    assert machine.guest.oom_kills == 0


def test_it_goes_on_when_the_need_is_over() -> None:
    at = BOOTED + round(0.3 * SECOND)
    workload = (
        *ramp(at, at + 2 * SECOND, 500 * MiB, steps=50),
        WorkloadStep(at + 3 * SECOND, -500 * MiB),
    )
    machine = make_machine(GuestConfig(workload=workload), memory=GiB)
    result, _ = resize(machine, 400 * MiB)
    assert (result.outcome, machine.guest.oom_kills) == ("reached", 0)


def test_the_step_ahead_is_all_that_is_taken_unwatched() -> None:
    machine = make_machine(memory=8 * GiB)
    _, balloon = resize(machine, GiB)
    targets = monitor_of(balloon).targets()
    step = Guard().compute_limits(8 * GiB).step
    assert targets[0] == 8 * GiB - step
    assert all(one - two <= 2 * step for one, two in pairwise(targets))


# How often it looks. A look at an idle guest costs it CPU; what it has done before the
# next look is time in which it waits.


@pytest.mark.parametrize(
    ("rate", "seconds", "looks"),
    [
        (GiB // 2, 16.1, 60),
        (2 * GiB, 4.1, 50),
        (8 * GiB, 1.15, 35),
        (50 * GiB, 0.3, 30),
    ],
    ids=["slow", "usual", "fast", "at once"],
)
def test_a_guest_is_not_waited_for_and_seldom_looked_at(
    rate: int, seconds: float, looks: int
) -> None:
    guest = GuestConfig(inflate_rate=rate, reclaim_rate=rate)
    seen: list[Progress] = []
    machine = make_machine(guest, memory=16 * GiB)
    result, _ = resize(machine, 8 * GiB, on_progress=seen.append)
    assert result.outcome == "reached"
    assert result.seconds < seconds
    assert len(seen) < looks


def test_the_less_a_guest_has_left_the_more_often_it_is_looked_at() -> None:
    guest = GuestConfig(inflate_rate=128 * MiB, reclaim_rate=128 * MiB)
    seen: list[Progress] = []
    resize(make_machine(guest, memory=2 * GiB), 64 * MiB, on_progress=seen.append)
    pauses = [
        (one.sample.available or 0, two.seconds - one.seconds)
        for one, two in pairwise(seen)
        if one.seconds > 2  # by then it is known how fast it is
    ]
    for least, most, shortest, longest in (
        (0, 100, 0.02, 0.03),
        (150, 200, 0.04, 0.05),
        (400, 600, 0.12, 0.25),
        (1400, 2048, 0.45, 0.55),
    ):
        found = [pause for left, pause in pauses if least <= left / MiB < most]
        assert shortest < min(found) <= max(found) < longest, (least, most)


@pytest.mark.parametrize("guard", [Guard(gentle=30), Guard(max_rate=32 * MiB)])
def test_a_guest_from_which_memory_is_taken_slowly_is_seldom_looked_at(
    guard: Guard,
) -> None:
    machine = make_machine(memory=2 * GiB)
    balloon = make_balloon(machine)
    seen: list[Progress] = []
    report = run(balloon.reclaim(GiB, guard=guard, hold=True, on_progress=seen.append))
    assert report.outcome == "done"
    assert len(seen) < 6 * report.seconds


@pytest.mark.parametrize(
    ("rate", "delay", "seconds"), [(GiB, 0.1, 4.1), (20 * GiB, 0.06, 0.5)]
)
def test_a_guest_that_answers_late_is_asked_again_soon(
    rate: int, delay: float, seconds: float
) -> None:
    guest = GuestConfig(
        stats_delay=round(delay * SECOND), inflate_rate=rate, reclaim_rate=rate
    )
    result, _ = resize(make_machine(guest, memory=16 * GiB), 12 * GiB)
    assert result.seconds < seconds


@pytest.mark.parametrize("rate", [256 * MiB, 2 * GiB])
def test_a_guest_that_grows_is_asked_seldom_on_its_way_and_often_at_its_end(
    rate: int,
) -> None:
    machine = make_machine(GuestConfig(deflate_rate=rate), memory=4 * GiB)
    _, balloon = resize(machine, 2 * GiB)
    before = len(monitor_of(balloon).commands)
    result = run(balloon.resize(4 * GiB))
    assert result.actual == 4 * GiB
    assert result.seconds - 2 * GiB / rate < 0.02
    asked = [name for name, _ in monitor_of(balloon).commands[before:]]
    assert asked.count("query-balloon") < 10 + 5 * result.seconds


@pytest.mark.parametrize(("off", "is_there"), [(PAGE - 1, True), (PAGE, False)])
def test_progress_that_is_a_page_off_is_not_there(off: int, *, is_there: bool) -> None:
    tracker = Tracker(GiB, 2 * GiB, 0.0)
    sample = Sample.of(
        1.0, GuestStats(), target=GiB, actual=GiB + off, resident=None, disk_reads=None
    )
    seen = make_progress(tracker, "inflating", sample)
    assert (seen.phase == "reached") == is_there


def test_growing_takes_no_longer_than_it_may() -> None:
    machine = make_machine(GuestConfig(deflate_rate=64 * MiB), memory=4 * GiB)
    _, balloon = resize(machine, 2 * GiB)
    start = machine.now
    result = run(balloon.resize(4 * GiB, on_stall="settle", timeout=1.1))
    assert result.outcome == "timed-out"
    assert machine.now - start < 1.15 * SECOND


OPERATIONS: dict[str, Callable[..., Any]] = {
    "resize": lambda balloon, **options: balloon.resize(GiB, **options),
    "reclaim": lambda balloon, **options: balloon.reclaim(**options),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_what_a_qemu_that_does_not_answer_again_leaves_is_noted(name: str) -> None:
    machine = make_machine(memory=2 * GiB)
    balloon = make_balloon(machine)
    monitor = monitor_of(balloon)

    async def late(command: str, arguments: object = None) -> object:
        del arguments
        raise MonitorTimeout("too late", (command,))

    def stop(seen: Progress) -> None:
        if seen.actual < 2 * GiB:
            monitor.execute = late  # type: ignore[method-assign]

    with pytest.raises(MonitorTimeout) as caught:
        run(OPERATIONS[name](balloon, on_progress=stop))
    (note,) = caught.value.__notes__
    assert "was last asked for" in note
    assert machine.device is not None
    asked = 2 * GiB - machine.device.asked * PAGE
    assert format_size(asked) in note


@pytest.mark.parametrize("name", OPERATIONS)
def test_nothing_is_noted_if_the_guest_was_asked_for_what_it_is_due(name: str) -> None:
    balloon = make_balloon(make_machine(memory=2 * GiB))

    def stop(seen: Progress) -> None:
        if seen.actual < 2 * GiB:
            raise MonitorTimeout("another one's", ("balloon",))

    with pytest.raises(MonitorTimeout) as caught:
        run(OPERATIONS[name](balloon, on_progress=stop))
    assert not hasattr(caught.value, "__notes__")


@pytest.mark.parametrize(
    ("actual", "available", "alarm", "size"),
    [
        (GiB, 100 * MiB, None, GiB),
        (GiB, 60 * MiB, None, GiB + 40 * MiB),
        (GiB, None, None, GiB),
        (2 * GiB - MiB, 60 * MiB, None, 2 * GiB),  # never more than it had before
        (GiB, 100 * MiB, "pressure", 2 * GiB),
        (3 * GiB, 100 * MiB, "pressure", 3 * GiB),  # memory was plugged
    ],
)
def test_a_guest_is_left_with_its_headroom_or_with_all_that_it_had(
    actual: int, available: int | None, alarm: AlarmKind | None, size: int
) -> None:
    stats = GuestStats(available=available)
    assert choose_safe_size(actual, 2 * GiB, 100 * MiB, stats, alarm) == size
