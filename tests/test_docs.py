"""Every code block of the documentation is run, on a fake QEMU.

The documentation calls the VM's monitor ``/run/vm1.qmp``. What is shown of an
output may leave things out by ``...``.
"""

from __future__ import annotations

import doctest
import logging
import os
import re
import runpy
import shlex
import subprocess
import sys
import sysconfig
from typing import TYPE_CHECKING

import attrs
import pytest
from docblocks import DOCS, Block, blocks, commands

from qmpballoon import Guard, StallLimits
from qmpballoon.fleet.sources import make_source
from qmpballoon.testing import GuestConfig, MachineConfig, serve

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SOCKET = "/run/vm1.qmp"
# Of these nothing can be run; all others have a test below.
NO_CODE = {"text", "ini", "yaml"}
# Run by tests/qemu/test_tutorial.py, on a real QEMU.
TUTORIAL = DOCS / "tutorial.md"
BLOCKS = list(blocks(*(page for page in DOCS.rglob("*.md") if page != TUTORIAL)))


def of(*languages: str) -> list[object]:
    """Return the blocks in a language that can be run, as parameters."""
    return [
        pytest.param(block, id=block.place)
        for block in BLOCKS
        if block.language in languages and not block.not_run
    ]


@pytest.fixture
def socket(request: pytest.FixtureRequest) -> Iterator[str]:
    """Serve the VM that a block is about."""
    block: Block = request.getfixturevalue("block")
    options = shlex.split(block.fake)
    config = MachineConfig(
        memory=4 << 30,
        balloon=None if "--no-balloon" in options else "virtio-balloon-pci",
        paused="--paused" in options,
        guest=GuestConfig(
            cache=3 << 30,
            driver="--no-driver" not in options,
            # A faster guest than any: a reader waits for it, a test need not.
            inflate_rate=20 << 30,
            reclaim_rate=20 << 30,
            deflate_rate=20 << 30,
        ),
    )
    version = (
        options[options.index("--profile") + 1] if "--profile" in options else None
    )
    with serve(config, version=version or "10.0") as fake:
        yield fake.socket


@pytest.fixture(autouse=True)
def unchanged_logging() -> Iterator[None]:
    """Take back how a block sets logging up: other tests run in the same process."""
    loggers = [
        logging.getLogger(name) for name in ("", *logging.root.manager.loggerDict)
    ]
    before = [(logger, logger.level, logger.handlers[:]) for logger in loggers]
    yield
    for logger, level, handlers in before:
        logger.setLevel(level)
        logger.handlers[:] = handlers


def test_no_block_is_overlooked() -> None:
    known = NO_CODE | {"python", "console", "sh", "pycon", "toml"}
    for page in DOCS.rglob("*.md"):
        opened = re.findall(r"^```+([^`\n]+)$", page.read_text("utf-8"), re.MULTILINE)
        code = [word for word in opened if not re.match(r"\{(?!code-block)", word)]
        assert len(code) == len(list(blocks(page)))
        assert {block.language for block in blocks(page)} <= known


@pytest.mark.parametrize("block", of("python"))
def test_python(
    block: Block, socket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source = block.source.replace(SOCKET, socket)
    if re.search(r"^def test_", source, re.MULTILINE):
        run_tests(source, tmp_path)
        return
    exec(compile(source, block.place, "exec"), {"__name__": "__main__"})  # noqa: S102


def run_tests(source: str, folder: Path) -> None:
    """Run tests as a reader would, in a project that has no other configuration."""
    (folder / "test_block.py").write_text(source, encoding="utf-8")
    (folder / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q"],
        check=False,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("block", of("pycon"))
def test_python_sessions(block: Block) -> None:
    parser, runner = doctest.DocTestParser(), doctest.DocTestRunner()
    test = parser.get_doctest(block.source, {}, block.place, None, 0)
    assert test.examples
    assert runner.run(test).failed == 0


@pytest.mark.parametrize("block", of("toml"))
def test_descriptions_of_fleets(block: Block, tmp_path: Path) -> None:
    file = tmp_path / "fleet.toml"
    file.write_text(block.source, encoding="utf-8")
    assert make_source([str(file)])()


@pytest.mark.parametrize("block", of("console", "sh"))
def test_commands(block: Block, socket: str, tmp_path: Path) -> None:
    steps = list(commands(block.source)) if block.language == "console" else []
    status = 0
    for command, shown in steps or [(block.source, "")]:
        is_status = command.strip() == "echo $?"
        assert status == 0 or is_status, f"failed with {status} before {command}"
        done = subprocess.run(
            ["bash", "-c", f"(exit {status})\n{command.replace(SOCKET, socket)}"],
            check=False,
            cwd=tmp_path,
            env=os.environ | {"PATH": path(), "COLUMNS": "88"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
        )
        status = done.returncode
        output = done.stdout.replace(socket, SOCKET)
        assert shown == "" or matches(shown, output), output
    assert status == 0


def path() -> str:
    """Return a PATH on which this Python's commands come first."""
    return os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]])


def matches(shown: str, output: str) -> bool:
    """Compare as doctest does, spaces aside."""
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    return doctest.OutputChecker().check_output(shown, output, flags)


def test_the_reference_shows_defaults_as_they_are_written() -> None:
    read_defaults = runpy.run_path(str(DOCS / "conf.py"))["read_defaults"]
    guard = read_defaults(Guard)
    assert (guard["headroom"], guard["max_rate"]) == ("None", "math.inf")
    assert read_defaults(StallLimits) == {"rate": "MiB", "window": "5.0"}
    config = read_defaults(GuestConfig)
    assert (config["used"], config["workload"]) == ("123 << 20", "()")
    assert config["claims"].endswith("()")
    for kind in (Guard, StallLimits, GuestConfig):
        given = attrs.fields_dict(kind).items()
        wanted = {name for name, field in given if field.default is not attrs.NOTHING}
        assert read_defaults(kind).keys() == wanted
