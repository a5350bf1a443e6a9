"""Bad input: one line, the right exit status, and nothing sent."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from command import PROGRAM
from in_process import only_line, status_of

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path


@pytest.fixture
def listener(tmp_path: Path) -> Generator[socket.socket]:
    """A socket that tells whether anybody has connected."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "qmp"))
        listening.listen()
        listening.settimeout(0)
        yield listening


@pytest.mark.parametrize(
    ("target", "word"),
    [
        ("0", "above 0"),
        ("-1", "not negative"),
        ("-1G", "not negative"),
        ("1.5G!", "is not a size"),
        ("50x", "unknown unit"),
        ("101%", "more than the whole"),
        ("0%", "above 0"),
        ("", "is not a size"),
        ("99999P", "more than QEMU can count"),
    ],
)
def test_bad_sizes(
    target: str,
    word: str,
    listener: socket.socket,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert status_of("resize", listener.getsockname(), target) == 2
    assert word in only_line(capsys)
    with pytest.raises(BlockingIOError):
        listener.accept()


@pytest.mark.parametrize(
    "arguments",
    [
        ["reclaim", "SOCKET", "--report", "chart.gif"],
        ["reclaim", "SOCKET", "--report", "chart"],
        ["reclaim", "SOCKET", "--report", "/nowhere/chart.svg"],
        ["reclaim", "SOCKET", "--report", "/proc/chart.svg"],
        ["reclaim", "SOCKET", "1G", "--amount", "1G"],
        ["reclaim", "SOCKET", "--dry-run", "--report", "chart.svg"],
        ["reclaim", "SOCKET", "--headroom", "much"],
        ["reclaim", "SOCKET", "--max-rate", "0"],
        ["watch", "SOCKET", "--record", "/nowhere/record.jsonl"],
        ["watch", "SOCKET", "--record", "."],
        ["watch", "SOCKET", "--record", ""],
        ["watch", "SOCKET", "--record", f"{'x' * 300}.jsonl"],
        ["reclaim", "SOCKET", "--report", f"{'x' * 300}.csv"],
        ["watch", "SOCKET", "--count", "0"],
        ["watch", "SOCKET", "--interval", "0"],
        ["resize", "SOCKET", "1G", "--on-stall", "hope"],
        ["watch", "SOCKET", "--interval", "nan"],
        ["resize", "SOCKET", "1G", "--timeout", "0"],
        ["resize", "SOCKET", "1G", "--timeout", "nan"],
        ["status", "SOCKET", "--connect-timeout", "nan"],
        ["resize", "SOCKET"],
        ["status"],
        ["status", "SOCKET", "--jsn"],
        ["status", "tcp:nowhere"],
        ["conquer", "SOCKET"],
        ["demo", "--memory", "1G", "--cache", "1G"],
        ["plot", "/nowhere.jsonl"],
    ],
    ids=" ".join,
)
def test_bad_usage(
    arguments: list[str],
    listener: socket.socket,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    path = listener.getsockname()
    given = [path if argument == "SOCKET" else argument for argument in arguments]
    assert status_of(*given) == 2
    only_line(capsys)
    with pytest.raises(BlockingIOError):
        listener.accept()
    assert [file.name for file in tmp_path.iterdir()] == ["qmp"]


@pytest.mark.parametrize("path", ["/nowhere/qmp", "/etc/passwd", "/"])
def test_no_socket(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of("resize", path, "1G") == 4
    assert path in only_line(capsys)


def test_a_recording_that_is_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "record.jsonl"
    file.write_text("")
    assert status_of("plot", file) == 2
    assert "empty" in only_line(capsys)
    for line in ('{"t": 1}', "[" * 200_000):
        file.write_text(f"{line}\n{SAMPLE}")
        assert status_of("plot", file) == 2
        assert "line 1" in only_line(capsys)


def test_ctrl_c_where_nothing_is_to_be_put_in_order(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_: object) -> None:
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("qmpballoon.cli.plot.read_recording", interrupt)
    file = tmp_path / "record.jsonl"
    file.write_text(SAMPLE)
    assert status_of("plot", file) == 130
    out, err = capsys.readouterr()
    assert (out, err.strip()) == ("", "")


@pytest.mark.parametrize("arguments", [[], ["--help"], ["resize", "--help"]])
def test_help(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of(*arguments) == (0 if arguments else 2)
    assert "Usage: qmpballoon" in "".join(capsys.readouterr())


SAMPLE = '{"t": 1.0, "target": null, "actual": 1073741824}\n'


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_chart_that_cannot_be_shown(encoding: str, tmp_path: Path) -> None:
    file = tmp_path / "record.jsonl"
    file.write_text(SAMPLE)
    result = subprocess.run(
        [*PROGRAM, "plot", str(file)],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONIOENCODING": encoding},
    )
    assert result.returncode == 2
    assert "--output" in result.stderr
    assert result.stdout == ""


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
    assert not drawing & loaded_by("status", "/nowhere", "--json")


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
