"""What a reclaim is said to prove is what the host's figures say."""

from __future__ import annotations

import pytest

from qmpballoon.balloon import ReclaimReport
from qmpballoon.balloon.sampling import Snapshot
from qmpballoon.balloon.stats import GuestStats
from qmpballoon.cli.render.summary import describe_gain
from qmpballoon.sizes import MiB


def seen(cache: int, resident: int | None) -> Snapshot:
    known = None if resident is None else resident * MiB
    return Snapshot(GuestStats(disk_caches=cache * MiB), 512 * MiB, known)


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
    report = ReclaimReport(
        outcome="done",
        reason="",
        requested=0,
        handed_over=0,
        seconds=0.0,
        held=False,
        before=seen(200, 500),
        after=after,
    )
    assert words in describe_gain(report)
    assert "-" not in describe_gain(report)
