"""Shows the progress of a subcommand, live.

On a terminal this is a chart, a bar or a table, drawn again in the same place. In a
file or a pipe it is one line after the other. :mod:`qmpballoon.cli.render` makes what
is shown; this module decides where and how often.
"""

from __future__ import annotations

import os
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, Protocol

from qmpballoon._printable import make_printable
from qmpballoon.cli import _output
from qmpballoon.cli.render.palette import choose_palette

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    from rich.console import Console, RenderableType
    from rich.live import Live

    from qmpballoon.balloon.sampling import Progress, Sample, Timeline
    from qmpballoon.cli.render.chart import Chart
    from qmpballoon.cli.render.palette import Palette
    from qmpballoon.fleet.guests import Host
    from qmpballoon.fleet.policy import Rules
    from qmpballoon.fleet.vm_view import VmView

__all__ = [
    "ShowSample",
    "has_braille",
    "make_console",
    "print_chart",
    "print_fleet",
    "show_fleet",
    "show_progress",
    "show_timeline",
]

_CHART_INTERVAL: Final = 0.2  # seconds between two drawings
_STILL_HEIGHT: Final = 20  # lines of the chart that stays on the terminal, at most
_SMALLEST_STILL: Final = 10  # lines; on fewer the curves cannot be told apart
_BAR_INTERVAL: Final = 0.1  # seconds between two drawings
_LINE_INTERVAL: Final = 1.0  # seconds between two lines
_PIPED_WIDTH: Final = 200  # columns of a table where no terminal limits them


class ShowSample(Protocol):
    """Shows a sample."""

    def __call__(self, sample: Sample, note: str = "", /) -> None:
        """Take in a sample, and a note for people; it need not be shown at once."""
        ...


def has_braille() -> bool:
    """Tell whether standard output can have braille and blocks, to draw with."""
    return (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"


def make_console() -> Console:
    """Return a console for standard output, with the colours for its background.

    A terminal with fewer colours than 256 gets none: its own may be hard to read.
    """
    from rich.console import Console  # noqa: PLC0415 - loads rich
    from rich.theme import Theme  # noqa: PLC0415 - loads rich

    console = Console(highlight=False, theme=Theme(_choose_palette().make_styles()))
    if console.color_system not in {"256", "truecolor"}:
        console.no_color = True
    return console


def _choose_palette() -> Palette:
    return choose_palette(os.environ)


# Samples


@contextmanager
def show_timeline(title: str, below: int = 0) -> Generator[ShowSample]:
    """Show samples within the block, as a moving chart or as lines.

    Args:
        title: The heading.
        below: How many lines will be printed after it. The chart that stays leaves room
            for them on the screen.
    """
    capable = os.environ.get("TERM", "dumb") not in ("dumb", "unknown")
    if sys.stdout.isatty() and has_braille() and capable:
        with _show_chart(title, below) as show:
            yield show
    else:
        with _show_lines(title) as show:
            yield show


@contextmanager
def _show_lines(title: str) -> Generator[ShowSample]:
    from qmpballoon.cli.render.lines import Lines  # noqa: PLC0415 - loaded late

    lines = Lines()

    def show(sample: Sample, note: str = "") -> None:
        if line := lines.add(sample, note):
            _output.say(line)

    _output.say(make_printable(title))
    yield show
    if line := lines.finish():
        _output.say(line)


@contextmanager
def _show_chart(title: str, below: int) -> Generator[ShowSample]:
    """Show a moving chart.

    It has the terminal's alternate screen to itself, so it can be drawn anew at any
    size at any time. However the block ends, the first screen comes back as it was,
    cursor included, and the last chart is printed there.
    """
    from qmpballoon.cli.render.chart import Chart  # noqa: PLC0415 - loads rich

    console, chart = make_console(), Chart(title)
    due = 0.0
    try:
        with console.screen(hide_cursor=True) as screen:

            def show(sample: Sample, note: str = "") -> None:
                nonlocal due
                chart.add(sample, note)
                _output.check_output()
                # Where nobody reads, a picture that waits is not followed by others.
                if time.monotonic() >= due and _output.is_idle():
                    screen.update(_render(chart, console, console.height))
                    due = time.monotonic() + _CHART_INTERVAL

            yield show
    finally:
        _print_still(chart, console, below)


def print_chart(title: str, timeline: Timeline) -> None:
    """Print a chart that does not move."""
    from qmpballoon.cli.render.chart import Chart  # noqa: PLC0415 - loads rich

    chart = Chart(title)
    for sample in timeline:
        chart.add(sample)
    _print_still(chart, make_console())


def _print_still(chart: Chart, console: Console, below: int = 0) -> None:
    if not chart.is_empty:
        left = console.height - below - 1  # the shell's prompt
        height = min(max(left, _SMALLEST_STILL), _STILL_HEIGHT)
        _output.draw(console, _render(chart, console, height))


def _render(chart: Chart, console: Console, height: int) -> RenderableType:
    palette = None if console.no_color else _choose_palette()
    return chart.render(console.width, height, palette)


# Progress


@contextmanager
def show_progress() -> Generator[Callable[[Progress], None]]:
    """Show the progress of a resize within the block, as a bar or as lines."""
    if sys.stdout.isatty():
        with _show_bar() as show:
            yield _limit_rate(show, _BAR_INTERVAL)
    else:
        yield _limit_rate(_say_progress, _LINE_INTERVAL)


def _limit_rate(
    show: Callable[[Progress], None], seconds: float
) -> Callable[[Progress], None]:
    """Show only some of the progress: a resize reports it many times a second."""
    due = 0.0

    def show_if_due(progress: Progress) -> None:
        nonlocal due
        if progress.seconds >= due or progress.phase == "reached":
            due = progress.seconds + seconds
            show(progress)

    return show_if_due


@contextmanager
def _show_bar() -> Generator[Callable[[Progress], None]]:
    from qmpballoon.cli.render.bar import draw_bar  # noqa: PLC0415 - loads rich

    with _open_live(transient=True) as live:

        def show(progress: Progress) -> None:
            _output.check_output()
            if _output.is_idle():
                live.update(draw_bar(progress), refresh=True)

        yield show


def _open_live(*, transient: bool = False) -> Live:
    """Return what draws again and again in the same place.

    It draws when it is told to: a thread that draws would take time from QEMU. And it
    leaves the standard streams alone, which have threads that write to them.
    """
    from rich.live import Live  # noqa: PLC0415 - loads rich

    return Live(
        console=make_console(),
        auto_refresh=False,
        transient=transient,
        redirect_stdout=False,
        redirect_stderr=False,
    )


def _say_progress(progress: Progress) -> None:
    from qmpballoon.cli.render.bar import describe_progress  # noqa: PLC0415 - late

    _output.say(describe_progress(progress))


# Fleets


def print_fleet(host: Host, rules: Rules, views: Sequence[VmView]) -> None:
    """Print a fleet once, with all its VMs."""
    from qmpballoon.cli.render.table import draw_fleet  # noqa: PLC0415 - loads rich

    draw_once(lambda width: draw_fleet(host, rules, views, width))


def draw_once(draw: Callable[[int], RenderableType]) -> None:
    """Print something once.

    Args:
        draw: Lays it out, given the characters in a line.
    """
    console = make_console()
    if not console.is_terminal:
        console.width = _PIPED_WIDTH
    _output.draw(console, draw(console.width))


@contextmanager
def show_again() -> Generator[Callable[[RenderableType], None]]:
    """Show what changes within the block, again and again in the same place."""

    def show(page: RenderableType) -> None:
        _output.check_output()
        if _output.is_idle():
            live.update(page, refresh=True)

    with _open_live() as live:
        yield show


@contextmanager
def show_fleet() -> Generator[Callable[[Host, Rules, Sequence[VmView]], None]]:
    """Show a fleet within the block, again and again in the same place."""
    from qmpballoon.cli.render.history import History  # noqa: PLC0415 - with the next
    from qmpballoon.cli.render.table import draw_screen  # noqa: PLC0415 - loads rich

    history = History() if has_braille() else None

    def show(host: Host, rules: Rules, views: Sequence[VmView]) -> None:
        if history is not None:
            history.note(time.monotonic(), views)
        _output.check_output()
        if _output.is_idle():
            size = live.console.size
            page = draw_screen(
                host, rules, views, history, width=size.width, height=size.height
            )
            live.update(page, refresh=True)

    with _open_live() as live:
        yield show
