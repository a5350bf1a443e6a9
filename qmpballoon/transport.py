"""Moving bytes to and from a monitor, on trio.

A transport writes without waiting: what the kernel takes goes out at once, the
rest is kept and flushed by a task of its own. So whoever sends a command has no
``await`` between registering it and handing its bytes over.

Sockets are driven directly, which costs a third of the time of a trio stream for
messages as short as QMP's; everything else (TLS, in-memory streams of a test)
comes as a :class:`trio.abc.Stream`.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias

import trio

from qmpballoon import host
from qmpballoon.address import Address, TcpAddress, UnixAddress, parse_address
from qmpballoon.errors import MonitorBusy, MonitorUnreachable

if TYPE_CHECKING:
    import ssl

__all__ = ["Target", "Transport", "connect"]

Target: TypeAlias = (
    str
    | os.PathLike[str]
    | tuple[str, int]
    | Address
    | int
    | socket.socket
    | trio.abc.Stream
)
"""An address, or something connected: a socket, its descriptor, a trio stream.
What is connected is taken over, and closed at the end."""

_READ_SIZE: Final = 65536
_RETRY_INTERVAL: Final = 0.02  # seconds between two tries at a full backlog


class Transport(Protocol):
    """A byte stream to a monitor.

    Attributes:
        pid: The process id of the QEMU at the other end, if that can be known.
    """

    pid: int | None

    def write(self, data: bytes) -> bool:
        """Send without waiting; tell whether :meth:`flush` has to be run."""
        ...

    async def flush(self) -> None:
        """Send what :meth:`write` could not. A broken connection ends it."""
        ...

    async def read(self) -> bytes:
        """Return some bytes, none at the end of the stream."""
        ...

    async def aclose(self) -> None:
        """Close at once, without any farewell."""
        ...


class SocketTransport:
    """A transport over a connected, non-blocking socket."""

    def __init__(self, sock: socket.socket) -> None:
        self.pid = host.qemu_pid(sock)
        self._socket = sock
        self._backlog = bytearray()

    def write(self, data: bytes) -> bool:
        """Send without waiting; tell whether :meth:`flush` has to be run."""
        if self._backlog:
            self._backlog += data
            return False  # it is running already
        sent = self._send(data)
        self._backlog += data[sent:]
        return bool(self._backlog)

    async def flush(self) -> None:
        """Send what :meth:`write` could not. A broken connection ends it."""
        while self._backlog:
            await trio.lowlevel.wait_writable(self._socket)
            del self._backlog[: self._send(self._backlog)]

    async def read(self) -> bytes:
        """Return some bytes, none at the end of the stream."""
        while True:
            await trio.lowlevel.wait_readable(self._socket)
            try:
                return self._socket.recv(_READ_SIZE)
            except BlockingIOError:  # a spurious wake-up
                continue

    async def aclose(self) -> None:
        """Close at once, without any farewell."""
        trio.lowlevel.notify_closing(self._socket)
        self._socket.close()

    def _send(self, data: bytes | bytearray) -> int:
        try:
            return self._socket.send(data)
        except BlockingIOError:
            return 0
        except OSError:
            # Whoever reads learns the same, and tells everybody.
            return len(data)


class StreamTransport:
    """A transport over a trio stream."""

    pid: int | None = None

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self._backlog = bytearray()
        self._flushing = False

    def write(self, data: bytes) -> bool:
        """Send without waiting; tell whether :meth:`flush` has to be run."""
        self._backlog += data
        start, self._flushing = not self._flushing, True
        return start

    async def flush(self) -> None:
        """Send what :meth:`write` could not. A broken connection ends it."""
        try:
            while self._backlog:
                data = bytes(self._backlog)
                self._backlog.clear()
                await self._stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # whoever reads learns the same, and tells everybody
        finally:
            self._flushing = False

    async def read(self) -> bytes:
        """Return some bytes, none at the end of the stream."""
        return bytes(await self._stream.receive_some(_READ_SIZE))

    async def aclose(self) -> None:
        """Close at once, without any farewell."""
        await trio.aclose_forcefully(self._stream)


async def connect(
    target: Target, *, deadline: float, tls: ssl.SSLContext | None = None
) -> Transport:
    """Connect to a monitor.

    Args:
        target: Where it is, or what is connected to it.
        deadline: When to give up, by trio's clock.
        tls: Wrap the connection in TLS.

    Raises:
        MonitorUnreachable: Nobody could be connected to.
        MonitorBusy: The socket's queue of waiting clients stayed full.

    Cancellation: nothing stays open, except what came in connected.
    """
    if isinstance(target, trio.abc.Stream):
        return StreamTransport(target)
    if isinstance(target, int):
        target = socket.socket(fileno=target)
    if isinstance(target, socket.socket):
        return await _secure(_checked(target), None, tls, deadline)
    address = parse_address(target)
    if isinstance(address, UnixAddress):
        sock = await _connect_unix(address, deadline)
    else:
        sock = await _connect_tcp(address, deadline)
    return await _secure(sock, address, tls, deadline)


def _checked(sock: socket.socket) -> socket.socket:
    if sock.type != socket.SOCK_STREAM:
        raise ValueError(f"{sock!r} is no stream socket: QMP needs one")
    sock.setblocking(False)  # noqa: FBT003
    return sock


async def _connect_unix(address: UnixAddress, deadline: float) -> socket.socket:
    sock = _checked(socket.socket(socket.AF_UNIX))
    try:
        # EAGAIN means that the backlog is full, and leaves the socket
        # unconnected: waiting for it to become writable would wait for nothing.
        while (error := sock.connect_ex(address.path)) == errno.EAGAIN:
            if trio.current_time() >= deadline:
                break
            await trio.sleep(_RETRY_INTERVAL)
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


def _why_unreachable(address: UnixAddress, error: int) -> str:
    path = address.path
    match error:
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


async def _connect_tcp(address: TcpAddress, deadline: float) -> socket.socket:
    try:
        with trio.fail_at(deadline):
            stream = await trio.open_tcp_stream(address.host, address.port)
    except trio.TooSlowError:
        raise MonitorUnreachable(
            f"no connection to {address} in time: is the host up, and the port open?"
        ) from None
    except OSError as error:
        raise MonitorUnreachable(
            f"cannot connect to {address}: {error.strerror or error}: does the VM"
            " have a -qmp tcp:HOST:PORT,server=on,wait=off monitor there?"
        ) from None
    return socket.socket(fileno=stream.socket.detach())


async def _secure(
    sock: socket.socket,
    address: Address | None,
    tls: ssl.SSLContext | None,
    deadline: float,
) -> Transport:
    """Wrap a connected socket in TLS if that is asked for."""
    if tls is None:
        return SocketTransport(sock)
    hostname = address.host if isinstance(address, TcpAddress) else None
    stream = trio.SSLStream(
        trio.SocketStream(trio.socket.from_stdlib_socket(sock)),
        tls,
        server_hostname=hostname,
        # QEMU closes without TLS's own farewell.
        https_compatible=True,
    )
    try:
        with trio.fail_at(deadline):
            await stream.do_handshake()
    except BaseException as error:
        await trio.aclose_forcefully(stream)
        if isinstance(error, trio.TooSlowError | trio.BrokenResourceError):
            raise MonitorUnreachable(
                "no TLS handshake in time, or none at all: does the monitor's"
                f" -chardev have tls-creds=…? ({error.__cause__ or error})"
            ) from None
        raise
    return StreamTransport(stream)
