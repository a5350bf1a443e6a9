"""A cluster as tables and lines: pure, from what its hosts say to what is shown."""

from __future__ import annotations

from collections import Counter
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from attrs import astuple
from rich.console import Group
from rich.text import Text

from qmpballoon.sizes import format_size

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from qmpballoon.cluster.documents import JobProgress, Room
    from qmpballoon.cluster.job_report import JobReport
    from qmpballoon.cluster.jobs import JobPlan
    from qmpballoon.cluster.view import ClusterView, HostView, RoomLevel

__all__ = [
    "describe_job",
    "describe_progress",
    "draw_cluster",
    "draw_plan",
    "draw_room",
]

_COLOURS: Final = {
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
    parts: list[Text] = [_describe_hosts(view.hosts)]
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
    conditions = Counter[str](host.condition for host in hosts)
    shown = [each for each in _COLOURS if conditions[each]]
    for number, condition in enumerate(shown):
        text.append(", " if number else "")
        text.append(f"{conditions[condition]} {condition}", _COLOURS[condition])
    return text


def _draw_hosts(hosts: Iterable[HostView]) -> Text:
    figures = ("age", "VMs", "available", "reserve", "room", "gives", "policy", "job")
    return _draw_columns(
        ("host", "state", *figures),
        [[host.name, host.condition, *_list_figures(host)] for host in hosts],
        left={"host", "state", "job"},
        styles=_COLOURS,
    )


def _list_figures(host: HostView) -> list[str]:
    state = host.state
    if state is None:
        return [""] * 8
    sizes = (state.reserve, state.room.now, state.offer.total)
    return [
        "-" if host.age is None else f"{host.age:.0f} s",
        str(state.vms),
        state.describe_available(),
        *map(format_size, sizes),
        "-" if state.policy_revision is None else str(state.policy_revision),
        state.progress.describe() if state.progress else "",
    ]


def _draw_columns(
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    left: Collection[str],
    styles: Mapping[str, str] = MappingProxyType({}),
) -> Text:
    """Lay out columns, all of whose characters are ASCII.

    A table of rich's would take 0.4 ms for each row, and there may be thousands.

    Args:
        headings: What is above the columns.
        rows: What is in them.
        left: The headings of columns that are aligned on the left.
        styles: The style of a row's second cell, by what it says.
    """
    lines = [headings, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    form = "  ".join(
        f"{{:{'<' if heading in left else '>'}{width}}}"
        for heading, width in zip(headings, widths, strict=True)
    )
    texts = [f" {form.format(*line)}".rstrip() for line in lines]
    text = Text("\n".join(texts), no_wrap=True, overflow="ellipsis")
    text.stylize("bold", 0, len(texts[0]))
    begin = len(texts[0]) + 1
    for row, line in zip(rows, texts[1:], strict=True):
        if style := styles.get(row[1]):
            at = begin + len(" ") + widths[0] + len("  ")
            text.stylize(style, at, at + len(row[1]))
        begin += len(line) + 1
    return text


def draw_room(size: int, found: Sequence[tuple[str, RoomLevel, Room]]) -> Group:
    """Lay out where there is room for a new VM.

    Args:
        size: Bytes.
        found: As of :func:`qmpballoon.cluster.find_room`.
    """
    fits = Counter(level for _, level, _ in found)
    heading = Text(f"Room for {format_size(size)}: ")
    heading.append(f"{fits['now']} of {len(found)} hosts have it now")
    table = _draw_columns(
        ("host", "now", "after cold", "to floors", "room"),
        [
            [name, *map(format_size, astuple(room)), _LEVELS[level]]
            for name, level, room in found
        ],
        left={"host", "room"},
    )
    return Group(heading, table) if found else Group(heading)


def draw_plan(plan: JobPlan) -> Group:
    """Lay out what hosts are asked to give."""
    amount = format_size(plan.job.amount)
    hosts = plan.spread.parts
    count = "1 host" if len(hosts) == 1 else f"{len(hosts)} hosts"
    parts: list[Text] = [Text(f"{amount} are asked of {count}")]
    if hosts:
        table = _draw_columns(
            ("host", "gives", "idle", "cold cache", "cache in use"),
            [
                [name, *map(format_size, (part.total, *astuple(part)))]
                for name, part in sorted(hosts.items())
            ],
            left={"host"},
        )
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
    is_held = job.hold and not report.has_ended
    ending = f"the guests keep to it until {until}" if is_held else "gave it back"
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
