"""See a cluster: what its hosts have published, and what follows from that.

A host that says what cannot be is shown with what is wrong; it hides no other host.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, TypeVar, get_args

import trio
from attrs import asdict, frozen

from qmpballoon.cluster._fields import Malformed
from qmpballoon.cluster.bus import (
    HOSTS_PREFIX,
    JOB_KEY,
    POLICY_KEY,
    PRESENCE,
    find_host,
    make_state_key,
    make_vms_key,
)
from qmpballoon.cluster.documents import parse_job, parse_policy, parse_state, parse_vms
from qmpballoon.cluster.job_report import JobReport, make_report
from qmpballoon.sizes import format_size

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from qmpballoon.cluster.bus import Bus
    from qmpballoon.cluster.documents import (
        HostState,
        HostVms,
        Job,
        Policy,
        Room,
        VmSummary,
    )

__all__ = [
    "LATE",
    "ClusterView",
    "HostView",
    "RoomLevel",
    "find_room",
    "look",
    "look_at_job",
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
_PAUSE: Final = 16  # hosts that are parsed without a pause, each in 0.1 to 1 ms


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
        return make_report(self.job, progress)

    def to_json(self) -> dict[str, object]:
        """Return it as the command prints it: bytes and seconds."""
        return {
            "hosts": [host.to_json() for host in self.hosts],
            "policy": self.policy and asdict(self.policy),
            "job": self.job and asdict(self.job),
            "notes": list(self.notes),
        }


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


async def look_at_job(bus: Bus, job: Job) -> JobReport:
    """Return how far a job's hosts say that they are.

    Raises:
        BusError: The server cannot be asked.
    """
    values = await _get_all(bus, [make_state_key(host) for host in job.quotas])
    views = {host: _view_host(host, values, 0.0) for host in job.quotas}
    progress = {
        host: view.state.progress
        for host, view in views.items()
        if view is not None and view.state is not None
    }
    return make_report(job, progress)


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
    if state.has_impossible_revision(now):
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
