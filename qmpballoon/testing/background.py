"""A fake QEMU on a unix socket, served by a thread of its own.

The code under test may then run on any event loop, on none, or in another process::

    with serve(MachineConfig(memory=4 << 30)) as fake:
        subprocess.run(["my-orchestrator", fake.socket])
        fake.do(Machine.stop)             # somebody pauses the VM

Time is real here. Where the code under test runs on trio, a simulated world on a
``MockClock`` is faster, and gives the same result every time.
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

from qmpballoon.testing.model.machine import Machine, MachineConfig
from qmpballoon.testing.profiles import profile
from qmpballoon.testing.server import FakeQemu, open_fake

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Generator

__all__ = ["BackgroundFake", "serve"]

T = TypeVar("T")


@frozen(eq=False)
class BackgroundFake:
    """A fake QEMU that runs in another thread; made by :func:`serve`.

    Attributes:
        socket: The path of its QMP monitor.
    """

    socket: str
    _fake: FakeQemu = field(repr=False)
    _scope: trio.CancelScope = field(repr=False)
    _token: trio.lowlevel.TrioToken = field(repr=False)

    def do(self, action: Callable[[Machine], T]) -> T:
        """Look at the machine, or do something to it, and return what came of it.

        Args:
            action: Called with the machine as it is now, in the thread that it lives
                in; for example ``Machine.stop``, or ``lambda machine: machine.status``.

        Raises:
            trio.RunFinishedError: QEMU has quit or was killed.
        """

        def act() -> T:
            self._fake.touch()
            try:
                return action(self._fake.machine)
            finally:
                self._fake.touch()

        return trio.from_thread.run_sync(act, trio_token=self._token)

    def kill(self) -> None:
        """End QEMU, if it has not ended, as SIGKILL would: connections just close."""
        with suppress(trio.RunFinishedError):
            trio.from_thread.run_sync(self._scope.cancel, trio_token=self._token)


@contextmanager
def serve(
    config: MachineConfig | None = None,
    *,
    version: str = "10.0",
    seed: int = 0,
    path: str | os.PathLike[str] | None = None,
) -> Generator[BackgroundFake]:
    """Serve one simulated VM on a unix socket until the block is left.

    Args:
        config: The VM; by default 2 GiB, 1 GiB of it page cache. Its wall clock is
            set to the host's.
        version: The QEMU that it is, one of :data:`~.profiles.PROFILES`.
        seed: Of what differs from one guest to the next.
        path: Where the socket is made; by default in a private folder, which is
            removed in the end.

    Yields:
        The running fake.

    Raises:
        OSError: There can be no socket at that path.
        ValueError: There is no profile of that version.
    """
    here_and_now = evolve(config or MachineConfig(), epoch=time.time_ns())
    machine = Machine(here_and_now, profile(version), Random(seed))
    with (
        tempfile.TemporaryDirectory(prefix="qmpballoon-") as folder,
        ThreadPoolExecutor(1, "fake-qemu") as thread,
    ):
        socket = Path(folder, "qmp") if path is None else Path(path)
        started = Future[BackgroundFake]()
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


async def _serve(
    machine: Machine, socket: Path, started: Future[BackgroundFake]
) -> None:
    with trio.CancelScope() as scope:
        async with open_fake(machine) as fake, trio.open_nursery() as nursery:
            try:
                await nursery.start(fake.listen, socket)
            except OSError as error:
                started.set_exception(error)
                return
            token = trio.lowlevel.current_trio_token()
            started.set_result(BackgroundFake(str(socket), fake, scope, token))
