"""What others have chosen is shown the same, and harmless, wherever it is shown."""

from __future__ import annotations

import html
import io
import json
import os
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

import pytest
import trio
from attrs import evolve
from pages import HOST, RULES, WELL, page
from rich.console import Console

from qmpballoon import export
from qmpballoon._printable import LONGEST, make_printable
from qmpballoon.balloon.sampling import Sample, Timeline
from qmpballoon.cli import _output
from qmpballoon.cli._display import show_timeline
from qmpballoon.cli._findings import Backend, Facts, find_findings
from qmpballoon.cli.doctor import _describe, _Report
from qmpballoon.cli.render.chart import Chart
from qmpballoon.cli.render.fleet import Changes, describe_left, describe_plan
from qmpballoon.cli.render.history import History
from qmpballoon.cli.render.table import draw_fleet, draw_screen
from qmpballoon.errors import ProtocolError
from qmpballoon.fleet.metrics import FleetSnapshot
from qmpballoon.fleet.policy import FleetPlan, Move
from qmpballoon.fleet.vm_view import LeftGuest
from qmpballoon.sizes import GiB
from qmpballoon.web.board import Board
from qmpballoon.web.jobs import Job
from qmpballoon.web.pages import format_fleet_page, format_vm_page

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

NAMES = [
    "\x1b[2J\x1b]0;owned\x07",
    "two\nlines: healthy",
    "[bold red]markup[/] [link=http://evil]x[/link]",
    "[/nothing opened]",
    "$\\alpha^{2}$ $",
    "\u202egnp.\u2066exe\u2069",
    os.fsdecode(b"caf\xe9"),
    '"},\n# HELP forged',
    "\r\u2028\x85\x0c",
    "<svg onload='x'>&amp;",
]


def is_harmless(text: str, lines: int | None = None) -> bool:
    """Tell whether a text has no characters but printable ones and line ends."""
    rows = text.rstrip("\n").split("\n")
    return all(row.isprintable() for row in rows) and lines in (None, len(rows))


def drawn(*parts: Any) -> str:  # noqa: ANN401 - whatever rich draws
    out = io.StringIO()
    console = Console(file=out, width=400, highlight=False)
    for part in parts:
        console.print(part)
    return out.getvalue()


@pytest.mark.parametrize("name", NAMES)
def test_on_a_terminal(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    bad = evolve(WELL, name=name, state="gone", detail=f"{name} is gone")
    shown = make_printable(name)
    for text in (
        drawn(draw_fleet(HOST, RULES, [bad], 400)),
        drawn(draw_screen(HOST, RULES, [bad], History(), width=400, height=50)),
    ):
        assert is_harmless(text)
        assert text.count(shown) == 3
    chart = Chart(name)
    chart.add(Sample(0.0, None, GiB))
    text = drawn(chart.render(200, 30, None))
    assert is_harmless(text)
    assert text.startswith(shown)
    with show_timeline(f"Watching {name}"):
        pass
    assert capsys.readouterr().out == f"Watching {shown}\n"


@pytest.mark.parametrize("name", NAMES)
def test_in_lines(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    shown = make_printable(name)
    plan = FleetPlan((Move(name, 2 * GiB, GiB, "it can spare it"),))
    (_, line, *_) = describe_plan(HOST, RULES, plan).split("\n")
    assert line.startswith(f"{shown}: ")
    (line,) = Changes().describe([evolve(WELL, name=name, state="gone")])
    assert line.startswith(f"{shown} takes no part")
    (line,) = describe_left([LeftGuest(name, GiB, None)])
    assert line.startswith(f"{shown} was left")
    report = _Report(
        name=name,
        address=name,
        status=name,
        findings=find_findings(
            Facts(
                status=name,
                backends=(Backend(path=name),),
                devices=(f"vfio{name}",),
                unavailable=name,
            )
        ),
    )
    findings = _describe(report).split("\n")
    assert len(findings) == 5
    assert is_harmless("".join(findings), 1)
    _output.fail(ProtocolError(f"{name}: no QMP"))
    _output.say(line)
    out, err = capsys.readouterr()
    assert is_harmless(out, 1)
    assert is_harmless(err, 1)


@pytest.mark.parametrize("name", NAMES)
def test_in_json_and_metrics(
    name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    shown = make_printable(name)
    bad = evolve(WELL, name=name)
    _output.print_json(bad.to_json())
    assert json.loads(capsys.readouterr().out)["name"] == shown
    file = tmp_path / "report.json"
    export.save(file, Timeline(), title=name, document={"name": name})
    assert json.loads(file.read_text())["name"] == shown
    text = page(FleetSnapshot(HOST, RULES, [bad]))
    assert is_harmless(text)
    assert text.count("# HELP qmpballoon_vm_info") == 1


@pytest.mark.parametrize("name", NAMES)
def test_in_a_chart(name: str, tmp_path: Path) -> None:
    timeline = Timeline()
    timeline.add(Sample(0.0, None, GiB, mark=name))
    timeline.add(Sample(1.0, None, GiB))
    file = tmp_path / "chart.svg"
    export.save(file, timeline, title=name)
    root = ET.parse(file).getroot()  # noqa: S314 - our own file
    kinds = {element.tag.rpartition("}")[2] for element in root.iter()}
    assert "path" in kinds
    assert not {"script", "a", "image", "foreignObject"} & kinds


@pytest.mark.parametrize("name", NAMES)
def test_on_a_page(name: str) -> None:
    timeline = Timeline()
    timeline.add(Sample(0.0, None, GiB, mark=name))
    facts = export.Facts(sentence=name, remarks=[name], settings={name: name})
    text = export.format_page(timeline, title=name, facts=facts)
    assert is_harmless(text)
    shown = html.escape(make_printable(name), quote=False)
    # In the title, the heading, the sentence, the chart and four more places.
    assert text.count(shown) == 8


@pytest.mark.parametrize("name", NAMES)
def test_on_a_live_page(name: str) -> None:
    async def main() -> str:
        board = Board(wall_clock=lambda: 0.0)
        board.note([evolve(WELL, name=name)])
        board.log(name, name)
        (vm,) = board.vms.values()
        assert board.find(make_printable(name)) is vm
        job = Job(name, "resize", name)
        return format_fleet_page(board, {}) + format_vm_page(board, vm, job, "key")

    text = trio.run(main)
    assert is_harmless(text)
    shown = html.escape(make_printable(name), quote=False)
    # In the table and the list; and in title, heading, job, mark and list.
    assert text.count(shown) >= 6


@pytest.mark.parametrize(
    "show",
    [
        lambda text: _output.fail(ProtocolError(text)),
        _output.note,
        lambda text: _output.fail(OSError(5, "Input/output error", text)),
    ],
)
def test_no_error_is_longer_than_a_line(
    show: Callable[[str], object], capsys: pytest.CaptureFixture[str]
) -> None:
    show("word " * 100_000)
    (line,) = capsys.readouterr().err.splitlines()
    assert len(line) <= LONGEST + len("qmpballoon: ")
