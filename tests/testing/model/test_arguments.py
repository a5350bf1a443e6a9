"""Arguments are refused as QEMU refuses them; all were asked of real QEMUs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from talk import make

from qmpballoon.testing.model.arguments import find_first_left

NUMBERED = [f"n{number}" for number in range(60)]


@pytest.mark.parametrize(
    ("command", "names", "complaint"),
    [
        ("query-status", ["path"], "path"),
        ("query-status", ["x", "id"], "id"),
        ("query-status", ["command-line", "path"], "path"),
        ("query-status", ["qom-type", "id", "size"], "size"),
        ("query-status", ["ä", "z", "y", "x"], "z"),
        ("query-status", NUMBERED[:8], "n4"),
        ("query-status", NUMBERED, "n39"),
        ("qom-get", ["path", *NUMBERED[:7], "property"], "n4"),
        ("qom-list", ["path", *NUMBERED[:30]], "n13"),
    ],
)
def test_which_of_several_is_unexpected(
    command: str, names: list[str], complaint: str
) -> None:
    answer = make().execute(command, **dict.fromkeys(names, "/"))
    assert answer["desc"] == f"Parameter '{complaint}' is unexpected"


@given(st.lists(st.text(min_size=1), unique=True), st.data())
def test_what_was_not_taken_is_left(names: list[str], data: st.DataObject) -> None:
    taken = data.draw(
        st.lists(st.sampled_from(names), unique=True) if names else st.just([])
    )
    left = find_first_left(names, [*taken, "no name of them all"])
    rest = set(names) - set(taken)
    assert left in rest if rest else left is None
