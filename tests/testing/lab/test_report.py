"""How the progress of a download is shown."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from qmpballoon.sizes import MiB
from qmpballoon.testing import lab

if TYPE_CHECKING:
    from pathlib import Path


def test_progress_on_a_file_is_one_line_each(tmp_path: Path) -> None:
    stream = io.StringIO()
    bar = lab.ProgressBar(stream)
    for share in (0.0, 0.5, 1.0):
        bar(
            lab.FetchProgress(
                "fetching QEMU 10.0.13 (90 packages)", tmp_path, 36 * MiB, share
            )
        )
    expected = (
        f"qmpballoon: fetching QEMU 10.0.13 (90 packages), 36 MiB -> {tmp_path}\n"
    )
    assert stream.getvalue() == expected


def test_progress_on_a_terminal_moves(tmp_path: Path) -> None:
    stream = io.StringIO()
    stream.isatty = lambda: True  # type: ignore[method-assign]
    bar = lab.ProgressBar(stream)
    for share in (0.0, 0.5, 1.0):
        bar(lab.FetchProgress("fetching", tmp_path, 36 * MiB, share))
    *_, half, full = stream.getvalue().split("\r")
    assert half.count("#") == half.count(".")
    assert full.endswith("100%\n")
