"""The blocking front end: plain sockets, plain calls, no event loop, no threads.

::

    with open_balloon("/run/vm1.qmp") as balloon:
        print(balloon.query())

What QEMU sends is read while somebody waits for it: in a command, or in
:meth:`EventSubscription.receive`. Threads may share a monitor; their commands then
run one after the other, and waiting for one's turn counts as waiting.

Waiting is all in one place, between messages, and what moves bytes never waits.
There Ctrl-C is put off for the microseconds that it takes: so an interrupted
command leaves no half a message behind, and the monitor can still be used to give
a guest its memory back.
"""

from __future__ import annotations

import logging
import math
import select
import signal
import socket
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, TypeAlias, cast

from qmpballoon import host
from qmpballoon.address import TcpAddress, UnixAddress, parse_address
from qmpballoon.checks import require_seconds
from qmpballoon.errors import (
    MonitorClosed,
    MonitorError,
    ProtocolError,
    command_error,
)
from qmpballoon.events import EventBuffer
from qmpballoon.failures import (
    closed_by_peer,
    closed_by_us,
    not_answered,
    not_greeted,
    not_negotiated,
    retold,
)
from qmpballoon.plain import (
    BlockingBalloon,
    BlockingSampler,
    PlainMonitor,
    find_balloon,
    run,
)
from qmpballoon.qmp import Connection, Event, Failure, Greeting, Return, Role, State
from qmpballoon.reach import checked, connect_unix, no_tcp, no_tcp_in_time, no_tls

if TYPE_CHECKING:
    import os
    import ssl
    from collections.abc import Callable, Generator, Iterator, Mapping
    from types import FrameType

    from qmpballoon.address import Address
    from qmpballoon.qmp import Id

__all__ = [
    "BlockingBalloon",
    "BlockingMonitor",
    "BlockingSampler",
    "EventSubscription",
    "PlainMonitor",
    "find_balloon",
    "open_balloon",
    "open_monitor",
]

_log = logging.getLogger(__name__)

Target: TypeAlias = (
    "str | os.PathLike[str] | tuple[str, int] | Address | int | socket.socket"
)
"""An address, or something connected: a socket, or its descriptor. What is connected
is taken over, and closed at the end."""

OPEN_TIMEOUT: Final = 5.0
"""Seconds for connecting, greeting and negotiating, all together."""
COMMAND_TIMEOUT: Final = 10.0
"""Seconds for one command, waiting for its turn included."""

_READ_SIZE: Final = 65536
_LONGEST_POLL: Final = 3600.0  # seconds; poll(2) counts milliseconds in an int
# Seconds; so late may be told of an event that another thread has read.
_EVENT_POLL: Final = 0.1


@contextmanager
def open_monitor(
    target: Target,
    *,
    timeout: float = OPEN_TIMEOUT,
    command_timeout: float = COMMAND_TIMEOUT,
    tls: ssl.SSLContext | None = None,
) -> Generator[BlockingMonitor]:
    """Connect to a QMP monitor and negotiate; a context manager.

    Args:
        target: Where the monitor is: ``"/run/vm.qmp"``, ``"unix:PATH"``,
            ``"tcp:HOST:PORT"``, ``(host, port)``; or a connected socket or its
            descriptor, which are taken over.
        timeout: Seconds for connecting, greeting and negotiating together. Looking
            up a host's name has its own, the resolver's.
        command_timeout: Seconds for each command that gives none of its own.
        tls: Wrap the connection in TLS by this context.

    Yields:
        The monitor. Its connection is closed at the end of the block.

    Raises:
        MonitorUnreachable: Nobody could be connected to.
        MonitorBusy: Connected and not greeted: another client is served.
        MonitorTimeout: Greeted, and then left without an answer.
        MonitorClosed: The peer closed the connection.
        ProtocolError: The peer does not speak QMP.
    """
    require_seconds(timeout, "timeout")
    require_seconds(command_timeout, "command_timeout")
    deadline = time.monotonic() + timeout
    sock, pid = _connect(target, deadline, tls)
    name = f"the monitor on {target}"
    monitor = BlockingMonitor(sock, name=name, pid=pid, command_timeout=command_timeout)
    try:
        monitor._start(deadline)  # noqa: SLF001
        yield monitor
    finally:
        monitor._shut(closed_by_us(name))  # noqa: SLF001
        sock.close()


@contextmanager
def open_balloon(
    target: Target,
    *,
    timeout: float = OPEN_TIMEOUT,
    command_timeout: float = COMMAND_TIMEOUT,
    tls: ssl.SSLContext | None = None,
    wall_clock: Callable[[], float] = time.time,
) -> Generator[BlockingBalloon]:
    """Connect to a VM's monitor and find its balloon; a context manager.

    Args:
        target: As for :func:`open_monitor`.
        timeout: As for :func:`open_monitor`.
        command_timeout: As for :func:`open_monitor`.
        tls: As for :func:`open_monitor`.
        wall_clock: Tells seconds since the epoch, for the age of statistics.

    Yields:
        The balloon. Its connection is closed at the end of the block.

    Raises:
        NoBalloonDevice: The VM has none.
        MonitorError: As :func:`open_monitor`.
    """
    with open_monitor(
        target, timeout=timeout, command_timeout=command_timeout, tls=tls
    ) as monitor:
        yield find_balloon(monitor, resident=monitor.resident, wall_clock=wall_clock)


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
        return None if self.pid is None else host.resident(self.pid)

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
            TypeError: The arguments are nothing that JSON knows.
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
            raise command_error(command, reply.error_class, reply.desc)
        return reply.value

    @contextmanager
    def subscribe(
        self, *names: str, capacity: int = 64
    ) -> Generator[EventSubscription]:
        """Take in QEMU's events within a ``with`` block.

        Args:
            names: Which events, such as ``"BALLOON_CHANGE"``; none means all.
            capacity: How many to hold while nobody reads.

        Yields:
            The subscription, from which events are read.
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
        with _ctrl_c_waits():
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
        late: MonitorError = not_greeted(self.name)
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
        with self._turn, _ctrl_c_waits():
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


class EventSubscription:
    """QEMU's events for one reader, made by :meth:`BlockingMonitor.subscribe`.

    ::

        with monitor.subscribe("BALLOON_CHANGE") as events:
            for event in events:
                print(event.data)

    A reader that does not keep up loses the oldest events, of the same name where
    there are some; :attr:`lost` tells. While nobody reads the monitor at all, they
    wait in QEMU.
    """

    def __init__(self, monitor: BlockingMonitor, buffer: EventBuffer) -> None:
        self._monitor = monitor
        self._buffer = buffer

    @property
    def lost(self) -> Mapping[str, int]:
        """How many events of each name were dropped unread."""
        return self._buffer.lost

    def receive(self, timeout: float = math.inf) -> Event | None:
        """Return the next event; ``None`` if there was none for so many seconds.

        Raises:
            MonitorError: The connection ended; no more will come.
        """
        require_seconds(timeout, "timeout")
        monitor = self._monitor
        deadline = monitor.now() + timeout
        while (event := self._buffer.get()) is None:
            monitor._raise_if_failed()  # noqa: SLF001
            if monitor._transfer():  # noqa: SLF001
                continue
            left = deadline - monitor.now()
            if left <= 0:
                return None
            monitor._poll(min(left, _EVENT_POLL))  # noqa: SLF001
        return event

    def __iter__(self) -> Iterator[Event]:
        """Iterate over the events, waiting for each, until the connection ends."""
        while (event := self.receive()) is not None:
            yield event


@contextmanager
def _ctrl_c_waits() -> Generator[None]:
    """Put Ctrl-C off until the end of the block, which must not wait for anything.

    By its handler, which Python runs in the main thread and nowhere else. Blocking
    the signal would not do: the kernel hands it to any thread that does not.
    """
    handler = signal.getsignal(signal.SIGINT)
    main = threading.current_thread() is threading.main_thread()
    if not main or not callable(handler):
        yield
        return
    struck: list[tuple[int, FrameType | None]] = []

    def note(number: int, frame: FrameType | None) -> None:
        struck.append((number, frame))

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if struck:
            handler(*struck[0])


def _is_not_now(error: OSError) -> bool:
    """Tell whether trying later will do; TLS has errors of its own for that."""
    names = {"SSLWantReadError", "SSLWantWriteError"}
    return isinstance(error, BlockingIOError) or type(error).__name__ in names


def _connect(
    target: Target, deadline: float, tls: ssl.SSLContext | None
) -> tuple[socket.socket, int | None]:
    """Connect; return the socket, non-blocking, and QEMU's process id."""
    hostname = None
    if isinstance(target, int):
        target = socket.socket(fileno=target)
    if isinstance(target, socket.socket):
        sock = checked(target)
    else:
        address = parse_address(target)
        if isinstance(address, UnixAddress):
            sock = run(
                connect_unix(address, deadline, now=time.monotonic, sleep=_sleep)
            )
        else:
            hostname = address.host
            sock = checked(_connect_tcp(address, deadline))
    pid = host.qemu_pid(sock)
    return (sock if tls is None else _secure(sock, hostname, tls, deadline)), pid


async def _sleep(seconds: float) -> None:
    time.sleep(seconds)  # noqa: ASYNC251 - there is no event loop


def _connect_tcp(address: TcpAddress, deadline: float) -> socket.socket:
    left = max(deadline - time.monotonic(), 0.001)
    place = (address.host, address.port)
    try:
        return socket.create_connection(place, None if math.isinf(left) else left)
    except TimeoutError:
        raise no_tcp_in_time(address) from None
    except OSError as error:
        raise no_tcp(address, error) from None


def _secure(
    sock: socket.socket,
    hostname: str | None,
    tls: ssl.SSLContext,
    deadline: float,
) -> socket.socket:
    """Wrap a connected socket in TLS."""
    left = max(deadline - time.monotonic(), 0.001)
    sock.settimeout(None if math.isinf(left) else left)
    try:
        secure = tls.wrap_socket(sock, server_hostname=hostname)
    except BaseException as error:
        sock.close()
        if isinstance(error, OSError):
            raise no_tls(error) from None
        raise
    return checked(secure)
