"""The page of all calls is complete, and agrees with signatures and docstrings."""

from __future__ import annotations

import inspect
import re
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

import pytest
from attrs import frozen
from docblocks import DOCS

from qmpballoon import errors

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = (DOCS / "reference" / "calls.md").read_text(encoding="utf-8")
COLUMNS = 6
# The page says once for all calls that arguments can be refused, and that QEMU may not
# be reached.
GENERAL = {"TypeError", "ValueError"}
EVERYWHERE = {"MonitorError"}
PACKAGES = (
    *("balloon", "trio", "asyncio", "blocking", "libvirt", "fleet", "cluster", "web"),
    "export",
)


@frozen
class Row:
    """One row of the page."""

    name: str
    parameters: frozenset[str]
    raises: frozenset[str]
    cells: tuple[str, ...]


@frozen
class Call:
    """What all functions of one name say of themselves."""

    parameters: frozenset[str]
    raises: frozenset[str]


@cache
def read_tables() -> dict[tuple[str, ...], list[Row]]:
    tables: dict[tuple[str, ...], list[Row]] = {}
    pattern = r"<!-- calls: ([^>]+?) -->\n\n((?:\|.*\n)+)"
    for owners, table in re.findall(pattern, PAGE):
        rows = table.splitlines()[2:]
        tables[tuple(owners.split())] = [parse_row(row) for row in rows]
    return tables


def parse_row(line: str) -> Row:
    cells = tuple(cell.strip() for cell in line.strip("|").split(" | "))
    assert len(cells) == COLUMNS, line
    call = re.fullmatch(r"`(\w+)\((.*)\)`", cells[0])
    assert call, line
    return Row(
        call[1],
        frozenset(name for name in call[2].split(", ") if name),
        frozenset(re.findall(r"`(\w+)`", cells[2])),
        cells,
    )


def find_owner(name: str) -> Any:  # noqa: ANN401 - a module or a class
    module, _, kind = name.partition(".")
    found = import_module(f"qmpballoon.{module}")
    return getattr(found, kind) if kind else found


def list_functions(owner: Any) -> Iterator[tuple[str, Any]]:  # noqa: ANN401
    is_module = inspect.ismodule(owner)
    find = getattr if is_module else inspect.getattr_static
    for name in owner.__all__ if is_module else dir(owner):
        function = find(owner, name)
        private = name.startswith("_") or not inspect.isfunction(function)
        if not private and ":meta private:" not in (function.__doc__ or ""):
            yield name, function


def find_raises(function: Any) -> set[str]:  # noqa: ANN401 - a function
    doc = inspect.getdoc(function) or ""
    section = re.search(r"^Raises:\n((?:[ ]+.*\n?|\n)+)", doc, re.MULTILINE)
    return (
        set(re.findall(r"^    (\w+):", section[1], re.MULTILINE)) if section else set()
    )


def join_calls(owners: tuple[str, ...]) -> dict[str, Call]:
    calls: dict[str, Call] = {}
    for owner in map(find_owner, owners):
        for name, function in list_functions(owner):
            before = calls.get(name, Call(frozenset(), frozenset()))
            parameters = set(inspect.signature(function).parameters) - {"self"}
            calls[name] = Call(
                before.parameters | parameters, before.raises | find_raises(function)
            )
    return calls


each_table = pytest.mark.parametrize("owners", read_tables(), ids="+".join)


@each_table
def test_every_call_has_a_row_with_its_parameters(owners: tuple[str, ...]) -> None:
    rows = read_tables()[owners]
    calls = join_calls(owners)
    assert {row.name for row in rows} == set(calls)
    assert len({row.name for row in rows}) == len(rows)
    for row in rows:
        assert row.parameters == calls[row.name].parameters, row.name


@each_table
def test_a_row_names_what_the_docstring_says_is_raised(owners: tuple[str, ...]) -> None:
    calls = join_calls(owners)
    known = {*errors.__all__, "OSError", "ImportError", "ModuleNotFoundError"}
    known |= {"Malformed"}  # of the cluster's documents; a ValueError
    for row in read_tables()[owners]:
        like = row.cells[2].startswith("as `") and len(row.raises) == 1
        raised = set() if like else set(row.raises - calls.keys())
        assert raised <= known | {"RuntimeError"}, row.name
        assert raised - EVERYWHERE == calls[row.name].raises - GENERAL - EVERYWHERE, (
            row.name
        )


@each_table
def test_every_cell_says_something(owners: tuple[str, ...]) -> None:
    for row in read_tables()[owners]:
        assert all(row.cells), row.name
        assert row.cells[-1].split(",")[0].split()[0] in {"yes", "no", "only"}, row.name


def test_no_owner_of_public_calls_is_left_out() -> None:
    named = {name for owners in read_tables() for name in owners}
    for package in PACKAGES:
        module = find_owner(package)
        if any(True for _ in list_functions(module)) and package != "balloon":
            assert package in named
        for name in module.__all__:
            kind = getattr(module, name)
            # What a value computes, it computes from itself; protocols are for users
            # to implement, and a collector is Prometheus' to call.
            if not inspect.isclass(kind) or hasattr(kind, "__attrs_attrs__"):
                continue
            if getattr(kind, "_is_protocol", False) or name == "FleetCollector":
                continue
            if not any(True for _ in list_functions(kind)):
                continue
            places = {f"{each}.{name}" for each in PACKAGES}
            assert named & places or name in {"Device", "Timeline"}, name
