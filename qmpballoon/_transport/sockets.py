"""Connecting to a monitor's socket, and explaining why that failed.

The front ends differ only in how they wait and how they open a TCP connection. They
pass both in.
"""

from __future__ import annotations

import errno
import os
import pwd
import re
import socket
import stat
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias, cast
from weakref import WeakValueDictionary

from qmpballoon._checks import require_kind
from qmpballoon._transport.qemu_process import read_peer
from qmpballoon.address import (
    AbstractAddress,
    TcpAddress,
    UnixAddress,
    parse_address,
)
from qmpballoon.errors import (
    MonitorBusy,
    MonitorTimeout,
    MonitorUnreachable,
    UntrustedMonitor,
)

if TYPE_CHECKING:
    import ssl
    from collections.abc import Awaitable, Callable, Generator

    from qmpballoon.address import Address

__all__ = [
    "OPEN_TIMEOUT",
    "TLS_TRAILER",
    "Target",
    "connect_socket",
    "describe_target",
    "find_host_name",
    "identify_file",
    "make_tcp_error",
    "make_tcp_timeout",
    "make_tls_error",
    "make_tls_timeout",
    "name_user",
    "require_host_name",
    "set_nonblocking",
]

Target: TypeAlias = (
    "str | os.PathLike[str] | tuple[str, int] | Address | int | socket.socket"
)
"""An address, a connected socket, or the descriptor of one. The monitor takes a
socket or descriptor over and closes it at the end. The object of a socket that is
given is closed at once; the connection goes on."""

# Chosen, not measured. Connecting and negotiating takes milliseconds. A monitor that
# another client holds never greets, so this is also how long it takes to report that.
OPEN_TIMEOUT: Final = 5.0
"""Seconds for connecting, greeting and negotiating together."""

_SUN_PATH_MAX: Final = 107  # bytes, without the final NUL; see unix(7)
# What is wrong with a path that can be no socket's; see connect(2).
_BAD_PATHS: Final = {
    errno.ENOTDIR: "there is no socket at {}: one of its folders is a file",
    errno.ELOOP: "there is no socket at {}: it leads through too many symbolic links",
    errno.ENAMETOOLONG: "there is no socket at {}: one of its names is too long",
    errno.EPROTOTYPE: "{} is no stream socket",
}
_NO_DESCRIPTORS: Final = frozenset({errno.EMFILE, errno.ENFILE})
# QEMU's monitor reads byte by byte. QEMU 7.2 takes a whole TLS record from the socket
# for the first byte, and looks at the others only when the socket is readable again. A
# second record of one byte makes the socket readable, and leaves no byte behind.
TLS_TRAILER: Final = b"\n"
"""Bytes to send after each message over TLS, in a record of their own."""

_PORT: Final = re.compile(r"[^/]+:[0-9]+")  # HOST:PORT, with "tcp:" forgotten
# Seconds between two attempts while the backlog is full. QEMU accepts the next client
# when the present one leaves; a person does not notice so short a delay.
_RETRY_INTERVAL: Final = 0.02
# Sockets that were given, by descriptor.
_taken: Final[WeakValueDictionary[int, socket.socket]] = WeakValueDictionary()


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
        UntrustedMonitor: Another user or process listens there than the address
            asks for.
        MonitorBusy: The queue of waiting clients stayed full.
        TypeError: The target is of no such type.
        ValueError: The target cannot be a monitor. A socket or descriptor stays as
            it was.
    """
    if isinstance(target, int | socket.socket):
        return _take_over(target)
    address = parse_address(target)
    if isinstance(address, TcpAddress):
        return set_nonblocking(await connect_tcp(address, deadline))
    with _open_place(address) as place:
        sock = await _connect_unix(address, place, deadline, now=now, sleep=sleep)
    return _check_peer(sock, address)


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


def identify_file(descriptor: int) -> tuple[int, int] | None:
    """Return what tells a descriptor's file from all others; ``None`` if it is closed.

    So it shows whether somebody else has closed the descriptor of a socket, and its
    number is that of another file.

    Source: inode(7); a socket has an inode of its own.
    """
    try:
        found = os.fstat(descriptor)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _take_over(target: int | socket.socket) -> socket.socket:
    sock = target if isinstance(target, socket.socket) else _from_descriptor(target)
    _require_plain(sock)
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
    return _make_ours(sock)


def _make_ours(sock: socket.socket) -> socket.socket:
    """Return a socket that nobody else can close who has the object that was given."""
    ours = socket.socket(fileno=sock.detach())
    ours.setblocking(False)  # noqa: FBT003 - Python's own timeout, not the kernel's
    _taken[ours.fileno()] = ours
    return ours


def _require_plain(sock: socket.socket) -> None:
    """Check that a socket is not wrapped in TLS; whoever wraps one has loaded ssl."""
    tls = sys.modules.get("ssl")
    if tls is not None and isinstance(sock, tls.SSLSocket):
        raise ValueError(
            f"{sock!r} is wrapped in TLS: give the plain socket, and tls=CONTEXT"
        )


def _from_descriptor(descriptor: int) -> socket.socket:
    other = _taken.get(descriptor)
    if other is not None and other.fileno() == descriptor:
        raise ValueError(
            f"descriptor {descriptor} is that of another monitor: give each its own"
        )
    try:
        return socket.socket(fileno=descriptor)
    except (OSError, ValueError, OverflowError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise ValueError(
            f"descriptor {descriptor} is no socket ({why}): give that of a connected"
            " stream socket"
        ) from None


@contextmanager
def _open_place(address: UnixAddress | AbstractAddress) -> Generator[bytes]:
    """Yield what the kernel takes as a socket's address.

    A longer path than the kernel takes is reached through a descriptor of the socket's
    file. Such sockets exist: QEMU can be started in their folder.

    Raises:
        MonitorUnreachable: The file of a longer path cannot be opened.
    """
    if isinstance(address, AbstractAddress):
        yield b"\0" + os.fsencode(address.name)
        return
    place = os.fsencode(address.path)
    if len(place) <= _SUN_PATH_MAX:
        yield place
        return
    try:
        descriptor = os.open(place, os.O_PATH | os.O_CLOEXEC)
    except OSError as error:
        raise _explain_unreachable(address, error.errno or 0) from None
    try:
        yield b"/proc/self/fd/%d" % descriptor
    finally:
        os.close(descriptor)


async def _connect_unix(
    address: UnixAddress | AbstractAddress,
    place: bytes,
    deadline: float,
    *,
    now: Callable[[], float],
    sleep: Callable[[float], Awaitable[object]],
) -> socket.socket:
    """Connect to a unix socket; wait while its backlog is full."""
    try:
        sock = set_nonblocking(socket.socket(socket.AF_UNIX))
    except OSError as failure:  # there is no descriptor left
        raise _explain_unreachable(address, failure.errno or 0) from None
    try:
        # EAGAIN means that the backlog is full, and leaves the socket
        # unconnected: waiting for it to become writable would wait for nothing.
        while (error := sock.connect_ex(place)) == errno.EAGAIN:
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
    raise _explain_unreachable(address, error)


def _check_peer(
    sock: socket.socket, address: UnixAddress | AbstractAddress
) -> socket.socket:
    """Return a connected socket; close it if somebody else listens there.

    Raises:
        UntrustedMonitor: Somebody else listens there.
    """
    pid, users = address.pid, address.users
    if pid is None and users is None:
        return sock
    try:
        peer, user = read_peer(sock)
    except OSError as error:
        problem = f"it is not known who listens at {address}: {error.strerror}"
    else:
        problem = ""
        if pid not in (None, peer):
            problem = (
                f"process {peer} listens at {address}, and not the QEMU that names it"
                f" (process {pid})"
            )
        elif users is not None and user not in users and (user != 0 or pid is None):
            problem = (
                f"{address} belongs to user {name_user(user)}: trust that user"
                " (--user), if it runs VMs"
            )
    if problem:
        sock.close()
        raise UntrustedMonitor(problem)
    return sock


def name_user(uid: int) -> str:
    """Return the name of a user, for people; the id if it has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except (KeyError, OverflowError):
        return str(uid)


def make_tcp_error(
    address: TcpAddress, error: OSError | ValueError
) -> MonitorUnreachable:
    """Make the error for a TCP connection that failed.

    Args:
        address: Where to.
        error: Why. It is a ValueError where the host's name cannot be looked up at
            all, such as one with an empty label.
    """
    # With several addresses, or with trio, the errors of the attempts are behind it.
    cause = error.__cause__
    attempts: tuple[BaseException | None, ...] = (cause,)
    if isinstance(cause, ExceptionGroup):
        attempts = cast("ExceptionGroup[Exception]", cause).exceptions
    if any(getattr(each, "errno", 0) in _NO_DESCRIPTORS for each in (error, *attempts)):
        return MonitorUnreachable(_describe_no_descriptor(address))
    why = error.strerror if isinstance(error, OSError) else None
    failure = MonitorUnreachable(
        f"cannot connect to {address}: {why or error}: does the VM have a"
        " -qmp tcp:HOST:PORT,server=on,wait=off monitor there?"
    )
    failure.errno = error.errno if isinstance(error, OSError) else None
    return failure


def make_tcp_timeout(address: TcpAddress) -> MonitorTimeout:
    """Make the error for a TCP connection that was not made in time."""
    return MonitorTimeout(
        f"no connection to {address} in time: is the host up, and the port open?"
    )


def require_host_name(tls: ssl.SSLContext, host_name: str | None) -> None:
    """Check that a TLS context is one, and has a host's name if it verifies that.

    The ssl module's own error, where it raises one, does not say what to do.

    Raises:
        TypeError: It is no context.
        ValueError: There is no name to verify.
    """
    import ssl  # noqa: PLC0415 - most monitors have no TLS

    require_kind(tls, ssl.SSLContext, "tls")
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


def _explain_unreachable(
    address: UnixAddress | AbstractAddress, error: int
) -> MonitorUnreachable:
    """Make the error for a unix socket that cannot be connected to."""
    failure = MonitorUnreachable(_describe_unreachable(address, error))
    failure.errno = error
    return failure


def _describe_unreachable(address: UnixAddress | AbstractAddress, error: int) -> str:
    if error in _NO_DESCRIPTORS:
        return _describe_no_descriptor(address)
    if error in (errno.EACCES, errno.EPERM):
        return f"no permission for {address}: run as the user of QEMU, or as root"
    if error == errno.ENOENT:
        is_port = isinstance(address, UnixAddress) and _PORT.fullmatch(address.path)
        advice = (
            f"write tcp:{address} for a TCP port" if is_port else "is the VM running?"
        )
        return f"there is no socket at {address}: {advice}"
    if error == errno.ECONNREFUSED:
        return _describe_refused(address)
    why = _BAD_PATHS.get(error, f"cannot connect to {{}}: {os.strerror(error)}")
    return f"{why.format(address)}: give the path of a -qmp unix:PATH monitor"


def _describe_no_descriptor(address: Address) -> str:
    return (
        f"there is no file descriptor left for {address}: raise the limit (ulimit -n,"
        " LimitNOFILE=)"
    )


def _describe_refused(address: UnixAddress | AbstractAddress) -> str:
    if isinstance(address, AbstractAddress):
        return (
            f"nobody listens at {address}: does the VM run, in this network namespace?"
        )
    if _is_socket(address.path):
        return f"nobody listens at {address} any more: the VM has ended"
    return f"{address} is no socket: give the path of a -qmp unix:PATH monitor"


def _is_socket(path: str) -> bool:
    try:
        return stat.S_ISSOCK(Path(path).stat().st_mode)
    except OSError:
        return False
