"""What the command prints, and with which status it exits.

Results go to standard output. Errors go to standard error, in one line that says what
to do: every exception of the library has such a line as its message.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import signal
import sys
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final

from qmpballoon._printable import make_printable, make_value_printable
from qmpballoon.cli._writer import find_writer
from qmpballoon.errors import (
    BalloonBusy,
    BalloonStalled,
    BalloonUnavailable,
    BusError,
    ClusterBusy,
    MonitorError,
    NoBalloonDevice,
    QmpBalloonError,
    StatsUnavailable,
    UnsafeTarget,
)
from qmpballoon.monitor import UNNOTED

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

    from rich.console import Console, RenderableType

__all__ = [
    "DONE",
    "NOT_REACHED",
    "NO_BALLOON",
    "NO_MONITOR",
    "REFUSED",
    "UNEXPECTED",
    "USAGE",
    "Interrupted",
    "check_output",
    "draw",
    "end_normally",
    "explain_unwritable",
    "fail",
    "is_idle",
    "is_unwritable",
    "list_signals",
    "never_stopped",
    "note",
    "print_json",
    "say",
    "take_log",
]

DONE: Final = 0
UNEXPECTED: Final = 1
USAGE: Final = 2
NOT_REACHED: Final = 3
NO_MONITOR: Final = 4
NO_BALLOON: Final = 5
REFUSED: Final = 6
# A word with the spaces before it; a size and its unit are one word.
_WORD: Final = re.compile(r" *(?:\S*\d (?:[KMGTPE]i)?B\b\S*|\S+)")
_SIGNALLED: Final = 128  # shells add the signal's number to it

_STATUS: Final[dict[type[QmpBalloonError], int]] = {
    BalloonBusy: REFUSED,
    BalloonStalled: NOT_REACHED,
    MonitorError: NO_MONITOR,
    NoBalloonDevice: NO_BALLOON,
    BalloonUnavailable: NO_BALLOON,
    BusError: NO_MONITOR,
    ClusterBusy: REFUSED,
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


def list_signals() -> list[signal.Signals]:
    """Return the signals that end the command."""
    numbers = [signal.SIGINT, signal.SIGTERM]
    # nohup has SIGHUP ignored, so that the command outlives the terminal.
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    return numbers


@contextmanager
def never_stopped() -> Generator[None]:
    """Have Ctrl-Z, and a terminal that stops background jobs, change nothing.

    For subcommands that take memory: while they are stopped, nobody watches the guest.
    """
    before = {
        number: signal.signal(number, signal.SIG_IGN)
        for number in (signal.SIGTSTP, signal.SIGTTOU)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def end_normally() -> Generator[None]:
    """Let a signal end the block as if the block had ended by itself.

    For subcommands that go on until somebody ends them. A reader who has gone still
    ends them as usual.
    """
    try:
        yield
    except Interrupted as interrupted:
        if interrupted.number == signal.SIGPIPE:
            raise


@contextmanager
def take_log() -> Generator[None]:
    """Print of what the library logs within the block only what nothing else says.

    The command says itself, in its own words, how it went. If what a guest is owed
    cannot be noted, all goes on as if it had been.
    """
    logger, handler = logging.getLogger("qmpballoon"), _UnnotedPrinter()
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


class _UnnotedPrinter(logging.Handler):
    """Prints that notes cannot be written, once for each reason."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._said: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        why: str | None = getattr(record, UNNOTED, None)
        if why is not None and why not in self._said:
            self._said.add(why)
            note(record.getMessage())


def say(text: str) -> None:
    """Print lines of the result, and flush them.

    While a subcommand works with VMs, a thread writes them; this does not wait for it.
    What was written before may then be what cannot be written.

    Raises:
        Interrupted: The reader has closed the pipe. The command ends as if by SIGPIPE,
            which Python ignores.
        OSError: It cannot be written, on a full disk for example.
    """
    # A table's lines can be long, and none is cut.
    lines = [make_printable(line, sys.maxsize) for line in text.split("\n")]
    if sys.stdout.isatty():
        width = shutil.get_terminal_size().columns
        lines = [_wrap(line, width) for line in lines]
    _write("\n".join(lines))


def _wrap(line: str, width: int) -> str:
    """Break a line before words that do not fit, and never between size and unit.

    An indented line is not broken: it may be a command that is to be copied.
    """
    if line.startswith("  "):
        return line
    lines = [""]
    for word in _WORD.findall(line):
        if lines[-1] and len(lines[-1] + word) > width:
            lines.append(word.lstrip(" "))
        else:
            lines[-1] += word
    return "\n".join(lines)


def _write(text: str) -> None:
    """Write a text as it is and a newline; raises as :func:`say`."""
    check_output()
    try:
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()
    except OSError as error:
        # Python would try to write what is still buffered when it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise explain_unwritable(error) from error


def check_output() -> None:
    """Raise the error with which a thread's writing has failed; as :func:`say`."""
    writer = find_writer(sys.stdout)
    if writer and writer.failure:
        raise explain_unwritable(writer.failure) from writer.failure


def is_unwritable() -> bool:
    """Tell whether standard output could not be written, so that the command ends."""
    writer = find_writer(sys.stdout)
    return writer is not None and writer.failure is not None


def is_idle() -> bool:
    """Tell whether all that was printed was also written."""
    writer = find_writer(sys.stdout)
    return writer is None or writer.is_idle


def explain_unwritable(error: OSError) -> Exception:
    """Return the exception for output that cannot be written; :func:`say` raises it."""
    if isinstance(error, BrokenPipeError):
        return Interrupted(signal.SIGPIPE)
    return error


def print_json(value: Mapping[str, object]) -> None:
    """Print one object in one line, and flush it; raises as :func:`say`.

    Texts in it are shown as everywhere else: see :func:`make_printable`.
    """
    _write(json.dumps(make_value_printable(value)))


def draw(console: Console, *parts: RenderableType) -> None:
    """Print what rich has laid out.

    In a file or a pipe no line is broken, and none has spaces at its end.

    Raises as :func:`say`; rich itself would exit where a pipe is closed.
    """
    with console.capture() as capture:
        for part in parts:
            if isinstance(part, str) and console.is_terminal:
                part = _wrap(part, console.width)  # noqa: PLW2901 - the same text
            is_text = isinstance(part, str)
            console.print(part, soft_wrap=is_text or not console.is_terminal)
    text = capture.get().removesuffix("\n")
    if not console.is_terminal:
        text = "\n".join(line.rstrip() for line in text.split("\n"))
    # Not by say: rich's escape sequences are to reach the terminal.
    _write(text)


def note(*messages: str) -> None:
    """Print messages on standard error, one line of bounded length each."""
    # A terminal that was closed cannot be written to; nobody reads it any more.
    with suppress(OSError):
        for message in messages:
            line = make_printable(" ".join(message.split()))
            sys.stderr.write(f"qmpballoon: {line}\n")
            sys.stderr.flush()


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
