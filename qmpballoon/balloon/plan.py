"""What a reclaim would take, from what, and which limit keeps it from taking more."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

from attrs import frozen

from qmpballoon.balloon._tracker import PAGE
from qmpballoon.sizes import GiB, format_size

if TYPE_CHECKING:
    from qmpballoon.balloon.guard import Limits
    from qmpballoon.balloon.stats import GuestStats

__all__ = ["Binding", "Plan", "make_plan"]

Binding = Literal["headroom", "floor", "amount"]
"""Which limit keeps a plan from taking more."""

_INFLATE_RATE: Final = 0.95 * GiB  # bytes a second; measured by others, 4 KiB pages
_DEFLATE_RATE: Final = 2.3 * GiB  # likewise


@frozen
class Plan:
    """What a reclaim would take, and from what; all sizes in bytes.

    Attributes:
        actual: What the guest has.
        target: What it would be left with.
        amount: What would be taken.
        from_free: What of that is free already.
        from_cache: What of that is page cache.
        available: What the guest says it could do without.
        headroom: What of that it keeps.
        floor: What it never goes below.
        binding: Which limit keeps the plan from taking more.
        seconds: About how long taking and giving back would last.
    """

    actual: int
    target: int
    amount: int
    from_free: int
    from_cache: int
    available: int
    headroom: int
    floor: int
    binding: Binding
    seconds: float

    def describe(self) -> str:
        """Say it in words."""
        keeps = f"the guest has {format_size(self.available)} available"
        if self.amount == 0:
            why = {
                "headroom": f"{keeps}, and is to keep {format_size(self.headroom)}",
                "floor": f"its {format_size(self.actual)} are not above the floor of"
                f" {format_size(self.floor)}",
                "amount": "less than a page was asked for",
            }[self.binding]
            return f"nothing to take: {why}"
        binding = {
            "headroom": f"a headroom of {format_size(self.headroom)} stays",
            "floor": f"the floor of {format_size(self.floor)} is reached",
            "amount": "no more was asked for",
        }[self.binding]
        return (
            f"{format_size(self.amount)} can be taken, {format_size(self.from_free)}"
            f" of it free memory and {format_size(self.from_cache)} page cache:"
            f" {keeps}, and {binding}. The guest goes from"
            f" {format_size(self.actual)} to {format_size(self.target)}, in about"
            f" {self.seconds:.0f} s"
        )


def make_plan(
    limits: Limits, actual: int, stats: GuestStats, amount: int | None = None
) -> Plan | None:
    """Tell what can be taken from a guest; ``None`` if it does not say enough.

    Args:
        limits: What the guest must keep.
        actual: Bytes it has.
        stats: What it says of its memory.
        amount: Bytes to take at most.
    """
    available = stats.reclaimable
    if available is None:
        return None
    goals: dict[Binding, int] = {
        "headroom": actual - (available - limits.headroom),
        "floor": limits.floor,
        "amount": -1 if amount is None else actual - amount,
    }
    binding = max(goals, key=lambda name: goals[name])
    target = min(-(-goals[binding] // PAGE) * PAGE, actual)
    taken = actual - target
    free = min(taken, stats.free or 0)
    pace = min(limits.max_rate, _INFLATE_RATE)
    return Plan(
        actual=actual,
        target=target,
        amount=taken,
        from_free=free,
        from_cache=taken - free,
        available=available,
        headroom=limits.headroom,
        floor=limits.floor,
        binding=binding,
        seconds=taken / pace + taken / _DEFLATE_RATE,
    )
