"""A simulated machine on trio's clock, for clients on streams and on sockets.

The time is trio's: a ``MockClock`` in tests, the real one for ``qmpballoon fake``.
Clients connect through streams in memory or a unix socket. Nothing about QMP is decided
here.

As with QEMU, a monitor serves one client at a time. A second client can connect; it is
greeted when the first has left. Further monitors, on descriptors that clients hand
over, have clients of their own.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio
from attrs import define, field

from qmpballoon._transport.listening import listen_at
from qmpballoon._transport.trio_tasks import BackgroundTasks
from qmpballoon.testing.descriptors import (
    RECEIVE_FLAGS,
    RECEIVE_ROOM,
    ReceivedDescriptor,
    read_ancillary,
)
from qmpballoon.testing.faults import NO_FAULTS, FaultPlan, list_actions
from qmpballoon.testing.model.config import SECOND
from qmpballoon.testing.model.machine import Machine
from qmpballoon.testing.simulated_qemu import (
    ConnectionCut,
    FaultySender,
    SimulatedQemu,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterable

    from qmpballoon.testing.model.chardevs import Descriptor
    from qmpballoon.testing.model.machine import AnySession

__all__ = ["FakeQemu", "open_fake"]

# The next client's connection waits in the backlog until it is accepted.
_BACKLOG: Final = 1
# Bytes taken from a client at once; how many makes no difference to the machine.
_READ_SIZE: Final = 1 << 16


@contextlib.asynccontextmanager
async def open_fake(
    machine: Machine | None = None, faults: FaultPlan = NO_FAULTS
) -> AsyncGenerator[FakeQemu]:
    """Run a simulated machine until the block is left.

    What the block raises is passed on as it is, not in an exception group. Cancelling
    the block ends QEMU as a crash would: its clients see the stream close.

    Args:
        machine: The machine; ``None`` for a default one. Its time goes on from where
            it is.
        faults: What goes wrong.

    Yields:
        The running fake.
    """
    fake = FakeQemu(machine or Machine(), faults)
    try:
        async with BackgroundTasks(shield=False) as tasks:
            fake.start(tasks)
            yield fake
    finally:
        fake.machine.close_files()


class FakeQemu(SimulatedQemu):
    """A simulated machine and the clients on its monitor; see :func:`open_fake`.

    Attributes:
        faults: What goes wrong with it.
        ended: Set when QEMU has quit.
    """

    def __init__(self, machine: Machine, faults: FaultPlan = NO_FAULTS) -> None:
        super().__init__(machine, faults, trio.current_time)
        self.ended: trio.Event = trio.Event()
        self._changed = trio.Event()
        self._alarm = trio.CancelScope()
        self._sender = FaultySender(faults, faults.cut_after)
        self._monitor = trio.Lock()
        self._tasks: BackgroundTasks | trio.Nursery | None = None
        # trio starts tasks in any order. The channel keeps the order in which clients
        # in memory connected.
        self._connected, self._waiting = trio.open_memory_channel[trio.abc.Stream](
            math.inf
        )

    def start(self, tasks: BackgroundTasks | trio.Nursery) -> None:
        """Start the machine's tasks; :func:`open_fake` calls this."""
        self._tasks = tasks
        tasks.start_soon(self._run)
        tasks.start_soon(self._serve_connected)
        tasks.start_soon(self._carry_out_faults)

    # Time

    async def _run(self) -> None:
        """Advance the machine whenever it has something to send on its own."""
        while not self._machine.ended:
            await self._wait_for_thaw()
            self._alarm = trio.CancelScope()
            self._set_alarm()
            with self._alarm:
                await trio.sleep_forever()
            due = self._due
            if due is not None and self._convert_to_clock(due) <= trio.current_time():
                self._advance(due)
                self._wake()
        self._machine.close_files()
        self.ended.set()

    async def _carry_out_faults(self) -> None:
        """Do to the machine what the plan says, at the times that it says."""
        async with trio.open_nursery() as nursery:
            if self.faults.freeze_at is not None:
                nursery.start_soon(self._freeze, self.faults.freeze_at)
            for at, action in list_actions(self.faults):
                await trio.sleep_until(self._convert_to_clock(at))
                await self._wait_for_thaw()
                if not self._machine.ended:
                    self._advance(at)
                    action(self._machine)
                    self.touch()

    async def _freeze(self, at: int) -> None:
        """Stop QEMU's process for a while; the time of all others goes on."""
        await trio.sleep_until(self._convert_to_clock(at))
        if self._machine.ended:
            return
        self._begin_freeze(at)
        await trio.sleep(self.faults.freeze_for / SECOND)
        self._end_freeze()

    async def _wait_for_thaw(self) -> None:
        """Wait while QEMU's process is stopped."""
        while self._frozen:
            await self._changed.wait()

    def _wake(self) -> None:
        for session, descriptor in self._machine.take_opened():
            if self._tasks is not None:
                self._tasks.start_soon(self._serve_descriptor, session, descriptor)
        self._changed.set()
        self._changed = trio.Event()
        self._set_alarm()

    def _set_alarm(self) -> None:
        """Wake :meth:`_run` when the machine next sends something on its own."""
        deadline = self._find_deadline()
        if deadline != self._alarm.deadline:
            self._alarm.deadline = deadline

    # Clients

    def connect(self) -> trio.abc.Stream:
        """Connect a client in memory; return its end of the stream."""
        ours, theirs = _make_stream_pair()
        self._connected.send_nowait(ours)
        return theirs

    async def _serve_connected(self) -> None:
        """Serve the clients of :meth:`connect`, one after the other."""
        async for stream in self._waiting:
            await self.serve(stream)

    async def serve(self, stream: trio.abc.Stream) -> None:
        """Serve a client on a stream until either end closes it.

        The client waits until those before it have left: QEMU greets one at a time.
        The stream is closed at the end. Cancelling closes it too, possibly in the
        middle of a message.
        """
        async with stream, self._monitor:
            if not self._machine.ended:
                await self._serve_session(stream)

    async def _serve_session(self, stream: trio.abc.Stream) -> None:
        await self._wait_for_thaw()
        self._advance()
        await self._exchange(stream, self._machine.connect())

    async def _serve_descriptor(
        self, session: AnySession, descriptor: Descriptor
    ) -> None:
        """Serve the client of a monitor that was added on a descriptor."""
        sock = self._find_client(session, descriptor)
        if sock is not None:
            connected = trio.socket.from_stdlib_socket(sock)
            async with trio.SocketStream(connected) as stream:
                await self._exchange(stream, session)

    async def _exchange(self, stream: trio.abc.Stream, session: AnySession) -> None:
        """Pass bytes between a client and its session until either ends."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._read, stream, session, nursery.cancel_scope)
                await self._write(stream, session)
                nursery.cancel_scope.cancel()
        finally:
            self._machine.disconnect(session)

    async def _read(
        self, stream: trio.abc.Stream, session: AnySession, scope: trio.CancelScope
    ) -> None:
        """Pass what the client sends to the session, while QEMU reads."""
        with contextlib.suppress(OSError, trio.BrokenResourceError):
            while (received := await _receive(stream))[0]:
                await self._wait_for_thaw()
                self._advance()
                session.receive(*received)
                self._wake()
                while not session.reading:
                    await self._changed.wait()
        scope.cancel()

    async def _write(self, stream: trio.abc.Stream, session: AnySession) -> None:
        """Send the session's output to the client, until QEMU closes the connection."""
        with contextlib.suppress(trio.BrokenResourceError, ConnectionCut):
            while True:
                await self._wait_for_thaw()
                if data := session.take_output():
                    await self._send(stream, data)
                elif session.closed:
                    return
                else:
                    await self._changed.wait()

    async def _send(self, stream: trio.abc.Stream, data: bytes) -> None:
        for piece in self._sender.divide(data):
            if piece is None:
                await trio.sleep(self._sender.pause)
            else:
                await stream.send_all(piece)

    # Sockets

    async def listen(
        self,
        path: str | os.PathLike[str],
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve clients on a unix socket until QEMU quits.

        Cancelling removes the socket and closes the client's stream.

        Args:
            path: The socket's path. A socket that no process listens on any more is
                replaced. Only its owner may connect.
            task_status: Started when clients can connect.

        Raises:
            OSError: There is something else at the path, or the socket cannot be made.
        """
        with listen_at(Path(path), _BACKLOG) as listener:
            # QEMU tells what is not UTF-8 by replacement characters.
            told = os.fsencode(path).decode(errors="replace")
            self._machine.monitor_path = told
            task_status.started()
            await self._accept(trio.socket.from_stdlib_socket(listener))

    async def _accept(self, listener: trio.socket.SocketType) -> None:
        """Accept one client after the other; the next one waits in the backlog."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._close_when_ended, listener)
            with contextlib.suppress(trio.ClosedResourceError):
                while not self._machine.ended:
                    # No checkpoint in between, at which a cancellation would lose the
                    # client.
                    accepted, _ = await listener.accept()
                    await self.serve(trio.SocketStream(accepted))

    async def _close_when_ended(self, listener: trio.socket.SocketType) -> None:
        await self.ended.wait()
        listener.close()


# Streams


async def _receive(stream: trio.abc.Stream) -> tuple[bytes, list[ReceivedDescriptor]]:
    """Return bytes, none at the end, and the descriptors that came with them."""
    if isinstance(stream, trio.SocketStream):
        data, ancillary, *_ = await stream.socket.recvmsg(
            _READ_SIZE, RECEIVE_ROOM, RECEIVE_FLAGS
        )
        return data, read_ancillary(ancillary)
    data = bytes(await stream.receive_some(_READ_SIZE))
    return data, stream.take_descriptors() if isinstance(stream, _End) else []


def _make_stream_pair() -> tuple[trio.abc.Stream, trio.abc.Stream]:
    """Return both ends of a connection in memory that takes whatever is sent.

    The streams of :mod:`trio.testing` take five turns of the scheduler for each
    message. These take one, and most of a simulated world's time goes into turns.
    """
    to_left, from_right = trio.open_memory_channel[bytes](math.inf)
    to_right, from_left = trio.open_memory_channel[bytes](math.inf)
    left, right = deque[ReceivedDescriptor](), deque[ReceivedDescriptor]()
    return (
        _End(to_right, from_right, right, left),
        _End(to_left, from_left, left, right),
    )


@define(eq=False, slots=False)
class _End(trio.abc.Stream):
    """One end of a connection in memory."""

    _outgoing: trio.MemorySendChannel[bytes]
    _incoming: trio.MemoryReceiveChannel[bytes]
    _sent: deque[ReceivedDescriptor]
    _received: deque[ReceivedDescriptor]
    _left: bytes = field(init=False, default=b"")

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send bytes. There is always room for them, so no other task runs."""
        await trio.lowlevel.checkpoint_if_cancelled()
        if data:
            self._outgoing.send_nowait(bytes(data))

    def send_descriptors(self, descriptors: Iterable[int]) -> None:
        """Have the other end get file descriptors with the bytes that are sent next.

        As on a unix socket, it gets copies.
        """
        self._sent.extend(ReceivedDescriptor(os.dup(each)) for each in descriptors)

    def take_descriptors(self) -> list[ReceivedDescriptor]:
        """Return the descriptors that came with the bytes so far."""
        taken = list(self._received)
        self._received.clear()
        return taken

    async def wait_send_all_might_not_block(self) -> None:
        """Return at once."""
        await trio.lowlevel.checkpoint()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Return bytes that the other end has sent; none when it has closed."""
        if self._left:
            await trio.lowlevel.checkpoint()
        else:
            try:
                self._left = await self._incoming.receive()
            except trio.EndOfChannel:
                return b""
        data = self._left[:max_bytes]
        self._left = self._left[len(data) :]
        return data

    async def aclose(self) -> None:
        """Close both directions; the other end still gets what was sent."""
        self._outgoing.close()
        self._incoming.close()
        await trio.lowlevel.checkpoint()
