"""Having QEMU add a monitor for one connection, over a monitor that others use, too.

:mod:`qmpballoon.qmp.own_monitor` has the commands for that; here they are sent.
"""

from __future__ import annotations

import os
import socket
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING, Final, Literal, Protocol, TypeAlias, TypeVar

from qmpballoon.errors import (
    CommandError,
    MonitorTimeout,
    OwnMonitorUnavailable,
    QmpBalloonError,
)
from qmpballoon.qmp.messages import parse_version
from qmpballoon.qmp.own_monitor import (
    can_add_monitor,
    find_leftovers,
    list_steps,
    list_undo_steps,
    make_name,
)

if TYPE_CHECKING:
    import logging
    from collections.abc import Mapping
    from contextlib import AbstractContextManager
    from typing import Self

__all__ = [
    "DescriptorNotSentError",
    "Own",
    "SharedAdapter",
    "SharedMonitor",
    "add_own_monitor",
    "change_to_own",
    "get_time_left",
    "require_own",
    "try_own_monitor",
]

Own: TypeAlias = "bool | Literal['auto']"
"""Whether to have QEMU add a monitor for this connection alone; with ``"auto"``, the
shared one is used if that fails."""

# Chosen, not measured. QEMU answers each of these commands in less than a millisecond,
# and a task that was cancelled should end soon.
_UNDO_TIMEOUT: Final = 2.0
"""Seconds for undoing what was begun."""

_POLL_INTERVAL: Final = 0.001
"""Seconds between two checks for the greeting. A check takes some microseconds."""

_REMEDY: Final = (
    "give the VM a second -qmp monitor, or share this one (without --own-monitor,"
    ' with own="auto", or with find_balloon)'
)


_NOT_LOCAL: Final = "it is not on a plain unix socket"


class DescriptorNotSentError(Exception):
    """A monitor's connection cannot carry file descriptors; the text says why."""


class _Clock(Protocol):
    def now(self) -> float:
        """Return the time in seconds."""
        ...


class SharedMonitor(Protocol):
    """What is needed of the monitor that is shared."""

    name: str

    @property
    def takes_descriptors(self) -> bool:
        """Whether file descriptors can be sent over its connection."""
        ...

    async def execute(
        self,
        command: str,
        arguments: Mapping[str, object] | None = None,
        *,
        timeout: float | None = None,
    ) -> object:
        """Run one QMP command and return its result."""
        ...

    async def send_descriptor(self, name: str, number: int, *, timeout: float) -> None:
        """Hand QEMU a copy of a file descriptor, under a name.

        Raises:
            DescriptorNotSentError: It cannot be sent; nothing was.
        """
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait for that many seconds."""
        ...

    def now(self) -> float:
        """Return the time in seconds on the monitor's clock."""
        ...

    def shield(self, seconds: float) -> AbstractContextManager[object]:
        """Return a context manager inside which cancellations are held back."""
        ...


class BlockingSharedMonitor(Protocol):
    """What is needed of a monitor that is shared, in blocking code."""

    name: str

    @property
    def takes_descriptors(self) -> bool:
        """Whether file descriptors can be sent over its connection."""
        ...

    def execute(
        self,
        command: str,
        arguments: Mapping[str, object] | None = None,
        *,
        timeout: float | None = None,
    ) -> object:
        """Run one QMP command and return its result."""
        ...

    def send_descriptor(self, name: str, number: int, *, timeout: float) -> None:
        """Hand QEMU a copy of a file descriptor, under a name."""
        ...

    def sleep(self, seconds: float) -> None:
        """Wait for that many seconds."""
        ...

    def now(self) -> float:
        """Return the time in seconds on the monitor's clock."""
        ...


class SharedAdapter:
    """Makes a blocking monitor a ``SharedMonitor`` whose coroutines never suspend."""

    def __init__(self, monitor: BlockingSharedMonitor) -> None:
        self._monitor = monitor
        self.name: str = monitor.name

    @property
    def takes_descriptors(self) -> bool:
        """Whether file descriptors can be sent over its connection."""
        return self._monitor.takes_descriptors

    async def execute(
        self,
        command: str,
        arguments: Mapping[str, object] | None = None,
        *,
        timeout: float | None = None,
    ) -> object:
        """Run one QMP command and return its result."""
        return self._monitor.execute(command, arguments, timeout=timeout)

    async def send_descriptor(self, name: str, number: int, *, timeout: float) -> None:
        """Hand QEMU a copy of a file descriptor, under a name."""
        self._monitor.send_descriptor(name, number, timeout=timeout)

    async def sleep(self, seconds: float) -> None:
        """Wait for that many seconds."""
        self._monitor.sleep(seconds)

    def now(self) -> float:
        """Return the time in seconds on the monitor's clock."""
        return self._monitor.now()

    def shield(self, seconds: float) -> AbstractContextManager[object]:
        """Do nothing: cleanup after Ctrl-C is interrupted only by another Ctrl-C."""
        del seconds  # each command has its own deadline
        return nullcontext()


class OwnableMonitor(SharedMonitor, Protocol):
    """A monitor on a connection of ours, which can make another one like it."""

    def make_like(self, sock: socket.socket) -> Self:
        """Return a monitor on another socket of the same QEMU; it has not started."""
        ...

    async def start(self, deadline: float, *, oob: bool) -> None:
        """Negotiate until a deadline on the monitor's clock. Then it can be used."""
        ...

    async def aclose(self) -> None:
        """Close the connection at once; no effect if it is closed."""
        ...


M = TypeVar("M", bound=OwnableMonitor)


def require_own(own: object) -> None:
    """Check that a value is an :data:`Own`.

    Raises:
        TypeError: It is neither a bool nor a text.
        ValueError: It is another text than ``"auto"``.
    """
    if not isinstance(own, bool | str):
        raise TypeError(f'own is {own!r}: it must be True, False or "auto"')
    if isinstance(own, str) and own != "auto":
        raise ValueError(f'own is {own!r}: it must be True, False or "auto"')


async def change_to_own(
    shared: M, own: Own, deadline: float, *, oob: bool, log: logging.Logger
) -> M:
    """Replace a shared monitor by one for this connection alone, if that is wanted.

    Args:
        shared: The monitor to ask on. It is closed if QEMU adds another one.
        own: Whether to ask; as :data:`Own`.
        deadline: As for :func:`add_own_monitor`.
        oob: Ask for out-of-band execution.
        log: Gets the reason if the shared monitor is used.

    Returns:
        The new monitor, or the shared one.

    Raises:
        OwnMonitorUnavailable: QEMU cannot add one, and ``own`` is ``True``.
        MonitorError: QEMU did not answer.
    """
    added = await try_own_monitor(shared, own, deadline, log)
    if added is None:
        return shared
    monitor = shared.make_like(added)
    try:
        await shared.aclose()
        await monitor.start(deadline, oob=oob)
    except BaseException:
        await monitor.aclose()
        raise
    return monitor


async def try_own_monitor(
    shared: SharedMonitor, own: Own, deadline: float, log: logging.Logger
) -> socket.socket | None:
    """Have QEMU add a monitor for this connection alone, if that is wanted.

    Args:
        shared: As for :func:`add_own_monitor`.
        own: Whether to ask; as :data:`Own`.
        deadline: As for :func:`add_own_monitor`.
        log: Gets the reason if the shared monitor is used.

    Returns:
        As :func:`add_own_monitor`; ``None`` if the shared monitor is to be used.

    Raises:
        OwnMonitorUnavailable: QEMU cannot add one, and ``own`` is ``True``.
        MonitorError: QEMU did not answer.
    """
    if not own:
        return None
    try:
        return await add_own_monitor(shared, deadline)
    except OwnMonitorUnavailable as error:
        if own is True:
            raise
        log.info("%s; goes on with the shared one", _shorten(error))
        return None


async def add_own_monitor(shared: SharedMonitor, deadline: float) -> socket.socket:
    """Have QEMU add a monitor for this connection alone.

    If the call fails or is cancelled, nothing is left behind in QEMU.

    Args:
        shared: The monitor to ask on. It is free again when this returns.
        deadline: When to give up, on the monitor's clock.

    Returns:
        A non-blocking socket that is connected to the new monitor, which has greeted.

    Raises:
        OwnMonitorUnavailable: QEMU cannot add one.
        MonitorError: QEMU did not answer.
    """
    if not shared.takes_descriptors:
        raise _make_unavailable(shared, _NOT_LOCAL)
    answer = await shared.execute(
        "query-version", timeout=get_time_left(shared, deadline)
    )
    version = parse_version(answer)
    if not can_add_monitor(version):
        raise _make_unavailable(shared, f"QEMU {version} cannot, only 11.1 and later")
    await _remove_leftovers(shared, deadline)
    return await _add(shared, deadline)


async def _remove_leftovers(shared: SharedMonitor, deadline: float) -> None:
    """Remove the monitors of clients that were killed while QEMU added them."""
    left = get_time_left(shared, deadline)
    try:
        answer = await shared.execute("query-chardev", timeout=left)
    except CommandError:
        return
    for name in find_leftovers(answer):
        for step in list_undo_steps(name):
            left = get_time_left(shared, deadline)
            with suppress(CommandError):
                await shared.execute(step.command, step.arguments, timeout=left)


def get_time_left(shared: _Clock, deadline: float) -> float:
    """Return the seconds until a deadline on a monitor's clock, at least 0."""
    return max(deadline - shared.now(), 0.0)


async def _add(shared: SharedMonitor, deadline: float) -> socket.socket:
    try:
        ours, theirs = socket.socketpair()
    except OSError as error:
        raise _make_unavailable(shared, f"no socket: {error.strerror}") from None
    try:
        with theirs:
            ours.setblocking(False)  # noqa: FBT003 - socket's own signature
            await _hand_over(shared, ours, theirs, deadline)
    except BaseException:
        ours.close()
        raise
    return ours


def _choose_name(sock: socket.socket) -> str:
    """Return a name that no other monitor of a QEMU on this host has.

    The kernel numbers sockets, and the monitor lives no longer than its socket.
    """
    return make_name(os.fstat(sock.fileno()).st_ino)


async def _hand_over(
    shared: SharedMonitor, ours: socket.socket, theirs: socket.socket, deadline: float
) -> None:
    """Have QEMU add a monitor on a socket; if that fails, undo what was begun."""
    name = _choose_name(ours)
    _, *further = list_steps(name)
    try:
        left = get_time_left(shared, deadline)
        await shared.send_descriptor(name, theirs.fileno(), timeout=left)
        theirs.close()  # QEMU has a copy; if it closes that, we must notice
        for step in further:
            left = get_time_left(shared, deadline)
            await shared.execute(step.command, step.arguments, timeout=left)
        await _wait_for_greeting(shared, ours, deadline)
    except DescriptorNotSentError as error:
        raise _make_unavailable(shared, str(error)) from None
    except BaseException as error:
        await _undo(shared, name)
        if isinstance(error, CommandError):
            why = f"QEMU refused {error.command}: {error.desc}"
            raise _make_unavailable(shared, why) from None
        raise


async def _wait_for_greeting(
    shared: SharedMonitor, ours: socket.socket, deadline: float
) -> None:
    """Wait until the new monitor has greeted, which takes a millisecond or two.

    If a client left before that, QEMU would not notice, and would keep the monitor.
    """
    while shared.now() < deadline:
        with suppress(BlockingIOError):
            if ours.recv(1, socket.MSG_PEEK):
                return
            raise _make_unavailable(shared, "QEMU closed it again")
        await shared.sleep(_POLL_INTERVAL)
    raise MonitorTimeout(f"{shared.name} added a monitor, which did not greet in time")


async def _undo(shared: SharedMonitor, name: str) -> None:
    """Undo what was begun, even if the caller was cancelled."""
    with shared.shield(2 * _UNDO_TIMEOUT):
        deadline = shared.now() + _UNDO_TIMEOUT
        for step in list_undo_steps(name):
            # All are sent, even if the first is not answered: a QEMU that is stopped
            # carries them out when it is resumed.
            left = max(get_time_left(shared, deadline), _UNDO_TIMEOUT / 10)
            with suppress(QmpBalloonError):
                await shared.execute(step.command, step.arguments, timeout=left)


def _make_unavailable(shared: SharedMonitor, why: str) -> OwnMonitorUnavailable:
    error = OwnMonitorUnavailable(
        f"{shared.name}: no monitor of one's own can be added ({why}): {_REMEDY}"
    )
    error.vm = shared.name
    return error


def _shorten(error: OwnMonitorUnavailable) -> str:
    """Return what happened, without what to do about it."""
    return str(error).removesuffix(f": {_REMEDY}")
