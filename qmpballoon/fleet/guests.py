"""The host and its guests, as plans see them.

Pure: the figures of one guest, and what follows from them. That is what the guest can
spare, what the host gains from that, and what the guest needs.
"""

from __future__ import annotations

from typing import Final

from attrs import frozen

__all__ = ["Guest", "Host"]

# Plans that pass at most between a guest's sample and the next time that it can be
# helped: one until the next sample, one until that is polled, and one until a plan uses
# it. A guest that uses up all that it has by then is in distress.
_PLANS_UNTIL_HELP: Final = 3
# The number of plans for which a guest keeps, and gets, what it is about to use: its
# sample may be that old, and what it gets has to last for as long again.
# benchmarks/fleet_policies.py compares the results.
_PLANS_AHEAD: Final = 2 * _PLANS_UNTIL_HELP


@frozen
class Host:
    """The host's memory, in bytes.

    Attributes:
        total: How much it has.
        available: How much of it can be allocated without swapping. Below 0 if the VMs
            hold more than the limit that was set for them.
        promised: How much guests were given and have not touched yet. The host loses
            it when they do.
        pressed: Whether tasks on the host wait for memory (pressure stall
            information).
        notes: What could not be read and does not count, for people.
        is_complete: Whether all VMs are known. While some are not, what they hold is
            not known either, and the host's surplus is not shared out.
        above_floors: How much it would gain if all guests shrank to their floors;
            ``None`` if not known.
    """

    total: int
    available: int
    promised: int = 0
    pressed: bool = False
    notes: tuple[str, ...] = ()
    is_complete: bool = True
    above_floors: int | None = None


@frozen
class Guest:
    """A guest whose balloon can be moved; sizes in bytes.

    Attributes:
        name: The VM's name in plans.
        actual: How much memory the guest has.
        total: The VM's RAM.
        available: How much memory the guest can do without, by its own statistics,
            page cache included. Reported when its size was ``actual``.
        headroom: How much it keeps available.
        floor: The size it never goes below.
        ceiling: The size it never goes above.
        weight: A number above 0. A guest with twice the weight is left with twice as
            much, and gets twice as much.
        target: The size it is moving to; ``None`` if it does not move.
        delivers: Bytes by which its present move soon changes its size, at the pace
            that was measured; ``None`` if not known yet: then the whole move counts.
        free: The part of ``available`` that nothing uses, not even a cache.
        untouched: The part of its size that the guest has never touched. The host has
            given no memory for it, and gains nothing if the guest gives it up.
        is_stalled: Whether it lately gave much less than it said it could.
        usage_increase: Bytes by which its use increases until the next plan.
        hot: The page cache beyond its headroom that it reads again and again, whether
            it still has it or it was taken from it.
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
    delivers: int | None = None
    free: int = 0
    untouched: int = 0
    is_stalled: bool = False
    usage_increase: int = 0
    hot: int = 0

    @property
    def is_moving(self) -> bool:
        """Whether it is on its way to another size."""
        return self.target is not None

    @property
    def desired_available(self) -> int:
        """Bytes it should have available: enough for this plan and some to come.

        This is one and a half times its headroom and what it is about to use. With just
        the headroom the guest would be in need again at the next plan.
        """
        increase = self.usage_increase * _PLANS_AHEAD
        return self.headroom + self.headroom // 2 + increase

    @property
    def spare(self) -> int:
        """Bytes it can give: what it has above its needs, hot cache, and floor."""
        above = self.available - self.desired_available - self.hot
        return max(0, min(above, self.actual - self.floor))

    @property
    def idle(self) -> int:
        """Bytes of its spare memory that are free and that the host backs."""
        return min(max(0, self.free - self.untouched), self.spare)

    @property
    def gain(self) -> int:
        """Bytes that the host gains if the guest gives all that it can spare."""
        return max(self.idle, self.spare - self.untouched)

    def compute_reduction(self, gain: int) -> int:
        """Return by how many bytes to shrink the guest, so that the host gains some.

        Linux hands over free pages first, and drops cache only after that. Of the free
        pages, it hands over those that were freed last before those that were never
        touched. So to gain more than the idle memory, all untouched memory has to be
        taken as well.

        Args:
            gain: Bytes that the host is to gain.
        """
        return gain if gain <= self.idle else min(gain + self.untouched, self.spare)

    def compute_gain(self, reduction: int) -> int:
        """Return the bytes that the host gains if the guest is shrunk by some.

        This is the inverse of :meth:`compute_reduction`.

        Args:
            reduction: Bytes that the guest gives.
        """
        return max(min(reduction, self.idle), reduction - self.untouched)

    @property
    def need(self) -> int:
        """Bytes to give it now; 0 if it has enough until the next plan."""
        return self.compute_need(1)

    def compute_need(self, plans: int) -> int:
        """Return the bytes to give it, so that it has enough for a number of plans.

        Args:
            plans: How many plans, from now on.
        """
        left = self.available - self.usage_increase * plans
        if left >= self.headroom and self.actual >= self.floor:
            return 0
        lacking = max(self.desired_available - self.available, self.floor - self.actual)
        return max(0, min(lacking, self.room))

    @property
    def hot_need(self) -> int:
        """Bytes to give it back so that it has room for its hot cache.

        0 if it lacks other memory: :attr:`need` and :attr:`distress` come first.
        """
        if not self.hot or self.need or self.distress:
            return 0
        if self.available >= self.headroom + self.hot:
            return 0
        lacking = self.desired_available + self.hot - self.available
        return max(0, min(lacking, self.room))

    @property
    def distress(self) -> int:
        """Bytes to give it back so that it kills no processes; 0 if it is not about to.

        It is in distress if it has less available than its headroom, or will have less
        by the next plan, or will use up all that it has before it can be helped again.
        """
        left = self.available - self.usage_increase
        if left >= self.headroom and not self.is_out_soon:
            return 0
        return max(0, min(self.desired_available - self.available, self.room))

    @property
    def is_out_soon(self) -> bool:
        """Whether it uses up all that it has before it can be helped again."""
        return self.available < self.usage_increase * _PLANS_UNTIL_HELP

    @property
    def halfway(self) -> int:
        """The size midway between the memory that it uses and all that it may have."""
        used = self.actual - self.available
        return max(self.floor, (used + min(self.ceiling, self.total)) // 2)

    @property
    def room(self) -> int:
        """Bytes that it can be given: all below its ceiling and its RAM."""
        return max(0, min(self.ceiling, self.total) - self.actual)
