"""Whatever a guest says, the controller keeps its limits, and it ends."""

from __future__ import annotations

import math
from typing import Any

import pytest
from attrs import evolve
from hypothesis import assume, given
from hypothesis import strategies as st
from observing import observe

from qmpballoon.balloon._controller import Controller, Decision
from qmpballoon.balloon._pressure import PressureLimits
from qmpballoon.balloon._working_set import RereadLimits
from qmpballoon.balloon.device import LARGEST_PAGE, PAGE
from qmpballoon.balloon.guard import GuestLimits
from qmpballoon.balloon.stats import GuestStats
from qmpballoon.sizes import GiB, MiB

pages = st.integers(1, 4 * GiB // PAGE).map(lambda count: count * PAGE)
figures = st.none() | st.integers(0, 2**63 - 1)
lies = st.builds(
    GuestStats,
    available=figures,
    free=figures,
    disk_caches=figures,
    oom_kills=st.none() | st.integers(0, 3),
)
# What one sample may show: the guest's size, its size when it was asked, what it
# reports, and the seconds since its last new answer.
looks = st.tuples(pages, pages, lies, st.sampled_from([0.0, 0.0, 0.0, 0.04, 5.0]))


def stats(available: int | None, oom_kills: int | None = None) -> GuestStats:
    return GuestStats(available=available, oom_kills=oom_kills)


@given(
    st.builds(
        GuestLimits,
        headroom=st.integers(0, 2 * GiB),
        floor=st.integers(0, 2 * GiB),
        step=st.just(math.inf) | st.integers(MiB, GiB),
        max_rate=st.just(math.inf) | st.floats(1, 4 * GiB),
        stale_after=st.just(math.inf) | st.floats(0, 10),
    ),
    pages,
    st.integers(-GiB, 4 * GiB),
    st.none() | lies,
    st.tuples(st.sampled_from([0.04, 2.0]), st.lists(looks, max_size=30)),
)
def test_no_guest_can_talk_a_controller_past_its_limits(
    limits: GuestLimits,
    start: int,
    bottom: int,
    first: GuestStats | None,
    watched: tuple[float, list[tuple[int, int, GuestStats, float]]],
) -> None:
    controller = Controller(limits, start, bottom, first)
    pause, seen = watched
    lowest = max(limits.floor, bottom, 1)
    before = start
    for number, (actual, basis, said, silence) in enumerate(seen):
        seconds = number * pause
        decision = controller.decide(
            observe(seconds, actual, said, basis=basis, silence=silence)
        )
        if decision.action in {"reached", "spent"}:
            assert decision.target == actual
            continue
        target = decision.target
        assert min(lowest, start) <= target <= start
        if decision.action == "trouble":
            assert target == start
            assert decision.reason
        elif target < before:  # what is already asked for may be kept
            if not math.isinf(limits.step):
                assert target >= actual - limits.step
            if not math.isinf(limits.max_rate):
                assert target >= start - limits.max_rate * seconds - 1
                at_once = max(limits.max_rate / 2, LARGEST_PAGE)
                assert target >= actual - at_once - PAGE
        before = target


@given(looks, st.integers(0, GiB), st.integers(0, GiB))
def test_a_stale_sample_moves_nothing(
    look: tuple[int, int, GuestStats, float], headroom: int, floor: int
) -> None:
    actual, basis, said, _ = look
    limits = GuestLimits(headroom=headroom, floor=floor, step=128 * MiB)
    controller = Controller(limits, 4 * GiB, 0, stats(2 * GiB))
    first = controller.decide(observe(0, 4 * GiB, stats(2 * GiB)))
    assume(first.action == "take" and first.target != 4 * GiB)
    decision = controller.decide(observe(0.04, actual, said, basis=basis, silence=0.04))
    if decision.action != "trouble":
        assert (decision.action, decision.target) == ("take", first.target)


def settle(controller: Controller, guest: Guest, ticks: int = 2000) -> str:
    """Run a controller on a guest, and return how it ended."""
    target = guest.actual
    for tick in range(ticks):
        basis, available = guest.actual, guest.available(tick)
        assert available >= 0
        guest.move(target)  # while the answer is on its way
        said = stats(available)
        decision = controller.decide(
            observe(tick * 0.04, guest.actual, said, basis=basis)
        )
        if decision.action != "take":
            return decision.action
        target = decision.target
    raise AssertionError("it goes on for ever")


class Guest:
    """A guest that moves by a unit at a speed, and whose available varies."""

    def __init__(
        self,
        actual: int,
        used: int,
        unit: int,
        speed: int,
        noise: int,
        *,
        grain: int = 1,
    ) -> None:
        self.actual, self._used = actual, used
        self._unit, self._speed, self._noise = unit, speed, noise
        self._grain = grain

    def available(self, tick: int) -> int:
        wavering = (tick * 7919 % 3 - 1) * self._noise
        return (self.actual - self._used + wavering) // self._grain * self._grain

    def move(self, target: int) -> None:
        steps = min(abs(target - self.actual), self._speed) // self._unit
        moved = steps * self._unit
        self.actual += moved if target > self.actual else -moved


@given(
    st.integers(64 * MiB, GiB),
    st.sampled_from([PAGE, LARGEST_PAGE, MiB // 4]),
    st.integers(2 * MiB, 200 * MiB),
    st.integers(0, MiB // 3),
)
def test_it_ends_at_the_headroom_whatever_the_guests_unit(
    used: int, unit: int, speed: int, noise: int
) -> None:
    limits = GuestLimits(headroom=100 * MiB, floor=64 * MiB, step=128 * MiB)
    guest = Guest(4 * GiB, used, unit, speed, noise)
    action = settle(Controller(limits, 4 * GiB, 0, stats(4 * GiB - used)), guest)
    assert action == "spent"
    # A 16th of the headroom, and what wavers.
    assert abs(guest.actual - used - 100 * MiB) <= 7 * MiB


# Pages on a processor's own free list count as neither free nor used: a guest may give
# some MiB and take them back without a change of its figures.
@given(
    st.integers(64 * MiB, 512 * MiB),
    st.integers(2 * MiB, 12 * MiB),
    st.integers(5 * MiB, 40 * MiB),
)
def test_it_ends_soon_though_the_guest_tells_small_changes_not(
    used: int, grain: int, speed: int
) -> None:
    limits = GuestLimits(headroom=100 * MiB, floor=64 * MiB, step=128 * MiB)
    guest = Guest(GiB, used, PAGE, speed, 0, grain=grain)
    there_in = (GiB - used - 100 * MiB) // speed
    settle(Controller(limits, GiB, 0, stats(GiB - used)), guest, ticks=there_in + 40)
    assert abs(guest.actual - used - 100 * MiB) <= 7 * MiB + grain


@given(
    st.integers(0, 3 * GiB),
    st.sampled_from([PAGE, LARGEST_PAGE]),
    st.integers(2 * MiB, 200 * MiB),
)
def test_it_ends_at_the_bottom_whatever_the_guests_unit(
    bottom: int, unit: int, speed: int
) -> None:
    limits = GuestLimits(headroom=100 * MiB, floor=64 * MiB, step=128 * MiB)
    guest = Guest(4 * GiB, 1 * MiB, unit, speed, 0)
    bottom = max(bottom, 200 * MiB)
    action = settle(Controller(limits, 4 * GiB, bottom, stats(4 * GiB - MiB)), guest)
    assert action == "reached"
    assert abs(guest.actual - bottom) < LARGEST_PAGE


def test_a_moving_balloon_is_paired_with_the_size_the_guest_spoke_of() -> None:
    # By the time it is read, the guest has 40 MiB less than when it was asked.
    limits = GuestLimits(headroom=100 * MiB, floor=64 * MiB)
    controller = Controller(limits, GiB, 0, stats(600 * MiB))
    decision = controller.decide(
        observe(1, 960 * MiB, stats(500 * MiB), basis=1000 * MiB)
    )
    assert decision.target == 600 * MiB


def test_a_guest_below_its_headroom_gets_what_it_lacks_and_no_more() -> None:
    limits = GuestLimits(headroom=100 * MiB, floor=64 * MiB)
    controller = Controller(limits, GiB, 0, stats(600 * MiB))
    decision = controller.decide(observe(1, 500 * MiB, stats(70 * MiB)))
    assert (decision.action, decision.target) == ("take", 530 * MiB)
    assert "70 MiB" in decision.reason


@pytest.mark.parametrize(
    ("said", "silence", "reason"),
    [
        (stats(49 * MiB), 0.0, "49 MiB available"),
        (stats(500 * MiB, oom_kills=3), 0.0, "killed a process"),
        (stats(None), 0.0, "no longer says"),
        (stats(500 * MiB), 3.5, "not answered for 3.5 s"),
        # A silent guest in need is one in need.
        (stats(49 * MiB), 0.04, "49 MiB available"),
    ],
)
def test_trouble_gives_everything_back(
    said: GuestStats, silence: float, reason: str
) -> None:
    limits = GuestLimits(headroom=100 * MiB, floor=64 * MiB, stale_after=3)
    controller = Controller(limits, GiB, 0, stats(600 * MiB, oom_kills=2))
    decision = controller.decide(observe(1, 500 * MiB, said, silence=silence))
    assert (decision.action, decision.target) == ("trouble", GiB)
    assert reason in decision.reason


def test_oom_kills_of_before_are_no_trouble_nor_is_hearing_of_them_late() -> None:
    limits = GuestLimits(headroom=MiB, floor=MiB)
    for first in (2, None):
        controller = Controller(limits, GiB, 0, stats(600 * MiB, oom_kills=first))
        said = stats(500 * MiB, oom_kills=2)
        assert controller.decide(observe(1, GiB, said)).action == "take"


def test_a_guest_that_has_little_from_the_start_is_no_emergency() -> None:
    limits = GuestLimits(headroom=100 * MiB, floor=64 * MiB)
    controller = Controller(limits, GiB, 0, stats(30 * MiB))
    for seconds in (0, 1):
        decision = controller.decide(observe(seconds, GiB, stats(30 * MiB)))
        assert decision.target == GiB
    assert decision.action == "spent"


def test_passing_through_the_headroom_is_not_resting_there() -> None:
    limits = GuestLimits(headroom=100 * MiB, floor=64 * MiB)
    controller = Controller(limits, GiB, 0, stats(600 * MiB))
    for tick in range(20):  # it allocates 10 MiB a tick, and gets them
        size = 500 * MiB + tick * 10 * MiB
        said = stats(100 * MiB if tick == 0 else 90 * MiB)
        decision = controller.decide(observe(tick * 0.02, size, said))
        assert decision.action == "take"
    # It reports the same again and again: it is at rest there.
    for tick in range(5):
        controller.decide(observe(2 + tick, size, stats(100 * MiB)))
    decision = controller.decide(observe(6.06, size, stats(100 * MiB), silence=0.06))
    assert decision.action == "spent"


def test_a_guest_that_allocates_gets_what_it_may_come_to_use() -> None:
    limits = GuestLimits(headroom=100 * MiB, floor=64 * MiB)
    controller = Controller(limits, GiB, 0, stats(600 * MiB))
    # 20 MiB more in every answer; 50 MiB above its headroom after the fourth.
    for tick in range(5):
        said = stats((230 - 20 * tick) * MiB)
        decision = controller.decide(observe(1 + tick / 25, 600 * MiB, said))
    assert decision.target == (600 - 50 + 80) * MiB
    # With plenty left it can have what it wants, and give the rest.
    controller = Controller(limits, 8 * GiB, 0, stats(6 * GiB))
    for tick in range(5):
        said = stats(6 * GiB - 20 * tick * MiB)
        decision = controller.decide(observe(1 + tick / 25, 8 * GiB, said))
    assert decision.target == (2048 + 100 + 80 + 80) * MiB


@pytest.mark.parametrize(("step", "more"), [(3, 0), (4, 16)])
def test_what_a_guest_allocates_counts_from_16_mib_on(step: int, more: int) -> None:
    """Less is within what its figures waver by."""
    limits = GuestLimits(headroom=64 * MiB, floor=64 * MiB)
    controller = Controller(limits, 8 * GiB, 0, stats(6 * GiB))
    for tick in range(5):
        said = stats(6 * GiB - step * tick * MiB)
        decision = controller.decide(observe(1 + tick / 25, 8 * GiB, said))
    assert decision.target == (2048 + 64 + 4 * step + more) * MiB


@pytest.mark.parametrize(
    ("available", "at_rest"), [(92, True), (108, True), (70, False)]
)
def test_a_guest_near_its_headroom_that_says_the_same_again_is_at_rest(
    available: int, *, at_rest: bool
) -> None:
    limits = GuestLimits(headroom=100 * MiB, floor=64 * MiB)
    controller = Controller(limits, GiB, 0, stats(600 * MiB))
    said = stats(available * MiB)
    size = controller.decide(observe(1, 500 * MiB, said)).target
    assert size == (600 - available) * MiB
    ends = [
        controller.decide(observe(1 + tick / 20, size, said, silence=tick / 20)).action
        != "take"
        for tick in range(1, 30)
    ]
    assert not any(ends[:9])
    assert ends[14] is at_rest


def test_a_guest_that_was_in_need_is_let_alone_for_a_while() -> None:
    limits = GuestLimits(headroom=100 * MiB, floor=64 * MiB)
    controller = Controller(limits, GiB, 0, stats(600 * MiB))
    controller.decide(observe(1, 500 * MiB, stats(70 * MiB)))
    size = 530 * MiB
    for seconds in (1.1, 1.9):
        decision = controller.decide(observe(seconds, size, stats(200 * MiB)))
        assert (decision.action, decision.target) == ("take", size)
    decision = controller.decide(observe(2.1, size, stats(200 * MiB)))
    assert (decision.action, decision.target) == ("take", 430 * MiB)


def test_a_guest_that_says_nothing_is_asked_until_it_does() -> None:
    limits = GuestLimits(headroom=100 * MiB, floor=200 * MiB)
    controller = Controller(limits, GiB, 0, None)
    assert controller.decide(observe(0, GiB, stats(None))).target == 200 * MiB
    late = observe(1, GiB, stats(9 * MiB), silence=5.0)
    assert controller.decide(late).target == 200 * MiB
    # Now it does, and the target follows that.
    assert controller.decide(observe(2, GiB, stats(500 * MiB))).target == 624 * MiB
    assert controller.decide(observe(3, GiB, stats(None))).action == "trouble"


# Memory pressure

TICK = 0.05
ANSWER = GuestStats(available=2 * GiB, free=GiB)


class PressedGuest:
    """A guest with plenty available, in the hands of a controller."""

    def __init__(self, **limits: Any) -> None:  # noqa: ANN401 - as GuestLimits takes them
        defaults: dict[str, Any] = {"headroom": 100 * MiB, "floor": 64 * MiB}
        pressure = PressureLimits.of(4 * GiB, None, None)
        self.controller = Controller(
            GuestLimits(**defaults, step=128 * MiB, pressure=pressure, **limits),
            4 * GiB,
            0,
            self.stats(),
        )
        self.seconds = 0.0
        self.actual = 4 * GiB

    counters: dict[str, Any] = {}  # noqa: RUF012 - replaced, not changed

    def stats(self) -> GuestStats:
        return evolve(ANSWER, **self.counters)

    def look(self, seconds: float = TICK, **counters: int) -> Decision:
        self.seconds += seconds
        self.counters = counters or self.counters
        decision = self.controller.decide(
            observe(self.seconds, self.actual, self.stats())
        )
        self.actual = decision.target
        return decision


def test_a_guest_under_pressure_is_let_alone_until_it_is_better() -> None:
    guest = PressedGuest()
    guest.look(1.0, swap_out=0)
    size = guest.actual
    held = guest.look(swap_out=50 * MiB)
    assert (held.action, held.target, held.mark) == ("take", size, "held back")
    assert "swaps" in held.reason
    for _ in range(30):  # a second until it is over, and another of recovery
        again = guest.look()
        assert (again.target, again.mark) == (size, None)
    for _ in range(15):
        guest.look()
    assert guest.actual < size


def test_one_that_goes_on_suffering_gets_everything() -> None:
    guest = PressedGuest()
    guest.look(1.0, major_faults=0)
    faults, decisions = 0, []
    while guest.seconds < 4.5:
        faults += 500
        decisions.append(guest.look(major_faults=faults))
    assert decisions[-1].action == "trouble"
    assert decisions[-1].target == 4 * GiB
    assert "although no more is taken" in decisions[-1].reason
    assert sum(decision.mark is not None for decision in decisions) == 1


def test_one_in_a_critical_state_gets_everything_at_once() -> None:
    guest = PressedGuest()
    guest.look(1.0, direct_scans=0, alloc_stalls=0)
    decision = guest.look(direct_scans=100 * MiB, alloc_stalls=5)
    assert (decision.action, decision.target) == ("trouble", 4 * GiB)


def test_one_that_suffers_time_and_again_has_no_more_to_spare() -> None:
    guest = PressedGuest()
    guest.look(1.0, swap_out=0)
    swapped = 0
    for _ in range(3):
        swapped += 50 * MiB
        assert guest.look(swap_out=swapped).mark == "held back"
        for _ in range(21):
            last = guest.look()
    assert (last.action, last.target) == ("spent", guest.actual)
    assert "suffers" in last.reason


def test_at_first_only_free_memory_is_taken() -> None:
    limits = GuestLimits(
        headroom=100 * MiB, floor=64 * MiB, pressure=PressureLimits.of(GiB, None, None)
    )
    controller = Controller(limits, 4 * GiB, 0, ANSWER)
    first = controller.decide(observe(0.1, 4 * GiB, ANSWER))
    assert first.target == 3 * GiB + 100 * MiB
    later = controller.decide(observe(0.6, 4 * GiB, ANSWER))
    assert later.target == 2 * GiB + 100 * MiB


@pytest.mark.parametrize(
    ("seconds", "has_given", "swapped", "is_over"),
    [
        (0.09, True, 0, False),
        (0.1, True, 0, True),
        (0.1, False, 0, False),
        (0.1, True, MiB, False),
        (0.25, False, MiB, True),
    ],
)
def test_a_guest_that_does_nothing_is_known_once_it_has_given_its_free_memory(
    seconds: float, swapped: int, *, has_given: bool, is_over: bool
) -> None:
    limits = GuestLimits(
        headroom=100 * MiB, floor=64 * MiB, pressure=PressureLimits.of(GiB, None, None)
    )
    answer = evolve(ANSWER, swap_out=0)
    controller = Controller(limits, 4 * GiB, 0, answer)
    target = controller.decide(observe(0.0, 4 * GiB, answer)).target
    assert not controller.has_baseline
    size = target if has_given else 4 * GiB
    controller.decide(observe(seconds, size, evolve(answer, swap_out=swapped)))
    assert controller.has_baseline == is_over


def follow(
    controller: Controller, said: GuestStats, size: int, began: float, *until: float
) -> list[int]:
    """Have a guest give what it is asked for, four times a second; return the sizes."""
    sizes, used = [], size - (said.available or 0)
    for tick in range(1, round(4 * (until[-1] - began)) + 1):
        seconds, said = began + tick / 4, evolve(said, available=size - used)
        size = controller.decide(observe(seconds, size, said, reads=0)).target
        sizes += [size] * (seconds in until)
    return sizes


def test_the_rate_is_taken_from_the_size_at_the_start() -> None:
    limits = GuestLimits(headroom=0, floor=0, max_rate=100 * MiB)
    controller = Controller(limits, 4 * GiB, 0, stats(4 * GiB))
    sizes = follow(controller, stats(4 * GiB), 4 * GiB, 0.0, 1.0, 2.0)
    assert sizes == [4 * GiB - 100 * MiB, 4 * GiB - 200 * MiB]


def test_the_rate_is_kept_to_after_a_pause() -> None:
    limits = GuestLimits(headroom=0, floor=0, max_rate=100 * MiB)
    controller = Controller(limits, 4 * GiB, 0, stats(4 * GiB))
    controller.begin_anew(3 * GiB, 300.0)
    sizes = follow(controller, stats(3 * GiB), 3 * GiB, 300.0, 301.0)
    assert sizes == [3 * GiB - 100 * MiB]


@pytest.mark.parametrize(
    ("limit", "share"), [({"max_rate": 100 * MiB}, 50 * MiB), ({"gentle": 40}, 0)]
)
def test_what_was_not_taken_while_nobody_looked_is_not_made_up_for(
    limit: dict[str, float], share: int
) -> None:
    limits = GuestLimits(headroom=0, floor=0, **limit)  # type: ignore[arg-type]
    said = GuestStats(available=2 * GiB, free=0)
    controller = Controller(limits, 4 * GiB, 0, said)
    (size,) = follow(controller, said, 4 * GiB, 0.0, 10.0)
    # As long as gentle: this process was stopped, or its host was busy.
    late = controller.decide(observe(50.0, size, said)).target
    share = share or (4 * GiB - size) // 20  # half a second of ten
    assert share // 2 < size - late <= share
    # Nor is what a guest did not give, that fell behind and then answers.
    for tick in range(8):
        seconds = 50.0 + tick / 4
        assert controller.decide(observe(seconds, late, said)).target >= late - share


def test_a_gentle_reclaim_takes_free_memory_at_once_and_cache_evenly() -> None:
    """Of 3 GiB that can be spared one is free: the other two take 100 seconds."""
    limits = GuestLimits(headroom=0, floor=0, gentle=100)
    answer = GuestStats(available=3 * GiB, free=GiB)
    controller = Controller(limits, 4 * GiB, 0, answer)
    first = controller.decide(observe(0.5, 4 * GiB, answer)).target
    assert 3 * GiB - 11 * MiB < first <= 3 * GiB
    answer = GuestStats(available=2 * GiB, free=0)
    tenth, half, end = follow(controller, answer, 3 * GiB, 0.5, 10.0, 50.0, 100.0)
    assert tenth == pytest.approx(3 * GiB - 0.1 * 2 * GiB, abs=MiB)
    assert half == pytest.approx(2 * GiB, abs=MiB)
    assert end == GiB
    assert not controller.is_paced


def test_a_gentle_reclaim_is_as_gentle_the_next_time() -> None:
    limits = GuestLimits(headroom=0, floor=0, gentle=100)
    answer = GuestStats(available=2 * GiB, free=0)
    controller = Controller(limits, 4 * GiB, 0, answer)
    controller.begin_anew(3 * GiB, 1000.0)
    sizes = follow(controller, answer, 3 * GiB, 1000.0, 1050.0, 1100.0)
    assert sizes == [2 * GiB, GiB]


def test_the_first_answer_counts_once_it_has_come() -> None:
    limits = GuestLimits(headroom=GiB, floor=0)
    for silence, target in [(0.0, 4 * GiB), (0.5, PAGE)]:
        controller = Controller(limits, 4 * GiB, 0, None)
        decision = controller.decide(observe(1.0, 4 * GiB, stats(GiB), silence=silence))
        # It has its headroom, and nothing to spare.
        assert decision.target == target


REREADS = GuestLimits(
    headroom=100 * MiB,
    floor=64 * MiB,
    gentle=100,
    rereads=RereadLimits.of(4 * GiB, 60),
)


@pytest.mark.parametrize(("available", "more"), [(GiB, 16 * MiB), (60 * MiB, 40 * MiB)])
def test_what_reads_again_is_given_a_step_or_what_it_lacks(
    available: int, more: int
) -> None:
    said = stats(2 * GiB)
    controller = Controller(evolve(REREADS, gentle=0), 4 * GiB, 0, said)
    for seconds in (0.0, 10.0):
        controller.decide(observe(seconds, 3 * GiB, said, reads=0))
    decision = controller.decide(observe(11.0, 3 * GiB, stats(available), reads=GiB))
    assert (decision.action, decision.mark) == ("take", "reads again")
    assert decision.target == 3 * GiB + more
    assert "of what was taken again" in decision.reason


def test_a_gentle_reclaim_is_watched_for_a_tenth_of_its_time_at_the_end() -> None:
    said = stats(2 * GiB)
    controller = Controller(REREADS, 2 * GiB, GiB, said)
    assert follow(controller, said, 2 * GiB, 0.0, 100.0) == [GiB]
    for seconds in (101.0, 110.9):
        decision = controller.decide(observe(seconds, GiB, stats(GiB), reads=0))
        assert (decision.action, decision.target) == ("take", GiB)
        assert controller.is_paced
    decision = controller.decide(observe(111.1, GiB, stats(GiB), reads=0))
    assert decision.action == "reached"
    assert not controller.is_paced


def test_a_reclaim_that_is_not_gentle_ends_at_the_bottom_at_once() -> None:
    controller = Controller(evolve(REREADS, gentle=0), 2 * GiB, GiB, stats(2 * GiB))
    for seconds in (0.0, 10.0):
        controller.decide(observe(seconds, 2 * GiB, stats(2 * GiB), reads=0))
    assert controller.decide(observe(11.0, GiB, stats(GiB))).action == "reached"


def test_a_guest_at_its_edge_that_says_the_same_again_is_at_rest() -> None:
    said = stats(3 * GiB)
    controller = Controller(evolve(REREADS, gentle=0), 4 * GiB, 0, said)
    for seconds in (0.0, 10.0):
        controller.decide(observe(seconds, 4 * GiB, said, reads=0))
    controller.alarms.working_set.edge = 3 * GiB
    decision = controller.decide(observe(11.0, 4 * GiB, said, reads=0))
    assert decision.target == 3 * GiB
    for silence, action in ((0.4, "take"), (0.6, "take"), (0.8, "spent")):
        at = 11.0 + silence
        decision = controller.decide(
            observe(at, 3 * GiB, said, silence=silence, reads=0)
        )
        assert decision.action == action
    assert "stopped at what the guest reads again" in decision.reason
