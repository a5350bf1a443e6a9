"""Samples as lines, where there is no terminal to draw on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qmpballoon.balloon._keep import KEPT
from qmpballoon.balloon.sampling import Sample
from qmpballoon.cli.render.live import timeline_shown
from qmpballoon.sizes import GiB, MiB

if TYPE_CHECKING:
    from collections.abc import Iterable

    import pytest


def lines(capsys: pytest.CaptureFixture[str], samples: Iterable[Sample]) -> list[str]:
    """Return what is printed of samples, without the title."""
    with timeline_shown("title") as show:
        for sample in samples:
            show(sample)
    title, *shown = capsys.readouterr().out.splitlines()
    assert title == "title"
    return shown


def test_a_line_a_second_while_it_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    samples = [Sample(n / 10, GiB if n else None, 2 * GiB - n * MiB) for n in range(50)]
    # The first, as a word changes, 4 more, and how it ends.
    shown = lines(capsys, samples)
    assert len(shown) == 7
    assert shown[-1].startswith("   4.9 s  taking")
    # One that is shown is not shown twice.
    assert len(lines(capsys, samples[:42])) == 6


def test_a_line_a_minute_while_it_is_kept_and_nothing_moves(
    capsys: pytest.CaptureFixture[str],
) -> None:
    day = [Sample(2.0 + n, GiB, GiB, available=n * MiB) for n in range(86400)]
    samples = [
        Sample(0.0, None, 2 * GiB),
        Sample(1.0, GiB, GiB, mark=KEPT),
        *day,
    ]
    assert 86400 / 60 <= len(lines(capsys, samples)) <= 86400 / 60 + 3


def test_a_line_a_second_where_what_is_kept_moves(
    capsys: pytest.CaptureFixture[str],
) -> None:
    moving = [Sample(2.0 + n / 10, GiB, GiB + n * MiB) for n in range(100)]
    samples = [Sample(0.0, None, 2 * GiB), Sample(1.0, GiB, GiB, mark=KEPT), *moving]
    assert len(lines(capsys, samples)) == 13
