"""Steering a balloon by what its guest says, sample by sample.

Pure: samples in, decisions out.
"""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING, Final, Literal, cast

from attrs import frozen

from qmpballoon.balloon._pressure import FIRST_LOOK, NO_STRAIN, StrainMeter
from qmpballoon.balloon._tracker import LARGEST_PAGE, PAGE
from qmpballoon.sizes import MiB, format_size

if TYPE_CHECKING:
    from qmpballoon.balloon._pressure import Strain
    from qmpballoon.balloon.guard import Limits
    from qmpballoon.balloon.stats import GuestStats

__all__ = ["Decision", "Governor"]

_UNIT: Final = MiB  # Linux's driver inflates by this much at a time
# An answer is a tick late: who went after the last few of these units would go to
# and fro about the goal for ever.
_SLACK: Final = 4 * _UNIT
_ANSWERS: Final = 5  # a guest's growth is taken over so many
_CLOSE: Final = 16  # a guest's word is no more exact than this part of its headroom
# A guest that came to need memory may go on to; so long, in seconds, it is let alone.
_RECOVERY: Final = 1.0
# One that allocates passes through its headroom, too; one that stays so long is there.
_STILL: Final = 0.05
_AT_REST: Final = 0.5  # and so is one that says the same for so long
# Rates are taken over a second, so strain is seen for one after its end.
_ENDURANCE: Final = 3.0
_HOLDS: Final = 3  # times; a guest that suffers so often has no more to spare


@frozen
class Decision:
    """What to do next.

    Attributes:
        action: ``"take"`` to set the target; ``"reached"`` and ``"spent"`` when all
            that was wanted, or can be spared, is taken; ``"trouble"`` to give
            everything back at once.
        target: Bytes, for ``"take"`` and ``"trouble"``.
        reason: Why, or what holds the guest up; empty where nothing does.
        mark: A word for the chart, where a new thing begins with this decision.
    """

    action: Literal["take", "reached", "spent", "trouble"]
    target: int
    reason: str = ""
    mark: str | None = None


class Governor:
    """Decides, sample by sample, what to ask of a guest.

    A guest that has said nothing yet (``stats`` is ``None``) is asked for the bottom
    as it is, until it does.

    Args:
        limits: What the guest must keep.
        start: Bytes it has at the beginning, and gets back in trouble.
        bottom: Bytes to bring it to.
        stats: What it says at the beginning.

    Attributes:
        bottom: Bytes below which the guest is never asked to go.
        watchful: Bytes available below which to look at it more often.
    """

    def __init__(
        self, limits: Limits, start: int, bottom: int, stats: GuestStats | None
    ) -> None:
        self._limits = limits
        self._start = start
        # At least a page: QEMU takes no target of 0.
        self.bottom: int = -(-max(limits.floor, bottom, 1) // PAGE) * PAGE
        self.watchful: int = 2 * limits.headroom + 64 * MiB
        self._target = start
        self._first = stats
        self._in_need_at = -math.inf
        self._there_since: float | None = None
        self._uses = deque[int](maxlen=_ANSWERS)
        self._slack = max(_SLACK, limits.headroom // _CLOSE)
        self._worth_asking = self._slack
        # From here on the headroom is what holds the guest up.
        self._near = 4 * self._slack
        self._meter = StrainMeter(limits.strain)
        self._strained_since: float | None = None
        self._holds = 0
        # What nobody would act upon need not be waited for.
        self._looks_first = limits.strain != NO_STRAIN

    def decide(
        self, seconds: float, actual: int, basis: int, stats: GuestStats, silence: float
    ) -> Decision:
        """Judge a sample.

        Args:
            seconds: Since the beginning.
            actual: Bytes the guest has.
            basis: Bytes it had when it was asked for ``stats``.
            stats: What it last said.
            silence: Seconds since it last answered anew.
        """
        available = stats.reclaimable
        if self._first is None and (silence > 0 or available is None):
            return self._take(self.bottom, seconds, actual)
        first = self._first = self._first or stats
        strain = self._meter.observe(seconds, stats)
        trouble = self._trouble(first, stats, silence) or self._endured(seconds, strain)
        if trouble is not None or available is None:
            self._in_need_at, self._there_since = seconds, None
            self._target = self._start
            return Decision("trouble", self._start, trouble or _SAYS_NOTHING)
        pause = self._pause(seconds, actual, available, strain, silence)
        return pause or self._steer(seconds, actual, basis, stats, available)

    def _pause(
        self,
        seconds: float,
        actual: int,
        available: int,
        strain: Strain,
        silence: float,
    ) -> Decision | None:
        """Decide to take no more for now, or at all, if there is reason to."""
        if self._strained_since is not None:
            return self._hold(seconds, actual, strain)
        if self._holds >= _HOLDS:
            return Decision("spent", actual, "the guest suffers when more is taken")
        if silence > 0 and self._target != self._start:
            # Nothing is known of what the last step did. But one that says the same for
            # long does nothing, and some MiB given to it need not show in its figures.
            is_near = abs(available - self._limits.headroom) < self._near
            recovers = seconds < self._in_need_at + _RECOVERY
            if silence >= _AT_REST and is_near and not recovers:
                self._there_since = self._there_since or seconds
            return self._wait(seconds, actual, self._keeps(available))
        return None

    def _growth(self, use: int) -> int:
        """Return what the guest may come to use until the balloon can have turned.

        What it took in the last few answers it may take in the next few.
        """
        self._uses.append(use)
        growth = use - self._uses[0]
        return growth if growth >= self._near else 0

    def _steer(
        self, seconds: float, actual: int, basis: int, stats: GuestStats, available: int
    ) -> Decision:
        """Go for what can be had of a guest that is well."""
        growth = self._growth(basis - available)
        spare = available - self._limits.headroom
        scarce = available < self._usual(self._first or stats) * 3 // 4
        if scarce or growth > max(spare, 0) // 2:
            self._in_need_at = seconds
        goal = basis - spare + growth
        if self._looks_first and seconds < FIRST_LOOK and stats.free is not None:
            # Whatever the guest suffers meanwhile is nothing of our making.
            unused = max(0, stats.free - self._limits.headroom)
            first_goal = max(self.bottom, min(basis - unused, actual))
            return self._take(max(goal, first_goal), seconds, actual)
        if goal > self.bottom:
            return self._approach(goal, seconds, actual, self._keeps(available))
        # Near it is not there: what still moves will come nearer.
        is_near = abs(self.bottom - actual) < LARGEST_PAGE and actual == basis
        if is_near and self._target == self.bottom:
            return Decision("reached", actual)
        return self._take(self.bottom, seconds, actual)

    def _usual(self, first: GuestStats) -> int:
        """Return the headroom; less for a guest that had less from the start.

        That is no emergency of ours.
        """
        return min(self._limits.headroom, first.reclaimable or 0)

    def _endured(self, seconds: float, strain: Strain) -> str | None:
        """Note since when the guest is strained; tell if it cannot go on so."""
        if strain.level == "none":
            self._strained_since = None
            return None
        if self._strained_since is None:
            self._strained_since = seconds
            self._holds += 1
        if strain.level == "critical":
            return strain.reason
        if seconds < self._strained_since + _ENDURANCE:
            return None
        return f"{strain.reason}, although no more is taken from it"

    def _hold(self, seconds: float, actual: int, strain: Strain) -> Decision:
        """Take no more, until it is better."""
        self._in_need_at, self._there_since = seconds, None
        begins = self._strained_since == seconds
        self._target = min(max(self._target, actual), self._start)
        mark = "held back" if begins else None
        return Decision("take", self._target, strain.reason, mark)

    def _approach(
        self, goal: int, seconds: float, actual: int, reason: str
    ) -> Decision:
        """Go for all that can be spared, which is less than was wanted."""
        goal = min(goal, self._start)
        lacks = goal - actual
        if lacks >= self._slack and self._target <= actual:
            # Too much was asked for. Do not ask for as little again.
            self._worth_asking = min(2 * self._worth_asking, self._near)
        still_comes = self._target - actual
        has_enough = max(lacks, still_comes) < self._slack
        is_there = has_enough and -lacks < self._worth_asking
        if not is_there or seconds < self._in_need_at + _RECOVERY:
            held_up = reason if goal > actual - self._near else ""
            return self._take(goal, seconds, actual, held_up)
        if self._there_since is None:
            self._there_since = seconds
        return self._wait(seconds, actual, reason)

    def _wait(self, seconds: float, actual: int, reason: str) -> Decision:
        """Leave the target as it is; end when the guest was at its limit for a while.

        A guest at rest says the same again and again, which looks like silence.
        """
        if self._there_since is None:
            return Decision("take", self._target)
        if seconds < self._there_since + _STILL:
            return Decision("take", self._target, reason)
        return Decision("spent", actual, reason)

    def _take(
        self, goal: int, seconds: float, actual: int, reason: str = ""
    ) -> Decision:
        """Go for a size, as fast as the step and the rate cap let it by now."""
        step, rate = self._limits.step, self._limits.max_rate
        by_step = 0 if step is None else actual - step
        if seconds < self._in_need_at + _RECOVERY:
            by_step = actual
        by_rate = 0 if math.isinf(rate) else self._start - int(rate * seconds)
        self._there_since = None
        # Memory that is plugged meanwhile lifts ``actual`` above the start.
        self._target = min(max(goal, by_step, by_rate), self._start)
        return Decision("take", self._target, reason)

    def _trouble(
        self, first: GuestStats, stats: GuestStats, silence: float
    ) -> str | None:
        if silence > self._limits.stale_after:
            return f"the guest has not answered for {silence:.1f} s"
        if None not in (first.oom_kills, stats.oom_kills) and (
            cast("int", stats.oom_kills) > cast("int", first.oom_kills)
        ):
            return "the guest killed a process for want of memory"
        alarm = self._usual(first) // 2
        if stats.reclaimable is not None and stats.reclaimable < alarm:
            return self._keeps(stats.reclaimable)
        return None

    def _keeps(self, available: int) -> str:
        return (
            f"the guest has {format_size(available)} available, and is to keep"
            f" {format_size(self._limits.headroom)}"
        )


_SAYS_NOTHING: Final = "the guest no longer says what it has available"
