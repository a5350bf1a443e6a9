"""The command in this process: how it ended, and what it complained of."""

from __future__ import annotations

import pytest

from qmpballoon import cli

__all__ = ["only_line", "status_of"]


def status_of(*arguments: object) -> int:
    """Run the command, and return its exit status."""
    with pytest.raises(SystemExit) as ended:
        cli.main([str(argument) for argument in arguments])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def only_line(capsys: pytest.CaptureFixture[str]) -> str:
    """Return the line on standard error; nothing else was printed."""
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith("qmpballoon: ")
    return line
