"""Byte streams to a monitor, on trio.

A transport writes without waiting. What the kernel takes goes out at once; a background
task sends the rest. So no ``await`` stands between registering a command and handing
its bytes over.

Sockets are driven directly: for messages as short as QMP's, that takes a third less
time than a trio stream. Everything else (TLS, the in-memory streams of tests) comes as
a :class:`trio.abc.Stream`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

import trio

from qmpballoon._transport.qemu_process import find_peer_pid

if TYPE_CHECKING:
    import socket

__all__ = ["SocketTransport", "StreamTransport", "Transport"]

_READ_SIZE: Final = 65536  # bytes; QEMU's largest replies come in a few reads


class Transport(Protocol):
    """A byte stream to a monitor.

    Attributes:
        pid: The process id of the QEMU at the other end; ``None`` if it cannot be
            known.
    """

    pid: int | None

    def write(self, data: bytes) -> bool:
        """Send without waiting; tell whether :meth:`flush` has to be started."""
        ...

    async def flush(self) -> None:
        """Send what :meth:`write` could not. Return if the connection breaks."""
        ...

    async def read(self) -> bytes:
        """Return some bytes; none at the end of the stream."""
        ...

    async def aclose(self) -> None:
        """Close at once, without waiting for the peer."""
        ...


class SocketTransport:
    """A transport over a connected, non-blocking socket."""

    def __init__(self, sock: socket.socket) -> None:
        self.pid: int | None = find_peer_pid(sock)
        self._socket = sock
        self._backlog = bytearray()

    def write(self, data: bytes) -> bool:
        """Send without waiting; tell whether :meth:`flush` has to be started."""
        if self._backlog:
            self._backlog += data
            return False  # flush is running already
        sent = self._send(data)
        self._backlog += data[sent:]
        return bool(self._backlog)

    async def flush(self) -> None:
        """Send what :meth:`write` could not. Return if the connection breaks."""
        while self._backlog:
            await trio.lowlevel.wait_writable(self._socket)
            del self._backlog[: self._send(self._backlog)]

    async def read(self) -> bytes:
        """Return some bytes; none at the end of the stream."""
        while True:
            await trio.lowlevel.wait_readable(self._socket)
            try:
                return self._socket.recv(_READ_SIZE)
            except BlockingIOError:  # a spurious wake-up
                continue

    async def aclose(self) -> None:
        """Close at once, without waiting for the peer."""
        trio.lowlevel.notify_closing(self._socket)
        self._socket.close()

    def _send(self, data: bytes | bytearray) -> int:
        try:
            return self._socket.send(data)
        except BlockingIOError:
            return 0
        except OSError:
            # The task that reads gets the same error and reports it.
            return len(data)


class StreamTransport:
    """A transport over a trio stream.

    Args:
        stream: The stream.
        pid: As in :class:`Transport`.
        trailer: Bytes to send on their own after each batch of messages.
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
        """Queue the data; tell whether :meth:`flush` has to be started."""
        self._backlog += data
        self._idle.unpark()
        start, self._flushing = not self._flushing, True
        return start

    async def flush(self) -> None:
        """Send what :meth:`write` is given, from now on.

        It runs until the connection breaks: starting a task for each message would
        take as long as the message itself.
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
            pass  # the task that reads gets the same error and reports it
        finally:
            self._flushing = False

    async def read(self) -> bytes:
        """Return some bytes; none at the end of the stream."""
        return bytes(await self._stream.receive_some(_READ_SIZE))

    async def aclose(self) -> None:
        """Close at once, without waiting for the peer."""
        # Shielded: a cancellation from outside must not replace the exception that
        # is being raised.
        with trio.CancelScope(shield=True):
            await trio.aclose_forcefully(self._stream)
