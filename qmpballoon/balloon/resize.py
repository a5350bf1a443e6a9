"""Bringing a balloon to a size, and telling the truth about it.

The size is polled, rather than told by ``BALLOON_CHANGE``: QEMU sends that at most
once a second, so the last one may come a second late.

A guest is asked for no more than it says it has available, less a small headroom.
Without that, a target it cannot reach would press on it until it kills processes
or panics, and no stall would be noticed before. A guest that reports nothing is
asked for the target as it is.

A balloon that does not get there keeps pulling for as long as its target stands.
So whatever happens, the target left behind is one that the guest has reached.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Final, Literal, get_args

from attrs import asdict, define, evolve, frozen

from qmpballoon.balloon.diagnosis import explain, gather
from qmpballoon.balloon.guard import Governor, Limits, make_plan
from qmpballoon.balloon.squeeze import Squeezed, follow, squeeze
from qmpballoon.balloon.tracker import Phase, StallLimits, Tracker
from qmpballoon.checks import require_seconds, require_size
from qmpballoon.errors import (
    BalloonStalled,
    MonitorError,
    UnsafeTarget,
)
from qmpballoon.sizes import MiB, format_size

if TYPE_CHECKING:
    from collections.abc import Callable

    from qmpballoon.balloon.device import Balloon
    from qmpballoon.balloon.diagnosis import Diagnosis
    from qmpballoon.balloon.stats import GuestStats

__all__ = [
    "FLOOR",
    "HEADROOM",
    "PAGE",
    "OnStall",
    "Outcome",
    "Progress",
    "ResizeResult",
    "resize",
]

FLOOR: Final = 32 * MiB
"""Bytes below which no Linux guest is left alive; targets below are refused."""

CLEANUP: Final = 5.0
"""Seconds for leaving a target behind that the guest can live with."""

OnStall = Literal["raise", "settle", "rollback"]
"""What to do about a balloon that does not get to its target."""

Outcome = Literal["reached", "stalled", "settled", "rolled-back", "timed-out"]
"""How resizing can end."""

PAGE: Final = 4096
"""Bytes in a page of the balloon, whatever the guest's own page size."""

HEADROOM: Final = 32 * MiB
"""Bytes available that a shrinking guest is left with at least."""


@frozen
class Progress:
    """How far a balloon is on its way.

    Attributes:
        seconds: Since the target was set.
        before: Bytes the guest had then.
        target: Bytes it is to come to.
        actual: Bytes it has.
        rate: Bytes a second by which it nears its target.
        time_left: Seconds to go at that rate; ``None`` if it does not move.
        phase: How it fares.
    """

    seconds: float
    before: int
    target: int
    actual: int
    rate: float
    time_left: float | None
    phase: Phase


@frozen
class ResizeResult:
    """What came of resizing.

    Attributes:
        outcome: How it ended.
        requested: Bytes that were asked for.
        before: Bytes the guest had.
        actual: Bytes it has.
        target: Bytes it was told to have in the end: what it keeps to.
        seconds: How long it took.
        diagnosis: Why the target was not reached; ``None`` if it was.
    """

    outcome: Outcome
    requested: int
    before: int
    actual: int
    target: int
    seconds: float
    diagnosis: Diagnosis | None = None

    def to_json(self) -> dict[str, object]:
        """Return it as the command prints it: bytes and seconds."""
        return asdict(self)


async def resize(
    balloon: Balloon,
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
    before = await gather(balloon)
    actual = await balloon.actual()
    goal = min(-(-target // PAGE) * PAGE, before.total or target)
    tracker = Tracker(goal, actual, balloon.monitor.now(), limits)
    run = _Run(balloon, tracker, on_progress)
    try:
        if goal < actual and headroom is not None and before.answers:
            end = await run.shrink(before.stats, headroom, timeout)
        else:
            end = await run.go(timeout)
        if end.ending == "reached":
            return run.result(target, "reached")
        diagnosis = explain(tracker, before, await gather(balloon), end)
    except BaseException:
        await _leave_in_peace(balloon, tracker)
        raise
    outcome: Outcome = "timed-out" if end.ending == "timed-out" else "stalled"
    result = run.result(target, outcome, diagnosis)
    if on_stall == "rollback":
        return await _roll_back(balloon, result)
    settled = await _settle(balloon, before.total, headroom or 0)
    result = evolve(result, actual=settled, target=settled)
    if on_stall == "raise":
        raise BalloonStalled(_say(result), result)
    return evolve(result, outcome="settled" if outcome == "stalled" else outcome)


@define
class _Run:
    """One balloon on its way to one target."""

    balloon: Balloon
    tracker: Tracker
    on_progress: Callable[[Progress], None] | None

    async def go(self, timeout: float) -> Squeezed:
        """Ask for the whole way at once, and watch."""
        await self.balloon.set_target(self.tracker.target)
        show = self._show
        return Squeezed(await follow(self.balloon, self.tracker, show, timeout=timeout))

    async def shrink(
        self, stats: GuestStats, headroom: int, timeout: float
    ) -> Squeezed:
        """Ask the guest for no more than it says it can give."""
        limits = Limits(headroom=headroom, floor=self.tracker.target)
        plan = make_plan(limits, self.tracker.before, stats)
        if plan is None:  # it says nothing useful: go by its size
            return await self.go(timeout)
        governor = Governor(limits, plan, stats)
        async with self.balloon.sampler() as sampler:
            return await squeeze(
                self.balloon,
                sampler,
                governor,
                self.tracker,
                lambda _, phase: self._show(phase),
                timeout=timeout,
            )

    def result(
        self, requested: int, outcome: Outcome, diagnosis: Diagnosis | None = None
    ) -> ResizeResult:
        """Say how it went so far."""
        return ResizeResult(
            outcome=outcome,
            requested=requested,
            before=self.tracker.before,
            actual=self.tracker.actual,
            target=self.tracker.target,
            seconds=self.tracker.elapsed,
            diagnosis=diagnosis,
        )

    def _show(self, phase: Phase) -> None:
        if self.on_progress is not None:
            self.on_progress(
                Progress(
                    seconds=self.tracker.elapsed,
                    before=self.tracker.before,
                    target=self.tracker.target,
                    actual=self.tracker.actual,
                    rate=self.tracker.rate,
                    time_left=self.tracker.time_left,
                    phase=phase,
                )
            )


async def _roll_back(balloon: Balloon, result: ResizeResult) -> ResizeResult:
    """Go back to the size before."""
    await balloon.set_target(result.before)
    tracker = Tracker(result.before, result.actual, balloon.monitor.now())
    await follow(balloon, tracker)
    return evolve(
        result,
        outcome="rolled-back",
        actual=tracker.actual,
        target=result.before,
        seconds=result.seconds + tracker.elapsed,
    )


async def _settle(balloon: Balloon, total: int | None, headroom: int) -> int:
    """Stay at the size that was reached, and return it.

    A guest that was squeezed dry gets its headroom back: one left with nothing
    available dies of the next thing it does.
    """
    actual = await balloon.actual()
    available = (await balloon.stats()).reclaimable
    lacking = 0 if available is None else max(0, headroom - available)
    target = min(actual + lacking, total or actual)
    await balloon.set_target(target)
    if lacking:
        tracker = Tracker(target, actual, balloon.monitor.now())
        await follow(balloon, tracker)
        return tracker.actual
    return actual


async def _leave_in_peace(balloon: Balloon, tracker: Tracker) -> None:
    """See to it that an abandoned balloon does not go on squeezing its guest."""
    if tracker.target >= tracker.before:
        return  # growing hurts nobody
    # Without the monitor nothing more can be done, and the caller is told of that.
    with balloon.monitor.shield(CLEANUP), suppress(MonitorError):
        await balloon.set_target(await balloon.actual())


def _check(
    target: int, timeout: float, on_stall: str, floor: int, headroom: int | None
) -> None:
    require_size(target, "target", minimum=1)
    require_size(floor, "floor")
    require_size(headroom or 0, "headroom")
    require_seconds(timeout, "timeout")
    if on_stall not in get_args(OnStall):
        choices = ", ".join(get_args(OnStall))
        raise ValueError(f"on_stall is {on_stall!r}: it must be one of {choices}")
    if target < floor:
        raise UnsafeTarget(
            f"a target of {format_size(target)} is below the floor of"
            f" {format_size(floor)}, which no guest survives; nothing was sent"
        )


def _say(result: ResizeResult) -> str:
    why = result.diagnosis.detail if result.diagnosis else "the reason is not known"
    return (
        f"the balloon stopped at {format_size(result.actual)} on its way to"
        f" {format_size(result.requested)} and was left there; {why}"
    )
