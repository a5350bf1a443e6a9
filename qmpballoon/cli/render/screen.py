"""The moving chart, and the still one that remains of it.

It has the terminal's second screen for itself, and so can be drawn anew at any size
at any time. However it ends, the first screen comes back as it was, cursor included,
and the chart as it was last is printed there.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from attrs import define, field
from rich.console import Console, Group
from rich.text import Text

from qmpballoon.balloon.sampling import Timeline
from qmpballoon.cli import _output
from qmpballoon.cli.render.chart import SERIES, canvas
from qmpballoon.cli.render.live import Phases
from qmpballoon.sizes import GiB, MiB

if TYPE_CHECKING:
    from collections.abc import Generator

    from qmpballoon.balloon.sampling import Sample
    from qmpballoon.cli.render.chart import Series
    from qmpballoon.cli.render.live import Show

__all__ = ["Chart", "chart_shown", "print_chart"]

_EVERY: Final = 0.2  # seconds between two drawings
_CAPACITY: Final = 2000  # samples; more than a terminal can tell apart
_STILL_HEIGHT: Final = 20  # lines of the chart that remains
_WIDE: Final = 78  # columns in which three figures fit beside each other
_SMALLEST: Final = 4  # lines of a canvas that shows anything


@contextmanager
def chart_shown(title: str) -> Generator[Show]:
    """Show a moving chart within the block."""
    console = Console(highlight=False)
    chart = Chart(title)
    due = 0.0
    try:
        with console.screen(hide_cursor=True) as screen:

            def show(sample: Sample, note: str = "") -> None:
                nonlocal due
                chart.add(sample, note)
                if time.monotonic() >= due:
                    screen.update(chart.render(console, console.height))
                    due = time.monotonic() + _EVERY

            yield show
    finally:
        chart.print_still(console)


def print_chart(title: str, timeline: Timeline) -> None:
    """Print a chart that does not move."""
    chart = Chart(title)
    for sample in timeline:
        chart.add(sample)
    chart.print_still(Console(highlight=False))


@define
class Chart:
    """A title, the lines, and a legend with the figures of now.

    Attributes:
        title: What it is about.
    """

    title: str
    _timeline: Timeline = field(factory=lambda: Timeline(_CAPACITY))
    _phases: Phases = field(factory=Phases)
    _note: str = ""

    def add(self, sample: Sample, note: str = "") -> None:
        """Append a sample; the note says what is going on."""
        self._timeline.add(sample)
        self._note = note or self._phases.of(sample)

    def print_still(self, console: Console) -> None:
        """Print it as it is, if there is anything to see."""
        if len(self._timeline):
            height = min(console.height, _STILL_HEIGHT)
            _output.draw(console, self.render(console, height))

    def render(self, console: Console, height: int) -> Group:
        """Draw it for a terminal, so many lines high."""
        width, colour = console.width, not console.no_color
        legend = self._legend(width, colour=colour)
        left = height - 1 - len(legend)
        drawn = canvas(list(self._timeline), width, max(left, _SMALLEST), colour=colour)
        return Group(self._headline(width), Text.from_ansi(drawn), *legend)

    def _headline(self, width: int) -> Text:
        right = f"{self._note}  {self._timeline[-1].t:.1f} s"
        title = Text(self.title, style="bold", no_wrap=True)
        title.truncate(max(width - len(right) - 2, 0), overflow="ellipsis", pad=True)
        return Text.assemble(title, "  ", (right, "bold"))

    def _legend(self, width: int, *, colour: bool) -> list[Text]:
        sample = self._timeline[-1]
        columns = 3 if width >= _WIDE else 2
        # What is looked at most is drawn last and named first.
        entries = [
            _entry(series, sample, width // columns, colour=colour)
            for series in reversed(SERIES)
        ]
        return [
            Text.assemble(*entries[start : start + columns])
            for start in range(0, len(entries), columns)
        ]


def _entry(series: Series, sample: Sample, width: int, *, colour: bool) -> Text:
    key = ("\u2501", f"color({series.colour})") if colour else series.letter
    figure = _figure(getattr(sample, series.name))
    entry = Text.assemble(" ", key, f" {series.label:<13} ", (f"{figure:>9}", "bold"))
    entry.truncate(width, pad=True)
    return entry


def _figure(size: int | None) -> str:
    """Write a size in at most nine characters that do not jump about."""
    if size is None:
        return "unknown"
    if size < 1000 * MiB:
        return f"{size / MiB:.0f} MiB"
    return f"{size / GiB:.{2 if size < 100 * GiB else 0}f} GiB"
