"""Taking what a guest can spare, giving it back, and reporting the result.

What can be taken is planned first: see :mod:`qmpballoon.balloon._plan`. The balloon
then inflates step by step. :func:`~qmpballoon.balloon._shrink.shrink` is that loop, and
a :class:`~qmpballoon.balloon._controller.Controller` decides on each step.
The report proves the result: it has the state of guest and host before and after.
"""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Final

from attrs import asdict, define, evolve, field, frozen

from qmpballoon._checks import (
    require_callback,
    require_seconds,
    require_size,
)
from qmpballoon.balloon._controller import Controller
from qmpballoon.balloon._keep import Keeper, keep
from qmpballoon.balloon._plan import check_request, prepare
from qmpballoon.balloon._rereads import RereadMeter
from qmpballoon.balloon._shrink import (
    choose_safe_size,
    follow,
    leave_safe,
    make_progress,
    prompt_size_report,
    shrink,
)
from qmpballoon.balloon._tracker import Tracker, compute_stall_limits
from qmpballoon.balloon.device import (
    LARGEST_PAGE,
    describe_small,
    lacks_ram,
)
from qmpballoon.balloon.results import OVERRIDDEN, Ending, Plan
from qmpballoon.balloon.sampling import (
    KEPT,
    Sample,
    Snapshot,
    Timeline,
    open_sampler,
    refresh_stats,
)
from qmpballoon.errors import StatsUnavailable, UnsafeTarget
from qmpballoon.monitor import make_error
from qmpballoon.sizes import format_size

if TYPE_CHECKING:
    from collections.abc import Callable

    from qmpballoon.balloon.device import Device
    from qmpballoon.balloon.guard import Guard, GuestLimits
    from qmpballoon.balloon.results import (
        Phase,
        ReadRates,
        ReclaimOutcome,
        Stage,
    )
    from qmpballoon.balloon.sampling import Progress, Sampler

__all__ = ["ReclaimReport", "reclaim"]

_REASONS: Final = {
    "reached": "all that was to be taken was taken",
    "stalled": "the guest gives no more",
}
# Seconds without an answer after which a guest that takes back no more memory is not
# well. A guest that hung while it took the last of it has been silent for longer when
# the stall is noticed.
_SILENT: Final = 4.0
_TICK: Final = 0.5  # seconds between two samples while memory is given back
# Seconds until ``keep`` tries whether a guest still needs what it has read again. The
# time doubles with each try. A try can make the guest read its working set from the
# disk once more, which takes some seconds: a hundredth of the time.
_TRY_AFTER: Final = 300.0


@frozen
class ReclaimReport:
    """The result of a reclaim; sizes are bytes.

    Attributes:
        outcome: How it ended.
        reason: Why, in words.
        requested: What the reclaim was to take.
        handed_over: The most that the guest had given up at any time.
        seconds: Seconds it took, giving back included.
        held: Whether the guest is still without that memory.
        before: Guest and host before.
        after: Guest and host after; the memory is given back unless it is held.
        timeline: The samples in between; the last one is of ``after``.
        given_back_to: The size that the guest was given back; ``None`` if its memory
            is held, or if nothing was taken.
        ram: Bytes of the VM's RAM, if that is known. A guest that was found with less,
            and was not owed the rest, gets back only what it was found with; ``reason``
            says so.
        reads: How fast the VM reads from its disks; ``None`` if it has no disk.
        reread: At most how many bytes of page cache the guest lost and has read again;
            ``None`` if the VM has no disk. What it reads later is not known.
    """

    outcome: ReclaimOutcome
    reason: str
    requested: int
    handed_over: int
    seconds: float
    held: bool
    before: Snapshot = field(repr=False)
    after: Snapshot = field(repr=False)
    timeline: Timeline = field(factory=Timeline, hash=False)
    given_back_to: int | None = None
    ram: int | None = None
    reads: ReadRates | None = None
    reread: int | None = None

    @property
    def leaves_small(self) -> bool:
        """Whether the guest was given back a size that is less than all its RAM."""
        if self.given_back_to is None:
            return False
        return lacks_ram(self.given_back_to, self.ram)

    def to_json(self) -> dict[str, object]:
        """Return it as the command prints it: bytes and seconds."""
        return {
            "outcome": self.outcome,
            "reason": self.reason,
            "requested": self.requested,
            "handed_over": self.handed_over,
            "seconds": self.seconds,
            "held": self.held,
            "given_back_to": self.given_back_to,
            "ram": self.ram,
            "reads": None if self.reads is None else asdict(self.reads),
            "reread": self.reread,
            "before": self.before.to_json(),
            "after": self.after.to_json(),
            "timeline": self.timeline.to_json(),
        }


async def reclaim(
    device: Device,
    amount: int | None,
    guard: Guard | None,
    *,
    hold: bool,
    keep_for: float | None = None,
    until: Callable[[], bool] | None = None,
    give_back_to: int | None = None,
    on_progress: Callable[[Progress], None] | None,
) -> ReclaimReport:
    """Take what the guest can spare; see :meth:`Balloon.reclaim` and ``keep``."""
    check_request(amount, guard)
    _check_end(hold=hold, keep_for=keep_for, until=until, give_back_to=give_back_to)
    require_callback(on_progress, "on_progress")
    device.require_unheld()
    is_owed = await _give_due(device, give_back_to)
    before, limits, planned = await prepare(device, amount, guard)
    requested = planned.amount if amount is None else amount
    if planned.amount == 0:
        return await _refuse(device, before, planned, requested, is_owed=is_owed)
    run = await _Run.begin(
        device, limits, before, planned, on_progress, is_owed=is_owed
    )
    controller = run.make_controller(amount)
    device.log(logging.INFO, f"reclaim begins: {planned.describe()}")
    try:
        device.note_owed(run.full, is_held=True)
    except BaseException:  # Ctrl-C, or somebody else has begun: nothing was taken
        device.release_owed()
        raise
    try:
        report = await run.carry_out(
            controller, requested, hold=hold, keep_for=keep_for, until=until
        )
    except BaseException as error:
        await run.leave_safe(error)
        raise
    if report.given_back_to is None or run.owed < LARGEST_PAGE:
        device.settle_owed()
    device.release_owed()
    _log_end(device, report)
    return report


async def _refuse(
    device: Device, before: Snapshot, planned: Plan, requested: int, *, is_owed: bool
) -> ReclaimReport:
    """Report that the guest can spare nothing."""
    ram = (await device.query()).total
    reason = planned.describe() + _describe_size(before.actual, ram, is_owed=is_owed)
    device.log(logging.INFO, f"reclaim refused: {reason}")
    if (device.read_owed() or 0) - before.actual < LARGEST_PAGE:
        device.settle_owed()
    return ReclaimReport(
        outcome="refused",
        reason=reason,
        requested=requested,
        handed_over=0,
        seconds=0.0,
        held=False,
        before=before,
        after=before,
        ram=ram,
    )


def _log_end(device: Device, report: ReclaimReport) -> None:
    level = logging.INFO if report.outcome == "done" else logging.WARNING
    given = format_size(report.handed_over)
    held = ", and it is held" if report.held else ""
    device.log(
        level,
        f"reclaim {report.outcome}: the guest gave {given} in {report.seconds:.1f} s"
        f"{held}; {report.reason}",
    )


def _check_end(
    *,
    hold: bool,
    keep_for: float | None,
    until: Callable[[], bool] | None,
    give_back_to: int | None,
) -> None:
    """Check the arguments that say when, and to which size, memory is given back."""
    if keep_for is not None:
        require_seconds(keep_for, "seconds")
    require_callback(until, "until")
    if give_back_to is not None:
        require_size(give_back_to, "give_back_to", minimum=1)
        if hold:
            raise ValueError("give_back_to and hold: a guest gets back, or does not")


async def _give_due(device: Device, size: int | None) -> bool:
    """Give the guest the size that it should have at the end, if it has less now.

    Args:
        device: The balloon.
        size: Bytes; ``None``: what an interrupted run owes it, if anything.

    Returns:
        Whether the guest was given memory that an interrupted run owed it.

    Raises:
        UnsafeTarget: The guest has more now; nothing was sent.
    """
    info, owed = await device.query(), device.read_owed()
    if size is not None and size < info.actual:
        why = (
            f"it is to have {format_size(size)} at the end, and has"
            f" {format_size(info.actual)}: use resize to make it smaller for good"
        )
        raise make_error(UnsafeTarget, device.monitor, why)
    due = owed if size is None else size
    due = min(due or 0, info.total or due or 0)
    if due - info.actual < LARGEST_PAGE:
        return False
    device.log(
        logging.INFO,
        f"the guest has {format_size(info.actual)}, and first gets {format_size(due)}",
    )
    await device.send_target(due)
    await follow(device, Tracker(due, info.actual, device.monitor.now()))
    return size is None


def _describe_size(full: int, ram: int | None, *, is_owed: bool) -> str:
    """Say which size a guest is left with, unless it is simply all of its RAM.

    Args:
        full: Bytes that it has at the end.
        ram: Bytes of its RAM, if that is known.
        is_owed: Whether an interrupted run owed it that.
    """
    if is_owed:
        size = format_size(full)
        return f"; it has {size} again, which a run that was interrupted owed it"
    if ram is None or not lacks_ram(full, ram):
        return ""
    return f"; it {describe_small(full, ram, 'as it was found')}"


async def _take_snapshot(device: Device) -> Snapshot:
    """Record guest and host; if the guest does not answer, with its last answer."""
    try:
        stats = await refresh_stats(device)
    except StatsUnavailable:
        stats = await device.stats()
    return Snapshot(stats, await device.actual(), device.resident())


@define
class _Run:
    """One reclaim under way.

    Attributes:
        device: The balloon.
        limits: What the guest must keep.
        before: Guest and host at the beginning.
        on_progress: Called with each sample.
        stage: What is done with the balloon.
        goal: Bytes that the guest should have at the end of the stage.
        tracker: Follows it there.
        keep_until: When memory that is kept is given back at the latest, in seconds of
            the monitor's clock.
        full: Bytes that the guest has once it has got everything back.
        is_owed: Whether an interrupted run owed it that size.
        ram: Bytes of the VM's RAM at the beginning, if that is known.
        actual: Bytes the guest has.
        lowest: The smallest size it had, in bytes.
        owed: Bytes that it was given back and has not taken yet.
        overridden: Whether its balloon moved away from the target instead.
        timeline: All samples.
        taken: Whether taking memory from the guest has ended.
        rereads: Measures what the guest reads again.
        controller: Decides how much is taken, and knows when the baseline ends.
    """

    device: Device
    limits: GuestLimits
    before: Snapshot
    on_progress: Callable[[Progress], None] | None
    goal: int
    tracker: Tracker
    full: int
    ram: int | None
    actual: int
    lowest: int
    is_owed: bool = False
    owed: int = 0
    overridden: bool = False
    stage: Stage = "inflating"
    keep_until: float = math.inf
    timeline: Timeline = field(factory=Timeline)
    taken: bool = False
    rereads: RereadMeter = field(factory=RereadMeter)
    controller: Controller | None = None

    @classmethod
    async def begin(
        cls,
        device: Device,
        limits: GuestLimits,
        before: Snapshot,
        planned: Plan,
        on_progress: Callable[[Progress], None] | None,
        *,
        is_owed: bool,
    ) -> _Run:
        """Note what the guest has, and what it should have at the end."""
        actual, ram = before.actual, (await device.query()).total
        # A guest that is growing to a target should have that size at the end.
        full = max(actual, min(device.target or 0, ram or 0))
        goal = planned.target
        return cls(
            device,
            limits,
            before,
            on_progress,
            goal=goal,
            tracker=Tracker(goal, actual, device.monitor.now()),
            full=full,
            is_owed=is_owed,
            ram=ram,
            actual=actual,
            lowest=actual,
        )

    def make_controller(self, amount: int | None) -> Controller:
        """Make a controller that takes an amount, or all that can be spared."""
        start = self.before.actual
        bottom = 0 if amount is None else start - amount
        return Controller(self.limits, start, bottom, self.before.stats)

    async def carry_out(
        self,
        controller: Controller,
        requested: int,
        *,
        hold: bool,
        keep_for: float | None,
        until: Callable[[], bool] | None,
    ) -> ReclaimReport:
        """Take memory, keep it if that is wanted, then hold it or give it back."""
        device = self.device
        async with open_sampler(device) as sampler:
            end = await self.take(sampler, controller, until)
            # Memory that is held is not watched. So if anything is wrong with the
            # guest, it gets the memory back.
            stopped_early = end.kind == "trouble" or (hold and end.alarm is not None)
            held = hold and not stopped_early
            if keep_for is not None and not stopped_early:
                end = await self.keep(sampler, controller, keep_for, until)
            if held:
                await self.hold(sampler, end)
            else:
                await self.give_back(sampler, end)
            after = self.recall(sampler) if held else None
        after = after or await _take_snapshot(device)
        stopped = await device.why_stopped()
        seconds = device.monitor.now() - sampler.start
        self.add_last(after, seconds, await sampler.count_reads())
        return ReclaimReport(
            outcome="stopped" if stopped_early else "done",
            reason=self.explain(end, stopped),
            requested=requested,
            handed_over=self.before.actual - self.lowest,
            seconds=seconds,
            held=held or self.owed >= LARGEST_PAGE,
            before=self.before,
            after=after,
            given_back_to=None if held else self.full,
            ram=self.ram,
            timeline=self.timeline,
            reads=self.rereads.rates,
            reread=self.rereads.reread,
        )

    async def take(
        self,
        sampler: Sampler,
        controller: Controller,
        until: Callable[[], bool] | None,
    ) -> Ending:
        """Inflate as far as the controller allows, or until it is to end."""
        now = self.device.monitor.now()
        self.controller = controller
        self.tracker = tracker = Tracker(
            controller.bottom,
            self.actual,
            now,
            compute_stall_limits(self.limits.max_rate),
        )
        end = await shrink(
            self.device,
            sampler,
            controller,
            tracker,
            self._add_sample,
            timeout=self.keep_until - now,
            until=until,
        )
        self.taken = True
        return end

    async def keep(
        self,
        sampler: Sampler,
        controller: Controller,
        seconds: float,
        until: Callable[[], bool] | None,
    ) -> Ending:
        """Keep what was taken, until the guest needs it or the time is over."""
        device, began = self.device, self.device.monitor.now()
        alarms, working_set = controller.alarms, controller.alarms.working_set
        self.stage, self.keep_until = "keeping", began + seconds
        mark: str | None = KEPT
        wait = _TRY_AFTER
        while True:
            now = device.monitor.now()
            self.goal = self.actual
            self.tracker = Tracker(self.actual, self.actual, now)
            await device.send_target(self.actual)
            alarms.begin_anew(sampler.stats)
            try_at = now - sampler.start + wait if working_set.was_found else math.inf
            keeper = Keeper(self.limits, self.full, self.actual, alarms, try_at)
            why = await keep(
                device,
                sampler,
                keeper,
                seconds,
                self._add_sample,
                began=began,
                until=until,
                mark=mark,
            )
            if why is not None:
                return Ending("given-back", why)
            if not keeper.has_fed:
                wait *= 2  # a try begins: the next one comes later
            controller.begin_anew(keeper.target, device.monitor.now() - sampler.start)
            end = await self.take(sampler, controller, until)
            if end.kind == "trouble":
                now = device.monitor.now()
                why = f"kept for {now - began:.0f} s: {end.reason}"
                return Ending("given-back", why)
            mark = None

    async def hold(self, sampler: Sampler, end: Ending) -> None:
        """Leave the guest at the size that it has reached, and give it its headroom."""
        headroom, stats = self.limits.headroom, sampler.stats
        await self.device.send_target(
            choose_safe_size(self.actual, self.full, headroom, stats, end.alarm)
        )
        self._add_sample(await sampler.take(end.kind))

    def recall(self, sampler: Sampler) -> Snapshot | None:
        """Return guest and host as last sampled, if nothing can have changed since.

        All answers of a guest at rest are the same, so it takes long to see that one is
        new. The last sample serves as well.
        """
        if sampler.basis != self.actual or sampler.silence > _TICK:
            return None
        return Snapshot(sampler.stats, self.actual, self.device.resident())

    async def give_back(self, sampler: Sampler, end: Ending) -> None:
        """Give the guest all that it had, and wait until it has taken it."""
        monitor, full = self.device.monitor, await self.measure_full()
        await self.device.send_target(full)
        self.stage, self.goal = "deflating", full
        self.tracker = tracker = Tracker(full, self.actual, monitor.now())
        mark: str | None = end.kind
        prompted = False
        while True:
            sample = await sampler.take(mark)
            mark = None
            self._add_sample(sample)
            self.owed = max(0, full - self.actual)
            phase = tracker.observe(monitor.now(), sample.actual)
            answers = sampler.silence < _SILENT
            # A guest that reports more memory than QEMU does was restarted meanwhile.
            has_more = answers and (sample.total or 0) > self.actual
            if phase == "stalled" and has_more and not prompted:
                prompted = True
                await prompt_size_report(self.device, full, self.actual)
                continue
            if phase in ("reached", "stalled"):
                # A healthy guest takes all that it is given, unless another client
                # has set a target.
                self.overridden = answers and (tracker.strayed or tracker.stopped)
                return
            left = tracker.time_left
            await monitor.sleep(min(_TICK, math.inf if left is None else left))

    def explain(self, end: Ending, stopped: str | None) -> str:
        """Return why it ended, and what is still owed to the guest.

        Args:
            end: How taking the memory ended.
            stopped: Why the VM does not run; ``None`` if it does.
        """
        reason = end.reason or _REASONS[end.kind]
        if stopped is not None:
            reason += f"; {stopped}"
        if self.owed < LARGEST_PAGE:
            if self.stage == "inflating":  # it is held
                return reason
            return reason + _describe_size(self.full, self.ram, is_owed=self.is_owed)
        reason += f"; it has yet to take {format_size(self.owed)} back"
        return f"{reason}: {OVERRIDDEN}" if self.overridden else reason

    async def leave_safe(self, error: BaseException) -> None:
        """Ask for the guest's memory back, because the call ends by an exception."""
        device = self.device
        try:
            await leave_safe(device, self.full, error, self.measure_full)
        finally:
            # Giving back takes time, and the next run has to know what the guest will
            # have.
            device.note_owed(self.full, is_returning=device.target is not None)
            device.release_owed()

    async def measure_full(self) -> int:
        """Return what the guest should have, with memory that was plugged meanwhile."""
        ram = (await self.device.query()).total
        plugged = 0 if ram is None or self.ram is None else ram - self.ram
        return self.full + max(0, plugged)

    def add_last(self, after: Snapshot, seconds: float, reads: int | None) -> None:
        """Add the last sample: the state at the end."""
        self._add_sample(
            Sample.of(
                seconds,
                after.stats,
                target=self.device.target,
                actual=after.actual,
                resident=after.resident,
                disk_reads=reads,
            )
        )

    def _add_sample(self, sample: Sample, _: Phase | None = None) -> None:
        self.actual = sample.actual
        self.lowest = min(self.lowest, sample.actual)
        self.timeline.add(sample)
        if self.controller is not None and self.controller.has_baseline:
            self.rereads.end_baseline()
        self.rereads.observe(sample, taking=not self.taken)
        if self.on_progress is not None:
            self.on_progress(self._describe_progress(sample))

    def _describe_progress(self, sample: Sample) -> Progress:
        """Return the progress of the call."""
        if self.stage != "keeping":
            return make_progress(self.tracker, self.stage, sample, target=self.goal)
        # What the guest needed and got back meanwhile, it keeps.
        goal = max(self.goal, self.device.target or 0)
        left = max(0.0, self.keep_until - self.device.monitor.now())
        progress = make_progress(self.tracker, "keeping", sample, target=goal)
        return evolve(progress, time_left=None if math.isinf(left) else left)
