"""A monitor on asyncio. The event loop calls it when QEMU has sent something."""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from typing import TYPE_CHECKING, cast

from attrs import define

from qmpballoon._transport.asyncio_clock import AsyncioClock
from qmpballoon._transport.error_messages import (
    copy_error,
    make_broken,
    make_closed_by_qemu,
    make_closed_by_us,
    make_negotiation_timeout,
    make_no_greeting,
    make_protocol_error,
)
from qmpballoon._transport.monitor_base import MonitorBase
from qmpballoon._transport.subscriptions import EventFeed, FeedSubscription
from qmpballoon.asyncio._streams import SocketTransport
from qmpballoon.errors import MonitorError, ProtocolError
from qmpballoon.qmp.connection import Connection, Role, State
from qmpballoon.qmp.events import EventBuffer
from qmpballoon.qmp.messages import Event, Failure, Return
from qmpballoon.qmp.own_monitor import GETFD

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Mapping

    from qmpballoon.qmp.messages import Greeting, Id

__all__ = ["AsyncioMonitor", "EventSubscription"]

_log = logging.getLogger("qmpballoon.asyncio")


class AsyncioMonitor(MonitorBase, AsyncioClock):
    """A :class:`~qmpballoon.monitor.Monitor` on asyncio, made by :func:`open_monitor`.

    Many tasks of its event loop may use it at once. At most eight commands are in
    flight at a time; further ones wait for their turn.

    Attributes:
        name: The name that messages use for the monitor.
        pid: The process id of QEMU; ``None`` if it cannot be known.
    """

    def __init__(
        self,
        transport: SocketTransport,
        *,
        name: str,
        command_timeout: float,
        wall_clock: Callable[[], float],
    ) -> None:
        super().__init__(
            name=name,
            pid=transport.pid,
            command_timeout=command_timeout,
            wall_clock=wall_clock,
        )
        self._loop = asyncio.get_running_loop()
        self._transport = transport
        self._connection = Connection(Role.CLIENT)
        self._waiting: dict[Id, _Waiter] = {}
        self._turns: deque[_Waiter] = deque()
        self._state_changed = asyncio.Event()
        self._events = EventFeed()
        self._failure: MonitorError | None = None
        # One timer for all commands: one for each would take longer than the rest.
        self._timer: asyncio.TimerHandle | None = None
        self._timer_deadline = math.inf

    @property
    def greeting(self) -> Greeting | None:
        """QEMU's greeting: its version and its capabilities."""
        return self._connection.greeting

    @property
    def oob(self) -> bool:
        """Whether out-of-band execution was negotiated."""
        return self._connection.oob

    async def execute(
        self,
        command: str,
        arguments: Mapping[str, object] | None = None,
        *,
        timeout: float | None = None,
        oob: bool = False,
    ) -> object:
        """Run one QMP command and return its result.

        If the call is cancelled, QEMU may or may not have carried out the command. Its
        reply is dropped, and the monitor stays usable.

        Args:
            command: The command's name, as in the QMP reference.
            arguments: Its arguments, of JSON types only.
            timeout: Seconds for the reply, including the time that the command waits
                for its turn; ``math.inf`` for no limit. By default the monitor's own.
            oob: Run the command out of band, ahead of the commands that wait.

        Returns:
            The decoded value of ``return``.

        Raises:
            CommandError: QEMU refused the command.
            MonitorTimeout: No reply came in time. The monitor stays usable.
            MonitorClosed: The connection has ended.
            ProtocolError: The peer does not speak QMP; the connection is closed.
            TypeError: The command is not text, or the arguments are not JSON.
            ValueError: The arguments have values that JSON does not know.
        """
        timeout = self._choose_timeout(timeout)
        waiter = _Waiter(command, self._loop.time() + timeout)
        if oob or self._may_send() or await self._take_turn(waiter):
            await self._exchange(waiter, arguments, oob=oob)
        return self._read_reply(command, waiter.reply, timeout, sent=waiter.sent)

    @property
    def takes_descriptors(self) -> bool:
        """Whether file descriptors can be sent over the connection.

        :meta private:
        """
        return self._transport.takes_descriptors

    async def send_descriptor(self, name: str, number: int, *, timeout: float) -> None:
        """Hand QEMU a copy of a file descriptor, under a name.

        Only :func:`open_monitor` calls this, while no other command is under way.

        :meta private:
        """
        waiter = _Waiter(GETFD, self._loop.time() + timeout, descriptor=number)
        await self._exchange(waiter, {"fdname": name}, oob=False)
        self._read_reply(GETFD, waiter.reply, timeout, sent=waiter.sent)

    def subscribe(self, *names: str, capacity: int = 64) -> EventSubscription:
        """Return a subscription to QEMU's events.

        It takes events in from the beginning of its ``with`` block to the end.

        Args:
            names: Which events, such as ``"BALLOON_CHANGE"``; by default all.
            capacity: How many unread events to hold, at least 1.

        Raises:
            TypeError: A name is not text, or the capacity is not an integer.
            ValueError: The capacity is less than 1.
        """
        return EventSubscription(self._events, EventBuffer(names, capacity))

    def _may_send(self) -> bool:
        # Commands that are waiting come first, even if there is room for another.
        return self._connection.can_send and not self._turns

    async def _take_turn(self, waiter: _Waiter) -> bool:
        """Wait until the command may be sent; return False if it no longer may.

        It stays first in the queue until it is sent, so that no later command takes its
        place.
        """
        self._raise_if_failed()
        self._turns.append(waiter)
        is_next = False
        try:
            await self._wait_for(waiter)
            is_next = waiter.has_turn and waiter.reply is None
        finally:
            self._turns.remove(waiter)
            if not is_next:
                self._pass_turn()
        return is_next

    async def _exchange(
        self, waiter: _Waiter, arguments: Mapping[str, object] | None, *, oob: bool
    ) -> None:
        """Send the command, and wait for its reply or for the connection's end."""
        self._raise_if_failed()
        try:
            ident, data = self._connection.send_command(
                waiter.command, arguments, oob=oob
            )
        finally:
            self._pass_turn()
        if _log.isEnabledFor(logging.DEBUG):
            text = "%s: %s, id %s"
            self._log_line(_log, logging.DEBUG, text, self.name, waiter.command, ident)
        self._waiting[ident] = waiter
        waiter.sent = True
        self._transport.write(data, waiter.descriptor)
        try:
            await self._wait_for(waiter)
        finally:
            if waiter.reply is None:
                self._forget(ident)

    async def _wait_for(self, waiter: _Waiter) -> None:
        """Wait until the waiter is woken; its deadline wakes it, too."""
        future = waiter.future = self._loop.create_future()
        if waiter.deadline < self._timer_deadline:
            self._set_timer(waiter.deadline)
        if self._shields:
            await self.wait(future, waiter.deadline)
        else:
            await future

    def _pass_turn(self) -> None:
        """Wake the next command that waits for its turn, if there is room.

        One is enough: it calls this again when it has sent its command, or has found
        that it cannot.
        """
        if self._turns and self._connection.can_send:
            self._turns[0].give_turn()

    def _forget(self, ident: Id) -> None:
        self._connection.abandon(ident)
        self._waiting.pop(ident, None)

    # Deadlines.

    def _set_timer(self, deadline: float) -> None:
        """Wake late commands at that time, and at no other."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._timer_deadline = None, deadline
        if deadline < math.inf:
            self._timer = self._loop.call_at(deadline, self._wake_late_commands)

    def _wake_late_commands(self) -> None:
        now, left = self._loop.time(), math.inf
        for ident, waiter in list(self._waiting.items()):
            if waiter.deadline <= now:
                self._forget(ident)
                waiter.wake()
            else:
                left = min(left, waiter.deadline)
        for waiter in self._turns:
            if waiter.deadline <= now:
                waiter.wake()
            else:
                left = min(left, waiter.deadline)
        try:
            self._require_message_in_time(now)
        except ProtocolError as error:
            self._shut(make_protocol_error(self.name, error))
            return
        self._set_timer(min(left, self._message_deadline))

    # Negotiating.

    async def start(self, deadline: float, *, oob: bool) -> None:
        """Negotiate until a deadline on the loop's clock. Then the monitor can be used.

        Only :func:`open_monitor` calls this, once. The monitor must be closed even if
        this fails.

        :meta private:
        """
        self._transport.start_reading(self._receive, self._note_end)
        await self._negotiate(deadline, oob=oob)
        self._log_line(_log, logging.INFO, "%s: connected", self.name)

    def make_like(self, sock: socket.socket) -> AsyncioMonitor:
        """Return a monitor on another socket of the same QEMU.

        :meta private:
        """
        return AsyncioMonitor(
            # Of a socket pair, the kernel names us as the peer, and not QEMU.
            SocketTransport(sock, self.pid),
            name=self.name,
            command_timeout=self._command_timeout,
            wall_clock=self._wall_clock,
        )

    async def aclose(self) -> None:
        """Close the connection at once; no effect if it is closed.

        :meta private:
        """
        self._shut(make_closed_by_us(self.name), by_us=True)

    async def _negotiate(self, deadline: float, *, oob: bool) -> None:
        try:
            async with asyncio.timeout_at(deadline):
                await self._wait_for_state(State.NEGOTIATING)
                self._transport.write(self._connection.send_negotiation(oob=oob))
                await self._wait_for_state(State.READY)
                return
        except TimeoutError:
            if self._connection.state is State.GREETING:
                raise make_no_greeting(self.name, self.pid) from None
            passed_over = self._connection.passed_over
            raise make_negotiation_timeout(self.name, passed_over) from None

    async def _wait_for_state(self, state: State) -> None:
        while self._connection.state is not state:
            self._raise_if_failed()
            await self._state_changed.wait()

    # Called by the event loop.

    def _receive(self, data: bytes) -> None:
        """Handle what QEMU has sent."""
        connection, state = self._connection, self._connection.state
        is_new = False
        try:
            connection.receive_data(data)
            while (message := connection.next_message()) is not None:
                self._dispatch(message)
                is_new = True
        except ProtocolError as error:
            self._shut(make_protocol_error(self.name, error))
            return
        if connection.state is not state:
            self._announce_state()
        self._pass_turn()
        self._time_message(connection.pending, self._loop.time(), is_new=is_new)
        if self._message_deadline < self._timer_deadline:
            self._set_timer(self._message_deadline)

    def _note_end(self, error: OSError | None) -> None:
        if error is None:
            self._shut(make_closed_by_qemu(self.name))
        else:
            self._shut(make_broken(self.name, error))

    def _dispatch(self, message: object) -> None:
        if isinstance(message, Event):
            self._events.put(message)
        elif isinstance(message, (Return, Failure)):  # building a union is slow
            self._waiting.pop(cast("Id", message.id)).finish(message)

    def _announce_state(self) -> None:
        self._state_changed.set()
        self._state_changed = asyncio.Event()

    def _shut(self, failure: MonitorError, *, by_us: bool = False) -> None:
        """Close the connection, and raise why it ended to everyone who waits."""
        if self._failure is not None:
            return
        self._failure = failure
        if self._connection.state is State.READY:
            level = logging.INFO if by_us else logging.WARNING
            self._log_line(_log, level, "%s", failure)
        self._connection.close()
        self._transport.close()
        self._set_timer(math.inf)
        for waiter in (*self._waiting.values(), *self._turns):
            waiter.finish(failure)
        self._waiting.clear()
        self._announce_state()
        self._events.end(failure, by_us=by_us)

    def _raise_if_failed(self) -> None:
        if self._failure is not None:
            raise copy_error(self._failure)


@define(eq=False)
class _Waiter:
    """One command that waits: first for its turn, if it must, then for its reply."""

    command: str
    deadline: float
    descriptor: int | None = None  # that goes with it
    future: asyncio.Future[None] | None = None
    has_turn: bool = False
    sent: bool = False
    reply: Return | Failure | MonitorError | None = None

    def give_turn(self) -> None:
        if self.wake():
            self.has_turn = True

    def finish(self, reply: Return | Failure | MonitorError) -> None:
        if self.wake():
            self.reply = reply

    def wake(self) -> bool:
        """Wake the task; tell whether nothing else had woken it."""
        # If it is done, the task was late or cancelled, and has not run since.
        if self.future is None or self.future.done():
            return False
        self.future.set_result(None)
        return True


class EventSubscription(FeedSubscription):
    """QEMU's events for one reader: a context manager, and an iterator inside it.

    ::

        with monitor.subscribe("BALLOON_CHANGE") as events:
            async for event in events:
                print(event.data)

    Events wait in a bounded buffer until they are read. When it is full, the oldest
    event is dropped, preferably one with the same name as the new one; :attr:`lost`
    counts the dropped events. A slow reader delays nobody else. The iteration ends when
    this end closes the connection; it raises if the connection ends otherwise.
    """

    def __init__(self, feed: EventFeed, buffer: EventBuffer) -> None:
        super().__init__(feed, buffer)
        self._arrived = asyncio.Event()

    def wake(self) -> None:
        """Wake the tasks that wait in :meth:`receive`; the feed calls this.

        :meta private:
        """
        self._arrived.set()

    async def _let_others_run(self) -> None:
        await asyncio.sleep(0)

    async def _wait(self) -> None:
        self._arrived.clear()
        await self._arrived.wait()
