"""Sharing an amount out as water does: the lowest vessels are filled first.

Every policy comes down to this. They differ in what they call a vessel's height.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from attrs import frozen

from qmpballoon.balloon.device import PAGE

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Vessel", "pour"]

_HALVINGS: Final = 64


@frozen
class Vessel:
    """One that gets a share.

    Attributes:
        height: How full it is already, in bytes; may be negative.
        width: How much a level means for it, above 0: one twice as wide as another
            gets twice as much between the same two levels.
        limit: Bytes it takes at most.
    """

    height: int
    width: float
    limit: int

    def taken(self, level: float) -> int:
        """Return the bytes in it when the water stands at a level."""
        return max(0, min(self.limit, int(level * self.width - self.height)))


def pour(amount: int, vessels: Sequence[Vessel]) -> list[int]:
    """Share an amount out so that the lowest vessels come to one level.

    Args:
        amount: Bytes.
        vessels: Who gets a share.

    Returns:
        Bytes for each vessel, in whole pages, in the order given. Their sum is not
        above the amount; it is below it by a page a vessel at most, or by what all
        of them together cannot hold.
    """
    if sum(vessel.limit for vessel in vessels) <= amount:
        return [_whole(vessel.limit) for vessel in vessels]
    low = min(vessel.height / vessel.width for vessel in vessels)
    high = max((vessel.height + vessel.limit) / vessel.width for vessel in vessels)
    for _ in range(_HALVINGS):
        level = (low + high) / 2
        if sum(vessel.taken(level) for vessel in vessels) <= amount:
            low = level
        else:
            high = level
    return [_whole(vessel.taken(low)) for vessel in vessels]


def _whole(size: int) -> int:
    return max(0, size) // PAGE * PAGE
