"""A job of an operator reaches its hosts, and ends, whoever else asks and fails."""

from __future__ import annotations

import pytest
import trio
import trio.lowlevel
from clusters import now, open_cluster, phases_of
from worlds import simulated

from qmpballoon.cluster import (
    ClusterView,
    MemoryBus,
    end_job,
    find_job,
    follow_job,
    look,
    plan_job,
    start_job,
)
from qmpballoon.cluster.bus import JOB_KEY, make_quota_key
from qmpballoon.errors import BusError, ClusterBusy
from qmpballoon.sizes import GiB, MiB


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
        # The job itself is not, until its hosts have said how it ended.
        assert JOB_KEY in await bus.get([JOB_KEY])
        await trio.sleep(5)
        assert await bus.get([JOB_KEY]) == {}


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
        job = await cluster.plan(bus, 8 * GiB, hold=True, seconds=900)
        members["h1"].host.pace = MiB  # it takes for longer than this lasts
        server.cut_off = {"h2"}
        await start_job(bus, job, now())
        await cluster.wait(20)
        server.cut_off = {"h2", "h3"}
        assert phases_of(cluster) == ["holding", "taking", None, "holding"]
        report = await end_job(bus, job, now)
        with pytest.raises(ClusterBusy, match="does not go on as it did"):
            await end_job(bus, job, now)
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
        job = await cluster.plan(bus, GiB, seconds=300)
        server.cut_off = {"h1"}
        async with trio.open_nursery() as nursery:
            await start_job(bus, job, now())
            nursery.start_soon(follow_job, bus, job, now)
            await cluster.wait(3)
            await end_job(bus, job, now)
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
        job = await cluster.plan(bus, GiB, hold=True, seconds=9000)
        async with trio.open_nursery() as nursery:
            server.delay = 1
            nursery.start_soon(start_job, bus, job, now())
            await trio.sleep(2.5)  # it is on the server, and the hosts are being asked
            server.delay = 0
            report = await end_job(bus, job, now)
        assert report.has_ended
        await cluster.wait(3)
        assert not any(each.host.is_kept_back for each in cluster.members.values())


@simulated
async def test_who_follows_a_job_does_not_wait_for_lost_hosts_after_its_end() -> None:
    async with open_cluster(2) as cluster:
        bus, server = cluster.server.connect("operator"), cluster.server
        job = await cluster.plan(bus, GiB, seconds=9000)
        server.cut_off = {"h1"}
        await start_job(bus, job, now())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(end_job, bus, job, now)
            with trio.fail_after(60):
                report = await follow_job(bus, job, now)
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
