"""A timeline as a figure."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any, cast

from timelines import ONE, make_reclaim, make_timeline

from qmpballoon.balloon.sampling import Sample
from qmpballoon.export.figure import draw_figure
from qmpballoon.export.recording import open_recording
from qmpballoon.sizes import GiB, MiB

if TYPE_CHECKING:
    from pathlib import Path


def test_a_chart_names_what_it_shows() -> None:
    figure = draw_figure(make_reclaim(), title="Reclaiming memory from vm1")
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
    (axes,) = draw_figure(ONE, title="").axes
    assert axes.get_ylabel() == "MiB"
    assert [line.get_label() for line in axes.lines] == ["actual"]


def test_the_same_timeline_is_the_same_chart(tmp_path: Path) -> None:
    """In another process, whose hashes are others, too."""
    source = tmp_path / "record.jsonl"
    with open_recording(source) as write:
        for sample in make_reclaim():
            write(sample)
    drawn: list[bytes] = []
    for name in ("a.svg", "b.svg"):
        arguments = ["plot", str(source), "--output", str(tmp_path / name)]
        program = f"from qmpballoon.cli import main; main({arguments!r})"
        subprocess.run([sys.executable, "-c", program], check=True)
        drawn.append((tmp_path / name).read_bytes())
    assert drawn[0] == drawn[1]


def test_disk_reads_are_drawn_below_the_sizes() -> None:
    read = [0, 8 * MiB, 8 * MiB]
    samples = [Sample(float(t), None, GiB, disk_reads=b) for t, b in enumerate(read)]
    sizes, reads = draw_figure(make_timeline(*samples), title="").axes
    assert sizes.get_position().y0 > reads.get_position().y1
    (line,) = reads.lines
    assert list(cast("Any", line.get_ydata())) == [8, 0]
    assert "disk reads" in reads.get_ylabel()
