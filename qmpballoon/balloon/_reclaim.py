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

from qmpballoon._checks import (
    require_callback,
    require_kind,
    require_seconds,
    require_size,
)
from qmpballoon.balloon._controller import Governor
from qmpballoon.balloon._diagnosis import OVERRIDDEN
from qmpballoon.balloon._keep import Keeper, keep
from qmpballoon.balloon._shrink import CLEANUP, Squeezed, note_left, rouse, squeeze
from qmpballoon.balloon._tracker import LARGEST_PAGE, StallLimits, Tracker
from qmpballoon.balloon.guard import Guard
from qmpballoon.balloon.plan import Plan, make_plan
from qmpballoon.balloon.runstate import why_stopped
from qmpballoon.balloon.sampling import Sample, Timeline
from qmpballoon.errors import QmpBalloonError, StatsUnavailable
from qmpballoon.monitor import said_of
from qmpballoon.sizes import format_size

if TYPE_CHECKING:
    from collections.abc import Callable

    from qmpballoon.balloon._tracker import Phase
    from qmpballoon.balloon.balloon import Balloon
    from qmpballoon.balloon.guard import Limits
    from qmpballoon.balloon.sampler import Sampler
    from qmpballoon.balloon.stats import GuestStats

__all__ = ["ReclaimOutcome", "ReclaimReport", "Snapshot", "plan", "reclaim"]

ReclaimOutcome = Literal["done", "stopped", "refused"]
"""How a reclaim can end: with what was planned, early for the guest's sake, or
before it began as there was nothing to spare."""

_REASONS: Final = {
    "reached": "all that was to be taken was taken",
    "stalled": "the guest gives no more",
}
_SILENT: Final = 1.5  # seconds without an answer, after which a guest says nothing
_TICK: Final = 0.5  # seconds between two samples while memory is given back


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
        timeline: What was seen in between; the last sample is of ``after``.
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


async def plan(balloon: Balloon, amount: int | None, guard: Guard | None) -> Plan:
    """Tell what a reclaim would take; see :meth:`Balloon.plan_reclaim`."""
    return (await _prepare(balloon, amount, guard))[2]


async def reclaim(
    balloon: Balloon,
    amount: int | None,
    guard: Guard | None,
    *,
    hold: bool,
    keep_for: float | None = None,
    on_progress: Callable[[Sample], None] | None,
) -> ReclaimReport:
    """Take what the guest can spare; see :meth:`Balloon.reclaim` and ``keep``."""
    if keep_for is not None:
        require_seconds(keep_for, "seconds")
    require_callback(on_progress, "on_progress")
    before, limits, planned = await _prepare(balloon, amount, guard)
    requested = planned.amount if amount is None else amount
    if planned.amount == 0:
        return ReclaimReport(
            outcome="refused",
            reason=planned.describe(),
            requested=requested,
            handed_over=0,
            seconds=0.0,
            held=False,
            before=before,
            after=before,
        )
    run = await _Run.begin(balloon, before, on_progress)
    try:
        async with balloon.sampler() as sampler:
            end = await run.take(sampler, limits, amount)
            held = hold and end.ending != "trouble"
            if keep_for is not None and end.ending != "trouble":
                end = await run.keep(sampler, limits, keep_for)
            if held:
                await run.hold(sampler, end)
            else:
                await run.give_back(sampler, end)
        after, stopped = await _look(balloon), await why_stopped(balloon.monitor)
        seconds = balloon.monitor.now() - sampler.start
        run.keep_last(after, seconds)
    except BaseException as error:
        asked = balloon.target
        # If even that fails nothing more can be done, and the caller is told why.
        with balloon.monitor.shield(CLEANUP), suppress(QmpBalloonError):
            # Before anything is asked: a stopped QEMU does it when it goes on.
            await balloon.set_target(run.full)
            asked = run.full
            if (whole := await run.whole()) != run.full:
                await balloon.set_target(whole)
        note_left(error, asked, run.full)
        raise
    return ReclaimReport(
        outcome="stopped" if end.ending == "trouble" else "done",
        reason=run.explain(end, stopped),
        requested=requested,
        handed_over=before.actual - run.lowest,
        seconds=seconds,
        held=held or run.owed >= LARGEST_PAGE,
        before=before,
        after=after,
        timeline=run.timeline,
    )


async def _prepare(
    balloon: Balloon, amount: int | None, guard: Guard | None
) -> tuple[Snapshot, Limits, Plan]:
    """Look at the guest, and make a plan from what it says now."""
    if amount is not None:
        require_size(amount, "amount", minimum=1)
    require_kind(guard, Guard, "guard")
    info = await balloon.query()
    stats = await balloon.refresh_stats()
    limits = (guard or Guard()).limits(info.total or info.actual)
    planned = make_plan(limits, info.actual, stats, amount)
    if planned is None:
        why = (
            "the guest's driver does not report free or available memory: nothing"
            " can be taken safely; use resize with a target of your own"
        )
        raise StatsUnavailable(said_of(balloon.monitor, why))
    return Snapshot(stats, info.actual, balloon.resident()), limits, planned


async def _look(balloon: Balloon) -> Snapshot:
    """Look at guest and host in the end; a silent guest's last answer will do."""
    try:
        stats = await balloon.refresh_stats()
    except StatsUnavailable:
        stats = await balloon.stats()
    return Snapshot(stats, await balloon.actual(), balloon.resident())


@define
class _Run:
    """One reclaim on its way.

    Attributes:
        full: Bytes the guest is to have when it gets everything back.
        ram: Bytes of the VM's RAM at the beginning, where that is known.
        actual: Bytes the guest has.
        lowest: The least it had.
        owed: Bytes that were given back and that it has not taken yet.
        overridden: It went elsewhere with them.
    """

    balloon: Balloon
    before: Snapshot
    on_progress: Callable[[Sample], None] | None
    full: int
    ram: int | None
    actual: int
    lowest: int
    owed: int = 0
    overridden: bool = False
    timeline: Timeline = field(factory=Timeline)

    @classmethod
    async def begin(
        cls,
        balloon: Balloon,
        before: Snapshot,
        on_progress: Callable[[Sample], None] | None,
    ) -> _Run:
        """Note what the guest has, and was to have."""
        actual, ram = before.actual, (await balloon.query()).total
        # It may be about to grow: then it is to have that in the end.
        full = max(actual, min(balloon.target or 0, ram or 0))
        return cls(balloon, before, on_progress, full, ram, actual, lowest=actual)

    async def take(
        self, sampler: Sampler, limits: Limits, amount: int | None
    ) -> Squeezed:
        """Inflate as far as the governor allows."""
        start = self.before.actual
        bottom = 0 if amount is None else start - amount
        governor = Governor(limits, start, bottom, self.before.stats)
        now = self.balloon.monitor.now()
        tracker = Tracker(governor.bottom, start, now, _pace(limits))
        return await squeeze(self.balloon, sampler, governor, tracker, self._keep)

    async def keep(self, sampler: Sampler, limits: Limits, seconds: float) -> Squeezed:
        """Keep what was taken for so long, or until the guest needs it."""
        balloon = self.balloon
        await balloon.set_target(self.actual)
        keeper = Keeper(limits, self.full, self.actual, sampler.stats)
        why = await keep(balloon, sampler, keeper, seconds, self._keep)
        return Squeezed("given-back", why)

    async def hold(self, sampler: Sampler, end: Squeezed) -> None:
        """Leave the guest at the size that it has come to."""
        await self.balloon.set_target(self.actual)
        self._keep(await sampler.take(end.ending))

    async def give_back(self, sampler: Sampler, end: Squeezed) -> None:
        """Let the guest have all it had, and wait until it does."""
        monitor, full = self.balloon.monitor, await self.whole()
        await self.balloon.set_target(full)
        tracker = Tracker(full, self.actual, monitor.now())
        mark: str | None = end.ending
        roused = False
        while True:
            sample = await sampler.take(mark)
            mark = None
            self._keep(sample)
            self.owed = max(0, full - self.actual)
            phase = tracker.observe(monitor.now(), sample.actual)
            # One that says it has more than QEMU knows of was restarted meanwhile.
            has_more = sampler.silence < _SILENT and (sample.total or 0) > self.actual
            if phase == "stalled" and has_more and not roused:
                roused = True
                await rouse(self.balloon, full, self.actual)
                continue
            if phase in ("reached", "stalled"):
                # A guest that is well takes all that it is given.
                is_well = sampler.silence < _SILENT
                self.overridden = is_well and (tracker.strayed or tracker.stopped)
                return
            left = tracker.time_left
            await monitor.sleep(min(_TICK, math.inf if left is None else left))

    def explain(self, end: Squeezed, stopped: str | None) -> str:
        """Say why it ended, and what came of giving back if that is not plain."""
        reason = end.reason or _REASONS[end.ending]
        if stopped is not None:
            reason += f"; {stopped}"
        if self.owed < LARGEST_PAGE:
            return reason
        reason += f"; it has yet to take {format_size(self.owed)} back"
        return f"{reason}: {OVERRIDDEN}" if self.overridden else reason

    async def whole(self) -> int:
        """Return what the guest is to have: memory plugged meanwhile is its own."""
        ram = (await self.balloon.query()).total
        plugged = 0 if ram is None or self.ram is None else ram - self.ram
        return self.full + max(0, plugged)

    def keep_last(self, after: Snapshot, seconds: float) -> None:
        """End with what the guest says once all is done, not a moment before."""
        target, actual, resident = self.balloon.target, after.actual, after.resident
        self._keep(
            Sample.of(
                seconds, after.stats, target=target, actual=actual, resident=resident
            )
        )

    def _keep(self, sample: Sample, _: Phase | None = None) -> None:
        self.actual = sample.actual
        self.lowest = min(self.lowest, sample.actual)
        self.timeline.add(sample)
        if self.on_progress is not None:
            self.on_progress(sample)


def _pace(limits: Limits) -> StallLimits:
    """Return what counts as a stall where the rate is capped."""
    rate = min(StallLimits().rate, limits.max_rate / 4)
    # A slow cap is a page now and then.
    return StallLimits(rate, max(StallLimits().window, LARGEST_PAGE / rate))
