"""The loops that move a balloon, and leaving a guest at a size it can live with.

``resize`` and ``reclaim`` share :func:`shrink`. It takes a sample, asks a
:class:`~qmpballoon.balloon._controller.Controller` for a decision, and sets the target
that this says. The calls differ in the limits that they give the controller.
:func:`follow` waits until a target that is set has been reached.

However a call ends, the guest is left at a size that it can live with.
:func:`choose_safe_size` chooses that size, and :func:`leave_safe` sets it if the call
ends by an exception.
"""

from __future__ import annotations

import logging
import math
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from attrs import define

from qmpballoon.balloon._alarms import Observation, compute_pause
from qmpballoon.balloon._tracker import Tracker
from qmpballoon.balloon.device import CLEANUP_TIMEOUT, LARGEST_PAGE, PAGE
from qmpballoon.balloon.results import Ending
from qmpballoon.balloon.sampling import Progress
from qmpballoon.errors import MonitorError, QmpBalloonError
from qmpballoon.sizes import format_size

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from qmpballoon.balloon._controller import Controller, Decision
    from qmpballoon.balloon.device import Device
    from qmpballoon.balloon.results import AlarmKind, Phase, Stage
    from qmpballoon.balloon.sampling import Sample, Sampler
    from qmpballoon.balloon.stats import GuestStats

__all__ = [
    "choose_safe_size",
    "follow",
    "leave_safe",
    "make_progress",
    "prompt_size_report",
    "shrink",
]

_TICK: Final = 0.04  # seconds between two samples; more often costs an idle guest CPU
_SHORTEST_TICK: Final = 0.02  # for a guest that has little left
# For a guest that gives a whole step in less: 128 MiB, at 6 GiB a second or more.
_FAST_TICK: Final = 0.005
_LONGEST_TICK: Final = 0.5  # for one that has far more than it can allocate meanwhile
_SLOWER: Final = 1.5  # factor of the pause while the guest has not reached its target
# Seconds between two polls of the size alone: near the target, and far from it.
_SHORTEST_POLL: Final = 0.01
_LONGEST_POLL: Final = 0.25


async def shrink(
    device: Device,
    sampler: Sampler,
    controller: Controller,
    tracker: Tracker,
    on_sample: Callable[[Sample, Phase], None],
    *,
    timeout: float = math.inf,
    persist: bool = False,
    until: Callable[[], bool] | None = None,
) -> Ending:
    """Inflate the balloon as far as the controller allows.

    At the end the last target that the controller allowed is set. The caller decides
    what to do about it.

    Args:
        device: The balloon.
        sampler: A sampler of the same balloon.
        controller: Decides on targets.
        tracker: Tells whether the balloon has stalled.
        on_sample: Called with each sample.
        timeout: Seconds for the whole call.
        persist: In trouble, give memory back and go on, until the tracker says that
            the balloon has stalled. By default trouble ends the call, and the caller
            gives the memory back.
        until: Called at each sample; when it returns true the call ends as by a
            timeout.

    Returns:
        How it ended.

    Cancellation: takes effect at once; the last target stands.
    """
    monitor = device.monitor
    deadline = monitor.now() + timeout
    reason, mark, limited_at, alarm = "", None, 0, None
    in_trouble = False
    pauses = _Pauses(controller, tracker)
    while monitor.now() < deadline:
        sample = await sampler.take(mark)
        phase = tracker.observe(monitor.now(), sample.actual, asked=device.target)
        on_sample(sample, phase)
        working_set = controller.alarms.working_set
        if phase == "reached" and not controller.watches:
            return Ending("reached")
        if until is not None and until():
            break
        decision = controller.decide(Observation.of(sampler, sample))
        in_trouble = _log_alarm(device, decision, was_known=in_trouble)
        mark, alarm = decision.mark, decision.alarm
        # A reason stays valid until the balloon gets farther than it was at that time.
        if decision.reason:
            reason, limited_at = decision.reason, tracker.nearest
        elif tracker.nearest < limited_at:
            reason = ""
        gives_back = persist and decision.action == "trouble"
        arrived = device.target is not None and sample.actual <= device.target
        if decision.action != "take" and not gives_back:
            return Ending(decision.action, reason, alarm)
        if working_set.is_reading or controller.is_paced:
            tracker.begin_anew()  # the balloon is held still, or slowed down, by us
        elif phase == "stalled":
            return Ending("stalled", reason, alarm)
        # Sent again while the guest has not moved: another client may have set its own.
        if decision.target != device.target or phase == "waiting":
            await device.send_target(decision.target)
        pause = pauses.choose(sample, decision.target, arrived=arrived)
        # The next step has to wait for the guest's answer: look for it soon.
        pause_now = min(pause, _TICK) if sampler.silence > 0 else pause
        await monitor.sleep(min(pause_now, deadline - monitor.now()))
    return Ending("timed-out", reason, alarm)


def _log_alarm(device: Device, decision: Decision, *, was_known: bool) -> bool:
    """Log an alarm when it begins; return whether the guest is in trouble."""
    in_trouble = decision.action == "trouble"
    if in_trouble and not was_known:
        why = f"{decision.reason}: it gets {format_size(decision.target)} back"
        device.log(logging.WARNING, why)
    elif decision.mark is not None:
        why = f"{decision.reason}: nothing more is taken for now"
        device.log(logging.INFO, why)
    return in_trouble


@define
class _Pauses:
    """The pauses between samples: short for a guest with little left, or a fast one.

    Attributes:
        controller: Says when the guest has little left, and what slows the balloon.
        tracker: Says how fast the balloon moves.
        last: Seconds of the last pause.
        seen: Seconds and bytes of the last sample.
    """

    controller: Controller
    tracker: Tracker
    last: float = _TICK
    seen: tuple[float, int] = (0.0, 0)

    def choose(self, sample: Sample, target: int, *, arrived: bool) -> float:
        """Return the seconds until the next sample.

        Args:
            sample: The last sample.
            target: Bytes of the target that is set now.
            arrived: Whether the guest had reached the previous target.
        """
        if self.controller.alarms.working_set.is_reading:
            self.last = _TICK
            return _TICK
        # A guest that waited for its next target can go faster, unless we slow it down.
        is_faster = arrived and not self.controller.is_paced
        pause = self.last / 2 if is_faster else self.last * _SLOWER
        pause = min(pause, self._limit(sample.available))
        # Sample again when half of what is left of the step may be done, unless we slow
        # the guest down.
        recent = self._measure_rate(sample)
        ahead, rate = sample.actual - target, max(self.tracker.rate, recent)
        if rate > 0 and ahead > 0 and not self.controller.is_paced:
            pause = min(pause, ahead / 2 / rate)
        step = self.controller.step
        gives_steps = recent * _SHORTEST_TICK >= step
        is_fast = ahead >= step and (is_faster or gives_steps)
        self.last = max(pause, _FAST_TICK if is_fast else _SHORTEST_TICK)
        return self.last

    def _measure_rate(self, sample: Sample) -> float:
        """Return the bytes a second that the guest has given since the last sample.

        The tracker's rate is a mean over a longer time, which includes waiting.
        """
        (then, size), self.seen = self.seen, (sample.t, sample.actual)
        return (size - sample.actual) / (sample.t - then) if sample.t > then else 0.0

    def _limit(self, available: int | None) -> float:
        """Return the longest pause for a guest with this many bytes available."""
        if available is None:
            return _TICK
        spare = available - self.controller.watch_below
        if spare <= 0:
            return _SHORTEST_TICK
        # How old the answer is need not count: it is at most half a second, in which
        # a guest allocates less than twice what it has left when it has none to spare.
        return min(max(compute_pause(spare), _TICK), _LONGEST_TICK)


async def follow(
    device: Device,
    tracker: Tracker,
    on_poll: Callable[[Phase], None] = lambda _: None,
    *,
    timeout: float = math.inf,
) -> Ending:
    """Wait for a balloon to reach the target that is set, by its size alone.

    Args:
        device: The balloon.
        tracker: Tells whether the balloon has stalled.
        on_poll: Called with the phase at each poll.
        timeout: Seconds for the whole call.

    Returns:
        How it ended: ``"reached"``, ``"stalled"`` or ``"timed-out"``.

    Cancellation: takes effect at once; the target stands.
    """
    monitor = device.monitor
    deadline = monitor.now() + timeout
    while monitor.now() < deadline:
        phase = tracker.observe(monitor.now(), await device.actual())
        on_poll(phase)
        if phase == "reached":
            return Ending("reached")
        if phase == "stalled":
            return Ending("stalled")
        interval = _choose_poll_interval(tracker.time_left)
        await monitor.sleep(min(interval, deadline - monitor.now()))
    # One that had its target from the beginning needs no time.
    return Ending("reached" if tracker.phase == "reached" else "timed-out")


def _choose_poll_interval(time_left: float | None) -> float:
    """Return the seconds until a quarter of the remaining distance may be done."""
    if time_left is None:
        return _TICK
    return min(max(time_left / 4, _SHORTEST_POLL), _LONGEST_POLL)


def make_progress(
    tracker: Tracker, stage: Stage, sample: Sample, *, target: int | None = None
) -> Progress:
    """Return the progress of a balloon on its way.

    Args:
        tracker: Follows the balloon.
        stage: What is done with it.
        sample: The last sample.
        target: Bytes that the guest should have; by default the tracker's target.
    """
    goal = tracker.target if target is None else target
    distance, phase = abs(sample.actual - goal), tracker.phase
    if distance < PAGE:
        phase = "reached"
    return Progress(
        seconds=sample.t,
        stage=stage,
        phase=phase,
        before=tracker.before,
        target=goal,
        actual=sample.actual,
        rate=tracker.rate,
        time_left=distance / tracker.rate if tracker.rate >= 1 else None,
        sample=sample,
    )


async def prompt_size_report(
    device: Device, goal: int, actual: int, *, timeout: float = math.inf
) -> None:
    """Make a restarted guest's driver report its size, by asking for a little memory.

    A driver that has nothing to do when it starts reports no size to QEMU. QEMU then
    still shows what the previous driver reported. The target is ``goal`` again at the
    end.

    Args:
        device: The balloon.
        goal: Bytes that the guest was asked to have, and has.
        actual: Bytes that it has by QEMU's report, which are fewer.
        timeout: Seconds to wait for the report.

    Cancellation: the target may be left a little below ``goal``.
    """
    little = Tracker(goal - LARGEST_PAGE, actual, device.monitor.now())
    await device.send_target(little.target)
    await follow(device, little, timeout=timeout)
    await device.send_target(goal)


def choose_safe_size(
    actual: int, full: int, headroom: int, stats: GuestStats, alarm: AlarmKind | None
) -> int:
    """Return the size at which a call that took memory from a guest may leave it.

    Nobody watches the guest from now on. So if anything is wrong with it, it gets back
    all that it had, even if a loop would have waited for some seconds first. A guest
    that is well gets what it lacks of its headroom: with nothing available the next
    allocation would kill it.

    Args:
        actual: Bytes that the guest has.
        full: Bytes that it had before.
        headroom: Bytes that it should have available.
        stats: What it reports now.
        alarm: What is wrong with it; ``None`` if nothing is.
    """
    if alarm is not None:
        return max(actual, full)
    available = stats.reclaimable
    lacks = 0 if available is None else max(0, headroom - available)
    return min(actual + lacks, max(actual, full))


async def leave_safe(
    device: Device,
    size: int,
    error: BaseException,
    measure: Callable[[], Awaitable[int]],
) -> None:
    """Set a target that the guest can live with, when a call ends by an exception.

    If this fails, nothing more can be done. A note on the exception then says what the
    guest is left with.

    Args:
        device: The balloon.
        size: Bytes that the guest can live with, by what is known now. This target is
            set before QEMU is asked anything, because a QEMU that is stopped carries it
            out when it is resumed.
        error: The exception.
        measure: Returns the value of ``size`` by QEMU's present figures.
    """
    asked = device.target
    device.log(
        logging.WARNING,
        f"ended by {type(error).__name__}: the guest is asked to have"
        f" {format_size(size)}",
    )
    with device.monitor.shield(CLEANUP_TIMEOUT), suppress(QmpBalloonError):
        await device.send_target(size)
        asked = size
        if (measured := await measure()) != size:
            await device.send_target(measured)
    _note_target(error, asked, size)


def _note_target(error: BaseException, asked: int | None, due: int) -> None:
    """Add a note to an exception if the guest is left with too small a target.

    A QEMU that is stopped carries out what it was sent when it is resumed. But it drops
    what it has not read by the time the connection ends.

    Args:
        error: Why no larger target could be set.
        asked: The last target in bytes, if it is known.
        due: Bytes that the target should be.
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
