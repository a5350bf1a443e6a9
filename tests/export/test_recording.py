"""Recordings: what is written is read back, and what is no recording is refused."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from timelines import make_reclaim, make_timeline

from qmpballoon.balloon.sampling import Sample
from qmpballoon.cli.render.chart import draw_canvas, draw_reads
from qmpballoon.export import format_csv, format_page
from qmpballoon.export.recording import read_recording
from qmpballoon.sizes import MiB

if TYPE_CHECKING:
    from qmpballoon.balloon.sampling import Timeline

sizes = st.none() | st.integers(0, 2**63 - 1)


@st.composite
def timelines(draw_from: st.DrawFn) -> Timeline:
    times = sorted(draw_from(st.lists(st.floats(0, 1e9), max_size=5)))
    figures = st.fixed_dictionaries(
        {"target": sizes, "free": sizes, "available": sizes, "resident": sizes}
    )
    return make_timeline(
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


numbers = st.one_of(
    st.none(),
    st.integers(),
    st.integers(0, 2**64),
    st.floats(),
    st.floats(0, 1e9),
    st.sampled_from([0, 1, 2**63, 2**80 - 1, 10**400, 5e-324, 1e-6, 1e9]),
)
lines = st.builds(
    lambda figures, mark: json.dumps({**figures, "mark": mark}),
    st.fixed_dictionaries(
        dict.fromkeys(
            ("t", "target", "actual", "free", "resident", "disk_reads", "age"), numbers
        )
    ),
    st.none() | st.text(st.characters(), max_size=5),
)


def make_line(**figures: object) -> str:
    return json.dumps({"target": None, "actual": 1, **figures})


@settings(max_examples=60)
@example(found=[make_line(t=0, disk_reads=0), make_line(t=5e-324, disk_reads=2**63)])
@example(found=[make_line(t=0, actual=0)])
@example(found=[make_line(t=0, mark="\ud800")])
@example(found=[make_line(t=0, disk_reads=2**63), make_line(t=1, disk_reads=0)])
@given(found=st.lists(lines, min_size=1, max_size=4))
def test_what_can_be_read_can_be_shown(found: list[str]) -> None:
    samples: list[str] = []
    for line in found:  # those that go together
        with suppress(ValueError):
            read_recording([f"{each}\n" for each in (*samples, line)])
            samples.append(line)
    timeline = read_recording(f"{line}\n" for line in samples)
    assert format_page(timeline, title="")
    assert format_csv(timeline).encode()
    assert draw_canvas(list(timeline), 60, 12, None)
    draw_reads(timeline, 60)


def test_a_line_cut_off_at_the_end_is_left_out() -> None:
    lines = [f"{json.dumps(sample)}\n" for sample in make_reclaim().to_json()]
    lines[-1] = lines[-1][: len(lines[-1]) // 2]
    assert list(read_recording(lines)) == list(make_reclaim())[:-1]


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
        '{"t": 1e300, "target": null, "actual": 1}',
        f'{{"t": 1{"0" * 400}, "target": null, "actual": 1}}',
        '{"t": 1, "target": null, "actual": -1}',
        '{"t": 1, "target": null, "actual": 1, "age": -1}',
        '{"t": 1, "target": null, "actual": 1, "age": NaN}',
        '{"t": 1, "target": null, "actual": 1, "age": "old"}',
        '{"t": 1, "target": null, "actual": 1, "free": -1}',
        '{"t": 1, "target": null, "actual": 1, "disk_reads": 1e30}',
        f'{{"t": 1, "target": null, "actual": 1, "disk_reads": {2**80}}}',
    ],
)
def test_lines_that_are_no_samples_are_named(line: str) -> None:
    good = json.dumps(Sample(0.0, None, MiB).to_json())
    with pytest.raises(ValueError, match="line 2 is not a sample"):
        read_recording([f"{good}\n", f"{line}\n", f"{good}\n"])


def test_names_that_later_versions_add_are_ignored() -> None:
    sample = Sample(0.0, None, MiB)
    line = json.dumps({**sample.to_json(), "pressure": 3})
    assert list(read_recording([line])) == [sample]
