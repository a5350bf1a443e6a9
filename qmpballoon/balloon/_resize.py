"""Bringing a balloon to a size, and reporting the result.

The size is polled. ``BALLOON_CHANGE`` events would not do: QEMU sends at most one a
second, so the last one may come a second late.

A shrinking guest is watched as in a reclaim, with the same alarms, but by default with
a smaller headroom. Otherwise a target that the guest cannot reach would press on it
until it kills processes or panics, before a stall would be noticed. A guest in trouble
gets back all that it had at the beginning. When it is well, it is asked again; if that
achieves nothing, the balloon has stalled. A guest that has not reported anything yet is
asked for the target, one step at a time.

A balloon inflates for as long as its target is not reached. So however the call ends,
the target that it leaves set is one that the guest has reached, or a larger one.
"""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, get_args

from attrs import define, evolve

from qmpballoon._checks import (
    LARGEST_SIZE,
    require_callback,
    require_flag,
    require_kind,
    require_seconds,
    require_size,
)
from qmpballoon.balloon._controller import Controller
from qmpballoon.balloon._diagnosis import (
    explain,
    gather,
    suspect_inhibition,
    suspect_old_size,
)
from qmpballoon.balloon._shrink import (
    choose_safe_size,
    follow,
    leave_safe,
    make_progress,
    prompt_size_report,
    shrink,
)
from qmpballoon.balloon._tracker import StallLimits, Tracker, compute_stall_limits
from qmpballoon.balloon.device import PAGE
from qmpballoon.balloon.guard import RESIZE_GUARD, Guard
from qmpballoon.balloon.results import OnStall, ResizeResult
from qmpballoon.balloon.sampling import Sample, open_sampler
from qmpballoon.errors import BalloonStalled, BalloonTimeout, UnsafeTarget
from qmpballoon.monitor import make_error
from qmpballoon.sizes import format_size

if TYPE_CHECKING:
    from collections.abc import Callable

    from qmpballoon.balloon._diagnosis import Evidence
    from qmpballoon.balloon.device import Device
    from qmpballoon.balloon.guard import GuestLimits
    from qmpballoon.balloon.results import (
        AlarmKind,
        Diagnosis,
        Ending,
        Outcome,
        Stage,
    )
    from qmpballoon.balloon.sampling import Progress

__all__ = ["resize"]


async def resize(
    device: Device,
    target: int,
    *,
    timeout: float,
    on_stall: OnStall,
    guard: Guard | None,
    unguarded: bool,
    on_progress: Callable[[Progress], None] | None,
    limits: StallLimits | None,
) -> ResizeResult:
    """Bring the guest to a size; see :meth:`Balloon.resize`."""
    require_size(target, "target", minimum=1)
    require_seconds(timeout, "timeout")
    _check_on_stall(on_stall)
    require_callback(on_progress, "on_progress")
    require_kind(limits, StallLimits, "limits")
    chosen = _choose_guard(guard, unguarded=unguarded)
    if chosen is not None and chosen.floor is not None:
        _check_floor(device, target, chosen.floor)
    deadline = device.monitor.now() + timeout
    run = await _Run.begin(device, target, chosen, limits)
    sizes = f"from {format_size(run.tracker.actual)} to {format_size(target)}"
    device.log(logging.INFO, f"resize {sizes} begins")
    try:
        left = deadline - device.monitor.now()
        end = await run.move(run.tracker, on_progress, timeout=left)
        if end.kind == "reached":
            return _log_end(device, run.report(target, "reached", run.check_host()))
        await run.stop()
        after = await gather(device)
        size_is_old = suspect_old_size(run.tracker, run.before, after) is not None
        if size_is_old and end.kind == "stalled":
            end = await run.go_on(deadline, on_progress)
            if end.kind == "reached":
                return _log_end(device, run.report(target, "reached"))
        diagnosis = explain(run.tracker, run.before, after, end)
        # If the size is old, the guest is larger, and would have to shrink to it.
        if not size_is_old:
            if on_stall == "rollback":
                return _log_end(device, await run.roll_back(target, diagnosis))
            await run.settle(after, end)
    except BaseException as error:
        await run.abandon(error)
        raise
    is_late, raises = end.kind == "timed-out", on_stall == "raise"
    outcome: Outcome = "timed-out" if is_late else "stalled" if raises else "settled"
    result = _log_end(device, run.report(target, outcome, diagnosis))
    if raises:
        kind = BalloonTimeout if is_late else BalloonStalled
        raise make_error(kind, device.monitor, _describe_stall(result), result)
    return result


@define
class _Run:
    """One resize under way.

    Attributes:
        device: The balloon.
        tracker: Follows it to the target.
        before: The evidence from the beginning.
        limits: What a shrinking guest must keep; ``None`` if it is not watched.
        present: Follows it where it goes now: to the target, or back.
    """

    device: Device
    tracker: Tracker
    before: Evidence
    limits: GuestLimits | None
    present: Tracker

    @classmethod
    async def begin(
        cls,
        device: Device,
        target: int,
        guard: Guard | None,
        stall: StallLimits | None,
    ) -> _Run:
        """Look at the VM, and refuse a target below the guard's floor for it."""
        before = await gather(device)
        actual, now = await device.actual(), device.monitor.now()
        limits = None if guard is None else guard.compute_limits(before.total or actual)
        if limits is not None:
            _check_floor(device, target, limits.floor)
            stall = stall or compute_stall_limits(limits.max_rate)
        goal = min(-(-target // PAGE) * PAGE, before.total or LARGEST_SIZE)
        tracker = Tracker(goal, actual, now, stall)
        return cls(device, tracker, before, limits, present=tracker)

    async def move(
        self,
        tracker: Tracker,
        on_progress: Callable[[Progress], None] | None = None,
        *,
        timeout: float = math.inf,
    ) -> Ending:
        """Go to the tracker's target: growing at once, shrinking under watch."""
        device = self.device
        is_growing = tracker.target >= tracker.actual

        def show(sample: Sample | None = None) -> None:
            if on_progress is not None:
                stage: Stage = "deflating" if is_growing else "inflating"
                seen = sample or _sample_size(device, tracker)
                # Each sampler's time begins at 0, and a resize may need several.
                seen = evolve(seen, t=tracker.elapsed)
                on_progress(make_progress(tracker, stage, seen))

        if is_growing or self.limits is None:
            await device.send_target(tracker.target)
            return await follow(device, tracker, lambda _: show(), timeout=timeout)
        async with open_sampler(device) as sampler:
            return await shrink(
                device,
                sampler,
                self._make_controller(tracker, self.limits),
                tracker,
                lambda sample, _: show(sample),
                timeout=timeout,
                persist=True,
            )

    async def go_on(
        self, deadline: float, on_progress: Callable[[Progress], None] | None
    ) -> Ending:
        """Make a restarted guest report its size, and go the rest of the way."""
        monitor, tracker = self.device.monitor, self.tracker
        left = deadline - monitor.now()
        await prompt_size_report(
            self.device, tracker.target, tracker.actual, timeout=left
        )
        left = deadline - monitor.now()
        return await self.move(tracker, on_progress, timeout=left)

    def _make_controller(self, tracker: Tracker, limits: GuestLimits) -> Controller:
        """Make a controller that goes to the target."""
        # A rollback may go below the floor, if the guest was below it before.
        limits = evolve(limits, floor=tracker.target)
        stats = self.before.stats
        known = self.before.answers and stats.reclaimable is not None
        return Controller(
            limits, tracker.actual, tracker.target, stats if known else None
        )

    def check_host(self) -> Diagnosis | None:
        """Return a diagnosis if the host did not get what the guest gave."""
        after = evolve(self.before, resident=self.device.resident())
        return suspect_inhibition(self.tracker, self.before, after)

    async def roll_back(self, requested: int, diagnosis: Diagnosis) -> ResizeResult:
        """Go back to the size before."""
        began, size = self.tracker, self.tracker.before
        now = self.device.monitor.now()
        self.present = tracker = Tracker(size, await self.device.actual(), now)
        await self.move(tracker)
        return evolve(
            self.report(requested, "rolled-back", diagnosis),
            actual=tracker.actual,
            seconds=began.elapsed + tracker.elapsed,
        )

    async def stop(self) -> None:
        """Stop a shrinking guest at its present size: nobody watches it now."""
        asked, size = self.device.target, self.tracker.actual
        if self.tracker.target < size and (asked is None or asked < size):
            await self.device.send_target(size)

    async def settle(self, after: Evidence, end: Ending) -> None:
        """Stay at the size that was reached, or at one that the guest can live with."""
        device, tracker = self.device, self.tracker
        size = actual = await device.actual()
        if tracker.target < tracker.before:
            headroom = 0 if self.limits is None else self.limits.headroom
            alarm = self._choose_alarm(after, end)
            size = choose_safe_size(
                actual, tracker.before, headroom, after.stats, alarm
            )
        await device.send_target(size)
        tracker.observe(device.monitor.now(), actual)
        if size > actual:
            back = Tracker(size, actual, device.monitor.now())
            await follow(device, back)
            tracker.observe(device.monitor.now(), back.actual)

    def _choose_alarm(self, after: Evidence, end: Ending) -> AlarmKind | None:
        """Return what is wrong with the guest now, when watching it ends."""
        if self.limits is None:
            return None
        if after.stopped is not None:
            # A stopped VM is silent, although its guest is not in trouble.
            return None if end.alarm == "silence" else end.alarm
        is_silent = self.before.answers and not after.answers
        return end.alarm or ("silence" if is_silent else None)

    async def abandon(self, error: BaseException) -> None:
        """Stop a shrinking guest at its present size; let a growing one go on."""
        device, size = self.device, self.present.actual
        if device.target is None or device.target < size:
            await leave_safe(device, size, error, device.actual)

    def report(
        self, requested: int, outcome: Outcome, diagnosis: Diagnosis | None = None
    ) -> ResizeResult:
        """Return the result so far."""
        return ResizeResult(
            outcome=outcome,
            requested=requested,
            before=self.tracker.before,
            actual=self.tracker.actual,
            target=self.device.target or self.tracker.actual,
            seconds=self.tracker.elapsed,
            diagnosis=diagnosis,
        )


def _log_end(device: Device, result: ResizeResult) -> ResizeResult:
    """Log how a resize ended, and return its result."""
    level = logging.INFO if result.outcome == "reached" else logging.WARNING
    sizes = f"{format_size(result.before)} -> {format_size(result.actual)}"
    line = f"resize {result.outcome}: {sizes} in {result.seconds:.1f} s"
    if result.diagnosis is not None:
        line += f"; {result.diagnosis.detail}"
    device.log(level, line)
    return result


def _sample_size(device: Device, tracker: Tracker) -> Sample:
    """Make a sample of a guest that is followed by its size alone."""
    return Sample(
        t=tracker.elapsed,
        target=device.target,
        actual=tracker.actual,
        resident=device.resident(),
    )


def _describe_stall(result: ResizeResult) -> str:
    why = result.diagnosis.detail if result.diagnosis else "the reason is not known"
    left = "was left there"
    if result.target > result.actual:
        left = f"was then asked to go back to {format_size(result.target)}"
    return (
        f"the balloon stopped at {format_size(result.actual)} on its way to"
        f" {format_size(result.requested)} and {left}; {why}"
    )


def _choose_guard(guard: Guard | None, *, unguarded: bool) -> Guard | None:
    """Return the guard to apply; ``None`` if the guest is not to be protected."""
    require_kind(guard, Guard, "guard")
    if require_flag(unguarded, "unguarded") and guard is not None:
        raise ValueError("a guard is given, and unguarded: leave one of them out")
    return None if unguarded else guard or RESIZE_GUARD


def _check_floor(device: Device, target: int, floor: int) -> None:
    """Refuse a target that no guest survives, or that the caller forbids."""
    if target < floor:
        why = (
            f"a target of {format_size(target)} is below the floor of"
            f" {format_size(floor)}; nothing was sent: choose a larger target, or"
            " another floor"
        )
        raise make_error(UnsafeTarget, device.monitor, why)


def _check_on_stall(on_stall: str) -> None:
    if on_stall not in get_args(OnStall):
        choices = ", ".join(get_args(OnStall))
        raise ValueError(f"on_stall is {on_stall!r}: it must be one of {choices}")
