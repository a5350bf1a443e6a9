"""A monitor over a connected ``QMPClient`` of qemu.qmp, which somebody else holds.

The client is left as it was found. A subscription registers an event listener, and
removes it at the end of its block; nothing else of the client is touched.

Each command runs in a task of its own. Otherwise, if a caller is cancelled, qemu.qmp
would forget its command, whose place in QEMU's queue would count as free too early.

Only the parts of qemu.qmp under the LGPL are used.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import time
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import TYPE_CHECKING, Final
from weakref import WeakKeyDictionary

from attrs import define
from qemu.qmp import (
    EventListener,
    ExecInterruptedError,
    ExecuteError,
    QMPError,
    Runstate,
    StateError,
)

from qmpballoon._checks import require_command, require_count, require_kind
from qmpballoon._transport.asyncio_clock import AsyncioClock
from qmpballoon._transport.error_messages import (
    copy_error,
    make_closed,
    make_command_timeout,
    make_not_subscribed,
    make_protocol_error,
)
from qmpballoon._transport.monitor_base import COMMAND_TIMEOUT, MonitorBase
from qmpballoon._transport.own_monitor import (
    DescriptorNotSentError,
    add_own_monitor,
)
from qmpballoon._transport.qemu_process import find_qemu_pid
from qmpballoon._transport.subscriptions import AsyncSubscription
from qmpballoon.balloon.balloon import find_balloon
from qmpballoon.errors import MonitorClosed, ProtocolError, make_command_error
from qmpballoon.qmp.connection import MAX_IN_FLIGHT, encode
from qmpballoon.qmp.events import EventBuffer
from qmpballoon.qmp.messages import Event, parse
from qmpballoon.qmp.own_monitor import GETFD

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncGenerator, Callable, Generator, Mapping
    from types import TracebackType
    from typing import Self

    from qemu.qmp import Message, QMPClient

    from qmpballoon.balloon.balloon import Balloon

__all__ = [
    "UNREAD_EVENTS",
    "HeldClientMonitor",
    "HeldClientSubscription",
    "add_through_client",
    "adopt_client",
    "find_through_client",
    "limit_unread_events",
]

_log = logging.getLogger("qmpballoon.asyncio")

# Measured: a BALLOON_CHANGE event takes 1.3 kB in qemu.qmp, so this is 1.3 MB. A reader
# that is merely slow leaves fewer events unread.
UNREAD_EVENTS: Final = 1000
"""How many events a client may hold for a reader that does not come."""

# A client disconnects within milliseconds, unless it first has to send something that a
# stopped QEMU does not read. That is not worth as much time as a command.
_HANG_UP_TIMEOUT: Final = 2.0  # seconds


# Held while a descriptor is sent over a client, which others may share.
_handing_over: WeakKeyDictionary[QMPClient, asyncio.Lock] = WeakKeyDictionary()


class HeldClientMonitor(MonitorBase, AsyncioClock):
    """A :class:`~qmpballoon.monitor.Monitor` over a connected ``QMPClient``.

    Many tasks may use it at once. At most eight of its commands are in flight at a
    time; further ones wait for their turn. Commands that others send through the client
    do not count.

    Args:
        client: Connected. Others may go on using it.
        name: The name that messages use for the monitor.
        command_timeout: Seconds for each command that gives none of its own.
        wall_clock: Returns seconds since the epoch, for the age of statistics.

    Attributes:
        client: The client.
        name: The name that messages use for the monitor.
        pid: The process id of QEMU; ``None`` if it is not known.
    """

    def __init__(
        self,
        client: QMPClient,
        *,
        name: str | None = None,
        command_timeout: float = COMMAND_TIMEOUT,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        require_kind(name, str, "name")
        if name is None:
            name = f"the monitor of {client.name or 'a qemu.qmp client'}"
        super().__init__(
            name=name, pid=None, command_timeout=command_timeout, wall_clock=wall_clock
        )
        self.client = client
        self._turns = asyncio.Semaphore(MAX_IN_FLIGHT)
        # asyncio's own references to tasks are weak.
        self._tasks: dict[_Call, asyncio.Task[None]] = {}
        # One timer for all commands: one for each would take as long as a task.
        self._timer: asyncio.TimerHandle | None = None
        self._timer_deadline = math.inf

    async def execute(
        self,
        command: str,
        arguments: Mapping[str, object] | None = None,
        *,
        timeout: float | None = None,
    ) -> object:
        """Run one QMP command and return its result.

        If the call is cancelled, QEMU may or may not have carried out the command. Its
        reply is dropped, and the monitor stays usable.

        Args:
            command: The command's name, as in the QMP reference.
            arguments: Its arguments, of JSON types only.
            timeout: Seconds for the reply, including the time that the command waits
                for its turn; ``math.inf`` for no limit. By default the monitor's own.

        Returns:
            The decoded value of ``return``.

        Raises:
            CommandError: QEMU refused the command.
            MonitorTimeout: No reply came in time. The monitor stays usable.
            MonitorClosed: The client is not connected.
            ProtocolError: The peer does not speak QMP.
            TypeError: The command is not text, or the arguments are not JSON.
            ValueError: The arguments have values that JSON does not know.
        """
        timeout = self._choose_timeout(timeout)
        require_command(command, arguments)
        return await self._run(_Call(command, _copy(arguments)), timeout)

    @property
    def takes_descriptors(self) -> bool:
        """Whether file descriptors may be sent; only trying tells whether they can.

        :meta private:
        """
        return True

    async def send_descriptor(self, name: str, number: int, *, timeout: float) -> None:
        """Hand QEMU a copy of a file descriptor, under a name.

        :meta private:
        """
        # QEMU keeps the descriptor that came last, for the command that comes next.
        lock = _handing_over.setdefault(self.client, asyncio.Lock())
        call = _Call(GETFD, {"fdname": name}, descriptor=number, lock=lock)
        await self._run(call, timeout)

    async def _run(self, call: _Call, timeout: float) -> object:
        """Run a command within a timeout, and return its result."""
        loop = asyncio.get_running_loop()
        deadline, woken = loop.time() + timeout, loop.create_future()
        call.woken, call.deadline = woken, deadline
        task = self._tasks[call] = loop.create_task(self._exchange(call))
        if deadline < self._timer_deadline:
            self._set_timer(deadline)
        try:
            if self._shields:
                await self.wait(woken, deadline)
            else:
                await woken
        finally:
            if not call.sent:
                task.cancel()
                self._tasks.pop(call, None)
        if call.error is not None:
            raise self._translate(call.error, call) from call.error
        if not call.has_returned:
            late = make_command_timeout(self.name, call.command, timeout)
            raise copy_error(late, call.unknown)
        return call.value

    def _set_timer(self, deadline: float) -> None:
        """Wake late commands at that time, and at no other."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._timer_deadline = None, deadline
        if deadline < math.inf:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_at(deadline, self._wake_late_calls)

    def _wake_late_calls(self) -> None:
        now, left = asyncio.get_running_loop().time(), math.inf
        for call in self._tasks:
            if call.deadline <= now:
                call.wake()
            else:
                left = min(left, call.deadline)
        self._set_timer(left)

    def subscribe(self, *names: str, capacity: int = 64) -> HeldClientSubscription:
        """Return a subscription to QEMU's events.

        It takes events in from the beginning of its ``with`` block to the end.

        Args:
            names: Which events, such as ``"BALLOON_CHANGE"``; by default all.
            capacity: How many unread events to hold, at least 1.

        Raises:
            TypeError: A name is not text, or the capacity is not an integer.
            ValueError: The capacity is less than 1.
        """
        return HeldClientSubscription(
            self.client, self._raise_if_closed, EventBuffer(names, capacity)
        )

    async def _exchange(self, call: _Call) -> None:
        # ``async with`` would take two more coroutines.
        await self._turns.acquire()
        try:
            if call.lock is None:
                call.sent = True
                call.value = await self.client.execute(call.command, call.arguments)
            else:
                async with call.lock:
                    call.value = await self._execute_with_descriptor(call)
            call.has_returned = True
        except Exception as error:  # noqa: BLE001 - the caller raises it
            call.error = error
        finally:
            self._turns.release()
            # A callback of the task would take one more turn of the event loop, with a
            # system call.
            call.wake()
            self._tasks.pop(call, None)

    async def _execute_with_descriptor(self, call: _Call) -> object:
        # Nothing is awaited until the command is in the client's queue. So the caller,
        # who closes the descriptor, cannot be cancelled in between.
        call.sent = True
        if call.descriptor is not None:
            self._send_descriptor(call.descriptor)
        return await self.client.execute(call.command, call.arguments)

    def _send_descriptor(self, number: int) -> None:
        try:
            self.client.send_fd_scm(number)
        except StateError:
            raise
        except (QMPError, OSError) as error:  # on TCP; or QEMU reads nothing
            raise DescriptorNotSentError(_get_first_line(error)) from None

    def _translate(self, error: Exception, call: _Call) -> Exception:
        """Return this library's exception for one that qemu.qmp raised."""
        match error:
            case ExecuteError():
                kind, desc = error.error_class, str(error)
                return make_command_error(call.command, kind, desc, self.name)
            case StateError():
                return self._make_closed()
            case ExecInterruptedError():
                return copy_error(self._make_closed(), call.unknown)
            case QMPError():
                why = ProtocolError(_get_first_line(error))
                return copy_error(make_protocol_error(self.name, why), call.unknown)
            case _:
                return error

    def _make_closed(self) -> MonitorClosed:
        # After its peer has gone, a client is DISCONNECTING until its owner acts.
        if self.client.runstate is Runstate.DISCONNECTING:
            why = "was closed by QEMU, or by its owner"
        else:
            why = "has ended, or was not made"
        return make_closed(self.name, why)

    def _raise_if_closed(self) -> None:
        if self.client.runstate is not Runstate.RUNNING:
            raise self._make_closed()


@define(eq=False)
class _Call:
    """One command, and how it has ended."""

    command: str
    arguments: Mapping[str, object] | None
    descriptor: int | None = None  # that goes with it
    lock: asyncio.Lock | None = None
    # Done when the command has ended, or its time is over.
    woken: asyncio.Future[None] | None = None
    deadline: float = math.inf
    sent: bool = False
    has_returned: bool = False
    value: object = None
    error: Exception | None = None

    def wake(self) -> None:
        if self.woken is not None and not self.woken.done():
            self.woken.set_result(None)

    @property
    def unknown(self) -> tuple[str, ...]:
        return (self.command,) if self.sent else ()


def _copy(arguments: Mapping[str, object] | None) -> Mapping[str, object] | None:
    """Return the arguments as JSON represents them.

    qemu.qmp encodes them later, in a task of its own, and an error there would end the
    connection.
    """
    if arguments is None:
        return None
    copied: dict[str, object] = json.loads(encode(arguments))
    return copied


def _get_first_line(error: BaseException) -> str:
    """Return the first line of an error's message."""
    if isinstance(error, EOFError | ConnectionError):  # the first has no message
        return "QEMU closed it"
    return str(error).partition("\n")[0] or type(error).__name__


class HeldClientSubscription(AsyncSubscription):
    """QEMU's events for one reader: a context manager, and an iterator inside it.

    ::

        with monitor.subscribe("BALLOON_CHANGE") as events:
            async for event in events:
                print(event.data)

    Events wait in a bounded buffer until they are read. When it is full, the oldest
    event is dropped, preferably one with the same name as the new one; :attr:`lost`
    counts the dropped events. A slow reader delays nobody else. When the client is
    disconnected, by its owner or by QEMU, the iteration raises
    :exc:`~qmpballoon.errors.MonitorClosed`: qemu.qmp does not say by whom.
    """

    def __init__(
        self,
        client: QMPClient,
        raise_if_closed: Callable[[], None],
        buffer: EventBuffer,
    ) -> None:
        super().__init__(buffer)
        self._client = client
        self._raise_if_closed = raise_if_closed
        self._arrived = asyncio.Event()
        # The filter stores the events and lets none pass: a listener never frees the
        # events that it lets pass.
        self._listener = EventListener(event_filter=self._put)
        self._is_open = False

    def __enter__(self) -> Self:
        """Begin to take events in."""
        self._client.register_listener(self._listener)
        self._is_open = True
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop taking events in. Those that came before can still be read."""
        self._client.remove_listener(self._listener)
        self._is_open = False
        self._arrived.set()

    async def _let_others_run(self) -> None:
        await asyncio.sleep(0)

    def _raise_if_ended(self) -> None:
        self._raise_if_closed()
        if not self._is_open:
            raise make_not_subscribed()

    def _is_closed_by_us(self) -> bool:
        return False  # its owner closes it

    async def _wait(self) -> None:
        self._arrived.clear()
        waits = (
            asyncio.create_task(self._arrived.wait()),
            asyncio.create_task(self._client.runstate_changed()),
        )
        try:
            await asyncio.sleep(0)  # both have begun to wait after this
            if not self._arrived.is_set():
                self._raise_if_closed()
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    def _put(self, message: Message) -> bool:
        # An exception here would end the connection of the client's owner.
        with suppress(ProtocolError):
            event = parse(dict(message))
            if isinstance(event, Event) and self._buffer.put(event):
                self._arrived.set()
        return False


async def find_through_client(
    client: QMPClient,
    *,
    name: str | None,
    command_timeout: float,
    pid: int | None,
    wall_clock: Callable[[], float],
) -> Balloon[HeldClientMonitor]:
    """Find the balloon behind a client; see ``find_balloon`` of this front end."""
    monitor = HeldClientMonitor(
        client, name=name, command_timeout=command_timeout, wall_clock=wall_clock
    )
    monitor.pid = (await find_qemu_pid(monitor) if pid is None else pid) or None
    return await find_balloon(monitor)


async def add_through_client(
    client: QMPClient, *, name: str | None, command_timeout: float, deadline: float
) -> tuple[str, socket.socket]:
    """Have QEMU add a monitor over a client, which is left as it is.

    Args:
        client: Connected.
        name: The name that messages use for the VM; by default that of the client.
        command_timeout: Seconds for each command.
        deadline: When to give up, on the event loop's clock.

    Returns:
        The name, and a socket that is connected to the new monitor.

    Raises:
        OwnMonitorUnavailable: QEMU cannot add one.
        MonitorError: QEMU did not answer.
    """
    shared = HeldClientMonitor(client, name=name, command_timeout=command_timeout)
    return shared.name, await add_own_monitor(shared, deadline)


@asynccontextmanager
async def adopt_client(
    client: QMPClient,
    /,
    *,
    name: str | None = None,
    command_timeout: float = COMMAND_TIMEOUT,
    pid: int | None = None,
    wall_clock: Callable[[], float] = time.time,
) -> AsyncGenerator[Balloon[HeldClientMonitor], None]:
    """Find the balloon behind your connected client, and disconnect it at the end.

    An asynchronous context manager. Within the block, you may use the client for
    commands and events of your own. The end of the block disconnects it properly,
    however the block ends, and never raises anything itself: if QEMU has gone, the
    call that needed it raises :exc:`~qmpballoon.errors.MonitorClosed`, and the block
    passes that on. ``client.disconnect()`` would raise :exc:`EOFError` instead.

    If the task is cancelled, at any moment, the client is disconnected. A second
    cancellation is held back until that is done, for 2 seconds at most.

    Args:
        client: Connected. You connect it, and this disconnects it.
        name: As for :func:`find_balloon`.
        command_timeout: As for :func:`find_balloon`.
        pid: As for :func:`find_balloon`.
        wall_clock: As for :func:`find_balloon`.

    Yields:
        The balloon.

    Raises:
        NoBalloonDevice: The VM has none.
        MonitorClosed: The client is not connected.
        MonitorTimeout: QEMU does not answer.
    """
    try:
        yield await find_through_client(
            client,
            name=name,
            command_timeout=command_timeout,
            pid=pid,
            wall_clock=wall_clock,
        )
    finally:
        await _disconnect(client, name)


async def _disconnect(client: QMPClient, name: str | None) -> None:
    """Disconnect a client in any state; raise nothing but cancellations."""
    clock = AsyncioClock()
    task = asyncio.create_task(client.disconnect())
    with clock.shield(_HANG_UP_TIMEOUT):
        await clock.wait(task, clock.now() + _HANG_UP_TIMEOUT)
    shown = name or client.name or "a qemu.qmp client"
    if not task.done():
        task.cancel()
        _log.warning("%s: QEMU does not let the client disconnect in order", shown)
    elif error := task.exception():
        _log.warning("%s: the connection had ended: %s", shown, _get_first_line(error))


class _UnreadLimit:
    """An event filter that limits how many unread events a listener holds.

    It drops the newest events, not the oldest: a listener never frees an event that
    it has accepted.
    """

    def __init__(self, listener: EventListener, limit: int) -> None:
        self._listener = listener
        self._limit = limit
        self._previous = listener.event_filter
        self._accepted = 0  # since the listener was empty

    def __call__(self, event: Message) -> bool:
        if self._previous is not None and not self._previous(event):
            return False
        if self._listener.empty():
            self._accepted = 0
        if self._accepted == self._limit:
            _log.warning(
                "%d events are unread in client.events: further ones are dropped"
                " until they are read; see limit_unread_events",
                self._limit,
            )
        self._accepted += 1
        return self._accepted <= self._limit


@contextmanager
def limit_unread_events(
    client: QMPClient, limit: int = UNREAD_EVENTS
) -> Generator[None]:
    """Limit the unread events in ``client.events`` within a ``with`` block.

    qemu.qmp puts every event into ``client.events`` and keeps it until somebody reads
    it. In a program that does not read them, they pile up in memory. Within the block,
    further events are dropped while ``limit`` events are unread. At its end the
    listener has the event filter that it had before.

    If the client is limited already, this changes nothing.

    Args:
        client: The client.
        limit: How many unread events it may hold, at least 0.

    Raises:
        TypeError: The limit is not an integer.
        ValueError: The limit is negative.
    """
    require_count(limit, "limit", "events", minimum=0)
    listener = client.events
    before = listener.event_filter
    if isinstance(before, _UnreadLimit):
        yield
        return
    listener.event_filter = ours = _UnreadLimit(listener, limit)
    try:
        yield
    finally:
        if listener.event_filter is ours:  # nobody has set another meanwhile
            listener.event_filter = before
