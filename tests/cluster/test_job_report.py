"""How far a job is, by what its hosts say."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from qmpballoon.cluster import HostReport, Job, JobProgress
from qmpballoon.cluster.job_report import make_report, merge_reports
from qmpballoon.sizes import GiB

if TYPE_CHECKING:
    from qmpballoon.cluster.documents import JobPhase

JOB = Job(
    id="0" * 8,
    amount=4 * GiB,
    takes_hot=True,
    hold=False,
    until=60.0,
    seconds=60.0,
    quotas={"h2": 3 * GiB, "h1": GiB},
)


def say(phase: JobPhase, taken: int = GiB, job: str = JOB.id) -> JobProgress:
    return JobProgress(job, GiB, taken, phase, 60.0, "its detail")


def test_a_host_has_not_taken_more_than_it_was_asked_for() -> None:
    """What it says does not hide what others did not give."""
    assert HostReport("h1", GiB, say("done", 1 << 60)).taken == GiB


@pytest.mark.parametrize(
    ("phase", "is_settled", "has_ended"),
    [
        *(("taking", False, False), ("holding", True, False)),
        *(("done", True, True), ("refused", True, True), (None, False, False)),
    ],
)
def test_a_job_is_settled_once_each_host_is_and_has_ended_likewise(
    phase: JobPhase | None, *, is_settled: bool, has_ended: bool
) -> None:
    other = {} if phase is None else {"h2": say(phase)}
    report = make_report(JOB, {"h1": say("done"), **other})
    assert (report.is_settled, report.has_ended) == (is_settled, has_ended)
    assert f"; {1 + is_settled} of 2 hosts are ready" in report.describe()


def test_what_a_host_says_of_another_job_is_nothing() -> None:
    said = {"h1": say("done"), "h2": say("done", job="1" * 8)}
    report = make_report(JOB, said)
    assert [host.progress for host in report.hosts] == [say("done"), None]
    assert report.describe().startswith("1 GiB of 4 GiB; ")
    hosts: Any = report.to_json()["hosts"]
    first, second = hosts
    assert (first["phase"], first["detail"]) == ("done", "its detail")
    assert (second["phase"], second["detail"]) == ("unknown", "")


def test_what_a_host_has_said_stays_while_it_says_nothing() -> None:
    before = make_report(JOB, {"h1": say("taking", 1), "h2": say("taking", 2)})
    now = make_report(JOB, {"h2": say("done", 3)})
    merged = merge_reports(before, now)
    assert [host.progress for host in merged.hosts] == [
        say("taking", 1),
        say("done", 3),
    ]
