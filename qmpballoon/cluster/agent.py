"""What each host of a cluster does: publish its state, and follow wishes within limits.

An agent runs beside the control loop of a fleet, which does not wait for it. Once a
second it reads the policy and its host's part of a job from the server, and publishes
the host's state. If anything is wrong with the server, this becomes one line in the log
and in the agent's status; the fleet goes on with the last policy.

The policy is stored on the disk before the host follows it, and a job before it begins.
So a job runs at most once on a host, even if the agent is killed at any moment. Each
host ends its part of a job at the deadline on its own, even if whoever asked is gone.
"""

from __future__ import annotations

import logging
import math
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Protocol

import trio
from attrs import define, evolve, field, frozen

from qmpballoon._checks import LARGEST_SIZE, require_finite_seconds
from qmpballoon._printable import describe_bug, make_printable
from qmpballoon.cluster._fields import Malformed
from qmpballoon.cluster.bus import (
    POLICY_KEY,
    PRESENCE,
    make_quota_key,
    make_state_key,
    make_vms_key,
    require_host_name,
)
from qmpballoon.cluster.documents import (
    ENDED,
    HostState,
    HostVms,
    JobProgress,
    JobRecord,
    parse_policy,
    parse_quota,
    parse_record,
    parse_state,
)
from qmpballoon.cluster.room import compute_offer, compute_room
from qmpballoon.cluster.wishes import (
    Permits,
    judge_policy,
    make_limit,
    raise_reserve,
)
from qmpballoon.errors import QmpBalloonError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from qmpballoon.cluster.bus import Bus
    from qmpballoon.cluster.documents import JobPhase, Policy, Quota, VmSummary
    from qmpballoon.cluster.store import Store

    # Named so that the documentation does not take it for another Guest.
    from qmpballoon.fleet.guests import Guest as FleetGuest
    from qmpballoon.fleet.guests import Host
    from qmpballoon.fleet.policy import Rules
    from qmpballoon.fleet.vm_spec import Limit

__all__ = ["Agent", "AgentStatus", "LocalHost", "LocalView"]

_PERIOD: Final = 1.0  # seconds between two exchanges
# A host whose state is older than 5 seconds counts as silent, and an exchange may take
# a while.
_LONGEST_PERIOD: Final = 3.0
# Seconds for one exchange. A server that takes longer counts as away. Even then the
# host's last state is younger than PRESENCE.
_TIMEOUT: Final = 3.0
_LONGEST_SLEEP: Final = 10.0  # seconds until the clock is read again
_CLOCKS_DIFFER: Final = 60.0  # seconds at most, if the hosts' clocks are set at all
_LOOK_EVERY: Final = 10  # exchanges between two checks for another agent
_ANOTHER: Final = "another"
_POLICY: Final = "policy"
_JOBS: Final = "jobs"
_LOG: Final = logging.getLogger("qmpballoon.cluster")


@frozen
class LocalView:
    """A host and its guests at one moment.

    Attributes:
        host: Its memory.
        guests: The guests that can be moved, and those that are moving.
        vms: All its VMs.
        held: Bytes of its memory that the VMs hold.
        unknown_vms: How many VMs have no known state.
    """

    host: Host
    guests: Sequence[FleetGuest]
    vms: Sequence[VmSummary]
    held: int
    unknown_vms: int = 0


class LocalHost(Protocol):
    """What an agent needs from the host that it runs on."""

    def look(self) -> LocalView:
        """Return the host and its guests as they are now.

        Raises:
            OSError: Its memory cannot be read.
        """
        ...

    def follow(self, rules: Rules, limit: Limit) -> None:
        """Apply rules to the host, and limits to its VMs, from now on."""
        ...

    def keep_back(self, *, is_kept: bool) -> None:
        """Stop sharing the host's surplus out to guests, or begin again."""
        ...

    async def take(
        self, quota: Quota, rules: Rules, on_progress: Callable[[int], None]
    ) -> int:
        """Take what the host is asked for from its guests, and never more.

        If it is cancelled, the guests get their sizes back.

        Args:
            quota: What is asked for.
            rules: What the host keeps.
            on_progress: Called with the bytes taken so far.

        Returns:
            Bytes that the host has gained.
        """
        ...


@frozen
class AgentStatus:
    """The state of an agent.

    Attributes:
        host: Its host's name.
        is_connected: Whether the last exchange with the server succeeded.
        silent_for: Seconds since an exchange succeeded; ``None`` if none ever did.
        policy_revision: The revision of the policy that the host follows; ``None`` if
            it follows only its own rules.
        progress: The host's progress with the last job that it knows of.
        notes: What is not as it should be, for people, one line each.
    """

    host: str
    is_connected: bool
    silent_for: float | None
    policy_revision: int | None
    progress: JobProgress | None
    notes: tuple[str, ...]


async def _run_in_thread(call: Callable[..., Any], *args: object) -> Any:  # noqa: ANN401 - what it returns
    """Run a function that may wait for a disk. It always runs to its end."""
    return await trio.to_thread.run_sync(call, *args)  # not abandoned when cancelled


@define
class Agent:
    """What a host of a cluster does beside its control loop.

    Attributes:
        name: The host's name in the cluster.
        bus: The server.
        host: The host that it runs on.
        rules: The host's own rules, which were set when it was started.
        store: The files that it keeps on its disk.
        permits: What a policy may lower.
        period: Seconds between two exchanges with the server, above 0, and 3 at most.
        clock: Returns the seconds since 1970.
        run_blocking: Runs a function that waits for a disk.

    Raises:
        TypeError: The period is not a number.
        ValueError: The name is not one, or the period is out of range.
    """

    name: str
    bus: Bus = field(repr=False)
    host: LocalHost = field(repr=False)
    rules: Rules
    store: Store
    permits: Permits = field(factory=Permits)
    period: float = _PERIOD
    clock: Callable[[], float] = field(default=time.time, repr=False)
    run_blocking: Callable[..., Awaitable[Any]] = field(
        default=_run_in_thread, repr=False
    )
    _policy: Policy | None = None
    _record: JobRecord = field(factory=JobRecord)
    _progress: JobProgress | None = None
    _kept_rules: Rules = field(init=False)
    _is_followed: bool = False
    _asked_after: float = 0.0
    _asked_at: float = -math.inf  # when the job was asked for, if it began here
    _ends_at: float = math.inf  # the job's deadline on trio's clock, if it began here
    # What is done for the job now: taking, or waiting for the deadline.
    _work: trio.CancelScope = field(factory=trio.CancelScope)
    _exchanges: int = 0
    _said_at: float = math.inf  # when it last published its state; never so far
    _considered: bytes | None = None  # the policy that was judged last
    _is_connected: bool = False
    _heard_at: float | None = None
    _notes: dict[str, str] = field(factory=dict[str, str])

    def __attrs_post_init__(self) -> None:
        """Refuse a name or a period that cannot be."""
        require_host_name(self.name)
        if not 0 < require_finite_seconds(self.period, "period") <= _LONGEST_PERIOD:
            raise ValueError(
                f"period is {self.period}: it must be above 0, and {_LONGEST_PERIOD:g}"
                " seconds at most"
            )

    @property
    def status(self) -> AgentStatus:
        """The agent's state now."""
        heard = self._heard_at
        return AgentStatus(
            host=self.name,
            is_connected=self._is_connected,
            silent_for=None if heard is None else trio.current_time() - heard,
            policy_revision=self._policy.revision if self._policy else None,
            progress=self._progress,
            notes=tuple(self._notes.values()),
        )

    async def run(
        self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Do its work until cancelled. It raises nothing else.

        Args:
            task_status: Notified when the host follows the policy from its disk.

        Note:
            If it is cancelled while it takes memory for a job, that is given back.
        """
        await self._load()
        self._follow()
        task_status.started()
        async with trio.open_nursery() as nursery:
            self._resume(nursery)
            due = trio.current_time()
            while True:
                await self._exchange(nursery)
                # An exchange that took longer than a period is not made up for.
                due = max(due + self.period, trio.current_time())
                await trio.sleep_until(due)

    # Stored state

    async def _load(self) -> None:
        """Read the policy and the jobs from the disk."""
        self._kept_rules = self.rules
        self._policy = await self._load_one(_POLICY, parse_policy)
        self._record = await self._load_one(_JOBS, parse_record) or JobRecord()
        self._progress = self._record.last
        if _JOBS in self._notes:
            # Any earlier job may have begun here. Clocks may differ a little.
            self._asked_after = self.clock() + _CLOCKS_DIFFER

    async def _load_one(self, name: str, parse: Callable[[bytes], Any]) -> Any:  # noqa: ANN401 - what parse returns
        try:
            data = await self.run_blocking(self.store.read, name)
            return None if data is None else parse(data)
        except Exception as error:  # noqa: BLE001 - whatever a disk causes
            self._note(name, f"{_describe(error)}: it does not count")
            return None

    def _follow(self) -> None:
        """Apply the policy to the host."""
        self._is_followed = False
        try:
            self._apply()
        except Exception as error:  # noqa: BLE001 - a policy's fault ends no fleet
            self._note("followed", f"the policy is not followed: {_describe(error)}")
        else:
            self._note("followed", "")

    def _apply(self) -> None:
        limit = make_limit(self._policy, self.name, self.permits)
        self.host.follow(self._kept_rules, limit)
        view = self._look()
        if view is None:
            return
        self._kept_rules, note = raise_reserve(
            self.rules, self._policy, self.name, view.host.total, self.permits
        )
        self._note("reserve", note)
        self.host.follow(self._kept_rules, limit)
        self._is_followed = True

    def _look(self) -> LocalView | None:
        """Return the host as it is now; ``None`` if that fails."""
        try:
            view = self.host.look()
        except Exception as error:  # noqa: BLE001 - whatever figures can cause
            self._note("host", _describe(error))
            return None
        self._note("host", "")
        return view

    def _resume(self, nursery: trio.Nursery) -> None:
        """Go on with a job that was under way when the agent was stopped."""
        progress = self._progress
        if progress is None or progress.phase in ENDED:
            return
        if progress.phase == "holding":
            self.host.keep_back(is_kept=True)
            nursery.start_soon(self._hold)
            return
        why = "the agent was stopped meanwhile: the guests get back what was taken"
        self._progress = evolve(progress, phase="interrupted", detail=why)

    # The server

    async def _exchange(self, nursery: trio.Nursery) -> None:
        """Read what concerns this host, and publish its state."""
        quota_key, state_key = make_quota_key(self.name), make_state_key(self.name)
        keys = [POLICY_KEY, quota_key]
        if self._exchanges % _LOOK_EVERY == 0:
            keys.append(state_key)
        self._exchanges += 1
        try:
            with trio.fail_after(_TIMEOUT):
                found = await self.bus.get(keys)
                if state_key in keys:
                    self._look_for_another(found.get(state_key))
                await self._consider(found, quota_key, nursery)
                if values := self._describe_host():
                    await self.bus.publish(values, expires=PRESENCE)
        except trio.TooSlowError:
            self._miss(f"the server did not answer within {_TIMEOUT:g} s")
        except Exception as error:  # noqa: BLE001 - whatever a client's library raises
            self._miss(_describe(error))
        else:
            self._is_connected, self._heard_at = True, trio.current_time()
            self._note("server", "")

    def _look_for_another(self, data: bytes | None) -> None:
        """Note whether another agent publishes a state under this host's name.

        That is so if the state on the server is later than the last one from here. If
        the clocks of the two differ, only one of them notices.
        """
        with suppress(Malformed):
            if data is not None and parse_state(data).at > self._said_at:
                self._note(
                    _ANOTHER,
                    f"another agent says that it is {self.name}, too:"
                    " give each host a name of its own (--host)",
                )
                return
        self._note(_ANOTHER, "")

    def _miss(self, why: str) -> None:
        self._is_connected = False
        revision = self._policy and self._policy.revision
        by = f"revision {revision} of the policy" if revision else "its own rules"
        self._note("server", f"{why}; the host goes on by {by}")

    async def _consider(
        self, found: dict[str, bytes], quota_key: str, nursery: trio.Nursery
    ) -> None:
        # Writing to the disk is not interrupted by the deadline of the exchange.
        with trio.CancelScope(shield=True):
            await self._consider_policy(found.get(POLICY_KEY))
            if quota_key in found:
                await self._consider_quota(found[quota_key], nursery)

    async def _consider_policy(self, data: bytes | None) -> None:
        if data is not None and data == self._considered:
            return  # reading a large one each second would delay the fleet
        judged = judge_policy(self._policy, data)
        self._note("judged", judged.note)
        if judged.policy is None or judged.policy == self._policy:
            self._considered = data
            return
        try:
            await self.run_blocking(self.store.write, _POLICY, judged.policy.to_bytes())
        except Exception as error:  # noqa: BLE001 - whatever a disk causes
            # If it is not on the disk, a restart would go back to an older one.
            why = f"it cannot be kept, so it does not count: {_describe(error)}"
            self._note(_POLICY, why)
            return
        self._note(_POLICY, "")
        self._policy, self._considered = judged.policy, data
        _LOG.info("revision %d of the policy counts now", judged.policy.revision)
        self._follow()

    def _describe_host(self) -> dict[str, bytes]:
        if not self._is_followed:
            self._follow()
        view, rules = self._look(), self._kept_rules
        if view is None:
            return {}
        self._said_at = self.clock()
        state = HostState(
            name=self.name,
            at=self._said_at,
            total=view.host.total,
            available=max(view.host.available, -LARGEST_SIZE),
            reserve=rules.reserve,
            room=compute_room(view.host, rules, view.guests, view.vms, view.held),
            offer=compute_offer(view.guests, view.host.total),
            vms=len(view.vms),
            unknown_vms=view.unknown_vms,
            policy_revision=self._policy.revision if self._policy else None,
            progress=self._progress,
            notes=tuple(note for name, note in self._notes.items() if name != "server"),
        )
        vms = HostVms(self.name, tuple(view.vms))
        return {
            make_state_key(self.name): state.to_bytes(),
            make_vms_key(self.name): vms.to_bytes(),
        }

    # Jobs

    async def _consider_quota(self, data: bytes, nursery: trio.Nursery) -> None:
        """Begin this host's part of a job, unless it was begun before."""
        try:
            quota = parse_quota(data)
        except Malformed as error:
            self._note("quota", f"{error}: the host gives nothing for it")
            return
        self._note("quota", "")
        progress, now = self._progress, self.clock()
        until = min(quota.until, now + quota.seconds)
        goes_on = progress is not None and progress.phase not in ENDED
        if progress and progress.job == quota.job:
            if goes_on and quota.until < progress.until:
                self._shorten(progress, until)
            return
        if quota.job in self._record.known:
            return
        if goes_on:
            if progress and quota.asked_at > self._asked_at and until > now:
                # The server has one job at a time: it has lost the present one, or
                # that was ended and this host has not heard of it.
                self._shorten(progress, now)
            return
        progress = JobProgress(quota.job, quota.amount, 0, "taking", until)
        if why := self._find_objection(quota, until, now):
            self._refuse(progress, why)
            return
        try:
            await self._keep(self._record.begin(progress, now))
        except Exception as error:  # noqa: BLE001 - whatever a disk causes
            why = f"it cannot be kept that it began: {_describe(error)}"
            self._refuse(progress, why)
            return
        self._note(_JOBS, "")
        self._progress = progress
        self._ends_at = trio.current_time() + until - now
        self._asked_at = quota.asked_at
        nursery.start_soon(self._carry_out, quota)

    def _shorten(self, progress: JobProgress, until: float) -> None:
        """Have the present job end earlier than it was to.

        This is not kept: as long as it matters, the server has it.
        """
        _LOG.info("job %s: it ends earlier", progress.job)
        self._progress = evolve(progress, until=until)
        sooner = trio.current_time() + until - self.clock()
        self._ends_at = min(self._ends_at, sooner)
        self._work.deadline = min(self._work.deadline, self._ends_at)

    def _find_objection(self, quota: Quota, until: float, now: float) -> str:
        """Say why a job is not begun; empty if it is."""
        if until <= now:
            return "its deadline has passed, by this host's clock"
        if quota.asked_at < self._asked_after:
            return "it is not known any more which jobs have begun"
        return self._notes.get(_ANOTHER, "")

    def _refuse(self, progress: JobProgress, why: str) -> None:
        self._progress = evolve(progress, phase="refused", detail=make_printable(why))
        _LOG.warning("job %s is refused: %s", progress.job, why)

    async def _keep(self, record: JobRecord) -> None:
        """Store a record of jobs on the disk, and use it from then on.

        Raises:
            OSError: It cannot be stored.
        """
        await self.run_blocking(self.store.write, _JOBS, record.to_bytes())
        self._record = record

    async def _carry_out(self, quota: Quota) -> None:
        """Do this host's part of a job, until its deadline at the latest."""
        _LOG.info("job %s: take %d bytes", quota.job, quota.amount)
        self.host.keep_back(is_kept=True)
        taken = None
        why = "its deadline came: the guests get back what was taken"
        try:
            with trio.move_on_after(self._count_left()) as self._work:
                taken = await self.host.take(quota, self._kept_rules, self._note_taken)
        except Exception as error:  # noqa: BLE001 - whatever taking can cause
            why = _describe(error)
        if taken is None:
            await self._enter("interrupted", why)
            self.host.keep_back(is_kept=False)
            return
        self._note_taken(taken)
        await self._enter("holding" if quota.hold else "done")
        if quota.hold:
            await self._hold()
        self.host.keep_back(is_kept=False)

    async def _hold(self) -> None:
        """Keep what was taken until the deadline."""
        # The clock may be set meanwhile, most likely after the machine's start.
        while (left := self._count_left()) > 0:
            with trio.move_on_after(min(left, _LONGEST_SLEEP)) as self._work:
                await trio.sleep_forever()
        await self._enter("done")
        self.host.keep_back(is_kept=False)

    def _count_left(self) -> float:
        """Return the seconds until the present job's deadline.

        The host's clock may be set back. So the time that has passed since the job
        began counts as well, and the earlier of the two ends it.
        """
        until = self._progress.until if self._progress else 0.0
        left = min(until - self.clock(), self._ends_at - trio.current_time())
        return max(0.0, left)

    def _note_taken(self, taken: int) -> None:
        if self._progress is not None:
            self._progress = evolve(self._progress, taken=taken)

    async def _enter(self, phase: JobPhase, detail: str = "") -> None:
        """Note the phase that the present job has entered.

        It is stored before it is published. So no other job begins before it is stored.
        """
        if self._progress is None:
            return
        progress = evolve(self._progress, phase=phase, detail=detail)
        _LOG.info("job %s: %s %s", progress.job, phase, detail)
        try:
            await self._keep(evolve(self._record, last=progress))
        except Exception as error:  # noqa: BLE001 - whatever a disk causes
            # It is not begun again: that it began has been kept.
            self._note(_JOBS, f"how far it is cannot be kept: {_describe(error)}")
        self._progress = progress

    # Notes

    def _note(self, about: str, text: str) -> None:
        """Note what is not as it should be; with an empty text, it is again."""
        text = make_printable(text)
        if text and self._notes.get(about) != text:
            _LOG.warning("%s: %s", about, text)
        if text:
            self._notes[about] = text
        elif self._notes.pop(about, None) and about == "server":
            _LOG.info("the server answers again")


def _describe(error: Exception) -> str:
    """Say in a line what a call has raised."""
    if isinstance(error, QmpBalloonError | OSError | Malformed):
        return make_printable(str(error))
    return describe_bug(error)
