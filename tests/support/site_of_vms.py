"""Live pages of a real guest and of a simulated one, served by a thread."""

from __future__ import annotations

import queue
import random
import threading
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

import trio
from attrs import define, field

from qmpballoon._transport.http_hosts import KnownHosts
from qmpballoon._transport.listening import listen_on
from qmpballoon.address import UnixAddress
from qmpballoon.fleet.host_memory import HostMemory
from qmpballoon.fleet.supervisor import open_fleet
from qmpballoon.fleet.vm_spec import VmSpec
from qmpballoon.sizes import GiB, MiB
from qmpballoon.testing import (
    FakeQemu,
    GuestConfig,
    Machine,
    MachineConfig,
    lab,
    open_fake,
)
from qmpballoon.trio import open_monitor
from qmpballoon.web import Access, open_pages

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from pathlib import Path

    from qmpballoon.fleet.supervisor import Supervisor
    from qmpballoon.testing.lab import Guest

__all__ = ["HOSTILE", "Site", "open_site"]

_T = TypeVar("_T")

HOSTILE: Final = "</td><script>alert(1)</script><img src=x onerror=alert(1)>"
TOKEN: Final = "the-token-of-these-tests-is-no-secret"  # noqa: S105 - so it is
MEMORY: Final = GiB
CACHE: Final = 512 * MiB


@define(eq=False)
class Site:
    """Serves the pages of two VMs until told to end.

    Attributes:
        folder: Where sockets are made.
        port: The port that it listens on, the same after a restart.
        guest: The real guest, ``guest`` on the pages.
        fake: The simulated one, whose name is hostile.
        specs: What the source tells.
    """

    folder: Path
    port: int = 0
    guest: Guest = field(init=False)
    fake: FakeQemu = field(init=False)
    specs: list[VmSpec] = field(factory=list[VmSpec])
    _token: trio.lowlevel.TrioToken = field(init=False)
    _is_wanted: trio.Event = field(factory=trio.Event)
    _scope: trio.CancelScope = field(factory=trio.CancelScope)
    _end: trio.Event = field(factory=trio.Event)

    @property
    def link(self) -> str:
        """What is printed at the start."""
        return f"{self.top}?token={TOKEN}"

    @property
    def top(self) -> str:
        """Where the page of all VMs is."""
        return f"http://127.0.0.1:{self.port}/"

    def call(self, function: Callable[[], Awaitable[_T]]) -> _T:
        """Call a coroutine function on the thread, and return what it returns."""
        return trio.from_thread.run(function, trio_token=self._token)

    def start(self) -> None:
        """Serve the pages, for the first time or again."""
        self.call(self._start)

    def stop(self) -> None:
        """Serve no pages any more; the VMs are supervised as before."""
        self.call(self._stop)

    def query(self) -> int:
        """Ask the real guest's QEMU for its size, on a monitor of our own."""
        return self.call(self._query)

    def end_fake(self) -> None:
        """End the simulated QEMU, and have the source forget it."""
        self.call(self._end_fake)

    async def _start(self) -> None:
        self._is_wanted.set()

    async def _stop(self) -> None:
        self._is_wanted = trio.Event()
        self._scope.cancel()

    async def _query(self) -> int:
        async with open_monitor(str(self.folder / "second.qmp")) as monitor:
            match await monitor.execute("query-balloon"):
                case {"actual": int(actual)}:
                    return actual
                case answer:
                    raise AssertionError(answer)

    async def _end_fake(self) -> None:
        self.fake.machine.quit()
        self.fake.touch()
        del self.specs[1]

    def run(self, ready: queue.Queue[BaseException | None]) -> None:
        """Run it; the thread's function."""
        try:
            trio.run(self._run, ready)
        except BaseException as error:  # noqa: BLE001 - the test's thread raises it
            ready.put(error)

    async def _run(self, ready: queue.Queue[BaseException | None]) -> None:
        self._token = trio.lowlevel.current_trio_token()
        second = f"unix:{self.folder / 'second.qmp'},server=on,wait=off"
        # It gives its memory for minutes, so that there is time to stop that.
        slow = GuestConfig(cache=GiB, inflate_rate=5 * MiB, deflate_rate=4 * GiB)
        async with (
            lab.boot(
                memory=MEMORY, cache=CACHE, saved=True, extra=["-qmp", second]
            ) as self.guest,
            open_fake(Machine(MachineConfig(guest=slow))) as self.fake,
            trio.open_nursery() as nursery,
        ):
            path = self.folder / "fake.qmp"
            await nursery.start(self.fake.listen, path)
            self.specs = [
                VmSpec("guest", UnixAddress(str(self.guest.socket))),
                VmSpec(HOSTILE, UnixAddress(str(path))),
            ]
            async with open_fleet(lambda: self.specs, random.Random(0)) as fleet:
                await fleet.wait_until_known(120)
                nursery.start_soon(self._serve, fleet, ready)
                await self._end.wait()
                nursery.cancel_scope.cancel()

    async def _serve(
        self, fleet: Supervisor, ready: queue.Queue[BaseException | None]
    ) -> None:
        memory = HostMemory()
        access = Access(TOKEN, KnownHosts.of("127.0.0.1"))

        def read_fleet() -> dict[str, object]:
            host = memory.read(fleet.held, fleet.promised)
            return {"host": {"total": host.total, "available": host.available}}

        while True:
            with (
                trio.CancelScope() as self._scope,
                listen_on("127.0.0.1", self.port) as listener,
            ):
                self.port = listener.getsockname()[1]
                async with open_pages(
                    fleet, listener, access, read_fleet, allow_changes=True
                ):
                    ready.put(None)
                    await trio.sleep_forever()
            await self._is_wanted.wait()

    def end(self) -> None:
        """End it all."""
        self._token.run_sync_soon(self._end.set)


@contextmanager
def open_site(folder: Path) -> Iterator[Site]:
    """Have a site while the block runs.

    Raises:
        LabError: There is no QEMU, or no kernel, to be had.
    """
    site = Site(folder)
    ready = queue.Queue[BaseException | None]()
    thread = threading.Thread(target=partial(site.run, ready))
    thread.start()
    try:
        if error := ready.get():
            raise error
        yield site
        site.end()
    finally:
        thread.join()
