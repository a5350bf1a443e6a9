"""What is known of a guest at one moment, for tests of what judges it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qmpballoon.balloon._alarms import Observation

if TYPE_CHECKING:
    from qmpballoon.balloon.stats import GuestStats


def observe(
    seconds: float,
    actual: int,
    stats: GuestStats,
    *,
    basis: int | None = None,
    silence: float = 0.0,
    reads: int | None = None,
) -> Observation:
    """Return what is known of a guest that had its size when it was asked, too."""
    basis = actual if basis is None else basis
    return Observation(seconds, stats, actual, basis, silence, reads)
