"""Timelines as files, in the format that the name ends in."""

from __future__ import annotations

import csv
import json
import os
import stat
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import pytest
from timelines import NONE, ONE, make_reclaim

from qmpballoon import export

if TYPE_CHECKING:
    from pathlib import Path

    from qmpballoon.balloon.sampling import Timeline


@pytest.mark.parametrize(
    "timeline", [make_reclaim(), ONE, NONE], ids=["all", "one", "none"]
)
@pytest.mark.parametrize("suffix", export.SUFFIXES)
def test_every_timeline_can_be_saved_in_every_format(
    timeline: Timeline, suffix: str, tmp_path: Path
) -> None:
    path = tmp_path / f"report{suffix.upper()}"
    export.save(path, timeline, title="a guest")
    data = path.read_bytes()
    match suffix:
        case ".html":
            assert data.startswith(b"<!DOCTYPE html>")
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


def test_json_holds_the_document_where_there_is_one(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    export.save(path, make_reclaim(), title="", document={"outcome": "done"})
    assert json.loads(path.read_text()) == {"outcome": "done"}


@pytest.mark.parametrize("name", ["report.gif", "report", ".svg"])
def test_unknown_formats_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"end it in \.html"):
        export.save(tmp_path / name, make_reclaim(), title="")
    assert not list(tmp_path.iterdir())


def test_who_may_read_it_is_as_of_any_new_file(tmp_path: Path) -> None:
    path, before = tmp_path / "report.csv", os.umask(0o077)
    try:
        export.save(path, make_reclaim(), title="")
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_who_may_read_what_was_there_may_read_what_replaces_it(tmp_path: Path) -> None:
    path = tmp_path / "report.csv"
    path.write_text("an older one")
    path.chmod(0o640)
    export.save(path, make_reclaim(), title="")
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_what_was_there_stays_if_saving_fails(tmp_path: Path) -> None:
    path = tmp_path / "report.csv"
    path.mkdir()  # nothing can take a folder's place
    with pytest.raises(OSError, match=r"report\.csv"):
        export.save(path, make_reclaim(), title="")
    assert [file.name for file in tmp_path.iterdir()] == ["report.csv"]
