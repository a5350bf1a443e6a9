"""Samples as lines of text: pure, from samples to text.

This is shown if there is no terminal to draw a chart on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from attrs import define, field

from qmpballoon.balloon.sampling import KEPT
from qmpballoon.export.series import SERIES
from qmpballoon.sizes import MiB, format_size

if TYPE_CHECKING:
    from qmpballoon.balloon.sampling import Sample

__all__ = ["Lines", "Phases"]

_INTERVAL: Final = 1.0  # seconds
# `reclaim --keep` may run for months, and each line may end up in a journal.
_KEPT_INTERVAL: Final = 60.0


@define
class Phases:
    """Names the phase of a reclaim in a word, from sample to sample."""

    _full: int | None = None
    _taken: bool = False
    _kept: bool = False

    def advance(self, sample: Sample) -> str:
        """Take in the next sample, and return the phase that it belongs to."""
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
class Lines:
    """Chooses which samples become lines.

    One sample a second does, besides each one that begins a phase, and the last one.
    While memory is kept and nothing moves, it is one sample a minute.
    """

    _phases: Phases = field(factory=Phases)
    _phase: str = ""
    _shown: Sample | None = None
    _last: Sample | None = None

    def add(self, sample: Sample, note: str = "") -> str | None:
        """Take in a sample; return its line if it is to be shown.

        Args:
            sample: The next sample.
            note: Replaces the phase in the line.
        """
        phase = note or self._phases.advance(sample)
        self._last = sample
        if self._shown and phase == self._phase:
            rests = phase == "keeping" and sample.actual == self._shown.actual
            pause = _KEPT_INTERVAL if rests else _INTERVAL
            if sample.t < self._shown.t + pause:
                return None
        self._phase, self._shown = phase, sample
        return _format_line(sample, phase)

    def finish(self) -> str | None:
        """Return the line of the last sample, unless it was shown already."""
        if self._last is None or self._last is self._shown:
            return None
        return _format_line(self._last, self._phase)


def _format_line(sample: Sample, phase: str) -> str:
    # In the order of the chart's legend.
    sizes = ((series.word, series.get_size(sample)) for series in reversed(SERIES))
    known = [f"{word} {format_size(size)}" for word, size in sizes if size is not None]
    if sample.disk_reads is not None:
        known.append(f"disk reads {format_size(sample.disk_reads)}")
    return f"{sample.t:6.1f} s  {phase}: {', '.join(known)}"
