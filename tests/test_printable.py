"""Text that others have chosen, as it is shown."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmpballoon._printable import (
    LONGEST,
    describe_bug,
    make_printable,
    make_value_printable,
)

ANYTHING = st.text(st.characters(exclude_categories=()), max_size=3 * LONGEST)


@given(ANYTHING, st.integers(20, 2 * LONGEST))
def test_anything_becomes_one_short_line_that_can_be_written(
    text: str, longest: int
) -> None:
    shown = make_printable(text, longest)
    assert shown.isprintable()
    assert len(shown.splitlines()) <= 1
    assert len(shown) <= longest
    shown.encode()
    assert make_printable(shown, longest) == shown


@given(st.text(st.characters(categories=["L", "N", "P", "S"]), max_size=LONGEST))
def test_what_can_be_shown_stays_as_it_is(text: str) -> None:
    assert make_printable(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("two\nlines\r", r"two\nlines\r"),
        ("\x1b[2J", r"\x1b[2J"),
        ("\u202egnp.exe", r"\u202egnp.exe"),
        ("\u2028", r"\u2028"),
        (os.fsdecode(b"caf\xe9"), r"caf\xe9"),
        ("\ud800", r"\ud800"),
        ("Bär [red]", "Bär [red]"),
    ],
)
def test_how_it_is_escaped(text: str, shown: str) -> None:
    assert make_printable(text) == shown


def test_a_long_text_keeps_its_beginning_and_its_end() -> None:
    shown = make_printable(f"what happened {'x' * 10_000} what to do")
    assert shown.startswith("what happened ")
    assert shown.endswith(" what to do")


def test_all_texts_in_a_value_of_json() -> None:
    value = {"name": "a\n", "vms": [{"n": "\x1b"}, 1, None], "x": ("\r", True)}
    assert make_value_printable(value) == {
        "name": r"a\n",
        "vms": [{"n": r"\x1b"}, 1, None],
        "x": [r"\r", True],
    }


class Mute(Exception):
    """An exception that cannot say what it is."""

    def __str__(self) -> str:
        raise KeyError


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("a\nb"), r"unexpected ValueError: a\nb (in "),
        (Mute(), "unexpected Mute: its text cannot be had: KeyError (in "),
        (OverflowError("x" * 9999), "unexpected OverflowError: xxx"),
    ],
)
def test_an_exception_that_nobody_expected_is_one_line(
    error: Exception, said: str
) -> None:
    with pytest.raises(type(error)) as caught:
        raise error
    line = describe_bug(caught.value)
    assert line.startswith(said)
    assert "test_an_exception_that_nobody_expected_is_one_line, line " in line
    assert line.isprintable()
    assert len(line) <= LONGEST
