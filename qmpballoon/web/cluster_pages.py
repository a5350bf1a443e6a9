"""Draws the page of a cluster's hosts, and its parts as they change. Pure.

What hosts publish was checked when it was read, and is put into a tree of elements,
which escapes it. So their texts are always shown as text.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final, get_args

from attrs import astuple

from qmpballoon._printable import make_printable
from qmpballoon.cluster.view import LATE
from qmpballoon.export.panels import make
from qmpballoon.sizes import format_size
from qmpballoon.web.cluster_board import HostCondition
from qmpballoon.web.parts import (
    draw_bar,
    draw_log,
    draw_log_section,
    draw_row,
    draw_table,
    format_live_page,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from xml.etree import ElementTree as ET

    from qmpballoon.cluster.documents import HostState, JobProgress
    from qmpballoon.web.cluster_board import ClusterBoard, HostOnBoard

__all__ = ["draw_cluster_parts", "format_cluster_page"]

# As of the page of VMs. What guests can give is sorted by all of it.
_COLUMNS: Final = (
    *(("host", "name"), ("state", "state"), ("memory", "used")),
    *(("guests can give", "offer"), ("VMs", "vms"), ("available", "available")),
    *(("reserve", "reserve"), ("policy", "policy"), ("job", "taken")),
    *(("room now", "now"), ("after cold", "after"), ("to floors", "floors")),
    *(("idle", "idle"), ("cold cache", "cold"), ("cache in use", "hot")),
)
# What the memory of a host is, and what its guests can give, in the order of the bars.
_MEMORY: Final = {
    "used": "used",
    "free": "above the reserve",
    "reserve": "in the reserve",
}
_OFFER: Final = {
    "idle": "idle",
    "cold": "cold cache",
    "hot": "cache in use",
}
_MOST_ROWS: Final = 2000
"""Rows of the table. The page has 3 MB with so many."""
_MINUTE: Final = 60
_HOUR: Final = 3600


def format_cluster_page(board: ClusterBoard) -> str:
    """Return the page of all hosts."""
    parts = dict(draw_cluster_parts(board))
    rows = [part for name, part in parts.items() if name.startswith("host-")]
    return format_live_page(
        board,
        "Hosts",
        "events",
        parts["cluster"],
        parts["problem"],
        body=[
            parts["job"],
            draw_table("hosts", _COLUMNS, {**_MEMORY, **_OFFER}, rows),
            draw_log_section(parts["log"]),
        ],
    )


def draw_cluster_parts(board: ClusterBoard) -> Iterator[tuple[str, ET.Element]]:
    """Draw the parts of the page of all hosts."""
    yield "cluster", make("p", {"id": "cluster"}, _describe_cluster(board))
    yield "problem", make("p", {"id": "problem"}, _describe_problem(board))
    yield "job", make("div", {"id": "job"}, *_draw_job(board))
    for name, host in _list_shown(board):
        yield f"host-{host.number}", _draw_host(name, host)
    yield "log", draw_log(board.entries, with_names=False)


def _list_shown(board: ClusterBoard) -> list[tuple[str, HostOnBoard]]:
    """Return the hosts that are shown: of too many those that are not well first."""
    listed = sorted(board.hosts.items())
    if len(listed) > _MOST_ROWS:
        listed.sort(key=lambda item: item[1].condition == "healthy")
    return listed[:_MOST_ROWS]


def _describe_cluster(board: ClusterBoard) -> str:
    hosts = board.hosts
    if board.view is None:
        return "Nothing is known of its hosts yet."
    if not hosts:
        return "There are no hosts: qmpballoon fleet run --cluster adds one."
    conditions = Counter(host.condition for host in hosts.values())
    counts = ", ".join(
        f"{conditions[each]} {each}"
        for each in get_args(HostCondition)
        if conditions[each]
    )
    count = "1 host" if len(hosts) == 1 else f"{len(hosts)} hosts"
    rest = len(hosts) - _MOST_ROWS
    left_out = [f"{rest} healthy ones are not shown below"] if rest > 0 else []
    return ". ".join([f"{count}: {counts}", *left_out, *board.view.describe(), ""])


def _describe_problem(board: ClusterBoard) -> str:
    if board.problem:
        return f"What is shown is old: {make_printable(board.problem)}"
    return "; ".join(board.view.notes) if board.view else ""


def _draw_job(board: ClusterBoard) -> list[ET.Element]:
    report = board.view and board.view.report_job()
    if not report:
        return []
    left = report.job.until - board.now
    ends = f"; it ends within {_format_seconds(left)}" if left > 0 else ""
    return [
        make("p", {}, f"Job {report.job.id}: {report.describe()}{ends}."),
        _draw_progress(report.taken, report.job.amount, "Progress of the job"),
    ]


def _draw_progress(done: int, whole: int, said: str) -> ET.Element:
    value = {"max": str(max(whole, 1)), "value": str(min(done, max(whole, 1)))}
    return make("progress", {**value, "aria-label": said})


def _draw_host(name: str, host: HostOnBoard) -> ET.Element:
    state = host.view.state
    keys = {"name": name, "state": host.condition, **_list_keys(state)}
    details = [*_describe_silence(host), *host.view.list_notes()]
    text = f"{host.condition}: {'; '.join(details)}" if details else host.condition
    is_noted = host.condition == "healthy" and details
    kind = "noted" if is_noted else host.condition
    return draw_row(
        f"host-{host.number}",
        keys,
        make("th", {"scope": "row"}, name),
        make("td", {"class": f"state {kind}"}, text),
        *_draw_figures(name, state),
    )


def _list_keys(state: HostState | None) -> Mapping[str, int | None]:
    """Return what a row is sorted by, but name and state."""
    if state is None:
        return {key: None for _, key in _COLUMNS[2:]}
    room, offer = state.room, state.offer
    return {
        "used": state.total - state.available,
        "vms": state.vms,
        "available": state.available,
        "reserve": state.reserve,
        "now": room.now,
        "after": room.after_cold,
        "floors": room.to_floors,
        "offer": offer.total,
        "idle": offer.idle,
        "cold": offer.cold,
        "hot": offer.hot,
        "policy": state.policy_revision,
        "taken": state.progress.taken if state.progress else None,
    }


def _draw_figures(name: str, state: HostState | None) -> list[ET.Element]:
    """Draw the cells of a host but name and state."""
    if state is None:
        return [make("td", {}, "-") for _ in _COLUMNS[2:]]
    room, offer = state.room, state.offer
    available = max(state.available, 0)
    memory = {
        "used": max(state.total - available, 0),
        "free": max(available - state.reserve, 0),
        "reserve": min(available, state.reserve),
    }
    offers = {"idle": offer.idle, "cold": offer.cold, "hot": offer.hot}
    needy = {"class": "needy"} if state.available < state.reserve else {}
    policy = state.policy_revision
    return [
        make("td", {"class": "picture"}, *draw_bar(memory, state.total, _MEMORY)),
        make("td", {"class": "picture"}, *draw_bar(offers, state.total, _OFFER)),
        make("td", {}, str(state.vms)),
        make(
            "td",
            needy,
            f"{state.describe_available()} of {format_size(state.total)}",
        ),
        make("td", {}, format_size(state.reserve)),
        make("td", {}, "-" if policy is None else str(policy)),
        make("td", {"class": "job"}, *_draw_part(name, state.progress)),
        *(
            make("td", {}, format_size(size))
            for size in (*astuple(room), *offers.values())
        ),
    ]


def _draw_part(name: str, progress: JobProgress | None) -> list[ET.Element | str]:
    """Draw how far a host is with a job."""
    if progress is None:
        return ["-"]
    if progress.phase != "taking":
        return [progress.describe()]
    said = f"Progress of {name}"
    return [
        progress.describe(),
        _draw_progress(progress.taken, progress.quota, said),
    ]


def _describe_silence(host: HostOnBoard) -> list[str]:
    """Say for how long nothing was heard of a host; nothing as long as it is fresh."""
    if host.age is None or host.age <= LATE:
        return []
    return [f"not heard of for {_format_seconds(host.age)}"]


def _format_seconds(seconds: float) -> str:
    """Return a time in its largest whole unit."""
    if seconds < 2 * _MINUTE:
        return f"{seconds:.0f} s"
    if seconds < 2 * _HOUR:
        return f"{seconds / _MINUTE:.0f} min"
    return f"{seconds / _HOUR:.0f} h"
