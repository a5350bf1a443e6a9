"""The layers hold: arrows point down only, and what decides touches no I/O.

The checks are functions over a mapping from each module to what it imports, anywhere in
its code and for type checking too. So imports that are not there can be planted in
memory, to see that the checks find them.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import qmpballoon

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    Imports = Mapping[str, frozenset[str]]

PACKAGE = Path(qmpballoon.__file__).parent

# A room is a module or a folder of the package; a module is in the innermost room that
# holds it. "" is the package's own front page. The table says which other rooms each
# may import; what a room imports stands above it.
VALUES = {"_checks", "_printable", "balloon.results", "errors", "monitor", "sizes"}
BELOW_FRONT_ENDS = VALUES | {"address", "balloon", "qmp"}
FRONT_ENDS = {"asyncio", "blocking", "libvirt", "trio"}
LIBRARY = BELOW_FRONT_ENDS | FRONT_ENDS
LIBRARY |= {"", "_transport", "cluster", "export", "fleet", "web"}
MAY_IMPORT: dict[str, set[str]] = {
    "_checks": set(),
    "_lazy": set(),
    "_printable": set(),
    "sizes": {"_checks"},
    "balloon.results": {"_checks", "sizes"},
    "errors": {"balloon.results"},
    "monitor": {"errors"},
    "address": {"_checks", "errors"},
    "qmp": {"_checks", "errors"},
    "balloon": VALUES,
    "_transport": {"_checks", "address", "errors", "monitor", "qmp"},
    "trio": BELOW_FRONT_ENDS | {"_transport"},
    "asyncio": BELOW_FRONT_ENDS | {"_lazy", "_transport"},
    "blocking": BELOW_FRONT_ENDS | {"_transport"},
    "libvirt": BELOW_FRONT_ENDS | {"_transport", "asyncio", "blocking", "trio"},
    "": BELOW_FRONT_ENDS | FRONT_ENDS | {"_lazy", "_transport"},
    "fleet": BELOW_FRONT_ENDS | {"_lazy", "_transport", "trio"},
    "cluster": VALUES | {"_lazy", "_transport", "balloon", "fleet"},
    "export": BELOW_FRONT_ENDS,
    "web": BELOW_FRONT_ENDS | {"_transport", "cluster", "export", "fleet"},
    "testing.lab": {"_checks", "errors", "qmp", "sizes"},
    "testing": VALUES | {"_lazy", "_transport", "qmp"},
    "cli.render": VALUES | {"balloon", "cluster", "export", "fleet"},
    "cli": LIBRARY | {"cli.render", "testing", "testing.lab"},
    "__main__": {"cli"},
}
# Rooms whose modules others may import, although their names begin with an underscore:
# what the package shares, and users do not see. The table says who does.
SHARED = {"_checks", "_lazy", "_printable", "_transport"}
# What decides, by the beginning of its name: it imports none of what would make it
# touch something, and no module of ours that does.
PURE = (
    *("balloon", "cli._findings", "qmp"),
    *("fleet.guests", "fleet.hot_cache", "fleet.movement", "fleet.policy"),
    *("fleet.usage", "fleet.vm", "fleet.vm_view", "fleet.water_filling"),
    *("cluster._fields", "cluster.bus", "cluster.documents", "cluster.job_report"),
    *("cluster.room", "cluster.spreading", "cluster.wishes"),
)
# What only draws: it is handed all that it shows. It knows that by its types, so it
# may import modules of ours that touch something.
DRAWN = ("cli.render",)
IMPURE = {
    *("_thread", "anyio", "asyncio", "concurrent", "multiprocessing", "qemu", "random"),
    *("sched", "select", "selectors", "signal", "socket", "socketserver", "ssl"),
    *("subprocess", "threading", "time", "trio"),
}
# A small module stands alone for a reason. Only their number can be held.
SMALL = 70
MOST_SMALL = 15


def name_of(path: Path) -> str:
    """Return a module's name inside the package; the front page's is empty."""
    return (
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        .removesuffix("__init__")
        .rstrip(".")
    )


MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def full_names(path: Path) -> Iterator[str]:
    """Yield the full name of everything that a file imports."""
    package = [PACKAGE.name, *path.relative_to(PACKAGE).parent.parts]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(module=module, names=names, level=level):
                base = package[: len(package) - level + 1] if level else []
                base = [*base, *filter(None, [module])]
                yield from (".".join([*base, alias.name]) for alias in names)


def imported(name: str) -> str:
    """Return what an import is of: a module of ours, or another distribution's.

    An import of ours is of the module that it names, and not of the packages that it
    is in: their ``__init__`` counts where a name is imported from it.
    """
    root, _, rest = name.partition(".")
    if root != PACKAGE.name:
        return f"{root}:"
    while rest not in MODULES:
        rest = rest.rpartition(".")[0]
    return rest


@cache
def read_imports() -> Imports:
    """Return what each module imports.

    Not when this file is imported, as each process does that looks for tests.
    """
    return {
        name: frozenset(imported(full) for full in full_names(path))
        for name, path in MODULES.items()
    }


def ours(imports: Imports) -> Imports:
    """Return the imports of modules of the package alone."""
    return {name: frozenset(names & imports.keys()) for name, names in imports.items()}


@cache
def room_of(module: str) -> str | None:
    """Return the innermost room that a module is in."""
    while module not in MAY_IMPORT and module:
        module = module.rpartition(".")[0]
        if not module:
            return None
    return module


def find_misplaced(imports: Imports) -> list[str]:
    """Return the imports that the table does not allow."""
    return [
        f"{name or PACKAGE.name} may not import {other or PACKAGE.name}"
        for name, others in ours(imports).items()
        for other in sorted(others)
        if (room := room_of(name)) != (below := room_of(other))
        and below not in MAY_IMPORT.get(room or "", set())
    ]


def find_circle(imports: Imports) -> list[str]:
    """Return a circle of modules that import each other, if there is one."""
    try:
        TopologicalSorter(ours(imports)).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def find_private(imports: Imports) -> list[str]:
    """Return the imports of a module that is private to another room."""
    return [
        f"{name} imports {other}"
        for name, others in ours(imports).items()
        for other in sorted(others)
        if (room := room_of(other)) != room_of(name)
        and room not in SHARED
        and any(part.startswith("_") for part in other.split("."))
    ]


def is_in(module: str, names: tuple[str, ...]) -> bool:
    return any(f"{module}.".startswith(f"{name}.") for name in names)


def find_impure(imports: Imports) -> list[str]:
    """Return what decides or draws and yet touches something, and through what."""

    def follow(module: str, *way: str) -> Iterator[str]:
        for other in sorted(imports[module]):
            if other.endswith(":") and other[:-1] in IMPURE:
                yield " -> ".join([*way[1:], module, other[:-1]])
            elif other in imports and other not in seen and is_in(way[0], PURE):
                seen.add(other)
                yield from follow(other, *way, module)

    found: list[str] = []
    for module in imports:
        if is_in(module, PURE + DRAWN):
            seen = {module}
            found += follow(module, module)
    return found


def test_every_module_has_its_room_and_every_room_its_modules() -> None:
    assert {room_of(name) for name in MODULES} == MAY_IMPORT.keys()


def test_the_table_points_down_only() -> None:
    TopologicalSorter(MAY_IMPORT).prepare()
    assert set().union(*MAY_IMPORT.values()) <= MAY_IMPORT.keys()


def test_nothing_is_below_the_command_or_imports_what_is_for_tests() -> None:
    for room, others in MAY_IMPORT.items():
        top = room.partition(".")[0]
        below = {other.partition(".")[0] for other in others}
        assert "cli" not in below or top in {"__main__", "cli"}
        assert "testing" not in below or top in {"cli", "testing"}


def test_arrows_point_down() -> None:
    assert find_misplaced(read_imports()) == []


def test_no_modules_import_each_other() -> None:
    assert find_circle(read_imports()) == []


def test_nobody_imports_what_is_private_to_another_room() -> None:
    assert find_private(read_imports()) == []


def test_what_decides_touches_nothing() -> None:
    assert find_impure(read_imports()) == []


def test_few_modules_are_small() -> None:
    small = [
        name
        for name, path in MODULES.items()
        if len(path.read_text(encoding="utf-8").splitlines()) < SMALL
    ]
    assert len(small) <= MOST_SMALL, small


def test_no_object_reaches_into_another() -> None:
    """Ruff finds who does (SLF001), as long as nobody is excepted."""
    excepted = [
        name
        for name, path in MODULES.items()
        if re.search(r"noqa:.*\bSLF001\b", path.read_text(encoding="utf-8"))
    ]
    assert excepted == []


def plant(module: str, *others: str, instead_of: str | None = None) -> Imports:
    """Return the imports with more of them in a module, and one less elsewhere."""
    planted = dict(read_imports())
    planted[module] = planted[module].union(others)
    if instead_of is not None:
        planted[instead_of] = planted[instead_of].difference([module])
    return planted


def edges(*, between_rooms: bool) -> Iterator[tuple[str, str]]:
    """Yield importer and imported, for all imports of our own modules."""
    for name, others in ours(read_imports()).items():
        for other in sorted(others):
            if (room_of(name) != room_of(other)) == between_rooms:
                yield name, other


@pytest.mark.parametrize("room", MAY_IMPORT, ids=lambda room: room or "front page")
def test_an_import_of_a_room_that_is_turned_round_is_found(room: str) -> None:
    turned = [
        (name, other)
        for name, other in edges(between_rooms=True)
        if room in {room_of(name), room_of(other)}
    ]
    assert turned
    for name, other in turned:
        assert find_misplaced(plant(other, name, instead_of=name))


def test_an_import_inside_a_room_that_goes_both_ways_is_found() -> None:
    for name, other in edges(between_rooms=False):
        circle = find_circle(plant(other, name))
        assert {name, other} <= {*circle}


@pytest.mark.parametrize("part", PURE + DRAWN)
def test_a_clock_in_what_decides_or_draws_is_found(part: str) -> None:
    for module in [name for name in MODULES if is_in(name, (part,))]:
        assert find_impure(plant(module, "time:"))


def test_a_socket_that_what_decides_has_through_others_is_found() -> None:
    touching = next(name for name in MODULES if "socket:" in read_imports()[name])
    for module in [name for name in MODULES if is_in(name, PURE)]:
        assert find_impure(plant(module, touching))


def test_an_import_of_another_rooms_underscore_is_found() -> None:
    private = [name for name in MODULES if "._" in name and room_of(name) not in SHARED]
    assert private
    for name in private:
        assert find_private(plant("cli", name)) or room_of(name) == "cli"


def test_an_import_is_of_the_module_that_it_names() -> None:
    assert imported("qmpballoon.balloon.stats.GuestStats") == "balloon.stats"
    assert imported("qmpballoon.balloon.stats") == "balloon.stats"
    assert imported("qmpballoon.GiB") == ""
    assert imported("trio.abc.Stream") == "trio:"


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
    front_page = {"qmpballoon", "qmpballoon._lazy"}
    assert loaded_by("import qmpballoon") - needed == front_page


@pytest.mark.parametrize(
    ("front_end", "others"),
    [
        ("asyncio", {"trio", "qemu.qmp"}),
        ("blocking", {"asyncio", "trio"}),
        ("trio", {"asyncio"}),
    ],
)
def test_a_front_end_loads_no_other_event_loop_and_no_qemu_qmp(
    front_end: str, others: set[str]
) -> None:
    loaded = loaded_by(f"import qmpballoon.{front_end}")
    assert f"qmpballoon.{front_end}" in loaded
    assert others.isdisjoint(loaded)
