"""How far a resize is, as a bar or as a line: pure, from progress to what is shown."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qmpballoon.sizes import format_size

if TYPE_CHECKING:
    from rich.table import Table

    from qmpballoon.balloon.sampling import Progress

__all__ = ["describe_progress", "draw_bar"]


def draw_bar(progress: Progress) -> Table:
    """Lay out the size, the target, a bar, the share done, and the rate."""
    from rich.progress_bar import ProgressBar  # noqa: PLC0415 - not for lines
    from rich.table import Column, Table  # noqa: PLC0415 - not for lines
    from rich.text import Text  # noqa: PLC0415 - not for lines

    whole = abs(progress.target - progress.before) or 1
    done = min(abs(progress.actual - progress.before), whole)
    words = (Column(no_wrap=True) for _ in range(3))
    size, share, rate = words
    bar = Table.grid(size, Column(), share, rate, padding=(0, 1), expand=True)
    bar.add_row(
        Text.assemble(
            f"{format_size(progress.actual):>9} ",
            ("of", "secondary"),
            f" {format_size(progress.target)}",
        ),
        ProgressBar(total=whole, completed=done),
        f"{100 * done / whole:3.0f} %",
        Text(_describe_rate(progress), style="secondary"),
    )
    return bar


def describe_progress(progress: Progress) -> str:
    """Say in a line how far it is."""
    return (
        f"{progress.seconds:6.1f} s  {format_size(progress.actual)} on the way from"
        f" {format_size(progress.before)} to {format_size(progress.target)},"
        f" {_describe_rate(progress)}"
    )


def _describe_rate(progress: Progress) -> str:
    if progress.phase not in ("moving", "slowing") or progress.time_left is None:
        return progress.phase
    return f"{format_size(round(progress.rate))}/s, {progress.time_left:.0f} s left"
