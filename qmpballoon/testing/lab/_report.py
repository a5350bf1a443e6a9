"""What the lab tells its caller: how far a download has come, and what went wrong."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, TextIO, TypeAlias

from attrs import define, frozen

from qmpballoon.errors import QmpBalloonError
from qmpballoon.sizes import format_size

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["FetchProgress", "GuestCommandError", "LabError", "ProgressBar", "Report"]

# The bar with its percentage leaves room on a terminal of 40 columns.
_WIDTH: Final = 24


class LabError(QmpBalloonError):
    """The lab failed: it has no QEMU, the guest did not boot or does not answer."""


class GuestCommandError(LabError):
    """A command ran in the guest and failed.

    Attributes:
        command: The shell command.
        status: Its exit status. 128 + N means that signal N ended the command;
            137 is SIGKILL, which the guest's OOM killer sends.
        output: Standard output and standard error, as one text.
    """

    def __init__(self, command: str, status: int, output: str) -> None:
        tail = output.strip().splitlines()[-1:] or ["no output"]
        super().__init__(f"{command!r} ended with {status} in the guest: {tail[0]}")
        self.command = command
        self.status = status
        self.output = output


@frozen
class FetchProgress:
    """How far a download has come.

    Attributes:
        what: What is being fetched, for example ``"fetching QEMU 10.0.13 (90
            packages)"``, or what else is being done, for example ``"looking for QEMU
            in trixie"``.
        folder: The folder that it is stored in.
        size: Bytes to download; 0 while the size is not known.
        share: The part of it that is complete, from 0 to 1.
    """

    what: str
    folder: Path
    size: int = 0
    share: float = 0.0


# It may raise an exception, which stops the download.
Report: TypeAlias = Callable[[FetchProgress], None]


@define(eq=False)
class ProgressBar:
    """Show progress on a text stream.

    On a terminal a bar moves. On any other stream each download is one line.

    Attributes:
        stream: The stream to write to; ``None`` for standard error.
    """

    stream: TextIO | None = None
    _shown: str = ""

    def __call__(self, progress: FetchProgress) -> None:
        """Show how far a download has come."""
        stream = self.stream or sys.stderr
        line = _headline(progress)
        if line != self._shown:
            stream.write(f"{line}\n")
            self._shown = line
        if stream.isatty() and progress.size:
            filled = round(progress.share * _WIDTH)
            bar = "#" * filled + "." * (_WIDTH - filled)
            end = "\n" if progress.share >= 1 else ""
            stream.write(f"\r  [{bar}] {progress.share:4.0%}{end}")
        stream.flush()


def _headline(progress: FetchProgress) -> str:
    size = f", {format_size(progress.size)}" if progress.size else ""
    return f"qmpballoon: {progress.what}{size} -> {progress.folder}"
