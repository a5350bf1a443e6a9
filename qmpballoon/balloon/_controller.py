"""How far to shrink a guest next, decided sample by sample.

Pure: samples in, decisions out. The controller approaches the smallest size that the
limits allow, in steps. It first takes free memory only, until it knows the guest's own
rates (the *baseline*). It stops above the size that was asked for if the guest reaches
its headroom there, or the edge of its working set. It gives memory back if the guest
needs some, and waits while the guest is under pressure.
"""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING, Final, Literal

from attrs import frozen

from qmpballoon.balloon._alarms import Alarms
from qmpballoon.balloon._pressure import (
    BASELINE_PERIOD,
    NO_PRESSURE_LIMITS,
    SHORTEST_BASELINE,
)
from qmpballoon.balloon._working_set import NO_REREAD_LIMITS, QUIET
from qmpballoon.balloon.device import LARGEST_PAGE, PAGE
from qmpballoon.balloon.stats import GuestStats
from qmpballoon.sizes import MiB

if TYPE_CHECKING:
    from qmpballoon.balloon._alarms import Alarm, Observation
    from qmpballoon.balloon.guard import GuestLimits
    from qmpballoon.balloon.results import AlarmKind

__all__ = ["Controller", "Decision"]

# Bytes. With less than twice its headroom and this margin available, a guest is sampled
# most often. The margin is what it allocates in the 40 ms before that, at 1.6 GiB a
# second.
_WATCH_MARGIN: Final = 64 * MiB
# Bytes by which the target may miss the goal. Linux's driver inflates by 1 MiB at a
# time, and an answer is one sample old: corrections of a few MiB would never end.
_TOLERANCE: Final = 4 * MiB
# The tolerance is at least this part of the headroom: a guest's figures are no more
# precise than that.
_PRECISION: Final = 16
_ANSWERS: Final = 5  # answers over which a guest's allocations are measured
# Seconds for which the target does not run ahead of a guest that has just needed
# memory.
_RECOVERY: Final = 1.0
# Seconds for which a guest has to stay at its headroom; one that allocates passes it.
_SETTLED: Final = 0.05
# Seconds of unchanged figures after which a guest counts as at rest, and not as late.
_AT_REST: Final = 0.5
# Part of the time over which page cache is taken gently. For so long the guest is
# watched at the end; and after it has read something again, taking the rest takes at
# least as long.
_GENTLE_PART: Final = 1 / 10
# Seconds of which the pace may make up for at once. Whoever looks late, or has the
# answer late, learns late what the last step did to the guest.
_MAKES_UP: Final = 0.5
_MAX_HOLDS: Final = 3  # after this many times under pressure, there is nothing to spare


@frozen
class Decision:
    """What to do next.

    Attributes:
        action: ``"take"``: set the target. ``"reached"``: all that was wanted is taken.
            ``"spent"``: all that can be spared is taken. ``"trouble"``: give everything
            back at once.
        target: The target in bytes, for ``"take"`` and ``"trouble"``.
        reason: Why, or what keeps the guest from shrinking; empty if nothing does.
        mark: A word for the timeline if something new begins with this decision.
        alarm: What is wrong with the guest, even if it need not get everything back
            yet; ``None`` if nothing is.
    """

    action: Literal["take", "reached", "spent", "trouble"]
    target: int
    reason: str = ""
    mark: str | None = None
    alarm: AlarmKind | None = None


class Controller:
    """Decides, sample by sample, which target to set.

    Args:
        limits: What the guest must keep.
        start: Bytes it has at the beginning, and gets back in trouble.
        bottom: Bytes to bring it to.
        stats: What it reports at the beginning; ``None`` if it has not answered. Until
            it does, the target goes down to the bottom whatever the guest needs.

    Attributes:
        alarms: Says when the guest is in trouble.
        bottom: Bytes below which no target is set.
        watch_below: Bytes available below which the guest is sampled most often.
        is_paced: Whether ``max_rate`` or ``gentle`` kept the last target from being
            lower.
        has_baseline: Whether the guest's own rates are known. Until then only free
            memory is taken, if the limits depend on these rates.
    """

    def __init__(
        self, limits: GuestLimits, start: int, bottom: int, stats: GuestStats | None
    ) -> None:
        self._limits = limits
        self._start = start
        # At least a page: QEMU takes no target of 0.
        self.bottom: int = -(-max(limits.floor, bottom, 1) // PAGE) * PAGE
        self.watch_below: int = 2 * limits.headroom + _WATCH_MARGIN
        self._target = start
        self._decided_at = 0.0
        self.is_paced: bool = False
        # When taking memory began, in seconds, and the guest's size then.
        self._paced_from = (0.0, start)
        # When all of the page cache may have been taken; and the size from which page
        # cache is taken, because nothing else is left to take.
        self._gentle_until = limits.gentle
        self._gentle_from = start - self._count_unused(stats or GuestStats())
        self._without_unused = 0  # the size below which the guest gives page cache now
        # Seconds for which its reads are watched at the end.
        has_rereads = limits.rereads != NO_REREAD_LIMITS
        self._watch_for = limits.gentle * _GENTLE_PART if has_rereads else 0.0
        self._watched_since: float | None = None
        self._has_answered = stats is not None
        self.alarms: Alarms = Alarms(limits, stats or GuestStats(), start)
        self._short_at = -math.inf
        self._settled_since: float | None = None
        self._uses = deque[int](maxlen=_ANSWERS)
        self._tolerance = max(_TOLERANCE, limits.headroom // _PRECISION)
        self._smallest_step = self._tolerance
        # A goal at most this far below the guest is what stops it.
        self._near = 4 * self._tolerance
        self.has_baseline: bool = False
        # A baseline is of use only if some limit is compared with it.
        self._needs_baseline = (limits.pressure, limits.rereads) != (
            NO_PRESSURE_LIMITS,
            NO_REREAD_LIMITS,
        )
        # Whether the last target took free memory only.
        self._is_baseline = False

    def begin_anew(self, target: int, seconds: float) -> None:
        """Go on from a target that was set by somebody else, such as ``keep``.

        Args:
            target: Bytes.
            seconds: Seconds since the beginning.
        """
        self._target, self._decided_at = target, seconds
        self._settled_since = None
        self._uses.clear()
        self._gentle_until = seconds + self._limits.gentle
        self._begin_pace(seconds)

    @property
    def step(self) -> float:
        """Bytes by which the target is at most below the guest's size."""
        return self._limits.step

    @property
    def watches(self) -> bool:
        """Whether the guest's reads are still to be watched once it is small enough."""
        return self._watch_for > 0 or self.alarms.working_set.is_suspected

    def decide(self, seen: Observation) -> Decision:
        """Decide by what is known of the guest now."""
        available = seen.stats.reclaimable
        self._leave_out_gap(seen.seconds)
        self.is_paced = False
        self._without_unused = seen.basis - self._count_unused(seen.stats)
        if not self._has_answered:
            if seen.silence > 0 or available is None:
                return self._take(self.bottom, seen)
            self._has_answered = True
            self._gentle_from = self._without_unused
            self.alarms = Alarms(self._limits, seen.stats, self._start)
        alarm = self.alarms.judge(seen)
        if not self.has_baseline and self._is_baseline_over(seen):
            self.has_baseline = True
            self.alarms.end_baseline()
        if alarm.level == "trouble" or available is None:
            self._short_at, self._settled_since = seen.seconds, None
            self._target = self._start
            return Decision("trouble", self._start, alarm.reason, alarm=alarm.kind)
        if alarm.kind == "reads":
            return self._feed(seen, available, alarm)
        pause = self._pause(seen, available, alarm)
        return pause or self._seek_goal(seen, available)

    def _is_baseline_over(self, seen: Observation) -> bool:
        """Return whether the guest has been watched for long enough.

        A guest that does nothing need not be watched for longer than it takes to get
        its free memory.
        """
        if seen.seconds >= BASELINE_PERIOD:
            return True
        has_given = self._is_baseline and seen.actual - self._target < LARGEST_PAGE
        is_due = has_given and seen.seconds >= SHORTEST_BASELINE
        return is_due and self.alarms.is_quiet

    def _pause(
        self, seen: Observation, available: int, alarm: Alarm
    ) -> Decision | None:
        """Decide to take no more for now, or for good, if there is a reason to."""
        if alarm.level == "hold":
            return self._hold(seen, alarm)
        if self.alarms.holds >= _MAX_HOLDS:
            why = "the guest suffers when more is taken"
            return Decision("spent", seen.actual, why)
        is_there = seen.actual - self.bottom < LARGEST_PAGE
        if is_there and self._target == self.bottom and self.watches:
            self._settled_since = self._settled_since or seen.seconds
            return self._wait(seen, "", "reached")
        # In the baseline only free memory is taken, which harms nobody. So the first
        # step after it need not wait for an answer.
        begins = self._is_baseline and self.has_baseline
        if seen.silence > 0 and self._target != self._start and not begins:
            return self._await_answer(seen, available)
        return None

    def _await_answer(self, seen: Observation, available: int) -> Decision:
        """Wait until the effect of the last step is known.

        A guest that reports the same for a while is at rest: its figures need not show
        a few MiB.
        """
        is_near = abs(available - self._limits.headroom) < self._near
        edge = self.alarms.working_set.edge or 0
        is_at_edge = edge > self.bottom and abs(seen.actual - edge) < self._near
        is_at_rest = seen.silence >= _AT_REST and (is_near or is_at_edge)
        if is_at_rest and not self._recovers(seen.seconds):
            self._settled_since = self._settled_since or seen.seconds
        reason = self.alarms.describe_headroom(available)
        if is_at_edge:
            reason = self.alarms.working_set.describe_edge()
        return self._wait(seen, reason)

    def _hold(self, seen: Observation, alarm: Alarm) -> Decision:
        """Take no more until the pressure is over."""
        self._short_at, self._settled_since = seen.seconds, None
        self._target = min(max(self._target, seen.actual, alarm.size), self._start)
        self._begin_pace(seen.seconds)
        mark = "held back" if alarm.begins else None
        return Decision("take", self._target, alarm.reason, mark, alarm.kind)

    def _feed(self, seen: Observation, available: int, alarm: Alarm) -> Decision:
        """Give back some of what the guest reads again, and what it lacks."""
        least = seen.basis - available + self._limits.headroom
        self._settled_since = None
        self._target = min(max(self._target, alarm.size, least), self._start)
        self._begin_pace(seen.seconds)
        mark = "reads again" if alarm.begins else None
        # This is not an alarm: the guest is given what it needs.
        return Decision("take", self._target, alarm.reason, mark)

    def _seek_goal(self, seen: Observation, available: int) -> Decision:
        """Take what a guest without pressure can spare."""
        actual, basis = seen.actual, seen.basis
        increase = self._predict_increase(basis - available)
        spare = available - self._limits.headroom
        if self.alarms.is_short(available) or increase > max(spare, 0) // 2:
            self._short_at = seen.seconds
        goal = basis - spare + increase
        self._is_baseline = self._needs_baseline and not self.has_baseline
        if self._is_baseline and seen.stats.free is not None:
            # Only free memory is taken, so that the balloon causes none of its rates.
            first_goal = max(self.bottom, min(self._without_unused, actual))
            return self._take(max(goal, first_goal), seen)
        edge = self.alarms.working_set.edge or 0
        if edge > max(goal, self.bottom):
            reason = self.alarms.working_set.describe_edge()
            return self._approach(edge, seen, reason)
        if goal > self.bottom:
            reason = self.alarms.describe_headroom(available)
            return self._approach(goal, seen, reason)
        # A balloon that still moves will come nearer to the bottom than this.
        is_near = abs(self.bottom - actual) < LARGEST_PAGE and actual == basis
        if is_near and self._target == self.bottom and not self.watches:
            return Decision("reached", actual)
        return self._take(self.bottom, seen)

    def _predict_increase(self, use: int) -> int:
        """Return the bytes that the guest may allocate before the balloon can deflate.

        This is what it allocated during the last few answers.

        Args:
            use: Bytes that it uses now.
        """
        self._uses.append(use)
        increase = use - self._uses[0]
        return increase if increase >= self._near else 0

    def _approach(self, goal: int, seen: Observation, reason: str) -> Decision:
        """Go to a size above the bottom, at which the guest has all that it needs."""
        actual = seen.actual
        goal = min(goal, self._start)
        lacks = goal - actual
        if lacks >= self._tolerance and self._target <= actual:
            # Too much was taken. A step as small as the last one is not repeated.
            self._smallest_step = min(2 * self._smallest_step, 2 * self._near)
        still_comes = self._target - actual
        has_enough = max(lacks, still_comes) < self._tolerance
        is_there = has_enough and -lacks < self._smallest_step
        if not is_there or self._recovers(seen.seconds):
            stopped_by = reason if goal > actual - self._near else ""
            return self._take(goal, seen, stopped_by)
        if self._settled_since is None:
            self._settled_since = seen.seconds
        return self._wait(seen, reason)

    def _wait(
        self,
        seen: Observation,
        reason: str,
        end: Literal["spent", "reached"] = "spent",
    ) -> Decision:
        """Leave the target as it is; end when the guest has settled for long enough.

        A guest at rest reports the same again and again, which looks like silence. A
        guest that has read again what was taken may do so in its next round.
        """
        if self._settled_since is None:
            return Decision("take", self._target)
        if self._watched_since is None:
            self._watched_since = seen.seconds
        wait = QUIET if self.alarms.working_set.is_suspected else _SETTLED
        self.is_paced = seen.seconds < self._watched_since + self._watch_for
        if self.is_paced or seen.seconds < self._settled_since + wait:
            return Decision("take", self._target, reason)
        return Decision(end, seen.actual, reason)

    def _take(self, goal: int, seen: Observation, reason: str = "") -> Decision:
        """Set the lowest target on the way to a size that step and rate allow now."""
        step = self._limits.step
        by_step = 0 if math.isinf(step) else seen.actual - int(step)
        if self._recovers(seen.seconds):
            by_step = seen.actual
        by_pace = self._compute_pace(goal, seen)
        self.is_paced = by_pace > max(goal, by_step)
        self._settled_since = None
        # If memory was plugged meanwhile, ``actual`` can be above the start.
        self._target = min(max(goal, by_step, by_pace), self._start)
        return Decision("take", self._target, reason)

    def _begin_pace(self, seconds: float) -> None:
        """Begin pacing again, from the present target."""
        self._watched_since = None
        self._paced_from = (seconds, self._target)
        self._gentle_from = self._target
        least = seconds + self._limits.gentle * _GENTLE_PART
        self._gentle_until = max(self._gentle_until, least)

    def _leave_out_gap(self, seconds: float) -> None:
        """Take page cache gently for longer by the time in which nobody decided."""
        gap = seconds - self._decided_at
        self._decided_at = seconds
        self._gentle_until += max(0.0, gap - _MAKES_UP)

    def _compute_pace(self, goal: int, seen: Observation) -> int:
        """Return the smallest size by now for a guest that is on its way to a goal."""
        began, size = self._paced_from
        by_rate = self._keep_pace(size, self._limits.max_rate, seen)
        if seen.seconds >= self._gentle_until:
            return by_rate
        rate = max(0, self._gentle_from - goal) / (self._gentle_until - began)
        by_time = self._keep_pace(self._gentle_from, rate, seen)
        # If the goal has been raised, the pace falls; no memory is given back for that.
        return max(by_rate, min(by_time, self._without_unused, self._target))

    def _keep_pace(self, size: int, rate: float, seen: Observation) -> int:
        """Return the smallest size by now at so many bytes a second.

        A guest that fell behind, or was not looked at, does not catch up at once.
        """
        if math.isinf(rate):
            return 0
        by_time = size - int(rate * (seen.seconds - self._paced_from[0]))
        return max(by_time, seen.actual - max(int(rate * _MAKES_UP), LARGEST_PAGE))

    def _count_unused(self, stats: GuestStats) -> int:
        """Return the bytes that a guest can give without dropping page cache."""
        return max(0, (stats.free or 0) - self._limits.headroom)

    def _recovers(self, seconds: float) -> bool:
        """Return whether the guest began to need memory a moment ago."""
        return seconds < self._short_at + _RECOVERY
