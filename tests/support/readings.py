"""What a process holds over a long time, and whether it grows."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs
import trio

if TYPE_CHECKING:
    from collections.abc import Sequence

SLACK: Final = 500  # objects; caches fill


@attrs.frozen
class Reading:
    """What the process holds when nothing is under way."""

    tasks: int
    descriptors: int
    objects: int

    @classmethod
    def take(cls) -> Reading:
        gc.collect()
        return cls(
            tasks=trio.lowlevel.current_statistics().tasks_living,
            descriptors=len(list(Path("/proc/self/fd").iterdir())),
            objects=len(gc.get_objects()),
        )


def check(readings: Sequence[Reading]) -> None:
    """Compare the second half of a time with what was held in the first.

    Raises:
        AssertionError: More is held.
    """
    half = len(readings) // 2
    early, late = readings[4:half], readings[half:]
    assert max(r.tasks for r in late) <= max(r.tasks for r in early)
    assert max(r.descriptors for r in late) <= max(r.descriptors for r in early)
    assert late[-1].objects <= max(r.objects for r in early) + SLACK
