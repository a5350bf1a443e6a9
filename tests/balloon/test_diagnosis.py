"""Each kind of stall is recognised by its own evidence, the surest sign first."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from attrs import evolve
from simulation import make_balloon, make_machine, run

from qmpballoon.balloon._diagnosis import Evidence, explain, gather
from qmpballoon.balloon._tracker import Tracker
from qmpballoon.balloon.results import Ending, StallKind
from qmpballoon.balloon.stats import GuestStats
from qmpballoon.sizes import GiB, MiB
from qmpballoon.testing import GuestConfig

NOW = datetime(2026, 1, 1, tzinfo=UTC)
HEALTHY = Evidence(
    total=4 * GiB,
    resident=4 * GiB,
    stats=GuestStats(
        last_update=NOW, available=GiB, minor_faults=1000, oom_kills=0, alloc_stalls=5
    ),
    answers=True,
)
STALLED = Ending("stalled")


def moved(target: int = GiB, *sizes: int) -> Tracker:
    tracker = Tracker(target, 4 * GiB, 0.0)
    for second, size in enumerate(sizes, 1):
        tracker.observe(second, size)
    return tracker


def stats(**changed: Any) -> GuestStats:  # noqa: ANN401 - any of its fields
    return evolve(HEALTHY.stats, **changed)


CASES: list[tuple[StallKind, Tracker, Evidence, Evidence, Ending]] = [
    ("paused", moved(), HEALTHY, evolve(HEALTHY, stopped="the VM is paused"), STALLED),
    (
        "no-driver",
        moved(),
        evolve(HEALTHY, answers=False),
        evolve(HEALTHY, answers=False),
        STALLED,
    ),
    (
        "reset",
        moved(GiB, 2 * GiB),
        HEALTHY,
        evolve(HEALTHY, stats=stats(minor_faults=10)),
        STALLED,
    ),
    (
        "reset",
        moved(GiB, 2 * GiB, 4 * GiB),
        HEALTHY,
        evolve(HEALTHY, answers=False),
        STALLED,
    ),
    (
        "reset",
        moved(GiB, 2 * GiB),
        HEALTHY,
        evolve(HEALTHY, stats=GuestStats()),
        STALLED,
    ),
    # Before QEMU 10.0 a reset shows in nothing but the guest's silence.
    (
        "reset",
        moved(GiB, 2 * GiB),
        HEALTHY,
        evolve(HEALTHY, resident=2 * GiB, answers=False),
        STALLED,
    ),
    # Nor does a panic, whatever the host has of the memory by then.
    ("reset", moved(GiB, 2 * GiB), HEALTHY, evolve(HEALTHY, answers=False), STALLED),
    # One that answered a moment ago has a driver, though it never moved.
    ("reset", moved(), HEALTHY, evolve(HEALTHY, answers=False), STALLED),
    ("hot-plug", moved(GiB, 3 * GiB), HEALTHY, evolve(HEALTHY, total=5 * GiB), STALLED),
    ("inhibited", moved(GiB, 2 * GiB), HEALTHY, HEALTHY, STALLED),
    (
        "guest-at-floor",
        moved(GiB, 2 * GiB),
        HEALTHY,
        evolve(HEALTHY, resident=2 * GiB, stats=stats(available=20 * MiB)),
        STALLED,
    ),
    (
        "guest-at-floor",
        moved(GiB, 2 * GiB),
        HEALTHY,
        evolve(HEALTHY, resident=2 * GiB, stats=stats(oom_kills=1)),
        STALLED,
    ),
    (
        "guest-at-floor",
        moved(GiB, 2 * GiB),
        HEALTHY,
        evolve(HEALTHY, resident=2 * GiB, answers=False, stats=stats(alloc_stalls=50)),
        STALLED,
    ),
    (
        "guest-at-floor",
        moved(GiB, 2 * GiB),
        HEALTHY,
        HEALTHY,
        Ending("spent", "it keeps 32 MiB"),
    ),
    (
        "slow",
        moved(GiB, 2 * GiB),
        HEALTHY,
        evolve(HEALTHY, resident=2 * GiB),
        Ending("timed-out"),
    ),
    # What was never touched frees nothing: that is no sign of anything.
    (
        "slow",
        moved(GiB, 2 * GiB),
        evolve(HEALTHY, resident=GiB),
        evolve(HEALTHY, resident=GiB),
        STALLED,
    ),
    # What a virtio-mem device plugged in is the guest's, too, and may be untouched.
    (
        "slow",
        moved(GiB, 2 * GiB),
        evolve(HEALTHY, stats=stats(total=8 * GiB)),
        evolve(HEALTHY, stats=stats(total=6 * GiB)),
        STALLED,
    ),
    ("slow", moved(8 * GiB), HEALTHY, HEALTHY, STALLED),
    ("slow", moved(8 * GiB, 5 * GiB, 6 * GiB), HEALTHY, HEALTHY, STALLED),
    # It stands still where it could have more, or goes the other way.
    ("overridden", moved(8 * GiB, *[5 * GiB] * 8), HEALTHY, HEALTHY, STALLED),
    ("overridden", moved(8 * GiB, 5 * GiB, 5087 * MiB), HEALTHY, HEALTHY, STALLED),
]


@pytest.mark.parametrize(("kind", "tracker", "before", "after", "end"), CASES)
def test_each_kind_is_told_by_its_evidence(
    kind: StallKind,
    tracker: Tracker,
    before: Evidence,
    after: Evidence,
    end: Ending,
) -> None:
    diagnosis = explain(tracker, before, after, end)
    assert diagnosis.kind == kind
    assert "\n" not in diagnosis.detail
    assert diagnosis.to_json() == {"kind": kind, "detail": diagnosis.detail}


def test_every_kind_is_tried() -> None:
    assert {case[0] for case in CASES} == {*StallKind.__args__}  # type: ignore[attr-defined]


def test_what_held_the_guest_up_is_told_unless_something_else_is_plain() -> None:
    end = Ending("spent", "it keeps 32 MiB")
    tracker = moved(GiB, 2 * GiB)
    assert "it keeps 32 MiB" in explain(tracker, HEALTHY, HEALTHY, end).detail
    after = evolve(HEALTHY, stopped="the VM is paused")
    assert explain(tracker, HEALTHY, after, end).kind == "paused"


@pytest.mark.parametrize("driver", [True, False])
@pytest.mark.parametrize("paused", [True, False])
def test_evidence_is_gathered(*, driver: bool, paused: bool) -> None:
    machine = make_machine(GuestConfig(driver=driver), memory=GiB)
    if paused:
        machine.stop()
    evidence = run(gather(make_balloon(machine)))
    assert evidence.total == GiB
    assert evidence.resident == machine.resident
    assert (evidence.stopped is not None) is paused
    assert evidence.answers is (driver and not paused)


def test_nothing_is_asked_that_kills_a_qemu() -> None:
    # QEMU 11.1.3 fails an assertion in x-query-virtio-status.
    machine = make_machine(GuestConfig(driver=False), memory=GiB, version="11.1")
    run(gather(make_balloon(machine)))
    assert not machine.ended
