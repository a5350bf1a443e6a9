"""When a guest is in trouble, and how often it has to be sampled.

Pure: statistics in, a reason out. All calls that take memory from a guest use this one
rule.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from attrs import frozen

from qmpballoon.sizes import GiB, format_size

if TYPE_CHECKING:
    from qmpballoon.balloon.guard import GuestLimits
    from qmpballoon.balloon.stats import GuestStats

__all__ = ["Alarms", "compute_pause"]

# Bytes a second that a guest may allocate. A process that writes to new memory reaches
# about 1 GiB/s (measured with dd to tmpfs, 0.4 to 2.8), one that only touches new 4 KiB
# pages 2 to 3.
_ALLOCATION_RATE: Final = GiB
# A sample shows the answer to the request of the sample before. So a guest that
# allocates is sampled twice before it has used up what it can spare.
_SAMPLES: Final = 2


def compute_pause(spare: int) -> float:
    """Return for how many seconds a guest need not be sampled.

    Args:
        spare: Bytes that it may allocate before it has to be sampled.
    """
    return spare / _SAMPLES / _ALLOCATION_RATE


@frozen
class Alarms:
    """The alarms of one guest.

    Attributes:
        limits: What the guest must keep.
        first: What it reported at the beginning.
    """

    limits: GuestLimits
    first: GuestStats

    @property
    def reserve(self) -> int:
        """Bytes that the guest is expected to have available: its headroom.

        It is less if the guest had less at the beginning: that is not our doing.
        """
        return min(self.limits.headroom, self.first.reclaimable or 0)

    @property
    def threshold(self) -> int:
        """Bytes available below which the guest is in trouble: half of the reserve."""
        return self.reserve // 2

    def is_short(self, available: int) -> bool:
        """Return whether a guest with so many bytes available needs some back."""
        return available < self.reserve * 3 // 4

    def find_trouble(self, stats: GuestStats, silence: float) -> str | None:
        """Return why the guest has to get everything back; ``None`` if it need not.

        Args:
            stats: What it last reported.
            silence: Seconds since its last new answer.
        """
        if silence > self.limits.stale_after:
            return f"the guest has not answered for {silence:.1f} s"
        kills, available = self.first.oom_kills, stats.reclaimable
        if kills is not None and (stats.oom_kills or 0) > kills:
            return "the guest killed a process for want of memory"
        if available is None:
            return "the guest no longer says what it has available"
        if available < self.threshold:
            return self.describe_headroom(available)
        return None

    def describe_headroom(self, available: int) -> str:
        """Return the reason that the headroom allows no more to be taken.

        Args:
            available: Bytes that the guest has available.
        """
        return (
            f"the guest has {format_size(available)} available, and is to keep"
            f" {format_size(self.limits.headroom)}"
        )
