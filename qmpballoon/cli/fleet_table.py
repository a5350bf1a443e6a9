"""The fleet as a table: still, or moving like top's."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from qmpballoon.sizes import format_size

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    from qmpballoon.fleet.policy import Host, Rules
    from qmpballoon.fleet.record import State, View

__all__ = ["print_table", "table_shown"]

_COLOURS: Final[dict[State, str]] = {
    "connecting": "dim",
    "healthy": "green",
    "stalled": "yellow",
    "stale": "yellow",
    "no-driver": "yellow",
    "no-balloon": "yellow",
    "busy": "yellow",
    "gone": "red",
}
_PIPED: Final = 200  # columns where there is no terminal to tell


def print_table(host: Host, rules: Rules, views: Sequence[View]) -> None:
    """Print a fleet as it is now."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=_PIPED)
    console.print(_table(host, rules, views))


@contextmanager
def table_shown() -> Generator[Callable[[Host, Rules, Sequence[View]], None]]:
    """Yield what shows a fleet, again and again in the same place."""
    # Drawn when there is news; a thread that draws would take time from the VMs.
    with Live(auto_refresh=False, console=Console(highlight=False)) as live:
        yield lambda host, rules, views: live.update(
            _table(host, rules, views), refresh=True
        )


def _table(host: Host, rules: Rules, views: Sequence[View]) -> Table:
    table = Table(box=None, caption=_caption(host, rules), caption_justify="left")
    for name in ("VM", "state"):
        table.add_column(name, no_wrap=True)
    for name in ("has", "of", "available", "free", "cache", "resident"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("")
    for view in views:
        table.add_row(view.name, Text(view.state, _COLOURS[view.state]), *_cells(view))
    if not views:
        table.add_row("no VMs found: name their sockets, like '/run/vms/*.qmp'")
    return table


def _cells(view: View) -> list[Text]:
    stats, fresh = view.stats, view.state in ("healthy", "stalled")
    available = stats.reclaimable
    needy = (
        fresh
        and available is not None
        and view.bounds is not None
        and available < view.bounds.headroom
    )
    style = "" if fresh else "dim"  # what a guest said before it fell silent
    return [
        Text(_size(view.actual) + (f" > {_size(view.target)}" if view.target else "")),
        Text(_size(view.total)),
        Text(_size(available), "bold red" if needy else style),
        Text(_size(stats.free), style),
        Text(_size(stats.disk_caches), style),
        Text(_size(view.resident)),
        Text(view.detail, "dim"),
    ]


def _caption(host: Host, rules: Rules) -> Text:
    left = host.available - rules.reserve
    colour = "red" if left < 0 else "yellow" if left < rules.buffer // 2 else "green"
    text = Text("\nThe host has ")
    text.append(f"{format_size(host.available)} available", colour)
    text.append(f" of {format_size(host.total)}")
    text.append(f", and is to keep {format_size(rules.reserve)}")
    if host.pressed:
        text.append("; tasks on it wait for memory", "red")
    return text


def _size(size: int | None) -> str:
    return "-" if size is None else format_size(size)
