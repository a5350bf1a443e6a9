"""The edge of a guest's working set: below that size it reads again what was taken.

Pure: bytes read from disks in, a size that the guest should have out. No statistic of
the guest shows what it reads again (see :mod:`~qmpballoon.balloon._rereads`).

A loop over files has a cliff. As long as one of their pages does not fit into the page
cache, each page is dropped before it is read again, so *all* of them come from the
disk. So it would not do to give back a little and look whether less is read: a loop
would look like reads that the balloon has not caused, such as a backup's. The rule is:

1. When a guest reads more than in its baseline, nothing more is taken.
2. While these reads go on, the guest gets memory back, in steps that grow. The next
   step comes when the guest has read as much as it was given, or after a second.
3. When the reads end, what was given back and has not been filled is not needed. That
   is where the edge is.
4. The balloon has not caused reads that go on as fast after everything has been given
   back and filled, or for longer than the time within which memory has to be read again
   to be worth keeping. From then on they count as the guest's own rate. The same holds
   for reads that begin and end again and again, whatever is given back.

A program that starts, or a backup that ends, looks like an edge as well. So the first
edge is put to the test by taking memory once more.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Final

from attrs import frozen

from qmpballoon.balloon._pressure import BASELINE_PERIOD
from qmpballoon.sizes import MiB, format_size

__all__ = ["NO_REREAD_LIMITS", "QUIET", "RereadLimits", "Rereads", "WorkingSet"]

QUIET: Final = 2.0
"""Seconds without reads after which they have ended, if memory was given back for them.

A loop may pause between two rounds."""

_WINDOW: Final = 0.5  # seconds over which the rate is taken
_BASELINE_FACTOR: Final = 2.0  # a rate up to this multiple of the guest's own is normal
# Bytes of the first step, and bytes that have to be read again before it. Fewer prove
# nothing: a program that starts reads as much.
_FIRST_STEP: Final = 16 * MiB
_GROWTH: Final = 2  # factor from each step to the next
_STEP_TIME: Final = 1.0  # seconds after which the next one comes, whatever was read
# Reads that have fallen below this part of their highest rate are other reads, with
# another edge or none.
_FADED: Final = 1 / 8
# The time for which reads may go on has four quarters. The last is compared with the
# second. In simulated guests, random reads (Zipf) fall to 0.4 to 0.7 of it; a stream
# stays at 1.
_QUARTERS: Final = 4
_FADING: Final = 0.8
# The margin above the edge: a tenth of what had to be given back, and a least number of
# bytes. It is doubled each time that it was not enough.
_MARGIN: Final = 10
_LEAST_MARGIN: Final = 4 * MiB
_EDGES: Final = 2  # after so many edges, no more memory is taken
_MOST_EDGES: Final = 5  # after more, there is none: the reads end for other reasons
# Times that reads may begin and end without anything given back. One may be a program
# that starts; random reads waver a few times as more and more is taken.
_BURSTS: Final = 10
# The least memory that is worth stopping for: as much as a target is ahead of a guest.
# Large guests read more anyway.
_WORTH: Final = 128 * MiB
_WORTH_PART: Final = 128


@frozen
class RereadLimits:
    """When memory is worth keeping because of what a guest reads; by default never.

    Attributes:
        within: Seconds within which a page has to be read again to be worth keeping.
        rate: Bytes a second that a guest may read from disks beyond its own rate.
    """

    within: float = 0.0
    rate: float = math.inf

    @classmethod
    def of(cls, total: int, within: float) -> RereadLimits:
        """Return the limits for one guest.

        Reads at a certain rate come from ``rate * within`` bytes that are read again
        within that time. The limit is the rate at which so much memory is worth
        stopping for.

        Args:
            total: Bytes of its RAM.
            within: Seconds; 0: no memory is worth keeping.
        """
        if within == 0:
            return NO_REREAD_LIMITS
        return cls(within, max(_WORTH, total // _WORTH_PART) / within)


NO_REREAD_LIMITS: Final = RereadLimits()
"""Limits with which nothing that is read again matters."""


@frozen
class Rereads:
    """What a guest reads again now.

    Attributes:
        size: Bytes that it should have at least; 0 if it reads nothing again.
        reason: What it reads, in words; empty if it reads nothing again.
        begins: Whether these reads begin with this sample.
    """

    size: int = 0
    reason: str = ""
    begins: bool = False


_NONE: Final = Rereads()


class WorkingSet:
    """Finds how much memory a guest needs for what it reads again and again.

    Args:
        limits: Which reads matter.
        full: Bytes that the guest had before memory was taken.

    Attributes:
        edge: The size in bytes below which it reads again; ``None`` if not known yet.
        edges: How often an edge was found since the last new beginning.
        was_found: Whether an edge was ever found.
    """

    def __init__(self, limits: RereadLimits, full: float = math.inf) -> None:
        self.edge: int | None = None
        self.edges: int = 0
        self.was_found: bool = False
        self._limits = limits
        self._full = full
        self._seen = deque[tuple[float, int]]()
        self._baseline_until = BASELINE_PERIOD
        self._own_rate = 0.0
        self._own_until = 0.0
        self._begun: float | None = None  # since when it reads again
        self._last_high = self._last_step = 0.0
        self._fastest = 0.0  # the highest rate since then
        self._times_over = 0  # how often reads went on for as long as they may
        self._quarters: list[float] = []  # the value of ``_again`` after each quarter
        self._bursts = 0  # how often reads ended without anything given back
        self._again = 0.0  # bytes read since then, beyond its own rate
        self._size = self._given = self._step = 0
        self._room = 0.0  # bytes of what was given that are not filled yet

    @property
    def is_quiet(self) -> bool:
        """Whether the guest read nothing in its baseline."""
        return not self._own_rate

    def end_baseline(self) -> None:
        """Stop measuring the guest's own rate: the last sample was of the baseline."""
        self._baseline_until = -math.inf

    @property
    def is_reading(self) -> bool:
        """Whether it reads again what was taken."""
        return self._begun is not None

    @property
    def is_suspected(self) -> bool:
        """Whether it reads again, or has done so: a loop may just be pausing."""
        return self.edges > 0 or self.is_reading

    def observe(self, seconds: float, actual: int, reads: int | None) -> Rereads:
        """Take in a sample.

        Args:
            seconds: Seconds since the beginning.
            actual: Bytes the guest has.
            reads: Bytes that the VM has read from its disks; ``None``: not known.
        """
        if reads is None or math.isinf(self._limits.rate):
            return _NONE
        seen = self._seen
        last, now = seen[-1] if seen else (seconds, reads), (seconds, reads)
        seen.append(now)
        while len(seen) > 1 and seen[1][0] <= seconds - _WINDOW:
            seen.popleft()
        # The first sample after the baseline still shows reads that began within it.
        if last[0] <= self._baseline_until:
            self._own_rate = _compute_rate(seen[0], now, BASELINE_PERIOD)
            return _NONE
        rate = _compute_rate(seen[0], now, _WINDOW)
        self._forget_own(seconds, rate)
        is_high = rate > _BASELINE_FACTOR * self._own_rate + self._limits.rate
        begins = is_high and self._begun is None
        if begins:
            self._begin(seconds, actual)
        begun = self._begun
        if begun is None:
            return _NONE
        more = reads - last[1] - self._own_rate * (seconds - last[0])
        self._again += max(0.0, more)
        self._room -= max(0.0, more)
        self._go_on(seconds, begun, rate, is_high=is_high)
        if not self.is_reading:
            return _NONE
        reason = f"the guest reads {format_size(round(rate))}/s of what was taken again"
        return Rereads(self._size, reason, begins)

    def describe_edge(self) -> str:
        """Say that no more is taken because of the edge."""
        size = format_size(self.edge or 0)
        return f"stopped at what the guest reads again, below {size}"

    def begin_anew(self) -> None:
        """Forget the edge, and believe the next one at once."""
        self.edge, self.edges, self._times_over = None, _EDGES - 1, 0

    def _forget_own(self, seconds: float, rate: float) -> None:
        """Lower the guest's own rate when it has read less for long enough."""
        if rate >= self._own_rate / 2:
            self._own_until = seconds + self._limits.within
        elif seconds > self._own_until:
            self._own_rate = rate

    def _begin(self, seconds: float, actual: int) -> None:
        self._begun = self._last_step = seconds
        self._size, self._given, self._step = actual, 0, _FIRST_STEP
        self._again = self._room = self._fastest = 0.0
        self._quarters = []

    def _go_on(
        self, seconds: float, begun: float, rate: float, *, is_high: bool
    ) -> None:
        """Give more back, or find that the reads ended or have other causes."""
        self._fastest = max(self._fastest, rate)
        is_high &= rate >= self._fastest * _FADED
        if is_high:
            self._last_high = seconds
        elif not self._given or seconds >= self._last_high + QUIET:
            self._end()
            return
        has_all = self._size >= self._full
        is_filled = self._room <= 0 and self._again >= _FIRST_STEP
        is_over = self._is_over(seconds - begun)
        if is_over or (has_all and is_filled):
            self._times_over += is_over
            if self._fades(rate) and self._times_over <= _EDGES:
                self._end()
            else:
                # The third time, its rate may be low only because it pauses.
                is_known = self._times_over <= _EDGES
                self._own_rate = rate if is_known else max(rate, self._fastest)
                self._begun = None
        elif is_high and (is_filled or seconds >= self._last_step + _STEP_TIME):
            given = round(min(self._step, self._full - self._size))
            self._size += given
            self._given += given
            self._room = max(0.0, self._room) + given
            self._step *= _GROWTH
            self._last_step = seconds

    def _is_over(self, seconds: float) -> bool:
        """Return whether the reads have gone on for as long as they may."""
        while seconds >= self._limits.within / _QUARTERS * (len(self._quarters) + 1):
            self._quarters.append(self._again)
            if len(self._quarters) == _QUARTERS:
                return True
        return False

    def _fades(self, rate: float) -> bool:
        """Return whether its reads become fewer and fewer, as random ones do.

        A stream goes on at the same rate. That holds beside a loop, too: by the end of
        the first quarter, the loop has all that it needs.
        """
        if len(self._quarters) < _QUARTERS:
            return rate < self._fastest / 2
        first, second, third, last = self._quarters
        return last - third < _FADING * (second - first)

    def _end(self) -> None:
        """Note the edge, if memory had to be given back for the reads to end."""
        self._begun = None
        if not self._given:
            self._bursts += 1
            if self._bursts >= _BURSTS:
                self._own_rate = max(self._own_rate, self._fastest)
            return
        self.edges += 1
        self.was_found = True
        if self.edges > _MOST_EDGES:
            self._own_rate = max(self._own_rate, self._fastest)
            self.edge, self.edges = None, 0
            return
        if self.edges < _EDGES:
            return
        # If it read again at an edge that was known, the margin was too small.
        needed = self._given - max(0.0, self._room)
        margin = max(needed / _MARGIN, _LEAST_MARGIN) * 2 ** (self.edges - _EDGES)
        self.edge = self._size - max(0, round(self._room - margin))


def _compute_rate(
    then: tuple[float, int], now: tuple[float, int], least: float
) -> float:
    """Return bytes a second between two moments, over at least ``least`` seconds."""
    return max(0, now[1] - then[1]) / max(now[0] - then[0], least)
