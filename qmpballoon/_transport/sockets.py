"""Reaching a monitor's socket, and saying why it cannot be reached.

What the front ends have in common here. How to wait is the only thing in which
they differ, so that is given to them to bring.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

from qmpballoon.address import parse_address
from qmpballoon.errors import MonitorBusy, MonitorUnreachable

if TYPE_CHECKING:
    import ssl
    from collections.abc import Awaitable, Callable

    from qmpballoon.address import Address, TcpAddress, UnixAddress

__all__ = [
    "Connectable",
    "checked",
    "connect_unix",
    "named",
    "no_tcp",
    "no_tcp_in_time",
    "no_tls",
    "no_tls_in_time",
    "require_name",
    "taken_over",
]

Connectable: TypeAlias = (
    "str | os.PathLike[str] | tuple[str, int] | Address | int | socket.socket"
)
"""An address, or something connected: a socket, or its descriptor. What is connected
is taken over, and closed at the end."""

_PORT: Final = re.compile(r"[^/]+:[0-9]+")  # what would be one after "tcp:"
_RETRY_INTERVAL: Final = 0.02  # seconds between two tries at a full backlog


def checked(sock: socket.socket) -> socket.socket:
    """Return a socket, made non-blocking, if QMP can be spoken over its kind."""
    if sock.fileno() < 0:
        raise ValueError(f"{sock!r} is closed: give a connected one")
    if sock.type != socket.SOCK_STREAM:
        raise ValueError(f"{sock!r} is no stream socket: QMP needs one")
    sock.setblocking(False)  # noqa: FBT003
    return sock


def named(target: Connectable) -> str:
    """Return what messages call the monitor behind an address, or a connection."""
    if isinstance(target, socket.socket):
        return "the connected monitor"
    if isinstance(target, int):
        return f"the monitor on descriptor {target}"
    return f"the monitor on {parse_address(target)}"


def taken_over(target: int | socket.socket) -> socket.socket:
    """Make a socket ours that came in connected; what is none is left alone.

    Raises:
        ValueError: It is no stream socket, or closed.
        MonitorUnreachable: It is not connected.
    """
    sock = target if isinstance(target, socket.socket) else _from_descriptor(target)
    try:
        sock = checked(sock)
    except ValueError:
        if sock is not target:
            sock.detach()
        raise
    try:
        sock.getpeername()
    except OSError as error:
        sock.close()
        raise MonitorUnreachable(
            f"{named(target)} is not connected: {error.strerror}"
        ) from None
    return sock


def _from_descriptor(descriptor: int) -> socket.socket:
    try:
        return socket.socket(fileno=descriptor)
    except (OSError, ValueError, OverflowError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise ValueError(
            f"descriptor {descriptor} is no socket ({why}): give that of a connected"
            " stream socket"
        ) from None


async def connect_unix(
    address: UnixAddress,
    deadline: float,
    *,
    now: Callable[[], float],
    sleep: Callable[[float], Awaitable[object]],
) -> socket.socket:
    """Connect to a unix socket, and return it, non-blocking.

    Args:
        address: Where it is.
        deadline: When to give up.
        now: Tells the time that the deadline is in.
        sleep: Waits for so many seconds.

    Raises:
        MonitorUnreachable: Nobody could be connected to.
        MonitorBusy: The socket's queue of waiting clients stayed full.
    """
    sock = checked(socket.socket(socket.AF_UNIX))
    try:
        # EAGAIN means that the backlog is full, and leaves the socket
        # unconnected: waiting for it to become writable would wait for nothing.
        while (error := sock.connect_ex(address.path)) == errno.EAGAIN:
            if now() >= deadline:
                break
            await sleep(_RETRY_INTERVAL)
    except BaseException:
        sock.close()
        raise
    if error == 0:
        return sock
    sock.close()
    if error == errno.EAGAIN:
        raise MonitorBusy(
            f"too many clients wait for {address} already: close the client that"
            " holds it, or give the VM a second -qmp monitor"
        )
    raise MonitorUnreachable(_why_unreachable(address, error))


def no_tcp(address: TcpAddress, error: OSError) -> MonitorUnreachable:
    """Say that a TCP connection could not be made."""
    return MonitorUnreachable(
        f"cannot connect to {address}: {error.strerror or error}: does the VM have a"
        " -qmp tcp:HOST:PORT,server=on,wait=off monitor there?"
    )


def no_tcp_in_time(address: TcpAddress) -> MonitorUnreachable:
    """Say that a TCP connection was not made in time."""
    return MonitorUnreachable(
        f"no connection to {address} in time: is the host up, and the port open?"
    )


def require_name(tls: ssl.SSLContext, host_name: str | None) -> None:
    """Refuse a TLS context that checks the name of a host which has none.

    Raises:
        ValueError: Left to itself, ssl would say nothing, or not what to do.
    """
    if tls.check_hostname and host_name is None:
        raise ValueError(
            "the TLS context checks the host's name, and there is none: give"
            " tcp:HOST:PORT, or set its check_hostname to False"
        )


def no_tls(name: str, error: BaseException) -> MonitorUnreachable:
    """Say that the peer did not agree to TLS."""
    return MonitorUnreachable(
        f"{name}: no TLS handshake: does its -chardev have tls-creds=…? ({error})"
    )


def no_tls_in_time(name: str) -> MonitorBusy:
    """Say that a connection was made, and nobody shook hands."""
    return MonitorBusy(
        f"{name}: no TLS handshake in time: another client holds the monitor, QEMU is"
        " stopped, or the monitor has no TLS"
    )


def _why_unreachable(address: UnixAddress, error: int) -> str:
    path = address.path
    match error:
        case errno.ENOENT if _PORT.fullmatch(path):
            return f"there is no socket at {path}: write tcp:{path} for a TCP port"
        case errno.ENOENT:
            return f"there is no socket at {path}: is the VM running?"
        case errno.EACCES | errno.EPERM:
            return f"no permission for {path}: run as the user of QEMU, or as root"
        case errno.ECONNREFUSED if not _is_socket(path):
            return f"{path} is no socket: give the path of a -qmp unix:PATH monitor"
        case errno.ECONNREFUSED:
            return f"nobody listens at {path} any more: the VM has ended"
        case _:
            return f"cannot connect to {path}: {os.strerror(error)}"


def _is_socket(path: str) -> bool:
    try:
        return stat.S_ISSOCK(Path(path).stat().st_mode)
    except OSError:
        return False
