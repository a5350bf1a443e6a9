"""How far a job is, by what its hosts say."""

from __future__ import annotations

from qmpballoon.cluster import HostReport, JobProgress
from qmpballoon.sizes import GiB


def test_a_host_has_not_taken_more_than_it_was_asked_for() -> None:
    """What it says does not hide what others did not give."""
    said = JobProgress("0" * 8, GiB, 1 << 60, "done", 0.0)
    assert HostReport("h1", GiB, said).taken == GiB
