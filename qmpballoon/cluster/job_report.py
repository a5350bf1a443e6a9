"""How far the hosts of a job are with it, by what they have said.

Pure: a job and what its hosts say in, a report out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import evolve, frozen

from qmpballoon.cluster.documents import ENDED
from qmpballoon.sizes import format_size

if TYPE_CHECKING:
    from collections.abc import Mapping

    from qmpballoon.cluster.documents import Job, JobProgress

__all__ = ["HostReport", "JobReport", "make_report", "merge_reports"]


@frozen
class HostReport:
    """How far one host is with a job.

    Attributes:
        name: The host's name.
        quota: Bytes that it was asked for.
        progress: What it says; ``None``: nothing yet.
    """

    name: str
    quota: int
    progress: JobProgress | None = None

    @property
    def taken(self) -> int:
        """Bytes that its guests gave, as far as it has said; never more than asked."""
        return min(self.progress.taken, self.quota) if self.progress else 0

    @property
    def has_ended(self) -> bool:
        """Whether it has nothing more to do for the job."""
        return self.progress is not None and self.progress.phase in ENDED

    @property
    def is_settled(self) -> bool:
        """Whether it takes no more memory for the job."""
        settled = {*ENDED, "holding"}
        return self.progress is not None and self.progress.phase in settled


@frozen
class JobReport:
    """How far all hosts are with a job.

    Attributes:
        job: The job.
        hosts: Its hosts, sorted by name.
    """

    job: Job
    hosts: tuple[HostReport, ...]

    @property
    def taken(self) -> int:
        """Bytes that all guests gave, as far as their hosts have said."""
        return sum(host.taken for host in self.hosts)

    def describe(self) -> str:
        """Say in a line how far it is."""
        taken, amount = format_size(self.taken), format_size(self.job.amount)
        settled = sum(host.is_settled for host in self.hosts)
        hosts = f"{settled} of {len(self.hosts)} hosts are ready"
        return f"{taken} of {amount}; {hosts}"

    @property
    def has_ended(self) -> bool:
        """Whether no host has anything more to do; hosts that hold memory have."""
        return all(host.has_ended for host in self.hosts)

    @property
    def is_settled(self) -> bool:
        """Whether no host takes any more."""
        return all(host.is_settled for host in self.hosts)

    def to_json(self) -> dict[str, object]:
        """Return it as the command prints it: bytes and seconds."""
        return {
            "job": self.job.id,
            "requested": self.job.amount,
            "handed_over": self.taken,
            "held": self.job.hold,
            "until": self.job.until,
            "hosts": [
                {
                    "name": host.name,
                    "quota": host.quota,
                    "handed_over": host.taken,
                    "phase": host.progress.phase if host.progress else "unknown",
                    "detail": host.progress.detail if host.progress else "",
                }
                for host in self.hosts
            ],
        }


def make_report(job: Job, progress: Mapping[str, JobProgress | None]) -> JobReport:
    """Make a report of what hosts say.

    Args:
        job: The job.
        progress: What each host says of the last job that it has heard of.
    """
    return JobReport(
        job,
        tuple(
            HostReport(
                name=host,
                quota=quota,
                progress=said
                if (said := progress.get(host)) is not None and said.job == job.id
                else None,
            )
            for host, quota in sorted(job.quotas.items())
        ),
    )


def merge_reports(before: JobReport, now: JobReport) -> JobReport:
    """Return the later report, with what hosts have said that say nothing now."""
    return evolve(
        now,
        hosts=tuple(
            old if new.progress is None else new
            for old, new in zip(before.hosts, now.hosts, strict=True)
        ),
    )
