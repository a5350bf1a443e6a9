"""What a simulated guest is like."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import field, frozen
from attrs.validators import and_, ge, gt, lt, optional

if TYPE_CHECKING:
    from collections.abc import Mapping

    from qmpballoon.testing.model.workload import WorkloadStep

__all__ = ["SECOND", "GuestConfig"]

SECOND = 1_000_000_000


@frozen
class GuestConfig:
    """What the guest is like. Sizes in bytes, times in nanoseconds of its clock.

    Attributes:
        used: In use by processes and kernel, beside the kernel's own 2 % of RAM.
        cache: Page cache at the start.
        pinned: The part of the cache that cannot be dropped.
        driver: It has a balloon driver.
        boot_time: From reset until the driver is there.
        inflate_rate: Bytes a second while there are free pages.
        reclaim_rate: Bytes a second while cache has to be dropped.
        deflate_rate: Bytes a second.
        swap: Bytes of swap space. A guest that has some gives on when its cache is
            gone, and suffers for it.
        swap_rate: Bytes a second while processes' memory has to be swapped out,
            and when it is read back.
        refaults: Percent of what is swapped out that its processes want back at
            once: 0 for idle ones.
        stats_delay: How long it takes to answer for statistics; None: for ever.
        silent_after: From then on it answers no more; None: it always does.
        frozen_after: From then on it says what it said then, however it is.
        claims: What it says whatever is true, by the statistic's name in QEMU
            without ``stat-``; None: it does not tell that one.
        extended_stats: It fills the statistics of Linux 6.12.
        panic_after: It panics after so long at its floor with a balloon that wants
            more and may not deflate, as Linux 6.1 does; None: it bears it.
        workload: What its processes do, in order.
    """

    used: int = field(default=123 << 20, validator=ge(0))
    cache: int = field(default=1 << 30, validator=ge(0))
    pinned: int = field(default=24 << 20, validator=ge(0))
    driver: bool = True
    boot_time: int = field(default=5 * SECOND // 2, validator=ge(0))
    inflate_rate: int = field(default=1 << 30, validator=gt(0))
    reclaim_rate: int = field(default=1 << 29, validator=gt(0))
    deflate_rate: int = field(default=2 << 30, validator=gt(0))
    swap: int = field(default=0, validator=ge(0))
    swap_rate: int = field(default=100 << 20, validator=gt(0))
    refaults: int = field(default=0, validator=and_(ge(0), lt(100)))
    stats_delay: int | None = 1_000_000
    silent_after: int | None = field(default=None, validator=optional(ge(0)))
    frozen_after: int | None = field(default=None, validator=optional(ge(0)))
    claims: Mapping[str, int | None] = field(
        factory=dict[str, "int | None"], hash=False
    )
    extended_stats: bool = True
    panic_after: int | None = field(default=None, validator=optional(ge(0)))
    workload: tuple[WorkloadStep, ...] = ()
