"""Spread an amount over hosts, so that it hurts least.

Pure: offers in, quotas out. The same offers and amount always make the same plan.

Memory that guests do not use at all costs nothing, page cache that they do not read
again costs little, and cache that they do read again costs reads from disk. So all idle
memory of all hosts is taken before any cold cache, and all cold cache before any hot
cache. Within one kind, the hosts that have most give first, until all have the same
left: a remaining MiB is worth the same to every host, however much it has offered.

If the amount is larger, no host is asked for less. So what a dry run has shown is part
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
        parts: What each host is asked for, by how much it costs; hosts that are asked
            for nothing are left out.
        lacking: How much of the amount nobody offers, in whole pages.
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

    All figures are whole units. What rounding leaves over is taken from the first ones,
    one unit each. So a larger amount never takes less from anybody.
    """
    if sum(offered) <= amount:
        return list(offered)

    def take_down_to(level: int) -> list[int]:
        return [max(0, each - level) for each in offered]

    # The lowest level that takes no more than the amount. It is at least 1, because
    # level 0 takes everything, which was handled above.
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
