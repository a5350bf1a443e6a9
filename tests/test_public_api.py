"""The public face is complete, and the same however one looks at it."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from docblocks import DOCS

import qmpballoon
from qmpballoon import balloon

LAZY = {name: home for name, home in qmpballoon._HOMES.items()}  # noqa: C416, SLF001


def names_for_type_checkers() -> set[str]:
    tree = ast.parse(Path(qmpballoon.__file__).read_text(encoding="utf-8"))
    guarded = [
        node
        for node in tree.body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    ]
    return {
        alias.asname or alias.name
        for node in guarded
        for statement in node.body
        if isinstance(statement, ast.ImportFrom)
        for alias in statement.names
    }


def test_three_lists_are_the_same() -> None:
    assert sorted(set(qmpballoon.__all__)) == sorted(qmpballoon.__all__)
    assert {*qmpballoon.__all__} == {*LAZY, "__version__"}
    assert names_for_type_checkers() == {*LAZY}


@pytest.mark.parametrize("name", sorted(LAZY))
def test_every_name_is_its_homes(name: str) -> None:
    home = import_module(f"qmpballoon.{LAZY[name]}")
    assert getattr(qmpballoon, name) is getattr(home, name)
    assert name in home.__all__


def test_dir_names_them_before_they_are_loaded() -> None:
    program = "import qmpballoon; print(*dir(qmpballoon))"
    shown = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    ).stdout.split()
    assert {*qmpballoon.__all__} <= {*shown}


def test_a_star_imports_them_all() -> None:
    program = "from qmpballoon import *; print(*globals())"
    imported = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    ).stdout.split()
    assert {*qmpballoon.__all__} <= {*imported}


def test_what_is_not_there_is_missing_as_anywhere() -> None:
    assert not hasattr(qmpballoon, "nonsense")
    with pytest.raises(
        AttributeError, match="'qmpballoon' has no attribute 'nonsense'"
    ):
        getattr(qmpballoon, "nonsense")  # noqa: B009


def test_the_reference_shows_what_users_may_import_of_the_balloon() -> None:
    page = DOCS / "reference" / "balloon.md"
    shown = re.findall(
        r"^\.\. auto(?:class|data|function):: qmpballoon\.balloon\.([\w.]+)$",
        page.read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    assert not [name for name in shown if name.startswith("_")]
    assert sorted(name.rpartition(".")[2] for name in shown) == sorted(balloon.__all__)
