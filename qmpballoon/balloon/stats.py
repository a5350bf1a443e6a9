"""What a guest reports of its own memory.

The figures come from the driver in the guest, which answers when QEMU asks: once in
every polling interval. All of them are as old as :attr:`GuestStats.last_update` says.
They are hints, not facts: a guest can be wrong, or lie.

A figure is believed if it is an unsigned integer of 64 bits, as virtio transfers it.
:meth:`GuestStats.from_wire` leaves any other value out, and keeps its name in
:attr:`GuestStats.nonsense`. A figure of memory must not exceed what the VM can have
either. :meth:`GuestStats.find_nonsense` checks that; its caller has to know the limit.

A new statistic is added in ``_NAMES`` and as a field of :class:`GuestStats`.

Sources: QAPI reference, ``guest-stats`` of virtio-balloon; docs/interop/
virtio-balloon-stats in QEMU; "Memory Statistics Tags" in the virtio specification.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, cast

from attrs import field, fields, frozen

from qmpballoon.sizes import format_size

if TYPE_CHECKING:
    from typing import TypeGuard

__all__ = ["GuestStats"]

# What QEMU returns for a figure that the guest did not report; -1 before QEMU 2.6.
_UNSET: Final = frozenset({2**64 - 1, -1})
_LARGEST: Final = 2**64 - 2  # the largest of virtio's 64 bits that is not "unset"
# Figures of the memory that the guest has now. All others count since it booted.
_MEMORY: Final = MappingProxyType(
    {
        "total": "managed by its kernel",
        "free": "free",
        "available": "available",
        "disk_caches": "page cache",
    }
)
_NAMES: Final = MappingProxyType(
    {
        "stat-total-memory": "total",
        "stat-free-memory": "free",
        "stat-available-memory": "available",
        "stat-disk-caches": "disk_caches",
        "stat-swap-in": "swap_in",
        "stat-swap-out": "swap_out",
        "stat-major-faults": "major_faults",
        "stat-minor-faults": "minor_faults",
        "stat-htlb-pgalloc": "hugetlb_allocations",
        "stat-htlb-pgfail": "hugetlb_failures",
        "stat-oom-kills": "oom_kills",
        "stat-alloc-stalls": "alloc_stalls",
        "stat-async-scans": "async_scans",
        "stat-direct-scans": "direct_scans",
        "stat-async-reclaims": "async_reclaims",
        "stat-direct-reclaims": "direct_reclaims",
    }
)


@frozen
class GuestStats:
    """One sample of a guest's memory statistics.

    A figure that the guest does not report is ``None``, never zero. Counters begin at
    zero when the guest boots.

    Attributes:
        last_update: When the guest answered, to the second, by the host's clock;
            ``None`` if it never did.
        age: Seconds from then until the sample was read; ``None`` also if the clocks
            contradict each other, as those of two hosts may.
        total: Bytes of memory that the guest's kernel has; on Linux without what is in
            the balloon, on Windows with it.
        free: Bytes that nothing uses, not even a cache.
        available: Bytes that can be allocated without swapping; most of the page cache
            is included.
        disk_caches: Bytes of page cache.
        swap_in: Bytes read from swap.
        swap_out: Bytes written to swap.
        major_faults: Page faults that had to wait for a disk.
        minor_faults: Other page faults.
        hugetlb_allocations: Huge pages allocated.
        hugetlb_failures: Allocations of huge pages that failed.
        oom_kills: Processes killed for want of memory.
        alloc_stalls: Allocations that had to reclaim memory first.
        async_scans: Bytes scanned by kswapd.
        direct_scans: Bytes scanned by allocating tasks.
        async_reclaims: Bytes freed by kswapd.
        direct_reclaims: Bytes freed by allocating tasks.
        extra: Figures that newer versions of QEMU add, under QEMU's names.
        nonsense: QEMU's names of the figures that were left out because they cannot be
            true: they are not integers, are below 0, or need more than 64 bits. Empty
            for a QEMU that works.
    """

    last_update: datetime | None = None
    age: float | None = None
    total: int | None = None
    free: int | None = None
    available: int | None = None
    disk_caches: int | None = None
    swap_in: int | None = field(default=None, repr=False)
    swap_out: int | None = field(default=None, repr=False)
    major_faults: int | None = field(default=None, repr=False)
    minor_faults: int | None = field(default=None, repr=False)
    hugetlb_allocations: int | None = field(default=None, repr=False)
    hugetlb_failures: int | None = field(default=None, repr=False)
    oom_kills: int | None = None
    alloc_stalls: int | None = field(default=None, repr=False)
    async_scans: int | None = field(default=None, repr=False)
    direct_scans: int | None = field(default=None, repr=False)
    async_reclaims: int | None = field(default=None, repr=False)
    direct_reclaims: int | None = field(default=None, repr=False)
    extra: Mapping[str, int] = field(factory=dict[str, int], hash=False, repr=False)
    nonsense: tuple[str, ...] = ()

    @classmethod
    def from_wire(cls, value: object, wall_time: float | None = None) -> GuestStats:
        """Read the value of a device's ``guest-stats`` property.

        A figure that makes no sense counts as not reported, and is named in
        ``nonsense``; nothing is raised.

        Args:
            value: As QEMU returned it.
            wall_time: The host's time in seconds since the epoch, for ``age``;
                ``None`` if unknown.
        """
        answer = _as_mapping(value)
        known: dict[str, int] = {}
        extra: dict[str, int] = {}
        nonsense: list[str] = []
        for name, figure in _as_mapping(answer.get("stats")).items():
            if _is_figure(figure):
                if name in _NAMES:
                    known[_NAMES[name]] = figure
                else:
                    extra[name] = figure
            elif name in _NAMES and not _is_unset(figure):
                # A member that a newer QEMU adds need not be a number.
                nonsense.append(name)
        updated = answer.get("last-update")
        seconds = updated if _is_figure(updated) and updated else None
        return cls(
            last_update=_parse_time(seconds),
            age=_compute_age(seconds, wall_time),
            extra=extra,
            nonsense=tuple(sorted(nonsense)),
            **known,
        )

    def find_nonsense(self, memory: int | None = None) -> str | None:
        """Say which figure cannot be true; ``None`` if all of them can.

        Args:
            memory: Bytes of memory that the guest can have; ``None`` if unknown.

        Returns:
            A clause for people, without the guest's name.
        """
        if self.nonsense:
            return f"{self.nonsense[0]} is no number of 64 bits"
        for name, meaning in _MEMORY.items():
            figure = getattr(self, name)
            if memory is not None and figure is not None and figure > memory:
                return (
                    f"{format_size(figure)} are {meaning}, and it can have"
                    f" {format_size(memory)} at most"
                )
        return None

    @property
    def reclaimable(self) -> int | None:
        """Bytes that the guest reports it could do without; ``None`` if unknown.

        This is ``available`` if the guest reports it. Older guests report only free
        memory and page cache; then it is the sum of the two.
        """
        if self.available is not None:
            return self.available
        if self.free is not None and self.disk_caches is not None:
            return self.free + self.disk_caches
        return self.free

    def is_same_sample(self, other: GuestStats) -> bool:
        """Return whether both are the same answer of the guest: all but ``age``."""
        return all(
            getattr(self, attribute.name) == getattr(other, attribute.name)
            for attribute in fields(type(self))
            if attribute.name != "age"
        )

    def to_json(self) -> dict[str, object]:
        """Return it as the command prints it: bytes, seconds, an ISO 8601 time."""
        figures: dict[str, object] = {
            attribute.name: getattr(self, attribute.name)
            for attribute in fields(type(self))
            if attribute.name not in ("extra", "nonsense")
        }
        updated = self.last_update
        return {
            **figures,
            "last_update": updated.isoformat() if updated else None,
            "extra": dict(self.extra),
            "nonsense": list(self.nonsense),
        }


def _as_mapping(value: object) -> Mapping[str, object]:
    return cast("Mapping[str, object]", value) if isinstance(value, Mapping) else {}


def _is_figure(value: object) -> TypeGuard[int]:
    if not isinstance(value, int) or isinstance(value, bool):
        return False
    return 0 <= value <= _LARGEST


def _is_unset(value: object) -> bool:
    return isinstance(value, int) and value in _UNSET


def _compute_age(seconds: int | None, wall_time: float | None) -> float | None:
    if seconds is None or wall_time is None or wall_time < seconds:
        return None
    return wall_time - seconds


def _parse_time(seconds: int | None) -> datetime | None:
    if seconds is None:
        return None
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (OverflowError, ValueError, OSError):  # out of range
        return None
