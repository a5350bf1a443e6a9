"""A monitor whose one background task reads all that QEMU sends."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, cast

import trio
from attrs import define

from qmpballoon._checks import require_seconds
from qmpballoon._transport import proc
from qmpballoon._transport.errors import (
    closed_by_peer,
    not_answered,
    not_greeted,
    not_negotiated,
    retold,
)
from qmpballoon.errors import (
    MonitorClosed,
    MonitorError,
    ProtocolError,
    command_error,
)
from qmpballoon.qmp import Connection, Event, Failure, Greeting, Return, Role, State
from qmpballoon.qmp.events import EventBuffer
from qmpballoon.trio.subscription import EventFeed, EventSubscription

if TYPE_CHECKING:
    from collections.abc import Mapping

    from qmpballoon.qmp import Id
    from qmpballoon.trio._background import Background
    from qmpballoon.trio._transport import Transport

__all__ = ["TrioMonitor"]

_log = logging.getLogger(__name__)


class TrioMonitor:
    """A negotiated QMP monitor, made by :func:`open_monitor`.

    It is a :class:`~qmpballoon.monitor.Monitor`, safe to use from many tasks at
    once. At most eight commands are with QEMU at a time; further ones wait.

    Attributes:
        name: What messages call it.
        pid: The process id of QEMU, ``None`` where it cannot be known.
    """

    def __init__(
        self, transport: Transport, *, name: str, command_timeout: float
    ) -> None:
        self.name = name
        self.pid: int | None = transport.pid
        self._transport = transport
        self._command_timeout = command_timeout
        self._connection = Connection(Role.CLIENT)
        self._background: Background | None = None
        self._waiting: dict[Id, _Waiter] = {}
        self._turns = trio.lowlevel.ParkingLot()
        self._progress = trio.Event()  # set whenever the state moves on
        self._events = EventFeed()
        self._failure: MonitorError | None = None
        self._watchdog = trio.CancelScope()

    @property
    def greeting(self) -> Greeting | None:
        """What QEMU said first: its version, and its capabilities."""
        return self._connection.greeting

    @property
    def oob(self) -> bool:
        """Whether out-of-band execution was negotiated."""
        return self._connection.oob

    def resident(self) -> int | None:
        """Return QEMU's resident memory in bytes, ``None`` if it cannot be known."""
        return None if self.pid is None else proc.resident(self.pid)

    def now(self) -> float:
        """Return trio's time in seconds."""
        return trio.current_time()

    async def sleep(self, seconds: float) -> None:
        """Wait for so many seconds.

        Cancellation: at once, with no effect.
        """
        await trio.sleep(max(seconds, 0.0))

    def shield(self, seconds: float) -> trio.CancelScope:
        """Let what is awaited inside go on, cancelled or not, for so long at most."""
        return trio.move_on_after(seconds, shield=True)

    async def execute(
        self,
        command: str,
        arguments: Mapping[str, object] | None = None,
        *,
        timeout: float | None = None,
        oob: bool = False,
    ) -> object:
        """Run one QMP command and return what QEMU returns for it.

        Args:
            command: The command's name, as in the QMP reference.
            arguments: Its arguments, JSON types only.
            timeout: Seconds for the answer, waiting for a turn included;
                ``math.inf`` for ever. By default the monitor's own.
            oob: Run it out of band, past those that wait.

        Raises:
            CommandError: QEMU refused the command.
            MonitorTimeout: No answer in time. The monitor stays usable.
            MonitorClosed: The connection is gone.
            ProtocolError: The peer sent nonsense; the connection is closed.
            TypeError: The command is no name, or the arguments are no JSON.
            ValueError: Likewise, by their values.

        Cancellation: if a call is cancelled, the command may or may not have
        been carried out; its answer is swallowed. The monitor stays usable.
        """
        if timeout is None:
            timeout = self._command_timeout
        else:
            require_seconds(timeout, "timeout")
        await trio.lowlevel.checkpoint_if_cancelled()
        deadline = trio.current_time() + timeout
        waiter = _Waiter(command, deadline, trio.lowlevel.current_task())
        if oob or self._may_send() or await self._take_turn(waiter):
            await self._exchange(waiter, arguments, oob=oob)
        return self._result(waiter, timeout)

    def subscribe(self, *names: str, capacity: int = 64) -> EventSubscription:
        """Return a subscription to QEMU's events; it begins with its ``with`` block.

        Args:
            names: Which events, such as ``"BALLOON_CHANGE"``; none means all.
            capacity: How many to hold while nobody reads, at least 1.

        Raises:
            TypeError: A name is no text, or the capacity no whole number.
            ValueError: The capacity is below 1.
        """
        return EventSubscription(self._events, EventBuffer(names, capacity))

    def _may_send(self) -> bool:
        # Not past those who wait, though there may be room.
        return self._connection.can_send and not self._turns

    async def _take_turn(self, waiter: _Waiter) -> bool:
        """Wait until the command may be sent; tell whether that came in time."""
        with trio.move_on_at(waiter.deadline):
            self._raise_if_failed()
            await self._turns.park()
            while self._failure is None and not self._connection.can_send:
                await self._turns.park()
            return True
        return False

    async def _exchange(
        self, waiter: _Waiter, arguments: Mapping[str, object] | None, *, oob: bool
    ) -> None:
        """Send the command and wait until the reply, or the end, is known."""
        self._raise_if_failed()
        try:
            ident, data = self._connection.send_command(
                waiter.command, arguments, oob=oob
            )
        finally:
            self._pass_turn()
        _log.debug("%s: %s, id %s", self.name, waiter.command, ident)
        self._waiting[ident] = waiter
        waiter.sent = True
        self._write(data)
        if waiter.deadline < self._watchdog.deadline:  # noqa: PLR1730 - setting it is slow
            self._watchdog.deadline = waiter.deadline

        def abort(_: object) -> trio.lowlevel.Abort:
            self._forget(ident)
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)

    def _pass_turn(self) -> None:
        """Wake the next who waits for its turn, if there is room.

        Only one: it does the same in its turn, when it has sent its command or
        has found that it cannot.
        """
        if self._turns and self._connection.can_send:
            self._turns.unpark()

    def _forget(self, ident: Id) -> _Waiter:
        self._connection.abandon(ident)
        return self._waiting.pop(ident)

    def _result(self, waiter: _Waiter, timeout: float) -> object:
        if isinstance(waiter.reply, Return):  # at once, for it is what comes most
            return waiter.reply.value
        match waiter.reply:
            case Failure(error_class, desc):
                raise command_error(waiter.command, error_class, desc, self.name)
            case MonitorError() as failure:
                raise retold(failure, waiter.unknown)
            case _:
                timed_out = not_answered(self.name, waiter.command, timeout)
                raise retold(timed_out, waiter.unknown)

    def _write(self, data: bytes) -> None:
        if self._transport.write(data) and self._background is not None:
            self._background.start_soon(self._transport.flush)

    # The way from connecting to ready.

    async def _start(
        self, background: Background, deadline: float, *, oob: bool
    ) -> None:
        self._background = background
        background.start_soon(self._read)
        with trio.move_on_at(deadline):
            await self._until(State.NEGOTIATING)
            self._write(self._connection.send_negotiation(oob=oob))
            await self._until(State.READY)
            return
        if self._connection.state is State.GREETING:
            raise not_greeted(self.name, self.pid)
        raise not_negotiated(self.name)

    async def _until(self, state: State) -> None:
        while self._connection.state is not state:
            self._raise_if_failed()
            await self._progress.wait()

    # What the background tasks do.

    async def _read(self) -> None:
        """Read and deal with all that comes, until the connection ends.

        Each command whose answer does not come in time is woken from here as well, by
        one timer for all of them: setting one up for each command would take as long
        as the rest of it, and a task of its own a quarter of the monitor's memory.
        """
        ended = False
        try:
            while not ended:
                with self._watchdog:
                    await self._receive_all()
                    ended = True
                self._wake_the_late()
            failure: MonitorError = closed_by_peer(self.name)
        except ProtocolError as error:
            failure = ProtocolError(f"{self.name}: {error}")
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
            failure = MonitorClosed(f"{self.name} broke: {error.__cause__ or error}")
        self._shut(failure)

    async def _receive_all(self) -> None:
        connection = self._connection
        while data := await self._transport.read():
            connection.receive_data(data)
            state = connection.state
            while (message := connection.next_message()) is not None:
                self._dispatch(message)
            if connection.state is not state:
                self._move_on()
            self._pass_turn()

    def _wake_the_late(self) -> None:
        now = trio.current_time()
        for ident, waiter in list(self._waiting.items()):
            if waiter.deadline <= now:
                self._forget(ident).finish(None)
        left = [waiter.deadline for waiter in self._waiting.values()]
        self._watchdog = trio.CancelScope(deadline=min(left, default=math.inf))

    def _dispatch(self, message: object) -> None:
        if isinstance(message, Event):
            self._events.put(message)
        elif isinstance(message, (Return, Failure)):  # a union is slow to make
            self._waiting.pop(cast("Id", message.id)).finish(message)

    def _move_on(self) -> None:
        self._progress.set()
        self._progress = trio.Event()

    def _shut(self, failure: MonitorError) -> None:
        """Note why there will be no more; tell all who wait."""
        if self._failure is not None:
            return
        self._failure = failure
        self._connection.close()
        for waiter in self._waiting.values():
            waiter.finish(failure)
        self._waiting.clear()
        self._turns.unpark_all()
        self._move_on()
        self._events.end(failure)

    def _raise_if_failed(self) -> None:
        if self._failure is not None:
            raise retold(self._failure)


@define(eq=False)
class _Waiter:
    """One command of one caller."""

    command: str
    deadline: float
    task: trio.lowlevel.Task
    sent: bool = False
    reply: Return | Failure | MonitorError | None = None

    @property
    def unknown(self) -> tuple[str, ...]:
        return (self.command,) if self.sent else ()

    def finish(self, reply: Return | Failure | MonitorError | None) -> None:
        self.reply = reply
        trio.lowlevel.reschedule(self.task)
