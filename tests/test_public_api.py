"""The public face is complete, and the same however one looks at it."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from docblocks import DOCS

import qmpballoon
from qmpballoon import balloon, fleet, testing

if TYPE_CHECKING:
    from types import ModuleType

# The packages that load a name when it is first used. `__version__` is there at once.
FACES = (qmpballoon, fleet, testing)


def homes_of(face: ModuleType) -> dict[str, str]:
    """Return the module that each name of a package is loaded from."""
    homes: dict[str, str] = face._HOMES  # noqa: SLF001
    return homes


def name_of(face: ModuleType) -> str:
    return face.__name__


LAZY = [(face, name) for face in FACES for name in sorted(homes_of(face))]


def names_for_type_checkers(face: ModuleType) -> set[str]:
    assert face.__file__ is not None
    tree = ast.parse(Path(face.__file__).read_text(encoding="utf-8"))
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


@pytest.mark.parametrize("face", FACES, ids=name_of)
def test_three_lists_are_the_same(face: ModuleType) -> None:
    assert sorted(set(face.__all__)) == sorted(face.__all__)
    assert {*face.__all__} - {"__version__"} == {*homes_of(face)}
    assert names_for_type_checkers(face) == {*homes_of(face)}


@pytest.mark.parametrize(
    ("face", "name"), LAZY, ids=[f"{face.__name__}.{name}" for face, name in LAZY]
)
def test_every_name_is_its_homes(face: ModuleType, name: str) -> None:
    home = import_module(f"{face.__name__}.{homes_of(face)[name]}")
    assert getattr(face, name) is getattr(home, name)
    assert name in home.__all__


@pytest.mark.parametrize("face", FACES, ids=name_of)
def test_dir_names_them_before_they_are_loaded(face: ModuleType) -> None:
    program = f"import {face.__name__} as face; print(*dir(face))"
    shown = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    ).stdout.split()
    assert {*face.__all__} <= {*shown}


@pytest.mark.parametrize("face", FACES, ids=name_of)
def test_a_star_imports_them_all(face: ModuleType) -> None:
    program = f"from {face.__name__} import *; print(*globals())"
    imported = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    ).stdout.split()
    assert {*face.__all__} <= {*imported}


@pytest.mark.parametrize("face", FACES, ids=name_of)
def test_what_is_not_there_is_missing_as_anywhere(face: ModuleType) -> None:
    assert not hasattr(face, "nonsense")
    with pytest.raises(
        AttributeError, match=f"'{face.__name__}' has no attribute 'nonsense'"
    ):
        getattr(face, "nonsense")  # noqa: B009


@pytest.mark.parametrize("face", [balloon, testing], ids=name_of)
def test_the_reference_shows_what_users_may_import(face: ModuleType) -> None:
    name = face.__name__
    page = DOCS / "reference" / f"{name.rpartition('.')[2]}.md"
    shown = re.findall(
        rf"^\.\. auto(?:class|data|function):: {re.escape(name)}\.(?!lab\.)([\w.]+)$",
        page.read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    assert not [each for each in shown if each.startswith("_")]
    assert sorted(each.rpartition(".")[2] for each in shown) == sorted(face.__all__)
