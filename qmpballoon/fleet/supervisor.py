"""Supervise a fleet: which VMs it has, how they are, what they are told; on trio.

A VM that the source returns gets a task, which stays connected to it:
:mod:`qmpballoon.fleet.vm_task`. Here is what concerns more than one VM: which task a VM
has already, which name is free, and the figures of all.

Polls are spread over the period at random, and so are attempts to connect. Otherwise a
thousand VMs would all be polled in the same millisecond. A guest that has hardly run
since its last poll is polled every fourth period only: see ``VmRecord.may_wait``.

A monitor serves one client at a time, and a supervised fleet holds the monitors of its
VMs. If other programs talk to a VM, start it with a second monitor (``-qmp``). A VM of
libvirt's needs none: requests to it go through libvirt.
"""

from __future__ import annotations

import logging
import math
from contextlib import asynccontextmanager
from itertools import chain, count
from typing import TYPE_CHECKING, Final

import trio
from attrs import evolve

from qmpballoon._printable import make_printable
from qmpballoon._transport.trio_tasks import BackgroundTasks
from qmpballoon.errors import MonitorUnreachable
from qmpballoon.fleet.openers import open_socket
from qmpballoon.fleet.poll_turns import PollTurns
from qmpballoon.fleet.vm import VmRecord
from qmpballoon.fleet.vm_spec import Refused, VmSpec
from qmpballoon.fleet.vm_task import FleetLinks, Settings, VmTask
from qmpballoon.fleet.vm_view import LeftGuest

if TYPE_CHECKING:
    import random
    from collections.abc import AsyncGenerator, Callable

    from qmpballoon.balloon.balloon import Balloon
    from qmpballoon.fleet.guests import Guest
    from qmpballoon.fleet.openers import Opener
    from qmpballoon.fleet.policy import Move
    from qmpballoon.fleet.sources import Source
    from qmpballoon.fleet.vm_spec import Limit
    from qmpballoon.fleet.vm_view import SmallGuest, VmView

__all__ = ["Supervisor", "open_fleet"]

_LOG: Final = logging.getLogger("qmpballoon.fleet")


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
        opener=opener or open_socket,
    )
    async with BackgroundTasks(shield=True) as tasks:
        await tasks.start(supervisor.run)
        yield supervisor


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
        self._all_tasks: dict[str, VmTask] = {}  # by the names that VMs have here
        self._refused: tuple[Refused, ...] = ()
        self._limit: Limit | None = None
        self._changed = trio.Event()
        self._links = FleetLinks(
            settings,
            opener,
            rng,
            PollTurns(settings.period, VmTask.may_pass),
            notify=self._notify,
            find_twin=self._find_twin,
            rename=self._rename,
        )

    async def run(self, task_status: trio.TaskStatus[None]) -> None:
        """Supervise the fleet until cancelled; :func:`open_fleet` does this.

        Args:
            task_status: Notified when the source has been read for the first time.
        """
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._links.turns.run)
            self._rescan(nursery)
            task_status.started()
            while True:
                await trio.sleep(self._settings.rescan)
                self._rescan(nursery)

    # State

    @property
    def _tasks(self) -> list[VmTask]:
        """The tasks of all VMs; none of them twice."""
        return [task for task in self._all_tasks.values() if task.twin is None]

    def list_refused(self) -> list[Refused]:
        """Return what the last search for VMs has found and refused, and why."""
        return list(self._refused)

    def list_views(self) -> list[VmView]:
        """Return all VMs as they are now, sorted by name."""
        now = trio.current_time()
        views = [
            task.ask(VmRecord.make_view, now) or task.record.make_view(now)
            for task in self._tasks
        ]
        return sorted(views, key=lambda view: view.name)

    def list_owed(self) -> list[VmView]:
        """Return the VMs that an interrupted run owes memory, sorted by name."""
        now = trio.current_time()
        views = [
            task.ask(VmRecord.make_view, now)
            for task in self._tasks
            if task.record.owed is not None
        ]
        owed = [view for view in views if view is not None and view.owed is not None]
        return sorted(owed, key=lambda view: view.name)

    def list_guests(self) -> list[Guest]:
        """Return the guests that can be moved now, and those that are moving."""
        now = trio.current_time()
        guests = [task.ask(VmRecord.make_guest, now) for task in self._tasks]
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
                task.fail(error)

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
            answers = [task.ask(condition, now) for task in self._tasks]
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
                task.fail(error)

    def start_move(self, move: Move, *, insists: bool = False) -> None:
        """Tell a VM's task to move its balloon. The VM's view shows the progress.

        A VM that is no longer connected, that is moving already, or from which another
        process has taken memory, is left as it is.

        Args:
            move: The move.
            insists: Whether the target stays if the guest does not reach it, as where
                it gets back what is its own. Otherwise it stays at what it reached.
        """
        if task := self._all_tasks.get(move.name):
            task.start_move(move, insists=insists)

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
        if task is None:
            raise MonitorUnreachable(f"{make_printable(name)} is not connected")
        with task.lend_balloon(target) as balloon:
            yield balloon

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

    def fail(self, name: str, error: Exception) -> None:
        """Put a VM out of action, and connect to it again after a pause.

        Args:
            name: The VM's name. If the fleet has no such VM, nothing is done.
            error: What computing with the VM's figures has raised.
        """
        if task := self._all_tasks.get(name):
            task.fail(error)

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
        task = VmTask(record, spec, self._links, spec.process)
        self._all_tasks[named.name] = task
        _LOG.info("%s: in the fleet", make_printable(named.name))
        # Drawn here, so that a VM's turn is the same in each run of a simulation.
        delay = self._rng.uniform(0, settings.period)
        nursery.start_soon(task.run, delay)

    def _choose_name(self, spec: VmSpec) -> str:
        """Return a name that no other VM has: its own if possible, or its address."""
        address = str(spec.address)
        more = (f"{address} ({number})" for number in count(2))
        names = chain([spec.name, address], more)
        return next(name for name in names if name not in self._all_tasks)

    def _rename(self, task: VmTask, name: str) -> None:
        """Give a VM the name that its QEMU reports, if no other VM has it."""
        old = task.record.spec.name
        new = old if name == old else self._choose_name(evolve(task.spec, name=name))
        task.record.spec = evolve(task.record.spec, name=new, is_named=True)
        self._all_tasks[new] = self._all_tasks.pop(old)

    def _find_twin(self, task: VmTask) -> VmTask | None:
        """Return the task that is connected to the same QEMU as another, if any."""
        twins = (
            other
            for other in self._tasks
            if other is not task
            and other.record.connected
            and other.process == task.process
        )
        return next(twins, None)

    def _note_refused(self, refused: list[Refused]) -> None:
        for each in set(refused) - set(self._refused):
            _LOG.warning("%s is refused: %s", each.name, each.reason)
        self._refused = tuple(refused)

    def _notify(self) -> None:
        self._changed.set()
        self._changed = trio.Event()


def _match(tasks: list[VmTask], specs: list[VmSpec]) -> list[VmTask | None]:
    """Return the task that each VM of a source has already, or ``None``.

    A VM is the same if its QEMU is; where that is not known, if its socket is; and then
    if its address is. No task is returned twice.
    """
    by_process = {task.process: task for task in tasks}
    by_socket = {task.spec.socket: task for task in tasks}
    by_address = {task.spec.address: task for task in tasks}
    left = {id(task) for task in tasks}
    found: list[VmTask | None] = []
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
