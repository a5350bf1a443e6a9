"""A cluster as tables and lines: pure, from what its hosts say to what is shown."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from rich.console import Group
from rich.table import Table
from rich.text import Text

from qmpballoon.sizes import format_size

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from qmpballoon.cluster.documents import JobProgress, Room
    from qmpballoon.cluster.operator import (
        ClusterView,
        HostView,
        JobPlan,
        JobReport,
        RoomLevel,
    )

__all__ = [
    "describe_job",
    "describe_progress",
    "draw_cluster",
    "draw_plan",
    "draw_room",
]

_Condition: TypeAlias = Literal["healthy", "silent", "malformed"]
_COLOURS: Final[dict[_Condition, str]] = {
    "healthy": "good",
    "silent": "warning",
    "malformed": "bad",
}
_LEVELS: Final[dict[RoomLevel, str]] = {
    "now": "now",
    "after-cold": "once its guests have given what is idle or cold",
    "to-floors": "once its guests have shrunk, some to their floors",
    "none": "none",
}


def draw_cluster(view: ClusterView) -> Group:
    """Lay out all hosts of a cluster."""
    parts: list[Text | Table] = [_describe_hosts(view.hosts)]
    parts += map(Text, view.describe())
    if view.hosts:
        parts.append(_draw_hosts(view.hosts))
    notes = [
        *view.notes,
        *(f"{host.name}: {note}" for host in view.hosts for note in host.list_notes()),
    ]
    return Group(*parts, *(Text(note, "warning") for note in notes))


def _describe_hosts(hosts: Sequence[HostView]) -> Text:
    if not hosts:
        return Text("There are no hosts: `qmpballoon fleet run --cluster` adds one")
    text = Text("1 host: " if len(hosts) == 1 else f"{len(hosts)} hosts: ")
    conditions = Counter(host.condition for host in hosts)
    shown: list[_Condition] = [each for each in _COLOURS if conditions[each]]
    for number, condition in enumerate(shown):
        text.append(", " if number else "")
        text.append(f"{conditions[condition]} {condition}", _COLOURS[condition])
    return text


def _draw_hosts(hosts: Iterable[HostView]) -> Table:
    table = Table(box=None)
    table.add_column("host", no_wrap=True)
    table.add_column("state", no_wrap=True)
    for name in ("age", "VMs", "available", "reserve", "room", "gives", "policy"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("job", no_wrap=True)
    for host in hosts:
        condition = Text(host.condition, _COLOURS[host.condition])
        table.add_row(host.name, condition, *_list_figures(host))
    return table


def _list_figures(host: HostView) -> list[str]:
    state = host.state
    if state is None:
        return []
    sizes = (state.available, state.reserve, state.room.now, state.offer.total)
    return [
        "-" if host.age is None else f"{host.age:.0f} s",
        str(state.vms),
        *map(format_size, sizes),
        "-" if state.policy_revision is None else str(state.policy_revision),
        state.progress.describe() if state.progress else "",
    ]


def draw_room(size: int, found: Sequence[tuple[str, RoomLevel, Room]]) -> Group:
    """Lay out where there is room for a new VM.

    Args:
        size: Bytes.
        found: As of :func:`qmpballoon.cluster.find_room`.
    """
    fits = Counter(level for _, level, _ in found)
    heading = Text(f"Room for {format_size(size)}: ")
    heading.append(f"{fits['now']} of {len(found)} hosts have it now")
    table = Table(box=None)
    table.add_column("host", no_wrap=True)
    for name in ("now", "after cold", "to floors"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("room")
    for name, level, room in found:
        sizes = (room.now, room.after_cold, room.to_floors)
        table.add_row(name, *map(format_size, sizes), _LEVELS[level])
    return Group(heading, table) if found else Group(heading)


def draw_plan(plan: JobPlan) -> Group:
    """Lay out what hosts are asked to give."""
    amount = format_size(plan.job.amount)
    hosts = plan.spread.parts
    count = "1 host" if len(hosts) == 1 else f"{len(hosts)} hosts"
    parts: list[Text | Table] = [Text(f"{amount} are asked of {count}")]
    if hosts:
        table = Table(box=None)
        table.add_column("host", no_wrap=True)
        for name in ("gives", "idle", "cold cache", "cache in use"):
            table.add_column(name, justify="right", no_wrap=True)
        for name, part in sorted(hosts.items()):
            sizes = (part.total, part.idle, part.cold, part.hot)
            table.add_row(name, *map(format_size, sizes))
        parts.append(table)
    if plan.spread.lacking:
        lacking = format_size(plan.spread.lacking)
        parts.append(Text(f"{lacking} of it are offered by nobody", "warning"))
    return Group(*parts)


def describe_progress(report: JobReport) -> str:
    """Say in a line how far a job is."""
    percent = report.taken * 100 // report.job.amount
    return f"{percent:3} %  {report.describe()}"


def describe_job(report: JobReport, until: str) -> str:
    """Say how a job has ended, and which host's part went otherwise than it should.

    Args:
        report: How far its hosts are.
        until: Its deadline, for people.
    """
    job = report.job
    lines = [
        f"{host.name} {_describe_part(host.progress)}"
        for host in report.hosts
        if host.progress is None
        or host.progress.phase in {"interrupted", "refused", "taking"}
    ]
    ending = f"the guests keep to it until {until}" if job.hold else "gave it back"
    taken, amount = format_size(report.taken), format_size(job.amount)
    count = len(report.hosts)
    hosts = "1 host" if count == 1 else f"{count} hosts"
    lines.append(f"Took {taken} of {amount} from {hosts}; {ending}")
    return "\n".join(lines)


def _describe_part(progress: JobProgress | None) -> str:
    if progress is None:
        return "has not said that it began"
    detail = f": {progress.detail}" if progress.detail else ""
    return f"is at {progress.describe()}{detail}"
