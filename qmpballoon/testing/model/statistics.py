"""The statistics that a guest's balloon driver tells, true or not.

The counters of reclaim are modelled on Linux 7.2 guests. While there is page cache to
drop, the kernel's own thread (kswapd) drops it in time, page after page, and no process
waits: these are the ``async`` counters. Where memory can only be had by swapping out,
the process that needs it finds about a third of it by itself: these are the ``direct``
counters, and it stalls once for each mebibyte. Half of the pages that are scanned are
in use.

On the wire, the counters of reclaim and of swapping are in bytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from attrs import frozen

from qmpballoon.testing.model.memory import PAGE

if TYPE_CHECKING:
    from qmpballoon.testing.model.config import GuestConfig
    from qmpballoon.testing.model.memory import Memory

__all__ = ["Counters", "compute_statistics"]

_CLUSTER: Final = 8 * PAGE
"""Bytes that one fault reads back from swap: the page and its neighbours."""

_FAULTS_AT_BOOT: Final = 150, 20_000
"""Major and minor faults at the start: the order of what a small guest's boot takes."""


@frozen
class Counters:
    """What a guest's kernel has counted since it booted, beside its memory.

    Attributes:
        oom_kills: Times that it killed a process for its memory.
        alloc_stalls: Times that an allocation had to wait.
    """

    oom_kills: int
    alloc_stalls: int


def compute_statistics(
    config: GuestConfig, memory: Memory, counters: Counters
) -> dict[str, int]:
    """Return what the driver tells, under QEMU's names without ``stat-``.

    Statistics that the config claims replace the true ones.
    """
    told = {**_compute_true(config, memory, counters), **config.claims}
    return {name: value for name, value in told.items() if value is not None}


def _compute_true(
    config: GuestConfig, memory: Memory, counters: Counters
) -> dict[str, int]:
    # What is read back at once counts both ways: it was swapped out as well.
    out = memory.swapped_out * 100 // (100 - config.refaults)
    back = out - memory.swapped_out + memory.swapped_in
    major, minor = _FAULTS_AT_BOOT
    stats = {
        "swap-in": back,
        "swap-out": out,
        "major-faults": major + back // _CLUSTER,
        "minor-faults": minor + memory.faults,
        "free-memory": memory.free,
        "total-memory": memory.total,
        "available-memory": memory.available,
        "disk-caches": memory.cache,
        "htlb-pgalloc": 0,
        "htlb-pgfail": 0,
    }
    if not config.extended_stats:
        return stats
    direct = out // (3 * PAGE) * PAGE
    return stats | {
        "oom-kills": counters.oom_kills,
        "alloc-stalls": counters.alloc_stalls,
        "async-scans": memory.dropped + 2 * (out - direct),
        "direct-scans": direct + direct // (2 * PAGE) * PAGE,
        "async-reclaims": memory.dropped + out - direct,
        "direct-reclaims": direct,
    }
