"""Byte streams to a monitor, on asyncio.

A transport writes without waiting. What the kernel accepts goes out at once; the event
loop sends the rest as soon as there is room. So there is no ``await`` between
registering a command and handing its bytes over.

The sockets are registered with the event loop directly. asyncio's own transports and
streams take longer for messages as short as QMP's, and close a socket only in a later
turn of the event loop.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import ssl
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Final
from weakref import WeakValueDictionary

from qmpballoon._transport.sockets import TLS_TRAILER, identify_file

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["SocketTransport", "TlsTransport", "end_loser"]

_READ_SIZE: Final = 65536  # bytes; QEMU's largest replies come in a few reads
# What a non-blocking socket raises when it has to wait.
_WAITS: Final = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
# Transports that read, by event loop and descriptor.
_reading: Final[
    WeakValueDictionary[tuple[asyncio.AbstractEventLoop, int], SocketTransport]
] = WeakValueDictionary()


def end_loser(sock: socket.socket) -> None:
    """End the connection whose descriptor's number a new socket has, if there is one.

    Somebody else has closed that descriptor. The event loop still has its number, and
    would not tell of a new socket with it. Call this before the loop gets the socket.
    """
    key = asyncio.get_running_loop(), sock.fileno()
    if (loser := _reading.pop(key, None)) is not None:
        loser.lose()


class SocketTransport:
    """A transport over a connected, non-blocking socket.

    Args:
        sock: The socket.
        pid: The process id of the QEMU at the other end; ``None`` if it cannot be
            known.

    Attributes:
        pid: The process id of the QEMU at the other end; ``None`` if it cannot be
            known.
    """

    def __init__(self, sock: socket.socket, pid: int | None) -> None:
        self.pid = pid
        self._socket = sock
        self._file = identify_file(sock.fileno())
        self._loop = asyncio.get_running_loop()
        self._backlog: deque[memoryview] = deque()
        self._broken: OSError | None = None  # why nothing more can be sent

    @property
    def takes_descriptors(self) -> bool:
        """Whether file descriptors can be sent."""
        return self._socket.family == socket.AF_UNIX

    def start_reading(
        self,
        on_data: Callable[[bytes], None],
        on_end: Callable[[OSError | None], None],
    ) -> None:
        """Begin to read.

        Args:
            on_data: Called with what was read.
            on_end: Called when nothing more can be read, with the error if the
                connection broke. It must close the transport.
        """
        self._on_data, self._on_end = on_data, on_end
        end_loser(self._socket)
        _reading[self._loop, self._socket.fileno()] = self
        self._loop.add_reader(self._socket, self._read)

    def write(self, data: bytes, descriptor: int | None = None) -> None:
        """Send without waiting. If the connection is broken, reading reports it.

        Args:
            data: The bytes.
            descriptor: A file descriptor; the peer gets a copy with the bytes. Nothing
                that was written before may still be waiting to be sent.
        """
        if self._backlog:
            self._backlog.append(memoryview(data))
            return
        sent = self._send(data, descriptor)
        if sent < len(data):
            self._backlog.append(memoryview(data)[sent:])
            self._loop.add_writer(self._socket, self._flush)

    def close(self) -> None:
        """Close at once, without waiting for the peer."""
        number = self._socket.fileno()
        if number < 0:
            return
        _reading.pop((self._loop, number), None)
        if identify_file(number) != self._file:
            self._forget_number()
            return
        self._loop.remove_reader(self._socket)
        self._loop.remove_writer(self._socket)
        self._backlog.clear()
        self._socket.close()

    def lose(self) -> None:
        """End the connection: somebody else has closed its descriptor."""
        self._forget_number()
        self._on_end(OSError(errno.EBADF, os.strerror(errno.EBADF)))

    def _forget_number(self) -> None:
        """Leave the descriptor's number to who has it by now."""
        number = self._socket.detach()
        self._backlog.clear()
        for remove in (self._loop.remove_reader, self._loop.remove_writer):
            # The kernel does not know it any more, or a transport of asyncio's has it.
            with suppress(OSError, RuntimeError):
                remove(number)

    def _read(self) -> None:
        if self._socket.fileno() < 0:  # closed, since this was to be called soon
            return
        try:
            data = self._socket.recv(_READ_SIZE)
        except _WAITS:  # a spurious wake-up, or half a TLS record
            if self._broken is not None:
                self._on_end(self._broken)
        except OSError as error:
            self._on_end(error)
        else:
            if data:
                self._on_data(data)
            else:
                self._on_end(None)
            if self._broken is not None:
                self._loop.call_soon(self._read)

    def _flush(self) -> None:
        while self._backlog:
            data = self._backlog[0]
            sent = self._send(data)
            if sent < len(data):
                self._backlog[0] = data[sent:]
                return
            self._backlog.popleft()
        self._loop.remove_writer(self._socket)

    def _send(self, data: bytes | memoryview, descriptor: int | None = None) -> int:
        try:
            if descriptor is not None:
                return socket.send_fds(self._socket, [data], [descriptor])
            return self._socket.send(data)
        except _WAITS:
            return 0
        except OSError as error:
            if descriptor is not None:
                # Send the bytes alone: QEMU then reports that no descriptor came.
                return self._send(data)
            # Mostly, reading gets an error as well, which is told then. It does not if
            # only one direction is shut. What was received before comes first.
            self._broken = error
            self._loop.call_soon(self._read)
            return len(data)


class TlsTransport(SocketTransport):
    """A transport over a socket that is wrapped in TLS, after the handshake."""

    @property
    def takes_descriptors(self) -> bool:
        """Whether file descriptors can be sent: not over TLS."""
        return False

    def write(self, data: bytes, descriptor: int | None = None) -> None:
        """Send without waiting. If the connection is broken, reading reports it."""
        super().write(data, descriptor)
        super().write(TLS_TRAILER)
