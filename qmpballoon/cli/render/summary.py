"""What the command prints when a reclaim is done: pure, from its report."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Final

from qmpballoon.export.summary import (
    compare_snapshots,
    describe_gain,
    describe_reclaim,
    describe_rereads,
)
from qmpballoon.sizes import GiB, KiB, MiB, format_size

if TYPE_CHECKING:
    from rich.console import RenderableType

    from qmpballoon.balloon import ReclaimReport

__all__ = ["describe_owed", "draw_summary", "write_undo"]

_GAP: Final = 4  # characters between two columns


def draw_summary(
    report: ReclaimReport, width: int, *, address: str | None = None
) -> list[RenderableType]:
    """Lay out what came of a reclaim: a table, a sentence, and the host's gain.

    Args:
        report: The reclaim's.
        width: How many characters fit on a line; above 0.
        address: The VM's, as the command reads it; with it, the command that gives back
            what is held is shown.
    """
    price = describe_rereads(report)
    prices = [] if price is None else [price]
    undo: list[str] = []
    is_to_be_held = report.held and report.given_back_to is None
    if is_to_be_held and address is not None:
        undo = [write_undo(address, report.before.actual)]
    sentence = describe_reclaim(report)
    is_noted = report.leaves_small or (report.held and not is_to_be_held)
    if report.outcome == "done" and not is_noted:
        sentence += f"; {report.reason}"
    return [
        *("", *_draw_changes(report, width), sentence, describe_gain(report)),
        *prices,
        *undo,
    ]


def _draw_changes(report: ReclaimReport, width: int) -> list[RenderableType]:
    """Lay out guest and host before and after, as a table if that fits."""
    from rich.table import Table  # noqa: PLC0415 - not for what is only text

    figures = compare_snapshots(report.before, report.after)
    rows = [("", "before", "after", "change")]
    rows += [(figure.name, *figure.format()) for figure in figures]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    if sum(widths) + _GAP * (len(widths) - 1) > width:
        return [f"{name}: {old}, now {new}" for name, old, new, _ in rows[1:]]
    table = Table(box=None, pad_edge=False, padding=(0, _GAP // 2), header_style="bold")
    for heading in rows[0]:
        table.add_column(heading, justify="right" if heading else "left")
    for row in rows[1:]:
        table.add_row(*row)
    return [table]


def write_undo(address: str, size: int) -> str:
    """Return the command that gives a guest its memory back, as an indented line.

    Args:
        address: The VM's, as the command reads it.
        size: Bytes that the guest had before.
    """
    command = ["qmpballoon", "resize", address, _write_exactly(size)]
    return f"  {shlex.join(command)}  # gives it back"


def describe_owed(owed: int) -> str:
    """Say what an interrupted run owes a guest, and how it gets that back."""
    return (
        f"{format_size(owed)}: a run that was interrupted took the rest;"
        f" the next reclaim gives it back, and so does `resize {_write_exactly(owed)}`"
    )


def _write_exactly(size: int) -> str:
    """Write a size as the command reads it, to the byte."""
    units = {GiB: "GiB", MiB: "MiB", KiB: "KiB", 1: ""}
    unit, name = next(each for each in units.items() if size % each[0] == 0)
    return f"{size // unit}{name}"
