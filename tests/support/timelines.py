"""Timelines to save, draw and record."""

from __future__ import annotations

from attrs import evolve

from qmpballoon.balloon.sampling import Sample, Timeline
from qmpballoon.sizes import GiB, MiB

__all__ = ["NONE", "ONE", "make_reclaim", "make_timeline"]


def make_timeline(*samples: Sample) -> Timeline:
    timeline = Timeline()
    for sample in samples:
        timeline.add(sample)
    return timeline


def make_reclaim() -> Timeline:
    """Return a reclaim of 1 GiB, one of whose samples is marked."""
    start = Sample(0.0, None, 2 * GiB, 2 * GiB, GiB, GiB, GiB // 2, GiB + MiB)
    taken = evolve(start, t=1.0, target=GiB, actual=GiB, free=MiB, mark="stalled")
    return make_timeline(start, taken, evolve(start, t=2.0, target=2 * GiB))


ONE = make_timeline(Sample(0.0, None, MiB))
NONE = make_timeline()
