"""Signs that a guest suffers although it says that it has memory available.

Pure: statistics in, a :class:`Strain` out. *Available* is the kernel's estimate, and
can be wrong: cache that is in use, dirty or locked counts as available. That taking
it hurts shows elsewhere:

- Anonymous memory is swapped out.
- Tasks wait for a disk to bring back what was dropped: major faults.
- The kernel looks at many pages and can free few. How few tells Linux itself how
  pressed it is (``mm/vmpressure.c``): if it gets less than 40 % of what it looks at,
  pressure is "medium", and "critical" under 5 %, "the system is about to out of
  memory"; the shares here are those.

A growing balloon makes any guest scan, reclaim and stall allocations now and then: a
healthy one frees all that it looks at. So none of these is a sign by itself. And a
guest that always swaps, or always faults, is no emergency of ours: it is held against
what it did in the first moment, while only free memory was taken from it.

Sources: "Memory Statistics Tags" in the virtio specification; "Memory Pressure" in
the kernel's cgroup-v1/memory.rst.
"""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING, Final, Literal

from attrs import frozen

from qmpballoon.sizes import GiB, MiB, format_size

if TYPE_CHECKING:
    from qmpballoon.balloon.stats import GuestStats

__all__ = ["FIRST_LOOK", "NO_STRAIN", "Strain", "StrainLimits", "StrainMeter"]

FIRST_LOOK: Final = 0.25
"""Seconds for which a guest is only watched, to know what it does by itself."""

_WINDOW: Final = 1.0  # seconds over which rates are taken
_OWN: Final = 2.0  # times what the guest did by itself is still no sign
_MEDIUM: Final = 0.6  # of what was looked at and could not be freed
_CRITICAL: Final = 0.95


@frozen
class StrainLimits:
    """What counts as strain; by default nothing does.

    Attributes:
        swap_rate: Bytes a second that a guest may swap out more than before.
        fault_rate: Major faults a second that it may have more than before.
        scanned: Bytes that its kernel must have looked at in a second for the share
            it could free to mean anything; ``None``: it never does.
    """

    swap_rate: float = math.inf
    fault_rate: float = math.inf
    scanned: int | None = None

    @classmethod
    def of(
        cls, total: int, swap_rate: float | None, fault_rate: float | None
    ) -> StrainLimits:
        """Return them for a guest with so many bytes of RAM.

        Args:
            total: Bytes of RAM.
            swap_rate: Bytes a second; ``None``: a 4096th of RAM, at least 1 MiB.
            fault_rate: A second; ``None``: 100 for each 16 GiB of RAM, at least 100.
                On a disk that answers within a millisecond that is a tenth of one
                processor's time.
        """
        if swap_rate is None:
            swap_rate = max(MiB, total / 4096)
        if fault_rate is None:
            fault_rate = 100 * max(1, total / (16 * GiB))
        # Linux judges by 512 pages, and says that a large machine wants more.
        return cls(swap_rate, fault_rate, scanned=max(2 * MiB, total // 16384))


NO_STRAIN: Final = StrainLimits()
"""With which nothing counts as strain."""


@frozen
class Strain:
    """How a guest bears it.

    Attributes:
        level: ``"none"``; ``"some"``: let it alone; ``"critical"``: give back.
        reason: What shows it, in words; empty for none.
    """

    level: Literal["none", "some", "critical"] = "none"
    reason: str = ""


_NONE: Final = Strain()


@frozen
class _Counts:
    """A guest's counters at one moment; what it does not report counts as 0."""

    seconds: float
    swapped: int
    faults: int
    stalls: int
    scanned: int
    freed: int
    scanned_directly: int
    freed_directly: int

    @classmethod
    def of(cls, seconds: float, stats: GuestStats) -> _Counts:
        direct, freed = stats.direct_scans or 0, stats.direct_reclaims or 0
        return cls(
            seconds=seconds,
            swapped=stats.swap_out or 0,
            faults=stats.major_faults or 0,
            stalls=stats.alloc_stalls or 0,
            scanned=direct + (stats.async_scans or 0),
            freed=freed + (stats.async_reclaims or 0),
            scanned_directly=direct,
            freed_directly=freed,
        )

    def precede(self, later: _Counts) -> bool:
        """Tell whether a kernel can count from these to those; a new one cannot."""
        return (
            self.swapped <= later.swapped
            and self.faults <= later.faults
            and self.stalls <= later.stalls
            and self.scanned <= later.scanned
        )


class StrainMeter:
    """Follows one guest's counters.

    Args:
        limits: What counts as strain.
    """

    def __init__(self, limits: StrainLimits) -> None:
        self._limits = limits
        self._seen: deque[_Counts] = deque()
        self._own_swapping = self._own_faulting = 0.0

    def observe(self, seconds: float, stats: GuestStats) -> Strain:
        """Take in what the guest says, so many seconds after the beginning."""
        seen, now = self._seen, _Counts.of(seconds, stats)
        if seen and not seen[-1].precede(now):
            seen.clear()  # it was restarted
        seen.append(now)
        while len(seen) > 1 and seen[1].seconds <= seconds - _WINDOW:
            seen.popleft()
        if seconds <= FIRST_LOOK:
            self._learn(seen[0], now)
            return _NONE
        return self._judge(seen[0], now)

    def _learn(self, then: _Counts, now: _Counts) -> None:
        span = max(now.seconds - then.seconds, FIRST_LOOK)
        self._own_swapping = (now.swapped - then.swapped) / span
        self._own_faulting = (now.faults - then.faults) / span

    def _judge(self, then: _Counts, now: _Counts) -> Strain:
        span = max(now.seconds - then.seconds, _WINDOW)
        stuck = self._stuck(then, now)
        if stuck is not None:
            return stuck
        swapping = (now.swapped - then.swapped) / span
        if swapping > _OWN * self._own_swapping + self._limits.swap_rate:
            return Strain("some", f"the guest swaps {format_size(round(swapping))}/s")
        faulting = (now.faults - then.faults) / span
        if faulting > _OWN * self._own_faulting + self._limits.fault_rate:
            return Strain("some", f"the guest has {faulting:.0f} major faults/s")
        return _NONE

    def _stuck(self, then: _Counts, now: _Counts) -> Strain | None:
        """Judge by how much of what the kernel looks at it can free."""
        enough = self._limits.scanned
        scanned = now.scanned - then.scanned
        if enough is None or scanned < enough:
            return None
        share = 1 - (now.freed - then.freed) / scanned
        if share < _MEDIUM:
            return None
        reason = f"the guest can free {max(0, 1 - share):.0%} of the pages it looks at"
        direct = now.scanned_directly - then.scanned_directly
        freed = now.freed_directly - then.freed_directly
        if (
            direct >= enough
            and 1 - freed / direct >= _CRITICAL
            and now.stalls > then.stalls
        ):
            return Strain("critical", f"{reason}, and its tasks wait for them")
        return Strain("some", reason)
