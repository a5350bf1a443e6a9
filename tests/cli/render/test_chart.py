"""The chart in the terminal: it fits, and it can be read."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING

import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from qmpballoon.balloon.sampling import Sample
from qmpballoon.cli.render.chart import Chart, draw_canvas, draw_reads, format_seconds
from qmpballoon.cli.render.palette import PALETTES
from qmpballoon.export.series import SERIES
from qmpballoon.sizes import GiB, MiB, TiB

if TYPE_CHECKING:
    from collections.abc import Sequence

PALETTE = PALETTES["unknown"]
ESCAPE = re.compile(r"\x1b\[[0-9;]*m")
BRAILLE = re.compile("[\u2801-\u28ff]")


def shrinking(total: int = 2 * GiB, seconds: float = 8.0) -> list[Sample]:
    """Return samples of a guest that loses half of its memory, mostly cache."""
    steps = 40
    return [
        Sample(
            t=seconds * step / steps,
            target=total // 2,
            actual=total - total * step // (2 * steps),
            total=total,
            free=total // 8,
            available=total * 3 // 4 - total * step // (2 * steps),
            disk_caches=total * 5 // 8 - total * step // (2 * steps),
            resident=total * 9 // 10 - total * step // (2 * steps),
        )
        for step in range(steps + 1)
    ]


samples = st.builds(
    shrinking,
    st.integers(MiB, 16 * TiB),
    st.floats(0.0, 1e7, allow_nan=False),
)


@settings(max_examples=30)  # a drawing takes a while
@given(samples, st.integers(30, 200), st.integers(6, 60), st.booleans())
def test_a_canvas_has_the_size_it_was_asked_for(
    timeline: Sequence[Sample],
    width: int,
    height: int,
    colour: bool,
) -> None:
    lines = draw_canvas(
        timeline, width, height, PALETTE if colour else None
    ).splitlines()
    assert len(lines) == height
    assert max(len(ESCAPE.sub("", line)) for line in lines) <= width


def test_with_colour_each_line_has_its_own() -> None:
    text = draw_canvas(shrinking(), 80, 20, PALETTE)
    assert BRAILLE.search(text)
    for series in SERIES:
        assert f"38;5;{PALETTE.curves[series.name]}m" in text


def test_without_colour_each_line_has_its_letter() -> None:
    text = draw_canvas(shrinking(), 80, 20, None)
    assert "\x1b" not in text
    assert not BRAILLE.search(text)
    for series in SERIES:
        assert series.letter in text


def test_figures_that_are_not_known_are_not_drawn() -> None:
    text = draw_canvas([Sample(0.0, None, GiB), Sample(1.0, None, GiB)], 80, 20, None)
    drawn = {
        series.letter for series in SERIES if f"{series.letter}{series.letter}" in text
    }
    assert drawn == {"a"}


@pytest.mark.parametrize(
    ("total", "seconds", "labels"),
    [
        (2 * GiB, 4.0, {"0 GiB", "0.5 GiB", "2 GiB", "0 s", "4 s"}),
        (512 * MiB, 90.0, {"0 MiB", "128 MiB", "512 MiB", "20 s", "1:40"}),
        (16 * GiB, 7000.0, {"4 GiB", "16 GiB", "30:00", "2:00:00"}),
    ],
)
def test_axes_have_round_figures_and_units(
    total: int, seconds: float, labels: set[str]
) -> None:
    text = draw_canvas(shrinking(total, seconds), 80, 20, None)
    assert {label for label in labels if label in text} == labels


def test_times_on_the_axis() -> None:
    shown = [format_seconds(seconds) for seconds in (0, 59, 60, 150, 3600, 36_061)]
    assert shown == ["0 s", "59 s", "1:00", "2:30", "1:00:00", "10:01:01"]


@settings(max_examples=30)  # a drawing takes a while
@given(samples, st.integers(56, 200), st.integers(12, 60))
def test_the_whole_chart_fits_the_terminal(
    timeline: Sequence[Sample], width: int, height: int
) -> None:
    out = io.StringIO()
    console = Console(file=out, width=width, height=height, color_system=None)
    chart = Chart("a VM of a very long name " * 10)
    for sample in timeline:
        chart.add(sample)
    console.print(chart.render(width, height, None))
    lines = out.getvalue().splitlines()
    assert len(lines) == height
    assert max(len(line) for line in lines) <= width
    # Nothing is cut off the figures.
    assert len(re.findall(r"\d (?:MiB|GiB)\b", "\n".join(lines[-3:]))) >= 5


def test_disk_reads_are_a_line_of_bars() -> None:
    read = [0, 0, 4 * MiB, 12 * MiB, 12 * MiB, 14 * MiB]
    samples = [Sample(float(t), None, GiB, disk_reads=b) for t, b in enumerate(read)]
    (line,) = draw_reads(samples, 40)
    assert len(line.plain) == 40
    assert line.plain.startswith(" disk reads ")
    assert line.plain.endswith(" 2 MiB/s")
    bars = line.plain[len(" disk reads ") : -len(" 2 MiB/s")]
    assert [bar for bar in bars if bar != " "] == ["\u2584", "\u2588", "\u2582"]
    assert draw_reads(shrinking(), 40) == []


def test_disk_reads_fit_into_the_chart() -> None:
    chart = Chart("Watching vm1")
    for sample in shrinking():
        chart.add(evolve(sample, disk_reads=round(sample.t * MiB)))
    console = Console(width=60, record=True, file=io.StringIO())
    console.print(chart.render(60, 20, None))
    lines = console.export_text().splitlines()
    assert len(lines) == 20
    assert sum(line.startswith(" disk reads ") for line in lines) == 1
