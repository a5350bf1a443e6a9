"""Draws the pages of VMs, and their parts as they change: from the board to HTML. Pure.

A page is complete when it is served: it can be read without a script. Its parts are
elements with an ``id``; the script puts in new ones for those that have changed.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

from qmpballoon._printable import make_printable
from qmpballoon.balloon.sampling import Timeline
from qmpballoon.export.facts import Facts
from qmpballoon.export.page import draw_charts, draw_facts
from qmpballoon.export.panels import make
from qmpballoon.sizes import format_size
from qmpballoon.web.parts import (
    LONGEST_NAME,
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

    from qmpballoon.fleet.vm_view import VmView
    from qmpballoon.web.board import Board, History, VmOnBoard
    from qmpballoon.web.jobs import Job

__all__ = [
    "draw_fleet_parts",
    "draw_vm_parts",
    "format_fleet_page",
    "format_vm_page",
]

# What can be sorted by: what a heading says, and the member of a row's data. The
# columns with pictures are sorted by what matters most of them.
_COLUMNS: Final = (
    *(("VM", "name"), ("state", "state"), ("memory", "used"), ("3 minutes", "size")),
    *(("has", "size"), ("available", "available"), ("above headroom", "spare")),
    *(("cache", "cache"), ("resident", "resident")),
)
# What the memory of a guest is, in the order of the bar, and what that is called.
_PARTS: Final = {
    "used": "used",
    "cache": "cache",
    "free": "free",
    "balloon": "in the balloon",
}
_STEP: Final = 5.0  # seconds from one point of a small chart to the next
_STEPS: Final = 36  # of them: three minutes
_HEIGHT: Final = 100  # units of a small chart


# Whole pages


def format_fleet_page(board: Board, host: Mapping[str, object]) -> str:
    """Return the page of all VMs."""
    parts = dict(draw_fleet_parts(board, host))
    rows = [part for name, part in parts.items() if name.startswith("vm-")]
    return format_live_page(
        board,
        "VMs",
        "events",
        parts["host"],
        body=[
            draw_table("VMs", _COLUMNS, _PARTS, rows),
            draw_log_section(parts["log"]),
        ],
    )


def format_vm_page(
    board: Board, vm: VmOnBoard, job: Job | None, change_key: str | None
) -> str:
    """Return the page of one VM.

    Args:
        board: The board.
        vm: The VM.
        job: What is or was done with it.
        change_key: What changes need; ``None``: there can be none.
    """
    parts = dict(draw_vm_parts(board, vm, job))
    name = vm.view.name
    return format_live_page(
        board,
        make_printable(name, LONGEST_NAME),
        f"events?vm={_quote(name)}",
        make("p", {}, make("a", {"href": "./"}, "All VMs")),
        parts["state"],
        body=[
            *([] if change_key is None else [_draw_changes(name, parts["job"])]),
            parts["charts-part"],
            parts["facts"],
            draw_log_section(parts["log"]),
        ],
        change_key=change_key,
    )


# Parts of the page of all VMs


def draw_fleet_parts(
    board: Board, host: Mapping[str, object]
) -> Iterator[tuple[str, ET.Element]]:
    """Draw the parts of the page of all VMs.

    Args:
        board: The board.
        host: The host's figures, as ``fleet status`` prints them.
    """
    there = [vm for vm in board.vms.values() if vm.is_there]
    yield "host", make("p", {"id": "host"}, _describe_host(host, len(there)))
    for vm in sorted(there, key=lambda vm: vm.view.name):
        yield f"vm-{vm.number}", _draw_row(vm, board.seconds)
    yield "log", draw_log(board.entries, with_names=True)


def _describe_host(host: Mapping[str, object], count: int) -> str:
    sizes = {name: size for name, size in host.items() if isinstance(size, int)}
    available, reserve = sizes.get("available", 0), sizes.get("reserve", 0)
    vms = "1 VM" if count == 1 else f"{count} VMs"
    presses = "; tasks on it wait for memory" if host.get("pressed") else ""
    return (
        f"{vms}. The host has {format_size(max(available, 0))} available of"
        f" {format_size(sizes.get('total', 0))}, and is to keep {format_size(reserve)}"
        f"{presses}."
    )


def _draw_row(vm: VmOnBoard, now: float) -> ET.Element:
    view = vm.view
    stats, above = view.stats, view.above_headroom
    name = make_printable(view.name, LONGEST_NAME)
    sizes = _measure_parts(view)
    keys: dict[str, object] = {
        "name": name,
        "state": view.state,
        "used": sizes.get("used"),
        "size": view.actual,
        "available": stats.reclaimable,
        "spare": above,
        "cache": stats.disk_caches,
        "resident": view.resident,
    }
    needy = {"class": "needy"} if (above or 0) < 0 else {}
    return draw_row(
        f"vm-{vm.number}",
        keys,
        make(
            "th",
            {"scope": "row"},
            make("a", {"href": f"vm?name={_quote(view.name)}"}, name),
        ),
        make("td", {"class": f"state {view.state}"}, _describe_state(view)),
        make("td", {"class": "picture"}, *draw_bar(sizes, view.total or 0, _PARTS)),
        make("td", {"class": "picture"}, *_draw_line(vm.history, view.total, now)),
        make("td", {}, _describe_size(view)),
        make("td", {}, _format(stats.reclaimable)),
        make("td", needy, _format(above)),
        make("td", {}, _format(stats.disk_caches)),
        make("td", {}, _format(view.resident)),
    )


def _describe_state(view: VmView) -> str:
    detail = make_printable(view.detail)
    return f"{view.state}: {detail}" if detail else view.state


def _describe_size(view: VmView) -> str:
    to = "" if view.target is None else f" \u2192 {format_size(view.target)}"
    of = "" if view.total is None else f" of {format_size(view.total)}"
    return f"{_format(view.actual)}{to}{of}"


def _format(size: int | None) -> str:
    return "-" if size is None else format_size(size)


def _measure_parts(view: VmView) -> dict[str, int]:
    """Return what a VM's RAM is, if that is known."""
    cache, free = view.stats.disk_caches, view.stats.free
    if view.actual is None or not view.total or cache is None or free is None:
        return {}
    used = max(view.actual - cache - free, 0)
    balloon = max(view.total - view.actual, 0)
    return {"used": used, "cache": cache, "free": free, "balloon": balloon}


def _draw_line(history: History, total: int | None, now: float) -> list[ET.Element]:
    """Draw what was requested, and what the guest had, in the last minutes."""
    last = history.last
    if last is None or not total:
        return []
    # A point stands for all samples until the next point, so that it stays the same.
    end = math.ceil(now / _STEP)
    points: dict[int, tuple[int | None, int]] = {}
    before: tuple[int | None, int] | None = None
    for sample in history:
        point = math.ceil(sample.t / _STEP)
        values = sample.target, sample.actual
        if point <= end - _STEPS:
            before = values
        else:
            points[point] = values
    curves = {"target": "", "actual": ""}
    for x in range(_STEPS + 1):
        before = points.get(end - _STEPS + x, before)
        for curve, value in zip(curves, before or (None, None), strict=True):
            if value is not None:
                y = round((1 - min(value / total, 1)) * _HEIGHT)
                curves[curve] += f"{'L' if curves[curve] else 'M'}{x} {y}"
    requested = "" if last.target is None else f"requested {format_size(last.target)}, "
    said = f"{requested}has {format_size(last.actual)}"
    return [
        make(
            "svg",
            {
                "class": "small plot",
                "role": "img",
                "aria-label": said,
                "viewBox": f"0 -5 {_STEPS} {_HEIGHT + 10}",
                "preserveAspectRatio": "none",
            },
            *(
                make("path", {"class": f"line {curve}", "d": path})
                for curve, path in curves.items()
                if path
            ),
        )
    ]


# Parts of the page of a VM


def draw_vm_parts(
    board: Board, vm: VmOnBoard, job: Job | None
) -> Iterator[tuple[str, ET.Element]]:
    """Draw the parts of the page of a VM; as :func:`format_vm_page`."""
    samples = list(vm.history)
    timeline = Timeline(max(len(samples), 2))
    for sample in samples:
        timeline.add(sample)
    yield "state", make("p", {"id": "state"}, _describe_vm(vm))
    yield "job", make("div", {"id": "job"}, *_draw_job(job))
    charts = draw_charts(samples, vm.view.total)
    yield "charts-part", make("div", {"id": "charts-part"}, *charts)
    facts = Facts.of_timeline(timeline)
    about = Facts(sentence="", changes=facts.changes, settings=_list_limits(vm.view))
    yield "facts", make("div", {"id": "facts"}, *draw_facts(about, samples))
    mine = [entry for entry in board.entries if entry.vm == vm.view.name]
    yield "log", draw_log(mine, with_names=False)


def _describe_vm(vm: VmOnBoard) -> str:
    if not vm.is_there:
        return "It is not in the fleet any more."
    view = vm.view
    address = make_printable(view.address)
    return f"{_describe_state(view)}. It has {_describe_size(view)}; {address}"


def _list_limits(view: VmView) -> dict[str, str]:
    if view.bounds is None:
        return {}
    return {
        "headroom": format_size(view.bounds.headroom),
        "floor": format_size(view.bounds.floor),
        "ceiling": format_size(view.bounds.ceiling),
    }


def _draw_job(job: Job | None) -> list[ET.Element]:
    if job is None:
        return []
    parts = [make("p", {}, make_printable(job.text))]
    if job.is_running and job.progress is not None:
        progress = job.progress
        whole = abs(progress.target - progress.before) or 1
        done = min(abs(progress.actual - progress.before), whole)
        bar = {"max": str(whole), "value": str(done), "aria-label": "Progress"}
        parts.append(make("progress", bar))
    if job.is_running:
        stop = {"type": "button", "data-change": "stop"}
        parts.append(make("button", stop, "Stop"))
    return parts


def _draw_changes(name: str, job: ET.Element) -> ET.Element:
    """Draw what changes are asked for with. The name in it is that of the VM."""
    return make(
        "section",
        {"id": "changes", "data-vm": _quote(name), "hidden": "hidden"},
        make("h2", {}, "Change"),
        make(
            "form",
            {"data-form": "reclaim"},
            make("label", {"for": "amount"}, "Reclaim"),
            make("input", {"id": "amount", "name": "amount", "placeholder": "all"}),
            make(
                "label",
                {},
                make("input", {"type": "checkbox", "name": "hold"}),
                " keep it",
            ),
            make("button", {}, "Plan it"),
            make(
                "button",
                {"type": "button", "data-change": "reclaim", "hidden": "hidden"},
                "Reclaim",
            ),
        ),
        make(
            "form",
            {"data-form": "resize"},
            make("label", {"for": "size"}, "Resize to"),
            make("input", {"id": "size", "name": "size", "required": "required"}),
            make("button", {}, "Resize"),
        ),
        make("button", {"type": "button", "data-change": "give-back"}, "Give all back"),
        make("p", {"id": "answer", "role": "status"}),
        job,
    )


def _quote(name: str) -> str:
    return quote(make_printable(name), safe="")
