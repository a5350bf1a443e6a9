"""What a guest says of itself, true or not.

The counters of reclaim are as measured on Linux 7.2 guests. While there is cache to
drop, the kernel's own thread does it in time, page after page, and nobody waits.
Where only swapping out gives memory, about a third of it is found by the one who
needs it, who waits once for each mebibyte; half of the pages looked at are in use.
All of them are in bytes on the wire, as those of swapping are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from attrs import define, field

from qmpballoon.testing.model.memory import PAGE

if TYPE_CHECKING:
    from qmpballoon.testing.model.guest import Guest

__all__ = ["Witness"]

_CLUSTER: Final = 8 * PAGE
"""Bytes that one fault reads back from swap: the page and its neighbours."""

_FAULTS_AT_BOOT: Final = 150, 20_000


@define
class Witness:
    """What answers for a guest when it is asked for statistics."""

    _frozen: dict[str, int] | None = field(init=False, default=None)

    def answer(self, guest: Guest) -> dict[str, int]:
        """Return what the driver answers, under QEMU's names without ``stat-``."""
        config = guest.config
        if self._frozen is not None:
            return self._frozen
        said = {**_truth(guest), **config.claims}
        stats = {name: value for name, value in said.items() if value is not None}
        if config.frozen_after is not None and guest.now >= config.frozen_after:
            self._frozen = stats
        return stats


def _truth(guest: Guest) -> dict[str, int]:
    memory = guest.memory
    out = memory.swapped_out * 100 // (100 - guest.config.refaults)
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
    if not guest.config.extended_stats:
        return stats
    direct = out // (3 * PAGE) * PAGE
    return stats | {
        "oom-kills": guest.oom_kills,
        "alloc-stalls": guest.alloc_stalls,
        "async-scans": memory.dropped + 2 * (out - direct),
        "direct-scans": direct + direct // (2 * PAGE) * PAGE,
        "async-reclaims": memory.dropped + out - direct,
        "direct-reclaims": direct,
    }
