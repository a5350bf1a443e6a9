"""Files that a guest's processes read, and how much of them its page cache holds.

Linux drops what has not been read for the longest time. What nobody reads goes first,
and what a stream has read once is among that. Then come the sets of files that are
read, the one whose round takes longest first.

A loop has a cliff: if not all of it fits into the cache, each page is dropped just
before it is read again, so all of it comes from the disk. Measured on Linux 7.2, with
400 MiB read in a loop: no reads with 402 MiB of page cache, and 170 to 320 MiB a second
from 340 MiB down; on the way back as many reads up to 348 MiB, and none at 412 MiB.
Random reads have no cliff: what is wanted most is read most, and so it stays.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from attrs import define, field

from qmpballoon.testing.model.config import SECOND
from qmpballoon.testing.model.memory import PAGE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qmpballoon.testing.model.config import FileReads
    from qmpballoon.testing.model.memory import Memory

__all__ = ["FileSets"]


@define
class _FileSet:
    """Files that are read in one way.

    Attributes:
        config: How they are read.
        cached: Bytes of them that are in the page cache.
    """

    config: FileReads
    cached: int = 0

    @property
    def round_time(self) -> float:
        """Seconds in which as much is read as the files have."""
        return self.config.size / self.config.rate

    def is_read(self, now: int) -> bool:
        """Return whether they are read at a moment of the guest's clock."""
        end = self.config.end
        return self.config.begin <= now and (end is None or now < end)

    def miss(self, wanted: int, most: int) -> int:
        """Return how much of what processes want is not in the cache.

        Args:
            wanted: Bytes that they want.
            most: Bytes of these files that the cache can hold.
        """
        config, absent = self.config, max(0, self.config.size - self.cached)
        match config.kind:
            case "stream":
                return wanted
            case "loop":
                return min(wanted, absent) if most >= config.size else wanted
            case "zipf":
                # The sum of 1/k up to n is about the logarithm of n.
                held, pages = self.cached / PAGE, config.size / PAGE
                share = 1 - math.log1p(held) / math.log1p(pages)
                return min(absent, round(wanted * share))


@define
class FileSets:
    """All files that are read in a guest.

    Attributes:
        disk_rate: Bytes a second that are read from disks at most.
    """

    disk_rate: int
    _sets: list[_FileSet] = field()

    @classmethod
    def of(cls, files: Sequence[FileReads], disk_rate: int) -> FileSets:
        """Return files of which nothing is in the cache yet."""
        return cls(disk_rate, [_FileSet(config) for config in files])

    @property
    def cached(self) -> int:
        """Bytes of the page cache that are read now and then."""
        return sum(each.cached for each in self._sets)

    def fill(self, memory: Memory) -> None:
        """Take what is read from the beginning on as cached, where it has room."""
        for each in self._sets:
            if each.config.kind != "stream" and each.config.begin == 0:
                room = max(0, memory.droppable - self.cached)
                each.cached = min(each.config.size, room)

    def drop(self, memory: Memory) -> None:
        """Note what was dropped from the cache."""
        for each in sorted(self._sets, key=lambda each: -each.round_time):
            surplus = max(0, self.cached - memory.droppable)
            each.cached -= min(each.cached, surplus)

    def find_next_read(self, now: int) -> int | None:
        """Return when something is read next: now, later, or never (``None``)."""
        begins = [
            max(each.config.begin, now)
            for each in self._sets
            if each.config.end is None or max(each.config.begin, now) < each.config.end
        ]
        return min(begins, default=None)

    def read(self, memory: Memory, now: int, duration: int) -> int:
        """Read all files for a while.

        Args:
            memory: The guest's memory.
            now: Nanoseconds on the guest's clock.
            duration: Nanoseconds for which they are read.

        Returns:
            Bytes that were read from disks.
        """
        self.drop(memory)
        left = self.disk_rate * duration // SECOND
        total = 0
        for each in self._sets:
            if each.is_read(now):
                wanted = each.config.rate * duration // SECOND
                # What nobody reads makes room for what is read.
                unread = max(0, memory.droppable - self.cached)
                most = each.cached + memory.spare + unread
                missed = min(each.miss(wanted, most), left - total)
                total += missed
                self._cache(each, missed, unread, memory)
        return total

    def _cache(self, files: _FileSet, size: int, unread: int, memory: Memory) -> None:
        """Cache bytes that were read from a disk."""
        before = memory.cache
        memory.read(size)
        if files.config.kind == "stream":
            return
        room = unread + memory.cache - before
        files.cached = min(files.config.size, files.cached + min(size, room))
