"""The command in this process: how it ended, and what it complained of."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import documents
import pytest

from qmpballoon import cli
from qmpballoon.cli import _output

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["only_line", "status_of"]


def status_of(*arguments: object) -> int:
    """Run the command, and return its exit status.

    The documents that it prints are as the schema says.
    """
    words = [str(argument) for argument in arguments]
    print_json = _output.print_json

    def print_and_check(value: Mapping[str, object]) -> None:
        print_json(value)
        documents.check_output(words, json.dumps(value))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_output, "print_json", print_and_check)
        with pytest.raises(SystemExit) as ended:
            cli.main(words)
    assert isinstance(ended.value.code, int)
    return ended.value.code


def only_line(capsys: pytest.CaptureFixture[str]) -> str:
    """Return the line on standard error; nothing else was printed."""
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith("qmpballoon: ")
    return line
