"""How much page cache a guest reads again, estimated from what its VM reads from disks.

Pure: samples in, one figure out. No statistic of a guest tells which of its page cache
is in use. But what was taken from it and is in use comes back from the VM's disks, and
QEMU counts that. The rules:

* *What counts.* Reads that are unusual, by the VM's own rate before, and that fill no
  free memory: they replaced other page cache. A guest that has room for what it reads
  needs no more.
* *A byte for a byte.* For each byte that counts the guest lacks one, up to what was
  taken from it. A loop under LRU reads everything until all of it fits. So nothing
  smaller proves anything, and no partial success is looked for.
* *Not ours.* If the guest has all back and goes on, or goes on for half a minute, then
  its reads do not count for a time. That time doubles with each such end. A stream,
  such as a backup, ends so. So does a set that is too large for the memory that there
  is: under LRU a part of it is worth nothing. And so does one of which a round takes
  longer: it is read too seldom to be worth its memory.
* *Tried again, slowly.* Once the reads have ended, the figure is kept for a while. Then
  it falls slowly, and what is above it can be taken. If reads begin again, it was too
  low: it rises by a quarter first, and is kept for twice as long.

A guest that lies, or reads its disks for ever, gains by it no more than what was taken
from it, and that by the rules for all needs.
"""

from __future__ import annotations

import math
from typing import Final

from attrs import define, frozen

from qmpballoon.sizes import MiB

__all__ = ["CacheSample", "HotCache"]

# Bytes that count at least: a move of less is not worth making (the dead band).
_LEAST: Final = 16 * MiB
# Seconds after which a read counts no more as to what is lacking, and for which a guest
# may read at once what is usual. A rate of less than 1.6 MiB/s counts for nothing.
_RECENT: Final = 10.0
_SLOWEST: Final = _LEAST / _RECENT
# Seconds over which the usual rate is learnt.
_USUAL: Final = 60.0
# Seconds for which reads may go on. Donors give an eighth of their RAM in a plan, and a
# plan's memory is there and seen to be of use some three seconds later: in 30 seconds
# all of it can have gone over.
_PATIENCE: Final = 30.0
# Seconds for which the figure is kept at first, and for which reads do not count; they
# double up to the longest.
_PAUSE: Final = 60.0
_LONGEST_PAUSE: Final = 3600.0
# Seconds in which the figure falls to 1/e when it is tried what is cold: five minutes
# (Gray and Putzolu, "The 5 minute rule", 1987).
_FALL: Final = 300.0


@frozen
class CacheSample:
    """What is known of a guest at one moment; in bytes.

    Attributes:
        at: The moment, in seconds on a monotonic clock.
        read: What the VM has read from its disks until then.
        actual: The guest's size.
        free: The memory that nothing in it uses, not even a cache.
        available: What it can do without, page cache included.
        headroom: What of that it keeps.
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
        size: Bytes that it would have to have available above its headroom, so that it
            reads nothing again; 0: it reads nothing again, or that is not our doing.
    """

    size: int = 0
    _last: CacheSample | None = None
    # What is usual
    _rate: float = 0.0  # bytes a second
    _learnt: float = 0.0  # seconds
    _ahead: float = 0.0  # bytes that it has read sooner than is usual
    # What is unusual
    _recent: float = 0.0  # bytes that were read lately
    _lacking: float = 0.0  # those of them that replaced others
    _is_reading: bool = False
    _begun_at: float | None = None  # when it began to read so
    _ignored_until: float = -math.inf
    _ignored_for: float = _PAUSE
    _always_free: int = 0  # what is free although there is no room: the watermarks
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
            now: The next one. A size that changes in between is no trouble.
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
            self._lacking = 0.0  # what it was given is to be filled first
        if self._lacking >= _LEAST and was_reading:
            self._raise(now)
        elif self._recent < _LEAST:
            self._fall(now, seconds)
        # What a guest reads that lacks nothing cannot be our doing.
        if now.taken < _LEAST or not (is_ignored or self._lacking >= _LEAST):
            self._learn(read, seconds)

    def _take_usual(self, read: int, seconds: float) -> float:
        """Return what of some reads is more than is usual."""
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
        """Note that the guest lacks page cache, or that its reads are not our doing."""
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
        """Return whether the figure falls, and so what is above it may be taken."""
        if not self.size or self._quiet_since is None:
            return False
        return at - self._quiet_since > self._kept_for

    def _fall(self, now: CacheSample, seconds: float) -> None:
        """Let the figure fall, if nothing has been read again for long enough."""
        self._begun_at = None
        if self._quiet_since is None:
            self._quiet_since = now.at
            # What reads have not filled was too much.
            unused = max(0, now.free - self._always_free)
            above_headroom = now.available - now.headroom
            self.size = min(self.size, max(0, above_headroom - unused))
        if not self._was_tried(now.at):
            return
        self.size = int(self.size * max(0.0, 1 - seconds / _FALL))
        if self.size < _LEAST:
            self.size = 0
            self._kept_for = self._ignored_for = _PAUSE
