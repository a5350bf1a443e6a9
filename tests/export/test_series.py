"""The curves of a timeline can be told apart, however they are shown."""

from __future__ import annotations

import pytest
from attrs import fields_dict

from qmpballoon.balloon.sampling import Sample
from qmpballoon.export.series import SERIES, Series, compute_read_rates, find_largest
from qmpballoon.sizes import GiB, MiB


@pytest.mark.parametrize("attribute", list(fields_dict(Series)))
def test_no_two_curves_are_shown_alike(attribute: str) -> None:
    assert len({getattr(series, attribute) for series in SERIES}) == len(SERIES)


def test_curves_are_the_sizes_of_a_sample() -> None:
    others = {"t", "total", "age", "mark", "disk_reads"}
    assert {series.name for series in SERIES} == {*fields_dict(Sample)} - others


def test_the_largest_size_is_that_of_any_curve() -> None:
    sample = Sample(0.0, None, MiB, available=GiB)
    assert find_largest(sample) == GiB
    assert [series.get_size(sample) for series in SERIES].count(None) == 4


def test_a_rate_of_reads_is_that_between_two_samples() -> None:
    read = [(0.0, None), (1.0, 0), (1.0, MiB), (3.0, 5 * MiB), (4.0, 5 * MiB)]
    samples = [Sample(t, None, GiB, disk_reads=total) for t, total in read]
    assert compute_read_rates(samples) == [(3.0, 2 * MiB), (4.0, 0)]
    assert compute_read_rates(samples[:1]) == []
