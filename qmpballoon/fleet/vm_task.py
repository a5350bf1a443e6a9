"""Stay connected to one VM of a fleet, poll it, and move its balloon; on trio.

Each VM has a task of its own. The task connects to the VM's monitor, polls the VM once
a period, moves its balloon when told to, and connects again when the connection is
lost. A task waits only for its own VM, and each wait has a deadline. So a VM that
hangs, or that sends garbage, does not delay the others. An exception in a VM's task, or
in computing with its figures, becomes the state of this VM and one line in the log.

A task knows the fleet only as far as its tasks have to agree: on the turns to poll, on
names, and on who keeps the one connection that a QEMU needs.
"""

from __future__ import annotations

import functools
import logging
import math
from contextlib import contextmanager, suppress
from errno import EACCES, ECONNREFUSED, ENOENT, EPERM
from typing import TYPE_CHECKING, Final, TypeVar, cast

import trio
from attrs import asdict, define, evolve, field, frozen

from qmpballoon._checks import require_seconds
from qmpballoon._printable import describe_bug, make_printable
from qmpballoon._transport.qemu_process import read_resident
from qmpballoon._transport.reconnection import FIRST_PAUSE, LONGEST_PAUSE, Backoff
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
from qmpballoon.fleet.openers import require_descriptors
from qmpballoon.fleet.processes import identify_process
from qmpballoon.monitor import read_processor_time
from qmpballoon.sizes import format_size
from qmpballoon.trio import find_balloon

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Generator, Hashable

    from qmpballoon.balloon.balloon import Balloon
    from qmpballoon.balloon.sampling import Progress
    from qmpballoon.fleet.openers import Opener
    from qmpballoon.fleet.policy import Move
    from qmpballoon.fleet.poll_turns import PollTurns
    from qmpballoon.fleet.vm import VmRecord
    from qmpballoon.fleet.vm_spec import Bounds, VmSpec
    from qmpballoon.fleet.vm_view import VmState
    from qmpballoon.monitor import Monitor

__all__ = ["FleetLinks", "Settings", "VmTask"]

_T = TypeVar("_T")

_DAY: Final = 86400  # seconds
# Polls. The RAM changes only when memory is plugged. It is also asked for at once if
# the guest has more memory than the RAM that was known.
_RAM_EVERY: Final = 60
# Shorter than by default: other guests can give the memory, so nothing is gained by
# waiting for a slow one.
_STALL: Final = StallLimits(window=2.0)
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


@frozen
class FleetLinks:
    """What the tasks of a fleet's VMs share, and how they reach each other.

    Attributes:
        settings: How often VMs are polled, and how long they may take.
        opener: Opens a VM's monitor.
        rng: Spreads attempts to connect over time.
        turns: Tells the tasks when to poll.
        notify: Called when what is known of a VM has changed.
        find_twin: Returns the task that is connected to the same QEMU by another
            monitor, if there is one.
        rename: Gives a task's VM the name that its QEMU reports, unless it is taken.
    """

    settings: Settings
    opener: Opener
    rng: random.Random
    turns: PollTurns[VmTask]
    notify: Callable[[], None]
    find_twin: Callable[[VmTask], VmTask | None]
    rename: Callable[[VmTask, str], None]


@define(eq=False)
class VmTask:
    """Stays connected to a VM, knows its state, and moves its balloon when told to.

    Attributes:
        record: What is known of the VM.
        spec: What the source says of it. Another VM may have the name in it by now.
        process: An identity of its QEMU process, if that is known.
        twin: The task that holds another monitor of the same QEMU, if there is one.
        life: Cancelled when the VM leaves the fleet.
        left: The size in bytes that it was moving to when QEMU ceased to answer.
        balloon: The VM's balloon, while it is connected.
    """

    record: VmRecord
    spec: VmSpec
    _links: FleetLinks
    process: Hashable = None
    twin: VmTask | None = None
    life: trio.CancelScope = field(factory=trio.CancelScope)
    left: int | None = None
    balloon: Balloon | None = None
    # Cancelled to end its connection, or the attempt to connect.
    _scope: trio.CancelScope = field(factory=trio.CancelScope)
    _target: int | None = None  # the size that it is told to move to
    _insists: bool = False  # that target stays if it is not reached
    _logged: str = ""  # what was logged last

    # What it is asked and told

    @property
    def is_polling(self) -> bool:
        """Whether its only work is to poll its VM."""
        record = self.record
        polled = record.polled_at > -math.inf
        return record.connected and polled and record.target is None

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

    def ask(self, ask: Callable[[VmRecord, float], _T], now: float) -> _T | None:
        """Call a function with the VM's record. If it raises, the VM fails: ``None``.

        Args:
            ask: The function; it is given the record and the time.
            now: The time.
        """
        try:
            return ask(self.record, now)
        except Exception as error:  # noqa: BLE001 - whatever figures can cause
            self.fail(error)
            return None

    def may_pass(self) -> bool:
        """Tell whether it need not be polled now; if so, note it as unchanged."""
        monitor, record = self.balloon and self.balloon.monitor, self.record
        now, ran = trio.current_time(), read_processor_time(monitor)
        try:
            record.note_turn(now, ran)
            if may_wait := record.may_wait(now):
                record.note_idle(now)
        except Exception as error:  # noqa: BLE001 - whatever figures can cause
            self.fail(error)
            return False
        return may_wait

    def start_move(self, move: Move, *, insists: bool = False) -> None:
        """Have its balloon moved; as :meth:`Supervisor.start_move`."""
        if not self.record.connected or self.record.target is not None:
            return
        try:
            if self.balloon is not None and self._note_holder(self.balloon):
                self._links.notify()
                return
            self.record.note_move_started(trio.current_time(), move.target)
        except Exception as error:  # noqa: BLE001 - whatever figures can cause
            self.fail(error)
            return
        sizes = f"{format_size(move.before)} -> {format_size(move.target)}"
        _LOG.info("%s: move %s; %s", make_printable(move.name), sizes, move.reason)
        self._target, self._insists = move.target, insists
        self._links.turns.wake(self)

    @contextmanager
    def lend_balloon(self, target: int) -> Generator[Balloon]:
        """Lend its balloon to a call that moves it; as :meth:`Supervisor.borrow`."""
        record, balloon = self.record, self.balloon
        if balloon is None:
            raise MonitorUnreachable(f"{self._printable_name} is not connected")
        if record.target is not None:
            raise BalloonBusy(f"{self._printable_name} is moving: wait until it is not")
        record.note_move_started(trio.current_time(), target)
        self._links.notify()
        try:
            yield balloon
        finally:
            record.note_move_dropped(balloon.target)
            self._links.notify()

    def fail(self, error: Exception) -> None:
        """Put it out of action, and connect to it again after a pause.

        Args:
            error: What computing with its figures has raised.
        """
        self._note_failure(error)
        self._scope.cancel()

    @property
    def _printable_name(self) -> str:
        return make_printable(self.record.spec.name)

    # Staying connected

    async def run(self, delay: float) -> None:
        """Connect to the VM again and again, while it belongs to the fleet.

        Args:
            delay: Seconds until it is connected to for the first time.
        """
        settings = self._links.settings
        # Not stay_connected: its layers would be a tenth of the memory of a VM here.
        backoff = Backoff(self._links.rng, settings.first_pause, settings.longest_pause)
        with self.life:
            await trio.sleep(delay + backoff.begin_attempt())
            while True:
                try:
                    with trio.CancelScope() as self._scope:
                        await self._connect()
                # An opener may run tasks, and raise a group that has a cancellation in
                # it, too.
                except* Exception as group:  # noqa: BLE001 - whatever a VM causes
                    error = _find_first(group)
                    if self.record.connected and isinstance(error, QmpBalloonError):
                        backoff.note_success()
                    self._note_failure(error)
                await trio.sleep(backoff.begin_attempt())

    def _note_failure(self, error: Exception) -> None:
        """Note an exception in its task, or in computing with its figures."""
        error = _find_first(error)
        state, detail = _explain(error)
        if state == "failed":
            # With the same figures it might fail again and again.
            self.record = self.record.begin_anew()
            _LOG.debug("%s", self.record.spec.name, exc_info=error)
        if detail != self._logged:
            level = logging.ERROR if state == "failed" else logging.WARNING
            _LOG.log(level, "%s: %s", self._printable_name, detail)
            self._logged = detail
        resident, has_ended = _read_busy_resident(error), _has_ended(error, self.record)
        self.record.note_lost(state, detail, resident, has_ended=has_ended)
        self._target = None
        self._links.notify()

    async def _connect(self) -> None:
        """Connect to the VM, and poll and move it until the connection is lost."""
        self._require_no_twin()
        require_descriptors()
        settings = self._links.settings
        async with self._links.opener(
            self.record.spec.address,
            timeout=settings.open_timeout,
            command_timeout=settings.command_timeout,
        ) as monitor:
            self._note_process(monitor)
            self.balloon = await self._find_balloon(monitor)
            try:
                # This sample may be old. A later one that differs from it is new.
                await self._poll(self.balloon)
                async with self.balloon.stats_interval(math.ceil(settings.period)):
                    await self._poll_and_move(self.balloon)
            finally:
                self.balloon.release_owed()  # another client can reach the guest now
                self.balloon = None

    def _require_no_twin(self) -> None:
        """Raise MonitorBusy while another task holds a monitor of the same QEMU."""
        if self.twin is not None and not self.twin.record.connected:
            self.twin = None
        if self.twin is not None:
            name = self.twin.record.spec.name
            raise MonitorBusy(f"it is a monitor of {name}, which has another one")

    def _note_process(self, monitor: Monitor) -> None:
        """Note which QEMU a monitor belongs to.

        Raises:
            MonitorBusy: Another task holds a monitor of the same QEMU.
        """
        pid = getattr(monitor, "pid", None)  # not every monitor has one
        process = identify_process(pid) if isinstance(pid, int) else None
        self.process = self.spec.process if process is None else process
        if process is not None:
            self.twin = self._links.find_twin(self)
        self._require_no_twin()

    async def _find_balloon(self, monitor: Monitor) -> Balloon:
        """Find the balloon of a VM whose monitor answers."""
        balloon = await find_balloon(monitor)
        if not self.record.spec.is_named:
            await self._ask_name(monitor)
        self.record.note_connected(trio.current_time())
        self.record.note_holder(balloon.read_holder())
        self.record.owed = balloon.read_owed()
        self.left = None
        self._logged = ""
        _LOG.info("%s: connected", self._printable_name)
        return balloon

    async def _ask_name(self, monitor: Monitor) -> None:
        """Give the VM the name that its QEMU reports; once."""
        with suppress(CommandError):
            match await monitor.execute("query-name"):
                case {"name": str(name)} if name:
                    self._links.rename(self, make_printable(name))
                case _:
                    pass  # it has no name

    # Polling

    async def _poll_and_move(self, balloon: Balloon) -> None:
        due, polls, period = trio.current_time(), 0, self._links.settings.period
        while True:
            try:
                if polls % _RAM_EVERY == 0:
                    await self._ask_ram(balloon)
                polls += 1
                await self._poll(balloon)
                if self.record.doubts_ram:
                    await self._ask_ram(balloon)
                if self.record.is_to_be_prompted(trio.current_time()):
                    await self._prompt(balloon)
                due = max(due + period, trio.current_time())
                if self._target is None:
                    await self._links.turns.wait(self, due)
                if self._target is not None:
                    await self._move(balloon, self._target)
            except MonitorTimeout as error:
                # QEMU is stopped or overloaded. A new connection would not help.
                _LOG.warning("%s: %s", self._printable_name, error)
                self.record.note_timeout(str(error))
                self._links.notify()

    async def _ask_ram(self, balloon: Balloon) -> None:
        info = await balloon.query()
        self.record.note_ram(info.total, info.capacity)
        self._links.notify()

    async def _prompt(self, balloon: Balloon) -> None:
        """Have QEMU ask a silent guest again: another client may have stopped that."""
        stopped = await balloon.why_stopped()
        self.record.note_prompted(trio.current_time(), stopped)
        await balloon.request_stats(math.ceil(self._links.settings.period))

    async def _poll(self, balloon: Balloon) -> None:
        record = self.record
        record.note_turn(trio.current_time(), read_processor_time(balloon.monitor))
        stats, actual, reads = await balloon.look()
        if record.holder is not None or actual != record.actual:
            self._note_holder(balloon)
        now = trio.current_time()
        record.note_poll(now, actual, stats, balloon.resident(), reads)
        self._links.notify()

    def _note_holder(self, balloon: Balloon) -> bool:
        """Note which other process holds memory of its guest; tell whether one does."""
        record = self.record
        was_held = record.holder is not None
        record.note_holder(balloon.read_holder())
        if was_held and record.holder is None:
            record.owed = balloon.read_owed()  # if that process was killed
        return record.holder is not None

    # Moving

    async def _move(self, balloon: Balloon, target: int) -> None:
        """Resize the VM; ``resize`` watches the guest meanwhile."""
        record = self.record
        self._target = None
        guard = _make_guard(record.bounds, target)
        before, self.left = record.actual or target, target
        try:
            if target > before:
                # A guest in need gets its memory before resize takes its first sample.
                await balloon.set_target(target)
            result = await self._resize(balloon, target, guard)
            if self._insists and result.target < target:
                await balloon.set_target(target)
                result = evolve(result, target=target)
            record.note_move_ended(trio.current_time(), evolve(result, before=before))
            self.left = None
        except MonitorClosed:
            self.left = None  # the guest has ended with its QEMU
            raise
        finally:
            if not balloon.is_target_in_doubt:
                self.left = None  # nothing was sent, or QEMU has confirmed what was
            record.note_move_dropped(balloon.target)
            self._links.notify()

    async def _resize(
        self, balloon: Balloon, target: int, guard: Guard
    ) -> ResizeResult:
        before = self.record.actual or target
        with trio.CancelScope() as scope:
            return await balloon.resize(
                target,
                timeout=self._links.settings.move_timeout,
                on_stall="settle",
                guard=guard,
                on_progress=functools.partial(_note_progress, self.record, scope),
                limits=_STALL,
            )
        return await _give_up(balloon, before, target)


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
