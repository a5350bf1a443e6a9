"""What a reclaim is said to prove is what the host's figures say."""

from __future__ import annotations

from io import StringIO

import pytest
from attrs import evolve
from rich.console import Console

from qmpballoon.balloon import ReclaimReport
from qmpballoon.balloon.sampling import Sample, Snapshot, Timeline
from qmpballoon.balloon.stats import GuestStats
from qmpballoon.cli.render.summary import draw_summary, write_undo
from qmpballoon.export.summary import compare_snapshots, describe_gain, describe_rereads
from qmpballoon.sizes import GiB, MiB

PRICE = "The guest had to read up to"
LESS = "less than it gave in a tenth of a second"


def seen(cache: int, resident: int | None) -> Snapshot:
    known = None if resident is None else resident * MiB
    return Snapshot(GuestStats(disk_caches=cache * MiB), 512 * MiB, known)


def make_report(after: Snapshot) -> ReclaimReport:
    return ReclaimReport(
        outcome="done",
        reason="",
        requested=0,
        handed_over=0,
        seconds=0.0,
        held=False,
        before=seen(200, 500),
        after=after,
    )


@pytest.mark.parametrize(
    ("after", "words"),
    [
        (seen(50, 300), "by 133% of that: the host has 200 MiB more"),
        (seen(50, None), "what the host has got for it cannot be seen"),
        # Locked memory, or a QEMU that grew meanwhile.
        (seen(50, 500), "the host has no more"),
        (seen(50, 510), "the host has no more"),
        (seen(200, 300), "did not shrink"),
    ],
)
def test_it_is_said_as_it_is(after: Snapshot, words: str) -> None:
    report = make_report(after)
    assert words in describe_gain(report)
    assert "-" not in describe_gain(report)


def test_figures_of_a_guest_that_did_not_answer_at_the_end_are_not_shown() -> None:
    old, new = seen(200, 500), seen(50, 300)
    report = evolve(
        make_report(evolve(new, stats=evolve(new.stats, age=3604.5))),
        before=evolve(old, stats=evolve(old.stats, age=3600.5)),  # clocks differ
    )
    assert describe_gain(report).startswith("The guest did not answer at the end: ")
    changes = {
        c.name: c.format() for c in compare_snapshots(report.before, report.after)
    }
    assert changes["guest: page cache"] == ("200 MiB", "unknown", "")
    assert changes["host: QEMU resident"] == ("500 MiB", "300 MiB", "-200 MiB")


def test_a_guest_that_says_that_it_has_more_than_it_has_uses_an_unknown_amount() -> (
    None
):
    liar = Snapshot(GuestStats(total=GiB, available=2 * GiB), GiB, None)
    used = next(c for c in compare_snapshots(liar, liar) if c.name == "guest: used")
    assert used.format() == ("unknown", "unknown", "")


@pytest.mark.parametrize(
    ("reread", "words"),
    [
        (None, None),
        (0, "Until now the guest read nothing again from its disks."),
        (
            50 * MiB,
            f"{PRICE} 50 MiB again from its disks: as much as it gave in 0.4 s.",
        ),
        (MiB, f"{PRICE} 1 MiB again from its disks: {LESS}."),
    ],
)
def test_the_price_is_said_in_words(reread: int | None, words: str | None) -> None:
    timeline = Timeline()
    for seconds, size in ((0.0, 600), (2.0, 350), (3.0, 600)):
        timeline.add(Sample(seconds, None, size * MiB))
    report = evolve(
        make_report(seen(50, 300)),
        requested=250 * MiB,
        handed_over=250 * MiB,
        seconds=3.0,
        timeline=timeline,
        reread=reread,
    )
    assert describe_rereads(report) == words


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (2 * GiB, "2GiB"),
        (2 * GiB + MiB, "2049MiB"),
        (2 * GiB + 4096, "2097156KiB"),
        (2 * GiB + 1, "2147483649"),
    ],
)
def test_the_command_that_gives_back_has_the_size_in_full(size: int, text: str) -> None:
    command = write_undo("/run/a vm", size)
    assert command == f"  qmpballoon resize '/run/a vm' {text}  # gives it back"


def test_figures_are_whole_however_narrow_the_terminal_is() -> None:
    report = make_report(seen(50, 300))
    shown: list[str] = []
    for width in range(20, 90):
        console = Console(width=width, file=StringIO())
        with console.capture() as capture:
            console.print(*draw_summary(report, width))
        shown.append(capture.get())
        words = " ".join(shown[-1].split())
        assert "500 MiB" in words
        assert "300 MiB" in words
        assert "\u2026" not in words
    assert "change" not in shown[0]
    assert "-200 MiB" in shown[-1]
