"""Keeping what a guest gave, until it comes to need it.

:class:`Keeper` (pure) judges sample by sample; :func:`keep` looks. A guest that lives
on in a small size may drift, or burst. One that drifts under three quarters of its
headroom gets what it lacks of it, and the rest is kept. One that falls under half of
it, has a process killed, or falls silent gets everything, and that is the end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from qmpballoon.balloon._tracker import PAGE
from qmpballoon.sizes import GiB, MiB, format_size

if TYPE_CHECKING:
    from collections.abc import Callable

    from qmpballoon.balloon.balloon import Balloon
    from qmpballoon.balloon.guard import Limits
    from qmpballoon.balloon.sampler import Sampler
    from qmpballoon.balloon.sampling import Sample
    from qmpballoon.balloon.stats import GuestStats

__all__ = ["KEPT", "Keeper", "keep"]

KEPT: Final = "kept"
"""The mark of the sample from which on memory is kept."""

# Bytes a second; few processes write more. What a guest has above half its headroom
# lasts for so long, and it is looked at twice before that is over: what is seen is the
# answer to the look before.
_FASTEST_HOG: Final = GiB
_SHORTEST: Final = 0.02  # seconds between two looks
_LONGEST: Final = 1.0
_STRAY: Final = 16 * MiB  # bytes above its target that a balloon does not go by itself


class Keeper:
    """Decides what a guest is given of what is kept from it.

    Args:
        limits: What the guest must keep.
        full: Bytes it is to have when it gets everything.
        actual: Bytes it has.
        stats: What it says at the beginning.

    Attributes:
        target: Bytes it is to have; only ever more.
    """

    def __init__(
        self, limits: Limits, full: int, actual: int, stats: GuestStats
    ) -> None:
        self.target: int = actual
        self._limits = limits
        self._full = full
        self._kills = stats.oom_kills
        # It may have come to rest a little below.
        self._usual = min(limits.headroom, stats.reclaimable or 0)

    def judge(
        self, actual: int, basis: int, stats: GuestStats, silence: float
    ) -> str | None:
        """Judge a sample; return why the guest is to have everything, if it is.

        Args:
            actual: Bytes the guest has.
            basis: Bytes it had when it was asked for ``stats``.
            stats: What it last said.
            silence: Seconds since it last answered anew.
        """
        available = stats.reclaimable
        if silence > self._limits.stale_after:
            return f"the guest has not answered for {silence:.1f} s"
        if available is None:
            return "the guest no longer says what it has available"
        if self._kills is not None and (stats.oom_kills or 0) > self._kills:
            return "the guest killed a process for want of memory"
        if available < self._usual // 2:
            return f"the guest has {format_size(available)} available"
        return self._drift(actual, basis, available)

    def _drift(self, actual: int, basis: int, available: int) -> str | None:
        """Give the guest what it lacks; tell if that is everything."""
        if actual > self.target + _STRAY:
            return "somebody else gave the guest its memory back"
        if available < self._usual * 3 // 4:
            wanted = basis + self._limits.headroom - available
            self.target = max(self.target, -(-wanted // PAGE) * PAGE)
        if self.target >= self._full:
            return "the guest came to need all of it"
        return None

    def pause(self, available: int | None) -> float:
        """Return for how many seconds the guest need not be looked at."""
        spare = (available or 0) - self._usual // 2
        return min(max(spare / 2 / _FASTEST_HOG, _SHORTEST), _LONGEST)


async def keep(
    balloon: Balloon,
    sampler: Sampler,
    keeper: Keeper,
    seconds: float,
    on_sample: Callable[[Sample], None],
) -> str:
    """Look at the guest until it is to have everything; return why."""
    monitor = balloon.monitor
    mark: str | None = KEPT
    began = monitor.now()
    while (left := began + seconds - monitor.now()) > 0:
        sample = await sampler.take(mark)
        mark = None
        on_sample(sample)
        why = keeper.judge(sample.actual, sampler.basis, sampler.stats, sampler.silence)
        if why is not None:
            return f"kept for {monitor.now() - began:.0f} s: {why}"
        if keeper.target != balloon.target:
            await balloon.set_target(keeper.target)
            mark = "gives back"
        await monitor.sleep(min(keeper.pause(sample.available), left))
    return f"kept for {seconds:.0f} s, as long as it was to be"
