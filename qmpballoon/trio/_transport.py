"""Moving bytes to and from a monitor, on trio.

A transport writes without waiting: what the kernel takes goes out at once, the
rest is kept and flushed by a task of its own. So whoever sends a command has no
``await`` between registering it and handing its bytes over.

Sockets are driven directly, which costs a third of the time of a trio stream for
messages as short as QMP's; everything else (TLS, in-memory streams of a test)
comes as a :class:`trio.abc.Stream`.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias

import trio

from qmpballoon._transport import proc
from qmpballoon._transport.sockets import (
    Connectable,
    connect_unix,
    named,
    no_tcp,
    no_tcp_in_time,
    no_tls,
    no_tls_in_time,
    require_name,
    taken_over,
)
from qmpballoon.address import TcpAddress, parse_address

if TYPE_CHECKING:
    import ssl

__all__ = ["Target", "Transport", "connect", "describe"]

Target: TypeAlias = "Connectable | trio.abc.Stream"
"""An address, or something connected: a socket, its descriptor, a trio stream.
What is connected is taken over, and closed at the end."""

_READ_SIZE: Final = 65536
# QEMU's monitor reads byte by byte. QEMU 7.2 takes a whole TLS record from the
# socket for the first, and does not look for the others before the socket is
# readable again. A record of one byte more makes it so, and leaves none behind.
_TLS_TRAILER: Final = b"\n"


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
        self.pid: int | None = proc.qemu_pid(sock)
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
    """A transport over a trio stream.

    Args:
        stream: The stream.
        pid: As in :class:`Transport`.
        trailer: What to send, by itself, behind all that is written at once.
    """

    def __init__(
        self, stream: trio.abc.Stream, pid: int | None = None, trailer: bytes = b""
    ) -> None:
        self.pid = pid
        self._trailer = trailer
        self._stream = stream
        self._backlog = bytearray()
        self._flushing = False
        self._idle = trio.lowlevel.ParkingLot()

    def write(self, data: bytes) -> bool:
        """Send without waiting; tell whether :meth:`flush` has to be run."""
        self._backlog += data
        self._idle.unpark()
        start, self._flushing = not self._flushing, True
        return start

    async def flush(self) -> None:
        """Send what :meth:`write` is given, from now on. A broken connection ends it.

        It stays: a task for each message would take as long as the message does.
        """
        try:
            while True:
                while not self._backlog:
                    await self._idle.park()
                data = bytes(self._backlog)
                self._backlog.clear()
                await self._stream.send_all(data)
                if self._trailer:
                    await self._stream.send_all(self._trailer)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # whoever reads learns the same, and tells everybody
        finally:
            self._flushing = False

    async def read(self) -> bytes:
        """Return some bytes, none at the end of the stream."""
        return bytes(await self._stream.receive_some(_READ_SIZE))

    async def aclose(self) -> None:
        """Close at once, without any farewell."""
        # With a shield: a surrounding cancellation must not take the place of
        # the exception that is on its way.
        with trio.CancelScope(shield=True):
            await trio.aclose_forcefully(self._stream)


def describe(target: Target) -> str:
    """Return what messages call the monitor."""
    if isinstance(target, trio.abc.Stream):
        return "the connected monitor"
    return named(target)


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
        MonitorBusy: The socket's queue of waiting clients stayed full, or nobody
            shook hands.
        TypeError: The target is of no such type.
        ValueError: It is of such a type and cannot be a monitor.

    Cancellation: nothing stays open.
    """
    host_name, pid = None, None
    if isinstance(target, trio.abc.Stream):
        stream = target
    else:
        sock, host_name = await _socket(target, deadline)
        if tls is None:
            return SocketTransport(sock)
        pid = proc.qemu_pid(sock)
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
    if tls is None:
        return StreamTransport(stream)
    stream = await _shake_hands(stream, tls, host_name, deadline, name=describe(target))
    return StreamTransport(stream, pid, _TLS_TRAILER)


async def _socket(
    target: Connectable, deadline: float
) -> tuple[socket.socket, str | None]:
    """Return a connected socket, and its host's name if it has one."""
    if isinstance(target, int | socket.socket):
        return taken_over(target), None
    address = parse_address(target)
    if isinstance(address, TcpAddress):
        return await _connect_tcp(address, deadline), address.host
    sock = await connect_unix(
        address, deadline, now=trio.current_time, sleep=trio.sleep
    )
    return sock, None


async def _connect_tcp(address: TcpAddress, deadline: float) -> socket.socket:
    try:
        with trio.fail_at(deadline):
            stream = await trio.open_tcp_stream(address.host, address.port)
    except trio.TooSlowError:
        raise no_tcp_in_time(address) from None
    except OSError as error:
        raise no_tcp(address, error) from None
    return socket.socket(fileno=stream.socket.detach())


async def _shake_hands(
    stream: trio.abc.Stream,
    tls: ssl.SSLContext,
    host_name: str | None,
    deadline: float,
    *,
    name: str,
) -> trio.abc.Stream:
    """Wrap a stream in TLS."""
    try:
        secure = _wrap(stream, tls, host_name)
        with trio.fail_at(deadline):
            await secure.do_handshake()
    except BaseException as error:
        await StreamTransport(stream).aclose()
        if isinstance(error, trio.TooSlowError):
            raise no_tls_in_time(name) from None
        if isinstance(error, trio.BrokenResourceError):
            raise no_tls(name, error.__cause__ or error) from None
        raise
    return secure


def _wrap(
    stream: trio.abc.Stream, tls: ssl.SSLContext, host_name: str | None
) -> trio.SSLStream[trio.abc.Stream]:
    require_name(tls, host_name)
    return trio.SSLStream(
        stream,
        tls,
        server_hostname=host_name,
        # QEMU closes without TLS's own farewell.
        https_compatible=True,
    )
