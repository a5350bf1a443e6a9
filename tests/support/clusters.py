"""Simulated hosts on a bus in memory: the agents are real, their guests are figures."""

from __future__ import annotations

from collections import deque
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

import trio
from attrs import define, evolve, field

from qmpballoon.cluster.agent import Agent, LocalView
from qmpballoon.cluster.bus import POLICY_KEY, make_quota_key
from qmpballoon.cluster.documents import JobProgress, VmSummary
from qmpballoon.cluster.jobs import (
    end_job,
    find_job,
    follow_job,
    plan_job,
    start_job,
)
from qmpballoon.cluster.memory import MemoryServer
from qmpballoon.cluster.policy_change import apply_policy, prepare_policy
from qmpballoon.cluster.room import SMALLEST_GIFT
from qmpballoon.cluster.view import look
from qmpballoon.errors import BusError, ClusterBusy
from qmpballoon.fleet.guests import Guest, Host
from qmpballoon.fleet.policy import Rules, take
from qmpballoon.fleet.vm_spec import Bounds
from qmpballoon.sizes import GiB, MiB

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from qmpballoon.cluster.documents import Job, Quota
    from qmpballoon.cluster.memory import MemoryBus
    from qmpballoon.fleet.vm_spec import Limit

__all__ = [
    "EPOCH",
    "OWN",
    "Cluster",
    "Member",
    "MemoryStore",
    "SimulatedHost",
    "make_agent",
    "make_guest",
    "now",
    "open_cluster",
    "phases_of",
    "run_at_once",
]

EPOCH = 1_750_000_000.0  # what the time is when trio's clock shows 0
OWN: Final = Rules.for_host(64 * GiB)
"""The rules of a member's host that follows no policy."""
_HEALED_WITHIN: Final = 15.0  # seconds


def now() -> float:
    """Return the seconds since 1970 in the simulated world."""
    return EPOCH + trio.current_time()


async def run_at_once(call: Callable[..., Any], *args: object) -> Any:  # noqa: ANN401 - what it returns
    """Run what waits for no real disk."""
    await trio.lowlevel.checkpoint()
    return call(*args)


def make_guest(
    name: str,
    total: int = 4 * GiB,
    **figures: Any,  # noqa: ANN401 - a guest's
) -> Guest:
    """Return a guest that has all its RAM, and half of that available."""
    return evolve(
        Guest(
            name=name,
            actual=total,
            total=total,
            available=total // 2,
            headroom=128 * MiB,
            floor=total // 8,
            ceiling=total,
            free=total // 8,
        ),
        **figures,
    )


@define
class MemoryStore:
    """What a host keeps, in memory; a ``Store`` that can fail.

    Attributes:
        files: What is kept.
        is_full: Whether nothing can be written.
        written: How often something was written.
    """

    files: dict[str, bytes] = field(factory=dict[str, bytes])
    is_full: bool = False
    written: int = 0

    def toggle(self) -> None:
        self.is_full = not self.is_full

    def read(self, name: str) -> bytes | None:
        return self.files.get(name)

    def write(self, name: str, data: bytes) -> None:
        if self.is_full:
            raise OSError(28, "No space left on device")
        self.written += 1
        self.files[name] = data


@define(slots=False)  # so that tests can have one of its methods fail
class SimulatedHost:
    """A host whose guests are figures, and give what they are asked for in time.

    Attributes:
        guests: The guests, by name.
        total: Bytes of its memory.
        pace: Bytes that a guest gives in a second.
        rules: What it keeps now.
        is_kept_back: Whether it shares nothing out.
        takings: The jobs that were begun, with what was taken for each.
        most: The most that was ever taken for a job.
        returned: Bytes that guests got back.
        limit: Changes the limits of VMs.
    """

    guests: dict[str, Guest]
    total: int = 64 * GiB
    pace: int = 512 * MiB
    rules: Rules = OWN
    is_kept_back: bool = False
    takings: list[tuple[str, int]] = field(factory=list[tuple[str, int]])
    returned: int = 0
    floors: dict[str, int] = field(factory=dict[str, int])
    limit: Limit = lambda _, __, own: own

    @property
    def held(self) -> int:
        return sum(guest.actual for guest in self.guests.values())

    def look(self) -> LocalView:
        vms = [
            VmSummary(
                name=guest.name,
                state="healthy",
                actual=guest.actual,
                total=guest.total,
                available=guest.available,
                resident=guest.actual,
            )
            for guest in self.guests.values()
        ]
        host = Host(total=self.total, available=self.total - self.held)
        return LocalView(host, list(self.guests.values()), vms, self.held)

    def follow(self, rules: Rules, limit: Limit) -> None:
        self.rules, self.limit = rules, limit
        for name, guest in self.guests.items():
            own = self.floors.setdefault(name, guest.floor)
            bounds = Bounds(own, guest.ceiling, guest.headroom)
            floor = limit(name, guest.total, bounds).floor
            self.guests[name] = evolve(guest, floor=floor)

    def keep_back(self, *, is_kept: bool) -> None:
        self.is_kept_back = is_kept

    async def take(
        self, quota: Quota, rules: Rules, on_progress: Callable[[int], None]
    ) -> int:
        number = len(self.takings)
        self.takings.append((quota.job, 0))
        exact = evolve(rules, dead_band=SMALLEST_GIFT)
        given: dict[str, int] = {}
        try:
            while (left := quota.amount - sum(given.values())) > 0:
                plan = take(
                    min(left, self.pace * len(self.guests)),
                    self.guests.values(),
                    exact,
                    takes_hot=quota.takes_hot,
                )
                if not plan.moves:
                    break
                for move in plan.moves:
                    given[move.name] = given.get(move.name, 0) - move.change
                    self.shrink(move.name, -move.change)
                on_progress(sum(given.values()))
                self.takings[number] = (quota.job, sum(given.values()))
                await trio.sleep(1)
            taken, kept = sum(given.values()), quota.hold
        except trio.Cancelled:
            kept = False
            raise
        finally:
            if not kept:
                for name, size in given.items():
                    self.shrink(name, -size)
                    self.returned += size
        return taken

    def shrink(self, name: str, size: int) -> None:
        """Have a guest give some of what it has available; or get it, if below 0."""
        guest = self.guests[name]
        self.guests[name] = evolve(
            guest,
            actual=guest.actual - size,
            available=guest.available - size,
            free=max(0, guest.free - size),
        )


def make_agent(
    server: MemoryServer,
    name: str,
    host: SimulatedHost,
    store: MemoryStore,
    **options: Any,  # noqa: ANN401 - an agent's
) -> Agent:
    """Return the agent of a simulated host."""
    return Agent(
        name=name,
        bus=server.connect(name),
        host=host,
        rules=Rules.for_host(host.total),
        store=store,  # type: ignore[arg-type]
        clock=now,
        run_blocking=run_at_once,
        **options,
    )


def _make_host() -> SimulatedHost:
    guests = [make_guest(f"vm{number}") for number in range(3)]
    return SimulatedHost({guest.name: guest for guest in guests})


@define
class Member:
    """A host of the cluster, whose agent can be killed."""

    server: MemoryServer
    name: str
    host: SimulatedHost = field(factory=_make_host)
    store: MemoryStore = field(factory=MemoryStore)
    agent: Agent = field(init=False)
    scope: trio.CancelScope = field(factory=trio.CancelScope)
    ended: trio.Event = field(factory=trio.Event)
    revision: int = 0
    # How far it was with its job in the last two seconds.
    recent: deque[JobProgress | None] = field(factory=lambda: deque(maxlen=5))

    async def run(
        self,
        clock: Callable[[], float] = now,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        self.scope, self.ended = scope, ended = trio.CancelScope(), trio.Event()
        with scope:
            # A process that begins knows nothing but what is on its disk.
            self.host.follow(OWN, lambda _, __, own: own)
            self.host.is_kept_back = False
            self.agent = make_agent(self.server, self.name, self.host, self.store)
            self.agent.clock = clock
            await self.agent.run(task_status)
        assert scope.cancel_called
        ended.set()

    def check(self, quotas: dict[str, int]) -> None:
        """Check what holds at any moment."""
        self.recent.append(self.agent.status.progress)
        revision = self.agent.status.policy_revision or 0
        assert revision >= self.revision
        self.revision = revision
        assert self.host.rules.reserve >= OWN.reserve
        jobs = [job for job, _ in self.host.takings]
        assert len(jobs) == len(set(jobs))
        for job, taken in self.host.takings:
            assert taken <= quotas[job]
        for name, guest in self.host.guests.items():
            assert guest.floor >= self.host.floors[name]
            assert guest.actual >= guest.floor


@define
class Cluster:
    """Two hosts, a server, and somebody who asks."""

    nursery: trio.Nursery
    server: MemoryServer = field(factory=MemoryServer)
    members: dict[str, Member] = field(factory=dict[str, Member])
    copy: dict[str, tuple[bytes, float]] = field(factory=dict)
    quotas: dict[str, dict[str, int]] = field(factory=dict[str, dict[str, int]])
    asking: trio.CancelScope = field(factory=trio.CancelScope)

    async def start(self, name: str) -> Member:
        member = self.members.setdefault(name, Member(self.server, name))
        await self.nursery.start(member.run)
        return member

    async def begin(
        self, bus: MemoryBus, amount: int, *, hold: bool = False, seconds: float = 600
    ) -> Job:
        """Begin a job that is planned by what hosts say now."""
        job = await self.plan(bus, amount, hold=hold, seconds=seconds)
        await start_job(bus, job, now())
        return job

    async def plan(
        self, bus: MemoryBus, amount: int, *, hold: bool = False, seconds: float = 600
    ) -> Job:
        """Plan a job by what hosts say now, and allow them to take what is its."""
        view = await look(bus, now())
        job = plan_job(view, amount, now(), hold=hold, seconds=seconds).job
        self.quotas[job.id] = dict(job.quotas)
        return job

    def check(self) -> None:
        for name, member in self.members.items():
            quotas = {job: each.get(name, 0) for job, each in self.quotas.items()}
            member.check(quotas)

    async def wait(self, seconds: float) -> None:
        until = trio.current_time() + seconds
        while trio.current_time() < until:
            await trio.sleep(0.5)
            self.check()

    async def ask(self, tenths: int, action: str) -> None:
        """Ask for some tenths of a GiB, and be killed at any moment."""
        amount = MiB + tenths * GiB // 10
        bus = self.server.connect("operator")
        with trio.CancelScope() as self.asking:
            try:
                view = await look(bus, now())
                hold = action == "hold"
                plan = plan_job(view, amount, now(), hold=hold, seconds=20)
                if plan.job.quotas:
                    self.quotas[plan.job.id] = dict(plan.job.quotas)
                    await start_job(bus, plan.job, now())
                    await follow_job(bus, plan.job, now)
            except (BusError, ClusterBusy):
                return

    async def end(self) -> None:
        """End the job that goes on, if there is one."""
        bus = self.server.connect("operator")
        try:
            if job := await find_job(bus, now()):
                await end_job(bus, job, now)
        except (BusError, ClusterBusy):
            return

    async def apply(self, reserve: int) -> None:
        bus = self.server.connect("operator")
        wish = {"hosts": "*", "reserve": f"{reserve}GiB", "floors": {"vm1": "1GiB"}}
        try:
            await apply_policy(bus, await prepare_policy(bus, {"wish": [wish]}, now()))
        except (BusError, ClusterBusy):
            return

    async def do(self, action: str, value: int) -> None:
        name, server = f"h{value % 2}", self.server
        actions: dict[str, Callable[[], object]] = {
            "cut": lambda: server.cut_off.symmetric_difference_update({name}),
            "stop": lambda: setattr(server, "is_stopped", not server.is_stopped),
            "down": lambda: setattr(server, "is_down", not server.is_down),
            "empty": server.empty,
            "copy": lambda: setattr(self, "copy", server.copy()),
            "fall back": lambda: server.fall_back(self.copy),
            "garbage": lambda: server.put(
                [POLICY_KEY, make_quota_key(name)][value % 2], b"{"
            ),
            "kill asker": self.asking.cancel,
            "full": self.members[name].store.toggle,
            "late": lambda: setattr(server, "delay", value / 10),
            "policy": lambda: self.nursery.start_soon(self.apply, 4 + value),
            "take": lambda: self.nursery.start_soon(self.ask, value, action),
            "hold": lambda: self.nursery.start_soon(self.ask, value, action),
            "end": lambda: self.nursery.start_soon(self.end),
        }
        if action == "wait":
            await self.wait(value)
        elif action == "kill":
            await self.kill(value)
        else:
            actions[action]()
        await trio.sleep(0.1)
        self.check()

    async def kill(self, value: int) -> None:
        name = f"h{value % 2}"
        self.members[name].scope.cancel()
        await self.members[name].ended.wait()
        await self.start(name)

    async def heal(self) -> None:
        server = self.server
        server.cut_off.clear()
        server.is_stopped = server.is_down = False
        server.delay = 0.0
        for member in self.members.values():
            member.store.is_full = False
        await self.wait(_HEALED_WITHIN)


@asynccontextmanager
async def open_cluster(number: int = 2) -> AsyncGenerator[Cluster]:
    with trio.fail_after(36_000):
        async with trio.open_nursery() as nursery:
            cluster = Cluster(nursery)
            for index in range(number):
                await cluster.start(f"h{index}")
            await cluster.wait(2)
            yield cluster
            nursery.cancel_scope.cancel()


def phases_of(cluster: Cluster) -> list[str | None]:
    """Return how far each host is with its job, by what it knows itself."""
    status = [member.agent.status.progress for member in cluster.members.values()]
    return [None if each is None else each.phase for each in status]
