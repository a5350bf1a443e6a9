"""The fleet as a table: pure, from what is known of the VMs to what is shown."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

from rich.console import Group
from rich.table import Table
from rich.text import Text

from qmpballoon._printable import make_printable
from qmpballoon.cli.render.fleet import describe_available
from qmpballoon.sizes import format_size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import JustifyMethod

    from qmpballoon.cli.render.history import History
    from qmpballoon.fleet.guests import Host
    from qmpballoon.fleet.policy import Rules
    from qmpballoon.fleet.vm_view import VmState, VmView

__all__ = ["draw_fleet", "draw_screen"]

_COLOURS: Final[dict[VmState, str]] = {
    "connecting": "secondary",
    "healthy": "good",
    "stalled": "warning",
    "held": "warning",
    "nonsense": "bad",
    "stale": "warning",
    "no-driver": "warning",
    "no-balloon": "warning",
    "busy": "warning",
    "no-permission": "bad",
    "refused": "bad",
    "gone": "bad",
    "failed": "bad",
}
_FIGURES: Final = (
    *("VM", "state", "has", "of"),
    *("available", "free", "cache", "hot", "resident"),
)
_PICTURES: Final = ("spare", "memory", "3 minutes")
_COLUMNS: Final = (*_FIGURES[:3], *_PICTURES, *_FIGURES[3:])
# What is left out first where the terminal is too narrow for all columns.
_LEFT_OUT: Final = (
    *("hot", "cache", "free", "of", "resident", "available"),
    *("3 minutes", "memory", "spare"),
)
_LEFT_ALIGNED: Final = {"state", "memory", "3 minutes"}
# What a guest's memory is: the sign in the bar, what it is, and its style.
_PARTS: Final = (
    ("\u2588", "used", "used"),
    ("\u2592", "cache", "cache"),
    ("\u2591", "free", "free"),
    ("\u00b7", "in the balloon", "secondary"),
)
_BAR: Final = 16  # columns of the terminal for the bar
_PADDING: Final = 2  # columns of the terminal for each column of the table
_NARROWEST: Final = 8  # columns of the terminal for the names
_READABLE: Final = 16  # columns for names, before what can be left out is shown
# Lines of the screen that are not VMs: 3 for the host and the sums, 1 for what the
# fleet does, 1 for the headings, 1 for the bar's signs, 1 for how many VMs are left
# out, and 2 for sums that wrap on a narrow screen.
_AROUND: Final = 9
_NAME: Final = 100  # characters of a VM's name at most
_NOTES: Final = 5  # lines of a screen for what is wrong, at most


def draw_fleet(host: Host, rules: Rules, views: Sequence[VmView], width: int) -> Group:
    """Lay out a fleet with all its VMs, however many lines that takes.

    Args:
        host: The host.
        rules: What the host is to keep.
        views: The VMs.
        width: Characters in a line.
    """
    parts: list[Text | Table] = [_describe_host(host, rules), _describe_vms(views)]
    if views:
        parts.append(_draw_table([_format_cells(view) for view in views], width))
    notes = [_describe_detail(view) for view in views if view.detail]
    return Group(*parts, *notes)


def draw_screen(
    host: Host,
    rules: Rules,
    views: Sequence[VmView],
    history: History | None,
    *,
    width: int,
    height: int,
) -> Group:
    """Lay out as much of a fleet as fits on a screen, with pictures where they fit.

    What does not fit is left out, the last VMs first.

    Args:
        host: The host.
        rules: What the host is to keep.
        views: The VMs.
        history: What was seen of them until now; ``None``: the screen cannot show
            pictures.
        width: Characters in a line of the screen.
        height: Lines of the screen.
    """
    notes = [_describe_detail(view) for view in views if view.detail][:_NOTES]
    for note in notes:
        note.truncate(width, overflow="ellipsis")
    room = max(1, height - _AROUND - len(notes))
    parts: list[Text | Table] = [_describe_host(host, rules), _describe_vms(views)]
    rows = [_format_cells(view) for view in views[:room]]
    if rows and history is not None:
        doing = Text(history.describe(views), "bold")
        doing.truncate(width, overflow="ellipsis")
        parts.append(doing)
        for view, row in zip(views, rows, strict=False):
            row.update(_draw_cells(view, history))
    if rows:
        table = _draw_table(rows, width)
        parts.append(table)
        if any(column.header == "memory" for column in table.columns):
            parts.append(_explain_bar(width))
    if len(views) > room:
        parts.append(Text(f" and {len(views) - room} more", "secondary"))
    return Group(*parts, *notes)


def _describe_host(host: Host, rules: Rules) -> Text:
    left = host.available - rules.reserve
    colour = "bad" if left < 0 else "warning" if left < rules.buffer // 2 else "good"
    text = Text("The host has ")
    text.append(describe_available(host.available), colour)
    text.append(f" of {format_size(host.total)}")
    text.append(f", and is to keep {format_size(rules.reserve)}")
    if host.pressed:
        text.append("; tasks on it wait for memory", "bad")
    return text


def _describe_vms(views: Sequence[VmView]) -> Text:
    """Say how the VMs are, what they have, and what they hold of the host."""
    if not views:
        return Text("There are no VMs: name their sockets, like '/run/vms/*.qmp'")
    states = Counter(view.state for view in views)
    text = Text("1 VM: " if len(views) == 1 else f"{len(views)} VMs: ")
    seen: list[VmState] = [state for state in _COLOURS if states[state]]
    for number, state in enumerate(seen):
        text.append(", " if number else "")
        text.append(f"{states[state]} {state}", _COLOURS[state])
    has = sum(view.actual or 0 for view in views)
    of = sum(view.total or 0 for view in views)
    text.append(f"\nThey have {format_size(has)} of {format_size(of)}")
    if holds := sum(view.resident or 0 for view in views):
        text.append(f", and hold {format_size(holds)} of the host's memory")
    return text


def _draw_table(rows: Sequence[dict[str, Text]], width: int) -> Table:
    """Lay out the VMs. Names are cut to fit; all else is whole, or not there."""
    widths = {
        name: _PADDING + max(len(name), *(row[name].cell_len for row in rows))
        for name in _COLUMNS
        if name in rows[0]
    }
    names = widths.pop("VM")
    wanted = min(names, _PADDING + _READABLE)
    for name in _LEFT_OUT:
        if name in widths and sum(widths.values()) + wanted > width:
            del widths[name]
    room = max(width - sum(widths.values()), _PADDING + _NARROWEST)
    table = Table(box=None)
    table.add_column(
        "VM",
        no_wrap=True,
        overflow="ellipsis",
        width=min(names, room) - _PADDING,
    )
    for name, needed in widths.items():
        justify: JustifyMethod = "left" if name in _LEFT_ALIGNED else "right"
        table.add_column(
            name, justify=justify, no_wrap=True, min_width=needed - _PADDING
        )
    for row in rows:
        table.add_row(row["VM"], *(row[name] for name in widths))
    return table


def _format_cells(view: VmView) -> dict[str, Text]:
    """Return the cells with figures, by their columns."""
    stats = view.stats
    above = view.above_headroom
    is_needy = (above or 0) < 0
    lacks_hot = above is not None and above < (view.hot or 0)
    # What a guest said before it stopped answering.
    style = "" if view.is_fresh else "secondary"
    cells = [
        Text(make_printable(view.name, _NAME)),
        Text(view.state, _COLOURS[view.state]),
        Text(
            _format_size(view.actual)
            + (f" > {_format_size(view.target)}" if view.target else "")
        ),
        Text(_format_size(view.total)),
        Text(_format_size(stats.reclaimable), "bad" if is_needy else style),
        Text(_format_size(stats.free), style),
        Text(_format_size(stats.disk_caches), style),
        Text(_format_size(view.hot), "warning" if lacks_hot else style),
        Text(_format_size(view.resident)),
    ]
    return dict(zip(_FIGURES, cells, strict=True))


def _draw_cells(view: VmView, history: History) -> dict[str, Text]:
    """Return the cells with pictures, by their columns."""
    above = view.above_headroom
    sign = "+" if (above or 0) > 0 else ""
    style = "bad" if (above or 0) < 0 else ""
    cells = [
        Text("-" if above is None else f"{sign}{format_size(above)}", style),
        _draw_bar(view),
        Text(history.draw(view.name), style),
    ]
    return dict(zip(_PICTURES, cells, strict=True))


def _draw_bar(view: VmView) -> Text:
    """Draw what a VM's RAM is: used, page cache, free, in the balloon."""
    cache, free = view.stats.disk_caches, view.stats.free
    if view.actual is None or not view.total or cache is None or free is None:
        return Text("-", "secondary")
    # A guest may say what cannot be: then its bar is full, and not longer.
    sizes = (max(view.actual - cache - free, 0), cache, free)
    bar, end, filled = Text(), 0, 0
    for (sign, _, style), size in zip(_PARTS, sizes, strict=False):
        end += size
        until = min(round(end * _BAR / view.total), _BAR)
        bar.append(sign * (until - filled), style)
        filled = until
    sign, _, style = _PARTS[-1]
    return bar.append(sign * (_BAR - filled), style)


def _explain_bar(width: int) -> Text:
    text = Text(" memory: ")
    for number, (sign, name, style) in enumerate(_PARTS):
        text.append("  " if number else "").append(sign, style).append(f" {name}")
    text.append("   3 minutes: available")
    text.truncate(width, overflow="ellipsis")
    return text


def _describe_detail(view: VmView) -> Text:
    name = make_printable(view.name, _NAME)
    detail = make_printable(view.detail)
    return Text(f" {name}: ", _COLOURS[view.state]).append(detail, "default")


def _format_size(size: int | None) -> str:
    return "-" if size is None else format_size(size)
