"""How far a resize is: a bar on a terminal, a line a second elsewhere."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from qmpballoon.cli import _output
from qmpballoon.sizes import format_size

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from qmpballoon.balloon._resize import Progress

__all__ = ["progress_shown"]

_LINE_EVERY: Final = 1.0  # seconds
_BAR_EVERY: Final = 0.1


@contextmanager
def progress_shown() -> Generator[Callable[[Progress], None]]:
    """Yield what is to be told of progress within the block."""
    if sys.stdout.isatty():
        with _bar() as show:
            yield _seldom(show, _BAR_EVERY)
    else:
        yield _seldom(lambda progress: _output.say(_line(progress)), _LINE_EVERY)


def _seldom(
    show: Callable[[Progress], None], seconds: float
) -> Callable[[Progress], None]:
    """Show only some of what comes: a balloon is looked at many times a second."""
    due = 0.0

    def show_if_due(progress: Progress) -> None:
        nonlocal due
        if progress.seconds >= due or progress.phase == "reached":
            due = progress.seconds + seconds
            show(progress)

    return show_if_due


@contextmanager
def _bar() -> Generator[Callable[[Progress], None]]:
    from rich import progress as bars  # noqa: PLC0415 - only where there is a bar

    columns = (
        bars.TextColumn("{task.fields[actual]:>9} [dim]of[/dim] {task.fields[target]}"),
        bars.BarColumn(bar_width=None),
        bars.TextColumn("{task.percentage:3.0f} %"),
        bars.TextColumn("{task.fields[pace]}", style="dim"),
    )
    # Drawn when there is news; a thread that draws would take time from QEMU.
    with bars.Progress(
        *columns, auto_refresh=False, transient=True, expand=True
    ) as bar:
        task = bar.add_task("", start=True, actual="", target="", pace="")

        def show(progress: Progress) -> None:
            bar.update(
                task,
                total=abs(progress.target - progress.before) or 1,
                completed=abs(progress.actual - progress.before),
                actual=format_size(progress.actual),
                target=format_size(progress.target),
                pace=_pace(progress),
                refresh=True,
            )

        yield show


def _line(progress: Progress) -> str:
    return (
        f"{progress.seconds:6.1f} s  {format_size(progress.actual)} on the way from"
        f" {format_size(progress.before)} to {format_size(progress.target)},"
        f" {_pace(progress)}"
    )


def _pace(progress: Progress) -> str:
    if progress.phase not in ("moving", "slowing") or progress.time_left is None:
        return progress.phase
    return f"{format_size(round(progress.rate))}/s, {progress.time_left:.0f} s left"
