"""Before and after, in a table, and what it proves in a sentence."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from qmpballoon.cli import _output
from qmpballoon.sizes import format_size

if TYPE_CHECKING:
    from qmpballoon.balloon._reclaim import ReclaimReport, Snapshot

__all__ = ["print_summary", "prove"]


def print_summary(report: ReclaimReport, *, hold: bool) -> None:
    """Print what came of a reclaim; ``hold``: its memory was to be held."""
    table = Table(box=None, pad_edge=False, padding=(0, 2), header_style="bold")
    table.add_column("")
    for heading in ("before", "after", "change"):
        table.add_column(heading, justify="right")
    before, after = _figures(report.before), _figures(report.after)
    for name, old in before.items():
        new = after[name]
        table.add_row(name, _size(old), _size(new), _change(old, new))
    end = "held" if hold else "and not all of it given back"
    came = (
        f"requested {format_size(report.requested)}, handed over"
        f" {format_size(report.handed_over)} in {report.seconds:.1f} s,"
        f" {end if report.held else 'and given back'}"
    )
    console = Console(highlight=False)
    _output.draw(console, "", table, "", came, prove(report))


def prove(report: ReclaimReport) -> str:
    """Say what the host has got for the cache that the guest has lost."""
    before, after = report.before, report.after
    cache, lost = before.stats.disk_caches, _fall(_cache(before), _cache(after))
    if not cache or not lost or lost < 0:
        return "The guest's page cache did not shrink."
    share = f"The guest's page cache fell by {lost / cache:.0%}"
    freed = _fall(before.resident, after.resident)
    if freed is None:
        return f"{share}; what the host has got for it cannot be seen from here."
    if freed <= 0:
        return f"{share}, and QEMU's resident memory did not: the host has no more."
    return (
        f"{share}, and QEMU's resident memory by {freed / lost:.0%} of that: the host"
        f" has {format_size(freed)} more."
    )


def _figures(seen: Snapshot) -> dict[str, int | None]:
    stats = seen.stats
    return {
        "guest: page cache": stats.disk_caches,
        "guest: free": stats.free,
        "guest: available": stats.available,
        "guest: used": _fall(stats.total, stats.available),
        "guest: size": seen.actual,
        "host: QEMU resident": seen.resident,
    }


def _cache(seen: Snapshot) -> int | None:
    return seen.stats.disk_caches


def _fall(before: int | None, after: int | None) -> int | None:
    return None if before is None or after is None else before - after


def _size(size: int | None) -> str:
    return "unknown" if size is None else format_size(size)


def _change(before: int | None, after: int | None) -> str:
    if before is None or after is None:
        return ""
    sign = "+" if after > before else ""
    return f"{sign}{format_size(after - before)}"
