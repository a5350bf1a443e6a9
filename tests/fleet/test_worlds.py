"""Whole hosts with hostile VMs beside honest ones, on a mock clock.

What is hostile is drawn: guests that lie, are silent or slow, or take memory back;
QEMUs that show figures that no guest can mean; connections that break; peers that are
no QEMU. ``ci`` tries as many worlds as some 60 seconds allow; ``nightly`` tries 2,000.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

import pytest
import trio
import trio.testing
from attrs import define, evolve, field
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from worlds import GUEST, open_world, simulated, states, supervised

from qmpballoon.fleet.control_loop import run_control_loop
from qmpballoon.fleet.policy import Rules
from qmpballoon.sizes import GiB, MiB
from qmpballoon.testing import NO_FAULTS, SECOND, MachineConfig, WorkloadStep, ramp
from qmpballoon.testing.strategies import fault_plans, hostile_machines

if TYPE_CHECKING:
    from collections.abc import Sequence

    from worlds import World

    from qmpballoon.fleet.guests import Host
    from qmpballoon.fleet.policy import FleetPlan
    from qmpballoon.fleet.supervisor import Supervisor
    from qmpballoon.testing import FaultPlan

RULES = Rules(reserve=GiB, buffer=256 * MiB)
DURATION: Final = 45  # seconds of a world
NIGHTLY: Final = settings().max_examples > 1000
WORLDS: Final = 2000 if NIGHTLY else 250


@define
class Hostile:
    """A VM that is not to be believed."""

    config: MachineConfig
    faults: FaultPlan
    is_seen: bool


hostile_vms = st.builds(
    Hostile,
    config=hostile_machines(4 * GiB),
    faults=st.just(NO_FAULTS) | fault_plans(DURATION * SECOND),
    is_seen=st.booleans(),
)


@st.composite
def honest_vms(draw: st.DrawFn) -> MachineConfig:
    """A guest that needs some memory, slowly enough to be helped."""
    total = draw(st.sampled_from([2, 4])) * GiB
    start, size = draw(st.integers(5, 25)), draw(st.integers(0, total // 4 // MiB))
    steps: tuple[WorkloadStep, ...] = ()
    if size:
        steps = ramp(start * SECOND, (start + 15) * SECOND, size * MiB)
    cache = draw(st.integers(0, total // 2 // MiB)) * MiB
    guest = evolve(GUEST, cache=cache, workload=steps)
    return MachineConfig(memory=total, guest=guest)


def babble() -> trio.abc.Stream:
    """Connect to a peer that is no QEMU."""
    ours, _ = trio.testing.memory_stream_pair()
    ours.receive_stream.put_data(b'{"QMP": ["' + b"\x00\xff" * 1000)
    return ours


def keep_silent() -> trio.abc.Stream:
    """Connect to a peer that never says anything."""
    return trio.testing.memory_stream_pair()[0]


strangers = st.lists(st.sampled_from([babble, keep_silent]), max_size=2)


@define
class Ledger:
    """What guests were granted, and what the host had when they were; by the model.

    Attributes:
        world: The host.
        granted: Bytes by name.
        least: The least that was above the reserve when something was granted, had all
            guests touched what they were granted.
    """

    world: World
    granted: dict[str, int] = field(factory=dict[str, int])
    least: int = 64 * GiB

    def count_untouched(self) -> int:
        """Return what guests still may touch of what they were granted."""
        total = 0
        for name, granted in self.granted.items():
            machine = self.world.fakes[name].machine
            if not machine.ended:
                size = machine.actual or 0
                total += min(granted, max(0, size - machine.resident))
        return total

    def note(self, _: Host, plan: FleetPlan) -> None:
        """Note the grants of a plan."""
        grants = {move.name: move.change for move in plan.moves if move.change > 0}
        available = self.world.read(0, 0).available
        given, untouched = sum(grants.values()), self.count_untouched()
        if given:
            above = available - untouched - given - RULES.reserve
            self.least = min(self.least, above)
        for name, size in grants.items():
            self.granted[name] = self.granted.get(name, 0) + size


async def live(world: World, rules: Rules = RULES) -> tuple[Supervisor, Ledger]:
    """Have a world's control loop run for a while."""
    ledger = Ledger(world)
    async with supervised(world) as fleet:
        async with trio.open_nursery() as nursery:
            # What a plan decides on is what the model has at that very moment.
            nursery.start_soon(_run_loop, fleet, world, rules, ledger)
            await trio.sleep(DURATION)
            nursery.cancel_scope.cancel()
        views = fleet.list_views()
        assert {seen.name for seen in views} == set(world.specs)
    return fleet, ledger


async def _run_loop(
    fleet: Supervisor, world: World, rules: Rules, ledger: Ledger
) -> None:
    await run_control_loop(fleet, world.read, rules, on_plan=ledger.note)


def add_honest(world: World, honest: Sequence[MachineConfig]) -> None:
    for number, config in enumerate(honest):
        world.seen.add(f"honest{number}")
        world.start(f"honest{number}", config)


def add_hostile(world: World, hostile: Sequence[Hostile]) -> None:
    for number, vm in enumerate(hostile):
        name = f"hostile{number}"
        if vm.is_seen:
            world.seen.add(name)
        world.start(name, vm.config, vm.faults)


def kills(world: World) -> int:
    return sum(
        fake.machine.guest.oom_kills
        for name, fake in world.fakes.items()
        if name.startswith("honest")
    )


def unexpected(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what was said of exceptions that nobody foresaw."""
    return [
        seen.getMessage()
        for seen in caplog.records
        if seen.name == "qmpballoon.fleet" and seen.levelno >= logging.ERROR
    ]


many = settings(
    max_examples=WORLDS,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


@pytest.mark.timeout(20_000 if NIGHTLY else 600)
@given(
    honest=st.lists(honest_vms(), min_size=1, max_size=2),
    hostile=st.lists(hostile_vms, min_size=1, max_size=3),
    strange=strangers,
    spare=st.integers(-512, 2048).map(lambda size: size * MiB),
)
@many
def test_hostile_vms_harm_themselves_only(
    caplog: pytest.LogCaptureFixture,
    honest: list[MachineConfig],
    hostile: list[Hostile],
    strange: list[object],
    spare: int,
) -> None:
    """Compared is a host on which other processes use all that hostile VMs could."""
    caplog.clear()
    most = sum(vm.config.memory + GiB for vm in hostile)

    async def among_themselves() -> int:
        async with open_world() as world:
            add_honest(world, honest)
            world.memory = -world.read(0, 0).available + world.memory
            world.memory += RULES.reserve + spare
            await live(world)
            return kills(world)

    async def with_others() -> int:
        async with open_world() as world:
            add_honest(world, honest)
            world.memory = -world.read(0, 0).available + world.memory
            world.memory += RULES.reserve + spare + most
            add_hostile(world, hostile)
            for number, peer in enumerate(strange):
                world.strange[f"strange{number}"] = peer  # type: ignore[assignment]
                world.add(f"strange{number}")
            fleet, ledger = await live(world)
            if {f"hostile{n}" for n in range(len(hostile))} <= world.seen:
                assert ledger.least >= 0
            for name, state in states(fleet).items():
                if name.startswith("honest"):
                    assert state in ("healthy", "stalled")
            return kills(world)

    found: list[int] = []

    @simulated
    async def both() -> None:
        found.append(await among_themselves())
        found.append(await with_others())

    both()
    assert unexpected(caplog) == []
    assert found[1] <= found[0]
