"""Water-filling: share an amount out so that the lowest are raised to one level.

All policies share memory out by this algorithm. They differ in how they measure a
guest's level. It is a module of its own because it knows nothing of guests: amounts and
levels in, shares out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from attrs import frozen

from qmpballoon.balloon.device import PAGE

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Recipient", "fill"]

# The level is found by halving an interval. A double has 53 significant bits: after 64
# halvings the interval cannot become any smaller.
_HALVINGS: Final = 64


@frozen
class Recipient:
    """Somebody who gets a share.

    Attributes:
        filled: Bytes it has already; may be negative.
        weight: A number above 0. At the same level, a recipient with twice the weight
            has twice as many bytes.
        limit: How many bytes it takes at most.
    """

    filled: int
    weight: float
    limit: int

    def compute_share(self, level: float) -> int:
        """Return the bytes that raise it to a level, within its limit.

        Args:
            level: Bytes for each unit of weight.
        """
        return max(0, min(self.limit, int(level * self.weight - self.filled)))


def fill(amount: int, recipients: Sequence[Recipient]) -> list[int]:
    """Share an amount out so that the lowest recipients come to one level.

    Args:
        amount: Bytes.
        recipients: Those that get a share.

    Returns:
        The share of each recipient in bytes, in whole pages and in the same order.
        Their sum never exceeds the amount. It falls short of it by at most one page for
        each recipient, or by what exceeds all limits together.
    """
    if sum(each.limit for each in recipients) <= amount:
        return [_round_down(each.limit) for each in recipients]
    low = min(each.filled / each.weight for each in recipients)
    high = max((each.filled + each.limit) / each.weight for each in recipients)
    for _ in range(_HALVINGS):
        level = (low + high) / 2
        if sum(each.compute_share(level) for each in recipients) <= amount:
            low = level
        else:
            high = level
    return [_round_down(each.compute_share(low)) for each in recipients]


def _round_down(size: int) -> int:
    return max(0, size) // PAGE * PAGE
