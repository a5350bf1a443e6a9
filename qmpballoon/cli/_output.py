"""What the command prints, and with which status it exits.

Results go to standard output. Errors go to standard error, in one line that says what
to do: every exception of the library has such a line as its message.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import click

from qmpballoon.errors import (
    BalloonStalled,
    BalloonUnavailable,
    MonitorError,
    NoBalloonDevice,
    QmpBalloonError,
    StatsUnavailable,
    UnsafeTarget,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import Console, RenderableType

__all__ = [
    "DONE",
    "NOT_REACHED",
    "REFUSED",
    "UNEXPECTED",
    "USAGE",
    "Interrupted",
    "draw",
    "fail",
    "note",
    "print_json",
    "say",
]

DONE: Final = 0
UNEXPECTED: Final = 1
USAGE: Final = 2
NOT_REACHED: Final = 3
NO_MONITOR: Final = 4
NO_BALLOON: Final = 5
REFUSED: Final = 6
_SIGNALLED: Final = 128  # shells add the signal's number to it

_STATUS: Final[dict[type[QmpBalloonError], int]] = {
    BalloonStalled: NOT_REACHED,
    MonitorError: NO_MONITOR,
    NoBalloonDevice: NO_BALLOON,
    BalloonUnavailable: NO_BALLOON,
    StatsUnavailable: NO_BALLOON,
    UnsafeTarget: REFUSED,
}


class Interrupted(Exception):
    """A signal has ended the subcommand, and its cleaning up is done.

    Attributes:
        number: The signal's.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"signal {number}")
        self.number = number


def say(text: str) -> None:
    """Print a line of the result, and flush it.

    Raises:
        Interrupted: The reader has closed the pipe. The command ends as if by SIGPIPE,
            which Python ignores.
        OSError: It cannot be written, on a full disk for example.
    """
    try:
        click.echo(text)
        sys.stdout.flush()
    except OSError as error:
        # Python would try to write what is still buffered when it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            raise Interrupted(signal.SIGPIPE) from error
        raise


def print_json(value: Mapping[str, object]) -> None:
    """Print one object in one line, and flush it; raises as :func:`say`."""
    say(json.dumps(value))


def draw(console: Console, *parts: RenderableType) -> None:
    """Print what rich has laid out.

    Raises as :func:`say`; rich itself would exit where a pipe is closed.
    """
    with console.capture() as capture:
        for part in parts:
            console.print(part)
    say(capture.get().removesuffix("\n"))


def note(*messages: str) -> None:
    """Print messages on standard error, one line each."""
    # A terminal that was closed cannot be written to; nobody reads it any more.
    with suppress(OSError):
        for message in messages:
            click.echo(f"qmpballoon: {' '.join(message.split())}", err=True)


def fail(error: Exception) -> int:
    """Print what went wrong, and return the exit status for it.

    Raises:
        Exception: The error itself, if it is a bug.
    """
    match error:
        case Interrupted():
            return _SIGNALLED + error.number
        case QmpBalloonError():
            note("; ".join((str(error), *getattr(error, "__notes__", ()))))
            known = (
                status for kind, status in _STATUS.items() if isinstance(error, kind)
            )
            # The others are errors that QEMU returned, and parts that a lab lacks.
            return next(known, UNEXPECTED)
        case OSError():
            note(f"{error.strerror}: {error.filename or 'standard output'}")
            return UNEXPECTED
        case _:
            raise error
