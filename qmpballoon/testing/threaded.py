"""A fake QEMU on a unix socket, served by a thread of its own.

The code under test may run on any event loop, on none, or in another process::

    with serve(MachineConfig(memory=4 << 30)) as fake:
        subprocess.run(["my-orchestrator", fake.socket])
        fake.do(Machine.stop)             # pauses the VM

The fake runs in real time. Code that runs on trio or asyncio is tested faster, and with
the same result every time, by :func:`qmpballoon.testing.simulate` and
:func:`qmpballoon.testing.simulate_asyncio`.
"""

from __future__ import annotations

import tempfile
import time
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, TypeVar

import trio
from attrs import evolve, field, frozen

from qmpballoon.testing.model.config import MachineConfig
from qmpballoon.testing.model.machine import Machine
from qmpballoon.testing.model.profiles import profile
from qmpballoon.testing.server import FakeQemu, open_fake

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Generator

__all__ = ["ThreadedFake", "serve"]

T = TypeVar("T")


@frozen(eq=False)
class ThreadedFake:
    """A fake QEMU that runs in another thread; :func:`serve` makes it.

    Its figures are those of QEMU and its guest at that moment. Once QEMU has quit or
    was killed, reading one raises :exc:`trio.RunFinishedError`.

    Attributes:
        socket: The path of its QMP monitor's socket.
    """

    socket: str
    _fake: FakeQemu = field(repr=False)
    _scope: trio.CancelScope = field(repr=False)
    _token: trio.lowlevel.TrioToken = field(repr=False)

    def do(self, action: Callable[[Machine], T]) -> T:
        """Call a function with the machine, and return the function's result.

        Args:
            action: Called in the thread that the machine runs in, for example
                ``Machine.stop`` or ``lambda machine: machine.status``.

        Raises:
            trio.RunFinishedError: QEMU has quit or was killed.
        """
        return trio.from_thread.run_sync(self._fake.do, action, trio_token=self._token)

    @property
    def actual(self) -> int:
        """Bytes the guest has now, as QEMU tells it; all its RAM without a balloon."""
        return self._read(lambda fake: fake.actual)

    @property
    def target(self) -> int:
        """Bytes the guest was last asked to have; all its RAM if it was not asked."""
        return self._read(lambda fake: fake.target)

    @property
    def available(self) -> int:
        """Bytes the guest really has available now, whatever it reports."""
        return self._read(lambda fake: fake.available)

    @property
    def oom_kills(self) -> int:
        """How many processes the guest has killed for want of memory."""
        return self._read(lambda fake: fake.oom_kills)

    def _read(self, read: Callable[[FakeQemu], int]) -> int:
        return trio.from_thread.run_sync(read, self._fake, trio_token=self._token)

    def kill(self) -> None:
        """End QEMU as SIGKILL does: its connections close. Later calls do nothing."""
        with suppress(trio.RunFinishedError):
            trio.from_thread.run_sync(self._scope.cancel, trio_token=self._token)


@contextmanager
def serve(
    config: MachineConfig | None = None,
    *,
    version: str = "10.0",
    seed: int = 0,
    path: str | os.PathLike[str] | None = None,
) -> Generator[ThreadedFake]:
    """Serve one simulated VM on a unix socket until the block is left.

    Args:
        config: The VM. By default it has 2 GiB, of which 1 GiB is page cache. Its wall
            clock is set to the host's.
        version: Its QEMU's version, one of
            :data:`~qmpballoon.testing.PROFILES`.
        seed: Seed of what differs from one guest to the next.
        path: Where the socket is made. By default it is in a private directory, which
            is removed at the end.

    Yields:
        The running fake.

    Raises:
        OSError: The socket cannot be made at that path.
        ValueError: There is no profile of that version.
    """
    config = evolve(config or MachineConfig(), epoch=time.time_ns())
    machine = Machine(config, profile(version), Random(seed))
    with (
        tempfile.TemporaryDirectory(prefix="qmpballoon-") as folder,
        ThreadPoolExecutor(1, "fake-qemu") as thread,
    ):
        socket = Path(folder, "qmp") if path is None else Path(path)
        started = Future[ThreadedFake]()
        served = thread.submit(trio.run, _serve, machine, socket, started)
        both: list[Future[Any]] = [started, served]
        wait(both, return_when=FIRST_COMPLETED)
        if not started.done():
            served.result()  # raises what kept it from starting
        fake = started.result()
        try:
            yield fake
        finally:
            fake.kill()
            served.result()


async def _serve(machine: Machine, socket: Path, started: Future[ThreadedFake]) -> None:
    with trio.CancelScope() as scope:
        async with open_fake(machine) as fake, trio.open_nursery() as nursery:
            try:
                await nursery.start(fake.listen, socket)
            except OSError as error:
                started.set_exception(error)
                return
            token = trio.lowlevel.current_trio_token()
            started.set_result(ThreadedFake(str(socket), fake, scope, token))
