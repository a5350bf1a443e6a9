"""Shrinking a guest while looking at it many times a second.

The loop that both ``resize`` and ``reclaim`` run: take a sample, let a governor judge
it, set the target it says. They differ in what they let the governor allow.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, Literal

from attrs import define, frozen

from qmpballoon.balloon._tracker import LARGEST_PAGE, Tracker
from qmpballoon.errors import MonitorError
from qmpballoon.sizes import GiB, format_size

if TYPE_CHECKING:
    from collections.abc import Callable

    from qmpballoon.balloon._controller import Governor
    from qmpballoon.balloon._tracker import Phase
    from qmpballoon.balloon.balloon import Balloon
    from qmpballoon.balloon.sampler import Sampler
    from qmpballoon.balloon.sampling import Sample

__all__ = [
    "CLEANUP",
    "Ending",
    "Squeezed",
    "follow",
    "note_left",
    "rouse",
    "squeeze",
]

Ending = Literal["reached", "stalled", "timed-out", "spent", "trouble", "given-back"]
"""How a movement of the balloon can end: at its target; no longer moving; out of
time; the guest has no more to spare; the guest is in need; what was kept is no more."""

CLEANUP: Final = 5.0
"""Seconds for putting things back on the way out."""

_TICK: Final = 0.04  # seconds between two samples; more often costs the guest
_SLOWER: Final = 1.5  # times
_WATCHFUL: Final = 0.02  # where the guest may soon be in need
_QUIET: Final = 0.5  # where it has more than a process could eat up meanwhile
_FASTEST_HOG: Final = 2 * GiB  # bytes a second that a process could
_FASTEST: Final = 0.01  # seconds between two looks at the size alone, near the end
_SLOWEST: Final = 0.25  # and far from it


@frozen
class Squeezed:
    """How shrinking ended.

    Attributes:
        ending: In a word.
        reason: What held the guest up, in a few; empty where nothing did.
    """

    ending: Ending
    reason: str = ""


async def squeeze(
    balloon: Balloon,
    sampler: Sampler,
    governor: Governor,
    tracker: Tracker,
    on_sample: Callable[[Sample, Phase], None],
    *,
    timeout: float = math.inf,
    persist: bool = False,
) -> Squeezed:
    """Inflate as far as the governor lets it.

    The target that stands in the end is the last one the governor allowed; the
    caller decides what becomes of it.

    Args:
        balloon: Whose.
        sampler: Of the same balloon.
        governor: What is asked for a target.
        tracker: What tells a stall.
        on_sample: Called with each sample.
        timeout: Seconds for all of it.
        persist: In trouble, give back and go on; the tracker tells when that
            leads nowhere. By default trouble is the end, and the caller gives back.
    """
    monitor = balloon.monitor
    deadline = monitor.now() + timeout
    reason, mark, held_up_at = "", None, 0
    pace = _Pace(governor, tracker)
    while monitor.now() < deadline:
        sample = await sampler.take(mark)
        phase = tracker.observe(monitor.now(), sample.actual, asked=balloon.target)
        on_sample(sample, phase)
        if phase == "reached":
            return Squeezed("reached")
        decision = governor.decide(
            sample.t, sample.actual, sampler.basis, sampler.stats, sampler.silence
        )
        mark = decision.mark
        # What holds a guest up does so until it gets farther than it was then.
        if decision.reason:
            reason, held_up_at = decision.reason, tracker.nearest
        elif tracker.nearest < held_up_at:
            reason = ""
        yielding = persist and decision.action == "trouble"
        arrived = balloon.target is not None and sample.actual <= balloon.target
        if decision.action != "take" and not yielding:
            return Squeezed(decision.action, reason)
        if phase == "stalled":
            return Squeezed("stalled", reason)
        # Another client may have set its own before the guest ever moved.
        if decision.target != balloon.target or phase == "waiting":
            await balloon.set_target(decision.target)
        pause = pace.next(sample, decision.target, arrived=arrived)
        # What a guest has not answered yet holds the next step up.
        pause_now = min(pause, _TICK) if sampler.silence > 0 else pause
        await monitor.sleep(min(pause_now, deadline - monitor.now()))
    return Squeezed("timed-out", reason)


@define
class _Pace:
    """For how long to look away from a guest: the less, the poorer or quicker it is."""

    _governor: Governor
    _tracker: Tracker
    _pause: float = _TICK

    def next(self, sample: Sample, target: int, *, arrived: bool) -> float:
        """Return for how many seconds.

        Args:
            sample: What was seen.
            target: Bytes that the guest is to have now.
            arrived: Whether it was where it was told to go before.
        """
        # Where it waits for us it could go faster than it is seen to.
        pause = self._pause / 2 if arrived else self._pause * _SLOWER
        pause = min(pause, self._longest(sample.available))
        # Back before what it was asked for is done.
        ahead, rate = sample.actual - target, self._tracker.rate
        if rate > 0 and ahead > 0:
            pause = min(pause, ahead / 2 / rate)
        self._pause = max(pause, _WATCHFUL)
        return self._pause

    def _longest(self, available: int | None) -> float:
        if available is None:
            return _TICK
        spare = available - self._governor.watchful
        return min(max(spare / _FASTEST_HOG, _TICK), _QUIET) if spare > 0 else _WATCHFUL


async def follow(
    balloon: Balloon,
    tracker: Tracker,
    on_look: Callable[[Phase], None] = lambda _: None,
    *,
    timeout: float = math.inf,
) -> Ending:
    """Watch a balloon on its way to a target that is set, by its size alone."""
    monitor = balloon.monitor
    deadline = monitor.now() + timeout
    while monitor.now() < deadline:
        phase = tracker.observe(monitor.now(), await balloon.actual())
        on_look(phase)
        if phase == "reached":
            return "reached"
        if phase == "stalled":
            return "stalled"
        await monitor.sleep(min(_pause(tracker, phase), deadline - monitor.now()))
    return "timed-out"


async def rouse(
    balloon: Balloon, goal: int, actual: int, *, timeout: float = math.inf
) -> None:
    """Have a driver that found nothing to do tell QEMU the size: ask it for a little.

    A guest that was restarted, and whose balloon was called off before its new driver
    was there, has ``goal``, while QEMU goes on with what the last driver said. The
    target is ``goal`` again in the end.

    Args:
        balloon: Whose.
        goal: Bytes the guest was asked to come to, and has.
        actual: Bytes it has according to QEMU; fewer.
        timeout: Seconds for it.
    """
    little = Tracker(goal - LARGEST_PAGE, actual, balloon.monitor.now())
    await balloon.set_target(little.target)
    await follow(balloon, little, timeout=timeout)
    await balloon.set_target(goal)


def note_left(error: BaseException, asked: int | None, due: int) -> None:
    """Have an error tell what a guest is left with that could be given no more.

    A QEMU that stands still would carry out what it was sent when it goes on; but what
    it has not read by the time the connection ends, it drops.

    Args:
        error: Why it could not be given more.
        asked: Bytes that it was last asked to come to, if that is known.
        due: Bytes that it should have been asked for.
    """
    if not isinstance(error, MonitorError):
        return
    if asked is None and "balloon" not in error.unknown_outcome:
        return
    if asked is None or asked < due:
        size = "a size not known" if asked is None else format_size(asked)
        error.add_note(
            f"the guest was last asked for {size}, and may keep to it: ask it anew"
            " (resize) once QEMU answers"
        )


def _pause(tracker: Tracker, phase: Phase) -> float:
    """Look again when a good part of the way may be done."""
    if phase == "waiting" or tracker.time_left is None:
        return _TICK
    return min(max(tracker.time_left / 4, _FASTEST), _SLOWEST)
