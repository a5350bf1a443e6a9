"""What a guest reads again because its page cache was taken.

Pure: samples in, a number of bytes out. No statistic of the guest shows these reads:
read() makes no major faults, and clean cache is dropped without swapping. But they come
from the VM's disks, and QEMU counts what is read from those.

A guest may read from its disks anyway. What it reads in the baseline, in which only
free memory is taken, is not caused by the balloon, and is assumed to go on at the same
rate. What it reads beyond that may be cache that it lost, and no more than it lost. So
the figure is an upper bound: a backup that begins meanwhile counts, too.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from attrs import define, field

from qmpballoon.balloon._pressure import BASELINE_PERIOD
from qmpballoon.balloon.results import ReadRates

if TYPE_CHECKING:
    from qmpballoon.balloon.sampling import Sample

__all__ = ["RereadMeter"]


@define
class RereadMeter:
    """Measures what a guest reads from its disks, and how much of that it had lost.

    Each moment is a pair: seconds since the beginning, and the bytes read until then.
    """

    _start: tuple[float, int] | None = None
    _begun: tuple[float, int] | None = None  # cache is taken from then on
    _taken: tuple[float, int] | None = None  # nothing more is taken from then on
    _last: tuple[float, int] | None = None
    _baseline_until: float = BASELINE_PERIOD
    _first_cache: int | None = None
    _lowest_cache: int | None = None
    _size: int = field(init=False, default=0)
    _lowest_size: int = field(init=False, default=0)

    def end_baseline(self) -> None:
        """Stop measuring the guest's own rate: the last sample was of the baseline."""
        self._baseline_until = -math.inf

    def observe(self, sample: Sample, *, taking: bool) -> None:
        """Take in a sample.

        Args:
            sample: The next one.
            taking: Whether memory is being taken from the guest.
        """
        self._observe_sizes(sample)
        if sample.disk_reads is None:
            return
        now = (sample.t, sample.disk_reads)
        self._start = self._start or now
        if self._begun is None or sample.t <= self._baseline_until:
            self._begun = now
        if taking or self._taken is None:
            self._taken = now
        self._last = now

    def _observe_sizes(self, sample: Sample) -> None:
        if not self._size:
            self._size = self._lowest_size = sample.actual
        self._lowest_size = min(self._lowest_size, sample.actual)
        cache = sample.disk_caches
        if cache is not None:
            if self._first_cache is None or self._lowest_cache is None:
                self._first_cache = self._lowest_cache = cache
            self._lowest_cache = min(self._lowest_cache, cache)

    @property
    def rates(self) -> ReadRates | None:
        """How fast the VM reads from its disks; ``None`` if that is not known."""
        if self._start is None:
            return None
        return ReadRates(
            before=_compute_rate(self._start, self._begun),
            during=_compute_rate(self._begun, self._taken),
            after=_compute_rate(self._taken, self._last),
        )

    @property
    def reread(self) -> int | None:
        """Bytes that the guest lost and read again, at most; ``None``: not known."""
        if self._start is None or self._begun is None or self._last is None:
            return None
        seconds, read = self._last[0] - self._begun[0], self._last[1] - self._begun[1]
        own = (_compute_rate(self._start, self._begun) or 0.0) * seconds
        lost = self._size - self._lowest_size
        if self._first_cache is not None and self._lowest_cache is not None:
            lost = self._first_cache - self._lowest_cache
        return min(max(0, round(read - own)), lost)


def _compute_rate(
    then: tuple[float, int] | None, now: tuple[float, int] | None
) -> float | None:
    """Return bytes a second between two moments, if there is time between them."""
    if then is None or now is None or now[0] <= then[0]:
        return None
    return (now[1] - then[1]) / (now[0] - then[0])
