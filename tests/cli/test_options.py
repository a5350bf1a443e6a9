"""Bad arguments and options: one line, exit status 2, and nothing sent."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from in_process import only_line, status_of

from qmpballoon import export
from qmpballoon.balloon.guard import Guard
from qmpballoon.cli._options import REPORT_FORMATS, Duration, RelativeGuard
from qmpballoon.sizes import GiB

if TYPE_CHECKING:
    import socket
    from pathlib import Path


@pytest.mark.parametrize(
    ("target", "word"),
    [
        ("0", "above 0"),
        ("-1", "not negative"),
        ("-1G", "not negative"),
        ("1.5G!", "is not a size"),
        ("50x", "unknown unit"),
        (f"{2**33}00%", "more than QEMU accepts"),
        ("0%", "above 0"),
        ("", "is not a size"),
        ("99999P", "more than QEMU accepts"),
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
        ["reclaim", "SOCKET", "--gentle", "0"],
        ["fleet", "reclaim", "1G", "SOCKET", "--gentle", "soon"],
        ["reclaim", "SOCKET", "--gentle", "10 minutes"],
        ["reclaim", "SOCKET", "--gentle", "inf"],
        ["resize", "SOCKET", "1G", "--gentle", "nan"],
        ["resize", "SOCKET", "1G", "--gentle", "9", "--unguarded"],
        ["reclaim", "SOCKET", "--reread-within", "-1"],
        ["resize", "SOCKET", "1G", "--reread-within", "nan"],
        ["resize", "SOCKET", "1G", "--reread-within", "9", "--unguarded"],
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


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("1.5s", 1.5), ("10m", 600), ("2h", 7200)]
)
def test_a_time_may_have_a_unit(text: str, seconds: float) -> None:
    assert Duration().convert(text, None, None) == seconds
    options = RelativeGuard(gentle=seconds)
    assert options.is_given
    assert options.resolve(GiB, Guard()) == Guard(gentle=seconds)


def test_what_is_read_again_is_for_the_guard() -> None:
    options = RelativeGuard(reread_within=0)
    assert options.is_given
    assert options.resolve(GiB, Guard()) == Guard(reread_within=0)
    assert RelativeGuard().resolve(GiB, Guard()) == Guard()


def test_the_formats_of_reports_are_those_that_can_be_saved() -> None:
    assert export.CHOICE == REPORT_FORMATS
