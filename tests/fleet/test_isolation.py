"""Whatever one VM raises is that VM's state and one line in the log.

An exception is injected at each call that a VM's task makes of its surroundings, one
after the other. Each time its neighbour must not notice, and the VM must recover.
"""

from __future__ import annotations

import logging
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio
from attrs import define, evolve
from worlds import become, open_world, simulated, states, supervised, view

from qmpballoon.errors import ProtocolError
from qmpballoon.fleet import control_loop
from qmpballoon.fleet.control_loop import decide
from qmpballoon.fleet.policy import Move, Rules, make_plan
from qmpballoon.fleet.vm import VmRecord
from qmpballoon.sizes import GiB, MiB
from qmpballoon.testing import SECOND
from qmpballoon.trio import TrioMonitor, open_monitor

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterator
    from contextlib import AbstractAsyncContextManager

    import pytest
    from worlds import World

    from qmpballoon.address import Vm
    from qmpballoon.fleet.guests import Guest
    from qmpballoon.fleet.supervisor import Supervisor

RULES = Rules.for_host(64 * GiB)
EXCEPTIONS = [
    KeyError("a bug"),
    OverflowError("integer too large"),
    RecursionError(),
    ExceptionGroup("several", [ValueError("one"), KeyError("two")]),
    ProtocolError("no QMP"),
]


@define
class Trap:
    """Counts the calls that concern the VM ``bad``, and raises at one of them.

    Attributes:
        at: The number of the call.
        error: What is raised.
        calls: How many there have been.
    """

    at: int
    error: Exception
    calls: int = 0

    def step(self) -> None:
        self.calls += 1
        if self.calls == self.at:
            raise self.error

    def wrap(self, monkeypatch: pytest.MonkeyPatch, owner: type, name: str) -> None:
        """Have a method count, where it is the bad VM's."""
        plain: Callable[..., object] = getattr(owner, name)

        def method(self: VmRecord, *args: object) -> object:
            if self.spec.name == "bad":
                trap.step()
            return plain(self, *args)

        trap = self
        monkeypatch.setattr(owner, name, method)


@asynccontextmanager
async def reach(
    world: World, trap: Trap, vm: Vm, timeout: float, command_timeout: float
) -> AsyncGenerator[TrioMonitor]:
    """Open a monitor; the bad VM's raises when its trap says so."""
    bad = str(vm) == "bad"
    if bad:
        trap.step()
    async with open_monitor(
        world.dial(vm), timeout=timeout, command_timeout=command_timeout
    ) as monitor:
        if bad:
            plain = monitor.execute

            async def execute(*args: object, **options: object) -> object:
                trap.step()
                answer = await plain(*args, **options)  # type: ignore[arg-type]
                trap.step()
                return answer

            monitor.execute = execute  # type: ignore[method-assign]
        yield monitor
    if bad:
        trap.step()


RECORD_METHODS = sorted(
    name
    for name in vars(VmRecord)
    if name.startswith(("note_", "make_", "is_known", "get_state"))
    # What is called for a VM that has failed has nothing of the VM left to fail on.
    and name not in ("note_lost", "note_move_dropped")
)


async def live(trap: Trap, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have two VMs move, and see that the good one does whatever the bad one does."""
    for name in RECORD_METHODS:
        trap.wrap(monkeypatch, VmRecord, name)
    async with open_world() as world:
        world.start("bad")
        world.start("good")

        def opener(
            vm: Vm, /, *, timeout: float, command_timeout: float
        ) -> AbstractAsyncContextManager[TrioMonitor]:
            return reach(world, trap, vm, timeout, command_timeout)

        async with supervised(world, opener=opener) as fleet:
            await fleet.wait_until_known(30.0)
            for name in ("bad", "good"):
                fleet.start_move(Move(name, 2 * GiB, 1536 * MiB, "test"))
            await trio.sleep(10)
            decide(fleet, world.read, RULES)
            good = view(fleet, "good")
            assert (good.state, good.actual) == ("healthy", 1536 * MiB)
            assert good.counters.losses == 0
            await become(fleet, {"bad": "healthy", "good": "healthy"})


def test_an_exception_at_every_call_of_a_vm_is_its_own(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calm = Trap(0, KeyError())
    run(calm, monkeypatch)
    assert calm.calls > 100
    for at in chosen(calm.calls):
        error = EXCEPTIONS[at % len(EXCEPTIONS)]
        caplog.clear()
        with caplog.at_level(logging.WARNING, "qmpballoon.fleet"):
            trap = Trap(at, error)
            run(trap, monkeypatch)
        if trap.calls < at:
            continue  # tasks take turns at random: in this run there are fewer calls
        # What QEMU refuses can be something that a move can do without.
        least = 0 if isinstance(error, ProtocolError) else 1
        told = [
            seen.getMessage()
            for seen in caplog.records
            if seen.name == "qmpballoon.fleet"
        ]
        assert least <= len(told) <= 1, at
        for line in told:
            assert line.startswith("bad: ")
            assert line.isprintable()


def chosen(calls: int) -> Iterator[int]:
    """Every early call, and then some: a poll is like the one before."""
    yield from range(1, min(calls, 80))
    yield from range(80, calls, 17)


def run(trap: Trap, monkeypatch: pytest.MonkeyPatch) -> None:
    @simulated
    async def one() -> None:
        with monkeypatch.context() as patch:
            await live(trap, patch)

    one()


@simulated
async def test_an_exception_while_it_ends_leaves_the_fleet_in_order() -> None:
    async with open_world() as world:
        world.start("bad")
        world.start("good")

        @asynccontextmanager
        async def opener(
            vm: Vm, /, *, timeout: float, command_timeout: float
        ) -> AsyncGenerator[TrioMonitor]:
            async with world.reach(
                vm, timeout=timeout, command_timeout=command_timeout
            ) as monitor:
                try:
                    yield monitor
                finally:
                    if str(vm) == "bad":
                        raise KeyError(vm)

        async with supervised(world, opener=opener) as fleet:
            await become(fleet, {"bad": "healthy", "good": "healthy"})
    good = world.fakes["good"].machine.device
    assert good is not None
    assert good.interval == 0


@simulated
async def test_a_figure_that_spoils_plans_is_its_vms_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spoiled = [True]

    def plan(host: object, guests: list[Guest], rules: object) -> object:
        if spoiled[0] and any(guest.name == "bad" for guest in guests):
            raise OverflowError("int too large to convert to float")
        return make_plan(host, guests, rules)  # type: ignore[arg-type]

    monkeypatch.setattr(control_loop, "make_plan", plan)
    async with open_world() as world:
        world.start("bad")
        world.start("good")
        async with supervised(world) as fleet:
            await become(fleet, {"bad": "healthy", "good": "healthy"})
            _, made = decide(fleet, world.read, evolve(RULES, reserve=64 * GiB))
            assert [move.name for move in made.moves] == ["good"]
            assert states(fleet) == {"bad": "failed", "good": "healthy"}
            assert "int too large" in view(fleet, "bad").detail
            spoiled[0] = False
            await become(fleet, {"bad": "healthy", "good": "healthy"})


@simulated
async def test_a_scan_that_fails_leaves_the_fleet_as_it_is(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with open_world() as world:
        world.start("vm")
        async with supervised(world) as fleet:
            await become(fleet, {"vm": "healthy"})
            specs, world.specs = world.specs, None  # type: ignore[assignment]
            with caplog.at_level(logging.WARNING, "qmpballoon.fleet"):
                await trio.sleep(60)
            assert len(caplog.records) == 1
            (refused,) = fleet.list_refused()
            assert "values" in refused.reason
            assert states(fleet) == {"vm": "healthy"}
            world.specs = specs
            world.start("new")
            await become(fleet, {"vm": "healthy", "new": "healthy"})
            assert fleet.list_refused() == []


# Ending


async def end_while(fleet: Supervisor, world: World, name: str) -> None:
    """Let a VM hang in the middle of a move."""
    fleet.start_move(Move(name, 2 * GiB, GiB, "test"))
    await trio.sleep(0.3)
    world.fakes[name].machine.reply_delay = 3600 * SECOND
    world.fakes[name].touch()


@simulated
async def test_who_was_left_on_its_way_is_known_in_the_end() -> None:
    async with open_world() as world:
        for name in ("hangs", "waits", "well"):
            world.start(name)
        async with supervised(world) as fleet:
            await become(fleet, dict.fromkeys(("hangs", "waits", "well"), "healthy"))
            waits = world.fakes["waits"].machine
            waits.reply_delay = 3600 * SECOND
            await trio.sleep(2)
            fleet.start_move(Move("well", 2 * GiB, GiB, "test"))
            fleet.start_move(Move("waits", 2 * GiB, GiB, "test"))
            await end_while(fleet, world, "hangs")
        # Nothing was sent to the one that hung before.
        (left,) = fleet.list_left()
        assert (left.name, left.target) == ("hangs", GiB)
        assert left.actual is not None
        assert left.actual > GiB


@simulated
async def test_a_guest_that_nothing_was_sent_to_is_not_left_on_its_way() -> None:
    async with open_world() as world:
        world.start("begins")
        world.start("told")
        async with supervised(world) as fleet:
            await become(fleet, {"begins": "healthy", "told": "healthy"})
            fleet.start_move(Move("begins", 2 * GiB, GiB, "test"))
            # Its move begins, and waits for a sample.
            await trio.testing.wait_all_tasks_blocked()
            fleet.start_move(Move("told", 2 * GiB, GiB, "test"))
        assert fleet.list_left() == []
        for fake in world.fakes.values():
            assert fake.machine.target == 2 * GiB
