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
from typing import TYPE_CHECKING, Final, Literal

from attrs import field, frozen

from qmpballoon.checks import require_seconds, require_size
from qmpballoon.sizes import GiB, MiB, format_size

if TYPE_CHECKING:
    from attrs import Attribute

    from qmpballoon.balloon.stats import GuestStats

__all__ = ["Binding", "Decision", "Governor", "Guard", "Limits", "Plan", "make_plan"]

Binding = Literal["headroom", "floor", "amount"]
"""Which limit keeps a plan from taking more."""

_SLACK: Final = MiB  # Linux inflates by this much at a time; less is not worth asking
_INFLATE_RATE: Final = 0.95 * GiB  # bytes a second; measured by others, 4 KiB pages
_DEFLATE_RATE: Final = 2.3 * GiB  # likewise


def _optional_size(_: object, attribute: Attribute[int | None], value: object) -> None:
    if value is not None:
        require_size(value, attribute.name)


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
        if not self.max_rate > 0:
            raise ValueError(f"max_rate is {self.max_rate}: it must be above 0 bytes/s")
        if self.step is not None and self.step < _SLACK:
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
            limit = self.headroom if self.binding == "headroom" else self.floor
            return f"nothing to take: {keeps}, and a {self.binding} of {limit} bytes"
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
    target = min(goals[binding], actual)
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
        action: ``"take"`` to set the target, ``"done"`` when no more can be spared,
            ``"stop"`` to give everything back at once.
        target: Bytes, for ``"take"``.
        reason: Why, in words.
    """

    action: Literal["take", "done", "stop"]
    target: int
    reason: str = ""


class Governor:
    """Decides, sample by sample, what to ask of a guest.

    Args:
        limits: What the guest must keep.
        plan: What was to be taken at the beginning.
        stats: What the guest said then.
    """

    def __init__(self, limits: Limits, plan: Plan, stats: GuestStats) -> None:
        self._limits = limits
        self._bottom = max(limits.floor, plan.target if plan.binding == "amount" else 0)
        self._start = plan.actual
        self._target = plan.actual
        self._unanswered = False  # the guest has not answered since the last step
        self._oom_kills = stats.oom_kills
        # A guest that has little available from the start is no emergency of ours.
        self._alarm = min(limits.headroom, plan.available) // 2

    def decide(
        self, seconds: float, actual: int, stats: GuestStats, silence: float
    ) -> Decision:
        """Judge a sample.

        Args:
            seconds: Since the beginning.
            actual: Bytes the guest has.
            stats: What it last said.
            silence: Seconds since it last answered anew.
        """
        trouble = self._trouble(stats, silence)
        if trouble is not None:
            return Decision("stop", self._start, trouble)
        self._unanswered = self._unanswered and silence > 0
        if self._unanswered:  # nothing is known of what the last step did
            return Decision("take", self._target)
        available = stats.reclaimable or 0
        spare = available - self._limits.headroom
        goal = min(max(self._bottom, actual - spare), self._start)
        if abs(goal - actual) < _SLACK and self._target <= actual:
            return Decision("done", actual, self._why_done(goal))
        target = max(goal, self._lowest(seconds, actual))
        self._unanswered = target != self._target
        self._target = target
        return Decision("take", target)

    def _trouble(self, stats: GuestStats, silence: float) -> str | None:
        if silence > self._limits.stale_after:
            return f"the guest has not answered for {silence:.1f} s"
        if stats.oom_kills is not None and stats.oom_kills > (self._oom_kills or 0):
            return "the guest killed a process for want of memory"
        available = stats.reclaimable
        if available is None:
            return "the guest no longer says what it has available"
        if available < self._alarm:
            return (
                f"the guest has only {format_size(available)} available, of a headroom"
                f" of {format_size(self._limits.headroom)}"
            )
        return None

    def _lowest(self, seconds: float, actual: int) -> int:
        """Return how low the step and the rate cap let the target be by now."""
        step, taken = self._limits.step, self._limits.max_rate * seconds
        by_step = 0 if step is None else actual - step
        by_rate = 0 if math.isinf(taken) else self._start - int(taken)
        return max(by_step, by_rate)

    def _why_done(self, goal: int) -> str:
        return "as planned" if goal == self._bottom else "the headroom is reached"
