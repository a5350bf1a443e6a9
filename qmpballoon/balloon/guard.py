"""What a guest must keep, and what to ask of it next.

Pure: samples in, decisions out. :class:`Guard` is what the caller wants,
:class:`Limits` the same as figures for one guest, :class:`Plan` what follows from
them at one moment, and :class:`Governor` steers by them while the balloon moves.

The rules:

1. What can be spared is what the guest has *available*, page cache included, less
   the headroom; and the guest never goes below its floor.
2. The target runs only a step ahead of the balloon. Should the guest begin to
   allocate, no more than that step has still to be taken back.
3. A guest that falls under its headroom gets back what it lacks. One that falls
   under half of it, or has a process killed, or falls silent, gets everything.

A guest's statistics are hints from somebody who may be wrong, or lie. They can
make a guard more careful than it need be; they can never take it below the floor.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, Literal, cast

from attrs import field, frozen

from qmpballoon.balloon.tracker import LARGEST_PAGE, PAGE
from qmpballoon.checks import require_seconds, require_size
from qmpballoon.sizes import GiB, MiB, format_size

if TYPE_CHECKING:
    from attrs import Attribute

    from qmpballoon.balloon.stats import GuestStats

__all__ = ["Binding", "Decision", "Governor", "Guard", "Limits", "Plan", "make_plan"]

Binding = Literal["headroom", "floor", "amount"]
"""Which limit keeps a plan from taking more."""

_UNIT: Final = MiB  # Linux's driver inflates by this much at a time
# An answer is a tick late: who went after the last few of these units would go to
# and fro about the goal for ever.
_SLACK: Final = 4 * _UNIT
_NEAR: Final = 16 * MiB  # bytes; from here on the headroom is what holds a guest up
# A guest that came to need memory may go on to; so long, in seconds, it is let alone.
_RECOVERY: Final = 1.0
# One that allocates passes through its headroom, too; one that stays so long is there.
_STILL: Final = 0.05
_INFLATE_RATE: Final = 0.95 * GiB  # bytes a second; measured by others, 4 KiB pages
_DEFLATE_RATE: Final = 2.3 * GiB  # likewise


def _optional_size(_: object, attribute: Attribute[int | None], value: object) -> None:
    if value is not None:
        require_size(value, attribute.name)


def _check_rate(value: object) -> None:
    if not isinstance(value, int | float):
        raise TypeError(f"max_rate is {value!r}: it must be bytes a second")
    if not value > 0:  # NaN is not, either
        raise ValueError(f"max_rate is {value}: it must be above 0 bytes/s")


@frozen
class Guard:
    """What a guest must keep, and what counts as trouble.

    Attributes:
        headroom: Bytes the guest keeps available. By default 64 MiB and 2 % of its
            RAM: 74 MiB for a guest of 512 MiB, 10.3 GiB for one of 512 GiB.
        floor: Bytes the guest never goes below, whatever it says. By default a
            32nd of its RAM, and at least 64 MiB.
        step: Bytes the target runs ahead of the balloon at most. By default
            128 MiB, or a 256th of the RAM where that is more.
        max_rate: Bytes a second to take at most.
        stale_after: Seconds without an answer after which the guest counts as
            silent.
    """

    headroom: int | None = field(default=None, validator=_optional_size)
    floor: int | None = field(default=None, validator=_optional_size)
    step: int | None = field(default=None, validator=_optional_size)
    max_rate: float = math.inf
    stale_after: float = 3.0

    def __attrs_post_init__(self) -> None:
        """Refuse what makes no sense, before anything is sent."""
        require_seconds(self.stale_after, "stale_after")
        _check_rate(self.max_rate)
        if self.step is not None and self.step < _UNIT:
            raise ValueError(f"step is {self.step}: it must be at least 1 MiB")

    def limits(self, total: int) -> Limits:
        """Return the figures for a guest with so many bytes of RAM."""
        headroom, floor, step = self.headroom, self.floor, self.step
        return Limits(
            headroom=64 * MiB + total // 50 if headroom is None else headroom,
            floor=max(64 * MiB, total // 32) if floor is None else floor,
            step=max(128 * MiB, total // 256) if step is None else step,
            max_rate=self.max_rate,
            stale_after=self.stale_after,
        )


@frozen
class Limits:
    """A guard's figures for one guest; as in :class:`Guard`.

    By default there is no step, no cap on the rate, and silence is no trouble.
    """

    headroom: int
    floor: int
    step: int | None = None
    max_rate: float = math.inf
    stale_after: float = math.inf


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


@frozen
class Decision:
    """What to do next.

    Attributes:
        action: ``"take"`` to set the target; ``"reached"`` and ``"spent"`` when all
            that was wanted, or can be spared, is taken; ``"trouble"`` to give
            everything back at once.
        target: Bytes, for ``"take"`` and ``"trouble"``.
        reason: Why, or what holds the guest up; empty where nothing does.
    """

    action: Literal["take", "reached", "spent", "trouble"]
    target: int
    reason: str = ""


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
        trouble = self._trouble(first, stats, silence)
        if trouble is not None or available is None:
            self._in_need_at, self._there_since = seconds, None
            self._target = self._start
            return Decision("trouble", self._start, trouble or _SAYS_NOTHING)
        if silence > 0 and self._target != self._start:
            # Nothing is known of what the last step did.
            return self._wait(seconds, actual, self._keeps(available))
        usual = min(self._limits.headroom, first.reclaimable or 0)
        if available < usual * 3 // 4:
            self._in_need_at = seconds
        goal = basis - (available - self._limits.headroom)
        if goal > self.bottom:
            return self._approach(goal, seconds, actual, self._keeps(available))
        # Near it is not there: what still moves will come nearer.
        is_near = abs(self.bottom - actual) < LARGEST_PAGE and actual == basis
        if is_near and self._target == self.bottom:
            return Decision("reached", actual)
        return self._take(self.bottom, seconds, actual)

    def _approach(
        self, goal: int, seconds: float, actual: int, reason: str
    ) -> Decision:
        """Go for all that can be spared, which is less than was wanted."""
        goal = min(goal, self._start)
        is_there = max(abs(goal - actual), self._target - actual) < _SLACK
        if not is_there or seconds < self._in_need_at + _RECOVERY:
            held_up = reason if goal > actual - _NEAR else ""
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
        # A guest that has little available from the start is no emergency of ours.
        alarm = min(self._limits.headroom, first.reclaimable or 0) // 2
        if stats.reclaimable is not None and stats.reclaimable < alarm:
            return self._keeps(stats.reclaimable)
        return None

    def _keeps(self, available: int) -> str:
        return (
            f"the guest has {format_size(available)} available, and is to keep"
            f" {format_size(self._limits.headroom)}"
        )


_SAYS_NOTHING: Final = "the guest no longer says what it has available"
