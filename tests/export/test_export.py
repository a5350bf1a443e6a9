"""Timelines as files: charts, tables, recordings."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from qmpballoon import export
from qmpballoon.balloon.sampling import Sample, Timeline
from qmpballoon.export.figure import draw
from qmpballoon.export.recording import read_recording, recorder
from qmpballoon.sizes import GiB, MiB

if TYPE_CHECKING:
    from pathlib import Path


def timeline_of(*samples: Sample) -> Timeline:
    timeline = Timeline()
    for sample in samples:
        timeline.add(sample)
    return timeline


def reclaim() -> Timeline:
    """Return a reclaim of 1 GiB, one of whose samples is marked."""
    start = Sample(0.0, None, 2 * GiB, 2 * GiB, GiB, GiB, GiB // 2, GiB + MiB)
    taken = evolve(start, t=1.0, target=GiB, actual=GiB, free=MiB, mark="stalled")
    return timeline_of(start, taken, evolve(start, t=2.0, target=2 * GiB))


ONE = timeline_of(Sample(0.0, None, MiB))
NONE = timeline_of()


@pytest.mark.parametrize("timeline", [reclaim(), ONE, NONE], ids=["all", "one", "none"])
@pytest.mark.parametrize("suffix", export.SUFFIXES)
def test_every_timeline_can_be_saved_in_every_format(
    timeline: Timeline, suffix: str, tmp_path: Path
) -> None:
    path = tmp_path / f"report{suffix.upper()}"
    export.save(path, timeline, title="a guest")
    data = path.read_bytes()
    match suffix:
        case ".svg":
            assert ET.fromstring(data).tag.endswith("svg")  # noqa: S314 - our own
        case ".png":
            width, height = (int.from_bytes(data[at : at + 4]) for at in (16, 20))
            assert width / height == pytest.approx(16 / 9)
        case ".csv":
            rows = list(csv.DictReader(data.decode().splitlines()))
            assert [row["actual"] for row in rows] == [str(s.actual) for s in timeline]
        case _:
            assert json.loads(data)["timeline"] == timeline.to_json()
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_unknown_figures_are_empty_in_a_table(tmp_path: Path) -> None:
    path = tmp_path / "report.csv"
    export.save(path, ONE, title="")
    (row,) = csv.DictReader(path.read_text().splitlines())
    assert row["target"] == row["free"] == row["mark"] == ""
    assert row["actual"] == str(MiB)


def test_json_holds_the_document_where_there_is_one(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    export.save(path, reclaim(), title="", document={"outcome": "done"})
    assert json.loads(path.read_text()) == {"outcome": "done"}


def test_a_chart_names_what_it_shows() -> None:
    figure = draw(reclaim(), title="Reclaiming memory from vm1")
    words = " ".join(text.get_text() for text in figure.texts)
    assert "Reclaiming memory from vm1" in words
    assert "requested 1 GiB, handed over 1 GiB" in words
    (axes,) = figure.axes
    assert axes.get_ylabel() == "GiB"
    (legend,) = figure.legends
    names = {text.get_text() for text in legend.get_texts()}
    assert names >= {"requested", "actual", "guest free", "guest cache", "available"}
    assert [text.get_text() for text in axes.texts] == ["stalled"]


def test_a_chart_leaves_out_what_nobody_knew() -> None:
    (axes,) = draw(ONE, title="").axes
    assert axes.get_ylabel() == "MiB"
    assert [line.get_label() for line in axes.lines] == ["actual"]


def test_the_same_timeline_is_the_same_chart(tmp_path: Path) -> None:
    """In another process, whose hashes are others, too."""
    source = tmp_path / "record.jsonl"
    with recorder(source) as write:
        for sample in reclaim():
            write(sample)
    drawn: list[bytes] = []
    for name in ("a.svg", "b.svg"):
        arguments = ["plot", str(source), "--output", str(tmp_path / name)]
        program = f"from qmpballoon.cli import main; main({arguments!r})"
        subprocess.run([sys.executable, "-c", program], check=True)
        drawn.append((tmp_path / name).read_bytes())
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize("name", ["report.gif", "report", ".svg"])
def test_unknown_formats_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"end it in \.svg"):
        export.save(tmp_path / name, reclaim(), title="")
    assert not list(tmp_path.iterdir())


def test_what_was_there_stays_if_saving_fails(tmp_path: Path) -> None:
    path = tmp_path / "report.csv"
    path.mkdir()  # nothing can take a folder's place
    with pytest.raises(OSError, match=r"report\.csv"):
        export.save(path, reclaim(), title="")
    assert [file.name for file in tmp_path.iterdir()] == ["report.csv"]


sizes = st.none() | st.integers(0, 2**63 - 1)


@st.composite
def timelines(draw_from: st.DrawFn) -> Timeline:
    times = sorted(draw_from(st.lists(st.floats(0, 1e9), max_size=5)))
    figures = st.fixed_dictionaries(
        {"target": sizes, "free": sizes, "available": sizes, "resident": sizes}
    )
    return timeline_of(
        *(
            Sample(
                t=time,
                actual=draw_from(st.integers(1, 2**63 - 1)),
                mark=draw_from(st.none() | st.text()),
                **draw_from(figures),
            )
            for time in times
        )
    )


@given(timelines())
def test_a_recording_reads_back(timeline: Timeline) -> None:
    lines = [f"{json.dumps(sample)}\n" for sample in timeline.to_json()]
    assert list(read_recording(lines)) == list(timeline)


def test_a_line_cut_off_at_the_end_is_left_out() -> None:
    lines = [f"{json.dumps(sample)}\n" for sample in reclaim().to_json()]
    lines[-1] = lines[-1][: len(lines[-1]) // 2]
    assert list(read_recording(lines)) == list(reclaim())[:-1]


@pytest.mark.parametrize(
    "line",
    [
        "nonsense",
        "[]",
        "{}",
        '{"t": 1.0}',
        '{"t": 1.0, "target": null, "actual": null}',
        '{"t": "1", "target": null, "actual": 1}',
        '{"t": 1.0, "target": true, "actual": 1}',
        '{"t": 1.0, "target": null, "actual": 1.5}',
        '{"t": 1.0, "target": null, "actual": 1, "mark": 5}',
        '{"t": -1.0, "target": null, "actual": 1}',
        '{"t": NaN, "target": null, "actual": 1}',
    ],
)
def test_lines_that_are_no_samples_are_named(line: str) -> None:
    good = json.dumps(Sample(0.0, None, MiB).to_json())
    with pytest.raises(ValueError, match="line 2 is no sample"):
        read_recording([f"{good}\n", f"{line}\n", f"{good}\n"])


def test_names_that_later_versions_add_are_ignored() -> None:
    sample = Sample(0.0, None, MiB)
    line = json.dumps({**sample.to_json(), "pressure": 3})
    assert list(read_recording([line])) == [sample]
