"""Bringing a balloon to a size, and telling the truth about it.

The size is polled, rather than told by ``BALLOON_CHANGE``: QEMU sends that at most
once a second, so the last one may come a second late.

A guest is asked for no more than it says it has available, less a small headroom.
Without that, a target it cannot reach would press on it until it kills processes
or panics, and no stall would be noticed before. A guest that reports nothing is
asked for the target as it is.

A guest that begins to need its memory meanwhile gets it back, and is asked again
when it has some to spare. If that leads nowhere it counts as a stall, like any other.

A balloon that does not get there keeps pulling for as long as its target stands.
So whatever happens, the target left behind is one that the guest has reached.
"""

from __future__ import annotations

import math
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Literal, get_args

from attrs import asdict, define, evolve, frozen

from qmpballoon._checks import (
    require_callback,
    require_kind,
    require_seconds,
    require_size,
)
from qmpballoon.balloon._controller import Governor
from qmpballoon.balloon._diagnosis import explain, gather, inhibited, outdated
from qmpballoon.balloon._shrink import (
    CLEANUP,
    Squeezed,
    follow,
    note_left,
    rouse,
    squeeze,
)
from qmpballoon.balloon._tracker import PAGE, Phase, StallLimits, Tracker
from qmpballoon.balloon.guard import Guard, Limits
from qmpballoon.errors import BalloonStalled, QmpBalloonError, UnsafeTarget
from qmpballoon.monitor import said_of
from qmpballoon.sizes import MiB, format_size

if TYPE_CHECKING:
    from collections.abc import Callable

    from qmpballoon.balloon._diagnosis import Diagnosis, Evidence
    from qmpballoon.balloon.balloon import Balloon

__all__ = [
    "FLOOR",
    "HEADROOM",
    "OnStall",
    "Outcome",
    "Progress",
    "ResizeResult",
    "resize",
]

FLOOR: Final = 32 * MiB
"""Bytes below which no Linux guest is left alive; targets below are refused."""

OnStall = Literal["raise", "settle", "rollback"]
"""What to do about a balloon that does not get to its target."""

Outcome = Literal["reached", "stalled", "settled", "rolled-back", "timed-out"]
"""How resizing can end."""

HEADROOM: Final = 32 * MiB
"""Bytes available that a shrinking guest is left with at least."""

_WHATEVER: Final = 2**63 - 1  # bytes: more than QEMU takes as a target


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
        diagnosis: Why the target was not reached, or why the host has nothing of
            it although it was; else ``None``.
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
    require_callback(on_progress, "on_progress")
    require_kind(limits, StallLimits, "limits")
    if target < floor:
        raise UnsafeTarget(said_of(balloon.monitor, _unsafe(target, floor)))
    deadline = balloon.monitor.now() + timeout
    before = await gather(balloon)
    actual, now = await balloon.actual(), balloon.monitor.now()
    goal = min(-(-target // PAGE) * PAGE, before.total or _WHATEVER)
    run = _Run(balloon, Tracker(goal, actual, now, limits), before, headroom)
    try:
        end = await run.move(run.tracker, on_progress, timeout=deadline - now)
        if end.ending == "reached":
            return run.result(target, "reached", run.doubt())
        after = await gather(balloon)
        is_outdated = outdated(run.tracker, before, after) is not None
        if is_outdated and end.ending == "stalled":
            end = await run.move_on(deadline, on_progress)
            if end.ending == "reached":
                return run.result(target, "reached")
        diagnosis = explain(run.tracker, before, after, end)
        # To the size of which QEMU knows, such a guest would have to shrink.
        if not is_outdated:
            if on_stall == "rollback":
                return await run.roll_back(target, diagnosis)
            await run.settle(after)
    except BaseException as error:
        await _leave_in_peace(balloon, run.tracker.actual, error)
        raise
    outcome: Outcome = "timed-out" if end.ending == "timed-out" else "settled"
    if on_stall == "raise" and outcome == "settled":
        outcome = "stalled"
    result = run.result(target, outcome, diagnosis)
    if on_stall == "raise":
        raise BalloonStalled(said_of(balloon.monitor, _say(result)), result)
    return result


@define
class _Run:
    """One balloon on its way to one target."""

    balloon: Balloon
    tracker: Tracker
    before: Evidence
    headroom: int | None

    async def move(
        self,
        tracker: Tracker,
        on_progress: Callable[[Progress], None] | None = None,
        *,
        timeout: float = math.inf,
    ) -> Squeezed:
        """Go the tracker's way: growing at once, shrinking with an eye on the guest."""
        balloon = self.balloon

        def show(phase: Phase) -> None:
            if on_progress is not None:
                on_progress(_progress(tracker, phase))

        if tracker.target >= tracker.actual or self.headroom is None:
            await balloon.set_target(tracker.target)
            return Squeezed(await follow(balloon, tracker, show, timeout=timeout))
        async with balloon.sampler() as sampler:
            return await squeeze(
                balloon,
                sampler,
                self._governor(tracker, self.headroom),
                tracker,
                lambda _, phase: show(phase),
                timeout=timeout,
                persist=True,
            )

    async def move_on(
        self, deadline: float, on_progress: Callable[[Progress], None] | None
    ) -> Squeezed:
        """Have a guest that was restarted tell its size, and go the rest of the way."""
        monitor, tracker = self.balloon.monitor, self.tracker
        left = deadline - monitor.now()
        await rouse(self.balloon, tracker.target, tracker.actual, timeout=left)
        left = deadline - monitor.now()
        return await self.move(tracker, on_progress, timeout=left)

    def _governor(self, tracker: Tracker, headroom: int) -> Governor:
        """Have the guest asked for no more than it says it can give."""
        # The step is for the case that we die: no more than that is taken unwatched.
        step = Guard().limits(self.before.total or tracker.actual).step
        limits = Limits(headroom=headroom, floor=tracker.target, step=step)
        stats = self.before.stats
        known = self.before.answers and stats.reclaimable is not None
        return Governor(
            limits, tracker.actual, tracker.target, stats if known else None
        )

    def doubt(self) -> Diagnosis | None:
        """Tell if the host has nothing of what the guest gave."""
        after = evolve(self.before, resident=self.balloon.resident())
        return inhibited(self.tracker, self.before, after)

    async def roll_back(self, requested: int, diagnosis: Diagnosis) -> ResizeResult:
        """Go back to the size before."""
        began, size = self.tracker, self.tracker.before
        now = self.balloon.monitor.now()
        tracker = Tracker(size, await self.balloon.actual(), now)
        await self.move(tracker)
        return evolve(
            self.result(requested, "rolled-back", diagnosis),
            actual=tracker.actual,
            seconds=began.elapsed + tracker.elapsed,
        )

    async def settle(self, after: Evidence) -> None:
        """Stay at the size that was reached.

        A guest that was squeezed dry gets its headroom back: one left with nothing
        available dies of the next thing it does.
        """
        balloon, tracker = self.balloon, self.tracker
        actual = await balloon.actual()
        available, lacking = after.stats.reclaimable, 0
        if tracker.target < tracker.before and available is not None:
            lacking = max(0, (self.headroom or 0) - available)
        await balloon.set_target(min(actual + lacking, max(actual, tracker.before)))
        tracker.observe(balloon.monitor.now(), actual)
        if lacking:
            back = Tracker(balloon.target or actual, actual, balloon.monitor.now())
            await follow(balloon, back)
            tracker.observe(balloon.monitor.now(), back.actual)

    def result(
        self, requested: int, outcome: Outcome, diagnosis: Diagnosis | None = None
    ) -> ResizeResult:
        """Say how it went so far."""
        return ResizeResult(
            outcome=outcome,
            requested=requested,
            before=self.tracker.before,
            actual=self.tracker.actual,
            target=self.balloon.target or self.tracker.actual,
            seconds=self.tracker.elapsed,
            diagnosis=diagnosis,
        )


def _progress(tracker: Tracker, phase: Phase) -> Progress:
    return Progress(
        seconds=tracker.elapsed,
        before=tracker.before,
        target=tracker.target,
        actual=tracker.actual,
        rate=tracker.rate,
        time_left=tracker.time_left,
        phase=phase,
    )


async def _leave_in_peace(balloon: Balloon, seen: int, error: BaseException) -> None:
    """See to it that an abandoned balloon does not go on squeezing its guest.

    Args:
        balloon: Which.
        seen: Bytes that the guest was last seen to have.
        error: What made it so.
    """
    asked = balloon.target
    # If even that fails nothing more can be done, and the caller is told why it began.
    with balloon.monitor.shield(CLEANUP), suppress(QmpBalloonError):
        if balloon.target is not None and balloon.target >= seen:
            return
        # Before anything is asked: a stopped QEMU does it when it goes on.
        await balloon.set_target(seen)
        asked = seen
        if (actual := await balloon.actual()) != seen:
            await balloon.set_target(actual)
    note_left(error, asked, seen)


def _check(
    target: int, timeout: float, on_stall: str, floor: int, headroom: int | None
) -> None:
    require_size(target, "target", minimum=1)
    require_size(floor, "floor")
    if headroom is not None:
        require_size(headroom, "headroom")
    require_seconds(timeout, "timeout")
    if on_stall not in get_args(OnStall):
        choices = ", ".join(get_args(OnStall))
        raise ValueError(f"on_stall is {on_stall!r}: it must be one of {choices}")


def _unsafe(target: int, floor: int) -> str:
    return (
        f"a target of {format_size(target)} is below the floor of"
        f" {format_size(floor)}, which no guest survives; nothing was sent"
    )


def _say(result: ResizeResult) -> str:
    why = result.diagnosis.detail if result.diagnosis else "the reason is not known"
    return (
        f"the balloon stopped at {format_size(result.actual)} on its way to"
        f" {format_size(result.requested)} and was left there; {why}"
    )
