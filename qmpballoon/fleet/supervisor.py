"""Keeping in touch with all VMs at once, on trio.

Each VM has a task of its own, which connects, looks at the VM once a period, moves
its balloon when told to, and connects anew when the connection is lost. The tasks
wait for nobody but their own VM, and every wait of theirs has a deadline: a VM that
hangs, or sends nonsense, costs the others nothing.

Looks are spread over the period, and so are new attempts to connect, at random: a
thousand VMs do not all come in the same millisecond.

A monitor serves one client at a time. While a fleet is supervised, its monitors are
held; give VMs that others talk to as well a second monitor (``-qmp``). libvirt shares
those that are its own.
"""

from __future__ import annotations

import math
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final, Protocol

import trio
from attrs import asdict, define, evolve, field, frozen

from qmpballoon._checks import require_seconds
from qmpballoon._transport.qemu_process import read_resident
from qmpballoon._transport.trio_tasks import BackgroundTasks
from qmpballoon.address import LibvirtVm
from qmpballoon.balloon import StallLimits
from qmpballoon.balloon.balloon import find_balloon
from qmpballoon.balloon.guard import RESIZE_HEADROOM
from qmpballoon.errors import (
    BalloonUnavailable,
    MonitorBusy,
    MonitorTimeout,
    MonitorUnreachable,
    NoBalloonDevice,
    QmpBalloonError,
)
from qmpballoon.fleet.vm import Record
from qmpballoon.monitor import Monitor
from qmpballoon.trio import open_monitor

if TYPE_CHECKING:
    import random
    from collections.abc import AsyncGenerator, Callable
    from contextlib import AbstractAsyncContextManager

    from qmpballoon.address import Vm
    from qmpballoon.balloon.balloon import Balloon
    from qmpballoon.fleet.members import Member
    from qmpballoon.fleet.policy import Move
    from qmpballoon.fleet.sources import Source
    from qmpballoon.fleet.vm import State, View

__all__ = ["FleetMonitor", "Opener", "Settings", "Supervisor", "open_fleet"]

_DAY: Final = 86400  # seconds
_TOTAL_EVERY: Final = 60  # looks; RAM changes only when some is plugged
_STALL: Final = StallLimits(window=2.0)  # others can take over; there is no hurry
_MOST: Final = 2.0  # each attempt to connect waits up to so many times longer
_STATES: Final[dict[type[QmpBalloonError], State]] = {
    MonitorBusy: "busy",
    NoBalloonDevice: "no-balloon",
    BalloonUnavailable: "no-balloon",
    QmpBalloonError: "gone",
}


@frozen
class Settings:
    """How often things are done, and how long they may take; in seconds.

    Attributes:
        period: Between two looks at a VM, and two plans: guests that grow are to have
            enough until the next. Above 0, and a day at most.
        stale_after: Without an answer of the guest, after which it is silent.
        rescan: Between two looks for VMs that have come or gone; likewise.
        open_timeout: For connecting and greeting.
        command_timeout: For one command.
        move_timeout: For one move of a balloon.
        first_pause: Before the first new attempt to connect.
        longest_pause: Between two attempts.

    Raises:
        TypeError: One of them is no number.
        ValueError: One of them is out of range.
    """

    period: float = 1.0
    stale_after: float = 5.0
    rescan: float = 5.0
    open_timeout: float = 5.0
    command_timeout: float = 5.0
    move_timeout: float = 30.0
    first_pause: float = 0.5
    longest_pause: float = 30.0

    def __attrs_post_init__(self) -> None:
        """Refuse what would make tasks fail, or spin, later on."""
        for name, seconds in asdict(self).items():
            require_seconds(seconds, name)
        for name in ("period", "rescan"):
            seconds = getattr(self, name)
            if not 0 < seconds <= _DAY:
                raise ValueError(
                    f"{name} is {seconds}: it must be above 0, and {_DAY} seconds at"
                    " most"
                )


class Opener(Protocol):
    """Reaches a VM, and is done with it when the block is left."""

    def __call__(
        self, vm: Vm, /, *, timeout: float, command_timeout: float
    ) -> AbstractAsyncContextManager[FleetMonitor]:
        """Reach a VM.

        Args:
            vm: Where it is.
            timeout: Seconds for that.
            command_timeout: Seconds for each command.

        Raises:
            MonitorError: It cannot be reached.
        """
        ...


class FleetMonitor(Monitor, Protocol):
    """A monitor that knows what its QEMU holds."""

    def resident(self) -> int | None:
        """Return QEMU's resident memory in bytes, ``None`` if it cannot be known."""
        ...


@asynccontextmanager
async def open_socket(
    vm: Vm, /, *, timeout: float, command_timeout: float
) -> AsyncGenerator[FleetMonitor, None]:
    """Reach a VM that has a monitor of its own; as :class:`Opener`."""
    if isinstance(vm, LibvirtVm):
        raise MonitorUnreachable(
            f"{vm} is libvirt's, and this fleet reaches sockets alone: the command"
            " `qmpballoon fleet` reaches both"
        )
    async with open_monitor(
        vm, timeout=timeout, command_timeout=command_timeout
    ) as monitor:
        yield monitor


@define
class _Attendant:
    """A VM's record, and what its task is told."""

    record: Record
    scope: trio.CancelScope = field(factory=trio.CancelScope)
    wanted: int | None = None
    told: trio.Event = field(factory=trio.Event)

    @property
    def is_idle(self) -> bool:
        """Whether it has nothing to do but to look."""
        record = self.record
        looked_at = record.looked_at > -math.inf
        return record.connected and looked_at and record.target is None


@asynccontextmanager
async def open_fleet(
    source: Source,
    rng: random.Random,
    *,
    settings: Settings | None = None,
    opener: Opener = open_socket,
    wall_clock: Callable[[], float] = time.time,
) -> AsyncGenerator[Supervisor, None]:
    """Supervise a fleet within an ``async with`` block.

    Args:
        source: Tells which VMs there are.
        rng: Spreads looks and attempts to connect.
        settings: How often things are done, and how long they may take.
        opener: Reaches a VM; by default those that have a socket of their own.
        wall_clock: Tells seconds since the epoch, for the age of statistics.

    Yields:
        The supervisor. At the end of the block guests that were shrinking stay at
        the size they have come to, statistics intervals are put back, and the
        connections closed. This takes some seconds at most.

    Cancellation: at any moment. The fleet is supervised until the block is left, so
    what the block does on its way out can still move balloons.
    """
    supervisor = Supervisor(
        source,
        rng,
        settings=settings or Settings(),
        opener=opener,
        wall_clock=wall_clock,
    )
    async with BackgroundTasks(shield=True) as tasks:
        await tasks.start(supervisor.run)
        yield supervisor


class Supervisor:
    """Keeps in touch with a fleet; made by :func:`open_fleet`."""

    def __init__(
        self,
        source: Source,
        rng: random.Random,
        *,
        settings: Settings,
        opener: Opener,
        wall_clock: Callable[[], float],
    ) -> None:
        self._source = source
        self._rng = rng
        self._settings = settings
        self._opener = opener
        self._wall_clock = wall_clock
        self._attendants: dict[str, _Attendant] = {}
        self._changed = trio.Event()

    async def run(self, task_status: trio.TaskStatus[None]) -> None:
        """Supervise the fleet until cancelled; started when the source was read."""
        async with trio.open_nursery() as nursery:
            self._scan(nursery)
            task_status.started()
            while True:
                await trio.sleep(self._settings.rescan)
                self._scan(nursery)

    # What is known

    def views(self) -> list[View]:
        """Return all VMs as they are now, by name."""
        now = trio.current_time()
        return sorted(
            (attendant.record.view(now) for attendant in self._attendants.values()),
            key=lambda view: view.name,
        )

    def members(self) -> list[Member]:
        """Return those that can be moved now, or are on their way."""
        now = trio.current_time()
        members = (a.record.member(now) for a in self._attendants.values())
        return [member for member in members if member is not None]

    @property
    def held(self) -> int:
        """Bytes of the host's memory that the QEMUs hold, as far as that is known."""
        return sum(a.record.resident or 0 for a in self._attendants.values())

    @property
    def promised(self) -> int:
        """Bytes that guests were given and have not touched yet."""
        return sum(a.record.promised for a in self._attendants.values())

    @property
    def lateness(self) -> float:
        """Seconds by which the look is late that is the latest of all.

        VMs that cannot be looked at, or are on their way, do not count.
        """
        now = trio.current_time()
        looks = (a.record.looked_at for a in self._attendants.values() if a.is_idle)
        return max(0.0, now - min(looks, default=now) - self._settings.period)

    async def known(self, timeout: float = math.inf) -> bool:
        """Wait until every VM is known well enough to plan with, or cannot be.

        Args:
            timeout: Seconds to wait at most.

        Returns:
            Whether it came to that.

        Cancellation: at once.
        """
        return await self._until(lambda record, now: record.is_known(now), timeout)

    async def still(self, timeout: float = math.inf) -> bool:
        """Wait until no VM is on its way.

        Args:
            timeout: Seconds to wait at most.

        Returns:
            Whether it came to that.

        Cancellation: at once; the moves go on.
        """
        return await self._until(lambda record, _: record.target is None, timeout)

    async def _until(
        self, condition: Callable[[Record, float], bool], timeout: float
    ) -> bool:
        def all_do() -> bool:
            now = trio.current_time()
            return all(condition(a.record, now) for a in self._attendants.values())

        with trio.move_on_after(timeout):
            while not all_do():
                # Some states come about by nothing happening.
                with trio.move_on_after(self._settings.period):
                    await self._changed.wait()
        return all_do()

    def order(self, move: Move) -> None:
        """Have a VM moved by its task; how it goes is seen in its view.

        A VM that has gone since, or is on its way, is left as it is.
        """
        attendant = self._attendants.get(move.name)
        if attendant is None or not attendant.record.connected:
            return
        if attendant.record.target is None:
            attendant.record.begin(move.target)
            attendant.wanted = move.target
            attendant.told.set()

    # The VMs' tasks

    def _scan(self, nursery: trio.Nursery) -> None:
        """Begin to attend to VMs that have come, and forget those that have gone."""
        specs = {spec.name: spec for spec in self._source()}
        for name, attendant in list(self._attendants.items()):
            record = attendant.record
            # A socket may be unlinked while QEMU runs on: its connection stands.
            if specs.get(name) != record.spec and not record.connected:
                attendant.scope.cancel()
                del self._attendants[name]
        for name, spec in specs.items():
            if name not in self._attendants:
                settings = self._settings
                record = Record(spec, settings.stale_after, settings.period)
                attendant = self._attendants[name] = _Attendant(record)
                nursery.start_soon(self._attend, attendant)

    async def _attend(self, attendant: _Attendant) -> None:
        """Be in touch with one VM for as long as it belongs to the fleet."""
        record, failures = attendant.record, 0
        with attendant.scope:
            await trio.sleep(self._rng.uniform(0, self._settings.period))
            while True:
                try:
                    await self._visit(attendant)
                except QmpBalloonError as error:
                    failures = 0 if record.connected else failures + 1
                    record.lose(_state(error), str(error), _resident(error))
                    attendant.wanted = None
                    self._tell()
                await trio.sleep(self._pause(failures))

    def _pause(self, failures: int) -> float:
        settings = self._settings
        pause = settings.first_pause * _MOST ** min(failures, 32)
        return min(pause, settings.longest_pause) * self._rng.uniform(0.5, 1.0)

    async def _visit(self, attendant: _Attendant) -> None:
        """Connect to a VM and stay with it until the connection is lost."""
        record, settings = attendant.record, self._settings
        async with self._opener(
            record.spec.address,
            timeout=settings.open_timeout,
            command_timeout=settings.command_timeout,
        ) as monitor:
            balloon = await find_balloon(
                monitor, resident=monitor.resident, wall_clock=self._wall_clock
            )
            record.connect(trio.current_time())
            # What the guest says from now on is seen to be new.
            await self._look(record, balloon)
            async with balloon.stats_interval(math.ceil(settings.period)):
                await self._stay(attendant, balloon)

    async def _stay(self, attendant: _Attendant, balloon: Balloon) -> None:
        due, looks = trio.current_time(), 0
        while True:
            try:
                if looks % _TOTAL_EVERY == 0:
                    attendant.record.learn_total((await balloon.query()).total)
                looks += 1
                await self._look(attendant.record, balloon)
                due = max(due + self._settings.period, trio.current_time())
                with trio.move_on_at(due):
                    await attendant.told.wait()
                if attendant.wanted is not None:
                    await self._move(attendant, balloon, attendant.wanted)
            except MonitorTimeout as error:
                # QEMU is stopped or overloaded. Connecting anew would not help.
                attendant.record.fall_silent(str(error))
                self._tell()

    async def _look(self, record: Record, balloon: Balloon) -> None:
        stats = await balloon.stats()
        actual = await balloon.actual()
        record.look(trio.current_time(), actual, stats, balloon.resident())
        self._tell()

    async def _move(self, attendant: _Attendant, balloon: Balloon, target: int) -> None:
        """Bring a VM to a size, watched by whoever knows best how to."""
        record = attendant.record
        attendant.wanted, attendant.told = None, trio.Event()
        headroom = record.bounds.headroom if record.bounds else RESIZE_HEADROOM
        before = record.actual or target
        try:
            if target > before:
                # A guest in need cannot wait until all about it has been looked at.
                await balloon.set_target(target)
            result = await balloon.resize(
                target,
                timeout=self._settings.move_timeout,
                on_stall="settle",
                headroom=headroom,
                on_progress=lambda seen: record.pass_by(
                    trio.current_time(), seen.actual
                ),
                limits=_STALL,
            )
            record.finish(trio.current_time(), evolve(result, before=before))
        finally:
            record.stop()
            self._tell()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = trio.Event()


def _state(error: QmpBalloonError) -> State:
    return next(state for kind, state in _STATES.items() if isinstance(error, kind))


def _resident(error: QmpBalloonError) -> int | None:
    """Return what a QEMU holds that could not be talked to, if that can be known."""
    pid = error.pid if isinstance(error, MonitorBusy) else None
    return None if pid is None else read_resident(pid)
