"""Getting a monitor of one's own, over one that is shared with other clients."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Literal, Protocol, TypeAlias

from qmpballoon.errors import (
    CommandError,
    MonitorTimeout,
    OwnMonitorUnavailable,
    QmpBalloonError,
)
from qmpballoon.qmp.own_monitor import can_add_monitor, list_steps, list_undo_steps

if TYPE_CHECKING:
    import logging
    from collections.abc import Mapping
    from contextlib import AbstractContextManager

    from qmpballoon.qmp.messages import Greeting

__all__ = ["Own", "SharedMonitor", "add_own_monitor", "require_own"]

Own: TypeAlias = "bool | Literal['auto']"
"""Whether to ask QEMU for a monitor of one's own; ``"auto"``: go on with the shared one
where that cannot be had."""

# Chosen, not measured. QEMU answers each of these commands in less than a millisecond,
# and a task that was cancelled should end soon.
_UNDO_TIMEOUT: Final = 2.0
"""Seconds for taking back what was begun."""

_POLL_INTERVAL: Final = 0.001
"""Seconds between two looks for the greeting. One look takes some microseconds."""

_REMEDY: Final = (
    "give the VM a second -qmp monitor, or share this one (without --own-monitor,"
    ' or with own="auto")'
)


class SharedMonitor(Protocol):
    """What is needed of the monitor that is shared."""

    name: str

    @property
    def greeting(self) -> Greeting | None:
        """QEMU's greeting."""
        ...

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
        """Hand QEMU a copy of a file descriptor, under a name."""
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


def require_own(own: object) -> None:
    """Check that a value says whether to ask for a monitor of one's own.

    Raises:
        TypeError: It is neither a bool nor a text.
        ValueError: It is another text than ``"auto"``.
    """
    if not isinstance(own, bool | str):
        raise TypeError(f'own is {own!r}: it must be True, False or "auto"')
    if isinstance(own, str) and own != "auto":
        raise ValueError(f'own is {own!r}: it must be True, False or "auto"')


async def add_own_monitor(
    shared: SharedMonitor, own: Own, deadline: float, log: logging.Logger
) -> socket.socket | None:
    """Ask QEMU for a monitor of one's own.

    If the call fails or is cancelled, nothing stays in QEMU.

    Args:
        shared: The monitor to ask on. It is free again when this returns.
        own: Whether to ask; as :data:`Own`.
        deadline: Until when, on the monitor's clock.
        log: Is told why the shared monitor is used on.

    Returns:
        A non-blocking socket on the new monitor, which has greeted; ``None``: go on
        with the shared monitor.

    Raises:
        OwnMonitorUnavailable: It cannot be had, and has to be.
        MonitorError: QEMU did not answer.
    """
    if not own:
        return None
    try:
        _require_able(shared)
        return await _add(shared, deadline)
    except OwnMonitorUnavailable as error:
        if own is True:
            raise
        log.info("%s; goes on with the shared one", _shorten(error))
        return None


def _require_able(shared: SharedMonitor) -> None:
    """Raise why no monitor can be added, as far as that is known without asking."""
    if not shared.takes_descriptors:
        raise _make_unavailable(shared, "it is not on a plain unix socket")
    if not can_add_monitor(shared.greeting):
        version = shared.greeting.version if shared.greeting else None
        raise _make_unavailable(shared, f"QEMU {version} cannot, only 11.1 and later")


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
    return f"qmpballoon-{os.fstat(sock.fileno()).st_ino}"


async def _hand_over(
    shared: SharedMonitor, ours: socket.socket, theirs: socket.socket, deadline: float
) -> None:
    """Have QEMU add a monitor on a socket, or leave it as it was."""
    name = _choose_name(ours)
    _, *further = list_steps(name)

    def get_time_left() -> float:
        return max(deadline - shared.now(), 0.0)

    try:
        await shared.send_descriptor(name, theirs.fileno(), timeout=get_time_left())
        for step in further:
            await shared.execute(step.command, step.arguments, timeout=get_time_left())
        await _wait_for_greeting(shared, ours, deadline)
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

    Before that QEMU does not notice that a client leaves, and would keep the monitor.
    """
    while shared.now() < deadline:
        with suppress(BlockingIOError):
            ours.recv(1, socket.MSG_PEEK)
            return
        await shared.sleep(_POLL_INTERVAL)
    raise MonitorTimeout(f"{shared.name} added a monitor, which did not greet in time")


async def _undo(shared: SharedMonitor, name: str) -> None:
    """Take back what was begun, also if the caller was cancelled."""
    with shared.shield(_UNDO_TIMEOUT):
        for step in list_undo_steps(name):
            with suppress(QmpBalloonError):
                await shared.execute(
                    step.command, step.arguments, timeout=_UNDO_TIMEOUT
                )


def _make_unavailable(shared: SharedMonitor, why: str) -> OwnMonitorUnavailable:
    error = OwnMonitorUnavailable(
        f"{shared.name}: no monitor of one's own can be added ({why}): {_REMEDY}"
    )
    error.vm = shared.name
    return error


def _shorten(error: OwnMonitorUnavailable) -> str:
    """Return what happened, without what to do about it."""
    return str(error).removesuffix(f": {_REMEDY}")
