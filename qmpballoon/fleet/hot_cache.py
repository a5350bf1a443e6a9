"""How much page cache a guest reads again, estimated from what its VM reads from disks.

Pure: samples in, one figure out. No statistic of a guest tells how much of its page
cache is in use. But if cache that is in use was taken from it, it is read from the VM's
disks again, and QEMU counts that. The rules:

* *What counts.* Reads count if they are more than the VM's usual rate, and if they do
  not fill free memory: then they replaced other page cache. A guest that has room for
  what it reads needs no more.
* *A byte for a byte.* For each byte that counts the guest lacks one, up to what was
  taken from it. Under LRU, a loop reads everything until all of it fits. So giving back
  less proves nothing, and no partial success is looked for.
* *Other causes.* If the guest goes on reading after it got everything back, or for half
  a minute, then its reads do not count for a time. That time doubles whenever this
  happens. It happens to a stream, such as a backup; to a set that is too large for the
  memory that there is, of which a part is worth nothing under LRU; and to a set of
  which a round takes longer, which is read too seldom to be worth its memory.
* *Tried again, slowly.* Once the reads have ended, the figure is kept for a while. Then
  it falls slowly, and what is above it can be taken. If reads begin again, it was too
  low: it rises by a quarter first, and is kept for twice as long.

A guest that lies, or that reads its disks without end, gains no more than what was
taken from it, and only within the rules for all needs.
"""

from __future__ import annotations

import math
from typing import Final

from attrs import define, frozen

from qmpballoon.sizes import MiB

__all__ = ["CacheSample", "HotCache"]

# Bytes that count at least: a move of less is not worth making (the dead band).
_LEAST: Final = 16 * MiB
# Seconds after which a read no longer counts as lacking memory. A guest may also read
# as much at once as is usual in this time. A rate below 1.6 MiB/s never counts.
_RECENT: Final = 10.0
_SLOWEST: Final = _LEAST / _RECENT
# Seconds over which the usual rate is learnt.
_USUAL: Final = 60.0
# Seconds for which reads may go on. Donors give at most an eighth of their RAM in a
# plan, and some three seconds pass until that memory has arrived and its effect is
# seen: in 30 seconds all that is needed can have been moved.
_PATIENCE: Final = 30.0
# Seconds for which the figure is kept at first, and for which reads are ignored at
# first; both double up to the longest.
_PAUSE: Final = 60.0
_LONGEST_PAUSE: Final = 3600.0
# Seconds in which the figure falls to 1/e, to find out what is cold: five minutes
# (Gray and Putzolu, "The 5 minute rule", 1987).
_FALL: Final = 300.0


@frozen
class CacheSample:
    """What is known of a guest at one moment; sizes are bytes.

    Attributes:
        at: The moment, in seconds on a monotonic clock.
        read: What the VM has read from its disks until then.
        actual: The guest's size.
        free: The memory that nothing in it uses, not even a cache.
        available: What it can do without, page cache included.
        headroom: The part of ``available`` that it keeps.
        taken: What was taken from it and can be given back.
    """

    at: float
    read: int
    actual: int
    free: int
    available: int
    headroom: int
    taken: int


@define
class HotCache:
    """Estimates how much page cache a guest reads again and again.

    Attributes:
        size: Bytes that it needs available beyond its headroom to read nothing again; 0
            if it reads nothing again, or if its reads have other causes.
    """

    size: int = 0
    _last: CacheSample | None = None
    # Usual reads
    _rate: float = 0.0  # bytes a second
    _learnt: float = 0.0  # seconds over which that was measured
    _ahead: float = 0.0  # bytes that it has read sooner than is usual
    # Unusual reads
    _recent: float = 0.0  # bytes that were read lately
    _lacking: float = 0.0  # those of them that replaced other page cache
    _is_reading: bool = False
    _begun_at: float | None = None  # when these reads began
    _ignored_until: float = -math.inf
    _ignored_for: float = _PAUSE
    _always_free: int = 0  # what stays free even when cache is replaced: watermarks
    # How long the figure is kept
    _quiet_since: float | None = None
    _kept_for: float = _PAUSE

    @property
    def is_known(self) -> bool:
        """Whether the guest was seen for long enough: some seconds."""
        return self._learnt >= _RECENT

    def observe(self, now: CacheSample) -> None:
        """Take in a sample.

        Args:
            now: The next one. The guest's size may have changed since the last one.
        """
        last, self._last = self._last, now
        if last is None or now.at <= last.at:
            return
        seconds = now.at - last.at
        read = max(0, now.read - last.read)
        grown = now.actual - last.actual
        filled = max(0, last.free + grown - now.free)
        unusual = self._take_usual(read, seconds)
        left = max(0.0, 1 - seconds / _RECENT)
        self._recent = self._recent * left + unusual
        replaced = max(0.0, unusual - filled)
        self._lacking = self._lacking * left + replaced
        is_ignored = now.at < self._ignored_until
        was_reading, self._is_reading = self._is_reading, replaced >= _SLOWEST * seconds
        if grown > 0 or is_ignored or not self._is_reading:
            self._lacking = 0.0  # memory that it was given has to be filled first
        if self._lacking >= _LEAST and was_reading:
            self._raise(now)
        elif self._recent < _LEAST:
            self._fall(now, seconds)
        # The balloon cannot have caused the reads of a guest that lacks nothing.
        if now.taken < _LEAST or not (is_ignored or self._lacking >= _LEAST):
            self._learn(read, seconds)

    def _take_usual(self, read: int, seconds: float) -> float:
        """Return the part of some reads that is more than usual."""
        if not self.is_known:
            return 0.0
        ahead = max(0.0, self._ahead + read - self._rate * seconds)
        self._ahead = min(ahead, self._rate * _RECENT)
        return ahead - self._ahead

    def _learn(self, read: int, seconds: float) -> None:
        self._learnt += seconds
        share = min(1.0, seconds / min(self._learnt, _USUAL))
        self._rate += (read / seconds - self._rate) * share

    def _raise(self, now: CacheSample) -> None:
        """Raise the figure, or find that the guest's reads have other causes."""
        if self._begun_at is None:
            self._begun_at = now.at
        if now.taken < _LEAST or now.at - self._begun_at > _PATIENCE:
            self._ignore(now.at)
            return
        step = self._lacking
        if self._was_tried(now.at):
            self._kept_for = min(self._kept_for * 2, _LONGEST_PAUSE)
            step = min(step, max(_LEAST, self.size // 4))
        self.size = max(0, now.available - now.headroom) + min(int(step), now.taken)
        self._always_free = now.free
        self._quiet_since = None

    def _ignore(self, at: float) -> None:
        if self.size:
            self._ignored_until = at + self._ignored_for
            self._ignored_for = min(self._ignored_for * 2, _LONGEST_PAUSE)
        self.size, self._lacking = 0, 0.0
        self._begun_at = self._quiet_since = None

    def _was_tried(self, at: float) -> bool:
        """Return whether the figure is falling, so that what is above it is taken."""
        if not self.size or self._quiet_since is None:
            return False
        return at - self._quiet_since > self._kept_for

    def _fall(self, now: CacheSample, seconds: float) -> None:
        """Let the figure fall, if nothing has been read again for long enough."""
        self._begun_at = None
        if self._quiet_since is None:
            self._quiet_since = now.at
            # What the reads have not filled was not needed.
            unused = max(0, now.free - self._always_free)
            above_headroom = now.available - now.headroom
            self.size = min(self.size, max(0, above_headroom - unused))
        if not self._was_tried(now.at):
            return
        self.size = int(self.size * max(0.0, 1 - seconds / _FALL))
        if self.size < _LEAST:
            self.size = 0
            self._kept_for = self._ignored_for = _PAUSE
