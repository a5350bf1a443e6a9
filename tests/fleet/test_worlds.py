"""Whole hosts with hostile VMs beside honest ones, on a mock clock.

What is hostile is drawn: guests that lie, are silent or slow, or take memory back;
QEMUs that show figures that no guest can mean; connections that break; peers that are
no QEMU. They are tried in parts, so that several processors share them: 192 worlds, and
20,000 in the profile ``nightly``. Of eight bugs that were planted in what a fleet
counts, the first test finds five with 16 worlds in each of its eight parts, and no more
with 30.
"""

from __future__ import annotations

import logging
from functools import partial, wraps
from typing import TYPE_CHECKING, Final

import pytest
import trio
from attrs import define, evolve, field
from hostile import DURATION, Hostile, hostile_vms, strangers
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from worlds import GUEST, open_world, simulated, states, supervised

from qmpballoon.balloon.guard import Guard
from qmpballoon.fleet.control_loop import run_control_loop
from qmpballoon.fleet.policy import Rules
from qmpballoon.sizes import GiB, MiB
from qmpballoon.testing import SECOND, Machine, MachineConfig, WorkloadStep, ramp

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from worlds import World

    from qmpballoon.fleet.guests import Host
    from qmpballoon.fleet.policy import FleetPlan
    from qmpballoon.testing.model.guest import Guest

RULES = Rules(reserve=GiB, buffer=256 * MiB)
BEFORE: Final = 6  # seconds before, in which guests come to the sizes they begin with
PARTS: Final = 8
IS_NIGHTLY: Final = settings().max_examples > 1000
ALONE: Final = 10_000 if IS_NIGHTLY else 128
# A host without its hostile VMs, to compare with, is a world as well.
COMPARED: Final = 5000 if IS_NIGHTLY else 64


@st.composite
def honest_vms(draw: st.DrawFn) -> MachineConfig:
    """A guest that needs some memory, slowly enough to be helped."""
    total = draw(st.sampled_from([2, 4])) * GiB
    start = BEFORE + draw(st.integers(3, 8))
    size = draw(st.integers(0, total // 4 // MiB))
    steps: tuple[WorkloadStep, ...] = ()
    if size:
        steps = ramp(start * SECOND, (start + 14) * SECOND, size * MiB)
    cache = draw(st.integers(0, total // 2 // MiB)) * MiB
    guest = evolve(GUEST, cache=cache, workload=steps)
    return MachineConfig(memory=total, guest=guest)


@define
class Ledger:
    """What guests were granted, and what the host had when they were; by the model.

    Attributes:
        world: The host.
        granted: Bytes by name.
        before: The size in bytes at which a guest's grants began, by name.
        least: The least that was above the reserve when something was granted, had all
            guests touched what they were granted. Where only guests in distress were
            granted something, it is above the hard reserve.
        least_of_limit: The same of the limit; guests that the host does not see, and
            that were connected to, have touched all that they have.
        known: The VMs that were connected to.
    """

    world: World
    granted: dict[str, int] = field(factory=dict[str, int])
    before: dict[str, int] = field(factory=dict[str, int])
    least: int = 64 * GiB
    least_of_limit: int = 64 * GiB
    known: set[str] = field(factory=set[str])

    def count_untouched(self, name: str) -> int:
        """Return what a guest still may touch of what it was granted."""
        machine = self.world.fakes[name].machine
        if machine.ended or name not in self.granted:
            return 0
        size = machine.actual or 0
        # What it did not take, or gave back, and may be granted again counts once.
        arrived = max(size, machine.target or 0) - self.before[name]
        self.granted[name] = min(self.granted[name], max(0, arrived))
        return min(self.granted[name], max(0, size - machine.resident))

    def count_held(self) -> int:
        """Return what the VMs may hold, had they touched all that they may."""
        total = 0
        for name, fake in self.world.fakes.items():
            machine = fake.machine
            if machine.ended:
                continue
            if name in self.world.seen:
                total += machine.resident + self.count_untouched(name)
            elif name in self.known:
                total += machine.actual or 0
        return total

    def note(self, plan: FleetPlan, distressed: set[str]) -> None:
        """Note the grants of a plan.

        Args:
            plan: The plan.
            distressed: The guests that were in distress when it was made, by name.
        """
        grants = [move for move in plan.moves if move.change > 0]
        available = self.world.read(0, 0).available
        given = sum(move.change for move in grants)
        untouched = sum(map(self.count_untouched, self.world.fakes))
        is_relief = {move.name for move in grants} <= distressed
        reserve = RULES.reserve_hard if is_relief else RULES.reserve
        if given:
            above = available - untouched - given - reserve
            self.least = min(self.least, above)
            if self.world.limit is not None:
                left = self.world.limit - self.count_held() - given - reserve
                self.least_of_limit = min(self.least_of_limit, left)
        for move in grants:
            if not self.granted.get(move.name):
                self.before[move.name] = move.before
            self.granted[move.name] = self.granted.get(move.name, 0) + move.change


async def live(world: World, ledger: Ledger) -> None:
    """Have a world's control loop run for a while."""
    async with supervised(world) as fleet, trio.open_nursery() as nursery:
        # The model at that very moment is what a plan is made of.
        def note(_: Host, plan: FleetPlan) -> None:
            views = fleet.list_views()
            ledger.known |= {view.name for view in views if view.actual is not None}
            guests = fleet.list_guests()
            ledger.note(plan, {guest.name for guest in guests if guest.distress})

        run = partial(run_control_loop, on_plan=note)
        nursery.start_soon(run, fleet, world.read, RULES)
        await trio.sleep(DURATION)
        assert {seen.name for seen in fleet.list_views()} == set(world.specs)
        for name, state in states(fleet).items():
            if name.startswith("honest"):
                assert state in ("healthy", "stalled")
        nursery.cancel_scope.cancel()


def add_honest(
    world: World, honest: Sequence[MachineConfig], *, are_halved: bool = False
) -> None:
    """Have honest VMs, which begin with all their RAM, or with half of it."""
    for number, config in enumerate(honest):
        world.seen.add(f"honest{number}")
        fake = world.start(f"honest{number}", config)
        if are_halved:
            fake.do(partial(Machine.set_target, size=config.memory // 2))


def add_hostile(world: World, hostile: Sequence[Hostile]) -> None:
    for number, vm in enumerate(hostile):
        name = f"hostile{number}"
        if vm.is_seen:
            world.seen.add(name)
        fake = world.start(name, vm.config, vm.faults)
        fake.do(partial(Machine.set_target, size=vm.begins_at))


def honest_guests(world: World) -> dict[str, Guest]:
    return {
        name: fake.machine.guest
        for name, fake in world.fakes.items()
        if name.startswith("honest")
    }


def kills(world: World) -> int:
    return sum(guest.oom_kills for guest in honest_guests(world).values())


def available(world: World) -> dict[str, int]:
    return {
        name: guest.memory.available for name, guest in honest_guests(world).items()
    }


def unexpected(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what was said of exceptions that nobody foresaw."""
    return [
        seen.getMessage()
        for seen in caplog.records
        if seen.name == "qmpballoon.fleet" and seen.levelno >= logging.ERROR
    ]


def in_parts(
    worlds: int, **drawn: st.SearchStrategy[object]
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Try a test in so many worlds, a part of them at a time.

    Args:
        worlds: How many.
        drawn: What is drawn for each, by the test's parameters.
    """

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        @pytest.mark.timeout(36_000 if IS_NIGHTLY else 600)
        @pytest.mark.parametrize("part", range(PARTS))
        @wraps(test)
        def run(part: int, caplog: pytest.LogCaptureFixture) -> None:
            @seed(part)
            @given(**drawn)
            @settings(
                max_examples=worlds // PARTS,
                suppress_health_check=[HealthCheck.too_slow],
            )
            def try_worlds(**world: object) -> None:
                caplog.clear()
                test(**world)
                assert unexpected(caplog) == []

            try_worlds()

        del run.__wrapped__  # its parameters are hypothesis', not pytest's
        marked: Callable[..., None] = run
        return marked

    return decorate


async def put_up(world: World, hostile: list[Hostile], strange: list[object]) -> None:
    """Have hostile VMs and other peers, and wait until they have their sizes."""
    add_hostile(world, hostile)
    for number, peer in enumerate(strange):
        world.strange[f"strange{number}"] = peer  # type: ignore[assignment]
        world.add(f"strange{number}")
    await trio.sleep(BEFORE)


def fit_memory(world: World, above_reserve: int) -> None:
    """Give a host as much memory as its VMs hold, its reserve, and some more."""
    world.memory -= world.read(0, 0).available
    world.memory += RULES.reserve + above_reserve


# Memory is moved where the host is short of it, or has much to spare: rarely between.
short = st.integers(-512, 256)
spares = (short | st.integers(0, 3072)).map(lambda size: size * MiB)
honest_lists = st.lists(honest_vms(), min_size=1, max_size=2)
hostile_lists = st.lists(hostile_vms, min_size=1, max_size=3)


@in_parts(
    ALONE,
    honest=honest_lists,
    hostile=hostile_lists,
    strange=strangers,
    spare=spares,
    is_limited=st.booleans(),
    are_halved=st.booleans(),
)
def test_the_hosts_reserve_and_its_limit_hold_by_the_hosts_own_figures(
    *,
    honest: list[MachineConfig],
    hostile: list[Hostile],
    strange: list[object],
    spare: int,
    is_limited: bool,
    are_halved: bool,
) -> None:
    """All that guests were granted they may touch, and the host still has enough."""

    @simulated
    async def main() -> None:
        async with open_world() as world:
            add_honest(world, honest, are_halved=are_halved)
            await put_up(world, hostile, strange)
            fit_memory(world, spare)
            ledger = Ledger(world)
            if is_limited:
                ledger.known |= set(world.fakes)
                world.limit = ledger.count_held() + RULES.reserve + spare
                ledger.known.clear()
                world.memory += 16 * GiB
            await live(world, ledger)
            if is_limited or set(world.fakes) <= world.seen:
                assert ledger.least >= 0
            assert ledger.least_of_limit >= 0

    main()


@in_parts(
    COMPARED,
    honest=honest_lists,
    hostile=hostile_lists,
    strange=strangers,
    spare=spares,
)
def test_hostile_vms_harm_themselves_only(
    *,
    honest: list[MachineConfig],
    hostile: list[Hostile],
    strange: list[object],
    spare: int,
) -> None:
    """Compared is a host on which other processes use all that hostile VMs could."""
    most = sum(vm.config.memory + GiB for vm in hostile)
    found: list[tuple[int, dict[str, int]]] = []

    @simulated
    async def main() -> None:
        for others in ([], hostile):
            async with open_world() as world:
                add_honest(world, honest)
                fit_memory(world, spare + (most if others else 0))
                await put_up(world, others, strange if others else [])
                await live(world, Ledger(world))
                found.append((kills(world), available(world)))

    main()
    (kills_alone, alone), (kills_beside, beside) = found
    assert kills_beside <= kills_alone
    for name, has in alone.items():
        total = honest[int(name.removeprefix("honest"))].memory
        headroom = Guard().compute_limits(total).headroom
        assert beside[name] >= min(has, headroom)
