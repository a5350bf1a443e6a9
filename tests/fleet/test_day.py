"""A day of a host with all that can go wrong in it: nothing grows, nobody is starved.

VMs that lie, dawdle and break, and peers that are no QEMU, come and go all day beside
two honest guests, and other processes of the host take memory and give it back.
"""

from __future__ import annotations

import random
from functools import partial
from typing import TYPE_CHECKING, Final

import pytest
import trio
from attrs import define, evolve, field
from hostile import Hostile, hostile_vms, strangers
from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st
from readings import Reading, check
from worlds import GUEST, open_world, simulated, supervised

from qmpballoon.balloon.guard import Guard
from qmpballoon.fleet import Rules, Settings
from qmpballoon.fleet.control_loop import run_control_loop
from qmpballoon.sizes import GiB, MiB
from qmpballoon.testing import SECOND, Machine, MachineConfig, ramp

if TYPE_CHECKING:
    from collections.abc import Callable

    from worlds import World

    from qmpballoon.fleet import FleetPlan, Host

MINUTE: Final = 60
HOUR: Final = 60 * MINUTE
HOURS: Final = 24
DAYS: Final = 20 if settings().max_examples > 1000 else 1
# Polled more seldom than by default: so a day takes seconds.
SETTINGS = Settings(period=30, stale_after=120, rescan=60)
RULES = Rules(reserve=GiB, buffer=256 * MiB)
HONEST: Final = ("honest0", "honest1")
MEMORY: Final = 4 * GiB
VISITS: Final = 4  # an hour
ENOUGH: Final = 64 * MiB  # above the reserve
# How long an honest guest may have too little, on a host that has enough; in plans.
PATIENCE: Final = 4


@define
class Diary:
    """What became of honest guests; a plan is the measure of time.

    Attributes:
        world: The host.
        plans: How many plans were made.
        plenty: For how many in a row the host has had enough.
        hungry: For how many in a row a guest had too little while the host had enough,
            by name.
        longest: The most of these.
        killed: How many processes guests have killed.
        starved: How many of them although the host had had enough for a while.
    """

    world: World
    plans: int = 0
    plenty: int = 0
    hungry: dict[str, int] = field(factory=dict[str, int])
    longest: int = 0
    killed: int = 0
    starved: int = 0

    def note(self, host: Host, _: FleetPlan) -> None:
        self.plans += 1
        has_enough = host.available - host.promised > RULES.reserve + ENOUGH
        self.plenty = self.plenty + 1 if has_enough else 0
        for name in HONEST:
            is_hungry = has_enough and self._lacks_memory(name)
            self.hungry[name] = self.hungry.get(name, 0) + 1 if is_hungry else 0
            self.longest = max(self.longest, self.hungry[name])
        killed = sum(self.world.fakes[name].machine.guest.oom_kills for name in HONEST)
        if self.plenty > PATIENCE:
            self.starved += killed - self.killed
        self.killed = killed

    def _lacks_memory(self, name: str) -> bool:
        """Tell whether a guest has too little, and could have more."""
        machine = self.world.fakes[name].machine
        headroom = Guard().compute_limits(MEMORY).headroom
        is_short = machine.guest.memory.available < headroom
        return is_short and (machine.target or MEMORY) < MEMORY


def honest(turn: int) -> MachineConfig:
    """A guest whose processes need much in each second hour."""
    steps = [
        step
        for hour in range(turn, HOURS, 2)
        for sign, minute in ((1, 10), (-1, 40))
        for step in ramp(
            (hour * HOUR + minute * MINUTE) * SECOND,
            (hour * HOUR + (minute + 10) * MINUTE) * SECOND,
            sign * 1536 * MiB,
        )
    ]
    guest = evolve(GUEST, cache=2 * GiB, workload=tuple(steps))
    return MachineConfig(memory=MEMORY, guest=guest)


async def visit(world: World, name: str, vm: Hostile, minutes: int) -> None:
    """Have a hostile VM for a while; the source tells of it a little longer."""
    if vm.is_seen:
        world.seen.add(name)
    async with trio.open_nursery() as nursery:
        fake = world.start(name, vm.config, vm.faults, nursery)
        fake.do(lambda machine: machine.set_target(vm.begins_at))
        await trio.sleep(minutes * MINUTE)
        fake.do(Machine.die)
        await trio.sleep(MINUTE)
        nursery.cancel_scope.cancel()
    del world.specs[name], world.fakes[name]
    world.seen.discard(name)


async def visit_strange(
    world: World, name: str, peer: Callable[[], trio.abc.Stream], minutes: int
) -> None:
    """Have something listen for a while that is no QEMU."""
    world.strange[name] = peer
    world.add(name)
    await trio.sleep(minutes * MINUTE)
    del world.specs[name], world.strange[name]


async def use_memory(world: World, size: int, minutes: int) -> None:
    """Have other processes of the host use memory for a while."""
    world.memory -= size
    await trio.sleep(minutes * MINUTE)
    world.memory += size


async def spend_hour(
    world: World,
    hour: int,
    hostile: list[Hostile],
    strange: list[Callable[[], trio.abc.Stream]],
    rng: random.Random,
) -> None:
    """Let an hour go by, at whose end all visitors have gone."""
    async with trio.open_nursery() as nursery:
        for number in range(VISITS):
            name, minutes = f"{hour}-{number}", rng.randint(1, 10)
            vm = partial(visit, world, f"hostile{name}", rng.choice(hostile), minutes)
            use = partial(use_memory, world, rng.randint(0, 3) * GiB, minutes)
            others = [
                partial(visit_strange, world, f"strange{name}", peer, minutes)
                for peer in strange
            ]
            nursery.start_soon(rng.choice([vm, vm, use, *others]))
            await trio.sleep(10 * MINUTE)
    await trio.sleep((hour + 1) * HOUR - trio.current_time())


@pytest.mark.timeout(600 * DAYS)
@given(
    hostile=st.lists(hostile_vms, min_size=8, max_size=12),
    strange=strangers,
    seed=st.integers(0, 1000),
)
@settings(max_examples=DAYS, phases=[Phase.explicit, Phase.generate])
def test_a_day(
    hostile: list[Hostile],
    strange: list[Callable[[], trio.abc.Stream]],
    seed: int,
) -> None:
    # The first that hypothesis draws is one VM again and again, and says little.
    assume(len({vm.begins_at for vm in hostile}) > 1)
    rng = random.Random(seed)
    readings: list[Reading] = []

    @simulated
    async def main() -> None:
        async with open_world(limit=2 * HOURS * HOUR) as world:
            world.memory = 6 * GiB
            for turn, name in enumerate(HONEST):
                world.seen.add(name)
                world.start(name, honest(turn))
            diary = Diary(world)
            async with (
                supervised(world, SETTINGS) as fleet,
                trio.open_nursery() as nursery,
            ):
                run = partial(
                    run_control_loop, period=SETTINGS.period, on_plan=diary.note
                )
                nursery.start_soon(run, fleet, world.read, RULES)
                for hour in range(HOURS):
                    await spend_hour(world, hour, hostile, strange, rng)
                    readings.append(Reading.take())
                nursery.cancel_scope.cancel()
            assert diary.plans > HOURS * HOUR / SETTINGS.period / 2
            assert diary.longest <= PATIENCE
            assert diary.starved == 0

    main()
    check(readings)
