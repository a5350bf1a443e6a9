"""``qmpballoon plot``: recordings that can be drawn, and that cannot."""

from __future__ import annotations

import os
import signal
import subprocess
from typing import TYPE_CHECKING

import pytest
from command import PROGRAM, start
from in_process import only_line, status_of

if TYPE_CHECKING:
    from pathlib import Path

SAMPLE = '{"t": 1.0, "target": null, "actual": 1073741824}\n'


async def test_a_plot_ends_with_whoever_reads_it(tmp_path: Path) -> None:
    record = tmp_path / "record.jsonl"
    record.write_text(SAMPLE)
    async with start("plot", record) as command:
        await command.stdout.aclose()
        assert await command.process.wait() == 128 + signal.SIGPIPE
        assert await command.said() == ""


def test_a_recording_that_is_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "record.jsonl"
    file.write_text("")
    assert status_of("plot", file) == 2
    assert "empty" in only_line(capsys)
    for line in ('{"t": 1}', "[" * 200_000, "\udcff"):  # the last is no UTF-8
        file.write_bytes(f"{line}\n{SAMPLE}".encode(errors="surrogateescape"))
        assert status_of("plot", file) == 2
        assert "line 1" in only_line(capsys)


def test_a_recording_that_cannot_be_read(capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of("plot", "/proc/self/mem") == 1  # it opens, and has no first page
    assert only_line(capsys).endswith("Input/output error: /proc/self/mem")


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


def test_in_a_pipe_the_curves_are_told_apart_by_letters(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "record.jsonl"
    second = '{"t": 9.0, "target": null, "actual": 1073741824, "free": 536870912}\n'
    file.write_text(SAMPLE + second)
    assert status_of("plot", file) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any("aaa" in line for line in lines)
    assert any(line.strip().startswith("a actual") for line in lines)
    assert [line for line in lines if line != line.rstrip()] == []
