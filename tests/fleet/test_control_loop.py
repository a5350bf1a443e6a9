"""Whole hosts in run_control_loop, and memory taken from them, on a mock clock."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing
from attrs import evolve
from notes import Note
from pages import WELL
from worlds import (
    GUEST,
    World,
    become,
    open_world,
    simulated,
    states,
    supervised,
    view,
)

from qmpballoon.cli.render.fleet import describe_report
from qmpballoon.errors import MonitorClosed
from qmpballoon.fleet import control_loop
from qmpballoon.fleet.control_loop import (
    carry_out,
    decide,
    make_owed_moves,
    reclaim,
    run_control_loop,
)
from qmpballoon.fleet.policy import FleetPlan, Move, PolicyName, Rules
from qmpballoon.fleet.vm_task import Settings
from qmpballoon.sizes import GiB, MiB, format_size
from qmpballoon.testing import SECOND, FaultPlan, MachineConfig, WorkloadStep, ramp

if TYPE_CHECKING:
    from qmpballoon.fleet.supervisor import Supervisor
    from qmpballoon.fleet.vm_view import VmState, VmView
    from qmpballoon.testing import GuestConfig

RULES = Rules(reserve=GiB, buffer=256 * MiB)


def guest(cache: int, *workload: WorkloadStep) -> GuestConfig:
    return evolve(GUEST, cache=cache, workload=workload)


def start(
    world: World,
    name: str,
    cache: int,
    *workload: WorkloadStep,
    memory: int = 4 * GiB,
    floor: str | None = None,
) -> None:
    world.start(name, MachineConfig(memory=memory, guest=guest(cache, *workload)))
    world.add(name, floor=floor)


def available(world: World) -> int:
    for fake in world.fakes.values():
        fake.touch()
    return world.read(0, 0).available


def kills(world: World) -> int:
    return sum(fake.machine.guest.oom_kills for fake in world.fakes.values())


@pytest.mark.parametrize("policy", ["available", "proportional", "shares"])
@simulated
async def test_a_host_gets_its_reserve_back(policy: PolicyName) -> None:
    rules = evolve(RULES, policy=policy)
    async with open_world() as world:
        for number in range(4):
            start(world, f"vm{number}", 2 * GiB)
        world.memory -= available(world) - 300 * MiB
        async with supervised(world) as fleet, trio.open_nursery() as nursery:
            await fleet.wait_until_known(5)
            nursery.start_soon(run_control_loop, fleet, world.read, rules)
            await trio.sleep(40)
            assert available(world) >= RULES.reserve
            # And having come to rest, nothing moves any more.
            before = [seen.counters.moves for seen in fleet.list_views()]
            await trio.sleep(60)
            assert [seen.counters.moves for seen in fleet.list_views()] == before
            nursery.cancel_scope.cancel()
        assert kills(world) == 0


@simulated
async def test_a_burst_is_fed_from_others_whatever_happens_to_some() -> None:
    more = ramp(62 * SECOND, 112 * SECOND, 600 * MiB, 200)
    burst = (WorkloadStep(60 * SECOND, 900 * MiB), *more)
    async with open_world() as world:
        start(world, "bursts", GiB, *burst)
        for name in ("b", "c", "killed", "paused"):
            start(world, name, 3 * GiB)
        async with supervised(world) as fleet, trio.open_nursery() as nursery:
            await fleet.wait_until_known(5)
            # Without what others give, its bursts are more than it has.
            fleet.start_move(Move("bursts", 4 * GiB, GiB + 512 * MiB, "test"))
            await fleet.wait_for_moves()
            world.memory -= available(world) - RULES.reserve - RULES.buffer
            nursery.start_soon(run_control_loop, fleet, world.read, RULES)
            await trio.sleep_until(55)
            # Somebody else takes its memory: it is not the bursts'.
            world.memory -= world.fakes["killed"].machine.resident
            world.fakes["killed"].machine.quit()
            world.fakes["killed"].touch()
            world.fakes["paused"].machine.stop()
            await trio.sleep_until(120)
            assert view(fleet, "bursts").counters.given > 256 * MiB
            needy = view(fleet, "bursts")
            assert needy.bounds is not None
            assert (needy.stats.available or 0) >= needy.bounds.headroom
            await become(fleet, {"killed": "gone", "paused": "stale", "b": "healthy"})
            assert available(world) >= RULES.reserve
            nursery.cancel_scope.cancel()
        assert kills(world) == 0


@simulated
async def test_others_take_over_from_a_guest_that_does_not_let_go() -> None:
    async with open_world() as world:
        for name in ("a", "b"):
            start(world, name, 2 * GiB)
        start(world, "refuses", 3 * GiB)  # the richest, who is asked first
        world.memory -= available(world) - 700 * MiB
        async with supervised(world) as fleet, trio.open_nursery() as nursery:
            await fleet.wait_until_known(5)
            world.fakes["refuses"].machine.guest.stall(3600 * SECOND)
            nursery.start_soon(run_control_loop, fleet, world.read, RULES)
            await trio.sleep(40)
            assert available(world) >= RULES.reserve
            assert view(fleet, "refuses").counters.stalls
            nursery.cancel_scope.cancel()


@simulated
async def test_others_take_over_within_seconds_from_a_guest_that_gives_slowly() -> None:
    async with open_world() as world:
        # Fast enough to be no stall, and slow enough to give next to nothing.
        slow = evolve(GUEST, cache=0, inflate_rate=2 * MiB)
        world.start("slow", MachineConfig(memory=32 * GiB, guest=slow))
        start(world, "b", 3 * GiB)
        # Its memory was in use before: the host gains what it gives.
        world.fakes["slow"].do(lambda machine: machine.guest.memory.allocate(30 * GiB))
        world.fakes["slow"].do(lambda machine: machine.guest.memory.release(30 * GiB))
        world.memory -= available(world) - 500 * MiB
        async with supervised(world) as fleet, trio.open_nursery() as nursery:
            await fleet.wait_until_known(5)
            began = trio.current_time()
            nursery.start_soon(run_control_loop, fleet, world.read, RULES)
            # Nothing tells when a guest is asked.
            while view(fleet, "b").target is None:  # noqa: ASYNC110
                await trio.sleep(0.1)
            assert view(fleet, "slow").target is not None
            assert trio.current_time() - began < 5
            nursery.cancel_scope.cancel()


@simulated
async def test_plugged_memory_is_the_guests() -> None:
    async with open_world() as world:
        config = MachineConfig(slots=1, max_memory=8 * GiB)
        fake = world.start("vm", config, FaultPlan(plug_at=20 * SECOND, plug_size=GiB))
        async with supervised(world) as fleet, trio.open_nursery() as nursery:
            await fleet.wait_until_known(5)
            nursery.start_soon(run_control_loop, fleet, world.read, RULES)
            await trio.sleep(60)
            assert view(fleet, "vm").total == fake.machine.actual == 3 * GiB
            assert view(fleet, "vm").counters.moves == 0
            nursery.cancel_scope.cancel()


@simulated
async def test_a_plan_is_carried_out_once() -> None:
    async with open_world() as world:
        start(world, "a", 3 * GiB)
        start(world, "b", GiB)
        world.memory -= available(world) - 900 * MiB
        async with supervised(world) as fleet:
            await fleet.wait_until_known(5)
            host, plan = decide(fleet, world.read, RULES)
            assert host.available == 900 * MiB
            assert plan.moves
            await carry_out(fleet, plan)
            for move in plan.moves:
                assert view(fleet, move.name).actual == move.target


def grow(start: int, step: int, size: int) -> tuple[WorkloadStep, ...]:
    """Return the workload of a process that grows by a step each second."""
    return tuple(
        WorkloadStep((start + number) * SECOND, step)
        for number in range(-(-size // step))
    )


@pytest.mark.parametrize("begins_at", [18, 22, 40])
@pytest.mark.parametrize("megabytes", [20, 50, 100, 150])
@simulated
async def test_nobody_is_killed_for_a_reserve_out_of_reach(
    megabytes: int, begins_at: int, caplog: pytest.LogCaptureFixture
) -> None:
    """A host of 23.5 GiB is to keep 23 of them; 22.5 are there for its guest.

    At first the guest still gives when its process begins to grow.
    """
    rules = Rules.for_host(23 * GiB + GiB // 2, 23 * GiB)
    steps = grow(begins_at, megabytes * MiB, 700 * MiB)
    async with open_world() as world:
        start(world, "vm", 300 * MiB, *steps, memory=GiB, floor="33%")
        world.seen.add("vm")
        world.memory -= available(world) - 22 * GiB - GiB // 2
        async with supervised(world) as fleet, trio.open_nursery() as nursery:
            await fleet.wait_until_known(5)
            nursery.start_soon(run_control_loop, fleet, world.read, rules)
            await trio.sleep_until(begins_at)
            taken = view(fleet, "vm").counters.taken
            assert 200 * MiB < taken < 450 * MiB  # half of what it does not use
            await trio.sleep_until(begins_at + 700 // megabytes + 5)
            assert view(fleet, "vm").counters.given >= taken - 128 * MiB
            nursery.cancel_scope.cancel()
        assert kills(world) == 0
    said = [line for line in caplog.messages if "cannot be reached" in line]
    assert len(said) == 1


@pytest.mark.parametrize("megabytes", [20, 50])
@simulated
async def test_nobody_is_killed_while_the_host_has_its_hard_reserve(
    megabytes: int,
) -> None:
    """The host is short for long, and no other guest has anything to spare."""
    seen: list[int] = []
    async with open_world() as world:
        for name in ("grows", "full"):
            start(world, name, 2 * GiB, *grow(60, megabytes * MiB, 300 * MiB))
            world.seen.add(name)
        world.memory -= available(world) + 8 * GiB
        async with supervised(world) as fleet, trio.open_nursery() as nursery:
            await fleet.wait_until_known(5)
            run = partial(
                run_control_loop,
                on_plan=lambda host, _: seen.append(host.available),
            )
            nursery.start_soon(run, fleet, world.read, RULES)
            await trio.sleep_until(50)
            world.memory -= available(world) - RULES.reserve + 64 * MiB
            await trio.sleep_until(58)
            assert abs(seen[-1] - RULES.reserve + 64 * MiB) < 32 * MiB
            seen.clear()
            await trio.sleep_until(60 + 300 // megabytes + 5)
            assert RULES.reserve_hard <= min(seen) < RULES.reserve - 300 * MiB
            nursery.cancel_scope.cancel()
        assert kills(world) == 0


@simulated
async def test_what_a_host_has_to_spare_is_shared_out_once_each_vm_was_tried() -> None:
    async with open_world() as world:
        world.start("vm")
        world.strange["silent"] = lambda: trio.testing.memory_stream_pair()[0]
        async with supervised(world, Settings(open_timeout=60)) as fleet:
            await become(fleet, {"vm": "healthy"})
            fleet.start_move(Move("vm", 2 * GiB, GiB, "test"))
            await fleet.wait_for_moves()
            world.add("silent")
            await become(fleet, {"vm": "healthy", "silent": "connecting"})
            assert decide(fleet, world.read, RULES)[1].moves == ()
            await become(fleet, {"vm": "healthy", "silent": "busy"}, 120)
            (move,) = decide(fleet, world.read, RULES)[1].moves
            assert move.change > 0


async def reclaimable(world: World) -> None:
    start(world, "rich", 3 * GiB)
    start(world, "poor", 512 * MiB)


@simulated
async def test_taking_and_giving_back() -> None:
    progress: list[int] = []
    async with open_world() as world:
        await reclaimable(world)
        async with supervised(world) as fleet:
            await fleet.wait_until_known(5)
            before = available(world)
            report = await reclaim(fleet, 2 * GiB, RULES, on_progress=progress.append)
            assert [vm.name for vm in report.vms] == ["poor", "rich"]
            assert 0 <= 2 * GiB - report.handed_over < MiB
            assert not report.held
            assert sizes(fleet) == {"rich": 4 * GiB, "poor": 4 * GiB}
            # Memory that a guest had never touched was free to begin with.
            assert available(world) > before
            assert progress == sorted(progress)
            assert progress[-1] == report.handed_over


@simulated
async def test_memory_that_a_guest_has_never_touched_is_no_gain() -> None:
    progress: list[int] = []
    async with open_world() as world:
        start(world, "vm", GiB)
        world.seen.add("vm")
        async with supervised(world) as fleet:
            await fleet.wait_until_known(5)
            before = available(world)
            report = await reclaim(
                fleet, 512 * MiB, RULES, hold=True, on_progress=progress.append
            )
            gained = available(world) - before
    assert gained == pytest.approx(progress[-1], abs=100 * MiB)
    assert report.handed_over > gained + GiB


@simulated
async def test_who_does_not_take_it_back_is_told() -> None:
    async with open_world() as world:
        await reclaimable(world)

        def hang(taken: int) -> None:
            if taken > GiB:
                world.fakes["rich"].machine.guest.stall(3600 * SECOND)

        async with supervised(world) as fleet:
            await fleet.wait_until_known(5)
            report = await reclaim(fleet, 2 * GiB, RULES, on_progress=hang)
            owed = {vm.name: vm.owed for vm in report.vms}
            assert owed["poor"] == 0
            assert owed["rich"] == 4 * GiB - sizes(fleet)["rich"] > 0
            assert not report.held
    said = describe_report(report, 0, 0)
    assert f"rich: has yet to take {format_size(owed['rich'])} back" in said


@simulated
async def test_taking_and_holding() -> None:
    async with open_world() as world:
        await reclaimable(world)
        async with supervised(world) as fleet:
            await fleet.wait_until_known(5)
            report = await reclaim(fleet, 5 * GiB, RULES, hold=True)
            assert report.held
            assert report.handed_over == 8 * GiB - sum(sizes(fleet).values())
            assert 4 * GiB < report.handed_over <= 5 * GiB
        assert kills(world) == 0


@simulated
async def test_more_than_there_is_cannot_be_taken() -> None:
    async with open_world() as world:
        await reclaimable(world)
        async with supervised(world) as fleet:
            await fleet.wait_until_known(5)
            report = await reclaim(fleet, 64 * GiB, RULES, hold=True)
            assert 6 * GiB < report.handed_over < 8 * GiB
            for seen in fleet.list_views():
                assert seen.bounds is not None
                assert await fleet.wait_until_known(5)
                assert (seen.stats.available or 0) >= seen.bounds.headroom
        assert kills(world) == 0


@simulated
async def test_what_one_does_not_give_others_do() -> None:
    async with open_world() as world:
        await reclaimable(world)
        start(world, "refuses", 3 * GiB)
        async with supervised(world) as fleet:
            await fleet.wait_until_known(5)
            world.fakes["refuses"].machine.guest.stall(3600 * SECOND)
            report = await reclaim(fleet, 4 * GiB, RULES, hold=True)
            gave = {vm.name: vm.handed_over for vm in report.vms}
            assert gave["refuses"] == 0
            assert 0 <= 4 * GiB - report.handed_over < MiB


@simulated
async def test_who_is_interrupted_gives_back() -> None:
    async with open_world() as world:
        await reclaimable(world)
        async with supervised(world) as fleet:
            await fleet.wait_until_known(5)
            with trio.move_on_after(2):
                await reclaim(fleet, 3 * GiB, RULES, hold=True)
            assert sizes(fleet) == {"rich": 4 * GiB, "poor": 4 * GiB}


@simulated
async def test_a_qemu_that_does_not_answer_keeps_nobody_from_getting_memory_back() -> (
    None
):
    async with open_world() as world:
        start(world, "rich", 3 * GiB)
        config = MachineConfig(memory=4 * GiB, guest=guest(3 * GiB))
        freezes = FaultPlan(freeze_at=7 * SECOND, freeze_for=3600 * SECOND)
        world.start("freezes", config, freezes)
        async with supervised(world) as fleet:
            await fleet.wait_until_known(5)
            await trio.sleep_until(world.start_time + 6)
            with trio.move_on_after(2):
                await reclaim(fleet, 6 * GiB, RULES)
            assert sizes(fleet)["freezes"] < 4 * GiB
            assert sizes(fleet)["rich"] == 4 * GiB


@simulated
async def test_a_guest_whose_driver_was_unloaded_is_not_made_small_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(control_loop, "_ROUNDS", 1)  # it is not asked again
    async with open_world() as world:
        config = evolve(guest(3 * GiB), boot_time=3600 * SECOND)
        machine = world.start("vm", MachineConfig(guest=config)).machine
        async with supervised(world) as fleet:
            await fleet.wait_until_known(5)

            def unload(taken: int) -> None:
                if taken and view(fleet, "vm").target is None:  # it has moved
                    machine.guest.boot()
                    assert machine.device
                    machine.device.told = 0

            await reclaim(fleet, GiB, RULES, on_progress=unload)
        assert machine.target == machine.actual == machine.guest.memory.ram


def sizes(fleet: Supervisor) -> dict[str, int]:
    return {seen.name: seen.actual or 0 for seen in fleet.list_views()}


def test_an_empty_fleet_has_nothing_to_plan() -> None:
    @simulated
    async def nobody() -> None:
        async with open_world() as world, supervised(world) as fleet:
            assert await fleet.wait_until_known(1)
            assert decide(fleet, world.read, RULES)[1] == FleetPlan()

    nobody()


# What a run that was interrupted owes


@simulated
async def test_a_reclaim_that_is_killed_is_finished_by_whatever_comes_next() -> None:
    async with open_world() as world:
        for name in ("a", "b"):
            start(world, name, 2 * GiB)
            world.notes[name] = Note()
        whole = dict.fromkeys(world.notes, 4 * GiB)

        async def sizes() -> dict[str, int | None]:
            await trio.sleep(30)
            return {name: fake.machine.actual for name, fake in world.fakes.items()}

        for finish in ("run", "plan", "reclaim"):
            async with supervised(world) as fleet:
                await fleet.wait_until_known(5)
                await reclaim(fleet, 3 * GiB, RULES, hold=True)
                # As a process leaves it that is killed before it gives that back.
                for note in world.notes.values():
                    note.note(4 * GiB)
            assert await sizes() != whole
            async with supervised(world) as fleet, trio.open_nursery() as nursery:
                await fleet.wait_until_known(5)
                owed = [seen for seen in fleet.list_views() if seen.owed is not None]
                assert owed
                assert "interrupted left the guest with less" in owed[0].detail
                if finish == "run":
                    nursery.start_soon(run_control_loop, fleet, world.read, RULES)
                    assert await sizes() == whole
                    nursery.cancel_scope.cancel()
                elif finish == "plan":
                    # What the host has is its buffer, and not shared out as surplus.
                    rules = evolve(RULES, buffer=64 * GiB)
                    _, plan = decide(fleet, world.read, rules)
                    assert [move.name for move in plan.moves] == [
                        seen.name for seen in owed
                    ]
                    await carry_out(fleet, plan)
                else:
                    await reclaim(fleet, 64 * MiB, RULES)
            assert await sizes() == whole
            assert [note.read() for note in world.notes.values()] == [None, None]


@simulated
async def test_a_reclaim_notes_what_it_owes_until_it_is_given_back() -> None:
    async with open_world() as world:
        start(world, "vm", 2 * GiB)
        note = world.notes["vm"] = Note()
        async with supervised(world) as fleet:
            await fleet.wait_until_known(5)
            noted: list[int | None] = []
            await reclaim(
                fleet, GiB, RULES, on_progress=lambda _: noted.append(note.size)
            )
            assert set(noted) == {4 * GiB}
            assert note.size is None
            await reclaim(fleet, GiB, RULES, hold=True)
            assert note.size is None


@simulated
async def test_a_guest_that_was_found_small_and_is_left_so_is_in_the_report() -> None:
    async with open_world() as world:
        await reclaimable(world)
        async with supervised(world) as fleet:
            await fleet.wait_until_known(5)
            report = await reclaim(fleet, 64 * GiB, RULES, hold=True)
            assert report.small == ()  # to be held was asked for
            held = sizes(fleet)
        async with supervised(world) as fleet:
            await fleet.wait_until_known(5)
            report = await reclaim(fleet, 64 * GiB, RULES)
            left = {small.name: small for small in report.small}
            assert {name: small.actual for name, small in left.items()} == held
            assert not any(vm.handed_over >= MiB for vm in report.vms)
            fleet.start_move(Move("rich", held["rich"], 3 * GiB, "test"))
            await fleet.wait_for_moves()
            report = await reclaim(fleet, GiB, RULES)
            assert sizes(fleet) == {**held, "rich": 3 * GiB}
            poor, rich = report.small
            fleet.start_move(Move("rich", 3 * GiB, 4 * GiB, "test"))
            await fleet.wait_for_moves()
            assert [small.name for small in fleet.list_small()] == ["poor"]
            fleet.start_move(Move("rich", 4 * GiB, 3 * GiB, "test"))
            await fleet.wait_for_moves()
            moved = fleet.list_small()[1]
    size = format_size(held["poor"])
    all_of_it = "and not all of its 4 GiB: `resize 100%` gives it all"
    assert poor.describe() == f"is left with {size}, as it was found, {all_of_it}"
    size = f"after it was found with {format_size(held['rich'])}"
    assert rich.describe() == f"is left with 3 GiB, {size}, {all_of_it}"
    size = "to which it was moved"
    assert moved.describe() == f"is left with 3 GiB, {size}, {all_of_it}"


@simulated
async def test_a_guest_that_is_left_on_its_way_is_small_as_it_will_be() -> None:
    async with open_world() as world:
        fake = world.start("vm")
        async with supervised(world) as fleet:
            await become(fleet, {"vm": "healthy"})
            assert fleet.list_small() == []
            fleet.start_move(Move("vm", 2 * GiB, GiB, "test"))
            await trio.sleep(0.3)
        (small,) = fleet.list_small()
        await trio.sleep(10)
        fake.touch()
        assert small.actual == fake.machine.actual
        assert GiB < small.actual < 2 * GiB
        assert small.found is None


def test_what_is_owed_is_given_as_far_as_the_host_has_room() -> None:
    def seen(name: str, owed: int | None) -> VmView:
        return evolve(WELL, name=name, actual=GiB, total=4 * GiB, owed=owed)

    views = [
        seen("nothing", None),
        evolve(seen("unknown", 2 * GiB), actual=None),
        seen("a", 2 * GiB),
        seen("b", 8 * GiB),
        seen("c", 2 * GiB),
    ]
    moves = {move.name: move.change for move in make_owed_moves(views, 2 * GiB)}
    assert moves == {"a": GiB, "c": GiB}
    assert make_owed_moves([evolve(seen("a", 2 * GiB), target=GiB)], 2 * GiB) == []
    assert [move.target for move in make_owed_moves(views[3:4], 3 * GiB)] == [4 * GiB]


# What another process holds


async def resize(world: World, name: str, size: int) -> None:
    """Move a balloon, as another process does by another monitor."""
    fake = world.fakes[name]
    fake.machine.set_target(size)
    fake.touch()
    await trio.sleep(10)


async def list_states(fleet: Supervisor) -> set[VmState]:
    """Return the states that the VMs of a fleet have within a minute."""
    seen: set[VmState] = set()
    for _ in range(240):
        seen.update(states(fleet).values())
        await trio.sleep(0.25)
    return seen


@simulated
async def test_a_vm_whose_memory_another_process_holds_takes_no_part() -> None:
    async with open_world() as world:
        for name in ("held", "free"):
            start(world, name, 2 * GiB)
        note = world.notes["held"] = Note(size=4 * GiB, holder=4242)
        world.notes["free"] = Note()
        machine = world.fakes["held"].machine
        await resize(world, "held", 2 * GiB)
        async with supervised(world) as fleet:
            await become(fleet, {"held": "held", "free": "healthy"})
            seen = view(fleet, "held")
            assert "is held by process 4242, which" in seen.detail
            assert "(kill 4242)" in seen.detail
            assert (seen.owed, seen.holder, seen.is_fresh) == (None, 4242, True)
            assert [guest.name for guest in fleet.list_guests()] == ["free"]
            report = await reclaim(fleet, 64 * GiB, RULES)
            assert [vm.name for vm in report.vms] == ["free"]
            fleet.start_move(Move("held", 2 * GiB, GiB, "test"))
            assert await fleet.wait_for_moves(60)
            with trio.move_on_after(60):
                await run_control_loop(fleet, world.read, RULES)
            assert (machine.actual, note.holder) == (2 * GiB, 4242)
            note.holder = None  # it is killed
            await become(fleet, {"held": "healthy", "free": "healthy"})
            assert view(fleet, "held").owed == 4 * GiB
            with trio.move_on_after(30):
                await run_control_loop(fleet, world.read, RULES)
            assert (machine.actual, note.size) == (4 * GiB, None)


@simulated
async def test_who_begins_to_hold_memory_is_noticed_and_not_called_a_stall() -> None:
    async with open_world() as world:
        start(world, "vm", 2 * GiB)
        note = world.notes["vm"] = Note()
        async with supervised(world) as fleet:
            await become(fleet, {"vm": "healthy"})
            note.size, note.holder = 4 * GiB, 4242
            await resize(world, "vm", 2 * GiB)
            assert await list_states(fleet) == {"held"}
            note.holder = None  # it is killed
            await become(fleet, {"vm": "healthy"})
            assert await list_states(fleet) == {"healthy"}
            note.holder = 4242
            for size in (3 * GiB, 2 * GiB):
                await resize(world, "vm", size)
                await become(fleet, {"vm": "held"})
            note.clear()
            await resize(world, "vm", 4 * GiB)
            assert "stalled" not in await list_states(fleet)


@simulated
async def test_who_is_quicker_is_left_alone() -> None:
    async with open_world() as world:
        for name in ("quick", "vm"):
            start(world, name, 2 * GiB)
            world.notes[name] = Note()
        note = world.notes["quick"]
        assert isinstance(note, Note)
        async with supervised(world) as fleet:
            await become(fleet, {"quick": "healthy", "vm": "healthy"})
            note.size, note.holder = 4 * GiB, 4242
            report = await reclaim(fleet, GiB, RULES, hold=True)
            assert [vm.name for vm in report.vms] == ["vm"]
            fleet.start_move(Move("quick", 4 * GiB, GiB, "test"))
            assert states(fleet)["quick"] == "held"
            await trio.sleep(30)
            assert world.fakes["quick"].machine.actual == 4 * GiB
            assert (note.size, note.holder) == (4 * GiB, 4242)


@pytest.mark.parametrize("gentle", [0, 3600])
@simulated
async def test_what_a_fleet_holds_is_not_held_once_its_connection_is_lost(
    gentle: int,
) -> None:
    async with open_world() as world:
        start(world, "vm", 2 * GiB)
        note = world.notes["vm"] = Note()
        async with supervised(world) as fleet, trio.open_nursery() as nursery:
            await become(fleet, {"vm": "healthy"})
            take = partial(reclaim, fleet, GiB, RULES, gentle=gentle)
            nursery.start_soon(take)
            while not note.is_held:  # noqa: ASYNC110 - a file tells nobody
                await trio.sleep(0.5)
            fleet.fail("vm", MonitorClosed("it hung up"))
            await trio.testing.wait_all_tasks_blocked()
            assert (note.size, note.is_held) == (4 * GiB, False)
            nursery.cancel_scope.cancel()


@simulated
async def test_what_a_fleet_cannot_give_back_is_not_held_for_ever() -> None:
    async with open_world() as world:
        slow = evolve(guest(2 * GiB), inflate_rate=16 * MiB)
        world.start("vm", MachineConfig(memory=4 * GiB, guest=slow))
        note = world.notes["vm"] = Note()
        async with supervised(world) as fleet:
            await become(fleet, {"vm": "healthy"})
            with trio.move_on_after(1):
                await reclaim(fleet, 3 * GiB, RULES)
            assert (note.size, note.is_held) == (4 * GiB, False)
