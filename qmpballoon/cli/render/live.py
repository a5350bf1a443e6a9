"""Samples as they come: a moving chart on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, Protocol

from attrs import define, field

from qmpballoon.balloon._keep import KEPT
from qmpballoon.cli import _output
from qmpballoon.sizes import MiB, format_size

if TYPE_CHECKING:
    from collections.abc import Generator

    from qmpballoon.balloon.sampling import Sample

__all__ = ["Phases", "Show", "can_draw", "has_braille", "timeline_shown"]

_LINE_EVERY: Final = 1.0  # seconds
# What is kept may be for months, and each line goes into somebody's journal.
_KEPT_LINE_EVERY: Final = 60.0


class Show(Protocol):
    """Shows a sample."""

    def __call__(self, sample: Sample, note: str = "", /) -> None:
        """Take a sample in, with a word on it for people; it may not show at once."""
        ...


@contextmanager
def timeline_shown(title: str) -> Generator[Show]:
    """Yield what is to be told of samples within the block."""
    if can_draw():
        from qmpballoon.cli.render.screen import chart_shown  # noqa: PLC0415 - loads rich

        with chart_shown(title) as show:
            yield show
    else:
        _output.say(title)
        lines = _Lines()
        yield lines.show
        lines.end()


def can_draw() -> bool:
    """Tell whether standard output is a terminal that can show a moving chart."""
    capable = os.environ.get("TERM", "dumb") not in ("dumb", "unknown")
    return sys.stdout.isatty() and has_braille() and capable


def has_braille() -> bool:
    """Tell whether standard output can have braille, which charts are drawn with."""
    return (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"


@define
class Phases:
    """Says in a word what is going on, from sample to sample."""

    _full: int | None = None
    _taken: bool = False
    _kept: bool = False

    def of(self, sample: Sample) -> str:
        """Return the word for the next sample."""
        self._full = self._full or sample.actual
        if sample.target is None:
            return "watching"
        if sample.target < self._full:
            self._taken = True
            self._kept = self._kept or sample.mark == KEPT
            return "keeping" if self._kept else "taking"
        if not self._taken:
            return "beginning"
        return "giving back" if sample.actual < self._full - MiB else "given back"


@define
class _Lines:
    """Shows a line about each second, whenever the phase changes, and in the end.

    While memory is kept and nothing moves, it is one a minute.
    """

    _phases: Phases = field(factory=Phases)
    _phase: str = ""
    _shown: Sample | None = None
    _last: Sample | None = None

    def show(self, sample: Sample, note: str = "") -> None:
        phase = note or self._phases.of(sample)
        self._last = sample
        if self._shown and phase == self._phase:
            rests = phase == "keeping" and sample.actual == self._shown.actual
            pause = _KEPT_LINE_EVERY if rests else _LINE_EVERY
            if sample.t < self._shown.t + pause:
                return
        self._phase, self._shown = phase, sample
        _output.say(_line(sample, phase))

    def end(self) -> None:
        """Show how it ended, if that is not to be seen yet."""
        if self._last is not None and self._last is not self._shown:
            _output.say(_line(self._last, self._phase))


def _line(sample: Sample, phase: str) -> str:
    figures = {
        "requested": sample.target,
        "actual": sample.actual,
        "free": sample.free,
        "cache": sample.disk_caches,
        "available": sample.available,
        "resident": sample.resident,
    }
    known = (
        f"{name} {format_size(size)}"
        for name, size in figures.items()
        if size is not None
    )
    return f"{sample.t:6.1f} s  {phase}: {', '.join(known)}"
