"""Recordings: what is written is read back, and what is no recording is refused."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from timelines import make_reclaim, make_timeline

from qmpballoon.balloon.sampling import Sample
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
