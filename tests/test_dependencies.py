"""Each dependency has its line in the documentation, and each upper bound a reason."""

from __future__ import annotations

import re
import runpy
import tomllib
from pathlib import Path
from typing import Final

TREE: Final = Path(__file__).parents[1]
PAGE: Final = TREE / "docs/explanation/dependencies.md"
REQUIREMENT: Final = re.compile(r"([\w.-]+)(?:\[[\w,]+\])?([^;]*)")


def read_requirements() -> dict[str, str]:
    """Return all that is asked for anywhere: the versions, by the name."""
    told = tomllib.loads((TREE / "pyproject.toml").read_text("utf-8"))
    lists = [
        told["build-system"]["requires"],
        told["project"]["dependencies"],
        *told["project"]["optional-dependencies"].values(),
        *told["dependency-groups"].values(),
        runpy.run_path(str(TREE / ".ci/bootstrap.py"))["COMMANDS"]["tox"],
    ]
    found = (
        REQUIREMENT.fullmatch(each)
        for requirements in lists
        for each in requirements
        if isinstance(each, str)  # otherwise another group
    )
    return {match[1]: match[2] for match in found if match}


def read_rows() -> dict[str, str]:
    """Return the rows of the page's tables by the package that they are of."""
    rows = re.findall(r"^\| `([\w.-]+)` (\|.*)$", PAGE.read_text("utf-8"), re.MULTILINE)
    assert len(rows) == len(dict(rows))
    return dict(rows)


def test_every_dependency_has_a_row_and_every_row_a_dependency() -> None:
    assert read_rows().keys() == read_requirements().keys()


def test_every_upper_bound_has_its_reason_in_the_row() -> None:
    rows = read_rows()
    for name, versions in read_requirements().items():
        for bound in re.findall(r"(?:<=?|==|~=)[\w.]+", versions):
            assert f"`{bound}`: " in rows[name], name
