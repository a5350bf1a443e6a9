"""A Linux guest's memory, as far as it matters to a balloon.

RAM is divided into what the kernel keeps for itself, what processes use, page cache,
the balloon and free memory. How much of it the host has backed with its own memory is
counted, too. Every method keeps the sums right. Nothing here depends on time.

Measured on Linux 6.1 and 7.2 guests: a kernel keeps some 2 % of RAM for itself. A
balloon that inflates takes free pages first and then page cache. The cache that is left
is part of what is available. An allocation that free pages can serve does not touch the
cache.
"""

from __future__ import annotations

from typing import Final

from attrs import define, field

__all__ = ["PAGE", "STEP", "Memory"]

PAGE: Final = 4096
"""Bytes in a page of the balloon, on every architecture."""

STEP: Final = 1 << 20
"""Bytes that Linux's driver hands over at once: 256 pages."""

_MAX_WATERMARK: Final = 64 << 20
"""Most bytes of the watermark "min", as on the guests that were measured: one at its
floor kept 60 MB free."""


@define
class Memory:
    """A guest's memory. All sizes are in bytes.

    Attributes:
        ram: What QEMU gave the VM, DIMMs included.
        used: Memory of processes and kernel that cannot be dropped.
        cache: Page cache.
        pinned: The part of the cache that cannot be dropped: mapped, dirty, tmpfs.
        balloon: Memory in the balloon.
        warm: Free memory that was in use before, and is still backed by the host.
        allocated: The part of ``used`` and ``swapped`` that workloads asked for.
        swap: Swap space.
        swapped: Processes' memory in the swap space.
        dropped: Page cache that was dropped to make room, since boot.
        swapped_out: Memory that was swapped out since boot, without what was read back
            at once.
        swapped_in: Memory that was read back later, since boot.
        faults: Pages that processes touched for the first time, since boot.
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
        """What the kernel keeps for itself: its image, and a struct for each page."""
        return _round_down(self.ram // 50)

    @property
    def total(self) -> int:
        """The guest's own total: Linux does not count ballooned pages."""
        return max(0, self.ram - self.reserve - self.balloon)

    @property
    def free(self) -> int:
        """Memory that is not in use."""
        return max(0, self.total - self.used - self.cache)

    @property
    def droppable(self) -> int:
        """Page cache that the kernel can give up at once."""
        return max(0, self.cache - self.pinned)

    @property
    def watermark(self) -> int:
        """Free memory that only the kernel may use: the watermark "min"."""
        return _round_down(min(_MAX_WATERMARK, self.ram // 64))

    @property
    def reclaimable(self) -> int:
        """What can be had without swapping."""
        return max(0, self.free - self.watermark) + self.droppable

    @property
    def swappable(self) -> int:
        """What can be swapped out. A quarter of what is used is the kernel's own."""
        pages = (self.used + self.swapped) * 3 // 4 - self.swapped
        return _round_down(max(0, min(pages, self.swap - self.swapped)))

    @property
    def available(self) -> int:
        """The kernel's estimate of what an application could get: MemAvailable."""
        return max(0, self.free - self.watermark * 5 // 4) + self.droppable

    @property
    def spare(self) -> int:
        """Free memory that is taken before any cache is dropped."""
        return max(0, self.free - self.watermark * 5 // 4)

    def measure_room(self) -> tuple[int, int, int]:
        """Return :attr:`spare`, :attr:`droppable` and :attr:`reclaimable`."""
        free, watermark, droppable = self.free, self.watermark, self.droppable
        spare = max(0, free - watermark * 5 // 4)
        return spare, droppable, max(0, free - watermark) + droppable

    @property
    def backed(self) -> int:
        """Memory that the host has backed with its own."""
        return self.reserve // 2 + self.used + self.cache + self.warm

    def take(self, size: int) -> None:
        """Make room for ``size`` bytes in free memory by dropping cache, if needed.

        Args:
            size: At most :attr:`reclaimable`.
        """
        dropped = min(self.droppable, max(0, size - self.spare))
        self.cache -= dropped
        self.warm += dropped
        self.dropped += dropped

    def swap_out(self, size: int) -> None:
        """Swap out ``size`` bytes of processes; at most :attr:`swappable`."""
        self.used -= size
        self.warm += size
        self.swapped += size
        self.swapped_out += size

    def swap_in(self, size: int) -> None:
        """Read back up to ``size`` bytes, as far as there is room for them."""
        size = _round_down(min(size, self.swapped, self.spare))
        self.warm -= min(self.warm, size)
        self.used += size
        self.swapped -= size
        self.swapped_in += size

    def inflate(self, size: int) -> None:
        """Move ``size`` bytes into the balloon, which returns them to the host."""
        self.take(size)
        self.warm -= min(self.warm, size)
        self.balloon += size

    def deflate(self, size: int) -> None:
        """Give ``size`` bytes back to the guest. The host backs them on first use."""
        self.balloon -= size

    def allocate(self, size: int) -> None:
        """Allocate ``size`` bytes to processes; at most :attr:`reclaimable`."""
        self.take(size)
        self.warm -= min(self.warm, size)
        self.used += size
        self.allocated += size
        self.faults += size // PAGE

    def release(self, size: int) -> None:
        """Free ``size`` bytes of processes; at most :attr:`allocated`.

        Memory that is swapped out is freed last.
        """
        self.allocated -= size
        swapped = max(0, size - self.used)
        self.swapped -= swapped
        self.used -= size - swapped
        self.warm += size - swapped

    def read(self, size: int) -> None:
        """Read ``size`` bytes of files into the cache, as far as there is room."""
        size = _round_down(min(size, self.spare))
        self.warm -= min(self.warm, size)
        self.cache += size

    def report_free_pages(self) -> None:
        """Report all free pages to the host, which takes them back."""
        self.warm = 0


def _round_down(size: int) -> int:
    """Round down to whole pages."""
    return size // PAGE * PAGE
