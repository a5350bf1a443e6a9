"""Simulated hosts: fake QEMUs on a mock clock, and the fleet that supervises them."""

from __future__ import annotations

import random
from contextlib import asynccontextmanager
from functools import partial, wraps
from typing import TYPE_CHECKING, Any, cast

import trio
import trio.testing
from attrs import define, evolve, field

from qmpballoon.address import UnixAddress
from qmpballoon.fleet.guests import Host
from qmpballoon.fleet.supervisor import Supervisor, open_fleet
from qmpballoon.fleet.vm_spec import VmSpec
from qmpballoon.sizes import GiB
from qmpballoon.testing import (
    NO_FAULTS,
    FakeQemu,
    FaultPlan,
    Machine,
    MachineConfig,
    profile,
)
from qmpballoon.trio import open_monitor

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

    from qmpballoon.address import Vm
    from qmpballoon.fleet.openers import Opener
    from qmpballoon.fleet.vm_task import Settings
    from qmpballoon.fleet.vm_view import VmState, VmView
    from qmpballoon.monitor import OwedSize
    from qmpballoon.trio import TrioMonitor

EPOCH = 1_750_000_000
GUEST = MachineConfig().guest


@define
class World:
    """A host with its VMs.

    Attributes:
        fakes: The QEMUs, by name.
        strange: What else listens somewhere: connects a client to it, by name.
        specs: What the source tells; all VMs, unless a test changes it.
        memory: Of the host, in bytes.
        dialled: When somebody connected to whom.
        start_time: When it began, by trio's clock.
        seen: The VMs whose memory and processor time the host sees.
        limit: What all VMs together may hold, in bytes.
        notes: Where it is noted what guests are to get back, by the VM's name.
    """

    nursery: trio.Nursery
    fakes: dict[str, FakeQemu] = field(factory=dict[str, FakeQemu])
    strange: dict[str, Callable[[], trio.abc.Stream]] = field(factory=dict)
    specs: dict[str, VmSpec] = field(factory=dict[str, VmSpec])
    memory: int = 64 * GiB
    dialled: list[tuple[float, str]] = field(factory=list)
    start_time: float = field(factory=trio.current_time)
    seen: set[str] = field(factory=set[str])
    limit: int | None = None
    notes: dict[str, OwedSize] = field(factory=dict[str, "OwedSize"])

    def start(
        self,
        name: str,
        config: MachineConfig | None = None,
        faults: FaultPlan = NO_FAULTS,
        nursery: trio.Nursery | None = None,
    ) -> FakeQemu:
        """Start a VM, whose tasks end with the world, or with a nursery before."""
        machine = Machine(config or MachineConfig(), profile("10.0"), random.Random(1))
        fake = self.fakes[name] = FakeQemu(machine, faults)
        fake.start(nursery or self.nursery)
        self.add(name)
        return fake

    def add(self, name: str, **limits: object) -> None:
        """Let the source tell of a VM."""
        spec = VmSpec(name, UnixAddress(name))
        self.specs[name] = evolve(spec, **limits)  # type: ignore[arg-type]

    def source(self) -> list[VmSpec]:
        return list(self.specs.values())

    @asynccontextmanager
    async def reach(
        self, vm: Vm, /, *, timeout: float, command_timeout: float
    ) -> AsyncGenerator[TrioMonitor]:
        async with open_monitor(
            self.dial(vm),
            timeout=timeout,
            command_timeout=command_timeout,
            wall_clock=self.wall_clock,
        ) as monitor:
            if str(vm) in self.seen:
                # Streams in memory have no process at the other end.
                fake = self.fakes[str(vm)]
                monitor.resident = lambda: fake.machine.resident  # type: ignore[method-assign]
                processor = _Processor(fake)
                monitor.processor_time = processor.read  # type: ignore[method-assign]
            note = self.notes.get(str(vm))
            yield monitor if note is None else cast("Any", _Noting(monitor, note))

    def wall_clock(self) -> float:
        """Return seconds since the epoch."""
        return EPOCH + trio.current_time() - self.start_time

    def dial(self, vm: Vm) -> trio.abc.Stream:
        name = str(vm)
        self.dialled.append((trio.current_time(), name))
        if name in self.fakes and not self.fakes[name].machine.ended:
            return self.fakes[name].connect()
        return self.strange.get(name, _closed)()

    def read(self, held: int, promised: int) -> Host:
        """Read the host: what its VMs have not been given is available."""
        used = sum(
            fake.machine.resident
            for fake in self.fakes.values()
            if not fake.machine.ended
        )
        available = self.memory - used
        if self.limit is not None:
            available = min(available, self.limit - held)
        return Host(total=self.memory, available=available, promised=promised)


@define
class _Processor:
    """How long a fake's guest has run: as long as it takes to change memory.

    Attributes:
        fake: The QEMU.
        seconds: For how long it has run.
    """

    fake: FakeQemu
    seconds: float = 0.0
    _last: tuple[int, ...] = (0, 0, 0)

    def read(self) -> float:
        """Return for how long it has run so far, at 20 GiB a second."""
        memory = self.fake.machine.guest.memory
        last, self._last = self._last, (memory.used, memory.cache, memory.free)
        changed = sum(abs(a - b) for a, b in zip(last, self._last, strict=True))
        self.seconds += changed / (20 * GiB)
        return self.seconds


class _Noting:
    """A monitor that keeps notes although its QEMU is no process."""

    def __init__(self, monitor: TrioMonitor, note: OwedSize) -> None:
        self._monitor = monitor
        self.owed_size = note

    def __getattr__(self, name: str) -> object:
        return getattr(self._monitor, name)


def simulated(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Run an asynchronous test on a mock clock, which jumps when nobody is busy."""

    @wraps(test)
    def run(**arguments: object) -> None:
        clock = trio.testing.MockClock(autojump_threshold=0)
        trio.run(partial(test, **arguments), clock=clock)

    return run


def _closed() -> trio.abc.Stream:
    ours, theirs = trio.testing.memory_stream_pair()
    theirs.send_stream.close()
    theirs.receive_stream.close()
    return ours


@asynccontextmanager
async def open_world(limit: float = 3600) -> AsyncGenerator[World]:
    """Have a host without any VM, for so many seconds at most."""
    # Of mock time: a world in which nothing happens any more would never end.
    with trio.fail_after(limit):
        async with trio.open_nursery() as nursery:
            yield World(nursery)
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def supervised(
    world: World,
    settings: Settings | None = None,
    seed: int = 0,
    opener: Opener | None = None,
) -> AsyncGenerator[Supervisor]:
    """Have a world's VMs supervised."""
    async with open_fleet(
        world.source,
        random.Random(seed),
        settings=settings,
        opener=opener or world.reach,
    ) as supervisor:
        yield supervisor


def view(supervisor: Supervisor, name: str) -> VmView:
    (found,) = [view for view in supervisor.list_views() if view.name == name]
    return found


def states(supervisor: Supervisor) -> dict[str, VmState]:
    return {view.name: view.state for view in supervisor.list_views()}


async def become(
    supervisor: Supervisor, wanted: dict[str, VmState], seconds: float = 60.0
) -> None:
    """Wait until VMs are in certain states."""
    with trio.move_on_after(seconds):
        # Time is simulated, and some states come about by nothing happening.
        while not wanted.items() <= states(supervisor).items():  # noqa: ASYNC110
            await trio.sleep(0.5)
        return
    raise AssertionError(f"wanted {wanted}, found {states(supervisor)}")
