"""Kept memory is given back when the guest needs it, and at the end in any case."""

from __future__ import annotations

import logging
import math
import re
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from attrs import evolve
from faults import Cancelled, at_every_call, monitor_of
from hypothesis import given
from hypothesis import strategies as st
from observing import observe
from simulation import make_balloon, make_machine, run

from qmpballoon.balloon._alarms import Alarms
from qmpballoon.balloon._keep import Keeper
from qmpballoon.balloon._pressure import PressureLimits
from qmpballoon.balloon.device import PAGE
from qmpballoon.balloon.guard import Guard, GuestLimits
from qmpballoon.balloon.stats import GuestStats
from qmpballoon.sizes import GiB, MiB
from qmpballoon.testing import SECOND, GuestConfig, Machine, WorkloadStep, ramp

if TYPE_CHECKING:
    from qmpballoon.balloon._reclaim import ReclaimReport
    from qmpballoon.balloon.balloon import Balloon
    from qmpballoon.balloon.sampling import Progress

BOOTED = 60 * SECOND
LIMITS = GuestLimits(headroom=100 * MiB, floor=64 * MiB, stale_after=3)


def keep(
    machine: Machine,
    **options: Any,  # noqa: ANN401 - what keep takes
) -> ReclaimReport:
    return run(make_balloon(machine).keep(**options))


def told(machine: Machine) -> int:
    assert machine.device is not None
    return machine.guest.memory.ram - machine.device.asked * PAGE


def test_a_quiet_guest_is_kept_small_for_as_long_as_wanted() -> None:
    machine = make_machine(memory=2 * GiB)
    seen: list[Progress] = []
    report = keep(machine, seconds=60, on_progress=seen.append)
    assert (report.outcome, report.held) == ("done", False)
    assert "kept for 60 s" in report.reason
    assert report.seconds >= 60
    samples = [each.sample for each in seen]
    kept = next(sample for sample in samples if sample.mark == "kept")
    small = [sample.actual for sample in samples if kept.t <= sample.t < 60]
    assert max(small) - min(small) < MiB
    assert report.after.actual == 2 * GiB == told(machine)
    assert machine.guest.oom_kills == 0


@pytest.mark.parametrize("kept", [False, True], ids=["taking", "keeping"])
def test_it_can_be_told_to_end(*, kept: bool) -> None:
    machine = make_machine(memory=2 * GiB)
    seen: list[Progress] = []

    def is_to_end() -> bool:
        if kept:
            return bool(seen) and seen[-1].seconds > 6
        return bool(seen) and seen[-1].actual < 2 * GiB

    report = keep(machine, seconds=6.5, until=is_to_end, on_progress=seen.append)
    assert (report.outcome, report.held) == ("done", False)
    kept_for = re.search(r"^kept for (\d) s, until it was to end", report.reason)
    assert kept_for is not None
    assert (int(kept_for[1]) > 0) == kept
    assert report.handed_over > 0
    assert (report.handed_over < report.requested // 2) == (not kept)
    assert report.after.actual == 2 * GiB == told(machine)
    assert ("keeping" in {each.stage for each in seen}) == kept


def test_who_tells_it_to_end_does_not_wait() -> None:
    machine = make_machine(memory=4 * GiB)
    balloon = make_balloon(machine)
    plenty = Guard(headroom=GiB)  # it need not be asked often
    asked: list[float] = []

    def is_to_end() -> bool:
        asked.append(balloon.monitor.now())
        assert len(asked) < 2000
        return len(asked) > 1 and asked[-1] - asked[0] > 60

    run(balloon.keep(guard=plenty, seconds=90, until=is_to_end))
    pauses = [later - earlier for earlier, later in pairwise(asked)]
    assert max(pauses) < 0.2


def test_a_burst_ends_it_and_gets_its_memory() -> None:
    # At once, more than half of its headroom.
    burst = (WorkloadStep(BOOTED + 20 * SECOND, 70 * MiB),)
    machine = make_machine(GuestConfig(workload=burst), memory=2 * GiB)
    report = keep(machine, seconds=600)
    assert report.outcome == "done"
    assert 15 < report.seconds < 25
    assert machine.guest.oom_kills == 0
    assert told(machine) == 2 * GiB


@pytest.mark.parametrize("milliseconds", range(0, 1000, 250))
def test_a_process_that_follows_one_that_has_ended_is_seen_in_time(
    milliseconds: int,
) -> None:
    # With what the first one held the guest has plenty, and is looked at seldom.
    ended = BOOTED + 20 * SECOND
    begins = ended + milliseconds * SECOND // 1000
    workload = (
        WorkloadStep(BOOTED - SECOND, 800 * MiB),
        WorkloadStep(ended, -800 * MiB),
        *ramp(begins, begins + SECOND, GiB, steps=100),
    )
    machine = make_machine(GuestConfig(workload=workload), memory=6 * GiB)
    keep(machine, seconds=25)
    assert machine.guest.oom_kills == 0
    assert told(machine) == 6 * GiB


def test_a_drift_gets_what_it_lacks_and_the_rest_is_kept(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    drift = tuple(
        WorkloadStep(BOOTED + second * SECOND, 2 * MiB) for second in range(20, 100)
    )
    machine = make_machine(GuestConfig(workload=drift), memory=2 * GiB)
    sizes: list[int] = []
    report = keep(machine, seconds=200, on_progress=lambda s: sizes.append(s.actual))
    assert "kept for 200 s" in report.reason
    smallest = min(sizes)
    assert 100 * MiB < sizes[-20] - smallest < 400 * MiB or sizes[-20] == 2 * GiB
    marks = [sample.mark for sample in report.timeline if sample.mark]
    assert marks.count("gives back") >= 2
    given = re.findall(r"gets ([\d.]+) MiB back while it is kept", caplog.text)
    # It lacks a quarter of its headroom each time.
    assert [20 < float(size) < 40 for size in given] == [True] * len(given)
    assert len(given) == marks.count("gives back")
    assert machine.guest.oom_kills == 0


def test_what_a_guest_frees_while_it_is_kept_is_not_taken() -> None:
    workload = (
        WorkloadStep(BOOTED - 30 * SECOND, GiB),
        WorkloadStep(BOOTED + 20 * SECOND, -GiB),
    )
    machine = make_machine(GuestConfig(workload=workload), memory=16 * GiB)
    sizes: list[int] = []
    report = keep(
        machine,
        guard=Guard(headroom=8 * GiB),  # it need not be asked often
        seconds=350,
        on_progress=lambda seen: sizes.append(seen.actual),
    )
    assert "kept for 350 s" in report.reason
    assert 9 * GiB < min(sizes) < 11 * GiB


def test_somebody_else_s_larger_target_is_not_fought() -> None:
    machine = make_machine(memory=2 * GiB)
    done: list[bool] = []

    def other(seen: Progress) -> None:
        if seen.seconds > 20 and not done:
            done.append(True)
            assert machine.device is not None
            machine.device.ask(2 * GiB, 2 * GiB)
            machine.guest.set_target(0)

    report = keep(machine, seconds=600, on_progress=other)
    assert "somebody else" in report.reason
    assert report.seconds < 40


def test_a_guest_that_falls_silent_gets_everything() -> None:
    machine = make_machine(memory=2 * GiB)

    def hang(seen: Progress) -> None:
        if seen.seconds > 20:
            machine.guest.stall(10 * SECOND)

    report = keep(machine, seconds=600, on_progress=hang)
    assert "not answered" in report.reason
    kept = re.match(r"kept for (\d+) s: ", report.reason)
    assert kept is not None
    assert 20 <= int(kept[1]) <= report.seconds
    assert told(machine) == 2 * GiB


def test_what_stopped_or_was_refused_is_not_kept() -> None:
    machine = make_machine(GuestConfig(used=980 * MiB, cache=0), memory=GiB)
    assert keep(machine).outcome == "refused"


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_cancelled_at_any_await_the_guest_gets_its_memory_back(*, after: bool) -> None:
    def small() -> Machine:
        guest = GuestConfig(
            used=64 * MiB, cache=20 * MiB, inflate_rate=2 * GiB, deflate_rate=GiB
        )
        return make_machine(guest, memory=512 * MiB)

    def shortly(balloon: Balloon) -> Any:  # noqa: ANN401 - a coroutine
        return balloon.keep(seconds=0.3)

    for left in at_every_call(small, shortly, lambda _: Cancelled(), after=after):
        assert isinstance(left.raised, Cancelled)
        assert left.target == 512 * MiB


def test_the_more_it_has_the_less_often_it_is_asked() -> None:
    looks = []
    for headroom in (64 * MiB, GiB):
        machine = make_machine(memory=4 * GiB)
        balloon = make_balloon(machine)
        run(balloon.keep(guard=Guard(headroom=headroom), seconds=20))
        looks.append(monitor_of(balloon).calls)
    assert looks[1] < looks[0] / 4


# The judge

figures = st.none() | st.integers(0, 4 * GiB)
lies = st.builds(GuestStats, available=figures, oom_kills=st.none() | st.integers(0, 2))


@given(st.lists(st.tuples(st.integers(0, 4 * GiB), lies, st.floats(0, 5)), max_size=30))
def test_it_only_ever_gives(looks: list[tuple[int, GuestStats, float]]) -> None:
    first = GuestStats(available=100 * MiB, oom_kills=1)
    keeper = Keeper(LIMITS, 4 * GiB, GiB, Alarms(LIMITS, first))
    target = GiB
    for seconds, (actual, said, silence) in enumerate(looks):
        why = keeper.judge(observe(seconds, actual, said, silence=silence))
        assert keeper.target >= target
        target = keeper.target
        if said.available is None or (said.oom_kills or 0) > 1 or silence > 3:
            assert why
        if (said.available or 0) < 50 * MiB:
            assert why
        assert 0.02 <= keeper.choose_pause(said.available) <= 1


def test_what_it_lacks_is_what_it_gets() -> None:
    alarms = Alarms(LIMITS, GuestStats(available=100 * MiB))
    keeper = Keeper(LIMITS, 4 * GiB, GiB, alarms)
    assert keeper.judge(observe(0, GiB, GuestStats(available=80 * MiB))) is None
    assert keeper.target == GiB
    assert keeper.judge(observe(1, GiB, GuestStats(available=70 * MiB))) is None
    assert keeper.target == GiB + 30 * MiB


@pytest.mark.parametrize(("step", "gets"), [(256 * MiB, 256 * MiB), (None, 3 * GiB)])
def test_pressure_gives_a_step_each_time_that_it_begins(
    step: int | None, gets: int
) -> None:
    limits = evolve(
        LIMITS, step=step or math.inf, pressure=PressureLimits.of(GiB, None, None)
    )
    alarms = Alarms(limits, GuestStats(available=GiB, swap_out=0))
    alarms.end_baseline()
    keeper = Keeper(limits, 4 * GiB, GiB, alarms)
    whys, targets = [], []
    for seconds, swapped in ((0, 0), (1, 64), (2, 128)):  # it begins once, and lasts
        said = GuestStats(available=GiB, swap_out=swapped * MiB)
        whys.append(keeper.judge(observe(seconds, keeper.target, said)))
        targets.append(keeper.target)
    assert targets == [GiB, GiB + gets, GiB + gets]
    assert any(whys) == (step is None)
