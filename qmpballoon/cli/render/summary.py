"""A reclaim's figures before and after, and what they prove: pure, from its report."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Final

from qmpballoon.sizes import GiB, KiB, MiB, format_size

if TYPE_CHECKING:
    from rich.console import RenderableType

    from qmpballoon.balloon import ReclaimReport
    from qmpballoon.balloon.sampling import Snapshot

__all__ = [
    "describe_gain",
    "describe_owed",
    "describe_rereads",
    "draw_summary",
    "write_undo",
]

_SHORT: Final = 0.1  # seconds; the shortest time that is written with its figure


def draw_summary(
    report: ReclaimReport, *, hold: bool, address: str | None = None
) -> list[RenderableType]:
    """Lay out what came of a reclaim: a table, a sentence, and the host's gain.

    Args:
        report: The reclaim's.
        hold: Whether its memory was to be held.
        address: The VM's, as the command reads it; with it, the command that gives back
            what is held is shown.
    """
    from rich.table import Table  # noqa: PLC0415 - not for what is only text

    table = Table(box=None, pad_edge=False, padding=(0, 2), header_style="bold")
    table.add_column("")
    for heading in ("before", "after", "change"):
        table.add_column(heading, justify="right")
    before, after = _list_figures(report.before), _list_figures(report.after)
    for name, old in before.items():
        new = after[name]
        table.add_row(name, _format(old), _format(new), _format_change(old, new))
    end = "held" if hold else "and not all of it given back"
    sentence = (
        f"requested {format_size(report.requested)}, handed over"
        f" {format_size(report.handed_over)} in {report.seconds:.1f} s,"
        f" {end if report.held else 'and given back'}"
    )
    price = describe_rereads(report)
    prices = [] if price is None else [price]
    undo: list[str] = []
    if hold and report.held and address is not None:
        undo = [write_undo(address, report.before.actual)]
    return ["", table, sentence, describe_gain(report), *prices, *undo]


def write_undo(address: str, size: int) -> str:
    """Return the command that gives a guest its memory back, as an indented line.

    Args:
        address: The VM's, as the command reads it.
        size: Bytes that the guest had before.
    """
    units = {GiB: "GiB", MiB: "MiB", KiB: "KiB", 1: ""}
    unit, name = next(each for each in units.items() if size % each[0] == 0)
    command = ["qmpballoon", "resize", address, f"{size // unit}{name}"]
    return f"  {shlex.join(command)}  # gives it back"


def describe_gain(report: ReclaimReport) -> str:
    """Say how much memory the host has gained for the cache that the guest lost."""
    before, after = report.before, report.after
    cache = before.stats.disk_caches
    lost = _subtract(cache, after.stats.disk_caches)
    if not cache or not lost or lost < 0:
        return "The guest's page cache did not shrink."
    share = f"The guest's page cache fell by {lost / cache:.0%}"
    freed = _subtract(before.resident, after.resident)
    if freed is None:
        return f"{share}; what the host has got for it cannot be seen from here."
    if freed <= 0:
        return f"{share}, and QEMU's resident memory did not: the host has no more."
    return (
        f"{share}, and QEMU's resident memory by {freed / lost:.0%} of that: the host"
        f" has {format_size(freed)} more."
    )


def describe_rereads(report: ReclaimReport) -> str | None:
    """Say what the guest had to read again from its disks; ``None`` if not known."""
    if report.reread is None:
        return None
    if report.reread == 0:
        return "Until now the guest read nothing again from its disks."
    size = format_size(report.reread)
    return f"The guest had to read up to {size} again from its disks{_compare(report)}."


def _compare(report: ReclaimReport) -> str:
    """Compare what was read again with how fast the guest gave memory."""
    lowest = min((sample.actual for sample in report.timeline), default=0)
    times = [sample.t for sample in report.timeline if sample.actual == lowest]
    if not report.reread or not report.handed_over or not times or times[0] <= 0:
        return ""
    seconds = report.reread * times[0] / report.handed_over
    if seconds < _SHORT:
        return ": less than it gave in a tenth of a second"
    return f": as much as it gave in {seconds:.1f} s"


def _list_figures(seen: Snapshot) -> dict[str, int | None]:
    stats = seen.stats
    return {
        "guest: page cache": stats.disk_caches,
        "guest: free": stats.free,
        "guest: available": stats.available,
        "guest: used": _subtract(stats.total, stats.available),
        "guest: size": seen.actual,
        "host: QEMU resident": seen.resident,
    }


def _subtract(first: int | None, second: int | None) -> int | None:
    return None if first is None or second is None else first - second


def _format(size: int | None) -> str:
    return "unknown" if size is None else format_size(size)


def _format_change(before: int | None, after: int | None) -> str:
    change = _subtract(after, before)
    if change is None:
        return ""
    return f"{'+' if change > 0 else ''}{format_size(change)}"


def describe_owed(owed: int) -> str:
    """Say what a run that was interrupted owes a guest, and how it gets that back."""
    size = format_size(owed)
    return (
        f"{size}: a run that was interrupted left it with less; the next reclaim gives"
        f" that back, and so does `resize {size.replace(' ', '')}`"
    )
