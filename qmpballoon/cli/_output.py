"""What the command says, and with which status it exits.

Results go to standard output. What went wrong goes to standard error, in one line
that has the remedy: every exception of the library brings such a line along.
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
_SIGNALLED: Final = 128  # and the signal's number: as shells have it

_STATUS: Final[dict[type[QmpBalloonError], int]] = {
    BalloonStalled: NOT_REACHED,
    MonitorError: NO_MONITOR,
    NoBalloonDevice: NO_BALLOON,
    BalloonUnavailable: NO_BALLOON,
    StatsUnavailable: NO_BALLOON,
    UnsafeTarget: REFUSED,
}


class Interrupted(Exception):
    """A signal asked us to end, and everything has been put in order.

    Attributes:
        number: The signal's.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"signal {number}")
        self.number = number


def say(text: str) -> None:
    """Print a line of the result, at once.

    Raises:
        Interrupted: Nobody reads it any more; as if by SIGPIPE, which Python ignores.
        OSError: It cannot be written, on a disk that is full, say.
    """
    try:
        click.echo(text)
        sys.stdout.flush()
    except OSError as error:
        # Nothing more must be written, not even what Python still holds in the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            raise Interrupted(signal.SIGPIPE) from error
        raise


def print_json(value: Mapping[str, object]) -> None:
    """Print one object in one line, at once; raises as :func:`say`."""
    say(json.dumps(value))


def draw(console: Console, *parts: RenderableType) -> None:
    """Print what rich has drawn; raises as :func:`say`, where rich would just exit."""
    with console.capture() as capture:
        for part in parts:
            console.print(part)
    say(capture.get().removesuffix("\n"))


def note(message: str) -> None:
    """Say on standard error what is wrong, or takes its time, in one line."""
    # Where it cannot be said, as on a terminal that was closed, nobody is to be told.
    with suppress(OSError):
        click.echo(f"qmpballoon: {' '.join(message.split())}", err=True)


def fail(error: Exception) -> int:
    """Say what went wrong, and return the exit status for it.

    Raises:
        Exception: The error itself, if nobody foresaw it.
    """
    match error:
        case Interrupted():
            return _SIGNALLED + error.number
        case QmpBalloonError():
            note("; ".join((str(error), *getattr(error, "__notes__", ()))))
            known = (
                status for kind, status in _STATUS.items() if isinstance(error, kind)
            )
            # The rest are QEMU's refusals, and a lab that lacks its parts.
            return next(known, UNEXPECTED)
        case OSError():
            note(f"{error.strerror}: {error.filename or 'standard output'}")
            return UNEXPECTED
        case _:
            raise error
