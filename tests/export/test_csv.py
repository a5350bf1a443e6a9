"""A timeline as a table."""

from __future__ import annotations

import csv
from typing import TYPE_CHECKING

from timelines import ONE

from qmpballoon import export
from qmpballoon.sizes import MiB

if TYPE_CHECKING:
    from pathlib import Path


def test_unknown_figures_are_empty_in_a_table(tmp_path: Path) -> None:
    path = tmp_path / "report.csv"
    export.save(path, ONE, title="")
    (row,) = csv.DictReader(path.read_text().splitlines())
    assert row["target"] == row["free"] == row["mark"] == ""
    assert row["actual"] == str(MiB)
