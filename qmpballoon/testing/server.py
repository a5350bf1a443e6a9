"""A simulated machine on trio's clock, for clients on streams and on sockets.

:class:`FakeQemu` gives a :class:`~qmpballoon.testing.model.machine.Machine` the three
things that it does without: time, which is trio's (a ``MockClock`` in tests, the
real one for ``qmpballoon fake``), and a way in and out for bytes. Nothing about
QMP is decided here.

As with QEMU, a monitor serves one client at a time. The next one connects, and
gets its greeting when the first has left.
"""

from __future__ import annotations

import contextlib
import math
import socket
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio
from attrs import define

from qmpballoon.testing.faults import NO_FAULTS, FaultPlan, happenings
from qmpballoon.testing.model.machine import SECOND, Machine
from qmpballoon.testing.streams import stream_pair

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncGenerator, Generator

    from qmpballoon.testing.model.machine import Session

__all__ = ["FakeQemu", "open_fake"]

_BACKLOG: Final = 1
_READ_SIZE: Final = 1 << 16


@contextlib.asynccontextmanager
async def open_fake(
    machine: Machine | None = None, faults: FaultPlan = NO_FAULTS
) -> AsyncGenerator[FakeQemu]:
    """Run a simulated machine until the block is left.

    Args:
        machine: Which; a default one, if none is given. Its time goes on from
            where it is.
        faults: What goes wrong.

    Raises: what the block raises, as it is.

    Cancellation: ends QEMU as a crash would; its clients see the stream close.
    """
    manager = trio.open_nursery()
    nursery = await manager.__aenter__()
    fake = FakeQemu(machine or Machine(), faults)
    nursery.start_soon(fake.run)
    nursery.start_soon(fake.attend)
    nursery.start_soon(fake.go_wrong)
    try:
        yield fake
    finally:
        nursery.cancel_scope.cancel()
        # The nursery is not shown what the block raises: it would put it into a group.
        await manager.__aexit__(None, None, None)


class FakeQemu:
    """A simulated machine and the clients on its monitor; see :func:`open_fake`.

    Attributes:
        faults: What goes wrong with it.
        ended: Set when QEMU has quit.
    """

    def __init__(self, machine: Machine, faults: FaultPlan = NO_FAULTS) -> None:
        self._machine = machine
        self.faults = faults
        machine.reply_delay = machine.reply_delay or faults.reply_delay
        machine.event_delay = faults.event_delay
        machine.event_copies = faults.event_copies
        self.ended: trio.Event = trio.Event()
        self._origin = self._began = trio.current_time() - machine.now / SECOND
        self._changed = trio.Event()
        self._frozen = False
        self._due: int | None = None
        self._alarm = trio.CancelScope()
        self._outlet = _Outlet(faults, faults.cut_after)
        self._monitor = trio.Lock()
        # Tasks begin in no order; clients in memory are greeted in theirs.
        self._connected, self._waiting = trio.open_memory_channel[trio.abc.Stream](
            math.inf
        )

    @property
    def machine(self) -> Machine:
        """The machine as it is now.

        It may be looked at, and be done things to; call :meth:`touch` afterwards.
        """
        self._advance()
        return self._machine

    # Time

    def wall_clock(self) -> float:
        """Return the host's time in seconds since the epoch, whatever QEMU does."""
        return self._machine.config.epoch / SECOND + trio.current_time() - self._began

    async def run(self) -> None:
        """Let the machine live: what it says by itself is said from in here."""
        while not self._machine.ended:
            await self._thaw()
            self._alarm = trio.CancelScope()
            self._set_alarm()
            with self._alarm:
                await trio.sleep_forever()
            due = self._due
            if due is not None and self._to_clock(due) <= trio.current_time():
                self._advance(due)
                self._wake()
        self.ended.set()

    async def go_wrong(self) -> None:
        """Let happen to the machine what is planned to go wrong with it."""
        async with trio.open_nursery() as nursery:
            if self.faults.freeze_at is not None:
                nursery.start_soon(self._freeze, self.faults.freeze_at)
            for at, action in happenings(self.faults):
                await trio.sleep_until(self._to_clock(at))
                await self._thaw()
                if not self._machine.ended:
                    self._advance(at)
                    action(self._machine)
                    self.touch()

    async def _freeze(self, at: int) -> None:
        """Stop QEMU's process for a while: the world goes on without it."""
        await trio.sleep_until(self._to_clock(at))
        if self._machine.ended:
            return
        self._advance(at)
        self._frozen = True
        self._wake()
        duration = self.faults.freeze_for
        await trio.sleep(duration / SECOND)
        self._frozen = False
        self._origin += duration / SECOND
        self._machine.sleep(duration)
        self._wake()

    async def _thaw(self) -> None:
        """Wait while QEMU's process is stopped."""
        while self._frozen:
            await self._changed.wait()

    def touch(self) -> None:
        """Bring the machine up to now, and its clients what comes of that."""
        self._advance()
        self._machine.advance(self._machine.now)  # if something is due by now
        self._machine.settle()
        self._wake()

    def _to_clock(self, time: int | None) -> float:
        return math.inf if time is None else self._origin + time / SECOND

    def _advance(self, at_least: int = 0) -> None:
        """Let the machine live up to now; :meth:`_wake` tells who waits."""
        machine = self._machine
        if self._frozen:
            return
        # Seconds are floating-point: a timer that has fired may look early.
        now = round((trio.current_time() - self._origin) * SECOND)
        now = max(now, at_least, machine.now)
        # Many a command comes at the time of the last: all is done by then.
        if now > machine.now or (self._due is not None and self._due <= now):
            machine.advance(now)

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()
        self._set_alarm()

    def _set_alarm(self) -> None:
        """Wake :meth:`run` when something is said by itself, and not before."""
        machine = self._machine
        self._due = None if self._frozen else machine.next_word_time()
        deadline = -math.inf if machine.ended else self._to_clock(self._due)
        if deadline != self._alarm.deadline:
            self._alarm.deadline = deadline

    # Clients

    def connect(self) -> trio.abc.Stream:
        """Connect a client in memory; return its end of the stream."""
        ours, theirs = stream_pair()
        self._connected.send_nowait(ours)
        return theirs

    async def attend(self) -> None:
        """Serve the clients that :meth:`connect` has connected, one by one."""
        async for stream in self._waiting:
            await self.serve(stream)

    async def serve(self, stream: trio.abc.Stream) -> None:
        """Serve a client on a stream until either end closes it.

        It waits for its turn: QEMU greets one client at a time. The stream is
        closed in the end.

        Cancellation: closes the stream, in the middle of a message if need be.
        """
        async with stream, self._monitor:
            if not self._machine.ended:
                await self._serve_session(stream)

    async def _serve_session(self, stream: trio.abc.Stream) -> None:
        await self._thaw()
        self._advance()
        session = self._machine.connect()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._read, stream, session, nursery.cancel_scope)
                await self._write(stream, session)
                nursery.cancel_scope.cancel()
        finally:
            self._machine.disconnect(session)

    async def _read(
        self, stream: trio.abc.Stream, session: Session, scope: trio.CancelScope
    ) -> None:
        """Give the session what the client sends, for as long as QEMU reads."""
        with contextlib.suppress(trio.BrokenResourceError):
            while data := await stream.receive_some(_READ_SIZE):
                await self._thaw()
                self._advance()
                session.receive(bytes(data))
                self._wake()
                while not session.reading:
                    await self._changed.wait()
        scope.cancel()

    async def _write(self, stream: trio.abc.Stream, session: Session) -> None:
        """Send the client what the session says, until QEMU hangs up."""
        with contextlib.suppress(trio.BrokenResourceError):
            while True:
                await self._thaw()
                if data := session.output():
                    await self._outlet.send(stream, data)
                elif session.closed:
                    return
                else:
                    await self._changed.wait()

    # Sockets

    async def listen(
        self,
        path: str | os.PathLike[str],
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve clients on a unix socket, until QEMU quits.

        Args:
            path: Where; a socket that nobody listens on any more is replaced. Only
                its owner may connect.
            task_status: Told when clients can connect.

        Raises:
            OSError: There is something else at the path, or it cannot be made.

        Cancellation: the socket is removed, the client's stream closed.
        """
        with _listening(Path(path)) as listener:
            task_status.started()
            await self._accept(trio.socket.from_stdlib_socket(listener))

    async def _accept(self, listener: trio.socket.SocketType) -> None:
        """Accept one client after the other; the others wait in the backlog."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._close_when_ended, listener)
            with contextlib.suppress(trio.ClosedResourceError):
                while not self._machine.ended:
                    # Nothing in between: a client must not be lost by a cancellation.
                    accepted, _ = await listener.accept()
                    await self.serve(trio.SocketStream(accepted))

    async def _close_when_ended(self, listener: trio.socket.SocketType) -> None:
        await self.ended.wait()
        listener.close()


@define
class _Outlet:
    """The way to the clients, as good as the plan lets it be.

    Attributes:
        faults: The plan.
        left: Bytes until the connection breaks, once; None: it holds.
    """

    faults: FaultPlan
    left: int | None

    async def send(self, stream: trio.abc.Stream, data: bytes) -> None:
        """Send bytes.

        Raises:
            trio.BrokenResourceError: The connection broke, or was to break.
        """
        size = self.faults.chunk or len(data)
        for start in range(0, len(data), size):
            chunk = data[start : start + size][: self.left]
            await stream.send_all(chunk)
            self._count(len(chunk))
            if size < len(data):
                await trio.sleep(self.faults.chunk_pause / SECOND)

    def _count(self, sent: int) -> None:
        if self.left is None:
            return
        self.left -= sent
        if self.left == 0:
            self.left = None
            raise trio.BrokenResourceError("the plan was to cut it here")


@contextlib.contextmanager
def _listening(path: Path) -> Generator[socket.socket]:
    """Make a socket at a path, and remove it in the end."""
    _remove_stale(path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        try:
            # Nobody can connect before it listens.
            path.chmod(stat.S_IRUSR | stat.S_IWUSR)
            listener.listen(_BACKLOG)
            yield listener
        finally:
            path.unlink(missing_ok=True)


def _remove_stale(path: Path) -> None:
    """Remove a socket that nobody listens on any more."""
    if not path.is_socket():
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
