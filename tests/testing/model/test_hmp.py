"""Sums as QEMU's human monitor takes them; all were asked of real QEMUs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmpballoon.testing.model.hmp import ExpressionError, evaluate


@pytest.mark.parametrize(
    ("text", "value", "rest"),
    [
        ("300", 300, ""),
        (" 7\t", 7, ""),
        ("300 1", 300, "1"),
        ("3M", 3, "M"),
        ("1.5", 1, ".5"),
        ("0x100", 256, ""),
        ("0x", 0, "x"),
        ("08", 0, "8"),
        ("010", 8, ""),
        ("0b1", 0, "b1"),
        ("1*2+3", 5, ""),
        ("2*(3+4)", 14, ""),
        ("7&3|8", 11, ""),
        ("--1", 1, ""),
        ("~0", -1, ""),
        ("'a'", 97, ""),
        ("-5/2", -2, ""),
        ("-7%-4", -3, ""),
        ("18446744073709551615", -1, ""),
        ("9223372036854775807+1", -(1 << 63), ""),
        ("1)", 1, ")"),
    ],
)
def test_sums(text: str, value: int, rest: str) -> None:
    assert evaluate(text, binary=False) == (value, rest)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "unexpected end of expression"),
        ("300-", "unexpected end of expression"),
        ("2*(3", "')' expected"),
        ("()", "invalid char ')' in expression"),
        ("é", "invalid char '\ufffd' in expression"),
        ("5%0", "division by zero"),
        ("'", "character constant expected"),
        ("''", "missing terminating ' character"),
        ("'é'", "missing terminating ' character"),
        ("$rip", "unknown register"),
        ("18446744073709551616", "number too large"),
    ],
)
def test_what_is_no_sum(text: str, why: str) -> None:
    with pytest.raises(ExpressionError) as caught:
        evaluate(text, binary=False)
    assert str(caught.value) == why


def test_binary_numbers_are_new() -> None:
    assert evaluate("0b101", binary=True) == (5, "")


def test_a_division_that_a_processor_cannot_do() -> None:
    with pytest.raises(OverflowError):
        evaluate("(-9223372036854775807-1)/-1", binary=False)


@given(st.text("0123456789+-~*/%&|^()'ax \t", max_size=20))
def test_values_are_64_bits_wide(text: str) -> None:
    try:
        value, rest = evaluate(text, binary=True)
    except (ExpressionError, OverflowError):
        return
    assert -(1 << 63) <= value < 1 << 63
    assert text.endswith(rest)
