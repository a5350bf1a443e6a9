"""The six curves of a timeline, their names, labels and colours; and its disk reads.

Everything that shows samples uses them: figures, the chart in a terminal, and its lines
of text. They have a module of their own, so that none of these loads what another one
needs.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Final

from attrs import frozen

if TYPE_CHECKING:
    from collections.abc import Iterable

    from qmpballoon.balloon.sampling import Sample

__all__ = ["SERIES", "Series", "compute_read_rates", "find_largest"]


_MOMENT: Final = 0.001  # seconds; guests are sampled up to 50 times a second


@frozen
class Series:
    """One curve.

    Attributes:
        name: The attribute of a sample that has its values.
        label: Its name for people.
        word: The same in one word, for a line of text.
        letter: What it is drawn with where there is no colour.
        colour: Its colour in a figure, as ``#rrggbb``. All but that of the target are
            Okabe and Ito's, which colour-blind people can tell apart, too.
    """

    name: str
    label: str
    word: str
    letter: str
    colour: str

    def get_size(self, sample: Sample) -> int | None:
        """Return a sample's value in bytes; ``None`` if it was not known."""
        size: int | None = getattr(sample, self.name)
        return size


SERIES: Final = (
    Series("available", "available", "available", "v", "#56b4e9"),
    Series("free", "guest free", "free", "f", "#009e73"),
    Series("disk_caches", "guest cache", "cache", "c", "#e69f00"),
    Series("resident", "host resident", "resident", "r", "#cc79a7"),
    Series("target", "requested", "requested", "q", "#22303c"),
    Series("actual", "actual", "actual", "a", "#0072b2"),
)
"""All curves in the order of drawing: the most important ones come last, on top."""


def find_largest(sample: Sample) -> int:
    """Return the largest of a sample's values in bytes."""
    return max(series.get_size(sample) or 0 for series in SERIES)


def compute_read_rates(samples: Iterable[Sample]) -> list[tuple[float, float]]:
    """Return how fast a VM read from its disks, between each two samples.

    Args:
        samples: In the order of time.

    Returns:
        Seconds at the second of the two samples, and bytes a second. Where one of the
        two does not know, fewer bytes have been read than before, or both are of one
        moment, there is none.
    """
    return [
        (then.t, (then.disk_reads - before.disk_reads) / (then.t - before.t))
        for before, then in pairwise(samples)
        if before.disk_reads is not None
        and then.disk_reads is not None
        and then.disk_reads >= before.disk_reads
        and then.t - before.t > _MOMENT
    ]
