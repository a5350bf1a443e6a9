"""Whether a balloon gets to its target, judged by its size over time.

Pure: observations in, a phase out.

"No byte moved" is not a useful test for a stall. A guest at its limit still hands over
a page now and then, and one with deflate-on-oom takes pages back and gives them again
without end. So only coming *nearer* to the target than ever before is progress, and a
balloon has stalled if its progress over a window of time is below a certain rate.
"""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING, Final

from attrs import frozen

from qmpballoon._checks import require_seconds
from qmpballoon.balloon.device import LARGEST_PAGE, PAGE
from qmpballoon.sizes import MiB

if TYPE_CHECKING:
    from qmpballoon.balloon.results import Phase

__all__ = ["STRAY", "StallLimits", "Tracker", "compute_stall_limits"]

STRAY: Final = 16 * MiB
"""Bytes that a balloon may move away from its target without being told to: when the
target changes, the driver first finishes what it has begun. If it moves farther away,
another client has set a target."""

_RATE_WINDOW: Final = 1.0  # seconds over which the present rate is taken
_SLOWING: Final = 0.25  # below this share of its best rate, a balloon is slowing
# Bytes. Only a reset, hot-plugged memory or a new target moves a balloon back as far
# between two polls.
_JUMP: Final = 64 * MiB
# After such a move back, the stall window begins again, this many times at most.
_MAX_RESTARTS: Final = 3


@frozen
class StallLimits:
    """What counts as a stall.

    Attributes:
        rate: Bytes a second, above 0. A balloon slower than this has stalled.
        window: Seconds over which the rate is taken, above 0.

    Raises:
        TypeError: A value is not a number.
        ValueError: A value is out of range.
    """

    rate: float = MiB
    window: float = 5.0

    def __attrs_post_init__(self) -> None:
        """Refuse values that make no sense."""
        require_seconds(self.window, "window")
        for name, value in (("rate", self.rate), ("window", self.window)):
            if not value > 0:  # with either at 0, nothing would ever count as a stall
                raise ValueError(f"{name} is {value}: it must be above 0")


def compute_stall_limits(max_rate: float) -> StallLimits:
    """Return what counts as a stall of a balloon whose rate is capped.

    Args:
        max_rate: Bytes a second that are taken at most.
    """
    rate = min(StallLimits().rate, max_rate / 4)
    # At a low rate the balloon moves by a page now and then.
    return StallLimits(rate, max(StallLimits().window, LARGEST_PAGE / rate))


class Tracker:
    """Follows one balloon on its way to one target.

    Args:
        target: Bytes, as QEMU takes it: whole pages, not above the RAM.
        actual: Bytes the guest has at the beginning.
        now: Seconds at the beginning, on any clock.
        limits: What counts as a stall.

    Attributes:
        target: Bytes the guest should have.
        before: Bytes it had at the beginning.
        actual: Bytes it has.
        jumps: How often a reset or hot-plugged memory threw the balloon back.
    """

    def __init__(
        self, target: int, actual: int, now: float, limits: StallLimits | None = None
    ) -> None:
        self.target = target
        self.before = actual
        self.actual: int = actual
        self.jumps: int = 0
        self._restarts = 0
        # How far from its target we have sent it since its last progress.
        self._sent_back = 0
        self._limits = limits or StallLimits()
        self._start = self._now = now
        self._rate = 0.0
        self._fastest = 0.0
        # Times, and the smallest distance to the target until then.
        self._history = deque([(now, self.distance)])

    def observe(self, now: float, actual: int, *, asked: int | None = None) -> Phase:
        """Take in the size of the balloon.

        Args:
            now: Seconds, on the clock of the beginning.
            actual: Bytes the guest has.
            asked: The last target that was set, if that is not this tracker's.

        Returns:
            The phase it is in.
        """
        nearest = self._history[-1][1]
        self.actual = actual
        if self.distance < nearest:
            self._sent_back = 0
        if asked is not None:
            self._sent_back = max(self._sent_back, abs(asked - self.target))
        if self.distance > nearest + _JUMP and self._restarts < _MAX_RESTARTS:
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

    def begin_anew(self) -> None:
        """Look for a stall from now on: the balloon was held still until now."""
        self._history = deque([(self._now, self.distance)])

    @property
    def distance(self) -> int:
        """Bytes between the balloon and its target."""
        return abs(self.actual - self.target)

    @property
    def moved(self) -> bool:
        """Whether it ever moved, in either direction."""
        return self.actual != self.before or self._fastest > 0 or self.jumps > 0

    @property
    def strayed(self) -> bool:
        """Whether it is much farther from its target than it was before."""
        return self.distance > self.nearest + STRAY

    @property
    def stopped(self) -> bool:
        """Whether it moved, has stalled, and made no progress for half a window.

        Half a window, because a balloon that stops abruptly counts as stalled before a
        whole window without progress has passed.
        """
        if self.actual == self.before or not self._stalled:
            return False
        half = self._now - self._limits.window / 2
        then = next(left for at, left in reversed(self._history) if at <= half)
        return then == self.nearest

    @property
    def nearest(self) -> int:
        """Bytes between the balloon and its target when it was nearest."""
        return self._history[-1][1]

    @property
    def elapsed(self) -> float:
        """Seconds since the beginning."""
        return self._now - self._start

    @property
    def rate(self) -> float:
        """Bytes a second toward the target, smoothed over about a second."""
        return self._rate

    @property
    def time_left(self) -> float | None:
        """Seconds to the target at the present rate; ``None`` if it does not move."""
        return self.distance / self._rate if self._rate >= 1 else None

    @property
    def phase(self) -> Phase:
        """The state of the balloon on its way."""
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
