"""Stay connected to all VMs of a fleet, poll them, and move their balloons; on trio.

Each VM has a task of its own. The task connects to the VM's monitor, polls the VM once
a period, moves its balloon when told to, and connects again when the connection is
lost. A task waits only for its own VM, and each wait has a deadline. So a VM that
hangs, or that sends garbage, does not delay the others. An exception in a VM's task, or
in computing with its figures, becomes the state of this VM and one line in the log.

Polls are spread over the period at random, and so are attempts to connect. Otherwise a
thousand VMs would all be polled in the same millisecond. A guest that has hardly run
since its last poll is polled every fourth period only: see ``VmRecord.may_wait``.

A monitor serves one client at a time, and a supervised fleet holds the monitors of its
VMs. If other programs talk to a VM, start it with a second monitor (``-qmp``). A VM of
libvirt's needs none: requests to it go through libvirt.
"""

from __future__ import annotations

import functools
import logging
import math
import os
import resource
from contextlib import asynccontextmanager, suppress
from errno import EACCES, ECONNREFUSED, ENOENT, EPERM
from itertools import chain, count
from typing import TYPE_CHECKING, Final, Protocol, TypeVar, cast

import trio
from attrs import asdict, define, evolve, field, frozen

from qmpballoon._checks import require_seconds
from qmpballoon._printable import describe_bug, make_printable
from qmpballoon._transport.qemu_process import read_resident
from qmpballoon._transport.reconnection import FIRST_PAUSE, LONGEST_PAUSE, Backoff
from qmpballoon._transport.trio_tasks import BackgroundTasks
from qmpballoon.address import LibvirtVm
from qmpballoon.balloon import StallLimits
from qmpballoon.balloon.guard import RESIZE_GUARD, Guard
from qmpballoon.balloon.results import Diagnosis, ResizeResult
from qmpballoon.errors import (
    BalloonBusy,
    BalloonUnavailable,
    CommandError,
    MonitorBusy,
    MonitorClosed,
    MonitorTimeout,
    MonitorUnreachable,
    NoBalloonDevice,
    QmpBalloonError,
    UntrustedMonitor,
)
from qmpballoon.fleet.poll_turns import PollTurns
from qmpballoon.fleet.processes import identify_process
from qmpballoon.fleet.vm import VmRecord
from qmpballoon.fleet.vm_spec import Refused, VmSpec
from qmpballoon.fleet.vm_view import LeftGuest
from qmpballoon.monitor import read_processor_time
from qmpballoon.sizes import format_size
from qmpballoon.trio import find_balloon, open_monitor

if TYPE_CHECKING:
    import random
    from collections.abc import AsyncGenerator, Callable, Hashable
    from contextlib import AbstractAsyncContextManager

    from qmpballoon.address import Vm
    from qmpballoon.balloon.balloon import Balloon
    from qmpballoon.balloon.sampling import Progress
    from qmpballoon.fleet.guests import Guest
    from qmpballoon.fleet.policy import Move
    from qmpballoon.fleet.sources import Source
    from qmpballoon.fleet.vm_spec import Bounds, Limit
    from qmpballoon.fleet.vm_view import SmallGuest, VmState, VmView
    from qmpballoon.monitor import Monitor

__all__ = [
    "Opener",
    "Settings",
    "Supervisor",
    "open_fleet",
    "raise_descriptor_limit",
]

_T = TypeVar("_T")

_DAY: Final = 86400  # seconds
# Polls. The RAM changes only when memory is plugged. It is also asked for at once if
# the guest has more memory than the RAM that was known.
_RAM_EVERY: Final = 60
# Shorter than by default: other guests can give the memory, so nothing is gained by
# waiting for a slow one.
_STALL: Final = StallLimits(window=2.0)
# Descriptors that stay free: for /proc and the host's memory, a search for VMs, the
# metrics' clients, and the log.
_SPARE_DESCRIPTORS: Final = 8
_LOG: Final = logging.getLogger("qmpballoon.fleet")
_STATES: Final[dict[type[QmpBalloonError], VmState]] = {
    UntrustedMonitor: "refused",
    MonitorBusy: "busy",
    NoBalloonDevice: "no-balloon",
    BalloonUnavailable: "no-balloon",
    QmpBalloonError: "gone",
}


@frozen
class Settings:
    """How often a fleet is polled, and how long its VMs may take; in seconds.

    Attributes:
        period: The time between two polls of a VM, and between two plans. A plan gives
            guests enough memory until the next one. Above 0, and a day at most.
        stale_after: The time without an answer, after which a guest counts as silent.
        rescan: The time between two searches for VMs that have started or ended. Above
            0, and a day at most.
        open_timeout: How long connecting and the greeting may take.
        command_timeout: How long one command may take.
        move_timeout: How long one move of a balloon may take.
        first_pause: The time before the first attempt to connect again.
        longest_pause: The time between two attempts at most.

    Raises:
        TypeError: A setting is not a number.
        ValueError: A setting is out of range.
    """

    period: float = 1.0
    stale_after: float = 5.0
    rescan: float = 5.0
    open_timeout: float = 5.0
    command_timeout: float = 5.0
    move_timeout: float = 30.0
    first_pause: float = FIRST_PAUSE
    longest_pause: float = LONGEST_PAUSE

    def __attrs_post_init__(self) -> None:
        """Refuse values that would make tasks fail, or spin, later."""
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
    """Opens a VM's monitor; an asynchronous context manager."""

    def __call__(
        self, vm: Vm, /, *, timeout: float, command_timeout: float
    ) -> AbstractAsyncContextManager[Monitor]:
        """Open a VM's monitor; it is closed at the end of the block.

        Args:
            vm: Where the monitor is.
            timeout: Seconds for connecting and the greeting.
            command_timeout: Seconds for each command.

        Raises:
            MonitorError: The monitor cannot be opened.
        """
        ...


def _open_socket(
    vm: Vm, /, *, timeout: float, command_timeout: float
) -> AbstractAsyncContextManager[Monitor]:
    """Open the monitor of a VM that has a socket; as :class:`Opener`."""
    if isinstance(vm, LibvirtVm):
        raise MonitorUnreachable(
            f"{vm} is libvirt's, and this fleet opens sockets only: give open_fleet an"
            " opener that knows libvirt, or use the command `qmpballoon fleet`"
        )
    # A fleet is supervised for a long time, and others may want to reach its VMs.
    return open_monitor(
        vm, timeout=timeout, command_timeout=command_timeout, own="auto"
    )


@asynccontextmanager
async def open_fleet(
    source: Source,
    rng: random.Random,
    *,
    settings: Settings | None = None,
    opener: Opener | None = None,
) -> AsyncGenerator[Supervisor, None]:
    """Supervise a fleet within an ``async with`` block.

    Args:
        source: Returns the VMs that there are now.
        rng: Spreads polls, and attempts to connect, over time.
        settings: How often things are done, and how long they may take.
        opener: Opens a VM's monitor. By default it opens sockets only, not VMs of
            libvirt's.

    Yields:
        The supervisor. At the end of the block, which takes some seconds at most,
        guests that were shrinking stay at the size that they have reached, the
        statistics intervals are restored, and the connections are closed.

    Note:
        It can be cancelled at any moment. The fleet is supervised until the block is
        left. So cleanup code in the block can still move balloons.
    """
    supervisor = Supervisor(
        source,
        rng,
        settings=settings or Settings(),
        opener=opener or _open_socket,
    )
    async with BackgroundTasks(shield=True) as tasks:
        await tasks.start(supervisor.run)
        yield supervisor


@define(eq=False)
class _VmTask:
    """What is known of a VM, and what its task is told to do.

    Attributes:
        record: What is known of the VM.
        spec: What the source says of it. Another VM may have the name in it by now.
        process: An identity of its QEMU process, if that is known.
        twin: The task that holds another monitor of the same QEMU, if there is one.
        life: Cancelled when the VM leaves the fleet.
        scope: Cancelled to end its connection, or the attempt to connect.
        target: The size that it is told to move to.
        insists: Whether that target stays if it is not reached.
        left: The size in bytes that it was moving to when QEMU ceased to answer.
        logged: What was logged last.
        balloon: The VM's balloon, while it is connected.
    """

    record: VmRecord
    spec: VmSpec
    process: Hashable = None
    twin: _VmTask | None = None
    life: trio.CancelScope = field(factory=trio.CancelScope)
    scope: trio.CancelScope = field(factory=trio.CancelScope)
    target: int | None = None
    insists: bool = False
    left: int | None = None
    logged: str = ""
    balloon: Balloon | None = None

    def require_no_twin(self) -> None:
        """Raise MonitorBusy while another task holds a monitor of the same QEMU."""
        if self.twin is not None and not self.twin.record.connected:
            self.twin = None
        if self.twin is not None:
            name = self.twin.record.spec.name
            raise MonitorBusy(f"it is a monitor of {name}, which has another one")

    def may_be(self, spec: VmSpec) -> bool:
        """Tell whether a VM of the source may be this one, by what is known of both.

        A VM that is not connected may have been started again.
        """
        pairs = ((self.process, spec.process), (self.spec.socket, spec.socket))
        known = [pair for pair in pairs if None not in pair]
        return not self.record.connected or not known or known[0][0] == known[0][1]

    def update(self, spec: VmSpec) -> None:
        """Update a VM that is not connected by what the source says now."""
        record = self.record
        if spec.socket != self.spec.socket:
            self.twin = None
        name, is_named = record.spec.name, record.spec.is_named
        record.spec = evolve(spec, name=name, is_named=is_named)
        self.spec, self.process = spec, spec.process

    @property
    def is_polling(self) -> bool:
        """Whether its only work is to poll its VM."""
        record = self.record
        polled = record.polled_at > -math.inf
        return record.connected and polled and record.target is None


class Supervisor:
    """Stays connected to a fleet; made by :func:`open_fleet`."""

    def __init__(
        self,
        source: Source,
        rng: random.Random,
        *,
        settings: Settings,
        opener: Opener,
    ) -> None:
        self._source = source
        self._rng = rng
        self._settings = settings
        self._opener = opener
        self._all_tasks: dict[str, _VmTask] = {}  # by the names that VMs have here
        self._refused: tuple[Refused, ...] = ()
        self._limit: Limit | None = None
        self._changed = trio.Event()
        self._turns = PollTurns(settings.period, self._may_pass)

    async def run(self, task_status: trio.TaskStatus[None]) -> None:
        """Supervise the fleet until cancelled; :func:`open_fleet` does this.

        Args:
            task_status: Notified when the source has been read for the first time.
        """
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._turns.run)
            self._rescan(nursery)
            task_status.started()
            while True:
                await trio.sleep(self._settings.rescan)
                self._rescan(nursery)

    # State

    @property
    def _tasks(self) -> list[_VmTask]:
        """The tasks of all VMs; none of them twice."""
        return [task for task in self._all_tasks.values() if task.twin is None]

    def list_refused(self) -> list[Refused]:
        """Return what the last search for VMs has found and refused, and why."""
        return list(self._refused)

    def list_views(self) -> list[VmView]:
        """Return all VMs as they are now, sorted by name."""
        now = trio.current_time()
        views = [
            self._ask(task, VmRecord.make_view, now) or task.record.make_view(now)
            for task in self._tasks
        ]
        return sorted(views, key=lambda view: view.name)

    def list_owed(self) -> list[VmView]:
        """Return the VMs that an interrupted run owes memory, sorted by name."""
        now = trio.current_time()
        views = [
            self._ask(task, VmRecord.make_view, now)
            for task in self._tasks
            if task.record.owed is not None
        ]
        owed = [view for view in views if view is not None and view.owed is not None]
        return sorted(owed, key=lambda view: view.name)

    def list_guests(self) -> list[Guest]:
        """Return the guests that can be moved now, and those that are moving."""
        now = trio.current_time()
        guests = [self._ask(task, VmRecord.make_guest, now) for task in self._tasks]
        return [guest for guest in guests if guest is not None]

    def list_left(self) -> list[LeftGuest]:
        """Return the guests that were moving when their QEMUs ceased to answer.

        Call this when the fleet is no longer supervised, to learn which were left so.
        """
        return sorted(
            (
                LeftGuest(task.record.spec.name, target, task.record.actual)
                for task in self._tasks
                if (target := task.left) is not None
            ),
            key=lambda left: left.name,
        )

    def list_small(self) -> list[SmallGuest]:
        """Return the guests that have less than all their RAM, sorted by name.

        VMs that cannot be reached are left out, and so are those of :meth:`list_left`.
        Call this when the fleet is no longer supervised, to learn which were left so.
        """
        found = [task.record.find_small() for task in self._tasks if not task.left]
        small = [guest for guest in found if guest is not None]
        return sorted(small, key=lambda guest: guest.name)

    def measure_resident(self) -> None:
        """Read how much of the host's memory each QEMU holds now.

        Polls read it too. But a guest may have touched much memory since its last poll,
        and a plan has to take that into account.
        """
        for task in self._tasks:
            if task.balloon is None:
                continue
            try:
                task.record.note_resident(task.balloon.resident())
            except Exception as error:  # noqa: BLE001 - whatever figures can cause
                self.fail(task.record.spec.name, error)

    @property
    def held(self) -> int:
        """Bytes of the host's memory that the QEMUs hold.

        If a QEMU's resident memory is not known, it counts with all that its guest has.
        """
        now = trio.current_time()
        return sum(task.record.count_held(now) for task in self._tasks)

    @property
    def promised(self) -> int:
        """Bytes that guests were given and have not touched yet."""
        now = trio.current_time()
        return sum(task.record.count_promised(now) for task in self._tasks)

    @property
    def above_floors(self) -> int:
        """Bytes of the host's memory that the guests hold above their floors."""
        return sum(task.record.above_floor for task in self._tasks)

    @property
    def is_complete(self) -> bool:
        """Whether the first attempt to connect to each VM has ended, well or not."""
        now = trio.current_time()
        states = (task.record.get_state(now) for task in self._tasks)
        return "connecting" not in states

    @property
    def poll_delay(self) -> float:
        """Seconds by which the most overdue poll is late.

        VMs that cannot be polled, or that are moving, do not count.
        """
        now = trio.current_time()
        tasks = self._tasks
        polls = (task.record.checked_at for task in tasks if task.is_polling)
        return max(0.0, now - min(polls, default=now) - self._settings.period)

    async def wait_until_known(self, timeout: float = math.inf) -> bool:
        """Wait until each VM is known well enough for plans, or cannot take part.

        Args:
            timeout: Seconds to wait at most.

        Returns:
            Whether that is the case now.

        Note:
            It can be cancelled at any moment.
        """
        return await self._wait_until(lambda record, now: record.is_known(now), timeout)

    async def wait_for_moves(self, timeout: float = math.inf) -> bool:
        """Wait until no VM is moving.

        Args:
            timeout: Seconds to wait at most.

        Returns:
            Whether that is the case now.

        Note:
            It can be cancelled at any moment. The moves continue.
        """
        return await self._wait_until(lambda record, _: record.target is None, timeout)

    async def _wait_until(
        self, condition: Callable[[VmRecord, float], bool], timeout: float
    ) -> bool:
        def holds_for_all() -> bool:
            now = trio.current_time()
            answers = [self._ask(task, condition, now) for task in self._tasks]
            return all(answer is not False for answer in answers)

        with trio.move_on_after(timeout):
            while not holds_for_all():
                # Some states change by the passing of time alone, without an event.
                with trio.move_on_after(self._settings.period):
                    await self._changed.wait()
        return holds_for_all()

    def set_limit(self, limit: Limit) -> None:
        """Change the limits of all VMs, present and future.

        Args:
            limit: Called with a VM's name, its RAM, and the limits of its
                specification; returns the limits that apply. It replaces the previous
                function.
        """
        self._limit = limit
        for task in self._all_tasks.values():
            try:
                task.record.note_limit(limit)
            except Exception as error:  # noqa: BLE001 - whatever a VM's limits cause
                self.fail(task.record.spec.name, error)

    def start_move(self, move: Move, *, insists: bool = False) -> None:
        """Tell a VM's task to move its balloon. The VM's view shows the progress.

        A VM that is no longer connected, that is moving already, or from which another
        process has taken memory, is left as it is.

        Args:
            move: The move.
            insists: Whether the target stays if the guest does not reach it, as where
                it gets back what is its own. Otherwise it stays at what it reached.
        """
        task = self._all_tasks.get(move.name)
        if task is None or not task.record.connected:
            return
        if task.record.target is None:
            try:
                if task.balloon is not None and _is_held(task.record, task.balloon):
                    self._notify()
                    return
                task.record.note_move_started(trio.current_time(), move.target)
            except Exception as error:  # noqa: BLE001 - whatever figures can cause
                self.fail(move.name, error)
                return
            sizes = f"{format_size(move.before)} -> {format_size(move.target)}"
            _LOG.info("%s: move %s; %s", make_printable(move.name), sizes, move.reason)
            task.target, task.insists = move.target, insists
            self._turns.wake(task)

    @asynccontextmanager
    async def borrow(self, name: str, target: int) -> AsyncGenerator[Balloon]:
        """Lend a VM's balloon to a call that moves it, in an ``async with`` block.

        Meanwhile the VM is polled as usual, counts as moving, and is left alone by
        plans. If its connection is lost, calls of the balloon raise.

        Args:
            name: The VM's name.
            target: The size in bytes that it is about to move to, for its view.

        Yields:
            The balloon.

        Raises:
            MonitorUnreachable: There is no VM of that name, or it is not connected.
            BalloonBusy: It is moving already.
        """
        task = self._all_tasks.get(name)
        if task is None or task.balloon is None:
            raise MonitorUnreachable(f"{make_printable(name)} is not connected")
        record, balloon = task.record, task.balloon
        if record.target is not None:
            raise BalloonBusy(f"{make_printable(name)} is moving: wait until it is not")
        record.note_move_started(trio.current_time(), target)
        self._notify()
        try:
            yield balloon
        finally:
            record.note_move_dropped(balloon.target)
            self._notify()

    def note_size(self, name: str, actual: int, available: int | None = None) -> None:
        """Note the size of a VM whose balloon is lent.

        Args:
            name: The VM's name.
            actual: Bytes that the guest has.
            available: Bytes of these that it has available, if that is known.
        """
        task = self._all_tasks.get(name)
        if task is not None and task.balloon is not None:
            now = trio.current_time()
            task.record.note_progress(now, actual, available)

    def note_owed(
        self,
        name: str,
        size: int,
        *,
        is_returning: bool = False,
        is_held: bool = False,
    ) -> None:
        """Note the size that a guest must get back if this process is killed.

        Args:
            name: The VM's name.
            size: Bytes.
            is_returning: Whether it was told to grow to that size.
            is_held: Whether a call in progress takes memory from it, and gives it back.

        Raises:
            BalloonBusy: Another process holds memory of the guest; only with
                ``is_held``.
        """
        task = self._all_tasks.get(name)
        if task is not None and task.balloon is not None:
            task.balloon.note_owed(size, is_returning=is_returning, is_held=is_held)

    def release_owed(self, name: str) -> None:
        """Note that this process does not hold memory of a guest any more.

        What the guest still lacks, whichever process comes next gives back.
        """
        task = self._all_tasks.get(name)
        if task is not None and task.balloon is not None:
            task.balloon.release_owed()

    def settle_owed(self, name: str) -> None:
        """Forget the size that a VM's guest was owed."""
        task = self._all_tasks.get(name)
        if task is not None and task.balloon is not None:
            task.balloon.settle_owed()
            task.record.owed = None

    # Failures

    def fail(self, name: str, error: Exception) -> None:
        """Put a VM out of action, and connect to it again after a pause.

        Args:
            name: The VM's name. If the fleet has no such VM, nothing is done.
            error: What computing with the VM's figures has raised.
        """
        if task := self._all_tasks.get(name):
            self._fail(task, error)
            task.scope.cancel()

    def _ask(
        self, task: _VmTask, ask: Callable[[VmRecord, float], _T], now: float
    ) -> _T | None:
        """Call a function with a VM's record. If it raises, the VM fails: ``None``."""
        try:
            return ask(task.record, now)
        except Exception as error:  # noqa: BLE001 - whatever figures can cause
            self.fail(task.record.spec.name, error)
            return None

    def _fail(self, task: _VmTask, error: Exception) -> None:
        """Note an exception in a VM's task, or in computing with the VM's figures."""
        error = _find_first(error)
        state, detail = _explain(error)
        if state == "failed":
            # With the same figures it might fail again and again.
            task.record = task.record.begin_anew()
            _LOG.debug("%s", task.record.spec.name, exc_info=error)
        if detail != task.logged:
            level = logging.ERROR if state == "failed" else logging.WARNING
            name = make_printable(task.record.spec.name)
            _LOG.log(level, "%s: %s", name, detail)
            task.logged = detail
        resident, has_ended = _read_busy_resident(error), _has_ended(error, task.record)
        task.record.note_lost(state, detail, resident, has_ended=has_ended)
        task.target = None
        self._notify()

    # The VMs' tasks

    def _rescan(self, nursery: trio.Nursery) -> None:
        """Start tasks for new VMs, and end the tasks of VMs that have gone."""
        try:
            found = list(self._source())
        except Exception as error:  # noqa: BLE001 - whatever it is, the VMs stay
            reason = f"VMs cannot be looked for: {make_printable(repr(error))}"
            self._note_refused([Refused("the source of VMs", reason)])
            _LOG.debug("the source of VMs failed", exc_info=True)
            return
        self._note_refused([each for each in found if isinstance(each, Refused)])
        specs = [each for each in found if isinstance(each, VmSpec)]
        known = _match(list(self._all_tasks.values()), specs)
        kept = {id(task) for task in known}
        for name, task in list(self._all_tasks.items()):
            # QEMU may run on without its socket file. Then its connection still works.
            if id(task) not in kept and not task.record.connected:
                task.life.cancel()
                del self._all_tasks[name]
                _LOG.info("%s: not in the fleet any more", make_printable(name))
        for spec, same in zip(specs, known, strict=True):
            if same is None:
                self._start_task(spec, nursery)
            elif not same.record.connected:
                same.update(spec)

    def _start_task(self, spec: VmSpec, nursery: trio.Nursery) -> None:
        name = self._choose_name(spec)
        named = spec if name == spec.name else evolve(spec, name=name)
        settings = self._settings
        record = VmRecord(named, settings.stale_after, settings.period)
        if self._limit is not None:
            record.note_limit(self._limit)
        task = _VmTask(record, spec, spec.process)
        self._all_tasks[named.name] = task
        _LOG.info("%s: in the fleet", make_printable(named.name))
        # Drawn here, so that a VM's turn is the same in each run of a simulation.
        delay = self._rng.uniform(0, settings.period)
        nursery.start_soon(self._run_task, task, delay)

    def _choose_name(self, spec: VmSpec) -> str:
        """Return a name that no other VM has: its own if possible, or its address."""
        address = str(spec.address)
        more = (f"{address} ({number})" for number in count(2))
        names = chain([spec.name, address], more)
        return next(name for name in names if name not in self._all_tasks)

    def _note_refused(self, refused: list[Refused]) -> None:
        for each in set(refused) - set(self._refused):
            _LOG.warning("%s is refused: %s", each.name, each.reason)
        self._refused = tuple(refused)

    async def _run_task(self, task: _VmTask, delay: float) -> None:
        """Connect to a VM again and again, while it belongs to the fleet.

        Args:
            task: The VM's.
            delay: Seconds until it is connected to for the first time.
        """
        # Not stay_connected: its layers would be a tenth of the memory of a VM here.
        backoff = Backoff(
            self._rng, self._settings.first_pause, self._settings.longest_pause
        )
        with task.life:
            await trio.sleep(delay + backoff.begin_attempt())
            while True:
                try:
                    with trio.CancelScope() as task.scope:
                        await self._connect(task)
                # An opener may run tasks, and raise a group that has a cancellation in
                # it, too.
                except* Exception as group:  # noqa: BLE001 - whatever a VM causes
                    error = _find_first(group)
                    if task.record.connected and isinstance(error, QmpBalloonError):
                        backoff.note_success()
                    self._fail(task, error)
                await trio.sleep(backoff.begin_attempt())

    async def _connect(self, task: _VmTask) -> None:
        """Connect to a VM, and poll and move it until the connection is lost."""
        task.require_no_twin()
        _require_descriptors()
        async with self._opener(
            task.record.spec.address,
            timeout=self._settings.open_timeout,
            command_timeout=self._settings.command_timeout,
        ) as monitor:
            self._note_process(task, monitor)
            task.balloon = await self._find_balloon(task, monitor)
            try:
                # This sample may be old. A later one that differs from it is new.
                await self._poll(task.record, task.balloon)
                interval = math.ceil(self._settings.period)
                async with task.balloon.stats_interval(interval):
                    await self._poll_and_move(task, task.balloon)
            finally:
                task.balloon.release_owed()  # another client can reach the guest now
                task.balloon = None

    async def _find_balloon(self, task: _VmTask, monitor: Monitor) -> Balloon:
        """Find the balloon of a VM whose monitor answers."""
        balloon = await find_balloon(monitor)
        if not task.record.spec.is_named:
            await self._ask_name(task, monitor)
        task.record.note_connected(trio.current_time())
        task.record.note_holder(balloon.read_holder())
        task.record.owed = balloon.read_owed()
        task.left = None
        task.logged = ""
        _LOG.info("%s: connected", make_printable(task.record.spec.name))
        return balloon

    def _note_process(self, task: _VmTask, monitor: Monitor) -> None:
        """Note which QEMU a monitor belongs to.

        Raises:
            MonitorBusy: Another task holds a monitor of the same QEMU.
        """
        pid = getattr(monitor, "pid", None)  # not every monitor has one
        process = identify_process(pid) if isinstance(pid, int) else None
        task.process = task.spec.process if process is None else process
        for other in self._tasks:
            same = process is not None and other.process == process
            if same and other is not task and other.record.connected:
                task.twin = other
        task.require_no_twin()

    async def _ask_name(self, task: _VmTask, monitor: Monitor) -> None:
        """Give a VM the name that its QEMU reports, if no other VM has it; once."""
        with suppress(CommandError):
            match await monitor.execute("query-name"):
                case {"name": str(name)} if name:
                    spec = evolve(task.spec, name=make_printable(name))
                    old = task.record.spec.name
                    new = old if spec.name == old else self._choose_name(spec)
                    task.record.spec = evolve(task.record.spec, name=new, is_named=True)
                    self._all_tasks[new] = self._all_tasks.pop(old)
                case _:
                    pass  # it has no name

    async def _poll_and_move(self, task: _VmTask, balloon: Balloon) -> None:
        due, polls = trio.current_time(), 0
        while True:
            try:
                if polls % _RAM_EVERY == 0:
                    await self._ask_ram(task.record, balloon)
                polls += 1
                await self._poll(task.record, balloon)
                if task.record.doubts_ram:
                    await self._ask_ram(task.record, balloon)
                if task.record.is_to_be_prompted(trio.current_time()):
                    await self._prompt(task.record, balloon)
                due = max(due + self._settings.period, trio.current_time())
                if task.target is None:
                    await self._turns.wait(task, due)
                if task.target is not None:
                    await self._move(task, balloon, task.target)
            except MonitorTimeout as error:
                # QEMU is stopped or overloaded. A new connection would not help.
                _LOG.warning("%s: %s", make_printable(task.record.spec.name), error)
                task.record.note_timeout(str(error))
                self._notify()

    def _may_pass(self, task: _VmTask) -> bool:
        """Tell whether a VM need not be polled now; if so, note it as unchanged."""
        monitor, record = task.balloon and task.balloon.monitor, task.record
        now, ran = trio.current_time(), read_processor_time(monitor)
        try:
            record.note_turn(now, ran)
            if may_wait := record.may_wait(now):
                record.note_idle(now)
        except Exception as error:  # noqa: BLE001 - whatever figures can cause
            self.fail(record.spec.name, error)
            return False
        return may_wait

    async def _ask_ram(self, record: VmRecord, balloon: Balloon) -> None:
        info = await balloon.query()
        record.note_ram(info.total, info.capacity)
        self._notify()

    async def _prompt(self, record: VmRecord, balloon: Balloon) -> None:
        """Have QEMU ask a silent guest again: another client may have stopped that."""
        stopped = await balloon.why_stopped()
        record.note_prompted(trio.current_time(), stopped)
        await balloon.request_stats(math.ceil(self._settings.period))

    async def _poll(self, record: VmRecord, balloon: Balloon) -> None:
        record.note_turn(trio.current_time(), read_processor_time(balloon.monitor))
        stats, actual, reads = await balloon.look()
        if record.holder is not None or actual != record.actual:
            _is_held(record, balloon)
        now = trio.current_time()
        record.note_poll(now, actual, stats, balloon.resident(), reads)
        self._notify()

    async def _move(self, task: _VmTask, balloon: Balloon, target: int) -> None:
        """Resize a VM; ``resize`` watches the guest meanwhile."""
        record = task.record
        task.target = None
        guard = _make_guard(record.bounds, target)
        before, task.left = record.actual or target, target
        try:
            if target > before:
                # A guest in need gets its memory before resize takes its first sample.
                await balloon.set_target(target)
            result = await self._resize(record, balloon, target, guard)
            if task.insists and result.target < target:
                await balloon.set_target(target)
                result = evolve(result, target=target)
            record.note_move_ended(trio.current_time(), evolve(result, before=before))
            task.left = None
        except MonitorClosed:
            task.left = None  # the guest has ended with its QEMU
            raise
        finally:
            if not balloon.is_target_in_doubt:
                task.left = None  # nothing was sent, or QEMU has confirmed what was
            record.note_move_dropped(balloon.target)
            self._notify()

    async def _resize(
        self, record: VmRecord, balloon: Balloon, target: int, guard: Guard
    ) -> ResizeResult:
        before = record.actual or target
        with trio.CancelScope() as scope:
            return await balloon.resize(
                target,
                timeout=self._settings.move_timeout,
                on_stall="settle",
                guard=guard,
                on_progress=functools.partial(_note_progress, record, scope),
                limits=_STALL,
            )
        return await _give_up(balloon, before, target)

    def _notify(self) -> None:
        self._changed.set()
        self._changed = trio.Event()


def _is_held(record: VmRecord, balloon: Balloon) -> bool:
    """Note which other process holds memory of a guest; return whether one does."""
    was_held = record.holder is not None
    record.note_holder(balloon.read_holder())
    if was_held and record.holder is None:
        record.owed = balloon.read_owed()  # if that process was killed
    return record.holder is not None


def _note_progress(record: VmRecord, scope: trio.CancelScope, seen: Progress) -> None:
    """Note a move's progress; end it if its guest is about to run out of memory.

    A plan can then give the guest more than the move has taken.
    """
    now = trio.current_time()
    record.note_progress(now, seen.actual, seen.sample.available)
    if record.is_out_soon(now):
        scope.cancel()


async def _give_up(balloon: Balloon, before: int, target: int) -> ResizeResult:
    """Return the result of a move that was ended because its guest needs memory."""
    actual = await balloon.actual()
    why = "its use of memory increases so fast that it would soon be out of it"
    return ResizeResult(
        outcome="settled",
        requested=target,
        before=before,
        actual=actual,
        target=actual,
        seconds=0.0,
        diagnosis=Diagnosis("guest-at-floor", why),
    )


def _make_guard(bounds: Bounds | None, target: int) -> Guard:
    """Make the guard of a move.

    Args:
        bounds: The VM's limits; they are known before its first move.
        target: The size that it moves to. It can be below the floor, if a guest in need
            has less than that and the host cannot give all of it.
    """
    if bounds is None:
        return RESIZE_GUARD
    # A plan has considered what guests read; its moves are orders, as a resize is.
    return Guard(
        headroom=bounds.headroom, floor=min(target, bounds.floor), reread_within=0
    )


def raise_descriptor_limit() -> None:
    """Let this process open more files: raise the soft limit to the hard limit.

    Each VM takes a descriptor. By default a process may have 1024, because select(2)
    cannot handle larger ones; nothing here uses it.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # This can fail: a service may be forbidden to set limits, and the kernel has a
    # limit of its own, which the hard limit may exceed.
    if soft != hard:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _require_descriptors() -> None:
    """Keep some descriptors free for other things than the VMs' monitors.

    Raises:
        MonitorUnreachable: There is none for another VM.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        lowest = os.open("/", os.O_PATH | os.O_CLOEXEC)
        os.close(lowest)
    except OSError:
        lowest = soft
    if soft != resource.RLIM_INFINITY and lowest >= soft - _SPARE_DESCRIPTORS:
        raise MonitorUnreachable(
            f"there is no file descriptor left for it: {soft} are allowed; raise the"
            " limit (ulimit -n, LimitNOFILE=)"
        )


def _match(tasks: list[_VmTask], specs: list[VmSpec]) -> list[_VmTask | None]:
    """Return the task that each VM of a source has already, or ``None``.

    A VM is the same if its QEMU is; where that is not known, if its socket is; and then
    if its address is. No task is returned twice.
    """
    by_process = {task.process: task for task in tasks}
    by_socket = {task.spec.socket: task for task in tasks}
    by_address = {task.spec.address: task for task in tasks}
    left = {id(task) for task in tasks}
    found: list[_VmTask | None] = []
    for spec in specs:
        candidates = (
            None if spec.process is None else by_process.get(spec.process),
            None if spec.socket is None else by_socket.get(spec.socket),
            by_address.get(spec.address),
        )
        fitting = (
            task
            for task in candidates
            if task is not None and id(task) in left and task.may_be(spec)
        )
        task = next(fitting, None)
        left.discard(id(task))
        found.append(task)
    return found


def _find_first(error: Exception) -> Exception:
    """Return the first exception in a group, or the exception if it is not a group."""
    while isinstance(error, ExceptionGroup):
        error = cast("ExceptionGroup[Exception]", error).exceptions[0]
    return error


def _explain(error: Exception) -> tuple[VmState, str]:
    """Return the state of a VM whose task has raised something, and why."""
    if isinstance(error, MonitorUnreachable) and error.errno in {EACCES, EPERM}:
        return "no-permission", make_printable(str(error))
    for kind, state in _STATES.items():
        if isinstance(error, kind):
            return state, make_printable(str(error))
    return "failed", describe_bug(error)


def _has_ended(error: Exception, record: VmRecord) -> bool:
    """Tell whether an error shows that a VM's QEMU has ended.

    A connection that breaks proves little. The next attempt does: it is refused if QEMU
    has ended, or closed by whatever has taken its place.
    """
    if record.connected:
        return False
    if isinstance(error, MonitorUnreachable):
        return error.errno in {ECONNREFUSED, ENOENT}
    return isinstance(error, MonitorClosed)


def _read_busy_resident(error: Exception) -> int | None:
    """Return how much memory a busy monitor's QEMU holds, if that can be known."""
    pid = error.pid if isinstance(error, MonitorBusy) else None
    return None if pid is None else read_resident(pid)
