"""What was seen of a balloon and its guest, sample by sample.

Charts, reports and the ``watch`` command are all drawn from this, so that they
agree with each other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from attrs import asdict, frozen

from qmpballoon._checks import require_count

if TYPE_CHECKING:
    from collections.abc import Iterator

    from qmpballoon.balloon.stats import GuestStats

__all__ = ["Sample", "Timeline"]

_SMALLEST: Final = 2  # samples: the first and the last


@frozen
class Sample:
    """What was known at one moment; ``None`` where a thing was not.

    Attributes:
        t: Seconds since the beginning.
        target: Bytes the guest was asked to come to, by us.
        actual: Bytes the guest has.
        total: Bytes of memory the guest's kernel manages.
        free: Bytes that nothing in the guest uses.
        available: Bytes the guest could have without swapping.
        disk_caches: Bytes of the guest's page cache.
        resident: Bytes of the host's memory that QEMU holds.
        mark: A word on what happened then, such as ``"stalled"``; else ``None``.
    """

    t: float
    target: int | None
    actual: int
    total: int | None = None
    free: int | None = None
    available: int | None = None
    disk_caches: int | None = None
    resident: int | None = None
    mark: str | None = None

    @classmethod
    def of(
        cls,
        t: float,
        stats: GuestStats,
        *,
        target: int | None,
        actual: int,
        resident: int | None,
        mark: str | None = None,
    ) -> Sample:
        """Return what a guest says, with what is known of its balloon and its host."""
        return cls(
            t=t,
            target=target,
            actual=actual,
            total=stats.total,
            free=stats.free,
            available=stats.reclaimable,
            disk_caches=stats.disk_caches,
            resident=resident,
            mark=mark,
        )

    def to_json(self) -> dict[str, object]:
        """Return it as the command prints it: bytes and seconds."""
        return asdict(self)


class Timeline:
    """Samples in the order of time, in bounded memory.

    When there are more than ``capacity``, every second one of them goes, but for
    the first, the last and, as long as they are few, the marked ones: a timeline of
    days gets coarser, and neither longer nor cut.

    Args:
        capacity: How many samples to hold at most, 2 or more.
    """

    def __init__(self, capacity: int = 10_000) -> None:
        require_count(capacity, "capacity", "samples", minimum=_SMALLEST)
        self._capacity = capacity
        self._samples: list[Sample] = []

    def __len__(self) -> int:
        """Return how many samples there are."""
        return len(self._samples)

    def __iter__(self) -> Iterator[Sample]:
        """Iterate over the samples in the order of time."""
        return iter(self._samples)

    def __getitem__(self, index: int) -> Sample:
        """Return one sample; negative indexes count from the end."""
        return self._samples[index]

    def add(self, sample: Sample) -> None:
        """Append a sample, which must not be older than the last one."""
        if self._samples and sample.t < self._samples[-1].t:
            raise ValueError(f"a sample of {sample.t} s is older than the last one")
        self._samples.append(sample)
        if len(self._samples) > self._capacity:
            self._thin()

    def _thin(self) -> None:
        samples = self._samples
        marked = sum(sample.mark is not None for sample in samples)
        few = marked <= self._capacity // 2
        self._samples = [
            sample
            for index, sample in enumerate(samples[:-1])
            if index % 2 == 0 or (few and sample.mark is not None)
        ]
        self._samples[self._capacity - 1 :] = [samples[-1]]

    def to_json(self) -> list[dict[str, object]]:
        """Return the samples as the command prints them."""
        return [sample.to_json() for sample in self._samples]
