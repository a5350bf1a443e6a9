"""Spread an amount over hosts, so that it hurts least.

Pure: offers in, quotas out. The same offers and amount always make the same plan.

Memory that guests do not use at all costs nothing, page cache that they do not read
again costs little, and cache that they do read again costs reads from disk. So all idle
memory of all hosts is taken before any cold cache, and all cold cache before any that
is hot. Of one kind, those who have most of it give first, until all have the same left:
a host that offers twice as much is no better off with a bit of it left than others.

With a larger amount no host is asked for less. So what a dry run has shown stays a part
of every larger plan.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import field, frozen

from qmpballoon._checks import require_size
from qmpballoon.balloon.device import PAGE
from qmpballoon.cluster.documents import Offer

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Spread", "spread"]


@frozen
class Spread:
    """How an amount is spread over hosts, in bytes.

    Attributes:
        amount: What was asked for.
        parts: What each host is asked for, by what it costs; hosts that are asked for
            nothing are left out.
        lacking: How much of the amount nobody offers, down to a page.
    """

    amount: int
    parts: Mapping[str, Offer] = field(factory=dict[str, Offer], hash=False)
    lacking: int = 0

    @property
    def quotas(self) -> dict[str, int]:
        """What each host is asked for in all."""
        return {host: part.total for host, part in self.parts.items()}

    @property
    def takes_hot(self) -> bool:
        """Whether any host has to take page cache that is read again."""
        return any(part.hot for part in self.parts.values())


def spread(
    amount: int, offers: Mapping[str, Offer], *, takes_hot: bool = True
) -> Spread:
    """Spread an amount over hosts.

    Args:
        amount: Bytes, 1 or more. A part of a page is left out.
        offers: What each host offers, by its name.
        takes_hot: Whether page cache that guests read again may be taken, too.

    Returns:
        What each host is asked for: whole pages, and never more than it offers. The sum
        is the amount, or all that is offered if that is less.

    Raises:
        TypeError: The amount is not a whole number.
        ValueError: The amount is out of range.
    """
    require_size(amount, "amount", minimum=1)
    hosts = sorted(offers)
    left = amount // PAGE
    kinds = ("idle", "cold", "hot") if takes_hot else ("idle", "cold")
    taken: dict[str, list[int]] = {}
    for kind in kinds:
        offered = [getattr(offers[host], kind) // PAGE for host in hosts]
        taken[kind] = _take_from_highest(left, offered)
        left -= sum(taken[kind])
    parts = {
        host: Offer(**{kind: taken[kind][number] * PAGE for kind in kinds})
        for number, host in enumerate(hosts)
    }
    return Spread(
        amount=amount,
        parts={host: part for host, part in parts.items() if part.total},
        lacking=left * PAGE,
    )


def _take_from_highest(amount: int, offered: list[int]) -> list[int]:
    """Take an amount so that those who offer most are left with the same.

    All in whole units. What is left over by rounding is taken from the first ones, one
    unit each; so a larger amount takes no less from anybody.
    """
    if sum(offered) <= amount:
        return list(offered)

    def take_down_to(level: int) -> list[int]:
        return [max(0, each - level) for each in offered]

    # The lowest level that takes no more than the amount; 1 or more, or all was taken.
    low, high = 0, max(offered)
    while low < high:
        middle = (low + high) // 2
        if sum(take_down_to(middle)) <= amount:
            high = middle
        else:
            low = middle + 1
    taken = take_down_to(low)
    over = amount - sum(taken)
    for number, each in enumerate(offered):
        if over and each >= low:
            taken[number] += 1
            over -= 1
    return taken
