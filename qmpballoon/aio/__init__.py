"""The asyncio front end, over qemu.qmp, which an orchestrator may hold already.

::

    balloon = await find_balloon(client)          # your connected QMPClient
    await balloon.resize(2 * GiB)

QEMU serves one client on a monitor at a time. So an orchestrator that speaks QMP
shares its connection; it goes on using its client for its own commands, and this
adds neither an event loop nor a thread. Programs without a client have one opened
by :func:`open_balloon`.

What qemu.qmp does not do is done here. Commands have deadlines, and no more than
eight of ours are with QEMU at a time, late ones included. Arguments that JSON does
not know are refused before they can break the connection. And where nobody reads
events, they do not pile up in memory.

Each command runs in a task of its own, because qemu.qmp forgets a command whose
caller is cancelled: its place in QEMU's queue would count as free before it is.

Only qemu.qmp's LGPL parts are used.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
import socket
import time
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Final, TypeAlias

from attrs import define
from qemu.qmp import (
    ConnectError,
    EventListener,
    ExecInterruptedError,
    ExecuteError,
    QMPClient,
    QMPError,
    Runstate,
    StateError,
)

from qmpballoon import host
from qmpballoon.address import TcpAddress, UnixAddress, parse_address
from qmpballoon.aiotime import AsyncioTime
from qmpballoon.balloon import find
from qmpballoon.checks import require_seconds
from qmpballoon.errors import (
    MonitorClosed,
    ProtocolError,
    QmpBalloonError,
    command_error,
)
from qmpballoon.events import EventBuffer
from qmpballoon.failures import (
    closed_by_peer,
    not_answered,
    not_greeted,
    not_negotiated,
    retold,
)
from qmpballoon.qmp import MAX_IN_FLIGHT, Event
from qmpballoon.qmp.connection import encode
from qmpballoon.qmp.messages import parse
from qmpballoon.reach import checked, connect_unix, no_tcp, no_tcp_in_time

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Mapping
    from types import TracebackType
    from typing import Self

    from qemu.qmp import Message

    from qmpballoon.address import Address
    from qmpballoon.balloon.device import Balloon

__all__ = [
    "AsyncioMonitor",
    "EventSubscription",
    "find_balloon",
    "open_balloon",
    "open_monitor",
]

_log = logging.getLogger(__name__)
# What qemu.qmp logs of a connection that we opened is raised as well.
_quiet = logging.getLogger(f"{__name__}.client")
_quiet.setLevel(logging.CRITICAL + 1)

Target: TypeAlias = (
    "str | os.PathLike[str] | tuple[str, int] | Address | int | socket.socket"
)
"""An address, or something connected: a socket, or its descriptor. What is connected
is taken over, and closed at the end."""

OPEN_TIMEOUT: Final = 5.0
"""Seconds for connecting, greeting and negotiating, all together."""
COMMAND_TIMEOUT: Final = 10.0
"""Seconds for one command, waiting for its turn included."""
UNREAD_EVENTS: Final = 1000
"""How many events a client may hold for a reader that does not come."""

_CLOSE_TIMEOUT: Final = 1.0  # seconds


async def find_balloon(
    client: QMPClient,
    *,
    command_timeout: float = COMMAND_TIMEOUT,
    unread_events: int | None = UNREAD_EVENTS,
    pid: int | None = None,
    wall_clock: Callable[[], float] = time.time,
) -> Balloon:
    """Find the balloon of the VM behind a connected client, which stays yours.

    Args:
        client: Connected, and used by whomever else it pleases.
        command_timeout: Seconds for each of our commands.
        unread_events: How many events ``client.events`` may hold unread; further
            ones are dropped until somebody reads there. Without a bound, qemu.qmp
            keeps every event for ever. ``None`` leaves that as it is.
        pid: QEMU's process id, if you know it. Otherwise QEMU is asked for its
            threads: with a QEMU on *another* host, give ``0`` for none.
        wall_clock: Tells seconds since the epoch, for the age of statistics.

    Raises:
        NoBalloonDevice: The VM has none.
        MonitorClosed: The client is not connected.
        MonitorTimeout: QEMU does not answer.

    Cancellation: at once, with no effect.
    """
    monitor = AsyncioMonitor(
        client, command_timeout=command_timeout, unread_events=unread_events
    )
    monitor.pid = (await host.find_qemu_pid(monitor) if pid is None else pid) or None
    return await find.find_balloon(
        monitor, resident=monitor.resident, wall_clock=wall_clock
    )


@asynccontextmanager
async def open_monitor(
    target: Target,
    *,
    timeout: float = OPEN_TIMEOUT,
    command_timeout: float = COMMAND_TIMEOUT,
) -> AsyncGenerator[AsyncioMonitor, None]:
    """Connect a client of our own and negotiate; an asynchronous context manager.

    For TLS, connect a ``QMPClient`` yourself.

    Args:
        target: Where the monitor is: ``"/run/vm.qmp"``, ``"unix:PATH"``,
            ``"tcp:HOST:PORT"``, ``(host, port)``; or a connected socket or its
            descriptor, which are taken over.
        timeout: Seconds for connecting, greeting and negotiating together.
        command_timeout: Seconds for each command that gives none of its own.

    Yields:
        The monitor. Its connection is closed at the end of the block.

    Raises:
        MonitorUnreachable: Nobody could be connected to.
        MonitorBusy: Connected and not greeted: another client is served.
        MonitorTimeout: Greeted, and then left without an answer.
        MonitorClosed: The peer closed the connection.
        ProtocolError: The peer does not speak QMP, or speaks it with
            ``pretty=on``, which qemu.qmp does not understand.

    Cancellation: at any moment; the connection is closed.
    """
    require_seconds(timeout, "timeout")
    require_seconds(command_timeout, "command_timeout")
    deadline = asyncio.get_running_loop().time() + timeout
    sock = await _connect(target, deadline)
    name, pid = f"the monitor on {target}", host.qemu_pid(sock)
    client = QMPClient()
    client.logger = _quiet
    client.events.event_filter = _refuse  # nobody can read there
    try:
        await _greet(client, sock, name, deadline)
        monitor = AsyncioMonitor(client, name=name, command_timeout=command_timeout)
        monitor.pid = pid
        yield monitor
    finally:
        await _disconnect(client, sock)


@asynccontextmanager
async def open_balloon(
    target: Target,
    *,
    timeout: float = OPEN_TIMEOUT,
    command_timeout: float = COMMAND_TIMEOUT,
    wall_clock: Callable[[], float] = time.time,
) -> AsyncGenerator[Balloon, None]:
    """Connect to a VM's monitor and find its balloon; a context manager.

    Args:
        target: As for :func:`open_monitor`.
        timeout: As for :func:`open_monitor`.
        command_timeout: As for :func:`open_monitor`.
        wall_clock: Tells seconds since the epoch, for the age of statistics.

    Yields:
        The balloon. Its connection is closed at the end of the block.

    Raises:
        NoBalloonDevice: The VM has none.
        MonitorError: As :func:`open_monitor`.

    Cancellation: at any moment; the connection is closed.
    """
    async with open_monitor(
        target, timeout=timeout, command_timeout=command_timeout
    ) as monitor:
        yield await find.find_balloon(
            monitor, resident=monitor.resident, wall_clock=wall_clock
        )


class AsyncioMonitor(AsyncioTime):
    """A :class:`~qmpballoon.monitor.Monitor` over a connected ``QMPClient``.

    Tasks may share it. At most eight of its commands are with QEMU at a time;
    further ones wait. What others send through the client does not count.

    Args:
        client: Connected, and used by whomever else it pleases.
        name: What messages call it.
        command_timeout: Seconds for each command that gives none of its own.
        unread_events: As for :func:`find_balloon`.

    Attributes:
        client: The client.
        name: What messages call it.
        pid: The process id of QEMU, ``None`` where it is not known.
    """

    def __init__(
        self,
        client: QMPClient,
        *,
        name: str | None = None,
        command_timeout: float = COMMAND_TIMEOUT,
        unread_events: int | None = UNREAD_EVENTS,
    ) -> None:
        super().__init__()
        self.client = client
        self.name: str = name or f"the monitor of {client.name or 'a qemu.qmp client'}"
        self.pid: int | None = None
        self._command_timeout = require_seconds(command_timeout, "command_timeout")
        self._turns = asyncio.Semaphore(MAX_IN_FLIGHT)
        self._tasks: set[asyncio.Task[object]] = set()  # asyncio's own are weak
        if unread_events is not None:
            _bound(client.events, unread_events)

    def resident(self) -> int | None:
        """Return QEMU's resident memory in bytes, ``None`` if it cannot be known."""
        return None if self.pid is None else host.resident(self.pid)

    async def execute(
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
            timeout: Seconds for the answer, waiting for a turn included;
                ``math.inf`` for ever. By default the monitor's own.

        Raises:
            CommandError: QEMU refused the command.
            MonitorTimeout: No answer in time. The monitor stays usable.
            MonitorClosed: The client is not connected (any more).
            ProtocolError: The peer sent nonsense.
            TypeError: The arguments are nothing that JSON knows.
            ValueError: Likewise, by their values.

        Cancellation: if a call is cancelled, the command may or may not have
        been carried out; its answer is swallowed. The monitor stays usable.
        """
        if timeout is None:
            timeout = self._command_timeout
        else:
            require_seconds(timeout, "timeout")
        call = _Call(command, _copied(arguments))
        task = asyncio.create_task(self._exchange(call))
        self._tasks.add(task)
        task.add_done_callback(self._forget)
        try:
            await self.wait(task, self.now() + timeout)
        finally:
            if not call.sent:
                task.cancel()
        if not task.done() or task.cancelled():
            raise retold(not_answered(self.name, command, timeout), call.unknown)
        error = task.exception()
        if error is None:
            return task.result()
        raise self._translated(error, call) from error

    def subscribe(self, *names: str, capacity: int = 64) -> EventSubscription:
        """Return a subscription to QEMU's events; it begins with its ``with`` block.

        Args:
            names: Which events, such as ``"BALLOON_CHANGE"``; none means all.
            capacity: How many to hold while nobody reads.
        """
        return EventSubscription(self, EventBuffer(names, capacity))

    async def _exchange(self, call: _Call) -> object:
        async with self._turns:
            call.sent = True
            return await self.client.execute(call.command, call.arguments)

    def _forget(self, task: asyncio.Task[object]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # it was told to the caller, if there still was one

    def _translated(self, error: BaseException, call: _Call) -> BaseException:
        """Say in this library's exceptions what qemu.qmp raised."""
        match error:
            case ExecuteError():
                return command_error(call.command, error.error_class, str(error))
            case StateError():
                return self._closed()
            case ExecInterruptedError():
                return retold(self._closed(), call.unknown)
            case QMPError():
                return ProtocolError(f"{self.name}: {_line(error)}", call.unknown)
            case _:
                return error

    def _closed(self) -> MonitorClosed:
        return MonitorClosed(f"{self.name} is not connected (any more)")

    def _raise_if_closed(self) -> None:
        if self.client.runstate is not Runstate.RUNNING:
            raise self._closed()


class EventSubscription:
    """QEMU's events for one reader: a context manager, and an iterator inside it.

    ::

        with monitor.subscribe("BALLOON_CHANGE") as events:
            async for event in events:
                print(event.data)

    A reader that does not keep up loses the oldest events, of the same name where
    there are some; :attr:`lost` tells. It never holds up anybody else.
    """

    def __init__(self, monitor: AsyncioMonitor, buffer: EventBuffer) -> None:
        self._monitor = monitor
        self._buffer = buffer
        self._arrived = asyncio.Event()
        # The filter takes the events and lets none pass: what does, a listener
        # keeps in a history without end.
        self._listener = EventListener(event_filter=self._put)

    def __enter__(self) -> Self:
        """Begin to take events in."""
        self._monitor.client.register_listener(self._listener)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Take no more in; what was is still there to be read."""
        self._monitor.client.remove_listener(self._listener)

    @property
    def lost(self) -> Mapping[str, int]:
        """How many events of each name were dropped unread."""
        return self._buffer.lost

    async def receive(self) -> Event:
        """Return the next event.

        Raises:
            MonitorClosed: The client is not connected; no more will come.

        Cancellation: at once, and no event is lost.
        """
        await asyncio.sleep(0)
        while (event := self._buffer.get()) is None:
            await self._wait_for_more()
        return event

    def __aiter__(self) -> Self:
        """Return itself."""
        return self

    async def __anext__(self) -> Event:
        """Return the next event, as :meth:`receive` does."""
        return await self.receive()

    async def _wait_for_more(self) -> None:
        self._arrived.clear()
        waits = (
            asyncio.create_task(self._arrived.wait()),
            asyncio.create_task(self._monitor.client.runstate_changed()),
        )
        try:
            await asyncio.sleep(0)  # after this they notice
            if not self._arrived.is_set():
                self._monitor._raise_if_closed()  # noqa: SLF001
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    def _put(self, message: Message) -> bool:
        # An exception in here would end the orchestrator's connection.
        with suppress(ProtocolError):
            event = parse(dict(message))
            if isinstance(event, Event) and self._buffer.put(event):
                self._arrived.set()
        return False


@define
class _Call:
    """One command of one caller."""

    command: str
    arguments: Mapping[str, object] | None
    sent: bool = False

    @property
    def unknown(self) -> tuple[str, ...]:
        return (self.command,) if self.sent else ()


class _Bound:
    """An event filter that lets only so many events pile up unread.

    It refuses the newest, not the oldest: what a listener has accepted once stays
    in its history, read or not.
    """

    def __init__(self, listener: EventListener, limit: int) -> None:
        self._listener = listener
        self._limit = limit
        self._first = listener.event_filter
        self._accepted = 0  # since nothing was unread

    def __call__(self, event: Message) -> bool:
        if self._first is not None and not self._first(event):
            return False
        if self._listener.empty():
            self._accepted = 0
        if self._accepted == self._limit:
            _log.warning(
                "%d events lie unread in client.events: further ones are dropped"
                " until they are read; see unread_events",
                self._limit,
            )
        self._accepted += 1
        return self._accepted <= self._limit


def _bound(listener: EventListener, limit: int) -> None:
    if limit < 0:
        raise ValueError(f"unread_events is {limit}: it must be at least 0 events")
    if not isinstance(listener.event_filter, _Bound) and (
        listener.event_filter is not _refuse
    ):
        listener.event_filter = _Bound(listener, limit)


def _refuse(_: Message) -> bool:
    return False


def _copied(arguments: Mapping[str, object] | None) -> Mapping[str, object] | None:
    """Return what JSON makes of the arguments.

    qemu.qmp encodes them later, in a task whose end is that of the connection.
    """
    if arguments is None:
        return None
    copied: dict[str, object] = json.loads(encode(arguments))
    return copied


async def _connect(target: Target, deadline: float) -> socket.socket:
    """Return a connected, non-blocking socket."""
    if isinstance(target, int):
        target = socket.socket(fileno=target)
    if isinstance(target, socket.socket):
        return checked(target)
    address = parse_address(target)
    if isinstance(address, UnixAddress):
        now = asyncio.get_running_loop().time
        return await connect_unix(address, deadline, now=now, sleep=asyncio.sleep)
    return await _connect_tcp(address, deadline)


async def _connect_tcp(address: TcpAddress, deadline: float) -> socket.socket:
    loop = asyncio.get_running_loop()
    failure = OSError("it has no address")
    try:
        async with asyncio.timeout_at(deadline):
            for family, kind, protocol, _, place in await loop.getaddrinfo(
                address.host, address.port, type=socket.SOCK_STREAM
            ):
                sock = checked(socket.socket(family, kind, protocol))
                try:
                    await loop.sock_connect(sock, place)
                except OSError as error:
                    sock.close()
                    # asyncio's own words for it are less clear.
                    failure = OSError(error.errno, os.strerror(error.errno or 0))
                except BaseException:
                    sock.close()
                    raise
                else:
                    return sock
    except TimeoutError:
        raise no_tcp_in_time(address) from None
    except OSError as error:  # of looking the host up
        failure = error
    raise no_tcp(address, failure)


async def _greet(
    client: QMPClient, sock: socket.socket, name: str, deadline: float
) -> None:
    """Have the client greeted and negotiate."""
    try:
        async with asyncio.timeout_at(deadline):
            await client.connect(sock)
    except TimeoutError:
        busy = client.greeting is None
        raise (not_greeted(name) if busy else not_negotiated(name)) from None
    except ConnectError as error:
        raise _why_not_connected(name, error.exc) from error


def _why_not_connected(name: str, cause: Exception) -> QmpBalloonError:
    match cause:
        case EOFError():
            return closed_by_peer(name)
        case OSError():
            return MonitorClosed(f"{name} broke: {cause}")
        case _:
            return ProtocolError(
                f"{name}: {_line(cause)}: it is no QMP monitor, or one with pretty=on,"
                " which qemu.qmp cannot read"
            )


async def _disconnect(client: QMPClient, sock: socket.socket) -> None:
    """Close at once: qemu.qmp would wait for a peer that does not read.

    A cancellation waits for its end, or qemu.qmp would leave its tasks and the socket
    behind.
    """
    with suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
    clock = AsyncioTime()
    try:
        with clock.shield(math.inf):
            await clock.wait(asyncio.create_task(_end(client)), math.inf)
    finally:
        sock.close()


async def _end(client: QMPClient) -> None:
    if client.runstate is not Runstate.IDLE:
        # It raises again whatever ended the connection.
        with suppress(Exception):
            async with asyncio.timeout(_CLOSE_TIMEOUT):
                await client.disconnect()


def _line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__
