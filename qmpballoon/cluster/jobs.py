"""Take memory from the hosts of a cluster: plan a job, begin it, follow it, end it.

Hosts do not need an operator while they work. Whoever began a job may go away at any
moment, and somebody else can follow it instead.
"""

from __future__ import annotations

import math
import secrets
from contextlib import suppress
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Final

import trio
from attrs import asdict, evolve, frozen

from qmpballoon._checks import require_finite_seconds
from qmpballoon.cluster._fields import Malformed
from qmpballoon.cluster.bus import JOB_KEY, LONGEST_JOB, make_quota_key
from qmpballoon.cluster.documents import Job, parse_job
from qmpballoon.cluster.job_report import JobReport, make_report, merge_reports
from qmpballoon.cluster.spreading import Spread, spread
from qmpballoon.cluster.view import look_at_job
from qmpballoon.errors import BusError, ClusterBusy
from qmpballoon.sizes import format_size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from qmpballoon.cluster.bus import Bus
    from qmpballoon.cluster.view import ClusterView

__all__ = ["JobPlan", "end_job", "find_job", "follow_job", "plan_job", "start_job"]

_POLL: Final = 0.5  # seconds between two looks at a job
# Seconds after a job's deadline: its hosts report its end with their next exchange.
_GRACE: Final = 5.0
_AGAIN: Final = 5.0  # seconds after which hosts that did not begin are asked again
# Seconds in which hosts hear that a job is to end. Until then no other one begins.
_ENDING: Final = 5.0


@frozen
class JobPlan:
    """What hosts would be asked to give together.

    Attributes:
        job: The job; its quotas may be none.
        spread: What each host is asked for, by what that costs.
    """

    job: Job
    spread: Spread

    def to_json(self) -> dict[str, object]:
        """Return it as the command prints it: bytes and seconds."""
        return {
            "job": self.job.id,
            "requested": self.job.amount,
            "lacking": self.spread.lacking,
            "until": self.job.until,
            "hosts": [
                {"name": name, "quota": part.total, **asdict(part)}
                for name, part in sorted(self.spread.parts.items())
            ],
        }


def plan_job(
    view: ClusterView,
    amount: int,
    now: float,
    *,
    hosts: str = "*",
    hold: bool = False,
    takes_hot: bool = True,
    seconds: float = 600.0,
) -> JobPlan:
    """Decide what each host is asked to give. Nothing is asked for.

    The same view and amount make the same quotas.

    Args:
        view: The hosts; silent ones are not asked.
        amount: Bytes, 1 or more.
        now: Seconds since 1970.
        hosts: A glob of the names of those that are asked.
        hold: Whether guests are to stay at their smaller sizes until the deadline.
        takes_hot: Whether page cache that guests read again may be taken.
        seconds: How long it may take, and hold: the deadline is that far away. Above 0,
            and a week at most.

    Raises:
        TypeError: The amount is not a whole number, or the time is not a number.
        ValueError: One of them is out of range.
    """
    if not 0 < require_finite_seconds(seconds, "seconds") <= LONGEST_JOB:
        raise ValueError(
            f"seconds is {seconds:g}: it must be above 0, and {LONGEST_JOB:.0f}, a"
            " week, at most"
        )
    offers = {
        host.name: host.state.offer
        for host in view.hosts
        if host.state is not None
        and host.condition == "healthy"
        and fnmatchcase(host.name, hosts)
    }
    made = spread(amount, offers, takes_hot=takes_hot)
    job = Job(
        id=secrets.token_hex(8),
        amount=amount,
        takes_hot=made.takes_hot,
        hold=hold,
        until=now + seconds,
        seconds=seconds,
        quotas=made.quotas,
    )
    return JobPlan(job, made)


async def start_job(bus: Bus, job: Job, now: float) -> None:
    """Ask the hosts of a job to give their parts.

    Args:
        bus: The server.
        job: The job.
        now: Seconds since 1970.

    Raises:
        BusError: The server cannot be asked. Some hosts may have been asked; they do
            their parts. :func:`follow_job` asks the others.
        ClusterBusy: Another job goes on. Nobody was asked.
        Malformed: The job is too large.
    """
    data = job.to_bytes()
    found, expected = await _read_job(bus)
    goes_on = found is not None and found.until > now
    if found and goes_on and not (await look_at_job(bus, found)).has_ended:
        left = found.until - now
        raise ClusterBusy(
            f"job {found.id} goes on, for {format_size(found.amount)}, and ends within"
            f" {math.ceil(left)} s: follow it, or wait"
        )
    if not await bus.compare_and_set(
        JOB_KEY, expected, data, expires=job.seconds + _GRACE
    ):
        raise ClusterBusy(
            "somebody else has begun a job meanwhile: look, and try again"
        )
    await _ask_hosts(bus, job, job.quotas, now)


async def find_job(bus: Bus, now: float) -> Job | None:
    """Return the job that goes on, if its deadline has not passed.

    Raises:
        BusError: The server cannot be asked.
    """
    job, _ = await _read_job(bus)
    return job if job is not None and job.until > now else None


async def follow_job(
    bus: Bus,
    job: Job,
    clock: Callable[[], float],
    *,
    on_progress: Callable[[JobReport, str], None] = lambda _, __: None,
) -> JobReport:
    """Wait until no host takes any more for a job, or its deadline has passed.

    If somebody ends the job meanwhile, hosts that are gone are not waited for. Hosts
    that were not asked, because who asked was gone, or that could not hear, are asked
    again; no host does its part twice. While the server cannot be asked, it is asked
    again.

    Args:
        bus: The server.
        job: The job.
        clock: Returns the seconds since 1970.
        on_progress: Is called with how far it is, a few times a second, and with why
            the server cannot be asked, or an empty text.

    Returns:
        How far it came, as far as it is known.

    Note:
        It can be cancelled at any moment. The job goes on.
    """
    report = make_report(job, {})
    asked_at = -math.inf
    while not report.is_settled and clock() < job.until + _GRACE:
        problem = ""
        try:
            report = merge_reports(report, await look_at_job(bus, job))
            waiting = [each.name for each in report.hosts if each.progress is None]
            if asked_at + _AGAIN <= clock() < job.until:
                if await _was_ended(bus, job):
                    break
                asked_at = clock()
                await _ask_hosts(bus, job, waiting, asked_at)
        except BusError as error:
            problem = str(error)
        on_progress(report, problem)
        if not report.is_settled:
            await trio.sleep(_POLL)
    return report


async def end_job(bus: Bus, job: Job, clock: Callable[[], float]) -> JobReport:
    """End a job before its deadline: the guests get their sizes back.

    A host that cannot be reached ends its part when it can, or at the deadline.

    Args:
        bus: The server.
        job: The job that goes on.
        clock: Returns the seconds since 1970.

    Returns:
        How far the hosts are a few seconds later.

    Raises:
        BusError: The server cannot be asked. Hosts may have been told or not: call it
            again.
        ClusterBusy: Another job has begun, or somebody else ends this one.

    Note:
        If it is cancelled, the job may have been ended or not.
    """
    now = clock()
    found, data = await _read_job(bus)
    ended = evolve(job, until=now + _ENDING, seconds=_ENDING)
    # Of a job that was ended before, it is not known how long hosts may go on with it.
    longest = LONGEST_JOB if job.seconds == _ENDING else job.until - now
    kept = max(longest, _ENDING) + _GRACE
    changed = ClusterBusy(f"job {job.id} does not go on as it did: look at it again")
    if found != job:
        raise changed
    # A host that has not begun does not begin: for it the deadline has passed.
    quotas = {
        make_quota_key(host): evolve(ended.make_quota(host), until=now).to_bytes()
        for host in job.quotas
    }
    # The hosts come first: as long as one may not know, the job can be ended again.
    await bus.publish(quotas, expires=kept)
    if not await bus.compare_and_set(JOB_KEY, data, ended.to_bytes(), expires=kept):
        raise changed
    report = make_report(ended, {})
    while not report.has_ended and clock() < ended.until:
        await trio.sleep(_POLL)
        with suppress(BusError):  # it has ended, whether or not its hosts say so
            report = merge_reports(report, await look_at_job(bus, ended))
            # Somebody who began or followed it may have asked them once more.
            late = [each.name for each in report.hosts if not each.has_ended]
            again = {key: quotas[key] for key in map(make_quota_key, late)}
            await bus.publish(again, expires=kept)
    return report


async def _was_ended(bus: Bus, job: Job) -> bool:
    """Return whether somebody has ended a job, or begun another one."""
    found, data = await _read_job(bus)
    return data is not None and found != job


async def _read_job(bus: Bus) -> tuple[Job | None, bytes | None]:
    """Return the last job, if the server has one, and its document."""
    data = (await bus.get([JOB_KEY])).get(JOB_KEY)
    try:
        return None if data is None else parse_job(data), data
    except Malformed:
        return None, data


async def _ask_hosts(bus: Bus, job: Job, hosts: Iterable[str], now: float) -> None:
    quotas = {make_quota_key(host): job.make_quota(host).to_bytes() for host in hosts}
    if quotas and job.until > now:
        await bus.publish(quotas, expires=job.until - now)
