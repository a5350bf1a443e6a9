"""Each planted bug is caught by the test that is there to catch it."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from planting import (
    Misfit,
    Nursery,
    change,
    find_function,
    read_sources,
    walk_functions,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

HANDFUL = 5
TESTS = Path(__file__).parent.parent
MUTATIONS: list[dict[str, str]] = tomllib.loads(
    (Path(__file__).parent / "mutations.toml").read_text()
)["mutation"]
EQUIVALENTS: list[dict[str, str]] = tomllib.loads(
    (Path(__file__).parent / "equivalent.toml").read_text()
)["equivalent"]

# With these the mutation is at fault, which is then no bug that could be merged.
NO_VERDICT = ("NameError", "SyntaxError", "ImportError")


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    """Run bugs in forks of one program."""
    nursery = Nursery()
    yield nursery
    nursery.close()


def is_stateful(test: str) -> bool:
    """Tell whether a test is a machine of hypothesis': the only classes among them."""
    return "::Test" in test


def steps(test: str, output: str) -> list[str]:
    """Return the steps of the example that a stateful test came down to."""
    source = (TESTS / test.partition("::")[0]).read_text()
    # After each step all invariants are shown, too.
    invariants = re.findall(r"@invariant\(\)\s+def (\w+)", source)
    called: list[str] = re.findall(r"state\.(\w+)\(", output)
    return [name for name in called if name not in {*invariants, "teardown"}]


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda each: each["name"])
def test_a_planted_bug_is_caught(mutation: dict[str, str], nursery: Nursery) -> None:
    test = mutation["test"]
    status, output = nursery.run(
        {
            "key": mutation["in"],
            "old": mutation.get("old", ""),
            "new": mutation["new"],
            "again": bool(mutation.get("again")),
            "tests": [test],
            "profile": "shrunk" if is_stateful(test) else "planted",
        }
    )

    # 1: tests were run, and some failed; anything else is no verdict.
    assert status == 1, output
    assert re.search(r"^FAILED ", output, re.MULTILINE), output
    assert not any(word in output for word in NO_VERDICT), output
    if is_stateful(test):
        # What hypothesis comes down to: the least that it takes, and no more.
        assert 0 < len(steps(test, output)) <= HANDFUL, output


def test_a_change_without_a_difference_is_of_a_line_that_is_there() -> None:
    lines: dict[str, set[str]] = {}
    for _, source in read_sources().values():
        found = source.splitlines()
        for name, function in walk_functions(ast.parse(source)):
            body = found[function.lineno : function.end_lineno]
            lines.setdefault(name, set()).update(" ".join(x.split()) for x in body)
    gone = [
        each["old"]
        for each in EQUIVALENTS
        if each["old"] not in lines.get(each["in"], set())
    ]
    assert not gone


def test_stateful_tests_are_put_to_it() -> None:
    assert sum(is_stateful(each["test"]) for each in MUTATIONS) >= 3


@pytest.mark.parametrize(
    "file", sorted({each["test"].partition("::")[0] for each in MUTATIONS})
)
def test_without_a_bug_nothing_is_caught(file: str, nursery: Nursery) -> None:
    tests = {each["test"] for each in MUTATIONS if each["test"].startswith(file)}
    status, output = nursery.run(
        {"tests": sorted(tests), "profile": "shrunk", "few": True}
    )
    assert status == 0, output


@pytest.mark.parametrize(
    ("key", "old"),
    [
        ("Tracker.nothing", "pass"),
        ("nowhere:Tracker.observe", "pass"),
        ("__init__", "pass"),
        ("Tracker.observe", "nothing_like_it"),
        ("Tracker.observe", "self"),
    ],
)
def test_a_bug_that_fits_no_code_is_an_error(key: str, old: str) -> None:
    with pytest.raises(Misfit):
        change(find_function(key)[2], old, "pass")
