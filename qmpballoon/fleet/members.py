"""What policies see: the host, and the VMs whose balloons can be moved.

Pure figures, and what follows from them for one guest alone: what it could spare,
what the host would gain by that, what it is in need of.
"""

from __future__ import annotations

from typing import Final

from attrs import frozen

__all__ = ["STEP", "Host", "Member"]

STEP: Final = 8
"""RAM through this is what a guest gives in one plan at most."""
_SUPPLY: Final = 4
"""Plans for whose time a guest is given its growth beyond what it lacks, and keeps it
when it is asked to give: it does not come back with each, nor for what it gave."""
_MOST_SUPPLY: Final = 16
"""RAM through this is what those come to at most: a spike is soon over."""


@frozen
class Host:
    """The host, in bytes.

    Attributes:
        total: Its memory.
        available: What of it could be had without swapping; below 0 by what VMs hold
            beyond the limit that was set for them.
        promised: What guests were given and have not touched yet.
        pressed: Whether tasks on the host wait for memory (PSI).
    """

    total: int
    available: int
    promised: int = 0
    pressed: bool = False


@frozen
class Member:
    """A VM whose balloon can be moved, in bytes.

    Attributes:
        name: What plans call it.
        actual: What it has.
        total: Its RAM.
        available: What it says it could do without, as of a moment when it had
            ``actual``.
        headroom: What it is to keep available.
        floor: What it never goes below.
        ceiling: What it never goes above.
        weight: Above 0; one with twice the weight is left with, and gets, twice as
            much.
        target: Where it is going, while it does.
        free: What of ``available`` nothing uses, not even a cache.
        untouched: What of its size it could use and the host has given no memory for
            yet. The host gains nothing when a guest gives that up.
        refuses: It lately did not give what it said it could.
        growth: By how much its use grows until the next plan.
    """

    name: str
    actual: int
    total: int
    available: int
    headroom: int
    floor: int
    ceiling: int
    weight: float = 1.0
    target: int | None = None
    free: int = 0
    untouched: int = 0
    refuses: bool = False
    growth: int = 0

    @property
    def moving(self) -> bool:
        """Whether it is on its way to another size."""
        return self.target is not None

    @property
    def spare(self) -> int:
        """Bytes it could give: above what it is to keep in comfort, and its floor."""
        return max(0, min(self.available - self.comfort, self.actual - self.floor))

    @property
    def comfort(self) -> int:
        """Bytes that are enough for a while: its headroom, half as much, its growth."""
        supply = min(self.growth * _SUPPLY, self.total // _MOST_SUPPLY)
        return self.headroom + self.headroom // 2 + supply

    @property
    def idle(self) -> int:
        """Bytes of its spare memory that are free, and that the host has given."""
        return min(max(0, self.free - self.untouched), self.spare)

    @property
    def gain(self) -> int:
        """Bytes that the host gains if it gives all it can spare."""
        return max(self.idle, self.spare - self.untouched)

    def price(self, gain: int) -> int:
        """Return what it has to give, in bytes, for the host to gain so much.

        Linux hands over free pages before it drops cache, and those last freed before
        those that were never touched. So past what is idle, all that is untouched goes,
        too.
        """
        return gain if gain <= self.idle else min(gain + self.untouched, self.spare)

    @property
    def need(self) -> int:
        """Bytes it is to get at once; 0 if it has enough until the next plan."""
        return self.need_until(1)

    def need_until(self, plan: int) -> int:
        """Return what it is to get if it has to do until so many plans from now."""
        left = self.available - self.growth * plan
        if left >= self.headroom and self.actual >= self.floor:
            return 0
        lacking = max(self.comfort - self.available, self.floor - self.actual)
        return max(0, min(lacking, self.room))

    @property
    def room(self) -> int:
        """Bytes it could get."""
        return max(0, min(self.ceiling, self.total) - self.actual)
