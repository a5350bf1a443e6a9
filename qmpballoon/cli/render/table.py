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
    from collections.abc import Iterable, Sequence

    from rich.console import JustifyMethod

    from qmpballoon.fleet.guests import Host
    from qmpballoon.fleet.policy import Rules
    from qmpballoon.fleet.vm import VmState, VmView

__all__ = ["draw_fleet", "draw_screen"]

_COLOURS: Final[dict[VmState, str]] = {
    "connecting": "secondary",
    "healthy": "good",
    "stalled": "warning",
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
# What is left out first where the terminal is too narrow for all columns.
_LEFT_OUT: Final = ("hot", "cache", "free", "of", "resident", "available")
_COLUMNS: Final = (
    *("VM", "state", "has", "of"),
    *("available", "free", "cache", "hot", "resident"),
)
_PADDING: Final = 2  # columns of the terminal for each column of the table
_NARROWEST: Final = 8  # columns of the terminal for the names
# Lines of the screen that are not VMs: 3 for the host and the sums, 1 for the headings,
# 1 for how many VMs are left out, and 2 for sums that wrap on a narrow screen.
_AROUND: Final = 7
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
    notes = [_describe_detail(view) for view in views if view.detail]
    return _draw_page(host, rules, views, views, notes, width=width)


def draw_screen(
    host: Host, rules: Rules, views: Sequence[VmView], width: int, height: int
) -> Group:
    """Lay out as much of a fleet as fits on a screen.

    What does not fit is left out, the last VMs first.

    Args:
        host: The host.
        rules: What the host is to keep.
        views: The VMs.
        width: Characters in a line of the screen.
        height: Lines of the screen.
    """
    notes = [_describe_detail(view) for view in views if view.detail][:_NOTES]
    for note in notes:
        note.truncate(width, overflow="ellipsis")
    room = max(1, height - _AROUND - len(notes))
    return _draw_page(host, rules, views, views[:room], notes, width=width)


def _draw_page(
    host: Host,
    rules: Rules,
    views: Sequence[VmView],
    shown: Sequence[VmView],
    notes: Iterable[Text],
    *,
    width: int,
) -> Group:
    """Lay out the host, the VMs, and what is wrong with some of them."""
    parts: list[Text | Table] = [_describe_host(host, rules), _describe_vms(views)]
    if shown:
        parts.append(_draw_table(shown, width))
    if hidden := len(views) - len(shown):
        parts.append(Text(f" and {hidden} more", "secondary"))
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


def _draw_table(views: Sequence[VmView], width: int) -> Table:
    """Lay out the VMs. Names are cut to fit; sizes are whole, or not there."""
    rows = [dict(zip(_COLUMNS, _format_cells(view), strict=True)) for view in views]
    widths = {
        name: _PADDING + max(len(name), *(row[name].cell_len for row in rows))
        for name in _COLUMNS
    }
    names = widths.pop("VM")
    for name in _LEFT_OUT:
        if sum(widths.values()) + _PADDING + _NARROWEST > width:
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
        justify: JustifyMethod = "left" if name == "state" else "right"
        table.add_column(
            name, justify=justify, no_wrap=True, min_width=needed - _PADDING
        )
    for row in rows:
        table.add_row(row["VM"], *(row[name] for name in widths))
    return table


def _format_cells(view: VmView) -> list[Text]:
    stats = view.stats
    above = view.above_headroom
    is_needy = (above or 0) < 0
    lacks_hot = above is not None and above < (view.hot or 0)
    # What a guest said before it stopped answering.
    style = "" if view.is_fresh else "secondary"
    return [
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


def _describe_detail(view: VmView) -> Text:
    name = make_printable(view.name, _NAME)
    detail = make_printable(view.detail)
    return Text(f" {name}: ", _COLOURS[view.state]).append(detail, "default")


def _format_size(size: int | None) -> str:
    return "-" if size is None else format_size(size)
