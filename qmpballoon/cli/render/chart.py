"""The chart in a terminal: pure, from samples to text.

The lines are drawn in braille, eight dots to a character, each line in its own colour.
Without colour, each line is drawn with its own letter.
"""

from __future__ import annotations

import math
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from attrs import define, field
from rich.console import Group
from rich.text import Text

from qmpballoon._printable import make_printable
from qmpballoon.balloon.sampling import Timeline
from qmpballoon.cli.render.lines import Phases
from qmpballoon.export.series import SERIES, compute_read_rates, find_largest
from qmpballoon.sizes import GiB, MiB

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from qmpballoon.balloon.sampling import Sample
    from qmpballoon.cli.render.palette import Palette
    from qmpballoon.export.series import Series

__all__ = ["Chart", "draw_canvas", "draw_reads", "format_seconds"]


_CAPACITY: Final = 2000  # samples; a terminal of 1000 columns has as many dots
_WIDE: Final = 78  # columns in which three figures of the legend fit beside each other
_SMALLEST: Final = 4  # lines; on fewer of them no curve can be seen
_ROWS_PER_TICK: Final = 4
_COLUMNS_PER_TICK: Final = 14
_POINTS_PER_COLUMN: Final = 2  # a braille character is two dots wide
_SHORTEST: Final = 5.0  # seconds that the time axis has at least
_STEPS: Final = (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600)  # seconds
_MINUTE: Final = 60  # seconds
_BARS: Final = (
    " \u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588"  # from 0 to the highest rate
)
# Width and height are given, and not limited to those of the terminal plotext sees.
_NEITHER: Final = (False, False)


@define
class Chart:
    """A title, the lines, and a legend with the latest figures.

    Attributes:
        title: What it is about.
    """

    title: str
    _timeline: Timeline = field(factory=lambda: Timeline(_CAPACITY))
    _phases: Phases = field(factory=Phases)
    _note: str = ""

    @property
    def is_empty(self) -> bool:
        """Whether it has no samples yet."""
        return not len(self._timeline)

    def add(self, sample: Sample, note: str = "") -> None:
        """Append a sample; a note replaces the phase in the headline."""
        self._timeline.add(sample)
        self._note = note or self._phases.advance(sample)

    def render(self, width: int, height: int, palette: Palette | None) -> Group:
        """Lay the chart out; it needs one sample at least.

        Args:
            width: Characters in a line.
            height: Lines.
            palette: The colours; ``None``: lines are told apart by letters.
        """
        legend = self._render_legend(width, palette)
        legend[:0] = draw_reads(self._timeline, width)
        left = max(height - 1 - len(legend), _SMALLEST)
        canvas = draw_canvas(list(self._timeline), width, left, palette)
        return Group(self._render_headline(width), Text.from_ansi(canvas), *legend)

    def _render_headline(self, width: int) -> Text:
        right = f"{self._note}  {self._timeline[-1].t:.1f} s"
        title = Text(make_printable(self.title), style="bold", no_wrap=True)
        title.truncate(max(width - len(right) - 2, 0), overflow="ellipsis", pad=True)
        return Text.assemble(title, "  ", (right, "bold"))

    def _render_legend(self, width: int, palette: Palette | None) -> list[Text]:
        sample = self._timeline[-1]
        columns = 3 if width >= _WIDE else 2
        # What is drawn last is named first.
        entries = [
            _render_entry(series, sample, width // columns, palette)
            for series in reversed(SERIES)
        ]
        return [
            Text.assemble(*entries[start : start + columns])
            for start in range(0, len(entries), columns)
        ]


def _render_entry(
    series: Series, sample: Sample, width: int, palette: Palette | None
) -> Text:
    line = "\u2501"
    key = (line, f"color({palette.curves[series.name]})") if palette else series.letter
    figure = _format_figure(series.get_size(sample))
    entry = Text.assemble(" ", key, f" {series.label:<13} ", (f"{figure:>9}", "bold"))
    entry.truncate(width, pad=True)
    return entry


def _format_figure(size: int | None) -> str:
    """Write a size in at most nine characters, always with the same decimals."""
    if size is None:
        return "unknown"
    if size < 1000 * MiB:
        return f"{size / MiB:.0f} MiB"
    return f"{size / GiB:.{2 if size < 100 * GiB else 0}f} GiB"


def draw_reads(samples: Iterable[Sample], width: int) -> list[Text]:
    """Draw how fast the VM read from its disks: bars in one line, none if not known.

    Args:
        samples: In the order of time.
        width: Characters in the line.
    """
    rates = compute_read_rates(samples)
    if not rates:
        return []
    highest = max(rate for _, rate in rates)
    left = " disk reads "
    right = f" {_format_figure(round(rates[-1][1]))}/s"
    count = max(width - len(left) - len(right), 1)
    bars = [0.0] * count
    for time, rate in rates:
        column = min(int(time / rates[-1][0] * count), count - 1)
        bars[column] = max(bars[column], rate)
    steps = len(_BARS) - 1
    line = "".join(_BARS[math.ceil(rate / max(highest, 1) * steps)] for rate in bars)
    text = Text.assemble(left, line, (right, "bold"), no_wrap=True)
    text.truncate(width)
    return [text]


# The canvas


def draw_canvas(
    samples: Sequence[Sample], width: int, height: int, palette: Palette | None
) -> str:
    """Draw the lines, the axes and their units.

    Args:
        samples: In the order of time.
        width: Characters in a line.
        height: Lines.
        palette: The colours; ``None``: no escape sequences, and a letter for each line.

    Returns:
        ``height`` lines.
    """
    # plotext has no types, and one figure for the whole process.
    plt: Any = import_module("plotext")
    plt.clear_figure()
    plt.limit_size(*_NEITHER)
    plt.plotsize(width, height)
    plt.theme("clear")
    if palette:
        plt.ticks_color(palette.secondary)
    top = max([MiB, *map(find_largest, samples)])  # an axis has a length
    sizes = _choose_size_ticks(top, height // _ROWS_PER_TICK)
    plt.yticks(sizes, _format_sizes(sizes))
    plt.ylim(0, max(top, sizes[-1]) * 1.02)
    end = max(samples[-1].t if samples else 0.0, _SHORTEST)
    times = _choose_time_ticks(end, width // _COLUMNS_PER_TICK)
    plt.xticks(times, [format_seconds(time) for time in times])
    plt.xlim(0, times[-1])
    shown = _thin_out(samples, times[-1], width * _POINTS_PER_COLUMN)
    for series in SERIES:
        _draw_series(plt, series, shown, palette)
    text = str(plt.build()).rstrip("\n")
    return text if palette else str(plt.uncolorize(text))


def _draw_series(
    plt: Any,  # noqa: ANN401 - a module without types
    series: Series,
    samples: Sequence[Sample],
    palette: Palette | None,
) -> None:
    points = [
        (sample.t, series.get_size(sample))
        for sample in samples
        if series.get_size(sample) is not None
    ]
    if points:
        plt.plot(
            *zip(*points, strict=True),
            marker="braille" if palette else series.letter,
            color=palette.curves[series.name] if palette else "default",
        )


def format_seconds(seconds: float) -> str:
    """Write a time on the axis: ``"5 s"``, ``"2:30"`` (minutes), ``"1:00:00"``."""
    minutes, rest = divmod(round(seconds), _MINUTE)
    if minutes == 0:
        return f"{rest} s"
    hours, minutes = divmod(minutes, _MINUTE)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _choose_size_ticks(top: int, count: int) -> list[int]:
    """Return 0 and the multiples of a power of two, up to the top or near it."""
    step = MiB
    while top / step > max(count, 1):
        step *= 2
    return list(range(0, top + step // 4, step))


def _format_sizes(sizes: Sequence[int]) -> list[str]:
    unit, name = (GiB, "GiB") if sizes[-1] >= GiB else (MiB, "MiB")
    return [f"{size / unit:g} {name}" for size in sizes]


def _choose_time_ticks(end: float, count: int) -> list[float]:
    """Return times from 0 on, in equal steps; the last one is the end or later."""
    step = next((step for step in _STEPS if end / step <= count), None)
    if step is None:  # whole hours
        step = math.ceil(end / max(count, 1) / _STEPS[-1]) * _STEPS[-1]
    return [float(step * n) for n in range(math.ceil(end / step) + 1)]


def _thin_out(samples: Sequence[Sample], end: float, count: int) -> list[Sample]:
    """Keep one sample, the last one, of each column of dots."""
    by_place = {int(sample.t / end * count): sample for sample in samples}
    return list(by_place.values())
