"""A monitor on a plain socket."""

from __future__ import annotations

import logging
import math
import select
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, cast

from qmpballoon._checks import require_seconds
from qmpballoon._transport import proc
from qmpballoon._transport.errors import (
    closed_by_peer,
    not_answered,
    not_greeted,
    not_negotiated,
    retold,
)
from qmpballoon.blocking._interrupts import ctrl_c_waits
from qmpballoon.blocking.subscription import EventSubscription
from qmpballoon.errors import (
    MonitorClosed,
    MonitorError,
    ProtocolError,
    command_error,
)
from qmpballoon.qmp import Connection, Event, Failure, Greeting, Return, Role, State
from qmpballoon.qmp.events import EventBuffer

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Generator, Mapping

    from qmpballoon.qmp import Id

__all__ = ["BlockingMonitor"]

_log = logging.getLogger(__name__)

_READ_SIZE: Final = 65536
_LONGEST_POLL: Final = 3600.0  # seconds; poll(2) counts milliseconds in an int


class BlockingMonitor:
    """A negotiated QMP monitor, made by :func:`open_monitor`.

    Attributes:
        name: What messages call it.
        pid: The process id of QEMU, ``None`` where it cannot be known.
    """

    def __init__(
        self,
        sock: socket.socket,
        *,
        name: str,
        pid: int | None,
        command_timeout: float,
    ) -> None:
        self.name = name
        self.pid = pid
        self._socket = sock
        self._command_timeout = command_timeout
        self._connection = Connection(Role.CLIENT)
        self._backlog = bytearray()  # to be sent
        self._replies: dict[Id, Return | Failure] = {}  # and not fetched yet
        # Replaced, not changed: another thread may be going through it.
        self._buffers: tuple[EventBuffer, ...] = ()
        self._failure: MonitorError | None = None
        # Reentrant, so that an interrupt just behind acquiring it locks nobody out.
        self._turn = threading.RLock()

    @property
    def greeting(self) -> Greeting | None:
        """What QEMU said first: its version, and its capabilities."""
        return self._connection.greeting

    def resident(self) -> int | None:
        """Return QEMU's resident memory in bytes, ``None`` if it cannot be known."""
        return None if self.pid is None else proc.resident(self.pid)

    def now(self) -> float:
        """Return the monotonic time in seconds."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Wait for so many seconds; zero or less does nothing."""
        time.sleep(max(seconds, 0.0))

    def execute(
        self,
        command: str,
        arguments: Mapping[str, object] | None = None,
        *,
        timeout: float | None = None,
    ) -> object:
        """Run one QMP command and return what QEMU returns for it.

        Args:
            command: The command's name, as in the QMP reference.
            arguments: Its arguments, JSON types only.
            timeout: Seconds for the answer, waiting for other threads' commands
                included; ``math.inf`` for ever. By default the monitor's own.

        Raises:
            CommandError: QEMU refused the command.
            MonitorTimeout: No answer in time. The monitor stays usable.
            MonitorClosed: The connection is gone.
            ProtocolError: The peer sent nonsense; the connection is closed.
            TypeError: The command is no name, or the arguments are no JSON.
            ValueError: Likewise, by their values.

        Ctrl-C: the command may or may not have been carried out; its answer is
        swallowed. The monitor stays usable.
        """
        if timeout is None:
            timeout = self._command_timeout
        else:
            require_seconds(timeout, "timeout")
        deadline = self.now() + timeout
        late = not_answered(self.name, command, timeout)
        if not self._turn.acquire(timeout=min(timeout, threading.TIMEOUT_MAX)):
            raise late
        try:
            # Whatever has come by now; the end of the connection, it may be.
            self._transfer()
            self._wait_until(lambda: self._connection.can_send, deadline, late)
            reply = self._exchange(command, arguments, deadline, late)
        finally:
            self._turn.release()
        if isinstance(reply, Failure):
            raise command_error(command, reply.error_class, reply.desc, self.name)
        return reply.value

    @contextmanager
    def subscribe(
        self, *names: str, capacity: int = 64
    ) -> Generator[EventSubscription]:
        """Take in QEMU's events within a ``with`` block.

        Args:
            names: Which events, such as ``"BALLOON_CHANGE"``; none means all.
            capacity: How many to hold while nobody reads, at least 1.

        Yields:
            The subscription, from which events are read.

        Raises:
            TypeError: A name is no text, or the capacity no whole number.
            ValueError: The capacity is below 1.
        """
        buffer = EventBuffer(names, capacity)
        self._buffers = (*self._buffers, buffer)
        try:
            yield EventSubscription(self, buffer)
        finally:
            self._buffers = tuple(b for b in self._buffers if b is not buffer)

    def _exchange(
        self,
        command: str,
        arguments: Mapping[str, object] | None,
        deadline: float,
        late: MonitorError,
    ) -> Return | Failure:
        """Send the command and wait until its reply, or the end, is known."""
        with ctrl_c_waits():
            ident, data = self._connection.send_command(command, arguments)
            self._backlog += data
        _log.debug("%s: %s, id %s", self.name, command, ident)
        try:
            self._wait_until(lambda: ident in self._replies, deadline, late)
            return self._replies[ident]
        except MonitorError as failure:
            raise retold(failure, (command,)) from None
        finally:
            self._connection.abandon(ident)
            self._replies.pop(ident, None)

    # The way from connecting to ready.

    def _start(self, deadline: float) -> None:
        connection = self._connection
        late: MonitorError = not_greeted(self.name, self.pid)
        self._wait_until(lambda: connection.state is not State.GREETING, deadline, late)
        self._backlog += connection.send_negotiation()
        late = not_negotiated(self.name)
        self._wait_until(lambda: connection.state is State.READY, deadline, late)

    # Waiting, and moving bytes in between.

    def _wait_until(
        self, done: Callable[[], bool], deadline: float, late: MonitorError
    ) -> None:
        """Move bytes until that is so; raise ``late`` if it is not in time."""
        while not done():
            self._raise_if_failed()
            if not self._transfer():
                left = deadline - self.now()
                if left <= 0:
                    raise late
                self._poll(left)
            elif self.now() >= deadline and not done():
                raise late  # whatever else the peer goes on to send
        self._raise_if_failed()

    def _poll(self, seconds: float) -> None:
        """Wait until bytes can be moved, for so long at most."""
        poll = select.poll()
        events = select.POLLIN | (select.POLLOUT if self._backlog else 0)
        poll.register(self._socket, events)
        poll.poll(math.ceil(min(seconds, _LONGEST_POLL) * 1000))

    def _transfer(self) -> bool:
        """Move what can be moved without waiting; tell whether that was something."""
        with self._turn, ctrl_c_waits():
            sent = bool(self._backlog) and self._send()
            return self._receive() or sent

    def _send(self) -> bool:
        try:
            sent = self._socket.send(self._backlog)
        except OSError as error:
            if _is_not_now(error):
                return False
            sent = len(self._backlog)  # reading tells what is wrong
        del self._backlog[:sent]
        return True

    def _receive(self) -> bool:
        try:
            data = self._socket.recv(_READ_SIZE)
            self._connection.receive_data(data)
            while (message := self._connection.next_message()) is not None:
                self._dispatch(message)
        except ProtocolError as error:
            self._shut(ProtocolError(f"{self.name}: {error}"))
        except OSError as error:
            if _is_not_now(error):
                return False
            self._shut(MonitorClosed(f"{self.name} broke: {error}"))
        else:
            if not data:
                self._shut(closed_by_peer(self.name))
        return True

    def _dispatch(self, message: object) -> None:
        if isinstance(message, Event):
            for buffer in self._buffers:
                buffer.put(message)
        elif isinstance(message, Return | Failure):
            self._replies[cast("Id", message.id)] = message

    def _shut(self, failure: MonitorError) -> None:
        """Note why there will be no more."""
        if self._failure is None:
            self._failure = failure
            self._connection.close()

    def _raise_if_failed(self) -> None:
        if self._failure is not None:
            raise retold(self._failure)


def _is_not_now(error: OSError) -> bool:
    """Tell whether trying later will do; TLS has errors of its own for that."""
    names = {"SSLWantReadError", "SSLWantWriteError"}
    return isinstance(error, BlockingIOError) or type(error).__name__ in names
