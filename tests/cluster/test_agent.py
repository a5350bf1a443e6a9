"""An agent follows wishes, does a job once, and bears whatever the server does.

Scripts of faults are drawn: links that go down and up, a server that is stopped, down,
emptied, or back at an older copy; agents that are killed, and disks that are full.
"""

from __future__ import annotations

import logging
from collections import deque
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import pytest
import trio
import trio.lowlevel
from attrs import define, evolve, field
from clusters import (
    MemoryStore,
    SimulatedHost,
    make_agent,
    make_guest,
    now,
    run_at_once,
)
from hypothesis import example, given, settings
from hypothesis import strategies as st
from worlds import simulated

from qmpballoon.cluster import (
    Agent,
    ClusterView,
    HostReport,
    HostState,
    Job,
    JobProgress,
    MemoryBus,
    MemoryServer,
    Quota,
    agent,
    apply_policy,
    end_job,
    find_job,
    follow_job,
    look,
    plan_job,
    prepare_policy,
    start_job,
)
from qmpballoon.cluster.bus import (
    LARGEST_VALUE,
    POLICY_KEY,
    make_quota_key,
    make_state_key,
)
from qmpballoon.cluster.documents import ENDED, Malformed, Policy, Wish
from qmpballoon.cluster.wishes import judge_policy
from qmpballoon.errors import BusError, ClusterBusy
from qmpballoon.fleet.policy import Rules
from qmpballoon.sizes import GiB, MiB, parse_size

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Sequence

    from qmpballoon.cluster.wishes import Judged

OWN: Final = Rules.for_host(64 * GiB)
MOST: Final = min(1000, settings().max_examples)  # as many take some minutes
HEALED_WITHIN: Final = 15.0  # seconds


def make_host() -> SimulatedHost:
    guests = [make_guest(f"vm{number}") for number in range(3)]
    return SimulatedHost({guest.name: guest for guest in guests})


@define
class Member:
    """A host of the cluster, whose agent can be killed."""

    server: MemoryServer
    name: str
    host: SimulatedHost = field(factory=make_host)
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
        view = await look(bus, now())
        job = plan_job(view, amount, now(), hold=hold, seconds=seconds).job
        self.quotas[job.id] = dict(job.quotas)
        await start_job(bus, job, now())
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
        await self.wait(HEALED_WITHIN)


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


ACTIONS = st.tuples(
    st.sampled_from(
        [
            *("wait", "wait", "cut", "stop", "down", "empty", "copy", "fall back"),
            *("garbage", "kill", "kill asker", "full", "late", "policy"),
            *("take", "take", "hold", "end"),
        ]
    ),
    st.integers(0, 15),
)


@settings(max_examples=MOST)
@example(actions=[("wait", 0), ("hold", 0), ("wait", 6), ("take", 0)])
@given(st.lists(ACTIONS, max_size=12))
@simulated
async def test_whatever_happens_nothing_is_taken_twice_and_the_view_heals(
    actions: list[tuple[str, int]],
) -> None:
    async with open_cluster() as cluster:
        for action, value in actions:
            await cluster.do(action, value)
        await cluster.heal()
        view = await look(cluster.server.connect("viewer"), now())
        assert {host.name for host in view.hosts} == {"h0", "h1"}
        for host in view.hosts:
            member = cluster.members[host.name]
            assert host.condition == "healthy"
            assert host.age is not None
            assert host.age <= 2
            assert host.state
            assert member.agent.status.is_connected
            assert host.state.policy_revision == (member.revision or None)
            # How far a job is changes between two looks at it: which job it is counts.
            said = host.state.progress
            assert (said and said.job) in {was and was.job for was in member.recent}
        # Past every deadline, everybody has all back, and each job has ended.
        await cluster.wait(30)
        for member in cluster.members.values():
            assert not member.host.is_kept_back
            progress = member.agent.status.progress
            assert progress is None or progress.phase in ENDED
            kept = sum(
                guest.total - guest.actual for guest in member.host.guests.values()
            )
            assert kept + member.host.returned == sum(
                taken for _, taken in member.host.takings
            )


@simulated
async def test_a_job_runs_once_though_the_server_falls_back_to_its_beginning() -> None:
    async with open_cluster(1) as cluster:
        bus = cluster.server.connect("operator")
        member = cluster.members["h0"]
        for amount in (GiB, 2 * GiB):
            job = await cluster.begin(bus, amount, seconds=300)
            copy = cluster.server.copy()
            if amount == GiB:
                first = copy
            report = await follow_job(bus, job, now)
            assert report.is_settled
        assert [taken for _, taken in member.host.takings] == [GiB, 2 * GiB]
        cluster.server.fall_back(first)
        await cluster.do("kill", 0)
        await cluster.wait(30)
        assert len(member.host.takings) == 2


@simulated
async def test_a_job_that_cannot_be_kept_is_not_begun() -> None:
    async with open_cluster(1) as cluster:
        bus, member = cluster.server.connect("operator"), cluster.members["h0"]
        member.store.is_full = True
        job = await cluster.begin(bus, GiB)
        report = await follow_job(bus, job, now)
        (host,) = report.hosts
        assert host.progress
        assert host.progress.phase == "refused"
        assert "No space left" in host.progress.detail
        assert member.host.takings == []
        # Likewise a policy: after a restart the host would be back at an older one.
        await cluster.apply(8)
        await cluster.wait(3)
        assert member.host.rules == OWN
        assert "No space left" in "".join(member.agent.status.notes)
        member.store.is_full = False
        await cluster.wait(3)
        assert member.host.rules.reserve == 8 * GiB
        assert member.agent.status.notes == ()


@simulated
async def test_a_record_that_is_damaged_does_not_let_a_job_run_twice() -> None:
    async with open_cluster(1) as cluster:
        bus, member = cluster.server.connect("operator"), cluster.members["h0"]
        job = await cluster.begin(bus, GiB)
        await follow_job(bus, job, now)
        member.store.files["jobs"] = b"damaged"
        await cluster.do("kill", 0)
        await cluster.wait(10)
        assert len(member.host.takings) == 1
        assert "damaged" in member.store.files["jobs"].decode()
        # What is asked for after that is begun.
        await cluster.wait(60)
        job = await cluster.begin(bus, GiB)
        await follow_job(bus, job, now)
        assert len(member.host.takings) == 2


@pytest.mark.parametrize("ahead", [-3600.0, 0.0, 3600.0])
def test_a_deadline_holds_whatever_the_clock_of_who_asks_says(ahead: float) -> None:
    @simulated
    async def test() -> None:
        async with open_cluster(1) as cluster:
            member = cluster.members["h0"]
            member.host.pace = MiB
            quota = Quota(
                job="0" * 8,
                amount=4 * GiB,
                takes_hot=False,
                hold=True,
                until=now() + 20 + ahead,
                seconds=20,
            )
            cluster.quotas[quota.job] = {"h0": quota.amount}
            cluster.server.put(make_quota_key("h0"), quota.to_bytes())
            await cluster.wait(25)
            progress = member.agent.status.progress
            assert progress
            if ahead < 0:
                assert progress.phase == "refused"
                assert "deadline has passed" in progress.detail
                assert not member.host.takings
            else:
                assert progress.phase == "interrupted"
                assert "deadline came" in progress.detail
                assert member.host.takings[0][1] == member.host.returned > 0
                assert progress.until <= now()

    test()


@simulated
async def test_a_hold_goes_on_after_a_restart_until_its_deadline() -> None:
    async with open_cluster(1) as cluster:
        bus, member = cluster.server.connect("operator"), cluster.members["h0"]
        job = await cluster.begin(bus, GiB, hold=True, seconds=60)
        await follow_job(bus, job, now)
        await cluster.do("kill", 0)
        assert member.host.is_kept_back
        assert member.agent.status.progress
        assert member.agent.status.progress.phase == "holding"
        await cluster.wait(60)
        assert not member.host.is_kept_back
        assert member.agent.status.progress.phase == "done"


@simulated
async def test_a_deadline_holds_though_the_hosts_clock_is_set() -> None:
    """Back by a day while it takes memory; on, after a start with a clock that lags."""
    async with open_cluster(1) as cluster:
        member, set_on = cluster.members["h0"], 0.0

        def clock() -> float:
            return now() + set_on

        async def hold(number: int) -> None:
            quota = Quota(
                job=f"{number:08}",
                amount=GiB,
                takes_hot=False,
                hold=True,
                until=clock() + 60,
                seconds=60,
            )
            cluster.quotas[quota.job] = {"h0": quota.amount}
            cluster.server.put(make_quota_key("h0"), quota.to_bytes())
            await cluster.wait(1)

        def phase() -> str | None:
            progress = member.agent.status.progress
            return progress.phase if progress else None

        member.agent.clock = clock
        member.host.pace = 100 * MiB
        await hold(1)
        assert phase() == "taking"
        set_on = -86400.0
        await cluster.wait(30)
        assert phase() == "holding"
        await cluster.wait(40)
        assert (phase(), member.host.is_kept_back) == ("done", False)

        member.host.pace = GiB
        await hold(2)
        await cluster.wait(5)
        member.scope.cancel()
        await member.ended.wait()
        set_on -= 86400.0
        await cluster.nursery.start(member.run, clock)
        await cluster.wait(100)
        assert (phase(), member.host.is_kept_back) == ("holding", True)
        set_on += 86400.0
        await cluster.wait(15)
        assert (phase(), member.host.is_kept_back) == ("done", False)


@simulated
async def test_a_job_that_comes_while_the_last_one_is_written_runs_once() -> None:
    """A slow disk must not have the older record replace the newer one."""
    async with open_cluster(1) as cluster:
        bus, member = cluster.server.connect("operator"), cluster.members["h0"]
        seconds = iter([0.0, 10.0])  # for what begins a job, and what ends it

        async def run_slowly(call: Callable[..., object], *args: object) -> object:
            await trio.sleep(next(seconds, 0.0))
            return call(*args)

        member.agent.run_blocking = run_slowly
        for amount in (GiB, 2 * GiB):
            plan = plan_job(await look(bus, now()), amount, now(), seconds=300)
            cluster.quotas[plan.job.id] = dict(plan.job.quotas)
            quota = plan.job.make_quota("h0")
            cluster.server.put(make_quota_key("h0"), quota.to_bytes())
            await cluster.wait(6)
        await cluster.wait(30)
        await cluster.do("kill", 0)
        await cluster.wait(30)
        assert [taken for _, taken in member.host.takings] == [GiB, 2 * GiB]


@simulated
async def test_a_policy_that_cannot_be_followed_is_a_note() -> None:
    async with open_cluster(1) as cluster:
        member = cluster.members["h0"]

        def fail(*_: object) -> None:
            raise ValueError("a bug")

        member.host.follow = fail  # type: ignore[assignment,method-assign]
        await cluster.apply(8)
        await cluster.wait(3)
        (host,) = (await look(cluster.server.connect("viewer"), now())).hosts
        assert host.condition == "healthy"
        assert host.state
        assert "a bug" in host.state.notes[0]
        del member.host.follow
        await cluster.wait(3)
        assert member.host.rules.reserve == 8 * GiB
        assert member.agent.status.notes == ()


@simulated
async def test_vms_that_hold_more_than_can_be_do_not_hide_their_host() -> None:
    async with open_cluster(1) as cluster:
        huge = [make_guest(f"vm{number}", 1 << 62) for number in range(4)]
        cluster.members["h0"].host.guests = {guest.name: guest for guest in huge}
        await trio.sleep(2)
        (host,) = (await look(cluster.server.connect("viewer"), now())).hosts
        assert host.state
        assert host.state.available < 0


@simulated
async def test_two_hosts_of_one_name_say_so_and_do_no_part_twice() -> None:
    async with open_cluster(1) as cluster:
        bus, member = cluster.server.connect("operator"), cluster.members["h0"]
        # A second machine that was cloned from the first.
        double = Member(cluster.server, "h0")
        await trio.sleep(0.5)
        await cluster.nursery.start(double.run)
        await cluster.wait(25)
        words = "another agent says that it is h0, too"
        agents = [member.agent, double.agent]
        assert [words in "".join(agent.status.notes) for agent in agents] == [True] * 2
        job = await cluster.begin(bus, GiB)
        (host,) = (await follow_job(bus, job, now)).hosts
        assert host.progress
        assert words in host.progress.detail
        double.scope.cancel()
        await cluster.wait(25)
        assert member.agent.status.notes == ()


@simulated
async def test_a_policy_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading a large one each second would delay the fleet of the host."""
    read: list[bytes] = []

    def judge(known: Policy | None, data: bytes | None) -> Judged:
        read.extend([data] if data else [])
        return judge_policy(known, data)

    monkeypatch.setattr(agent, "judge_policy", judge)
    async with open_cluster(1) as cluster:
        for data in (Policy(2).to_bytes(), Policy(1).to_bytes(), b"{", b"{"):
            cluster.server.put(POLICY_KEY, data)
            await cluster.wait(5)
        assert read == [Policy(2).to_bytes(), Policy(1).to_bytes(), b"{"]
        (note,) = cluster.members["h0"].agent.status.notes
        assert "revision 2 goes on" in note


@simulated
async def test_whatever_a_clients_library_raises_is_a_note() -> None:
    class Broken:
        def __init__(self) -> None:
            self.errors = [
                KeyError("a bug"),
                ExceptionGroup("several", [ValueError("one")]),
                OSError(101, "Network is unreachable"),
                RecursionError(),
            ]

        async def get(self, _: object, /) -> dict[str, bytes]:
            await trio.lowlevel.checkpoint()
            raise self.errors[0]

    broken = Broken()
    member = Member(MemoryServer(), "h")
    agent = Agent(
        name="h",
        bus=broken,  # type: ignore[arg-type]
        host=member.host,
        rules=OWN,
        store=member.store,  # type: ignore[arg-type]
        clock=now,
        run_blocking=run_at_once,
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(agent.run)
        while broken.errors:
            await trio.sleep(1)
            error = broken.errors.pop(0)
            (note,) = agent.status.notes
            assert "goes on by its own rules" in note
            assert note.isprintable()
            assert not agent.status.is_connected
            assert agent.status.silent_for is None
            assert str(error) in note or type(error).__name__ in note
            if not broken.errors:
                nursery.cancel_scope.cancel()
                break


@simulated
async def test_a_host_that_cannot_be_read_says_so_and_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "qmpballoon.cluster")
    async with open_cluster(1) as cluster:
        member = cluster.members["h0"]
        plain = member.host.look

        def fail() -> object:
            raise OSError(24, "Too many open files")

        member.host.look = fail  # type: ignore[assignment,method-assign]
        await trio.sleep(5)
        assert "Too many open files" in caplog.text
        assert caplog.text.count("Too many") == 1
        assert "Too many open files" in member.agent.status.notes[0]
        await cluster.apply(9)
        await trio.sleep(2)
        member.host.look = plain  # type: ignore[method-assign]
        await cluster.wait(2)
        assert member.agent.status.notes == ()
        assert member.host.rules.reserve == 9 * GiB
        assert "server answers again" not in caplog.text  # it always did


@simulated
async def test_another_agent_of_the_same_name_is_looked_for_now_and_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain = MemoryBus.get
    asked: list[Sequence[str]] = []

    async def get(self: MemoryBus, keys: Sequence[str], /) -> dict[str, bytes]:
        asked.append(keys)
        return await plain(self, keys)

    monkeypatch.setattr(MemoryBus, "get", get)
    async with open_cluster(1):
        await trio.sleep(100)
    own = sum(make_state_key("h0") in keys for keys in asked)
    assert 1 < own <= len(asked) // 10 + 1


@simulated
async def test_taking_that_fails_ends_the_job() -> None:
    async with open_cluster(1) as cluster:
        bus, member = cluster.server.connect("operator"), cluster.members["h0"]

        async def fail(*_: object) -> int:
            await trio.lowlevel.checkpoint()
            raise KeyError("a bug")

        member.host.take = fail  # type: ignore[assignment,method-assign]
        job = await cluster.begin(bus, GiB)
        (host,) = (await follow_job(bus, job, now)).hosts
        assert host.progress
        assert host.progress.phase == "interrupted"
        assert "KeyError" in host.progress.detail
        assert not member.host.is_kept_back


def test_names_and_periods_that_cannot_be() -> None:
    member = Member(MemoryServer(), "h")
    for name in ("", "a:b", "*"):
        with pytest.raises(ValueError, match="the host's name is"):
            make_agent(member.server, name, member.host, member.store)
    for period in (0, -1, 3.5):
        with pytest.raises(ValueError, match="period is"):
            make_agent(member.server, "h", member.host, member.store, period=period)


# Operators


@simulated
async def test_one_job_at_a_time_and_anybody_may_go_on_with_it() -> None:
    async with open_cluster(2) as cluster:
        bus = cluster.server.connect("operator")
        for member in cluster.members.values():
            member.host.pace = 16 * MiB
        view = await look(bus, now())
        plan, other = (plan_job(view, 4 * GiB, now(), seconds=300) for _ in range(2))
        assert plan.spread == other.spread
        cluster.quotas[plan.job.id] = dict(plan.job.quotas)
        # Who asks is killed when one host has heard of it and the other has not.
        cluster.server.cut_off = {"h1"}
        await start_job(bus, plan.job, now())
        del plan
        await cluster.wait(5)
        cluster.server.fall_back(
            {
                key: value
                for key, value in cluster.server.copy().items()
                if key != make_quota_key("h1")
            }
        )
        cluster.server.cut_off = set()
        await cluster.wait(5)
        with pytest.raises(ClusterBusy, match="goes on, for 4 GiB, and ends within"):
            await start_job(bus, other.job, now())
        job = await find_job(bus, now())
        assert job
        said: list[str] = []
        report = await follow_job(
            bus, job, now, on_progress=lambda _, problem: said.append(problem)
        )
        assert report.taken == 4 * GiB
        assert not any(said)
        assert [len(each.host.takings) for each in cluster.members.values()] == [1, 1]
        # A job that has ended is in nobody's way. One that is held is.
        held = plan_job(view, MiB, now(), hold=True, seconds=300)
        cluster.quotas[held.job.id] = dict(held.job.quotas)
        await start_job(bus, held.job, now())
        assert (await follow_job(bus, held.job, now)).taken == MiB
        with pytest.raises(ClusterBusy, match="goes on, for 1 MiB"):
            await start_job(bus, other.job, now())
        await cluster.wait(400)
        assert await find_job(bus, now()) is None
        cluster.quotas[other.job.id] = dict(other.job.quotas)
        await start_job(bus, other.job, now())


@simulated
async def test_what_a_host_is_asked_for_is_forgotten_at_the_jobs_deadline() -> None:
    async with open_cluster(1) as cluster:
        bus, key = cluster.server.connect("operator"), make_quota_key("h0")
        await cluster.begin(bus, GiB, seconds=60)
        assert key in await bus.get([key])
        await trio.sleep(61)
        assert await bus.get([key]) == {}


@pytest.mark.parametrize("seconds", [-1, 0, 7 * 86400 + 1])
def test_a_job_takes_some_time_and_a_week_at_most(seconds: float) -> None:
    with pytest.raises(ValueError, match="must be"):
        plan_job(ClusterView(()), GiB, 0.0, seconds=seconds)


@simulated
async def test_a_job_that_is_ended_gives_back_and_is_not_begun_late() -> None:
    async with open_cluster(4) as cluster:
        bus, server, members = (
            cluster.server.connect("operator"),
            cluster.server,
            cluster.members,
        )
        plan = plan_job(await look(bus, now()), 8 * GiB, now(), hold=True, seconds=900)
        cluster.quotas[plan.job.id] = dict(plan.job.quotas)
        members["h1"].host.pace = MiB  # it takes for longer than this lasts
        server.cut_off = {"h2"}
        await start_job(bus, plan.job, now())
        await cluster.wait(20)
        server.cut_off = {"h2", "h3"}
        assert phases_of(cluster) == ["holding", "taking", None, "holding"]
        report = await end_job(bus, plan.job, now)
        with pytest.raises(ClusterBusy, match="does not go on as it did"):
            await end_job(bus, plan.job, now)
        assert not report.has_ended
        assert phases_of(cluster) == ["done", "interrupted", None, "holding"]
        # Who was stopped meanwhile hears of it from the server.
        await cluster.kill(3)
        server.cut_off = set()
        await cluster.wait(3)
        assert phases_of(cluster) == ["done", "interrupted", "refused", "done"]
        assert not any(each.host.is_kept_back for each in members.values())
        other = plan_job(await look(bus, now()), GiB, now())
        cluster.quotas[other.job.id] = dict(other.job.quotas)
        await start_job(bus, other.job, now())
        assert (await follow_job(bus, other.job, now)).taken == GiB


@simulated
@pytest.mark.parametrize("failing", ["publish", "compare_and_set"])
async def test_a_job_whose_end_could_not_be_told_can_be_ended_later(
    failing: str,
) -> None:
    async with open_cluster(1) as cluster:
        bus = cluster.server.connect("operator")
        job = await cluster.begin(bus, GiB, hold=True, seconds=900)
        await follow_job(bus, job, now)

        async def fail(*_: object, **__: object) -> bool:
            await trio.lowlevel.checkpoint()
            raise BusError("the server is gone")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(MemoryBus, failing, fail)
            with pytest.raises(BusError, match="is gone"):
                await end_job(bus, job, now)
        await cluster.wait(60)
        assert await find_job(bus, now()) == job
        assert (await end_job(bus, job, now)).has_ended
        assert phases_of(cluster) == ["done"]


@simulated
async def test_who_follows_a_job_does_not_ask_hosts_again_after_its_end() -> None:
    async with open_cluster(2) as cluster:
        bus, server = cluster.server.connect("operator"), cluster.server
        plan = plan_job(await look(bus, now()), GiB, now(), seconds=300)
        cluster.quotas[plan.job.id] = dict(plan.job.quotas)
        server.cut_off = {"h1"}
        async with trio.open_nursery() as nursery:
            await start_job(bus, plan.job, now())
            nursery.start_soon(follow_job, bus, plan.job, now)
            await cluster.wait(3)
            await end_job(bus, plan.job, now)
            await cluster.wait(20)
            server.cut_off = set()
            await cluster.wait(20)
            assert not cluster.members["h1"].host.takings
            nursery.cancel_scope.cancel()


@simulated
async def test_a_job_that_is_ended_twice_ends_where_it_was_not_heard_of() -> None:
    async with open_cluster(2) as cluster:
        bus, server = cluster.server.connect("operator"), cluster.server
        job = await cluster.begin(bus, GiB, hold=True, seconds=9000)
        await follow_job(bus, job, now)
        server.cut_off = {"h1"}
        with trio.move_on_after(3):  # who ends it is interrupted, and does it again
            await end_job(bus, job, now)
        ending = await find_job(bus, now())
        assert ending
        await end_job(bus, ending, now)
        await cluster.wait(600)
        server.cut_off = set()
        await cluster.wait(3)
        assert phases_of(cluster) == ["done", "done"]


@simulated
async def test_a_job_that_is_ended_while_it_is_begun_does_not_begin() -> None:
    async with open_cluster(2) as cluster:
        bus, server = cluster.server.connect("operator"), cluster.server
        plan = plan_job(await look(bus, now()), GiB, now(), hold=True, seconds=9000)
        cluster.quotas[plan.job.id] = dict(plan.job.quotas)
        async with trio.open_nursery() as nursery:
            server.delay = 1
            nursery.start_soon(start_job, bus, plan.job, now())
            await trio.sleep(2.5)  # it is on the server, and the hosts are being asked
            server.delay = 0
            report = await end_job(bus, plan.job, now)
        assert report.has_ended
        await cluster.wait(3)
        assert not any(each.host.is_kept_back for each in cluster.members.values())


@simulated
async def test_who_follows_a_job_does_not_wait_for_lost_hosts_after_its_end() -> None:
    async with open_cluster(2) as cluster:
        bus, server = cluster.server.connect("operator"), cluster.server
        plan = plan_job(await look(bus, now()), GiB, now(), seconds=9000)
        cluster.quotas[plan.job.id] = dict(plan.job.quotas)
        server.cut_off = {"h1"}
        await start_job(bus, plan.job, now())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(end_job, bus, plan.job, now)
            with trio.fail_after(60):
                report = await follow_job(bus, plan.job, now)
        assert not report.is_settled


@simulated
async def test_a_server_that_goes_away_after_the_end_does_not_hide_it() -> None:
    async with open_cluster(1) as cluster:
        bus, server = cluster.server.connect("operator"), cluster.server
        job = await cluster.begin(bus, GiB, hold=True, seconds=9000)
        await follow_job(bus, job, now)
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def fail() -> None:
                await trio.sleep(0.1)
                server.is_down = True
                await trio.sleep(2)
                server.is_down = False

            assert (await end_job(bus, job, now)).has_ended


@simulated
async def test_a_later_job_ends_one_that_the_server_has_lost() -> None:
    async with open_cluster(1) as cluster:
        bus, server = cluster.server.connect("operator"), cluster.server
        view = await look(bus, now())
        held, other = (
            plan_job(view, GiB, now() + each, hold=True, seconds=9000)
            for each in (0, 20)
        )
        for plan in (held, other):
            cluster.quotas[plan.job.id] = dict(plan.job.quotas)
        await start_job(bus, held.job, now())
        await follow_job(bus, held.job, now)
        await cluster.wait(20)
        server.empty()
        with trio.fail_after(60):
            await start_job(bus, other.job, now())
            await follow_job(bus, other.job, now)
        assert (await end_job(bus, other.job, now)).has_ended
        assert not cluster.members["h0"].host.is_kept_back


def phases_of(cluster: Cluster) -> list[str | None]:
    """Return how far each host is with its job, by what it knows itself."""
    status = [member.agent.status.progress for member in cluster.members.values()]
    return [None if each is None else each.phase for each in status]


@simulated
async def test_hosts_that_go_away_are_waited_for_until_the_deadline() -> None:
    async with open_cluster(2) as cluster:
        bus = cluster.server.connect("operator")
        plan = plan_job(await look(bus, now()), 4 * GiB, now(), seconds=60)
        cluster.members["h1"].scope.cancel()
        began = trio.current_time()
        await start_job(bus, plan.job, now())
        cluster.server.is_down = True
        said: list[str] = []
        with trio.fail_after(300):

            def note(_: object, problem: str) -> None:
                said.append(problem)
                cluster.server.is_down = len(said) < 5

            report = await follow_job(bus, plan.job, now, on_progress=note)
        assert 60 <= trio.current_time() - began <= 70
        assert "refuses connections" in said[0]
        assert not said[-1]
        gone, there = report.hosts[1], report.hosts[0]
        assert (gone.name, gone.progress, gone.is_settled) == ("h1", None, False)
        assert there.progress
        assert there.progress.phase == "done"
        document = report.to_json()
        assert document["handed_over"] == there.taken


@simulated
async def test_a_view_tells_what_is_wrong() -> None:
    async with open_cluster(2) as cluster:
        bus, server = cluster.server.connect("viewer"), cluster.server
        server.cut_off = {"h0", "h1"}
        server.put("qb:host:h9:state", b"{")
        copied = server.read("qb:host:h1:state")
        assert copied
        server.put("qb:host:h8:state", copied)
        server.put("qb:host:h0:vms", b"7")
        server.put("qb:policy", b"7")
        server.put("qb:job", b"7")
        view = await look(bus, now() - 60)
        by_name = {host.name: host for host in view.hosts}
        assert by_name["h9"].condition == "malformed"
        assert "no JSON" in by_name["h9"].problem
        assert "it says that it is h1" in by_name["h8"].problem
        assert "s ahead of this one" in by_name["h1"].problem
        assert by_name["h0"].state
        assert by_name["h0"].vms == ()
        assert "no JSON object" in by_name["h0"].problem
        assert len(by_name["h1"].vms) == 3
        assert len(view.notes) == 2
        assert (view.policy, view.job) == (None, None)
        lagging = await look(bus, now() + 3600, with_vms=False)
        assert "3601 s behind this one" in lagging.hosts[0].problem
        late = await look(bus, now() + 6, with_vms=False)
        assert {host.condition for host in late.hosts} == {"silent", "malformed"}
        assert plan_job(late, GiB, now()).spread.lacking == GiB
        only = plan_job(await look(bus, now()), GiB, now(), hosts="h1")
        assert only.job.quotas == {"h1": GiB}


@simulated
async def test_a_policy_is_applied_to_what_was_shown_or_not_at_all() -> None:
    async with open_cluster(1) as cluster:
        bus = cluster.server.connect("operator")
        one, two = [
            await prepare_policy(
                bus, {"wish": [{"hosts": "*", "reserve": reserve}]}, now()
            )
            for reserve in ("8GiB", "9GiB")
        ]
        assert one.describe()[:2] == ["--- no policy", "+++ revision 1"]
        await apply_policy(bus, one)
        with pytest.raises(ClusterBusy, match="somebody else has applied"):
            await apply_policy(bus, two)
        await cluster.wait(2)
        change = await prepare_policy(bus, {"wish": [{"hosts": "*"}]}, now())
        assert change.before == one.after
        lines = change.describe()
        assert '-reserve = "8GiB"' in lines
        assert not [
            line for line in lines if line.startswith("+") and "rev" not in line
        ]
        assert not evolve(change, after=evolve(one.after, revision=2)).describe()
        # A server that was emptied does not know the revisions; the hosts do.
        cluster.server.empty()
        await cluster.wait(2)
        assert (await prepare_policy(bus, {}, now())).after.revision == 2
        with pytest.raises(Malformed):
            await prepare_policy(bus, {"wish": 7}, now())
        cluster.server.put(POLICY_KEY, Policy(7, (Wish("*"),)).to_bytes())
        assert (await prepare_policy(bus, {}, now())).after.revision == 8
        # What is there may be anything.
        cluster.server.put(POLICY_KEY, b"x" * (LARGEST_VALUE + 1))
        await apply_policy(bus, await prepare_policy(bus, {}, now()))


@simulated
async def test_no_host_can_use_the_revisions_up() -> None:
    async with open_cluster(1) as cluster:
        bus = cluster.server.connect("operator")
        for claim in (2**53 - 1, int(now() * 1000)):
            liar = HostState("liar", now(), GiB, GiB, 0, policy_revision=claim)
            cluster.server.put(make_state_key("liar"), liar.to_bytes())
            reserve = f"{8 + claim % 2}GiB"
            table = {"wish": [{"hosts": "*", "reserve": reserve}]}
            change = await prepare_policy(bus, table, now())
            await apply_policy(bus, change)
            await cluster.wait(3)
            status = cluster.members["h0"].agent.status
            assert status.policy_revision == change.after.revision
            assert cluster.members["h0"].host.rules.reserve == parse_size(reserve)
            view = await look(bus, now())
            assert ("cannot be" in view.hosts[1].problem) == (claim > 2**50)


def test_a_host_has_not_taken_more_than_it_was_asked_for() -> None:
    """What it says does not hide what others did not give."""
    said = JobProgress("0" * 8, GiB, 1 << 60, "done", 0.0)
    assert HostReport("h1", GiB, said).taken == GiB
