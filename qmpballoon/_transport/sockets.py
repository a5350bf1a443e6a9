"""Connecting to a monitor's socket, and explaining why that failed.

The front ends differ only in how they wait and how they open a TCP connection. They
pass both in.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

from qmpballoon.address import TcpAddress, UnixAddress, parse_address
from qmpballoon.errors import MonitorBusy, MonitorTimeout, MonitorUnreachable

if TYPE_CHECKING:
    import ssl
    from collections.abc import Awaitable, Callable

    from qmpballoon.address import Address

__all__ = [
    "OPEN_TIMEOUT",
    "Target",
    "connect_socket",
    "describe_target",
    "find_host_name",
    "make_tcp_error",
    "make_tcp_timeout",
    "make_tls_error",
    "make_tls_timeout",
    "require_host_name",
    "set_nonblocking",
]

Target: TypeAlias = (
    "str | os.PathLike[str] | tuple[str, int] | Address | int | socket.socket"
)
"""An address, a connected socket, or the descriptor of one. The monitor takes a
socket or descriptor over and closes it at the end."""

# Chosen, not measured. Connecting and negotiating takes milliseconds. A monitor that
# another client holds never greets, so this is also how long it takes to report that.
OPEN_TIMEOUT: Final = 5.0
"""Seconds for connecting, greeting and negotiating together."""

_PORT: Final = re.compile(r"[^/]+:[0-9]+")  # HOST:PORT, with "tcp:" forgotten
# Seconds between two attempts while the backlog is full. QEMU accepts the next client
# when the present one leaves; a person does not notice so short a delay.
_RETRY_INTERVAL: Final = 0.02


async def connect_socket(
    target: Target,
    deadline: float,
    *,
    now: Callable[[], float],
    sleep: Callable[[float], Awaitable[object]],
    connect_tcp: Callable[[TcpAddress, float], Awaitable[socket.socket]],
) -> socket.socket:
    """Return a connected, non-blocking socket.

    Args:
        target: Where the monitor is, or what is connected to it.
        deadline: When to give up.
        now: Returns the time on the clock of the deadline.
        sleep: Waits for a number of seconds.
        connect_tcp: Connects to a TCP address before a deadline.

    Raises:
        MonitorUnreachable: No connection could be made, or the socket is not
            connected.
        MonitorBusy: The queue of waiting clients stayed full.
        TypeError: The target is of no such type.
        ValueError: The target cannot be a monitor. A socket or descriptor stays as
            it was.
    """
    if isinstance(target, int | socket.socket):
        return _take_over(target)
    address = parse_address(target)
    if isinstance(address, UnixAddress):
        return await _connect_unix(address, deadline, now=now, sleep=sleep)
    return set_nonblocking(await connect_tcp(address, deadline))


def set_nonblocking(sock: socket.socket) -> socket.socket:
    """Make a socket non-blocking and return it.

    Raises:
        ValueError: It is closed, or no stream socket.
    """
    if sock.fileno() < 0:
        raise ValueError(f"{sock!r} is closed: give a connected one")
    if sock.type != socket.SOCK_STREAM:
        raise ValueError(f"{sock!r} is no stream socket: QMP needs one")
    sock.setblocking(False)  # noqa: FBT003
    return sock


def describe_target(target: Target) -> str:
    """Return the name that messages use for the monitor behind a target."""
    if isinstance(target, socket.socket):
        return "the connected monitor"
    if isinstance(target, int):
        return f"the monitor on descriptor {target}"
    return f"the monitor on {parse_address(target)}"


def find_host_name(target: Target) -> str | None:
    """Return the host's name for TLS; ``None`` if the target has none."""
    if isinstance(target, int | socket.socket):
        return None
    address = parse_address(target)
    return address.host if isinstance(address, TcpAddress) else None


def _take_over(target: int | socket.socket) -> socket.socket:
    sock = target if isinstance(target, socket.socket) else _from_descriptor(target)
    try:
        set_nonblocking(sock)
    except ValueError:
        if sock is not target:
            sock.detach()
        raise
    try:
        sock.getpeername()
    except OSError as error:
        sock.close()
        raise MonitorUnreachable(
            f"{describe_target(target)} is not connected: {error.strerror}"
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


async def _connect_unix(
    address: UnixAddress,
    deadline: float,
    *,
    now: Callable[[], float],
    sleep: Callable[[float], Awaitable[object]],
) -> socket.socket:
    """Connect to a unix socket; wait while its backlog is full."""
    sock = set_nonblocking(socket.socket(socket.AF_UNIX))
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
    raise MonitorUnreachable(_explain_unreachable(address, error))


def make_tcp_error(address: TcpAddress, error: OSError) -> MonitorUnreachable:
    """Make the error for a TCP connection that failed."""
    return MonitorUnreachable(
        f"cannot connect to {address}: {error.strerror or error}: does the VM have a"
        " -qmp tcp:HOST:PORT,server=on,wait=off monitor there?"
    )


def make_tcp_timeout(address: TcpAddress) -> MonitorTimeout:
    """Make the error for a TCP connection that was not made in time."""
    return MonitorTimeout(
        f"no connection to {address} in time: is the host up, and the port open?"
    )


def require_host_name(tls: ssl.SSLContext, host_name: str | None) -> None:
    """Check that a TLS context that verifies the host's name has one to verify.

    The ssl module's own error, where it raises one, does not say what to do.

    Raises:
        ValueError: There is no name to verify.
    """
    if tls.check_hostname and host_name is None:
        raise ValueError(
            "the TLS context checks the host's name, and there is none: give"
            " tcp:HOST:PORT, or set its check_hostname to False"
        )


def make_tls_error(name: str, error: BaseException) -> MonitorUnreachable:
    """Make the error for a TLS handshake that failed."""
    return MonitorUnreachable(
        f"{name}: no TLS handshake: does its -chardev have tls-creds=…? ({error})"
    )


def make_tls_timeout(name: str) -> MonitorBusy:
    """Make the error for a TLS handshake that was not finished in time."""
    return MonitorBusy(
        f"{name}: no TLS handshake in time: another client holds the monitor, QEMU is"
        " stopped, or the monitor has no TLS"
    )


def _explain_unreachable(address: UnixAddress, error: int) -> str:
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
