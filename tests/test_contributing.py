"""What CONTRIBUTING.md tells is so: of the way of a reclaim, and of tests."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import qmpballoon

PACKAGE = Path(qmpballoon.__file__).parent
CONTRIBUTING = Path(__file__).parents[1] / "CONTRIBUTING.md"
pytest_plugins = ["pytester"]

# Runs a reclaim on a simulated VM, and prints the files of the package in the order in
# which a function of them is first called.
PROGRAM = """
import sys
from inspect import CO_OPTIMIZED
from qmpballoon.cli import main
from qmpballoon.testing import serve

seen = {}

def note(frame, event, _):
    # Not while a module is imported: then module and class bodies are the callers.
    # Python 3.14 has a function for annotations, which others ask for.
    code, caller = frame.f_code, frame.f_back
    is_function = code.co_flags & CO_OPTIMIZED and code.co_name != "__annotate__"
    if event == "call" and is_function and caller.f_code.co_flags & CO_OPTIMIZED:
        seen.setdefault(code.co_filename)

with serve() as fake:
    sys.setprofile(note)
    try:
        main(["reclaim", fake.socket, "256M"])
    except SystemExit as end:
        sys.setprofile(None)
        assert end.code == 0, end.code
print(*seen, sep="\\n", file=sys.stderr)
"""

# What many files use at any time: checks of arguments, errors, and their messages.
ANYWHERE = {
    *(
        "__init__.py",
        "_checks.py",
        "_lazy.py",
        "_printable.py",
        "errors.py",
        "monitor.py",
    ),
    *("_transport/error_messages.py", "_transport/monitor_base.py"),
}


@pytest.fixture(scope="module")
def steps() -> list[list[str]]:
    """The files that each step of the list names."""
    text = CONTRIBUTING.read_text(encoding="utf-8")
    section = text.partition("### The way of one `qmpballoon reclaim")[2]
    section = section.partition("\n## ")[0]
    items = re.split(r"^\d+\. ", section, flags=re.MULTILINE)[1:]
    return [re.findall(r"`([\w/]+\.py)`", item) for item in items]


@pytest.fixture(scope="module")
def called() -> list[str]:
    """The files that a reclaim calls, in order."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], check=True, capture_output=True, text=True
    )
    ours = [line for line in done.stderr.splitlines() if line.startswith(str(PACKAGE))]
    files = [Path(line).relative_to(PACKAGE).as_posix() for line in ours]
    return [file for file in files if not file.startswith("testing/")]


def test_each_file_is_there_and_named_once(steps: list[list[str]]) -> None:
    named = [file for step in steps for file in step]
    assert named
    assert len(named) == len(set(named))
    assert all((PACKAGE / file).is_file() for file in named)


def test_the_steps_are_in_the_order_of_the_calls(
    steps: list[list[str]], called: list[str]
) -> None:
    first = [step[0] for step in steps]
    assert [file for file in called if file in first] == first


def test_no_file_is_left_out(steps: list[list[str]], called: list[str]) -> None:
    assert set(called) - ANYWHERE - {file for step in steps for file in step} == set()


def test_all_that_is_called_slow_is_there(slow_places: list[Path]) -> None:
    assert [path for path in slow_places if not path.exists()] == []


def test_tests_that_are_skipped_say_why(pytester: pytest.Pytester) -> None:
    pytester.makeconftest((Path(__file__).parent / "conftest.py").read_text("utf-8"))
    pytester.makepyfile("""
        import pytest

        @pytest.mark.trio
        async def test_on_trio():
            pytest.skip("there is no QEMU")

        def test_without():
            try:
                raise OSError
            except OSError:
                pytest.skip("there is no root")
    """)
    lines = pytester.runpytest_inprocess("-rs").outlines
    reasons = [line.rpartition(": ")[2] for line in lines if "SKIPPED [" in line]
    assert sorted(reasons) == ["there is no QEMU", "there is no root"]
