"""Bringing a balloon to a size, and telling the truth about it.

The loop here asks QEMU for the size, feeds :mod:`~qmpballoon.balloon.tracker`, and
ends when the target is reached, the balloon has stalled, or the time is up. It
polls rather than waits for ``BALLOON_CHANGE``: QEMU sends that at most once a
second, so the last one may come a second late. Near the end it polls every few
milliseconds, elsewhere seldom.

A stalled balloon keeps pulling at the guest for as long as its target stands. So
whatever happens, the target that is left behind is one the guest has reached.
"""

from __future__ import annotations

import math
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Literal, get_args

from attrs import asdict, evolve, frozen

from qmpballoon.balloon.diagnosis import explain, gather
from qmpballoon.balloon.tracker import Phase, StallLimits, Tracker
from qmpballoon.checks import require_seconds, require_size
from qmpballoon.errors import BalloonStalled, MonitorError, UnsafeTarget
from qmpballoon.sizes import MiB, format_size

if TYPE_CHECKING:
    from collections.abc import Callable

    from qmpballoon.balloon.device import Balloon
    from qmpballoon.balloon.diagnosis import Diagnosis

__all__ = ["FLOOR", "OnStall", "Outcome", "Progress", "ResizeResult", "resize"]

FLOOR: Final = 32 * MiB
"""Bytes below which no Linux guest is left alive; targets below are refused."""

CLEANUP: Final = 5.0
"""Seconds for leaving a target behind that the guest can live with."""

OnStall = Literal["raise", "settle", "rollback"]
"""What to do about a balloon that does not get to its target."""

Outcome = Literal["reached", "stalled", "settled", "rolled-back", "timed-out"]
"""How resizing can end."""

_PAGE: Final = 4096
_FASTEST: Final = 0.01  # seconds between two looks, near the end
_SLOWEST: Final = 0.25  # and far from it


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
    on_progress: Callable[[Progress], None] | None,
    limits: StallLimits | None,
) -> ResizeResult:
    """Bring the guest to a size; see :meth:`Balloon.resize`."""
    _check(target, timeout, on_stall, floor)
    before = await gather(balloon, ask=False)
    actual = await balloon.actual()
    goal = min(-(-target // _PAGE) * _PAGE, before.total or target)
    tracker = Tracker(goal, actual, balloon.monitor.now(), limits)
    try:
        await balloon.set_target(goal)
        await _follow(balloon, tracker, timeout, on_progress)
        result = ResizeResult(
            outcome="reached",
            requested=target,
            before=actual,
            actual=tracker.actual,
            target=goal,
            seconds=tracker.elapsed,
        )
        if tracker.phase == "reached":
            return result
        diagnosis = explain(tracker, before, await gather(balloon, ask=True))
    except BaseException:
        await _leave_in_peace(balloon, tracker)
        raise
    outcome: Outcome = "stalled" if tracker.phase == "stalled" else "timed-out"
    result = evolve(result, outcome=outcome, diagnosis=diagnosis)
    return await _give_in(balloon, result, on_stall, limits)


async def _follow(
    balloon: Balloon,
    tracker: Tracker,
    timeout: float,
    on_progress: Callable[[Progress], None] | None = None,
) -> None:
    """Watch the balloon until it is there, has stalled, or the time is up."""
    monitor = balloon.monitor
    deadline = monitor.now() + timeout
    while monitor.now() < deadline:
        phase = tracker.observe(monitor.now(), await balloon.actual())
        if on_progress is not None:
            on_progress(_progress(tracker, phase))
        if phase in ("reached", "stalled"):
            return
        await monitor.sleep(min(_pause(tracker), deadline - monitor.now()))


def _pause(tracker: Tracker) -> float:
    """Look again when a good part of the way may be done, and not too late."""
    left = math.inf if tracker.time_left is None else tracker.time_left
    if tracker.phase == "waiting":
        return 4 * _FASTEST
    return min(max(left / 4, _FASTEST), _SLOWEST)


async def _give_in(
    balloon: Balloon,
    result: ResizeResult,
    on_stall: OnStall,
    limits: StallLimits | None,
) -> ResizeResult:
    """Stop pulling at the guest, the way the caller wants it."""
    if on_stall == "rollback":
        start = balloon.monitor.now()
        tracker = Tracker(result.before, result.actual, start, limits)
        await balloon.set_target(result.before)
        await _follow(balloon, tracker, math.inf)
        return evolve(
            result,
            outcome="rolled-back",
            actual=tracker.actual,
            target=result.before,
            seconds=result.seconds + tracker.elapsed,
        )
    actual = await _settle(balloon)
    result = evolve(result, actual=actual, target=actual)
    if on_stall == "settle":
        outcome: Outcome = "settled" if result.outcome == "stalled" else "timed-out"
        return evolve(result, outcome=outcome)
    raise BalloonStalled(_say(result), result)


async def _settle(balloon: Balloon) -> int:
    """Make the size that was reached the target, and return it."""
    actual = await balloon.actual()
    await balloon.set_target(actual)
    return actual


async def _leave_in_peace(balloon: Balloon, tracker: Tracker) -> None:
    """See to it that an abandoned balloon does not go on squeezing its guest."""
    if tracker.target >= tracker.before:
        return  # growing hurts nobody
    # Without the monitor nothing more can be done, and the caller is told of that.
    with balloon.monitor.shield(CLEANUP), suppress(MonitorError):
        await _settle(balloon)


def _check(target: int, timeout: float, on_stall: str, floor: int) -> None:
    require_size(target, "target", minimum=1)
    require_size(floor, "floor")
    require_seconds(timeout, "timeout")
    if on_stall not in get_args(OnStall):
        choices = ", ".join(get_args(OnStall))
        raise ValueError(f"on_stall is {on_stall!r}: it must be one of {choices}")
    if target < floor:
        raise UnsafeTarget(
            f"a target of {format_size(target)} is below the floor of"
            f" {format_size(floor)}, which no guest survives; nothing was sent"
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


def _say(result: ResizeResult) -> str:
    why = result.diagnosis.detail if result.diagnosis else "the reason is not known"
    return (
        f"the balloon stopped at {format_size(result.actual)} on its way to"
        f" {format_size(result.requested)} and was left there; {why}"
    )
