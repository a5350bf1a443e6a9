"""Byte streams to a monitor, on trio.

A transport writes without waiting. What the kernel accepts goes out at once; the rest
is sent as soon as there is room. So there is no ``await`` between registering a command
and handing its bytes over. A transport hands what it receives to its monitor.

Sockets are driven directly, by one task for all of them. For messages as short as
QMP's, this takes a third less time than a trio stream. Everything else (TLS, the
in-memory streams of tests) comes as a :class:`trio.abc.Stream`, and has tasks of its
own.
"""

from __future__ import annotations

import errno
import os
import socket
from typing import TYPE_CHECKING, Final, Protocol, runtime_checkable

import trio

from qmpballoon.trio._reactor import get_reactor

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Receiver", "SocketTransport", "StreamTransport", "Transport"]

_READ_SIZE: Final = 65536  # bytes; QEMU's largest replies come in a few reads


class Receiver(Protocol):
    """Gets what a transport receives."""

    def receive(self, data: bytes) -> None:
        """Handle bytes that were received. It must not raise."""
        ...

    def note_end(self, error: BaseException | None) -> None:
        """Handle the end of the connection. It must stop the transport.

        Args:
            error: Why the connection broke; ``None`` if the stream has ended.
        """
        ...


@runtime_checkable
class DescriptorStream(Protocol):
    """A stream that can carry file descriptors, such as one in memory to a fake."""

    def send_descriptors(self, descriptors: Iterable[int]) -> None:
        """Send copies to the other end, with the bytes that are sent next."""
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

    def start(self, receiver: Receiver) -> None:
        """Begin to receive, and hand over what arrives. Call this once."""
        ...

    def write(self, data: bytes, descriptor: int | None = None) -> None:
        """Send without waiting. If the connection is broken, the receiver is told.

        Args:
            data: The bytes.
            descriptor: A file descriptor; the peer gets a copy with the bytes. Nothing
                that was written before may still be waiting to be sent.
        """
        ...

    def stop(self) -> None:
        """Stop receiving and sending; no effect if it was stopped."""
        ...

    async def aclose(self) -> None:
        """Close at once, without waiting for the peer. Stop it first."""
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
        self._broken: OSError | None = None  # why nothing more can be sent
        self._reactor = get_reactor()

    @property
    def takes_descriptors(self) -> bool:
        """Whether file descriptors can be sent."""
        return self._socket.family == socket.AF_UNIX

    def start(self, receiver: Receiver) -> None:
        """Begin to receive; as :meth:`Transport.start`."""
        self._receiver = receiver
        self._reactor.watch(self._socket, self._handle, self._note_lost)

    def write(self, data: bytes, descriptor: int | None = None) -> None:
        """Send without waiting; as :meth:`Transport.write`."""
        if self._backlog:
            self._backlog += data
            return
        try:
            sent = self._send(data, descriptor)
            if sent < len(data):
                self._backlog += data[sent:]
                self._reactor.watch_writing(self._socket, wanted=True)
        except OSError as error:
            self._note_broken(error)

    def stop(self) -> None:
        """Stop receiving and sending; as :meth:`Transport.stop`."""
        self._broken = None
        if not self._reactor.unwatch(self._socket, self._handle):
            self._socket.detach()  # what has its number now is not ours to close

    async def aclose(self) -> None:
        """Close at once, without waiting for the peer."""
        self._socket.close()

    def _note_lost(self) -> None:
        """End the connection: what is sent would reach who has the number by now."""
        self._socket.detach()
        self._receiver.note_end(OSError(errno.EBADF, os.strerror(errno.EBADF)))

    def _handle(self) -> None:
        """Send and receive what can be sent and received without waiting."""
        if self._backlog:
            self._send_backlog()
        try:
            data = self._socket.recv(_READ_SIZE, socket.MSG_DONTWAIT)
        except BlockingIOError:  # it was ready for sending, or for nothing
            if self._broken is not None:
                self._receiver.note_end(self._broken)
        except OSError as error:
            self._receiver.note_end(error)
        else:
            if data:
                self._receiver.receive(data)
            else:
                self._receiver.note_end(None)
            if self._broken is not None:
                self._handle_soon()

    def _handle_soon(self) -> None:
        trio.lowlevel.current_trio_token().run_sync_soon(self._handle)

    def _note_broken(self, error: OSError) -> None:
        """End the connection when all has been read that was received before.

        Mostly, receiving gets an error as well. It does not if only one direction is
        shut, or if somebody else has closed the descriptor.
        """
        self._broken = error
        self._backlog.clear()
        self._handle_soon()

    def _send_backlog(self) -> None:
        try:
            del self._backlog[: self._send(self._backlog)]
            if not self._backlog:
                self._reactor.watch_writing(self._socket, wanted=False)
        except OSError as error:
            self._note_broken(error)

    def _send(self, data: bytes | bytearray, descriptor: int | None = None) -> int:
        """Send what the kernel takes; return how many bytes that are.

        Whoever shares the socket may have made it a blocking one meanwhile.
        """
        try:
            if descriptor is not None:
                return socket.send_fds(
                    self._socket, [data], [descriptor], socket.MSG_DONTWAIT
                )
            return self._socket.send(data, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return 0
        except OSError:
            if descriptor is not None:
                # Send the bytes alone: QEMU then reports that no descriptor came.
                return self._send(data)
            raise


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
        self._idle = trio.lowlevel.ParkingLot()
        self._scope = trio.CancelScope()
        self._ended: trio.Event | None = None  # None until it is started

    @property
    def takes_descriptors(self) -> bool:
        """Whether file descriptors can be sent."""
        return isinstance(self._stream, DescriptorStream)

    def start(self, receiver: Receiver) -> None:
        """Begin to receive; as :meth:`Transport.start`."""
        trio.lowlevel.spawn_system_task(self._serve, receiver)
        self._ended = trio.Event()

    def write(self, data: bytes, descriptor: int | None = None) -> None:
        """Queue the data; as :meth:`Transport.write`."""
        if descriptor is not None and isinstance(self._stream, DescriptorStream):
            self._stream.send_descriptors([descriptor])
        self._backlog += data
        self._idle.unpark()

    def stop(self) -> None:
        """Stop receiving and sending; as :meth:`Transport.stop`."""
        self._scope.cancel()

    async def aclose(self) -> None:
        """Close at once, without waiting for the peer."""
        # Shielded: a cancellation from outside must not replace the exception that
        # is being raised.
        with trio.CancelScope(shield=True):
            if self._ended is not None:
                await self._ended.wait()
            await trio.aclose_forcefully(self._stream)

    async def _serve(self, receiver: Receiver) -> None:
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._send_all, receiver)
                    await self._receive_all(receiver)
                    nursery.cancel_scope.cancel()
        finally:
            if self._ended is not None:
                self._ended.set()

    async def _send_all(self, receiver: Receiver) -> None:
        """Send what :meth:`write` is given, until the connection breaks.

        Starting a task for each message would take as long as the message itself.
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
            pass  # the task that receives gets the same error and reports it
        except Exception as error:  # noqa: BLE001 - a bug in the caller's stream
            receiver.note_end(error)

    async def _receive_all(self, receiver: Receiver) -> None:
        try:
            while data := bytes(await self._stream.receive_some(_READ_SIZE)):
                receiver.receive(data)
        except Exception as error:  # noqa: BLE001 - or a bug in the caller's stream
            receiver.note_end(error.__cause__ or error)
        else:
            receiver.note_end(None)
