"""Bringing a balloon to a size, and reporting what came of it.

The size is polled. ``BALLOON_CHANGE`` events would not do: QEMU sends at most one a
second, so the last one may come a second late.

A shrinking guest is asked for no more than it reports as available, less a small
headroom. Without that, a target that the guest cannot reach would press on it until it
kills processes or panics, and before that no stall would be noticed. A guest that
reports nothing is asked for the target as it is. A guest that begins to need its memory
meanwhile gets some back, and is asked again when it has some to spare; if that leads
nowhere it counts as a stall.

A balloon inflates for as long as its target is not reached. So however the call ends,
the target that it leaves is one that the guest has reached.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, get_args

from attrs import define, evolve

from qmpballoon._checks import (
    require_callback,
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
from qmpballoon.balloon._shrink import follow, leave_safe, prompt_size_report, shrink
from qmpballoon.balloon._tracker import StallLimits, Tracker
from qmpballoon.balloon.device import PAGE
from qmpballoon.balloon.guard import Guard, GuestLimits
from qmpballoon.balloon.results import OnStall, Progress, ResizeResult
from qmpballoon.balloon.sampling import open_sampler
from qmpballoon.errors import BalloonStalled, BalloonTimeout, UnsafeTarget
from qmpballoon.monitor import prefix_name
from qmpballoon.sizes import format_size

if TYPE_CHECKING:
    from collections.abc import Callable

    from qmpballoon.balloon._diagnosis import Evidence
    from qmpballoon.balloon.device import Device
    from qmpballoon.balloon.results import Diagnosis, Ending, Outcome, Phase

__all__ = ["resize"]

_MAX_TARGET: Final = 2**63 - 1  # bytes; QMP's integers end here


async def resize(
    device: Device,
    target: int,
    *,
    timeout: float,
    on_stall: OnStall,
    floor: int,
    headroom: int | None,
    on_progress: Callable[[Progress], None] | None,
    limits: StallLimits | None,
) -> ResizeResult:
    """Bring the guest to a size; see :meth:`Balloon.resize`."""
    _check(target, timeout, on_stall, floor, headroom)
    require_callback(on_progress, "on_progress")
    require_kind(limits, StallLimits, "limits")
    if target < floor:
        why = (
            f"a target of {format_size(target)} is below the floor of"
            f" {format_size(floor)}, which no guest survives; nothing was sent"
        )
        raise UnsafeTarget(prefix_name(device.monitor, why))
    deadline = device.monitor.now() + timeout
    before = await gather(device)
    actual, now = await device.actual(), device.monitor.now()
    goal = min(-(-target // PAGE) * PAGE, before.total or _MAX_TARGET)
    run = _Run(device, Tracker(goal, actual, now, limits), before, headroom)
    try:
        end = await run.move(run.tracker, on_progress, timeout=deadline - now)
        if end.kind == "reached":
            return run.report(target, "reached", run.check_host())
        after = await gather(device)
        size_is_old = suspect_old_size(run.tracker, before, after) is not None
        if size_is_old and end.kind == "stalled":
            end = await run.go_on(deadline, on_progress)
            if end.kind == "reached":
                return run.report(target, "reached")
        diagnosis = explain(run.tracker, before, after, end)
        # To the old size that QEMU reports, the guest would have to shrink.
        if not size_is_old:
            if on_stall == "rollback":
                return await run.roll_back(target, diagnosis)
            await run.settle(after)
    except BaseException as error:
        await run.abandon(error)
        raise
    outcome: Outcome = "timed-out" if end.kind == "timed-out" else "settled"
    if on_stall == "raise" and outcome == "settled":
        outcome = "stalled"
    result = run.report(target, outcome, diagnosis)
    if on_stall == "raise":
        why = _describe_stall(result)
        kind = BalloonTimeout if outcome == "timed-out" else BalloonStalled
        raise kind(prefix_name(device.monitor, why), result)
    return result


@define
class _Run:
    """One resize under way.

    Attributes:
        device: The balloon.
        tracker: Follows it to the target.
        before: What could be seen at the beginning.
        headroom: Bytes that the guest keeps available; ``None``: no matter what.
    """

    device: Device
    tracker: Tracker
    before: Evidence
    headroom: int | None

    async def move(
        self,
        tracker: Tracker,
        on_progress: Callable[[Progress], None] | None = None,
        *,
        timeout: float = math.inf,
    ) -> Ending:
        """Go to the tracker's target: growing at once, shrinking under watch."""
        device = self.device

        def show(phase: Phase) -> None:
            if on_progress is not None:
                on_progress(_describe_progress(tracker, phase))

        if tracker.target >= tracker.actual or self.headroom is None:
            await device.set_target(tracker.target)
            return await follow(device, tracker, show, timeout=timeout)
        async with open_sampler(device) as sampler:
            return await shrink(
                device,
                sampler,
                self._make_controller(tracker, self.headroom),
                tracker,
                lambda _, phase: show(phase),
                timeout=timeout,
                persist=True,
            )

    async def go_on(
        self, deadline: float, on_progress: Callable[[Progress], None] | None
    ) -> Ending:
        """Have a restarted guest report its size, and go the rest of the way."""
        monitor, tracker = self.device.monitor, self.tracker
        left = deadline - monitor.now()
        await prompt_size_report(
            self.device, tracker.target, tracker.actual, timeout=left
        )
        left = deadline - monitor.now()
        return await self.move(tracker, on_progress, timeout=left)

    def _make_controller(self, tracker: Tracker, headroom: int) -> Controller:
        """Make a controller that goes to the target, and keeps the headroom."""
        # If this process is killed, no more than the step is taken unwatched.
        step = Guard().compute_limits(self.before.total or tracker.actual).step
        limits = GuestLimits(headroom=headroom, floor=tracker.target, step=step)
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
        tracker = Tracker(size, await self.device.actual(), now)
        await self.move(tracker)
        return evolve(
            self.report(requested, "rolled-back", diagnosis),
            actual=tracker.actual,
            seconds=began.elapsed + tracker.elapsed,
        )

    async def settle(self, after: Evidence) -> None:
        """Stay at the size that was reached.

        A guest that was left without its headroom gets it back: with nothing available
        it would die of the next allocation.
        """
        device, tracker = self.device, self.tracker
        actual = await device.actual()
        available, lacking = after.stats.reclaimable, 0
        if tracker.target < tracker.before and available is not None:
            lacking = max(0, (self.headroom or 0) - available)
        await device.set_target(min(actual + lacking, max(actual, tracker.before)))
        tracker.observe(device.monitor.now(), actual)
        if lacking:
            back = Tracker(device.target or actual, actual, device.monitor.now())
            await follow(device, back)
            tracker.observe(device.monitor.now(), back.actual)

    async def abandon(self, error: BaseException) -> None:
        """Keep a guest that shrinks at its size; let one that grows go on."""
        device, size = self.device, self.tracker.actual
        if device.target is None or device.target < size:
            await leave_safe(device, size, error, device.actual)

    def report(
        self, requested: int, outcome: Outcome, diagnosis: Diagnosis | None = None
    ) -> ResizeResult:
        """Return what came of it so far."""
        return ResizeResult(
            outcome=outcome,
            requested=requested,
            before=self.tracker.before,
            actual=self.tracker.actual,
            target=self.device.target or self.tracker.actual,
            seconds=self.tracker.elapsed,
            diagnosis=diagnosis,
        )


def _describe_progress(tracker: Tracker, phase: Phase) -> Progress:
    return Progress(
        seconds=tracker.elapsed,
        before=tracker.before,
        target=tracker.target,
        actual=tracker.actual,
        rate=tracker.rate,
        time_left=tracker.time_left,
        phase=phase,
    )


def _describe_stall(result: ResizeResult) -> str:
    why = result.diagnosis.detail if result.diagnosis else "the reason is not known"
    return (
        f"the balloon stopped at {format_size(result.actual)} on its way to"
        f" {format_size(result.requested)} and was left there; {why}"
    )


def _check(
    target: int, timeout: float, on_stall: str, floor: int, headroom: int | None
) -> None:
    """Refuse arguments that make no sense."""
    require_size(target, "target", minimum=1)
    require_size(floor, "floor")
    if headroom is not None:
        require_size(headroom, "headroom")
    require_seconds(timeout, "timeout")
    if on_stall not in get_args(OnStall):
        choices = ", ".join(get_args(OnStall))
        raise ValueError(f"on_stall is {on_stall!r}: it must be one of {choices}")
