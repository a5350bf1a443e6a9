"""Byte streams to a monitor, on trio.

A transport writes without waiting. What the kernel takes goes out at once; a background
task sends the rest. So no ``await`` stands between registering a command and handing
its bytes over.

Sockets are driven directly: for messages as short as QMP's, that takes a third less
time than a trio stream. Everything else (TLS, the in-memory streams of tests) comes as
a :class:`trio.abc.Stream`.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Final, Protocol, runtime_checkable

import trio

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["SocketTransport", "StreamTransport", "Transport"]

_READ_SIZE: Final = 65536  # bytes; QEMU's largest replies come in a few reads


@runtime_checkable
class DescriptorStream(Protocol):
    """A stream over which file descriptors can be sent, as in memory to a fake."""

    def send_descriptors(self, descriptors: Iterable[int]) -> None:
        """Have the other end get copies with the bytes that are sent next."""
        ...


class Transport(Protocol):
    """A byte stream to a monitor.

    Attributes:
        pid: The process id of the QEMU at the other end; ``None`` if it cannot be
            known.
    """

    pid: int | None

    @property
    def takes_descriptors(self) -> bool:
        """Whether file descriptors can be sent."""
        ...

    def write(self, data: bytes, descriptor: int | None = None) -> bool:
        """Send without waiting; tell whether :meth:`flush` has to be started.

        Args:
            data: The bytes.
            descriptor: A file descriptor of which the peer is to get a copy with them.
                Nothing may be left to be sent before it.
        """
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
    """A transport over a connected, non-blocking socket.

    Args:
        sock: The socket.
        pid: As in :class:`Transport`.
    """

    def __init__(self, sock: socket.socket, pid: int | None) -> None:
        self.pid = pid
        self._socket = sock
        self._backlog = bytearray()

    @property
    def takes_descriptors(self) -> bool:
        """Whether file descriptors can be sent."""
        return self._socket.family == socket.AF_UNIX

    def write(self, data: bytes, descriptor: int | None = None) -> bool:
        """Send without waiting; as :meth:`Transport.write`."""
        if self._backlog:
            self._backlog += data
            return False  # flush is running already
        sent = self._send(data, descriptor)
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

    def _send(self, data: bytes | bytearray, descriptor: int | None = None) -> int:
        try:
            if descriptor is not None:
                return socket.send_fds(self._socket, [data], [descriptor])
            return self._socket.send(data)
        except BlockingIOError:
            return 0
        except OSError:
            if descriptor is not None:
                # Alone, the bytes may go: then QEMU tells that it was sent none.
                return self._send(data)
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

    @property
    def takes_descriptors(self) -> bool:
        """Whether file descriptors can be sent."""
        return isinstance(self._stream, DescriptorStream)

    def write(self, data: bytes, descriptor: int | None = None) -> bool:
        """Queue the data; as :meth:`Transport.write`."""
        if descriptor is not None and isinstance(self._stream, DescriptorStream):
            self._stream.send_descriptors([descriptor])
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
