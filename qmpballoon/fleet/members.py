"""What policies see: the host, and the VMs whose balloons can be moved.

Pure figures, and what follows from them for one guest alone: what it could spare,
what the host would gain by that, what it is in need of.
"""

from __future__ import annotations

from typing import Final

from attrs import frozen

__all__ = ["STEP", "Host", "Member"]

STEP: Final = 8
"""RAM through this is what a guest in need gets at least, and others give at most."""


@frozen
class Host:
    """The host, in bytes.

    Attributes:
        total: Its memory.
        available: What of it could be had without swapping.
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
        untouched: What of its size the host has given no memory for yet. The host
            gains nothing when a guest gives that up.
        refuses: It lately did not give what it said it could.
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

    @property
    def moving(self) -> bool:
        """Whether it is on its way to another size."""
        return self.target is not None

    @property
    def spare(self) -> int:
        """Bytes it could give: above its headroom and half as much, and its floor."""
        comfort = self.headroom + self.headroom // 2
        return max(0, min(self.available - comfort, self.actual - self.floor))

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
        """Bytes it is to get at once; 0 if it is not in need."""
        if self.available >= self.headroom and self.actual >= self.floor:
            return 0
        comfort = self.headroom + self.headroom // 2
        lacking = max(comfort - self.available, self.floor - self.actual)
        return min(max(lacking, self.total // STEP), self.room)

    @property
    def room(self) -> int:
        """Bytes it could get."""
        return max(0, min(self.ceiling, self.total) - self.actual)
