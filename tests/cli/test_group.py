"""The table of subcommands: help, what is loaded, and extras that are missing."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from in_process import status_of

from qmpballoon import cli
from qmpballoon.testing import MachineConfig, serve

if TYPE_CHECKING:
    import socket
    from pathlib import Path


@pytest.mark.parametrize("arguments", [[], ["--help"], ["resize", "--help"]])
def test_help(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of(*arguments) == (0 if arguments else 2)
    assert "Usage: qmpballoon" in "".join(capsys.readouterr())


@pytest.mark.parametrize("error", [EOFError, asyncio.IncompleteReadError(b"", 1)])
def test_an_end_of_input_is_no_interruption(
    error: type[EOFError] | EOFError, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recording = tmp_path / "it.jsonl"
    recording.touch()

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("qmpballoon.cli.plot.read_recording", fail)
    with pytest.raises(EOFError):
        cli.main(["plot", str(recording)])


def loaded_by(*arguments: str) -> set[str]:
    """Return what the command has loaded when it ends."""
    program = (
        "import sys\nfrom qmpballoon.cli import main\n"
        f"try: main({list(arguments)!r})\n"
        "except SystemExit: print(*sys.modules, sep='\\n')"
    )
    shown = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    return set(shown.stdout.split())


def test_what_is_not_needed_is_not_loaded() -> None:
    drawing = {"matplotlib", "plotext", "rich"}
    assert not (drawing | {"trio"}) & loaded_by("--help")
    loops = {"asyncio", "trio"}
    with serve(MachineConfig()) as fake:
        for words in ("status", "resize 1G", "reclaim --dry-run", "reclaim 64M"):
            command, *rest = words.split()
            loaded = loaded_by(command, fake.socket, *rest, "--json")
            assert not (drawing | loops) & loaded
            assert "qmpballoon.blocking" in loaded


@pytest.mark.parametrize(
    ("module", "arguments", "extra"),
    [
        ("click", ["--help"], "cli"),
        ("matplotlib", ["reclaim", "SOCKET", "--report", "chart.svg"], "charts"),
    ],
)
def test_missing_extras_are_named(
    module: str,
    arguments: list[str],
    extra: str,
    listener: socket.socket,
    tmp_path: Path,
) -> None:
    given = [
        listener.getsockname() if argument == "SOCKET" else argument
        for argument in arguments
    ]
    program = (
        f"import sys; sys.modules[{module!r}] = None\n"
        f"from qmpballoon.cli import main; main({given!r})"
    )
    result = subprocess.run(
        [sys.executable, "-c", program],
        check=False,
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert result.returncode == 1
    assert result.stderr == (
        f"qmpballoon: {module} is not installed: pip install 'qmpballoon[{extra}]'\n"
    )
    with pytest.raises(BlockingIOError):
        listener.accept()
