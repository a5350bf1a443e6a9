"""Simulated VMs for a function on asyncio, in one event loop on a clock that jumps.

::

    async def reclaim(vm: AsyncioFakeQemu) -> int:
        async with open_balloon(vm.connect(), wall_clock=vm.wall_clock) as balloon:
            return (await balloon.reclaim()).handed_over

    assert simulate_asyncio(reclaim, MachineConfig(memory=16 << 30)) > 8 << 30

Both ends of each connection are sockets of this process. So what was written can be
read at once, and when nothing can be read, nothing will happen until a timer is due:
then the clock jumps there. A minute of a VM's life takes a fraction of a second, and
the result depends on the arguments only.

The clock knows nothing of other threads and processes. A function that waits for one,
such as ``asyncio.to_thread`` or a subprocess, does not belong into such a world: use
:func:`~qmpballoon.testing.serve`, in real time.
"""

from __future__ import annotations

import asyncio
import math
import selectors
import socket
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from random import Random
from typing import TYPE_CHECKING, Any, Final, TypeVar

from qmpballoon.testing.descriptors import (
    RECEIVE_FLAGS,
    RECEIVE_ROOM,
    ReceivedDescriptor,
    read_ancillary,
)
from qmpballoon.testing.faults import NO_FAULTS, FaultPlan, list_actions
from qmpballoon.testing.model.config import SECOND, MachineConfig
from qmpballoon.testing.model.machine import Machine
from qmpballoon.testing.model.profiles import profile
from qmpballoon.testing.simulated_qemu import (
    ConnectionCut,
    FaultySender,
    SimulatedQemu,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine

    from qmpballoon.testing.model.chardevs import Descriptor
    from qmpballoon.testing.model.machine import AnySession

__all__ = ["AsyncioFakeQemu", "JumpingLoop", "simulate_asyncio"]

T = TypeVar("T")

# Bytes taken from a client at once; how many makes no difference to the machine.
_READ_SIZE: Final = 1 << 16


def simulate_asyncio(
    main: Callable[..., Awaitable[T]],
    *configs: MachineConfig,
    version: str = "10.0",
    seed: int = 0,
    faults: FaultPlan = NO_FAULTS,
    limit: float = 3600.0,
) -> T:
    """Run a function on asyncio against simulated VMs, on a clock that jumps.

    The function runs in an event loop of its own, whose ``time()`` begins at 0. Call it
    outside any event loop.

    Args:
        main: The function. It is called with an
            :class:`~qmpballoon.testing.AsyncioFakeQemu` for each of the ``configs``.
            When it returns, the VMs end.
        configs: The VMs. By default there is one of 2 GiB, of which 1 GiB is page
            cache.
        version: Their QEMU's version, one of
            :data:`~qmpballoon.testing.PROFILES`.
        seed: Seed of what differs from one guest to the next.
        faults: What goes wrong, with each of the VMs.
        limit: How long ``main`` may take, in seconds of the simulated clock.

    Returns:
        What ``main`` returns.

    Raises:
        TimeoutError: ``main`` took longer than ``limit``.
        ValueError: There is no profile of that version.
    """
    machines = [
        Machine(config, profile(version), Random(seed + number))
        for number, config in enumerate(configs or [MachineConfig()])
    ]

    async def world() -> T:
        async with asyncio.timeout(limit), AsyncExitStack() as stack:
            fakes = [
                await stack.enter_async_context(_open_fake(machine, faults))
                for machine in machines
            ]
            return await main(*fakes)

    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        return runner.run(world())


# The clock

# looptime, a library for the same purpose, is made for code that talks to the outside:
# it lets real time pass, step by step, while sockets are waited for. Nothing outside
# takes part here, so the clock can jump at once, and every run is the same.


class _JumpingSelector(selectors.DefaultSelector):
    """Waits for nothing; what it would have waited is added to the time.

    Attributes:
        now: Seconds.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(
        self, timeout: float | None = None
    ) -> list[tuple[selectors.SelectorKey, int]]:
        """Return what is ready, or jump."""
        ready = super().select(0)
        if not ready:
            if timeout is None:
                raise RuntimeError("nothing will ever happen: no task has a timeout")
            self.now += max(timeout, 0.0)
        return ready


class JumpingLoop(asyncio.SelectorEventLoop):
    """An event loop whose time jumps to the next timer when nothing else can happen."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        """Return the simulated seconds since the beginning."""
        return self._jumping.now


# The VM


@asynccontextmanager
async def _open_fake(
    machine: Machine, faults: FaultPlan
) -> AsyncGenerator[AsyncioFakeQemu, None]:
    """Run a simulated machine until the block is left."""
    fake = AsyncioFakeQemu(machine, faults)
    try:
        yield fake
    finally:
        await fake.aclose()


class AsyncioFakeQemu(SimulatedQemu):
    """A simulated machine on asyncio, and the clients on its monitor.

    :func:`simulate_asyncio` makes it. As with QEMU, a monitor serves one client at a
    time. A second client can connect; it is greeted when the first has left. Further
    monitors, on descriptors that clients hand over, have clients of their own.

    Attributes:
        faults: What goes wrong with it.
        ended: Set when QEMU has quit.
    """

    def __init__(self, machine: Machine, faults: FaultPlan = NO_FAULTS) -> None:
        self._loop = asyncio.get_running_loop()
        super().__init__(machine, faults, self._loop.time)
        self.ended: asyncio.Event = asyncio.Event()
        self._changed = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._sender = FaultySender(faults, faults.cut_after)
        self._monitor = asyncio.Lock()
        self._tasks: list[asyncio.Task[None]] = []
        self._start(self._carry_out_faults())
        if faults.freeze_at is not None:
            self._start(self._freeze(faults.freeze_at))
        self._wake()

    def connect(self) -> socket.socket:
        """Connect a client; return its end of the connection, a socket."""
        ours, theirs = socket.socketpair()
        for end in (ours, theirs):
            end.setblocking(False)  # noqa: FBT003 - socket's own signature
        self._start(self._serve(ours))
        return theirs

    async def aclose(self) -> None:
        """End QEMU as a crash would: its clients see the connection close.

        :func:`simulate_asyncio` calls this.
        """
        if self._timer is not None:
            self._timer.cancel()
        for task in self._tasks:
            task.cancel()
        results = await asyncio.gather(*self._tasks, return_exceptions=True)
        self._machine.close_files()
        for ended in results:
            if isinstance(ended, Exception):  # a bug of the fake
                raise ended

    def _start(self, coroutine: Coroutine[Any, Any, None]) -> None:
        self._tasks.append(self._loop.create_task(coroutine))

    # Time

    def _wake(self) -> None:
        for session, descriptor in self._machine.take_opened():
            self._start(self._serve_descriptor(session, descriptor))
        self._changed.set()
        self._changed = asyncio.Event()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        deadline = self._find_deadline()
        if self._machine.ended:
            self._machine.close_files()
            self.ended.set()
        elif deadline < math.inf:
            self._timer = self._loop.call_at(deadline, self._advance_to_due)

    def _advance_to_due(self) -> None:
        """Have the machine do what it does by itself at this time."""
        self._advance(self._due or 0)
        self._wake()

    async def _carry_out_faults(self) -> None:
        """Do to the machine what the plan says, at the times that it says."""
        for at, action in list_actions(self.faults):
            await self._sleep_until(at)
            await self._wait_for_thaw()
            if not self._machine.ended:
                self._advance(at)
                action(self._machine)
                self.touch()

    async def _freeze(self, at: int) -> None:
        """Stop QEMU's process for a while; the time of all others goes on."""
        await self._sleep_until(at)
        if not self._machine.ended:
            self._begin_freeze(at)
            await asyncio.sleep(self.faults.freeze_for / SECOND)
            self._end_freeze()

    async def _sleep_until(self, at: int) -> None:
        await asyncio.sleep(max(self._convert_to_clock(at) - self._loop.time(), 0.0))

    async def _wait_for_thaw(self) -> None:
        """Wait while QEMU's process is stopped."""
        while self._frozen:
            await self._changed.wait()

    # Clients

    async def _serve(self, sock: socket.socket) -> None:
        """Serve a client until either end closes; it waits for those before it."""
        with sock:
            async with self._monitor:
                if not self._machine.ended:
                    await self._serve_session(sock)

    async def _serve_session(self, sock: socket.socket) -> None:
        await self._wait_for_thaw()
        self._advance()
        await self._exchange(sock, self._machine.connect())

    async def _serve_descriptor(
        self, session: AnySession, descriptor: Descriptor
    ) -> None:
        """Serve the client of a monitor that was added on a descriptor."""
        sock = self._find_client(session, descriptor)
        if sock is not None:
            with sock:
                sock.setblocking(False)  # noqa: FBT003 - socket's own signature
                await self._exchange(sock, session)

    async def _exchange(self, sock: socket.socket, session: AnySession) -> None:
        """Pass bytes between a client and its session until either ends."""
        ends = [
            asyncio.create_task(self._read(sock, session)),
            asyncio.create_task(self._write(sock, session)),
        ]
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for end in ends:
                end.cancel()
            failures = await asyncio.gather(*ends, return_exceptions=True)
            self._machine.disconnect(session)
        for failure in failures:
            if isinstance(failure, Exception):
                raise failure

    async def _read(self, sock: socket.socket, session: AnySession) -> None:
        """Pass what the client sends to the session, while QEMU reads."""
        with suppress(ConnectionError):
            while (received := await self._receive(sock))[0]:
                await self._wait_for_thaw()
                self._advance()
                session.receive(*received)
                self._wake()
                while not session.reading:
                    await self._changed.wait()

    async def _receive(
        self, sock: socket.socket
    ) -> tuple[bytes, list[ReceivedDescriptor]]:
        """Return bytes, none at the end, and the descriptors that came with them."""
        while True:
            with suppress(BlockingIOError):
                data, ancillary, *_ = sock.recvmsg(
                    _READ_SIZE, RECEIVE_ROOM, RECEIVE_FLAGS
                )
                return data, read_ancillary(ancillary)
            readable: asyncio.Future[None] = self._loop.create_future()
            self._loop.add_reader(sock, _resolve, readable)
            try:
                await readable
            finally:
                self._loop.remove_reader(sock)

    async def _write(self, sock: socket.socket, session: AnySession) -> None:
        """Send the session's output to the client, until QEMU closes the connection."""
        with suppress(ConnectionError, ConnectionCut):
            while True:
                await self._wait_for_thaw()
                if data := session.take_output():
                    await self._send(sock, data)
                elif session.closed:
                    return
                else:
                    await self._changed.wait()

    async def _send(self, sock: socket.socket, data: bytes) -> None:
        for piece in self._sender.divide(data):
            if piece is None:
                await asyncio.sleep(self._sender.pause)
            else:
                await self._loop.sock_sendall(sock, piece)


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
