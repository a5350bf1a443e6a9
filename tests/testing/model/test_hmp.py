"""The human monitor's commands and sums; all were asked of real QEMUs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from talk import make

from qmpballoon.sizes import GiB, MiB
from qmpballoon.testing import SECOND
from qmpballoon.testing.model.hmp import ExpressionError, evaluate

EXTRANEOUS = "balloon: extraneous characters at the end of line"


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


@pytest.mark.parametrize(
    ("line", "command", "said"),
    [
        ("balloon 2*(3", "balloon", "')' expected"),
        (" balloon -1", " balloon", "enter a positive value"),
        ("balloon 300 1", "balloon", EXTRANEOUS),
        ("info balloon/x", "info balloon", EXTRANEOUS),
    ],
)
def test_what_the_human_monitor_refuses(line: str, command: str, said: str) -> None:
    answer: object = make().execute("human-monitor-command", **{"command-line": line})
    assert answer == f'{said}\r\nTry "help {command}" for more information\r\n'


@pytest.mark.parametrize(
    ("line", "shown"),
    [("  a b", "  a"), ("/x y", ""), ("info/x balloon", "info"), ("info / b", "info ")],
)
def test_what_the_human_monitor_does_not_know(line: str, shown: str) -> None:
    answer: object = make().execute("human-monitor-command", **{"command-line": line})
    assert answer == f"unknown command: '{shown}'\r\n"


def test_a_sum_is_a_size_in_mebibytes() -> None:
    client = make(memory=GiB)
    line = {"command-line": "  balloon 2*(100 + 0x1c)"}
    answer: object = client.execute("human-monitor-command", **line)
    assert answer == ""
    client.advance(60 * SECOND)
    assert client.execute("query-balloon") == {"actual": 256 * MiB}
