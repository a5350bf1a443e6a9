"""A few hosts with simulated QEMUs under real supervisors, on a mock clock."""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio
from attrs import define, evolve
from clusters import MemoryStore, now, run_at_once
from worlds import GUEST, open_world, simulated, supervised

from qmpballoon._printable import make_printable
from qmpballoon.cluster import (
    Agent,
    FleetHost,
    MemoryServer,
    apply_policy,
    follow_job,
    look,
    plan_job,
    prepare_policy,
    start_job,
)
from qmpballoon.fleet.control_loop import run_control_loop
from qmpballoon.fleet.policy import Rules
from qmpballoon.sizes import GiB, MiB
from qmpballoon.testing import MachineConfig

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from worlds import World

    from qmpballoon.fleet.supervisor import Supervisor

RULES = Rules.for_host(64 * GiB)
CACHE = evolve(GUEST, cache=GiB)


@define
class Joined:
    """A host of the cluster."""

    world: World
    supervisor: Supervisor
    host: FleetHost
    agent: Agent

    @property
    def sizes(self) -> dict[str, int]:
        return {view.name: view.actual or 0 for view in self.supervisor.list_views()}


@asynccontextmanager
async def join(
    server: MemoryServer,
    name: str,
    store: MemoryStore | None = None,
    world: World | None = None,
) -> AsyncGenerator[Joined]:
    """Have a host with three guests of 4 GiB in the cluster."""
    async with AsyncExitStack() as stack:
        if world is None:
            world = await stack.enter_async_context(open_world())
            for number in range(3):
                config = MachineConfig(memory=4 * GiB, guest=CACHE)
                world.start(f"vm{number}", config)
        fleet = await stack.enter_async_context(supervised(world))
        host = FleetHost(fleet, world.read, RULES)
        agent = Agent(
            name=name,
            bus=server.connect(name),
            host=host,
            rules=RULES,
            store=store or MemoryStore(),  # type: ignore[arg-type]
            clock=now,
            run_blocking=run_at_once,
        )
        await fleet.wait_until_known()
        nursery = await stack.enter_async_context(trio.open_nursery())
        await nursery.start(agent.run)
        nursery.start_soon(run_control_loop, fleet, host.read, host.get_rules)
        await trio.sleep(3)
        yield Joined(world, fleet, host, agent)
        nursery.cancel_scope.cancel()


@simulated
async def test_a_reclaim_takes_what_its_plan_says_and_gives_it_back() -> None:
    server = MemoryServer()
    async with join(server, "h1") as one, join(server, "h2") as two:
        bus = server.connect("operator")
        before = one.sizes, two.sizes
        view = await look(bus, now())
        plan = plan_job(view, 5 * GiB, now())
        assert plan.spread.lacking == 0
        assert {*plan.job.quotas} == {"h1", "h2"}
        await start_job(bus, plan.job, now())
        report = await follow_job(bus, plan.job, now)
        assert report.is_settled
        assert report.taken == pytest.approx(5 * GiB, rel=0.02)
        for host in report.hosts:
            assert host.progress
            assert host.progress.phase == "done"
            assert host.taken <= host.quota
        assert (one.sizes, two.sizes) == before


@simulated
async def test_what_guests_never_touched_is_no_gain_and_counts_for_no_quota() -> None:
    server = MemoryServer()
    bus = server.connect("operator")
    async with open_world() as world:
        world.seen = {f"vm{number}" for number in range(3)}
        for number in range(3):
            world.start(f"vm{number}", MachineConfig(memory=4 * GiB, guest=CACHE))
        async with join(server, "h1", world=world) as one:
            assert all(guest.untouched for guest in one.supervisor.list_guests())
            before, sizes = world.read(0, 0).available, one.sizes
            plan = plan_job(await look(bus, now()), GiB, now(), hold=True, seconds=60)
            await start_job(bus, plan.job, now())
            report = await follow_job(bus, plan.job, now)
            assert report.taken == pytest.approx(GiB, rel=0.02)
            assert report.taken <= GiB
            # The guests had to give what they had never touched, too.
            assert sum(sizes.values()) - sum(one.sizes.values()) > 4 * GiB
            assert world.read(0, 0).available - before >= GiB


@simulated
async def test_what_is_held_is_held_until_the_deadline() -> None:
    server = MemoryServer()
    async with join(server, "h1") as one:
        bus = server.connect("operator")
        before = sum(one.sizes.values())
        plan = plan_job(await look(bus, now()), 3 * GiB, now(), hold=True, seconds=60)
        await start_job(bus, plan.job, now())
        report = await follow_job(bus, plan.job, now)
        assert [host.progress and host.progress.phase for host in report.hosts] == [
            "holding"
        ]
        taken = before - sum(one.sizes.values())
        assert taken == pytest.approx(3 * GiB, rel=0.02)
        await trio.sleep(30)
        assert before - sum(one.sizes.values()) == taken
        # The host has more than its reserve. So its guests get it back after that.
        await trio.sleep(90)
        assert before - sum(one.sizes.values()) < taken // 4
        assert one.agent.status.progress
        assert one.agent.status.progress.phase == "done"


@simulated
async def test_an_agent_that_ends_in_a_job_gives_all_back_and_begins_none_anew() -> (
    None
):
    server, store = MemoryServer(), MemoryStore()
    bus = server.connect("operator")
    async with open_world() as world:
        for number in range(3):
            world.start(f"vm{number}", MachineConfig(memory=4 * GiB, guest=CACHE))
        async with join(server, "h1", store, world) as one:
            before = one.sizes
            plan = plan_job(await look(bus, now()), 6 * GiB, now(), seconds=600)
            await start_job(bus, plan.job, now())
            while one.sizes == before:  # noqa: ASYNC110 - time is simulated
                await trio.sleep(0.1)
        async with join(server, "h1", store, world) as again:
            await trio.sleep(60)
            progress = again.agent.status.progress
            assert progress
            assert (progress.job, progress.phase) == (plan.job.id, "interrupted")
            assert again.sizes == before
            assert plan.job.until > now()


@simulated
async def test_a_policy_raises_reserves_and_floors() -> None:
    server = MemoryServer()
    async with join(server, "h1") as one:
        bus = server.connect("operator")
        wish = {"hosts": "h*", "reserve": "54GiB", "floors": {"vm1": "3GiB"}}
        change = await prepare_policy(bus, {"wish": [wish]}, now())
        assert any("54GiB" in line for line in change.describe())
        await apply_policy(bus, change)
        await trio.sleep(60)
        assert one.agent.status.policy_revision == 1
        assert one.host.rules.reserve == 54 * GiB
        assert one.world.read(0, 0).available > 54 * GiB
        assert one.sizes["vm1"] >= 3 * GiB
        assert min(one.sizes.values()) < 3 * GiB - 64 * MiB
        # The server is gone, and emptied: the host lives on by what it has seen.
        server.is_down = True
        await trio.sleep(10)
        assert not one.agent.status.is_connected
        assert "revision 1" in one.agent.status.notes[-1]
        server.is_down = False
        server.empty()
        await trio.sleep(3)
        assert one.agent.status.is_connected
        assert one.host.rules.reserve == 54 * GiB
        (note,) = (await look(bus, now())).hosts[0].state.notes
        assert "emptied" in note
        # What is applied then counts, although the server has forgotten the first.
        change = await prepare_policy(bus, {"wish": []}, now())
        assert change.after.revision == 2
        await apply_policy(bus, change)
        await trio.sleep(3)
        assert one.host.rules == RULES


@simulated
async def test_a_vm_may_be_called_anything_and_hides_no_other() -> None:
    server = MemoryServer()
    async with open_world() as world:
        names = ["a" * 4000, "\x1b" * 100, "vm"]
        for name in names:
            world.start(name, MachineConfig(memory=4 * GiB, guest=CACHE))
        async with join(server, "h1", world=world):
            (host,) = (await look(server.connect("viewer"), now())).hosts
            assert host.problem == ""
            assert [vm.name for vm in host.vms] == [
                make_printable(name, 256) for name in sorted(names)
            ]


@simulated
async def test_vms_that_claim_more_than_there_is_do_not_hide_their_host() -> None:
    server = MemoryServer()
    async with open_world() as world:
        for number in range(4):
            config = MachineConfig(memory=1 << 62, guest=CACHE)
            world.start(f"vm{number}", config)
        async with join(server, "h1", world=world):
            (host,) = (await look(server.connect("viewer"), now())).hosts
            assert host.state
            assert host.state.offer.total <= host.state.total
            assert host.state.room.to_floors <= host.state.total


@simulated
async def test_with_the_server_gone_from_the_start_the_fleet_is_as_without_it() -> None:
    server = MemoryServer(is_down=True)
    async with join(server, "h1") as one:
        assert not one.agent.status.is_connected
        assert one.host.rules == RULES
        one.world.memory = 12 * GiB
        await trio.sleep(60)
        assert one.world.read(0, 0).available >= RULES.reserve
