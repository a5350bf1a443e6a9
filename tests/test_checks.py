"""Bad arguments are refused in one line."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest

from qmpballoon._checks import (
    require_interval,
    require_seconds,
    require_size,
)


@pytest.mark.parametrize("value", [0, 1, 2**63 - 1])
def test_sizes(value: int) -> None:
    assert require_size(value, "target") == value


@pytest.mark.parametrize("value", [1.0, "1", None, True, b"1"])
def test_what_is_no_size(value: object) -> None:
    with pytest.raises(TypeError, match=r"target is .* whole number of bytes"):
        require_size(value, "target")


@pytest.mark.parametrize("value", [-1, 4095, 2**63])
def test_sizes_out_of_range(value: int) -> None:
    with pytest.raises(ValueError, match="target is"):
        require_size(value, "target", minimum=4096)


def test_a_size_that_is_too_large_is_not_called_too_small() -> None:
    with pytest.raises(ValueError, match="at most 9223372036854775807 bytes"):
        require_size(2**63, "target", minimum=1)


@pytest.mark.parametrize("value", [0, 0.25, 10, math.inf])
def test_seconds(value: float) -> None:
    seconds = require_seconds(value, "timeout")
    assert seconds == value
    assert type(seconds) is float


@pytest.mark.parametrize("value", ["1", None, True, Fraction(1), 1j])
def test_what_is_no_number_of_seconds(value: object) -> None:
    with pytest.raises(TypeError, match=r"timeout is .* number of seconds"):
        require_seconds(value, "timeout")


@pytest.mark.parametrize("value", [-0.001, -math.inf, math.nan, 10**309])
def test_seconds_out_of_range(value: float) -> None:
    with pytest.raises(ValueError, match=r"timeout is (-|nan|too)"):
        require_seconds(value, "timeout")


def test_a_minimum_of_seconds() -> None:
    assert require_seconds(1, "window", minimum=1.0) == 1
    with pytest.raises(ValueError, match=r"window is 0\.5.*at least 1\.0 seconds"):
        require_seconds(0.5, "window", minimum=1.0)


@pytest.mark.parametrize("value", [0, 1, 2**32 - 1])
def test_intervals(value: int) -> None:
    assert require_interval(value, "seconds") == value


@pytest.mark.parametrize(
    ("value", "error"),
    [(-1, ValueError), (2**32, ValueError), (1.0, TypeError), (True, TypeError)],
)
def test_what_is_no_interval(value: object, error: type[Exception]) -> None:
    with pytest.raises(error, match="seconds is"):
        require_interval(value, "seconds")
