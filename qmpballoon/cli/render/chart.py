"""The chart in a terminal: pure, from samples to text.

Lines are drawn in braille, eight dots to a character, and told apart by colour.
Where there is no colour, each is drawn with a letter of its own.
"""

from __future__ import annotations

import math
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from attrs import frozen

from qmpballoon.sizes import GiB, MiB

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qmpballoon.balloon.sampling import Sample

__all__ = ["SERIES", "Series", "canvas", "seconds_label"]


@frozen
class Series:
    """One line of the chart.

    Attributes:
        name: Which figure of a sample.
        label: What people read.
        letter: What it is drawn with where there is no colour.
        colour: One of the terminal's 256.
    """

    name: str
    label: str
    letter: str
    colour: int


# In the order of drawing: what is looked at most comes last, on top.
SERIES: Final = (
    Series("available", "available", "v", 37),
    Series("free", "guest free", "f", 78),
    Series("disk_caches", "guest cache", "c", 214),
    Series("resident", "host resident", "r", 205),
    Series("target", "requested", "q", 252),
    Series("actual", "actual", "a", 39),
)

_ROWS_PER_TICK: Final = 4
_COLUMNS_PER_TICK: Final = 14
_POINTS_PER_COLUMN: Final = 2
_SHORTEST: Final = 5.0  # seconds that the time axis is long at least
_STEPS: Final = (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600)
_MINUTE: Final = 60
_TEXT_COLOUR: Final = 245
# Whether width and height end at those of the terminal that plotext sees.
_NEITHER: Final = (False, False)


def canvas(samples: Sequence[Sample], width: int, height: int, *, colour: bool) -> str:
    """Draw the lines, the axes and their units.

    Args:
        samples: In the order of time.
        width: Characters in a line.
        height: Lines.
        colour: Whether escape sequences for colours may be used.

    Returns:
        ``height`` lines.
    """
    # It has no types, and one figure for all the process.
    plt: Any = import_module("plotext")
    plt.clear_figure()
    plt.limit_size(*_NEITHER)
    plt.plotsize(width, height)
    plt.theme("clear")
    plt.ticks_color(_TEXT_COLOUR)
    top = max((_largest(sample) for sample in samples), default=MiB)
    sizes = _size_ticks(top, height // _ROWS_PER_TICK)
    plt.yticks(sizes, _size_labels(sizes))
    plt.ylim(0, max(top, sizes[-1]) * 1.02)
    end = max(samples[-1].t if samples else 0.0, _SHORTEST)
    times = _time_ticks(end, width // _COLUMNS_PER_TICK)
    plt.xticks(times, [seconds_label(time) for time in times])
    plt.xlim(0, times[-1])
    shown = _thinned(samples, times[-1], width * _POINTS_PER_COLUMN)
    for series in SERIES:
        _draw(plt, series, shown, colour=colour)
    text = str(plt.build()).rstrip("\n")
    return text if colour else str(plt.uncolorize(text))


def _draw(
    plt: Any,  # noqa: ANN401 - a module without types
    series: Series,
    samples: Sequence[Sample],
    *,
    colour: bool,
) -> None:
    points = [
        (sample.t, getattr(sample, series.name))
        for sample in samples
        if getattr(sample, series.name) is not None
    ]
    if points:
        plt.plot(
            *zip(*points, strict=True),
            marker="braille" if colour else series.letter,
            color=series.colour,
        )


def seconds_label(seconds: float) -> str:
    """Write a time on the axis: ``"5 s"``, ``"2:30"`` (minutes), ``"1:00:00"``."""
    minutes, rest = divmod(round(seconds), _MINUTE)
    if minutes == 0:
        return f"{rest} s"
    hours, minutes = divmod(minutes, _MINUTE)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _largest(sample: Sample) -> int:
    return max(getattr(sample, series.name) or 0 for series in SERIES)


def _size_ticks(top: int, count: int) -> list[int]:
    """Return 0 and its multiples of a power of two, up to the top or near it."""
    step = MiB
    while top / step > max(count, 1):
        step *= 2
    return list(range(0, top + step // 4, step))


def _size_labels(sizes: Sequence[int]) -> list[str]:
    unit, name = (GiB, "GiB") if sizes[-1] >= GiB else (MiB, "MiB")
    return [f"{size / unit:g} {name}" for size in sizes]


def _time_ticks(end: float, count: int) -> list[float]:
    """Return times from 0 on, of which the last is the end or later."""
    step = next((step for step in _STEPS if end / step <= count), None)
    if step is None:  # hours
        step = math.ceil(end / max(count, 1) / _STEPS[-1]) * _STEPS[-1]
    return [float(step * n) for n in range(math.ceil(end / step) + 1)]


def _thinned(samples: Sequence[Sample], end: float, count: int) -> list[Sample]:
    """Keep as many samples as can be told apart, the last one of each moment."""
    by_place = {int(sample.t / end * count): sample for sample in samples}
    return list(by_place.values())
