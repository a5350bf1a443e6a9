"""Keeping what a guest gave, until the guest needs it.

:class:`Keeper` (pure) judges each sample, and :func:`keep` takes the samples. While
memory is kept, the guest may begin to use more, slowly or in a burst:

- If it falls below three quarters of its headroom, it gets what it lacks.
- If it comes under memory pressure, it gets one step of its guard, because nothing
  tells how much it lacks.
- If it reads again what was taken, it gets that back. When these reads have ended, it
  is known how much of that it needs, and the rest is taken again. Some minutes later
  memory is taken once more, to find out whether the guest still needs it.
- If it is in trouble, it gets everything, and the keeping ends.
"""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Final

from qmpballoon.balloon._alarms import Observation, compute_pause
from qmpballoon.balloon._tracker import STRAY
from qmpballoon.balloon.device import PAGE
from qmpballoon.balloon.sampling import KEPT
from qmpballoon.sizes import format_size

if TYPE_CHECKING:
    from collections.abc import Callable

    from qmpballoon.balloon._alarms import Alarm, Alarms
    from qmpballoon.balloon.device import Device
    from qmpballoon.balloon.guard import GuestLimits
    from qmpballoon.balloon.sampling import Sample, Sampler
    from qmpballoon.monitor import Monitor

__all__ = ["Keeper", "keep"]

_SHORTEST: Final = 0.02  # seconds between two samples of a guest with little left
_LONGEST: Final = 1.0  # and of one with plenty
# And of one under memory pressure, which may become critical, or end.
_UNDER_PRESSURE: Final = 0.25
_READING: Final = 0.1  # and of one that reads again what was taken
# Seconds between two calls of ``until``. People who have asked for the end wait for it,
# and the call costs the guest nothing.
_ASK_EVERY: Final = 0.1


class Keeper:
    """Decides how much of the kept memory a guest gets back.

    Args:
        limits: What the guest must keep.
        full: Bytes it has when it gets everything.
        actual: Bytes it has.
        alarms: Its alarms, which know what it did before memory was taken.
        try_at: When to try to take more, in seconds since the alarms' beginning.

    Attributes:
        target: Bytes it should have; it only ever grows.
        is_to_try: Whether to try to take more now.
        has_fed: Whether it got memory back because of what it reads.
    """

    def __init__(
        self,
        limits: GuestLimits,
        full: int,
        actual: int,
        alarms: Alarms,
        try_at: float = math.inf,
    ) -> None:
        self.target: int = actual
        self.is_to_try: bool = False
        self.has_fed: bool = False
        self._try_at = try_at
        self._full = full
        self._limits = limits
        self._alarms = alarms
        self._judged_at: float | None = None
        self._age = 0.0  # seconds since the guest was asked for its last answer

    def judge(self, seen: Observation) -> str | None:
        """Judge the guest by what is known of it now.

        Args:
            seen: The guest now, in seconds since the beginning of the alarms.

        Returns:
            Why the guest gets everything back; ``None`` if it does not.
        """
        # Its last answer is to the request of the previous sample.
        self._age = 0.0 if self._judged_at is None else seen.seconds - self._judged_at
        self._judged_at = seen.seconds
        alarm = self._alarms.judge(seen)
        if alarm.level == "trouble":
            return alarm.reason
        if seen.actual > self.target + STRAY:
            return "somebody else gave the guest its memory back"
        available = seen.stats.reclaimable or 0
        if self._alarms.is_short(available):
            self._give(seen.basis + self._limits.headroom - available)
        is_reading = self._feed(alarm)
        if alarm.begins and alarm.kind == "pressure":
            step = self._limits.step
            self._give(self._full if math.isinf(step) else self.target + int(step))
        spare = available - self._limits.headroom
        self.is_to_try = not is_reading and (
            self.has_fed or (seen.seconds >= self._try_at and spare > STRAY)
        )
        if self.target >= self._full and not (is_reading or self.is_to_try):
            return "the guest needs all of it"
        return None

    def _feed(self, alarm: Alarm) -> bool:
        """Give the guest what it reads again; return whether it does."""
        before = self.target
        self._give(min(alarm.size, self._full))
        self.has_fed |= self.target > before
        return alarm.size > 0

    def _give(self, wanted: int) -> None:
        self.target = max(self.target, -(-wanted // PAGE) * PAGE)

    def choose_pause(self, available: int | None) -> float:
        """Return for how many seconds the guest need not be sampled."""
        spare = (available or 0) - self._alarms.threshold
        longest = _UNDER_PRESSURE if self._alarms.is_pressed else _LONGEST
        if self._alarms.working_set.is_reading:
            longest = _READING
        return min(max(compute_pause(spare, self._age), _SHORTEST), longest)


async def keep(
    device: Device,
    sampler: Sampler,
    keeper: Keeper,
    seconds: float,
    on_sample: Callable[[Sample], None],
    *,
    began: float,
    until: Callable[[], bool] | None = None,
    mark: str | None = KEPT,
) -> str | None:
    """Watch the guest until it must get everything back, or more can be taken.

    Args:
        device: The balloon.
        sampler: A sampler of the same balloon.
        keeper: Judges the samples.
        seconds: The longest time to keep the memory.
        on_sample: Called with each sample.
        began: When the keeping began, in seconds of the monitor's clock.
        until: Returns whether the keeping should end now.
        mark: A word for the first sample.

    Returns:
        Why the guest gets everything back; ``None`` if more can be taken.

    Cancellation: takes effect at once; the target stands.
    """
    monitor = device.monitor
    while (left := began + seconds - monitor.now()) > 0:
        if until is not None and until():
            return f"kept for {monitor.now() - began:.0f} s, until it was to end"
        sample = await sampler.take(mark)
        mark = None
        on_sample(sample)
        before = keeper.target
        why = keeper.judge(Observation.of(sampler, sample))
        if why is not None:
            return f"kept for {monitor.now() - began:.0f} s: {why}"
        if keeper.target > before:
            given = format_size(keeper.target - before)
            device.log(logging.INFO, f"the guest gets {given} back while it is kept")
            await device.send_target(keeper.target)
            mark = "gives back"
        if keeper.is_to_try:
            return None
        await _pause(monitor, min(keeper.choose_pause(sample.available), left), until)
    return f"kept for {seconds:.0f} s, as long as it was to be"


async def _pause(
    monitor: Monitor, seconds: float, until: Callable[[], bool] | None
) -> None:
    """Wait for some seconds, or until the keeping should end."""
    if until is None:
        await monitor.sleep(seconds)
        return
    end = monitor.now() + seconds
    while (left := end - monitor.now()) > 0 and not until():
        await monitor.sleep(min(left, _ASK_EVERY))
