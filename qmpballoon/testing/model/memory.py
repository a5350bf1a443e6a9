"""A Linux guest's memory, as far as a balloon can tell.

What the kernel keeps for itself, what processes use, page cache, the balloon, and
what is free; and behind all that, how much of it the host has really given. Every
method keeps the books balanced: nothing here knows of time.

Measured on Linux 6.1 and 7.2 guests: a kernel keeps some 2 % of RAM for itself; a
growing balloon takes free pages first and then page cache; the cache that is left
is part of what is left available; an allocation that can be served from free
pages never touches the cache.
"""

from __future__ import annotations

from typing import Final

from attrs import define, field

__all__ = ["PAGE", "STEP", "Memory"]

PAGE: Final = 4096
"""Bytes in a page of the balloon, on every architecture."""

STEP: Final = 1 << 20
"""Bytes that Linux's driver hands over at a time: 256 pages."""

_MAX_WATERMARK: Final = 64 << 20


@define
class Memory:
    """The books of a guest's memory; all of it in bytes.

    Attributes:
        ram: What QEMU gave the VM, DIMMs included.
        used: Processes' and the kernel's memory that cannot be dropped.
        cache: Page cache.
        pinned: The part of it that cannot be dropped: mapped, dirty, tmpfs.
        balloon: In the balloon.
        warm: Free memory that was in use once and is still backed by the host.
        allocated: The part of ``used`` that workloads asked for.
        swap: Swap space.
        swapped: Processes' memory that is in it.
        dropped: Page cache that was dropped to make room, all in all.
        swapped_out: What was swapped out, all in all, and had not to come back at
            once.
        swapped_in: What of that was read back since, all in all.
        faults: Pages that processes touched for the first time, all in all.
    """

    ram: int
    used: int = 0
    cache: int = 0
    pinned: int = 0
    balloon: int = 0
    warm: int = 0
    allocated: int = 0
    swap: int = 0
    swapped: int = field(init=False, default=0)
    dropped: int = field(init=False, default=0)
    swapped_out: int = field(init=False, default=0)
    swapped_in: int = field(init=False, default=0)
    faults: int = field(init=False, default=0)

    @property
    def reserve(self) -> int:
        """What the kernel keeps for itself: struct pages, its image."""
        return _whole(self.ram // 50)

    @property
    def total(self) -> int:
        """What the guest believes it has: Linux counts its balloon out."""
        return max(0, self.ram - self.reserve - self.balloon)

    @property
    def free(self) -> int:
        """What nobody uses."""
        return max(0, self.total - self.used - self.cache)

    @property
    def droppable(self) -> int:
        """Page cache that the kernel can give up at once."""
        return max(0, self.cache - self.pinned)

    @property
    def watermark(self) -> int:
        """Free memory that the kernel keeps for itself in need (its "min")."""
        return _whole(min(_MAX_WATERMARK, self.ram // 64))

    @property
    def reclaimable(self) -> int:
        """What can be had before anything has to be swapped out."""
        return max(0, self.free - self.watermark) + self.droppable

    @property
    def swappable(self) -> int:
        """What can be swapped out: a quarter of what is used is the kernel's own."""
        pages = (self.used + self.swapped) * 3 // 4 - self.swapped
        return _whole(max(0, min(pages, self.swap - self.swapped)))

    @property
    def available(self) -> int:
        """The kernel's own estimate of what an application could get."""
        return max(0, self.free - self.watermark * 5 // 4) + self.droppable

    @property
    def spare(self) -> int:
        """Free memory that is taken before page cache is."""
        return max(0, self.free - self.watermark * 5 // 4)

    def at_hand(self) -> tuple[int, int, int]:
        """Return :attr:`spare`, :attr:`droppable` and :attr:`reclaimable`."""
        free, watermark, droppable = self.free, self.watermark, self.droppable
        spare = max(0, free - watermark * 5 // 4)
        return spare, droppable, max(0, free - watermark) + droppable

    @property
    def backed(self) -> int:
        """What of this the host has given real memory for."""
        return self.reserve // 2 + self.used + self.cache + self.warm

    def take(self, size: int) -> None:
        """Make room for ``size`` bytes in free memory: drop cache where needed.

        Args:
            size: At most :attr:`reclaimable`.
        """
        dropped = min(self.droppable, max(0, size - self.spare))
        self.cache -= dropped
        self.warm += dropped
        self.dropped += dropped

    def swap_out(self, size: int) -> None:
        """Swap so many bytes of processes out; at most :attr:`swappable`."""
        self.used -= size
        self.warm += size
        self.swapped += size
        self.swapped_out += size

    def swap_in(self, size: int) -> None:
        """Read so many bytes back, as far as they are there and there is room."""
        size = _whole(min(size, self.swapped, self.spare))
        self.warm -= min(self.warm, size)
        self.used += size
        self.swapped -= size
        self.swapped_in += size

    def inflate(self, size: int) -> None:
        """Move so many bytes into the balloon, and so back to the host."""
        self.take(size)
        self.warm -= min(self.warm, size)
        self.balloon += size

    def deflate(self, size: int) -> None:
        """Give so many bytes back to the guest; the host backs them on first use."""
        self.balloon -= size

    def allocate(self, size: int) -> None:
        """Let processes use ``size`` bytes more; at most :attr:`reclaimable`."""
        self.take(size)
        self.warm -= min(self.warm, size)
        self.used += size
        self.allocated += size
        self.faults += size // PAGE

    def release(self, size: int) -> None:
        """Let processes give up ``size`` bytes; at most what workloads have.

        What was swapped out is given up after the rest.
        """
        self.allocated -= size
        swapped = max(0, size - self.used)
        self.swapped -= swapped
        self.used -= size - swapped
        self.warm += size - swapped

    def read(self, size: int) -> None:
        """Read ``size`` bytes of files: the page cache grows where it can."""
        size = _whole(min(size, self.spare))
        self.warm -= min(self.warm, size)
        self.cache += size

    def report_free_pages(self) -> None:
        """Tell the host which pages are free; it takes them back."""
        self.warm = 0


def _whole(size: int) -> int:
    return size // PAGE * PAGE
