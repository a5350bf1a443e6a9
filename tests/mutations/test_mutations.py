"""Each planted bug is caught by the test that is there to catch it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import qmpballoon

HANDFUL = 5
TESTS = Path(__file__).parent.parent
PACKAGE = Path(qmpballoon.__file__).parent
MUTATIONS: list[dict[str, str]] = tomllib.loads(
    (Path(__file__).parent / "mutations.toml").read_text()
)["mutation"]


def run(tests: tuple[str, ...], package_in: Path) -> subprocess.CompletedProcess[str]:
    """Run tests against the package in a folder."""
    return subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"),
            *("-c", str(TESTS.parent / "pyproject.toml"), "--rootdir", str(TESTS)),
            *(f"{TESTS}/{test}" for test in tests),
        ],
        cwd=package_in,
        # So that hypothesis finds the bug in the same example each time.
        env={"PATH": "/usr/bin:/bin", "HYPOTHESIS_PROFILE": "ci"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda each: each["name"])
def test_a_planted_bug_is_caught(mutation: dict[str, str], tmp_path: Path) -> None:
    shutil.copytree(PACKAGE, tmp_path / "qmpballoon")
    path = tmp_path / "qmpballoon" / mutation["file"]
    source = path.read_text()
    assert source.count(mutation["old"]) == 1, "the mutation fits the code no more"
    path.write_text(source.replace(mutation["old"], mutation["new"]))

    result = run((mutation["test"],), tmp_path)

    # 1: tests were run, and some failed; anything else is no verdict.
    assert result.returncode == 1, result.stdout + result.stderr
    assert "AssertionError" in result.stdout or "assert" in result.stdout
    if mutation["test"].endswith("TestMachines"):
        # What hypothesis comes down to: the least that it takes, and no more.
        steps = re.findall(r"state\.(?!teardown)\w+\(", result.stdout)
        assert 0 < len(steps) <= HANDFUL, result.stdout


def test_without_a_bug_nothing_is_caught(tmp_path: Path) -> None:
    shutil.copytree(PACKAGE, tmp_path / "qmpballoon")
    tests = dict.fromkeys(each["test"] for each in MUTATIONS)
    result = run(tuple(tests), tmp_path)
    assert result.returncode == 0, result.stdout
