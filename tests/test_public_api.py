"""The public face is complete, and the same however one looks at it."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from docblocks import DOCS

import qmpballoon
from qmpballoon import (
    address,
    balloon,
    cluster,
    errors,
    export,
    fleet,
    monitor,
    qmp,
    sizes,
    testing,
)

if TYPE_CHECKING:
    from types import ModuleType

# Packages that load each name when it is first used.
LAZY = (qmpballoon, cluster, fleet, testing)
# Packages that the reference documents name by name, and their pages.
DOCUMENTED = {
    "balloon": balloon,
    "cluster": cluster,
    "export": export,
    "fleet": fleet,
}

each_lazy_package = pytest.mark.parametrize(
    "package", LAZY, ids=lambda package: package.__name__
)


def homes_of(package: ModuleType) -> dict[str, str]:
    """Return the module that each name is loaded from."""
    modules: dict[str, tuple[str, ...]] = package._MODULES  # noqa: SLF001 - its test
    pairs = [(name, module) for module, names in modules.items() for name in names]
    assert len(pairs) == len(dict(pairs)), "a name is listed twice"
    return dict(pairs)


def names_for_type_checkers(package: ModuleType) -> set[str]:
    tree = ast.parse(Path(str(package.__file__)).read_text(encoding="utf-8"))
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
        and str(statement.module).startswith("qmpballoon")
        for alias in statement.names
    }


@each_lazy_package
def test_three_lists_are_the_same(package: ModuleType) -> None:
    assert sorted(set(package.__all__)) == sorted(package.__all__)
    assert {*package.__all__} - {"__version__"} == {*homes_of(package)}
    assert names_for_type_checkers(package) == {*homes_of(package)}


@pytest.mark.parametrize(
    ("package", "name"),
    [
        pytest.param(package, name, id=f"{package.__name__}.{name}")
        for package in LAZY
        for name in sorted(homes_of(package))
    ],
)
def test_every_name_is_its_homes(package: ModuleType, name: str) -> None:
    home = import_module(f"{package.__name__}.{homes_of(package)[name]}")
    assert getattr(package, name) is getattr(home, name)
    assert name in home.__all__


@each_lazy_package
def test_dir_names_them_before_they_are_loaded(package: ModuleType) -> None:
    program = f"import {package.__name__} as package; print(*dir(package))"
    shown = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    ).stdout.split()
    assert {*package.__all__} <= {*shown}


@each_lazy_package
def test_a_star_imports_them_all(package: ModuleType) -> None:
    program = f"from {package.__name__} import *; print(*globals())"
    imported = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    ).stdout.split()
    assert {*package.__all__} <= {*imported}


@each_lazy_package
def test_what_is_not_there_is_missing_as_anywhere(package: ModuleType) -> None:
    assert not hasattr(package, "nonsense")
    with pytest.raises(
        AttributeError, match=f"'{package.__name__}' has no attribute 'nonsense'"
    ):
        getattr(package, "nonsense")  # noqa: B009


@pytest.mark.parametrize("name", DOCUMENTED)
def test_the_reference_shows_what_users_may_import(name: str) -> None:
    page = DOCS / "reference" / f"{name}.md"
    shown = re.findall(
        rf"^\.\. auto(?:class|data|function):: qmpballoon\.{name}\.([\w.]+)$",
        page.read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    assert not [text for text in shown if text.startswith("_")]
    public = sorted(DOCUMENTED[name].__all__)
    assert sorted(text.rpartition(".")[2] for text in shown) == public


def shown_on(page: str) -> list[str]:
    """Return the full names that a page of the reference shows one by one."""
    text = (DOCS / "reference" / page).read_text(encoding="utf-8")
    return re.findall(
        r"^\.\. (?:auto|py:)(?:class|data|function):: ([\w.]+)$", text, re.MULTILINE
    )


def is_data(value: object) -> bool:
    """Tell what a page has to show by name: it stands in another module's source."""
    return not inspect.isclass(value) and not inspect.isfunction(value)


PACKAGES = ["asyncio", "blocking", "libvirt", "qmp", "trio"]


@pytest.mark.parametrize("name", PACKAGES)
def test_the_reference_shows_what_users_may_import_of_a_package(name: str) -> None:
    package = import_module(f"qmpballoon.{name}")
    text = (DOCS / "reference" / f"{name}.md").read_text(encoding="utf-8")
    # This shows all classes and functions of its __all__.
    assert f".. automodule:: qmpballoon.{name}\n" in text
    assert ":no-members:" not in text
    data = [each for each in package.__all__ if is_data(getattr(package, each))]
    shown = shown_on(f"{name}.md")
    assert sorted(each.rpartition(".")[2] for each in shown) == sorted(data)
    assert not [each for each in shown if "._" in each]
    for each, value in re.findall(
        r"^\.\. py:data:: (\w+)\n.*\n +:value: (.*)", text, re.MULTILINE
    ):
        assert str(getattr(package, each)) == value


def test_the_reference_shows_what_users_may_import_for_tests() -> None:
    # Those of the lab and the strategies are imported from there.
    ours = [name for name in shown_on("testing.md") if name.count(".") == 2]
    assert sorted(ours) == sorted(f"qmpballoon.testing.{n}" for n in testing.__all__)
    others = {*shown_on("testing.md")} - {*ours}
    assert {name.rpartition(".")[0] for name in others} == {"qmpballoon.testing.lab"}


def test_the_reference_shows_what_users_may_import_from_the_front_page() -> None:
    shown = {name.rpartition(".")[2] for name in shown_on("host.md")}
    for module in (address, errors, monitor, sizes):
        page = (
            DOCS / "reference" / f"{module.__name__.rpartition('.')[2]}.md"
        ).read_text()
        assert f".. automodule:: {module.__name__}\n" in page
        assert {*module.__all__} <= {*qmpballoon.__all__}
        shown |= {*module.__all__}
    packages = [balloon, qmp, import_module("qmpballoon.trio")]
    shown |= {name for package in packages for name in package.__all__}
    assert {*qmpballoon.__all__} - {"__version__"} <= shown


def hidden_imports(text: str) -> list[str]:
    """Return the imports of ours in a text that are not for users."""
    found = re.findall(
        r"^\W*(?:from|import) (qmpballoon[\w.]*)(?: import (.*))?", text, re.MULTILINE
    )
    return [
        f"{module} {names}"
        for module, names in found
        if re.search(r"(^|[ ,.(])_[a-z]", f"{module} {names}")
    ]


def examples() -> list[Path]:
    root = DOCS.parent
    return sorted(
        [*root.glob("*.md"), *DOCS.rglob("*.md"), *root.glob("examples/*.py")]
    )


def test_hidden_imports_are_found() -> None:
    assert hidden_imports("    from qmpballoon._checks import require_size\n")
    assert hidden_imports(">>> from qmpballoon.balloon import _tracker\n")
    assert not hidden_imports("from qmpballoon.balloon import Balloon, Guard\n")
    assert not hidden_imports("import qmpballoon\nqmpballoon.__version__\n")


@pytest.mark.parametrize("page", examples(), ids=lambda page: page.name)
def test_no_example_imports_what_is_not_for_users(page: Path) -> None:
    assert not hidden_imports(page.read_text(encoding="utf-8"))


def test_no_docstring_shows_how_to_import_what_is_not_for_users() -> None:
    for path in Path(qmpballoon.__file__).parent.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(
                node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
            ):
                assert not hidden_imports(ast.get_docstring(node) or ""), path
