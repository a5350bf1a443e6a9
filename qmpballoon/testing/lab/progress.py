"""What is being fetched, how much of it, and where to."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, TextIO, TypeAlias

from attrs import define, frozen

from qmpballoon.sizes import format_size

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Progress", "ProgressBar", "Report"]

_WIDTH: Final = 24


@frozen
class Progress:
    """How far a download has come.

    Attributes:
        what: What is fetched, as in ``"QEMU 10.0.13 (90 packages)"``, or what is
            done about it, as in ``"looking for QEMU 10.0 in trixie"``.
        folder: Where it is kept.
        size: Bytes to be downloaded; 0 while that is not known.
        share: How much of it is there, from 0 to 1.
    """

    what: str
    folder: Path
    size: int = 0
    share: float = 0.0


# It may raise, to stop what it is told of.
Report: TypeAlias = Callable[[Progress], None]


@define(eq=False)
class ProgressBar:
    """Shows progress on a text stream: a moving bar, or a line for each thing.

    Attributes:
        stream: Where to; standard error if not given.
    """

    stream: TextIO | None = None
    _shown: str = ""

    def __call__(self, progress: Progress) -> None:
        """Show how far it has come."""
        stream = self.stream or sys.stderr
        line = _headline(progress)
        moving = stream.isatty()
        if line != self._shown:
            stream.write(f"{line}\n")
            self._shown = line
        if moving and progress.size:
            filled = round(progress.share * _WIDTH)
            bar = "#" * filled + "." * (_WIDTH - filled)
            end = "\n" if progress.share >= 1 else ""
            stream.write(f"\r  [{bar}] {progress.share:4.0%}{end}")
        stream.flush()


def _headline(progress: Progress) -> str:
    size = f", {format_size(progress.size)}" if progress.size else ""
    return f"qmpballoon: {progress.what}{size} -> {progress.folder}"
