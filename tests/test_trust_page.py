"""Each line of the page on trust names tests that hold it, and these tests exist."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import pytest

TESTS: Final = Path(__file__).parent
PAGE: Final = (TESTS.parent / "docs/explanation/trust.md").read_text("utf-8")
TEST: Final = re.compile(r"^(?:async )?def (test_\w+)", re.MULTILINE)
DEFINED: Final = frozenset(
    name
    for file in TESTS.rglob("test_*.py")
    for name in TEST.findall(file.read_text("utf-8"))
)
ROWS: Final = re.findall(r"^\| (?!who \|)(.+) \|$", PAGE, re.MULTILINE)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[:40])
def test_who_holds_a_line_exists(row: str) -> None:
    named = re.findall(r"`(test_\w+|tests/[\w/.]+)`", row.rpartition(" | ")[2])
    assert named
    for name in named:
        assert name in DEFINED or (TESTS.parent / name).is_file(), name


def test_the_table_is_found() -> None:
    assert len(ROWS) > 30
