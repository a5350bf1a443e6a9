"""A monitor on a socket, in blocking code."""

from __future__ import annotations

import functools
import importlib
import logging
import math
import os
import select
import signal
import socket
import threading
from collections import deque
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final, cast

from qmpballoon._checks import require_seconds
from qmpballoon._transport.error_messages import (
    copy_error,
    make_broken,
    make_closed_by_qemu,
    make_closed_by_us,
    make_command_timeout,
    make_forked,
    make_negotiation_timeout,
    make_no_greeting,
    make_not_subscribed,
    make_protocol_error,
)
from qmpballoon._transport.monitor_base import BlockingClock, MonitorBase
from qmpballoon._transport.sockets import identify_file
from qmpballoon.errors import (
    MonitorClosed,
    MonitorError,
    ProtocolError,
    make_command_error,
)
from qmpballoon.qmp.connection import Connection, Role, State
from qmpballoon.qmp.events import EventBuffer
from qmpballoon.qmp.messages import Event, Failure, Return
from qmpballoon.qmp.own_monitor import GETFD

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Mapping
    from types import FrameType
    from typing import Any

    from qmpballoon.qmp.messages import Greeting, Id

__all__ = ["BlockingMonitor", "EventSubscription"]

_log = logging.getLogger("qmpballoon.blocking")

_READ_SIZE: Final = 65536  # bytes; QEMU's largest replies come in a few reads
_LONGEST_POLL: Final = 3600.0  # seconds; poll(2) counts milliseconds in an int
# Seconds. Another thread may read an event that this thread waits for. This is by how
# much the event may then be late. The price is ten wake-ups a second while waiting.
_EVENT_POLL: Final = 0.1
# Seconds to wait until another thread has read the connection's end, which takes far
# less. If it does not come, what the connection holds is freed with the monitor.
_LAST_TURN: Final = 5.0
# The functions of the C module. Those of the module signal turn their arguments into
# enumerations and back, which takes longer than all the rest of a command.
_signals: Final[Any] = importlib.import_module("_signal")


class BlockingMonitor(MonitorBase, BlockingClock):
    """A :class:`SyncMonitor` on a socket, made by :func:`open_monitor`.

    Threads may share it; their commands run one after the other. A process that is
    forked meanwhile may not use it: all calls there raise :exc:`MonitorClosed`. It has
    to open a monitor of its own.

    Attributes:
        name: The name that messages use for the monitor.
        pid: The process id of QEMU; ``None`` if it cannot be known.
    """

    def __init__(
        self,
        sock: socket.socket,
        *,
        name: str,
        pid: int | None,
        command_timeout: float,
        wall_clock: Callable[[], float],
        trailer: bytes = b"",
    ) -> None:
        super().__init__(
            name=name, pid=pid, command_timeout=command_timeout, wall_clock=wall_clock
        )
        self._socket = sock
        self._file = identify_file(sock.fileno())
        self._connection = Connection(Role.CLIENT)
        self._backlog: deque[memoryview] = deque()  # to be sent, piece by piece
        self._broken: OSError | None = None  # why nothing more can be sent
        self._descriptor: int | None = None  # to be sent with the next bytes
        self._trailer = trailer  # to be sent on its own after each message
        self._is_remote = sock.family != socket.AF_UNIX
        # With TLS: how many bytes were received and decrypted, but not read yet.
        self._count_decrypted: Callable[[], int] | None = getattr(sock, "pending", None)
        # A thread takes one out while it uses it; if there is none, it makes one.
        self._pollers: list[select.poll] = []
        self._replies: dict[Id, Return | Failure] = {}  # not fetched yet
        self._buffers: list[EventBuffer] = []  # the subscriptions', see _lock
        self._failure: MonitorError | None = None
        self._is_closed_by_us = False
        self._process = os.getpid()
        # Held for a whole command. Reentrant, for signal handlers that run commands.
        self._turn = threading.RLock()
        self._turns_thread = 0  # whose turn it is
        # Protects the list of buffers and their contents. It is never held while
        # waiting, so a reader gets its event even while another thread runs a command.
        self._lock = threading.Lock()

    @property
    def greeting(self) -> Greeting | None:
        """QEMU's greeting: its version and its capabilities."""
        return self._connection.greeting

    def execute(
        self,
        command: str,
        arguments: Mapping[str, object] | None = None,
        *,
        timeout: float | None = None,
    ) -> object:
        """Run one QMP command and return its result.

        If Ctrl-C interrupts the call, QEMU may or may not have carried out the command.
        Its reply is dropped, and the monitor stays usable.

        Args:
            command: The command's name, as in the QMP reference.
            arguments: Its arguments, of JSON types only.
            timeout: Seconds for the reply, including the time that other threads'
                commands take first; ``math.inf`` for no limit. By default the
                monitor's own.

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
        return self._run_command(command, arguments, self._choose_timeout(timeout))

    @property
    def takes_descriptors(self) -> bool:
        """Whether file descriptors can be sent over the connection.

        :meta private:
        """
        return self._socket.family == socket.AF_UNIX and not self._trailer

    def send_descriptor(self, name: str, number: int, *, timeout: float) -> None:
        """Hand QEMU a copy of a file descriptor, under a name.

        Only :func:`open_monitor` calls this, while no other command is under way.

        :meta private:
        """
        self._descriptor = number
        try:
            self._run_command(GETFD, {"fdname": name}, timeout)
        finally:
            self._descriptor = None  # it goes with no other command

    def _run_command(
        self, command: str, arguments: Mapping[str, object] | None, timeout: float
    ) -> object:
        self._require_own_process()
        deadline = self.now() + timeout
        if not self._take_turn(timeout):
            raise make_command_timeout(self.name, command, timeout)
        try:
            # Check first whether the connection has ended. A unix socket needs no
            # check: once it has ended, sending fails.
            if self._is_remote and self._wait_for_socket(0.0):
                self._transfer()
            if not self._connection.can_send and not self._wait_until(
                lambda: self._connection.can_send, deadline
            ):
                raise make_command_timeout(self.name, command, timeout)
            reply = self._exchange(command, arguments, deadline, timeout)
        finally:
            self._turns_thread = 0
            self._turn.release()
        if isinstance(reply, Failure):
            raise make_command_error(command, reply.error_class, reply.desc, self.name)
        return reply.value

    @contextmanager
    def subscribe(
        self, *names: str, capacity: int = 64
    ) -> Generator[EventSubscription]:
        """Take QEMU's events in within a ``with`` block.

        Args:
            names: Which events, such as ``"BALLOON_CHANGE"``; by default all.
            capacity: How many unread events to hold, at least 1.

        Yields:
            The subscription, from which the events are read.

        Raises:
            TypeError: A name is not text, or the capacity is not an integer.
            ValueError: The capacity is less than 1.
        """
        buffer = EventBuffer(names, capacity)
        with _DelayedCtrlC(), self._lock:
            self._buffers.append(buffer)
        try:
            yield EventSubscription(
                functools.partial(self._receive_event, buffer),
                buffer,
                lambda: self._is_closed_by_us,
            )
        finally:
            with _DelayedCtrlC(), self._lock:
                self._buffers.remove(buffer)

    def _receive_event(self, buffer: EventBuffer, timeout: float) -> Event | None:
        """Return the next event; ``None`` if none came within the timeout."""
        self._require_own_process()
        deadline = self.now() + timeout
        while True:
            failure = self._failure  # read first: the last events come before it
            if (event := self._take_event(buffer)) is not None:
                return event
            if failure is not None:
                raise copy_error(failure)
            if not self._take_turn(self._choose_pause(deadline)):
                # Meanwhile, the thread that has the turn reads the events.
                if self.now() >= deadline:
                    return None
                continue
            try:
                transferred = self._transfer()
            finally:
                self._turns_thread = 0
                self._turn.release()
            if transferred:
                continue
            if self.now() >= deadline:
                return None
            self._wait_for_socket(self._choose_pause(deadline))

    def _take_turn(self, timeout: float) -> bool:
        """Begin a turn; return False if it does not come in time.

        The caller must continue with a ``try`` whose ``finally`` ends the turn. Ctrl-C
        may come right after the lock was acquired; that must not lock others out.
        """
        thread = threading.get_ident()
        is_nested = self._turns_thread == thread  # in a signal handler
        try:
            # Usually it is free, and a timeout takes longer.
            if not self._turn.acquire(blocking=False) and not self._turn.acquire(
                timeout=min(timeout, threading.TIMEOUT_MAX)
            ):
                return False
            self._turns_thread = thread
        except BaseException:
            if not is_nested:
                with suppress(RuntimeError):  # it had not been acquired
                    self._turn.release()
            raise
        return True

    def _take_event(self, buffer: EventBuffer) -> Event | None:
        """Remove and return a subscription's oldest event; ``None`` if it has none."""
        with _DelayedCtrlC(), self._lock:
            event = buffer.get()
            if event is None and self._failure is None and buffer not in self._buffers:
                raise make_not_subscribed()
            return event

    def _choose_pause(self, deadline: float) -> float:
        """Return the seconds until the next check for events that others have read."""
        return min(max(deadline - self.now(), 0.0), _EVENT_POLL)

    def _exchange(
        self,
        command: str,
        arguments: Mapping[str, object] | None,
        deadline: float,
        timeout: float,
    ) -> Return | Failure:
        """Send the command, and wait for its reply or for the connection's end."""
        ident: Id | None = None
        unknown: tuple[str, ...] = (command,)
        try:
            with _DelayedCtrlC():
                ident, data = self._connection.send_command(command, arguments)
                # Ctrl-C may have interrupted the cleanup of an earlier command below.
                self._replies.pop(ident, None)
                self._queue(data)
                if not self._send() and not self._backlog:
                    unknown = ()  # the connection has ended before
            if _log.isEnabledFor(logging.DEBUG):
                text = "%s: %s, id %s"
                self._log_line(_log, logging.DEBUG, text, self.name, command, ident)
            if self._wait_until(lambda: ident in self._replies, deadline):
                return self._replies[ident]
            raise make_command_timeout(self.name, command, timeout)
        except MonitorError as failure:
            raise copy_error(failure, unknown) from None
        finally:
            if ident is not None:
                self._connection.abandon(ident)
                self._replies.pop(ident, None)

    # Negotiating.

    @contextmanager
    def run(self, deadline: float) -> Generator[None]:
        """Negotiate, then serve commands until the block ends; close the connection.

        Only :func:`open_monitor` calls this, once.

        :meta private:
        """
        try:
            self._negotiate(deadline)
            self._log_line(_log, logging.INFO, "%s: connected", self.name)
            yield
        finally:
            if identify_file(self._socket.fileno()) != self._file:
                # Somebody has closed its descriptor: what has the number is not ours.
                self._socket.detach()
            # A forked process closes only its descriptor: its parent uses the socket.
            if os.getpid() == self._process:
                self._disconnect()
            self._socket.close()

    def _disconnect(self) -> None:
        """End the connection, and with it what other threads do on it."""
        self._note_end(make_closed_by_us(self.name), by_us=True)
        with suppress(OSError):  # it is not connected any more
            # Closing alone would not wake a thread that waits for the socket.
            self._socket.shutdown(socket.SHUT_RDWR)
        # A thread that has the turn reads until the end, which has come now.
        if self._turn.acquire(timeout=_LAST_TURN):
            try:
                self._connection.close()
            finally:
                self._turn.release()

    def _require_own_process(self) -> None:
        """Refuse calls in a forked process, which would disturb those of its parent."""
        if os.getpid() != self._process:
            raise make_forked(self.name, self._process)

    def _negotiate(self, deadline: float) -> None:
        connection = self._connection
        if not self._wait_until(
            lambda: connection.state is not State.GREETING, deadline
        ):
            raise make_no_greeting(self.name, self.pid)
        self._queue(connection.send_negotiation())
        self._send()
        if not self._wait_until(lambda: connection.state is State.READY, deadline):
            passed_over = self._connection.passed_over
            raise make_negotiation_timeout(self.name, passed_over)

    # Waiting, and reading and writing in between.

    def _wait_until(self, done: Callable[[], bool], deadline: float) -> bool:
        """Read and write until ``done()``; return False if the deadline passes first.

        It passes even if the peer goes on sending.

        Raises:
            MonitorError: The connection has ended.
        """
        while not done():
            self._raise_if_failed()
            left = deadline - self.now()
            if self._wait_for_socket(max(left, 0.0)):
                self._transfer()
            if left <= 0:
                break
        self._raise_if_failed()
        return done()

    def _wait_for_socket(self, seconds: float) -> bool:
        """Wait until the socket can be read, or written if something is to be sent.

        Returns:
            Whether it can be. If not, the time is over, or the socket was closed.
        """
        if self._count_decrypted is not None and self._count_decrypted():
            return True
        poller = self._pollers.pop() if self._pollers else select.poll()
        # A broken one is read until there is nothing; then it has ended.
        is_to_be_written = self._backlog or self._broken is not None
        events = select.POLLIN | (select.POLLOUT if is_to_be_written else 0)
        try:
            poller.register(self._socket, events)
        except ValueError:  # another thread has closed it
            return False
        ready = poller.poll(math.ceil(min(seconds, _LONGEST_POLL) * 1000))
        self._pollers.append(poller)
        return bool(ready)

    def _transfer(self) -> bool:
        """Read and write what is possible without waiting; tell whether any was."""
        with _DelayedCtrlC():
            sent = bool(self._backlog) and self._send()
            return self._receive() or sent

    def _queue(self, data: bytes) -> None:
        """Queue a message; it is sent when there is room."""
        self._backlog.append(memoryview(data))
        if self._trailer:
            self._backlog.append(memoryview(self._trailer))

    def _send(self) -> bool:
        """Write what is possible without waiting; tell whether any was."""
        has_sent = False
        while self._backlog:
            data = self._backlog[0]
            try:
                sent = self._send_piece(data)
            except OSError as error:
                if not _is_temporary(error):
                    self._backlog.clear()
                    self._broken = error
                break
            has_sent = True
            if sent < len(data):
                self._backlog[0] = data[sent:]
                break
            self._backlog.popleft()
        return has_sent

    def _send_piece(self, data: memoryview) -> int:
        if self._descriptor is None:
            return self._socket.send(data)
        try:
            sent = socket.send_fds(self._socket, [data], [self._descriptor])
        except BlockingIOError:
            raise
        except OSError:
            # Send the bytes alone: QEMU then reports that no descriptor came.
            sent = self._socket.send(data)
        self._descriptor = None
        return sent

    def _receive(self) -> bool:
        try:
            data = self._socket.recv(_READ_SIZE)
            self._connection.receive_data(data)
            is_new = False
            while (message := self._connection.next_message()) is not None:
                self._dispatch(message)
                is_new = True
            pending = self._connection.pending
            if pending or self._message_deadline < math.inf:
                now = self.now()
                if pending and not is_new:
                    self._require_message_in_time(now)
                self._time_message(pending, now, is_new=is_new)
        except ProtocolError as error:
            self._shut(make_protocol_error(self.name, error))
        except OSError as error:
            if _is_temporary(error) and self._broken is None:
                return False
            self._shut(make_broken(self.name, self._broken or error))
        else:
            if not data:
                self._shut(make_closed_by_qemu(self.name))
        return True

    def _dispatch(self, message: object) -> None:
        if isinstance(message, Event):
            with self._lock:
                for buffer in self._buffers:
                    buffer.put(message)
        elif isinstance(message, Return | Failure):
            self._replies[cast("Id", message.id)] = message

    def _shut(self, failure: MonitorError) -> None:
        """Record that the connection has ended. The caller must have the turn."""
        if self._note_end(failure, by_us=False):
            self._connection.close()

    def _note_end(self, failure: MonitorError, *, by_us: bool) -> bool:
        """Record why the connection ended, if it has not before; tell whether."""
        if self._failure is not None:
            return False
        self._is_closed_by_us = by_us
        self._failure = failure
        if self._connection.state is State.READY:
            level = logging.INFO if by_us else logging.WARNING
            self._log_line(_log, level, "%s", failure)
        return True

    def _raise_if_failed(self) -> None:
        if self._failure is not None:
            raise copy_error(self._failure)


def _is_temporary(error: OSError) -> bool:
    """Tell whether the call can be repeated later; TLS raises its own errors for it."""
    names = {"SSLWantReadError", "SSLWantWriteError"}
    return isinstance(error, BlockingIOError) or type(error).__name__ in names


class _DelayedCtrlC:
    """Delays Ctrl-C until the end of a block, which must not wait for anything.

    This replaces the signal's handler, which Python runs in the main thread only.
    Blocking the signal would not do: the kernel would give it to another thread.
    """

    __slots__ = ("_handler", "_interrupts")

    def __init__(self) -> None:
        self._handler: Callable[[int, FrameType | None], object] | None = None
        self._interrupts: list[tuple[int, FrameType | None]] = []

    def __enter__(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        handler = _signals.getsignal(signal.SIGINT)
        if callable(handler):
            self._handler = handler
            _signals.signal(signal.SIGINT, self._note)

    def __exit__(self, *_: object) -> None:
        if self._handler is None:
            return
        _signals.signal(signal.SIGINT, self._handler)
        if self._interrupts:
            self._handler(*self._interrupts[0])

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._interrupts.append((number, frame))


class EventSubscription:
    """QEMU's events for one reader, made by :meth:`BlockingMonitor.subscribe`.

    ::

        with monitor.subscribe("BALLOON_CHANGE") as events:
            for event in events:
                print(event.data)

    Events wait in a bounded buffer until they are read. When it is full, the oldest
    event is dropped, preferably one with the same name as the new one; :attr:`lost`
    counts the dropped events. The monitor reads events only during its calls; at other
    times they wait in QEMU. The iteration ends when this end closes the connection; it
    raises if the connection ends otherwise.
    """

    def __init__(
        self,
        receive: Callable[[float], Event | None],
        buffer: EventBuffer,
        is_closed_by_us: Callable[[], bool],
    ) -> None:
        self._receive = receive
        self._buffer = buffer
        self._is_closed_by_us = is_closed_by_us

    @property
    def lost(self) -> Mapping[str, int]:
        """How many events of each name were dropped unread."""
        return self._buffer.lost

    def receive(self, timeout: float = math.inf) -> Event | None:
        """Return the next event; ``None`` if none comes within the timeout.

        Args:
            timeout: Seconds; by default no limit.

        Raises:
            MonitorError: The connection has ended, and all events have been read.
            RuntimeError: The block has ended, and all events have been read.
        """
        return self._receive(require_seconds(timeout, "timeout"))

    def __iter__(self) -> Iterator[Event]:
        """Iterate over the events, waiting for each, until the connection is closed.

        Raises:
            MonitorError: The connection has ended, and this end has not closed it.
        """
        while True:
            try:
                event = self.receive()
            except MonitorClosed:
                if self._is_closed_by_us():
                    return
                raise
            if event is not None:
                yield event
