"""What an operator of a cluster does: look at all hosts, set the policy, take memory.

Hosts do not need an operator while they work. Whoever began a job may go away at any
moment, and somebody else can follow it instead.
"""

from __future__ import annotations

import difflib
import json
import math
import secrets
from contextlib import suppress
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Final, Literal, TypeVar, get_args

import trio
from attrs import asdict, evolve, field, frozen

from qmpballoon._checks import require_finite_seconds
from qmpballoon.cluster.bus import (
    HOSTS_PREFIX,
    JOB_KEY,
    LONGEST_JOB,
    POLICY_KEY,
    PRESENCE,
    find_host,
    make_quota_key,
    make_state_key,
    make_vms_key,
)
from qmpballoon.cluster.documents import (
    ENDED,
    Job,
    Malformed,
    Policy,
    parse_job,
    parse_policy,
    parse_policy_fields,
    parse_state,
    parse_vms,
)
from qmpballoon.cluster.spreading import Spread, spread
from qmpballoon.errors import BusError, ClusterBusy
from qmpballoon.sizes import format_size

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

    from qmpballoon.cluster.bus import Bus
    from qmpballoon.cluster.documents import (
        HostState,
        HostVms,
        JobProgress,
        Room,
        VmSummary,
    )

__all__ = [
    "ClusterView",
    "HostReport",
    "HostView",
    "JobPlan",
    "JobReport",
    "PolicyChange",
    "RoomLevel",
    "apply_policy",
    "end_job",
    "find_job",
    "find_room",
    "follow_job",
    "format_policy",
    "look",
    "plan_job",
    "prepare_policy",
    "start_job",
]

RoomLevel = Literal["now", "after-cold", "to-floors", "none"]
"""What has to be done on a host for a new VM:

* ``now``: nothing.
* ``after-cold``: its guests have to give their idle and cold memory.
* ``to-floors``: its guests have to shrink, some to their floors.
* ``none``: there is no room.
"""

LATE: Final = 5.0
"""Seconds after which a host without a new state counts as silent."""

_T = TypeVar("_T")
_Said = TypeVar("_Said", "HostState", "HostVms")

_CHUNK: Final = 256
"""Values that are asked for at once. The states of 50 VMs are 8 KiB. So an answer has 2
MiB, and the server can serve others between two of them."""
_DAY: Final = 86400.0  # seconds
_PAUSE: Final = 16  # hosts that are parsed without a pause, each in 0.1 to 1 ms
_POLL: Final = 0.5  # seconds between two looks at a job
# Seconds after a job's deadline: its hosts report its end with their next exchange.
_GRACE: Final = 5.0
_AGAIN: Final = 5.0  # seconds after which hosts that did not begin are asked again
# Seconds in which hosts hear that a job is to end. Until then no other one begins.
_ENDING: Final = 5.0


@frozen
class HostView:
    """A host of a cluster, by its last state.

    Attributes:
        name: Its name.
        state: Its state; ``None`` if that is malformed.
        vms: Its VMs, if they were asked for.
        age: Seconds since it published the state, if its clock and ours agree.
        problem: What is wrong with what it has published; empty if nothing is.
    """

    name: str
    state: HostState | None
    vms: tuple[VmSummary, ...] = ()
    age: float | None = None
    problem: str = ""

    @property
    def condition(self) -> Literal["healthy", "silent", "malformed"]:
        """Whether its state is fresh, is old, or cannot be read."""
        if self.state is None:
            return "malformed"
        return "silent" if self.age is None or self.age > LATE else "healthy"

    def list_notes(self) -> list[str]:
        """Return what is not as it should be, for people, one line each."""
        state = self.state
        notes = [self.problem] if self.problem else []
        if state is None:
            return notes
        if state.unknown_vms:
            notes.append(f"{state.unknown_vms} of its VMs do not say how they are")
        if state.progress and state.progress.detail:
            notes.append(f"job {state.progress.job}: {state.progress.detail}")
        return [*notes, *state.notes]

    def to_json(self) -> dict[str, object]:
        """Return it as the command prints it: bytes and seconds."""
        state = self.state
        return {
            "name": self.name,
            "state": self.condition,
            "age": self.age,
            "detail": self.problem,
            "policy_rev": state and state.policy_revision,
            "host": state
            and {
                "total": state.total,
                "available": state.available,
                "reserve": state.reserve,
            },
            "room": state and asdict(state.room),
            "offer": state and asdict(state.offer),
            "job": state and state.progress and asdict(state.progress),
            "notes": list(state.notes) if state else [],
            "unknown_vms": state and state.unknown_vms,
            "vms": [asdict(vm, recurse=False) for vm in self.vms],
        }


@frozen
class ClusterView:
    """All hosts of a cluster that have published a state recently.

    Attributes:
        hosts: The hosts, sorted by name.
        policy: The policy on the server; ``None`` if there is none, or a malformed one.
        job: The last job on the server; ``None`` likewise.
        notes: What is wrong with either, for people.
    """

    hosts: tuple[HostView, ...]
    policy: Policy | None = None
    job: Job | None = None
    notes: tuple[str, ...] = ()

    def describe(self) -> list[str]:
        """Return sentences on what all hosts have together, and on the policy."""
        if not self.hosts:
            return [self._describe_policy()]
        states = [host.state for host in self.hosts if host.state]
        available, total = (
            format_size(sum(getattr(state, name) for state in states))
            for name in ("available", "total")
        )
        offers = [state.offer for state in states]
        idle, cold, hot = (
            format_size(sum(getattr(offer, kind) for offer in offers))
            for kind in ("idle", "cold", "hot")
        )
        count = sum(state.vms for state in states)
        vms = "1 VM" if count == 1 else f"{count} VMs"
        kinds = f"{idle} that is idle, {cold} of cold cache and {hot} of cache in use"
        return [
            f"They have {available} available of {total}, with {vms}",
            f"Their guests can give {kinds}",
            self._describe_policy(),
        ]

    def _describe_policy(self) -> str:
        policy = self.policy
        if policy is None:
            return "The server has no policy"
        comment = f" ({policy.comment})" if policy.comment else ""
        return f"The policy is revision {policy.revision}{comment}"

    def report_job(self) -> JobReport | None:
        """Return the progress of the last job; ``None`` if the server has none."""
        if self.job is None:
            return None
        progress = {host.name: host.state.progress for host in self.hosts if host.state}
        return _make_report(self.job, progress)

    def to_json(self) -> dict[str, object]:
        """Return it as the command prints it: bytes and seconds."""
        return {
            "hosts": [host.to_json() for host in self.hosts],
            "policy": self.policy and asdict(self.policy),
            "job": self.job and asdict(self.job),
            "notes": list(self.notes),
        }


# Looking


async def look(bus: Bus, now: float, *, with_vms: bool = True) -> ClusterView:
    """Return the states of all hosts.

    Args:
        bus: The server.
        now: Seconds since 1970.
        with_vms: Whether to read the states of their VMs, too.

    Raises:
        BusError: The server cannot be asked.

    Note:
        It can be cancelled at any moment.
    """
    keys = await bus.list_keys(HOSTS_PREFIX)
    names = sorted(name for key in keys if (name := find_host(key)) is not None)
    wanted = [make_state_key(name) for name in names]
    if with_vms:
        wanted += [make_vms_key(name) for name in names]
    values = await _get_all(bus, [POLICY_KEY, JOB_KEY, *wanted])
    notes: list[str] = []
    policy = _parse_or_note(values.get(POLICY_KEY), parse_policy, notes)
    job = _parse_or_note(values.get(JOB_KEY), parse_job, notes)
    hosts: list[HostView | None] = []
    for number, name in enumerate(names):
        hosts.append(_view_host(name, values, now))
        if number % _PAUSE == 0:  # let other tasks run
            await trio.lowlevel.checkpoint()
    return ClusterView(
        hosts=tuple(host for host in hosts if host is not None),
        policy=policy,
        job=job,
        notes=tuple(notes),
    )


async def _get_all(bus: Bus, keys: Collection[str]) -> dict[str, bytes]:
    """Return many values, asked for in chunks so that others are served in between."""
    listed, values = list(keys), dict[str, bytes]()
    for begin in range(0, len(listed), _CHUNK):
        values |= await bus.get(listed[begin : begin + _CHUNK])
    return values


def _parse_or_note(
    data: bytes | None, parse: Callable[[bytes], _T], notes: list[str]
) -> _T | None:
    try:
        return None if data is None else parse(data)
    except Malformed as error:
        notes.append(str(error))
        return None


def _view_host(name: str, values: Mapping[str, bytes], now: float) -> HostView | None:
    """Return a host by what it has published; ``None`` if that has vanished."""
    data = values.get(make_state_key(name))
    if data is None:
        return None
    try:
        state = _require_same(parse_state(data), name)
    except Malformed as error:
        return HostView(name, None, problem=str(error))
    problem, vms = "", tuple["VmSummary", ...]()
    try:
        data = values.get(make_vms_key(name))
        vms = () if data is None else _require_same(parse_vms(data), name).vms
    except Malformed as error:
        problem = str(error)
    age = now - state.at
    if age < -LATE:
        problem = problem or f"its clock is {-age:.0f} s ahead of this one"
    elif age > PRESENCE + LATE:  # what was said so long ago has vanished
        problem = problem or f"its clock is {age:.0f} s behind this one"
    if _has_impossible_revision(state, now):
        problem = f"its policy's revision, {state.policy_revision}, cannot be"
    return HostView(name, state, vms, max(0.0, age), problem)


def _require_same(said: _Said, name: str) -> _Said:
    if said.name != name:
        raise Malformed(f"it says that it is {said.name}")
    return said


def find_room(view: ClusterView, size: int) -> list[tuple[str, RoomLevel, Room]]:
    """Return where a new VM has room; the hosts that need least for it come first.

    Pure.

    Args:
        view: The hosts.
        size: Bytes.

    Returns:
        Each healthy host, what has to be done there, and its room. Of those that need
        the same, hosts with more room come first.
    """
    found: list[tuple[str, RoomLevel, Room]] = [
        (host.name, _choose_level(host.state.room, size), host.state.room)
        for host in view.hosts
        if host.state is not None and host.condition == "healthy"
    ]
    order = get_args(RoomLevel)
    return sorted(
        found,
        key=lambda each: (order.index(each[1]), -each[2].now, -each[2].to_floors),
    )


def _choose_level(room: Room, size: int) -> RoomLevel:
    if size <= room.now:
        return "now"
    if size <= room.after_cold:
        return "after-cold"
    return "to-floors" if size <= room.to_floors else "none"


# The policy


@frozen
class PolicyChange:
    """A policy that is about to be applied.

    Attributes:
        before: The policy on the server; ``None`` if there is none that can be read.
        after: The new policy.
        expected: The bytes that are on the server now.
    """

    before: Policy | None
    after: Policy
    expected: bytes | None = field(default=None, repr=False)

    def describe(self) -> list[str]:
        """Return the lines of a diff; none if nothing changes but the revision."""
        before = format_policy(self.before).splitlines() if self.before else []
        after = format_policy(self.after).splitlines()
        old = f"revision {self.before.revision}" if self.before else "no policy"
        new = f"revision {self.after.revision}"
        return list(difflib.unified_diff(before, after, old, new, lineterm=""))


def format_policy(policy: Policy) -> str:
    """Return a policy as TOML, as its file would be."""
    blocks: list[str] = []
    if policy.comment:
        blocks.append(f"comment = {_quote(policy.comment)}")
    for wish in policy.wishes:
        lines = ["[[wish]]", f"hosts = {_quote(wish.hosts)}"]
        if wish.reserve is not None:
            lines.append(f"reserve = {_quote(wish.reserve)}")
        if wish.floors:
            floors = sorted(wish.floors.items())
            pairs = ", ".join(f"{_quote(vm)} = {_quote(size)}" for vm, size in floors)
            lines.append(f"floors = {{ {pairs} }}")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks) + "\n"


def _quote(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)  # a basic string of TOML's, too


async def prepare_policy(
    bus: Bus, table: Mapping[str, object], now: float
) -> PolicyChange:
    """Return what applying a policy would change. Nothing is changed.

    Its revision is above all that the server and the hosts know. So hosts follow it
    even if the server was emptied, or has fallen back to an older copy. Revisions that
    cannot exist are ignored: otherwise a host could use the revisions up.

    Args:
        bus: The server.
        table: The policy, as read from a TOML file.
        now: Seconds since 1970.

    Raises:
        BusError: The server cannot be asked.
        Malformed: The policy is malformed; the message says where.
    """
    parse_policy_fields(table, 1)  # before anything is asked
    view = await look(bus, now, with_vms=False)
    expected = (await bus.get([POLICY_KEY])).get(POLICY_KEY)
    notes: list[str] = []
    before = _parse_or_note(expected, parse_policy, notes)
    known = [
        host.state.policy_revision or 0
        for host in view.hosts
        if host.state and not _has_impossible_revision(host.state, now)
    ]
    revision = 1 + max([before.revision if before else 0, *known])
    return PolicyChange(before, parse_policy_fields(table, revision), expected)


def _has_impossible_revision(state: HostState, now: float) -> bool:
    """Tell whether a host claims a revision higher than there can be.

    There have been fewer policies than milliseconds since 1970. A day is added for
    clocks that differ.
    """
    return (state.policy_revision or 0) > (now + _DAY) * 1000


async def apply_policy(bus: Bus, change: PolicyChange) -> None:
    """Apply a policy, unless the server has another one meanwhile.

    Args:
        bus: The server.
        change: The change that was prepared, and shown to the operator.

    Raises:
        BusError: The server cannot be asked. The policy may have been applied or not.
        ClusterBusy: Somebody else has applied one meanwhile. Nothing was changed.
        Malformed: The policy is too large.
    """
    data = change.after.to_bytes()
    if not await bus.compare_and_set(POLICY_KEY, change.expected, data):
        raise ClusterBusy(
            "somebody else has applied a policy meanwhile: look at it, and apply yours"
            " again"
        )


# Jobs


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
    if found and goes_on and not (await _report(bus, found)).has_ended:
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
    report = JobReport(job, tuple(HostReport(*each) for each in _sort(job.quotas)))
    asked_at = -math.inf
    while not report.is_settled and clock() < job.until + _GRACE:
        problem = ""
        try:
            report = _merge(report, await _report(bus, job))
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
    report = _make_report(ended, {})
    while not report.has_ended and clock() < ended.until:
        await trio.sleep(_POLL)
        with suppress(BusError):  # it has ended, whether or not its hosts say so
            report = _merge(report, await _report(bus, ended))
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
    return _parse_or_note(data, parse_job, []), data


def _sort(quotas: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(quotas.items())


async def _ask_hosts(bus: Bus, job: Job, hosts: Iterable[str], now: float) -> None:
    quotas = {make_quota_key(host): job.make_quota(host).to_bytes() for host in hosts}
    if quotas and job.until > now:
        await bus.publish(quotas, expires=job.until - now)


async def _report(bus: Bus, job: Job) -> JobReport:
    """Return how far a job's hosts say that they are."""
    values = await _get_all(bus, [make_state_key(host) for host in job.quotas])
    views = {host: _view_host(host, values, 0.0) for host in job.quotas}
    progress = {
        host: view.state.progress
        for host, view in views.items()
        if view is not None and view.state is not None
    }
    return _make_report(job, progress)


def _make_report(job: Job, progress: Mapping[str, JobProgress | None]) -> JobReport:
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
            for host, quota in _sort(job.quotas)
        ),
    )


def _merge(before: JobReport, now: JobReport) -> JobReport:
    """Keep what a host has said that says nothing now."""
    return evolve(
        now,
        hosts=tuple(
            old if new.progress is None else new
            for old, new in zip(before.hosts, now.hosts, strict=True)
        ),
    )
