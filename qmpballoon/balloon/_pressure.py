"""Memory pressure in a guest that reports memory as available.

Pure: statistics in, a :class:`Pressure` out. *Available* is the kernel's estimate, and
can be wrong: it includes cache that is in use, dirty or locked. If taking that memory
hurts the guest, other figures show it:

- The guest swaps anonymous memory out.
- Its tasks wait for a disk to read back what was dropped: major faults.
- Its kernel scans many pages and can free few of them. Linux derives its own pressure
  levels from that share (``mm/vmpressure.c``): with less than 40 % freed, pressure is
  "medium"; with less than 5 %, it is "critical", "the system is about to out of
  memory". The shares here are the same.

Any guest scans, reclaims and stalls allocations now and then while its balloon grows,
but a healthy guest frees all pages that it scans. So scans and stalls alone do not
count. Nor does the swapping of a guest that always swaps, or the faults of one that
always faults: rates are compared with those of the first moment, in which only free
memory is taken.

Sources: "Memory Statistics Tags" in the virtio specification; "Memory Pressure" in the
kernel's cgroup-v1/memory.rst.
"""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING, Final, Literal

from attrs import frozen

from qmpballoon.sizes import GiB, MiB, format_size

if TYPE_CHECKING:
    from qmpballoon.balloon.stats import GuestStats

__all__ = [
    "BASELINE_PERIOD",
    "NO_PRESSURE_LIMITS",
    "SHORTEST_BASELINE",
    "Pressure",
    "PressureLimits",
    "PressureMeter",
]

BASELINE_PERIOD: Final = 0.25
"""Seconds at the beginning in which a guest's own rates are measured: its baseline."""

SHORTEST_BASELINE: Final = 0.1
"""Seconds after which the baseline may end for a guest that has done nothing.

A guest that reads fast enough to matter, 4 MiB a second, reads more often than that."""

_WINDOW: Final = 1.0  # seconds over which rates are taken
_BASELINE_FACTOR: Final = 2.0  # a rate up to this multiple of the guest's own is normal
_MEDIUM: Final = 0.6  # share of the scanned pages that could not be freed
_CRITICAL: Final = 0.95


@frozen
class PressureLimits:
    """What counts as memory pressure; by default nothing does.

    Attributes:
        swap_rate: Bytes a second that a guest may swap out beyond its own rate.
        fault_rate: Major faults a second that it may have beyond its own rate.
        scanned: Bytes that its kernel must have scanned in a second. Below that, the
            share that it could free means nothing.
    """

    swap_rate: float = math.inf
    fault_rate: float = math.inf
    scanned: float = math.inf

    @classmethod
    def of(
        cls, total: int, swap_rate: float | None, fault_rate: float | None
    ) -> PressureLimits:
        """Return the limits for one guest.

        Args:
            total: Bytes of its RAM.
            swap_rate: Bytes a second; ``None``: a 4096th of RAM, at least 1 MiB.
            fault_rate: Faults a second; ``None``: 100 for each 16 GiB of RAM, at least
                100. On a disk that answers within a millisecond 100 faults take a tenth
                of one processor's time.
        """
        if swap_rate is None:
            swap_rate = max(MiB, total / 4096)
        if fault_rate is None:
            fault_rate = 100 * max(1, total / (16 * GiB))
        # Linux looks at every 512 pages; its source says that large machines need more.
        return cls(swap_rate, fault_rate, scanned=max(2 * MiB, total // 16384))


NO_PRESSURE_LIMITS: Final = PressureLimits()
"""Limits with which nothing counts as pressure."""


@frozen
class Pressure:
    """The memory pressure in a guest.

    Attributes:
        level: ``"none"``; ``"some"``: take no more for now; ``"critical"``: give
            everything back.
        reason: What shows it, in words; empty for ``"none"``.
    """

    level: Literal["none", "some", "critical"] = "none"
    reason: str = ""


_NONE: Final = Pressure()


@frozen
class _Counters:
    """A guest's counters at one moment; one that it does not report is 0."""

    seconds: float
    swapped: int
    faults: int
    stalls: int
    scanned: int
    freed: int
    scanned_directly: int
    freed_directly: int

    @classmethod
    def of(cls, seconds: float, stats: GuestStats) -> _Counters:
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

    def precede(self, later: _Counters) -> bool:
        """Return whether one kernel can have counted both, these before the others."""
        return (
            self.swapped <= later.swapped
            and self.faults <= later.faults
            and self.stalls <= later.stalls
            and self.scanned <= later.scanned
        )


class PressureMeter:
    """Measures the memory pressure in one guest.

    Args:
        limits: What counts as pressure.
    """

    def __init__(self, limits: PressureLimits) -> None:
        self._limits = limits
        self._seen: deque[_Counters] = deque()
        self._baseline_until = BASELINE_PERIOD
        self._own_swap_rate = self._own_fault_rate = 0.0

    @property
    def is_quiet(self) -> bool:
        """Whether the guest neither swapped nor waited for a disk in its baseline."""
        return not self._own_swap_rate and not self._own_fault_rate

    def end_baseline(self) -> None:
        """Stop measuring the guest's own rates: the last sample was of the baseline."""
        self._baseline_until = -math.inf

    def observe(self, seconds: float, stats: GuestStats) -> Pressure:
        """Take in a guest's statistics.

        Args:
            seconds: Seconds since the beginning.
            stats: What the guest last reported.

        Returns:
            The pressure in it now.
        """
        seen, now = self._seen, _Counters.of(seconds, stats)
        if seen and not seen[-1].precede(now):
            seen.clear()  # the guest was restarted
        seen.append(now)
        while len(seen) > 1 and seen[1].seconds <= seconds - _WINDOW:
            seen.popleft()
        if seconds <= self._baseline_until:
            self._measure_baseline(seen[0], now)
            return _NONE
        return self._judge(seen[0], now)

    def _measure_baseline(self, then: _Counters, now: _Counters) -> None:
        span = max(now.seconds - then.seconds, BASELINE_PERIOD)
        self._own_swap_rate = (now.swapped - then.swapped) / span
        self._own_fault_rate = (now.faults - then.faults) / span

    def _judge(self, then: _Counters, now: _Counters) -> Pressure:
        span = max(now.seconds - then.seconds, _WINDOW)
        futile = self._judge_scans(then, now)
        if futile is not None:
            return futile
        swap_rate = (now.swapped - then.swapped) / span
        if swap_rate > _BASELINE_FACTOR * self._own_swap_rate + self._limits.swap_rate:
            return Pressure(
                "some", f"the guest swaps {format_size(round(swap_rate))}/s"
            )
        fault_rate = (now.faults - then.faults) / span
        allowed = _BASELINE_FACTOR * self._own_fault_rate + self._limits.fault_rate
        if fault_rate > allowed:
            return Pressure("some", f"the guest has {fault_rate:.0f} major faults/s")
        return _NONE

    def _judge_scans(self, then: _Counters, now: _Counters) -> Pressure | None:
        """Judge the share of the scanned pages that the kernel can free."""
        enough = self._limits.scanned
        scanned = now.scanned - then.scanned
        if scanned < enough:
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
            return Pressure("critical", f"{reason}, and its tasks wait for them")
        return Pressure("some", reason)
