"""Samples as lines, where there is no terminal to draw on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qmpballoon.balloon.sampling import KEPT, Sample
from qmpballoon.cli.render.lines import Lines, Phases
from qmpballoon.sizes import GiB, MiB

if TYPE_CHECKING:
    from collections.abc import Iterable


def make_lines(samples: Iterable[Sample]) -> list[str]:
    """Return the lines that are shown of samples."""
    lines = Lines()
    shown = [lines.add(sample) for sample in samples]
    return [line for line in [*shown, lines.finish()] if line]


def test_a_line_a_second_while_it_is_taken() -> None:
    samples = [Sample(n / 10, GiB if n else None, 2 * GiB - n * MiB) for n in range(50)]
    # The first, as a word changes, 4 more, and how it ends.
    shown = make_lines(samples)
    assert len(shown) == 7
    assert shown[-1].startswith("   4.9 s  taking")
    # One that is shown is not shown twice.
    assert len(make_lines(samples[:42])) == 6


def test_a_line_a_minute_while_it_is_kept_and_nothing_moves() -> None:
    day = [Sample(2.0 + n, GiB, GiB, available=n * MiB) for n in range(86400)]
    samples = [
        Sample(0.0, None, 2 * GiB),
        Sample(1.0, GiB, GiB, mark=KEPT),
        *day,
    ]
    assert 86400 / 60 <= len(make_lines(samples)) <= 86400 / 60 + 3


def test_a_line_a_second_where_what_is_kept_moves() -> None:
    moving = [Sample(2.0 + n / 10, GiB, GiB + n * MiB) for n in range(100)]
    samples = [Sample(0.0, None, 2 * GiB), Sample(1.0, GiB, GiB, mark=KEPT), *moving]
    assert len(make_lines(samples)) == 13


def test_a_note_replaces_the_phase() -> None:
    line = Lines().add(Sample(0.0, None, GiB), "the guest is silent")
    assert line is not None
    assert line.startswith("   0.0 s  the guest is silent: actual 1 GiB")


def test_phases() -> None:
    full, less = Sample(0.0, None, 2 * GiB), Sample(0.0, GiB, GiB)
    asked_back = Sample(0.0, 2 * GiB, GiB)
    phases = Phases()
    words = [
        phases.advance(sample)
        for sample in (
            full,
            Sample(0.0, 2 * GiB, 2 * GiB),
            less,
            asked_back,
            Sample(0.0, 2 * GiB, 2 * GiB),
        )
    ]
    assert words == ["watching", "beginning", "taking", "giving back", "given back"]
