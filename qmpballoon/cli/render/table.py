"""The fleet as a table: still, or moving like top's."""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from qmpballoon.cli import _output
from qmpballoon.sizes import format_size

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Sequence

    from qmpballoon.fleet.members import Host
    from qmpballoon.fleet.policy import Rules
    from qmpballoon.fleet.vm import State, View

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
_AROUND: Final = 7  # lines of the screen that are not VMs: the host, heads, what is cut
_NOTES: Final = 5  # lines of a screen for what is wrong, at most


def print_table(host: Host, rules: Rules, views: Sequence[View]) -> None:
    """Print a fleet as it is now."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=_PIPED)
    notes = [_note(view) for view in views if view.detail]
    _output.draw(console, _page(host, rules, views, views, notes))


@contextmanager
def table_shown(
    console: Console | None = None,
) -> Generator[Callable[[Host, Rules, Sequence[View]], None]]:
    """Yield what shows a fleet, again and again in the same place.

    What does not fit on the screen is left out, the last VMs first.

    Args:
        console: Where; by default the terminal.
    """
    console = console or Console(highlight=False)

    def show(host: Host, rules: Rules, views: Sequence[View]) -> None:
        notes = [_note(view) for view in views if view.detail][:_NOTES]
        for note in notes:
            note.truncate(console.width, overflow="ellipsis")
        room = max(1, console.height - _AROUND - len(notes))
        page = _page(host, rules, views, views[:room], notes)
        live.update(page, refresh=True)

    # Drawn when there is news; a thread that draws would take time from the VMs.
    with Live(auto_refresh=False, console=console) as live:
        yield show


def _page(
    host: Host,
    rules: Rules,
    views: Sequence[View],
    shown: Sequence[View],
    notes: Iterable[Text],
) -> Group:
    """Lay out the host, the VMs, and what is wrong with some of them."""
    parts: list[Text | Table] = [_host(host, rules), _fleet(views)]
    if shown:
        parts.append(_table(shown))
    if hidden := len(views) - len(shown):
        parts.append(Text(f" and {hidden} more", "dim"))
    return Group(*parts, *notes)


def _host(host: Host, rules: Rules) -> Text:
    left = host.available - rules.reserve
    colour = "red" if left < 0 else "yellow" if left < rules.buffer // 2 else "green"
    text = Text("The host has ")
    text.append(f"{format_size(host.available)} available", colour)
    text.append(f" of {format_size(host.total)}")
    text.append(f", and is to keep {format_size(rules.reserve)}")
    if host.pressed:
        text.append("; tasks on it wait for memory", "red")
    return text


def _fleet(views: Sequence[View]) -> Text:
    """Sum the VMs up."""
    if not views:
        return Text("There are no VMs: name their sockets, like '/run/vms/*.qmp'")
    states = Counter(view.state for view in views)
    text = Text("1 VM: " if len(views) == 1 else f"{len(views)} VMs: ")
    seen: list[State] = [state for state in _COLOURS if states[state]]
    for number, state in enumerate(seen):
        text.append(", " if number else "")
        text.append(f"{states[state]} {state}", _COLOURS[state])
    has = sum(view.actual or 0 for view in views)
    of = sum(view.total or 0 for view in views)
    text.append(f"\nThey have {format_size(has)} of {format_size(of)}")
    if holds := sum(view.resident or 0 for view in views):
        text.append(f", and hold {format_size(holds)} of the host's memory")
    return text


def _table(views: Sequence[View]) -> Table:
    table = Table(box=None)
    table.add_column("VM", no_wrap=True, overflow="ellipsis")
    table.add_column("state", no_wrap=True)
    for name in ("has", "of", "available", "free", "cache", "resident"):
        table.add_column(name, justify="right", no_wrap=True)
    for view in views:
        table.add_row(view.name, Text(view.state, _COLOURS[view.state]), *_cells(view))
    return table


def _cells(view: View) -> list[Text]:
    stats = view.stats
    is_needy = (view.above_headroom or 0) < 0
    style = "" if view.is_fresh else "dim"  # what a guest said before it fell silent
    return [
        Text(_size(view.actual) + (f" > {_size(view.target)}" if view.target else "")),
        Text(_size(view.total)),
        Text(_size(stats.reclaimable), "bold red" if is_needy else style),
        Text(_size(stats.free), style),
        Text(_size(stats.disk_caches), style),
        Text(_size(view.resident)),
    ]


def _note(view: View) -> Text:
    return Text(f" {view.name}: ", _COLOURS[view.state]).append(view.detail, "default")


def _size(size: int | None) -> str:
    return "-" if size is None else format_size(size)
