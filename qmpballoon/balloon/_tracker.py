"""Judging from a balloon's size over time whether it gets where it was sent.

Pure: observations in, verdicts out.

A balloon that no longer moves is not one of which no byte moves. A guest at its
limit still hands over a page now and then, and one with deflate-on-oom takes back
and gives again for ever. So progress is what the balloon has come *nearer* to its
target than ever before, and it has stalled when that is less than a certain rate
over a window of time.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Final, Literal

from attrs import frozen

from qmpballoon._checks import require_seconds

__all__ = ["LARGEST_PAGE", "PAGE", "Phase", "StallLimits", "Tracker"]

Phase = Literal["waiting", "moving", "slowing", "stalled", "reached"]
"""How a balloon fares: not yet begun, at its pace, at less than a quarter of its
best pace, below the stall limits, there."""

PAGE: Final = 4096
"""Bytes in a page of the balloon, whatever the guest's own page size."""

LARGEST_PAGE: Final = 65536
"""Bytes in the largest page of a guest; its driver can come no nearer than that."""

_RATE_WINDOW: Final = 1.0  # seconds over which the present rate is taken
_SLOWING: Final = 0.25
# Nothing but a reset or hot-plugged memory moves a balloon backwards this far
# between two looks at it.
_JUMP: Final = 64 * 1024 * 1024
# Bytes that a balloon which was on its way may still go the other way.
_STRAY: Final = 16 * 1024 * 1024
_JUMPS_FORGIVEN: Final = 3  # and ways back that we sent it


@frozen
class StallLimits:
    """What counts as a stall.

    Attributes:
        rate: Bytes a second, above 0. A balloon slower than this has stalled.
        window: Seconds over which the rate is taken, above 0.
    """

    rate: float = 1024 * 1024
    window: float = 5.0

    def __attrs_post_init__(self) -> None:
        """Refuse what makes no sense."""
        require_seconds(self.window, "window")
        for name, value in (("rate", self.rate), ("window", self.window)):
            if not value > 0:  # with either at 0, nothing would ever count as a stall
                raise ValueError(f"{name} is {value}: it must be above 0")


class Tracker:
    """Follows one balloon on its way to one target.

    Args:
        target: Bytes, as QEMU takes it: whole pages, not above the RAM.
        actual: Bytes at the beginning.
        now: Seconds at the beginning, on any clock.
        limits: What counts as a stall.

    Attributes:
        target: Where it is to go.
        before: Where it was at the beginning.
        actual: Where it is.
        jumps: How often it was thrown back, by a reset or hot-plugged memory.
    """

    def __init__(
        self, target: int, actual: int, now: float, limits: StallLimits | None = None
    ) -> None:
        self.target = target
        self.before = actual
        self.actual: int = actual
        self.jumps: int = 0
        self._restarts = 0
        # How far from its target it was sent since it last came nearer.
        self._sent_back = 0
        self._limits = limits or StallLimits()
        self._start = self._now = now
        self._rate = 0.0
        self._fastest = 0.0
        # Times, and how near to the target the balloon had come by then.
        self._history = deque([(now, self.distance)])

    def observe(self, now: float, actual: int, *, asked: int | None = None) -> Phase:
        """Take in how far the balloon is.

        Args:
            now: Seconds, on the clock of the beginning.
            actual: Bytes the guest has.
            asked: Bytes it was last asked to come to, if that is not the target.

        Returns:
            How it fares.
        """
        nearest = self._history[-1][1]
        self.actual = actual
        if self.distance < nearest:
            self._sent_back = 0
        if asked is not None:
            self._sent_back = max(self._sent_back, abs(asked - self.target))
        if self.distance > nearest + _JUMP and self._restarts < _JUMPS_FORGIVEN:
            self._restarts += 1
            self.jumps += self.distance > self._sent_back
            self._history.clear()
            nearest = self.distance
        self._smooth_rate(now - self._now, nearest - min(nearest, self.distance))
        self._now = now
        self._history.append((now, min(nearest, self.distance)))
        # The oldest entry is the other end of the window, or beyond it.
        horizon = now - self._limits.window
        while len(self._history) > 1 and self._history[1][0] <= horizon:
            self._history.popleft()
        return self.phase

    @property
    def distance(self) -> int:
        """Bytes between the balloon and its target."""
        return abs(self.actual - self.target)

    @property
    def moved(self) -> bool:
        """Tell whether it ever moved, in whatever direction."""
        return self.actual != self.before or self._fastest > 0 or self.jumps > 0

    @property
    def strayed(self) -> bool:
        """Tell whether it is much farther from its target than it was before."""
        return self.distance > self.nearest + _STRAY

    @property
    def stopped(self) -> bool:
        """Tell whether it moved, and has come no nearer for a whole window."""
        far, near = self._history[0][1], self._history[-1][1]
        return self.actual != self.before and self._stalled and far == near

    @property
    def nearest(self) -> int:
        """Bytes that were left to the target when it had come nearest."""
        return self._history[-1][1]

    @property
    def elapsed(self) -> float:
        """Seconds since the beginning."""
        return self._now - self._start

    @property
    def rate(self) -> float:
        """Bytes a second by which the balloon nears its target, over a second or so."""
        return self._rate

    @property
    def time_left(self) -> float | None:
        """Seconds to the target at the present rate; ``None`` if it does not move."""
        return self.distance / self._rate if self._rate >= 1 else None

    @property
    def phase(self) -> Phase:
        """How the balloon fares."""
        if self.distance < PAGE:
            return "reached"
        if self._stalled:
            return "reached" if self.distance < LARGEST_PAGE else "stalled"
        if self._fastest == 0:
            return "waiting"
        return "slowing" if self._rate < self._fastest * _SLOWING else "moving"

    @property
    def _stalled(self) -> bool:
        (then, far), (_, near) = self._history[0], self._history[-1]
        span = self._now - then
        return span >= self._limits.window and far - near < self._limits.rate * span

    def _smooth_rate(self, seconds: float, progress: int) -> None:
        if seconds > 0:
            weight = -math.expm1(-seconds / _RATE_WINDOW)
            self._rate += (progress / seconds - self._rate) * weight
            self._fastest = max(self._fastest, self._rate)
