"""A monitor on trio. Everything that QEMU sends is read at once, in the background."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, cast

import trio
from attrs import define

from qmpballoon._printable import describe_bug
from qmpballoon._transport.error_messages import (
    copy_error,
    make_broken,
    make_closed,
    make_closed_by_qemu,
    make_closed_by_us,
    make_negotiation_timeout,
    make_no_greeting,
    make_protocol_error,
    make_unwatched,
)
from qmpballoon._transport.monitor_base import MonitorBase, TrioClock
from qmpballoon._transport.subscriptions import EventFeed, FeedSubscription
from qmpballoon.errors import CommandError, MonitorError, ProtocolError
from qmpballoon.monitor import execute_in_turn
from qmpballoon.qmp.connection import Connection, Role, State
from qmpballoon.qmp.events import EventBuffer
from qmpballoon.qmp.messages import Event, Failure, Return
from qmpballoon.qmp.own_monitor import GETFD
from qmpballoon.trio._reactor import get_reactor
from qmpballoon.trio._streams import SocketTransport

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Mapping, Sequence

    from qmpballoon.monitor import Command
    from qmpballoon.qmp.messages import Greeting, Id
    from qmpballoon.trio._streams import Transport

__all__ = ["EventSubscription", "TrioMonitor"]

_log = logging.getLogger("qmpballoon.trio")


class TrioMonitor(MonitorBase, TrioClock):
    """A :class:`~qmpballoon.monitor.Monitor` on trio, made by :func:`open_monitor`.

    Many tasks may use it at once. At most eight commands are in flight at a time;
    further ones wait for their turn.

    Attributes:
        name: The name that messages use for the monitor.
        pid: The process id of QEMU; ``None`` if it cannot be known.
    """

    def __init__(
        self,
        transport: Transport,
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
        self._transport = transport
        self._connection = Connection(Role.CLIENT)
        self._waiting: dict[Id, _Waiter] = {}
        # Commands that wait for their turn; during negotiation, ``start``, which waits
        # for the next state.
        self._turns = trio.lowlevel.ParkingLot()
        self._events = EventFeed()
        self._failure: MonitorError | None = None
        self._reactor = get_reactor()

    @property
    def greeting(self) -> Greeting | None:
        """QEMU's greeting: its version and its capabilities."""
        return self._connection.greeting

    @property
    def oob(self) -> bool:
        """Whether out-of-band execution was negotiated."""
        return self._connection.oob

    @trio.lowlevel.enable_ki_protection  # a waiter has to wait when it is woken
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
        await trio.lowlevel.checkpoint_if_cancelled()
        deadline = trio.current_time() + timeout
        waiter = _Waiter(command, deadline, trio.lowlevel.current_task())
        if oob or self._may_send() or await self._take_turn(waiter):
            await self._exchange(waiter, arguments, oob=oob)
        return self._read_reply(command, waiter.reply, timeout, sent=waiter.was_sent)

    @trio.lowlevel.enable_ki_protection
    async def execute_all(self, commands: Sequence[Command]) -> list[object]:
        """Run commands that do not depend on each other, sent at once.

        Three commands then take little more time than one: most of the time of a
        command is system calls and turns of the scheduler.

        Args:
            commands: Names and arguments; of eight at most, and of JSON types only.

        Returns:
            What each returned, or the :exc:`CommandError` with which QEMU refused it.

        Raises:
            MonitorError: One has no reply.
            TypeError: The arguments of one are not JSON; none was sent.
            ValueError: The arguments of one have values that JSON does not know; none
                was sent.

        :meta private:
        """
        if self._turns or not self._connection.has_room_for(len(commands)):
            return await execute_in_turn(self, commands)
        await trio.lowlevel.checkpoint_if_cancelled()
        self._raise_if_failed()
        timeout, task = self._command_timeout, trio.lowlevel.current_task()
        deadline, group = trio.current_time() + timeout, _Group(len(commands))
        waiters = [_Waiter(name, deadline, task, group=group) for name, _ in commands]
        self._transport.write(self._register_all(waiters, commands))
        await self._wait_for_replies(waiters, deadline)
        results: list[object] = []
        for waiter in waiters:
            try:
                results.append(
                    self._read_reply(waiter.command, waiter.reply, timeout, sent=True)
                )
            except CommandError as error:
                results.append(error)
        return results

    @property
    def takes_descriptors(self) -> bool:
        """Whether file descriptors can be sent over the connection.

        :meta private:
        """
        return self._transport.takes_descriptors

    @trio.lowlevel.enable_ki_protection
    async def send_descriptor(self, name: str, number: int, *, timeout: float) -> None:
        """Hand QEMU a copy of a file descriptor, under a name.

        Only :func:`open_monitor` calls this, while no other command is under way.

        :meta private:
        """
        deadline = trio.current_time() + timeout
        waiter = _Waiter(
            GETFD, deadline, trio.lowlevel.current_task(), descriptor=number
        )
        await self._exchange(waiter, {"fdname": name}, oob=False)
        self._read_reply(GETFD, waiter.reply, timeout, sent=waiter.was_sent)

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
        """Wait until the command may be sent; return False if its time is over."""
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
        """Send the command, and wait for its reply or for the connection's end."""
        self._raise_if_failed()
        data = self._register(waiter, arguments, oob=oob)
        self._transport.write(data, waiter.descriptor)
        await self._wait_for_replies((waiter,), waiter.deadline)

    def _register(
        self, waiter: _Waiter, arguments: Mapping[str, object] | None, *, oob: bool
    ) -> bytes:
        """Let a waiter wait for the reply to its command; return the bytes to send."""
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
        waiter.ident = ident
        return data

    def _register_all(
        self, waiters: Sequence[_Waiter], commands: Sequence[Command]
    ) -> bytes:
        """As :meth:`_register`, for several; if one cannot be sent, none is."""
        pieces: list[bytes] = []
        try:
            for waiter, (_, arguments) in zip(waiters, commands, strict=True):
                pieces.append(self._register(waiter, arguments, oob=False))
        except (TypeError, ValueError):
            for waiter in waiters:
                if waiter.ident is not None:
                    del self._waiting[waiter.ident]
                    self._connection.withdraw(waiter.ident)
            raise
        return b"".join(pieces)

    async def _wait_for_replies(
        self, waiters: Sequence[_Waiter], deadline: float
    ) -> None:
        """Wait until all have a reply, or know why they get none."""
        self._reactor.wake_by(deadline)

        def abort(_: object) -> trio.lowlevel.Abort:
            for waiter in waiters:
                if waiter.ident in self._waiting:
                    self._forget(waiter.ident)
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)

    def _pass_turn(self) -> None:
        """Wake the next command that waits for its turn, if there is room.

        One is enough: it calls this again when it has sent its command, or has found
        that it cannot.
        """
        if self._turns and self._connection.can_send:
            self._turns.unpark()

    def _forget(self, ident: Id) -> _Waiter:
        self._connection.abandon(ident)
        return self._waiting.pop(ident)

    # Negotiating.

    async def start(self, deadline: float, *, oob: bool) -> None:
        """Negotiate until a deadline on trio's clock. Then the monitor can be used.

        Only :func:`open_monitor` calls this, once. The monitor must be closed even if
        this fails.

        :meta private:
        """
        self._begin()
        await self._negotiate(deadline, oob=oob)
        self._log_line(_log, logging.INFO, "%s: connected", self.name)

    @trio.lowlevel.enable_ki_protection
    def _begin(self) -> None:
        try:
            self._reactor.join(self)
            self._transport.start(self)
        except OSError as error:
            raise make_unwatched(self.name, error) from None

    def make_like(self, sock: socket.socket) -> TrioMonitor:
        """Return a monitor on another socket of the same QEMU.

        :meta private:
        """
        return TrioMonitor(
            # Of a socket pair, the kernel names us as the peer, and not QEMU.
            SocketTransport(sock, self.pid),
            name=self.name,
            command_timeout=self._command_timeout,
            wall_clock=self._wall_clock,
        )

    @trio.lowlevel.enable_ki_protection
    async def aclose(self) -> None:
        """Close the connection at once; no effect if it is closed.

        :meta private:
        """
        self._shut(make_closed_by_us(self.name), by_us=True)
        self._reactor.leave(self)
        await self._transport.aclose()

    async def _negotiate(self, deadline: float, *, oob: bool) -> None:
        with trio.move_on_at(deadline):
            await self._wait_for_state(State.NEGOTIATING)
            self._transport.write(self._connection.send_negotiation(oob=oob))
            await self._wait_for_state(State.READY)
            return
        if self._connection.state is State.GREETING:
            raise make_no_greeting(self.name, self.pid)
        passed_over = self._connection.passed_over
        raise make_negotiation_timeout(self.name, passed_over)

    async def _wait_for_state(self, state: State) -> None:
        while self._connection.state is not state:
            self._raise_if_failed()
            await self._turns.park()

    # Called by the transport and the reactor.

    def receive(self, data: bytes) -> None:
        """Handle what QEMU has sent; the transport calls this.

        :meta private:
        """
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
        except Exception as error:  # noqa: BLE001 - other monitors must not end by it
            self._shut(make_closed(self.name, f"broke: {describe_bug(error)}"))
            return
        if connection.state is not state:
            self._turns.unpark_all()
        self._pass_turn()
        if connection.pending or self._message_deadline < math.inf:
            now = trio.current_time()
            self._time_message(connection.pending, now, is_new=is_new)
            self._reactor.wake_by(self._message_deadline)

    def note_end(self, error: BaseException | None) -> None:
        """Handle that QEMU sends no more; the transport calls this.

        :meta private:
        """
        if error is None:
            self._shut(make_closed_by_qemu(self.name))
        else:
            self._shut(make_broken(self.name, error))

    def wake_late(self, now: float) -> float:
        """Wake the commands whose reply has not come in time; the reactor calls this.

        :meta private:
        """
        for ident, waiter in list(self._waiting.items()):
            if waiter.deadline <= now:
                self._forget(ident).finish(None)
        try:
            self._require_message_in_time(now)
        except ProtocolError as error:
            self._shut(make_protocol_error(self.name, error))
        if self._failure is not None:
            return math.inf
        left = [waiter.deadline for waiter in self._waiting.values()]
        return min([*left, self._message_deadline])

    def _dispatch(self, message: object) -> None:
        if isinstance(message, Event):
            self._events.put(message)
        elif isinstance(message, (Return, Failure)):  # building a union is slow
            self._waiting.pop(cast("Id", message.id)).finish(message)

    def _shut(self, failure: MonitorError, *, by_us: bool = False) -> None:
        """Record why the connection ended, and raise that to everyone who waits."""
        if self._failure is not None:
            return
        self._failure = failure
        if self._connection.state is State.READY:
            level = logging.INFO if by_us else logging.WARNING
            self._log_line(_log, level, "%s", failure)
        self._connection.close()
        self._transport.stop()
        for waiter in self._waiting.values():
            waiter.finish(failure)
        self._waiting.clear()
        self._turns.unpark_all()
        self._events.end(failure, by_us=by_us)

    def _raise_if_failed(self) -> None:
        if self._failure is not None:
            raise copy_error(self._failure)


@define(eq=False)
class _Group:
    """Commands that one task waits for."""

    left: int  # how many of them have no reply yet


@define(eq=False)
class _Waiter:
    """One command, and the task that waits for its reply."""

    command: str
    deadline: float
    task: trio.lowlevel.Task
    descriptor: int | None = None  # that goes with it
    group: _Group | None = None
    ident: Id | None = None
    reply: Return | Failure | MonitorError | None = None

    @property
    def was_sent(self) -> bool:
        return self.ident is not None

    def finish(self, reply: Return | Failure | MonitorError | None) -> None:
        self.reply = reply
        if self.group is not None:
            self.group.left -= 1
            if self.group.left:
                return
        trio.lowlevel.reschedule(self.task)


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
        self._readers = trio.lowlevel.ParkingLot()

    def wake(self) -> None:
        """Wake the tasks that wait in :meth:`receive`; the feed calls this.

        :meta private:
        """
        self._readers.unpark_all()

    async def _let_others_run(self) -> None:
        await trio.lowlevel.checkpoint()

    async def _wait(self) -> None:
        await self._readers.park()
