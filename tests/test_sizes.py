"""Sizes in and out: what is read, what is refused and how, what is shown."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmpballoon.sizes import GiB, KiB, MiB, PiB, TiB, format_size, parse_size


@pytest.mark.parametrize("text", [1, 1.5, None, b"1G", []])
def test_what_is_no_text_is_named(text: Any) -> None:  # noqa: ANN401 - anything
    with pytest.raises(TypeError, match=r"size is .* it must be text, like 512MiB"):
        parse_size(text)


SIZES = st.integers(min_value=0, max_value=(1 << 63) - 1)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", 0),
        ("4096", 4096),
        ("7B", 7),
        ("2G", 2 * GiB),
        ("2g", 2 * GiB),
        ("512MiB", 512 * MiB),
        ("512 MiB", 512 * MiB),
        (" 1.5G ", 3 * GiB // 2),
        ("123M", 123 * MiB),
        ("1K", KiB),
        ("3T", 3 * TiB),
        ("1P", PiB),
        ("1kB", 1000),
        ("2MB", 2_000_000),
        ("1.5GB", 1_500_000_000),
        ("0.0001K", 0),
    ],
)
def test_reads(text: str, expected: int) -> None:
    assert parse_size(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        *(("50%", 2 * GiB), ("100%", 4 * GiB), ("0%", 0), ("12.5 %", GiB // 2)),
        ("150%", 6 * GiB),
    ],
)
def test_reads_a_share(text: str, expected: int) -> None:
    assert parse_size(text, whole=4 * GiB) == expected


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "-1", "+1", "1.5G!", "50x", "nan", "inf", "1e9", "0x10", "G"),
        *("1.5", ".5G", "1.G", "1 2", "1G2", "1_000", "٣", "8192P", "%"),
        *("9" * 65, "9" * 10_000, f"{2**33}00%"),
    ],
)
def test_refuses_in_one_short_line(text: str) -> None:
    with pytest.raises(ValueError, match=r"(write|use|add|give) ") as caught:
        parse_size(text, whole=4 * GiB)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 160


def test_refuses_a_share_of_nothing() -> None:
    with pytest.raises(ValueError, match="give a size"):
        parse_size("50%")


@given(st.text(max_size=80))
def test_any_text_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(ValueError):
        assert 0 <= parse_size(text, whole=GiB) < 1 << 63


@given(SIZES)
def test_bytes_are_exact(size: int) -> None:
    assert parse_size(str(size)) == size


@given(st.integers(min_value=0, max_value=8191), st.sampled_from("KMGTP"))
def test_binary_units_agree(number: int, unit: str) -> None:
    assert parse_size(f"{number}{unit}") == parse_size(f"{number} {unit}iB")


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (KiB, "1 KiB"),
        (512 * MiB, "512 MiB"),
        (3 * GiB // 2, "1.5 GiB"),
        (GiB - 1, "1 GiB"),
        (-3 * GiB // 2, "-1.5 GiB"),
        (16 * TiB, "16 TiB"),
        (5000 * PiB, "5000 PiB"),
    ],
)
def test_shows(size: int, expected: str) -> None:
    assert format_size(size) == expected


@pytest.mark.parametrize("size", [math.inf, -math.inf, math.nan, 1.0, "1", None, True])
def test_shows_only_whole_bytes(size: Any) -> None:  # noqa: ANN401 - nonsense
    with pytest.raises(TypeError, match="must be a whole number of bytes"):
        format_size(size)


@given(st.integers(min_value=0, max_value=4096 * PiB))
def test_what_is_shown_reads_back_to_within_its_rounding(size: int) -> None:
    # One decimal of a number of at least 1: off by at most half a tenth.
    assert abs(parse_size(format_size(size)) - size) <= size * 0.05 + 1
