"""Each kind of stall is recognised by its own evidence, the surest sign first."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from attrs import evolve
from simulation import make_balloon, make_machine, run

from qmpballoon.balloon._diagnosis import (
    Evidence,
    explain,
    gather,
    suspect_inhibition,
    suspect_old_size,
)
from qmpballoon.balloon._tracker import Tracker
from qmpballoon.balloon.guard import RESIZE_HEADROOM
from qmpballoon.balloon.results import Ending, StallKind
from qmpballoon.balloon.stats import GuestStats
from qmpballoon.sizes import GiB, MiB, format_size
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
    # One that answers was not restarted, however its size has jumped.
    (
        "slow",
        moved(GiB, 2 * GiB, 4 * GiB),
        HEALTHY,
        evolve(HEALTHY, resident=2 * GiB),
        STALLED,
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
    # One that has fallen silent may have been restarted, whatever it had left before.
    (
        "reset",
        moved(GiB, 2 * GiB),
        HEALTHY,
        evolve(HEALTHY, answers=False),
        Ending("trouble", "it does not answer", alarm="silence"),
    ),
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


@pytest.mark.parametrize(
    ("size", "available", "kind"),
    [
        # A twentieth of what the guest has, and never less than resize's headroom.
        (2 * GiB, 2 * GiB // 20 - 1, "guest-at-floor"),
        (2 * GiB, 2 * GiB // 20, "slow"),
        (GiB + MiB, RESIZE_HEADROOM - 1, "guest-at-floor"),
    ],
)
def test_a_guest_at_its_floor_has_little_available(
    size: int, available: int, kind: StallKind
) -> None:
    after = evolve(HEALTHY, resident=size, stats=stats(available=available))
    diagnosis = explain(moved(GiB, size), HEALTHY, after, STALLED)
    assert diagnosis.kind == kind


def test_what_a_guest_at_its_floor_has_left_is_said_if_it_is_known() -> None:
    for said, left in [
        (stats(available=MiB), "available 1 MiB"),
        (stats(available=None, oom_kills=1), "available unknown"),
    ]:
        after = evolve(HEALTHY, resident=2 * GiB, stats=said)
        detail = explain(moved(GiB, 2 * GiB), HEALTHY, after, STALLED).detail
        assert left in detail


def test_whether_time_was_up_is_said() -> None:
    after = evolve(HEALTHY, resident=2 * GiB)
    for tracker, end, words in [
        (moved(GiB, 2 * GiB), STALLED, "the guest swaps, or the host"),
        (moved(GiB, 2 * GiB), Ending("timed-out"), "s more"),
        (moved(GiB), Ending("timed-out"), "did not move yet"),
    ]:
        detail = explain(tracker, HEALTHY, after, end).detail
        assert words in detail
        assert ("time was up" in detail) == (end != STALLED)
    tracker = moved(GiB, 2 * GiB)
    detail = explain(tracker, HEALTHY, after, Ending("timed-out")).detail
    assert f"needs {tracker.time_left:.1f} s more" in detail


def test_a_guest_that_has_more_than_qemu_knows_of_was_restarted() -> None:
    def suspected(size: int, *, target: int = 8 * GiB, answers: bool = True) -> bool:
        after = evolve(HEALTHY, stats=stats(total=size), answers=answers)
        return suspect_old_size(moved(target), HEALTHY, after) is not None

    assert suspected(4 * GiB + MiB)
    assert not suspected(4 * GiB)  # it has what QEMU says
    assert not suspected(5 * GiB, answers=False)
    assert not suspected(5 * GiB, target=GiB)
    assert not suspected(5 * GiB, target=4 * GiB)  # that is what it has


@pytest.mark.parametrize(
    ("before", "after", "suspected"),
    [
        (4 * GiB, 4 * GiB, True),
        (4 * GiB - MiB, 4 * GiB, True),
        # The host got a tenth of the 2 GiB, and more.
        (4 * GiB, 4 * GiB - 2 * GiB // 10, True),
        (4 * GiB, 4 * GiB - 2 * GiB // 10 - 1, False),
        # Half of what was taken may have been untouched, and more.
        (3 * GiB, 3 * GiB, True),
        (3 * GiB - 1, 3 * GiB - 1, False),
    ],
)
def test_the_host_must_get_a_tenth_of_what_the_guest_gave(
    before: int, after: int, *, suspected: bool
) -> None:
    diagnosis = suspect_inhibition(
        moved(GiB, 2 * GiB),
        evolve(HEALTHY, resident=before),
        evolve(HEALTHY, resident=after),
    )
    assert (diagnosis is not None) is suspected
    if diagnosis is not None:
        assert f"got {format_size(max(before - after, 0))} of it" in diagnosis.detail
