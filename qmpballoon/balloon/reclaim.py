"""Taking what a guest can spare, giving it back, and proving what came of it.

The loop here takes a sample, has :mod:`~qmpballoon.balloon.guard` judge it, and
sets the target it is told; many times a second while the balloon moves. What the
guest and the host looked like before and after goes into a report.
"""

from __future__ import annotations

import math
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Literal

from attrs import define, field, frozen

from qmpballoon.balloon.guard import Governor, Guard, Limits, Plan, make_plan
from qmpballoon.balloon.squeeze import squeeze
from qmpballoon.balloon.timeline import Timeline
from qmpballoon.balloon.tracker import StallLimits, Tracker
from qmpballoon.checks import require_size
from qmpballoon.errors import MonitorError, StatsUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable

    from qmpballoon.balloon.device import Balloon
    from qmpballoon.balloon.sampler import Sampler
    from qmpballoon.balloon.squeeze import Squeezed
    from qmpballoon.balloon.stats import GuestStats
    from qmpballoon.balloon.timeline import Sample
    from qmpballoon.balloon.tracker import Phase

__all__ = ["ReclaimOutcome", "ReclaimReport", "Snapshot", "plan", "reclaim"]

ReclaimOutcome = Literal["done", "stopped", "refused"]
"""How a reclaim can end: with what was planned, early for the guest's sake, or
before it began as there was nothing to spare."""

CLEANUP: Final = 5.0
"""Seconds for giving the memory back when something went wrong."""

_REASONS: Final = {
    "reached": "all that was to be taken was taken",
    "stalled": "the guest gives no more",
}
_TICK: Final = 0.1  # seconds between two samples while memory is given back


@frozen
class Snapshot:
    """Guest and host at one moment.

    Attributes:
        stats: What the guest said of its memory.
        actual: Bytes the guest had.
        resident: Bytes of host memory QEMU held; ``None`` if that is not known.
    """

    stats: GuestStats
    actual: int
    resident: int | None

    def to_json(self) -> dict[str, object]:
        """Return it as the command prints it."""
        return {
            "stats": self.stats.to_json(),
            "actual": self.actual,
            "resident": self.resident,
        }


@frozen
class ReclaimReport:
    """What came of a reclaim; sizes in bytes.

    Attributes:
        outcome: How it ended.
        reason: Why, in words.
        requested: What was to be taken.
        handed_over: What the guest gave up at most.
        seconds: How long it took, giving back included.
        held: Whether the guest is still without that memory.
        before: Guest and host before.
        after: Guest and host after, the memory given back unless it is held.
        timeline: What was seen in between.
    """

    outcome: ReclaimOutcome
    reason: str
    requested: int
    handed_over: int
    seconds: float
    held: bool
    before: Snapshot
    after: Snapshot
    timeline: Timeline = field(factory=Timeline)

    def to_json(self) -> dict[str, object]:
        """Return it as the command prints it: bytes and seconds."""
        return {
            "outcome": self.outcome,
            "reason": self.reason,
            "requested": self.requested,
            "handed_over": self.handed_over,
            "seconds": self.seconds,
            "held": self.held,
            "before": self.before.to_json(),
            "after": self.after.to_json(),
            "timeline": self.timeline.to_json(),
        }


async def plan(balloon: Balloon, amount: int | None, guard: Guard) -> Plan:
    """Tell what a reclaim would take; see :meth:`Balloon.plan_reclaim`."""
    return (await _prepare(balloon, amount, guard))[2]


async def reclaim(
    balloon: Balloon,
    amount: int | None,
    guard: Guard,
    *,
    hold: bool,
    on_progress: Callable[[Sample], None] | None,
) -> ReclaimReport:
    """Take what the guest can spare; see :meth:`Balloon.reclaim`."""
    before, limits, planned = await _prepare(balloon, amount, guard)
    if planned.amount == 0:
        return ReclaimReport(
            outcome="refused",
            reason=planned.describe(),
            requested=amount or 0,
            handed_over=0,
            seconds=0.0,
            held=False,
            before=before,
            after=before,
        )
    run = _Run(balloon, Governor(limits, planned, before.stats), before, on_progress)
    try:
        async with balloon.sampler() as sampler:
            end = await run.take(sampler, limits)
            held = hold and end.ending != "trouble"
            if held:
                await balloon.set_target(run.timeline[-1].actual)
            else:
                await run.give_back(sampler)
        stats = await _last_words(balloon)
    except BaseException:
        # Without the monitor nothing more can be done, and the caller is told.
        with balloon.monitor.shield(CLEANUP), suppress(MonitorError):
            await balloon.set_target(before.actual)
        raise
    return ReclaimReport(
        outcome="stopped" if end.ending == "trouble" else "done",
        reason=end.reason or _REASONS[end.ending],
        requested=planned.amount if amount is None else amount,
        handed_over=before.actual - min(sample.actual for sample in run.timeline),
        seconds=balloon.monitor.now() - sampler.start,
        held=held,
        before=before,
        after=Snapshot(stats, await balloon.actual(), balloon.resident()),
        timeline=run.timeline,
    )


async def _prepare(
    balloon: Balloon, amount: int | None, guard: Guard
) -> tuple[Snapshot, Limits, Plan]:
    """Look at the guest, and make a plan from what it says now."""
    if amount is not None:
        require_size(amount, "amount", minimum=1)
    info = await balloon.query()
    stats = await balloon.refresh_stats()
    limits = guard.limits(info.total or info.actual)
    planned = make_plan(limits, info.actual, stats, amount)
    if planned is None:
        raise StatsUnavailable(
            "the guest's driver does not report free or available memory: nothing"
            " can be taken safely; use resize with a target of your own"
        )
    return Snapshot(stats, info.actual, balloon.resident()), limits, planned


async def _last_words(balloon: Balloon) -> GuestStats:
    """Have the guest say how it is in the end; its last answer if it is silent."""
    try:
        return await balloon.refresh_stats()
    except StatsUnavailable:
        return await balloon.stats()


@define
class _Run:
    """One reclaim on its way."""

    balloon: Balloon
    governor: Governor
    before: Snapshot
    on_progress: Callable[[Sample], None] | None
    timeline: Timeline = field(factory=Timeline)

    async def take(self, sampler: Sampler, limits: Limits) -> Squeezed:
        """Inflate as far as the governor allows."""
        pace = StallLimits(rate=min(StallLimits().rate, limits.max_rate / 4))
        now = self.balloon.monitor.now()
        tracker = Tracker(self.governor.bottom, self.before.actual, now, pace)
        keep = self._keep
        return await squeeze(self.balloon, sampler, self.governor, tracker, keep)

    async def give_back(self, sampler: Sampler) -> None:
        """Let the guest have all it had, and wait until it does."""
        monitor = self.balloon.monitor
        await self.balloon.set_target(self.before.actual)
        tracker = Tracker(self.before.actual, self.timeline[-1].actual, monitor.now())
        while True:
            sample = await sampler.take()
            self._keep(sample)
            if tracker.observe(monitor.now(), sample.actual) in ("reached", "stalled"):
                return
            left = tracker.time_left
            await monitor.sleep(min(_TICK, math.inf if left is None else left))

    def _keep(self, sample: Sample, _: Phase | None = None) -> None:
        self.timeline.add(sample)
        if self.on_progress is not None:
            self.on_progress(sample)
