"""Memory pressure is told from what a healthy guest shows, and from its own rates."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmpballoon.balloon._pressure import (
    NO_PRESSURE_LIMITS,
    Pressure,
    PressureLimits,
    PressureMeter,
)
from qmpballoon.balloon.stats import GuestStats
from qmpballoon.sizes import GiB, MiB

TICK = 0.05
LIMITS = PressureLimits.of(GiB, None, None)
COUNTERS = (
    *("swap_out", "major_faults", "alloc_stalls", "async_scans", "async_reclaims"),
    *("direct_scans", "direct_reclaims"),
)


def said(figures: dict[str, Any]) -> GuestStats:
    return GuestStats(**figures)


def live(
    before: dict[str, float],
    then: dict[str, float],
    *,
    seconds: float = 3.0,
    limits: PressureLimits = LIMITS,
) -> list[Pressure]:
    """Judge a guest that counts at some rates for a second, and then at others."""
    meter = PressureMeter(limits)
    counts = dict.fromkeys({*before, *then}, 1e6)
    seen = []
    for tick in range(round(seconds / TICK)):
        rates = before if tick * TICK <= 1 else then
        for name, rate in rates.items():
            counts[name] += rate * TICK
        stats = said({name: int(value) for name, value in counts.items()})
        seen.append(meter.observe(tick * TICK, stats))
    return seen


def worst(*lives: Any, **options: Any) -> Pressure:  # noqa: ANN401 - as live takes them
    order = ("none", "some", "critical")
    seen = live(*lives, **options)[::-1]  # of equals, the last
    return max(seen, key=lambda pressure: order.index(pressure.level))


HEALTHY: list[dict[str, float]] = [
    # As measured: a balloon that grows at the cost of clean cache.
    {
        "alloc_stalls": 100,
        "async_scans": 200 * MiB,
        "async_reclaims": 200 * MiB,
        "direct_scans": 24 * MiB,
        "direct_reclaims": 24 * MiB,
    },
    {"swap_out": MiB / 2, "major_faults": 50},
    # A reader goes through pages that are in use.
    {"async_scans": 300 * MiB, "async_reclaims": 140 * MiB},
    # Next to nothing was looked at, and little of it was free.
    {"direct_scans": MiB, "alloc_stalls": 3},
]


@pytest.mark.parametrize("rates", HEALTHY)
def test_what_healthy_guests_show_is_no_pressure(rates: dict[str, float]) -> None:
    assert worst({}, rates).level == "none"


@pytest.mark.parametrize(
    ("rates", "level", "words"),
    [
        ({"swap_out": 4 * MiB}, "some", "swaps 4 MiB/s"),
        ({"major_faults": 300}, "some", "300 major faults/s"),
        (
            {"async_scans": 100 * MiB, "async_reclaims": 30 * MiB},
            "some",
            "free 30% of the pages it looks at",
        ),
        (
            {"direct_scans": 100 * MiB, "direct_reclaims": MiB, "alloc_stalls": 10},
            "critical",
            "tasks wait",
        ),
        # Nobody waits for them.
        ({"direct_scans": 100 * MiB, "direct_reclaims": MiB}, "some", "1%"),
    ],
)
def test_pressure_is_told_in_words(
    rates: dict[str, float], level: str, words: str
) -> None:
    seen = worst({}, rates)
    assert seen.level == level
    assert words in seen.reason
    assert "\n" not in seen.reason


@pytest.mark.parametrize("rates", [{"swap_out": 4 * MiB}, {"major_faults": 300}])
def test_a_guest_that_always_did_is_no_emergency(rates: dict[str, float]) -> None:
    assert worst(rates, rates).level == "none"
    more = {name: rate * 3 for name, rate in rates.items()}
    assert worst(rates, more).level == "some"


@pytest.mark.parametrize("rates", [{"swap_out": 4 * MiB}, {"major_faults": 300}])
def test_pressure_passes(rates: dict[str, float]) -> None:
    meter = PressureMeter(LIMITS)
    (name, rate), *_ = rates.items()
    levels = []
    for tick in range(100):
        seconds = tick * TICK
        count = int(rate * min(max(seconds - 1, 0), 1))  # for one second
        levels.append(meter.observe(seconds, said({name: count})).level)
    changes = [
        one for one, other in zip(levels, [None, *levels], strict=False) if one != other
    ]
    assert changes == ["none", "some", "none"]


def test_a_restarted_guest_counts_anew() -> None:
    meter = PressureMeter(LIMITS)
    meter.observe(0.0, GuestStats(swap_out=GiB))
    meter.observe(1.0, GuestStats(swap_out=GiB))
    assert meter.observe(1.1, GuestStats(swap_out=0)).level == "none"
    assert meter.observe(1.2, GuestStats(swap_out=5 * MiB)).level == "some"


def test_a_larger_guest_may_do_more() -> None:
    small, large = (
        PressureLimits.of(size, None, None) for size in (GiB // 2, GiB * 512)
    )
    assert (small.swap_rate, small.fault_rate, small.scanned) == (MiB, 100, 2 * MiB)
    assert large.swap_rate == 128 * MiB
    assert large.fault_rate == 3200
    assert large.scanned == 32 * MiB
    rates: dict[str, float] = {"swap_out": 50 * MiB, "major_faults": 2000}
    assert worst({}, rates, limits=small).level == "some"
    assert worst({}, rates, limits=large).level == "none"


counts = st.fixed_dictionaries(
    {name: st.none() | st.integers(0, 2**63) for name in COUNTERS}
)


@given(st.lists(st.tuples(st.floats(0, 0.5), counts), max_size=20))
def test_whatever_a_guest_says_is_judged(
    looks: list[tuple[float, dict[str, int | None]]],
) -> None:
    meters = PressureMeter(LIMITS), PressureMeter(NO_PRESSURE_LIMITS)
    now = 0.0
    for pause, figures in looks:
        now += pause
        pressure, none = (meter.observe(now, said(figures)) for meter in meters)
        assert (pressure.level == "none") == (pressure.reason == "")
        assert none.level == "none"


def judge(*samples: tuple[float, dict[str, int]], limits: PressureLimits) -> Pressure:
    """Return what comes of samples that a guest of 1 GiB reports."""
    meter, seen = PressureMeter(limits), Pressure()
    counts = dict.fromkeys(COUNTERS, 0)
    for seconds, more in samples:
        for name, count in more.items():
            counts[name] += count
        seen = meter.observe(seconds, said(counts))
    return seen


@pytest.mark.parametrize(
    ("scans", "level"),
    [
        # Two MiB are enough to judge by, and nothing less.
        ({"async_scans": 2 * MiB}, "some"),
        ({"async_scans": 2 * MiB - 1}, "none"),
        # From 60 % on that cannot be freed.
        ({"async_scans": 10 * MiB, "async_reclaims": 4 * MiB}, "some"),
        ({"async_scans": 10 * MiB, "async_reclaims": 4 * MiB + 1}, "none"),
        # Of what tasks scan while they wait, 95 %, and of two MiB or more.
        ({"direct_scans": 2 * MiB, "alloc_stalls": 1}, "critical"),
        (
            {"direct_scans": 20 * MiB, "direct_reclaims": MiB, "alloc_stalls": 1},
            "critical",
        ),
        (
            {"direct_scans": 20 * MiB, "direct_reclaims": MiB + 1, "alloc_stalls": 1},
            "some",
        ),
        # The kernel's own scans are futile, and those of the tasks are not.
        (
            {
                "async_scans": 100 * MiB,
                "direct_scans": 10 * MiB,
                "direct_reclaims": 5 * MiB,
                "alloc_stalls": 1,
            },
            "some",
        ),
        (
            {
                "async_scans": 100 * MiB,
                "direct_scans": 2 * MiB - 1,
                "alloc_stalls": 1,
            },
            "some",
        ),
    ],
)
def test_the_share_of_futile_scans(scans: dict[str, int], level: str) -> None:
    assert judge((0.0, {}), (1.0, scans), limits=LIMITS).level == level


@pytest.mark.parametrize(
    ("count", "level"), [({"swap_out": MiB}, "none"), ({"swap_out": MiB + 1}, "some")]
)
def test_a_rate_may_be_as_high_as_its_limit(count: dict[str, int], level: str) -> None:
    assert judge((0.0, {}), (1.0, count), limits=LIMITS).level == level


@pytest.mark.parametrize(("faults", "level"), [(100, "none"), (101, "some")])
def test_faults_may_be_as_many_as_their_limit(faults: int, level: str) -> None:
    count = {"major_faults": faults}
    assert judge((0.0, {}), (1.0, count), limits=LIMITS).level == level


def test_rates_are_taken_over_the_time_between_the_samples() -> None:
    seldom = {"swap_out": 3 * MiB // 2, "major_faults": 150}
    assert judge((0.0, {}), (2.0, seldom), limits=LIMITS).level == "none"


def test_rates_are_of_the_last_second() -> None:
    count = {"swap_out": 3 * MiB // 2}
    seen = judge((0.0, {}), (1.0, {}), (2.0, count), limits=LIMITS)
    assert seen.level == "some"


def test_a_guests_own_rate_is_measured_until_the_end_of_the_baseline() -> None:
    # 1 MiB in the shortest time that is taken for a rate: 4 MiB a second are its own.
    samples: list[tuple[float, dict[str, int]]] = [(0.2, {}), (0.25, {"swap_out": MiB})]
    for rate, level in [(9 * MiB, "none"), (9 * MiB + 1, "some")]:
        then = (1.25, {"swap_out": rate})
        assert judge(*samples, then, limits=LIMITS).level == level


def test_only_scans_since_the_last_second_count() -> None:
    futile = {"direct_scans": 100 * MiB}
    then = {"async_scans": 100 * MiB, "direct_scans": MiB, "alloc_stalls": 1}
    assert judge((0.0, futile), (1.0, then), limits=LIMITS).level == "some"
    fruitful = {"direct_scans": 100 * MiB, "direct_reclaims": 100 * MiB}
    then = {"direct_scans": 20 * MiB, "alloc_stalls": 1}
    assert judge((0.0, fruitful), (1.0, then), limits=LIMITS).level == "critical"


@pytest.mark.parametrize("counter", [None, "swap_out", "major_faults"])
def test_who_has_neither_swapped_nor_waited_by_itself_is_quiet(
    counter: str | None,
) -> None:
    meter = PressureMeter(LIMITS)
    for seconds, count in ((0.0, 0), (0.2, 100)):
        meter.observe(seconds, said({counter: count} if counter else {}))
    assert meter.is_quiet == (counter is None)


def test_a_baseline_that_was_ended_is_over_at_once() -> None:
    meter = PressureMeter(LIMITS)
    meter.observe(0.0, said({"swap_out": 0}))
    meter.end_baseline()
    assert meter.observe(0.1, said({"swap_out": GiB})).level == "some"
