"""The tutorial, word for word, on a copy of this checkout and a guest of the lab.

What a reader types becomes one script for one shell, so that what a block does to
the shell holds for those after it. The second terminal is a shell beside it.
"""

from __future__ import annotations

import doctest
import os
import re
import shlex
import shutil
import signal
import subprocess
from collections import deque
from typing import TYPE_CHECKING

import pytest
from docblocks import DOCS, Block, blocks, commands

from qmpballoon import MiB, parse_size

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

BLOCKS = list(blocks(DOCS / "tutorial.md"))
READY = "Ctrl-C ends it."
ACTIVATE = ". .venv/bin/activate\n"
TIMEOUT = 500  # seconds; packages may have to be fetched
LAST = 25  # lines that a failure shows of each terminal
MARK = "#### "

# The shell in the background may open its log late: until then READY is not to be found
# in the log of the one before.
START = f"""
: >second.log
setsid bash -e second.sh >second.log 2>&1 & second=$!
trap 'kill -INT -- -$second' EXIT
until grep -q {shlex.quote(READY)} second.log; do
    kill -0 $second || {{ cat second.log; exit 1; }}
    sleep 0.1
done
"""
END = """
trap - EXIT
kill -INT -- -$second
wait $second
"""


def script() -> Iterator[str]:
    """Yield the lines that do what the tutorial says."""
    yield "set -euo pipefail"
    for number, block in enumerate(BLOCKS):
        yield f"echo {shlex.quote(MARK)}{number}"
        match block:
            case Block(caption="second terminal"):
                # Ctrl-C, if something runs there; the shell stays as it was.
                yield f"if [ -e second.sh ]; then\n{END}fi"
                yield f"cat >second.sh <<'END'\n{ACTIVATE}{block.source}END\n{START}"
            case Block(language="sh"):
                yield block.source
            case Block(language="python"):
                yield f"cat >take.py <<'END'\n{block.source}END"
            case Block(language="console"):
                yield "set +e"
                for index, (command, _) in enumerate(commands(block.source)):
                    mark = shlex.quote(f"{MARK}{number}.{index}")
                    # For a command that asks for the status of the one before.
                    yield f"status=$?; echo {mark}; (exit $status)\n{command}"
                yield "set -e"
    yield END


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Do it all; return what was printed for each block, and for each command."""
    clone = tmp_path_factory.mktemp("tutorial") / "qmpballoon"
    ignored = shutil.ignore_patterns(
        ".?*_cache", ".git", ".hypothesis", ".tox", ".venv"
    )
    shutil.copytree(DOCS.parent, clone, ignore=ignored)
    process = subprocess.Popen(
        ["bash", "-c", "\n".join(script())],
        cwd=clone,
        # What is installed is compiled as far as it is used, and not all of it.
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        | {"PIP_NO_COMPILE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        printed, _ = process.communicate(timeout=TIMEOUT)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            process.communicate(timeout=300)
    second = clone / "second.log"
    assert process.returncode == 0, (
        # A report may be cut in the middle: what is said last says what failed.
        f"{last_of(printed)}\n--- the second terminal:\n{last_of(second.read_text())}"
    )
    assert_nothing_is_left(clone)
    parts = re.split(rf"^{MARK}(\S+)\n", printed, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def last_of(printed: str) -> str:
    """Return the last lines, without what a terminal has overwritten."""
    lines = (line.rpartition("\r")[2] for line in printed.rstrip().split("\n"))
    return "\n".join(deque(lines, maxlen=LAST))


def assert_nothing_is_left(clone: Path) -> None:
    assert READY in (clone / "second.log").read_text(encoding="utf-8")
    assert not (clone / "vm1.qmp").exists()


def printed_by(output: dict[str, str], command: str) -> str:
    """Return what was printed for the block that a command is in."""
    (number,) = (n for n, block in enumerate(BLOCKS) if block.source == command + "\n")
    return output[str(number)]


def test_the_reader_sees_the_cache_go_and_the_host_get_it(
    output: dict[str, str],
) -> None:
    report = printed_by(output, "qmpballoon reclaim vm1.qmp")
    cache, resident = (
        re.search(rf"{row} +(\S+ \w+) +(\S+ \w+) ", report)
        for row in ("guest: page cache", "host: QEMU resident")
    )
    assert cache is not None, report
    assert resident is not None, report
    dropped = parse_size(cache[1]) - parse_size(cache[2])
    freed = parse_size(resident[1]) - parse_size(resident[2])
    assert dropped > 900 * MiB
    assert freed > dropped * 0.8


def test_the_plan_comes_true(output: dict[str, str]) -> None:
    plan = printed_by(output, "qmpballoon reclaim vm1.qmp --dry-run")
    assert re.match(r"1\.\d GiB can be taken", plan)


def test_the_program_reclaims(output: dict[str, str]) -> None:
    said = printed_by(output, "python take.py vm1.qmp")
    assert re.search(r"^done: ", said, re.MULTILINE), said
    sizes = re.search(r"QEMU held (\S+ \w+), and holds (\S+ \w+)$", said, re.MULTILINE)
    assert sizes is not None, said
    assert parse_size(sizes[1]) - parse_size(sizes[2]) > 700 * MiB


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (f"{number}.{index}", shown)
        for number, block in enumerate(BLOCKS)
        if block.language == "console"
        for index, (_, shown) in enumerate(commands(block.source))
    ],
)
def test_what_is_shown_is_printed(
    output: dict[str, str], name: str, shown: str
) -> None:
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    printed = output[name]
    assert doctest.OutputChecker().check_output(shown, printed, flags), printed
