"""The layers hold: arrows point down only, and what decides touches no I/O."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import qmpballoon

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGE = Path(qmpballoon.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))

# What each part may import of the other parts, for type checking too. A part is a
# module or a folder right below the package; "" is the package's own front page.
VALUES = {"_checks", "errors", "monitor", "sizes"}
BELOW_CLIENTS = VALUES | {"address", "balloon", "qmp"}
CLIENTS = {"asyncio", "blocking", "libvirt", "trio"}
MAY_IMPORT: dict[str, set[str]] = {
    "_checks": set(),
    "errors": set(),
    "monitor": {"errors"},
    "sizes": set(),
    "address": {"errors"},
    "qmp": {"_checks", "errors"},
    "balloon": VALUES,
    "_transport": {"_checks", "address", "errors", "monitor", "qmp"},
    "trio": BELOW_CLIENTS | {"_transport"},
    "asyncio": BELOW_CLIENTS | {"_transport"},
    "blocking": BELOW_CLIENTS | {"_transport"},
    "libvirt": BELOW_CLIENTS | {"_transport", "blocking"},
    "": BELOW_CLIENTS | CLIENTS,
    "fleet": BELOW_CLIENTS | {"_transport", "trio"},
    "export": BELOW_CLIENTS,
    "testing": VALUES | {"qmp"},
    "cli": BELOW_CLIENTS | CLIENTS | {"", "_transport", "export", "fleet", "testing"},
}
# The parts that decide, and what would make them touch something.
PURE = {"balloon", "qmp"}
IMPURE = {
    *("anyio", "asyncio", "concurrent", "multiprocessing", "qemu", "random"),
    *("selectors", "socket", "ssl", "subprocess", "threading", "time", "trio"),
}


def part_of(path: Path) -> str:
    """Return the part of the package that a file belongs to."""
    top = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return "" if top == "__init__" else top


def imports(path: Path) -> Iterator[str]:
    """Yield the full name of everything that a file imports, at any depth."""
    package = [PACKAGE.name, *path.relative_to(PACKAGE).parent.parts]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    if path == PACKAGE / "errors.py":
        # Its exceptions carry results; it may name their types.
        tree.body = [node for node in tree.body if not is_for_type_checking(node)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = [*base, *filter(None, [node.module])]
            yield from (".".join([*base, alias.name]) for alias in node.names)


def is_for_type_checking(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def imported_parts(path: Path) -> set[str]:
    """Return the parts of the package that a file imports."""
    parts = set()
    for name in imports(path):
        root, _, rest = name.partition(".")
        if root == PACKAGE.name:
            part = rest.partition(".")[0]
            parts.add(part if part in MAY_IMPORT else "")
    return parts


def module_id(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def test_every_part_has_its_place() -> None:
    assert {part_of(path) for path in MODULES} <= MAY_IMPORT.keys()


def test_no_part_is_above_itself() -> None:
    def above(part: str, trail: tuple[str, ...]) -> None:
        assert part not in trail, f"a circle: {' -> '.join([*trail, part])}"
        for lower in MAY_IMPORT[part]:
            above(lower, (*trail, part))

    for part in MAY_IMPORT:
        above(part, ())


@pytest.mark.parametrize("path", MODULES, ids=module_id)
def test_arrows_point_down(path: Path) -> None:
    part = part_of(path)
    assert imported_parts(path) <= MAY_IMPORT[part] | {part}


@pytest.mark.parametrize(
    "path", [path for path in MODULES if part_of(path) in PURE], ids=module_id
)
def test_what_decides_touches_nothing(path: Path) -> None:
    assert IMPURE.isdisjoint(name.partition(".")[0] for name in imports(path))


def loaded_by(statement: str) -> set[str]:
    """Return the modules that are there after a statement, in a Python of its own."""
    program = f"import sys; {statement}; print(*sys.modules)"
    return set(
        subprocess.run(
            [sys.executable, "-c", program], check=True, capture_output=True, text=True
        ).stdout.split()
    )


def test_importing_the_package_loads_only_its_front_page() -> None:
    needed = loaded_by("import __future__, importlib, typing")
    assert loaded_by("import qmpballoon") - needed == {"qmpballoon"}


@pytest.mark.parametrize(
    ("front_end", "others"),
    [
        ("asyncio", {"trio"}),
        ("blocking", {"asyncio", "trio"}),
        ("trio", {"asyncio"}),
    ],
)
def test_a_front_end_loads_no_other_event_loop(
    front_end: str, others: set[str]
) -> None:
    loaded = loaded_by(f"import qmpballoon.{front_end}")
    assert f"qmpballoon.{front_end}" in loaded
    assert others.isdisjoint(loaded)
