"""An agent follows wishes, does a job once, and bears whatever the server does.

Scripts of faults are drawn: links that go down and up, a server that is stopped, down,
emptied, or back at an older copy; agents that are killed, and disks that are full.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

import pytest
import trio
import trio.lowlevel
from clusters import OWN, Member, make_agent, make_guest, now, open_cluster, run_at_once
from hypothesis import example, given, settings
from hypothesis import strategies as st
from worlds import simulated

from qmpballoon.cluster import (
    Agent,
    MemoryBus,
    MemoryServer,
    Quota,
    agent,
    follow_job,
    look,
)
from qmpballoon.cluster.bus import POLICY_KEY, make_quota_key, make_state_key
from qmpballoon.cluster.documents import ENDED, Policy
from qmpballoon.cluster.wishes import judge_policy
from qmpballoon.sizes import GiB, MiB

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from qmpballoon.cluster.wishes import Judged

MOST: Final = min(1000, settings().max_examples)  # as many take some minutes

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
            job = await cluster.plan(bus, amount, seconds=300)
            quota = job.make_quota("h0")
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
