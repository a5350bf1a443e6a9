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


# With these the mutation is at fault, which is then no bug that could be merged.
NO_VERDICT = ("NameError", "SyntaxError", "ImportError")


def is_stateful(test: str) -> bool:
    """Tell whether a test is a machine of hypothesis': the only classes among them."""
    return "::Test" in test


def run(
    tests: tuple[str, ...], package_in: Path, profile: str
) -> subprocess.CompletedProcess[str]:
    """Run tests against the package in a folder."""
    return subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"),
            *(
                "-c",
                str(TESTS.parent / "pyproject.toml"),
                "--rootdir",
                str(TESTS.parent),
            ),
            *(f"{TESTS}/{test}" for test in tests),
        ],
        cwd=package_in,
        # So that hypothesis finds the bug in the same example each time.
        env={"PATH": "/usr/bin:/bin", "HYPOTHESIS_PROFILE": profile},
        capture_output=True,
        text=True,
        check=False,
    )


def steps(test: str, output: str) -> list[str]:
    """Return the steps of the example that a stateful test came down to."""
    source = (TESTS / test.partition("::")[0]).read_text()
    # After each step all invariants are shown, too.
    invariants = re.findall(r"@invariant\(\)\s+def (\w+)", source)
    called: list[str] = re.findall(r"state\.(\w+)\(", output)
    return [name for name in called if name not in {*invariants, "teardown"}]


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda each: each["name"])
def test_a_planted_bug_is_caught(mutation: dict[str, str], tmp_path: Path) -> None:
    shutil.copytree(PACKAGE, tmp_path / "qmpballoon")
    path = tmp_path / "qmpballoon" / mutation["file"]
    source, test = path.read_text(), mutation["test"]
    assert source.count(mutation["old"]) == 1, "the mutation fits the code no more"
    path.write_text(source.replace(mutation["old"], mutation["new"]))

    result = run((test,), tmp_path, "shrunk" if is_stateful(test) else "planted")

    # 1: tests were run, and some failed; anything else is no verdict.
    assert result.returncode == 1, result.stdout + result.stderr
    assert re.search(r"^FAILED ", result.stdout, re.MULTILINE), result.stdout
    assert not any(word in result.stdout for word in NO_VERDICT), result.stdout
    if is_stateful(test):
        # What hypothesis comes down to: the least that it takes, and no more.
        assert 0 < len(steps(test, result.stdout)) <= HANDFUL, result.stdout


def test_stateful_tests_are_put_to_it() -> None:
    assert sum(is_stateful(each["test"]) for each in MUTATIONS) >= 3


@pytest.mark.timeout(400)  # all of those tests, one after the other
def test_without_a_bug_nothing_is_caught(tmp_path: Path) -> None:
    shutil.copytree(PACKAGE, tmp_path / "qmpballoon")
    tests = dict.fromkeys(each["test"] for each in MUTATIONS)
    result = run(tuple(tests), tmp_path, "shrunk")
    assert result.returncode == 0, result.stdout
