"""What is around QEMU goes wrong in the middle of a call: sockets, disk, clock.

Every test has its row in docs/reference/faults.md; see tests/support/chaos.py.
"""

from __future__ import annotations

import os
import subprocess
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio
from attrs import define
from chaos import Row, ask, comes_to, fault, in_the_middle, said, stays_at
from command import PROGRAM

from qmpballoon.balloon.guard import Guard
from qmpballoon.errors import MonitorClosed, MonitorUnreachable
from qmpballoon.sizes import MiB
from qmpballoon.testing import lab
from qmpballoon.trio import open_balloon, open_monitor

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable
    from pathlib import Path

    from qmpballoon.balloon.balloon import Balloon

MEMORY = 512 * MiB
TARGET = 160 * MiB
CACHE = 256 * MiB
# So that there is time for something to go wrong.
SLOWLY = Guard(max_rate=64 * MiB)
HOUR = 3600


@asynccontextmanager
async def proxied(path: Path, to: Path) -> AsyncGenerator[trio.Event]:
    """Serve a monitor on another path, until the event that is handed out is set.

    Then the next that QEMU says is cut off half-way, and the connection with it.
    """
    cut = trio.Event()

    async def pass_on(
        source: trio.SocketStream, sink: trio.SocketStream, stop: trio.Event
    ) -> None:
        async for data in source:
            if stop.is_set():
                await sink.send_all(data[: len(data) // 2])
                break
            await sink.send_all(data)
        await source.aclose()
        await sink.aclose()

    async def serve() -> None:
        client = trio.SocketStream((await listener.accept())[0])
        with trio.socket.socket(trio.socket.AF_UNIX) as sock:
            await sock.connect(os.fspath(to))
            qemu = trio.SocketStream(sock)
            async with trio.open_nursery() as both:
                both.start_soon(pass_on, qemu, client, cut)
                both.start_soon(commands, client, qemu)

    async def commands(client: trio.SocketStream, qemu: trio.SocketStream) -> None:
        try:
            await pass_on(client, qemu, trio.Event())
        except (trio.ClosedResourceError, trio.BrokenResourceError):
            assert cut.is_set()

    with trio.socket.socket(trio.socket.AF_UNIX) as listener:
        await listener.bind(os.fspath(path))
        listener.listen(1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            yield cut
            nursery.cancel_scope.cancel()


@fault("The monitor is closed in mid-reply during `reclaim`")
async def test_cut_off(tmp_path: Path) -> Row:
    path = tmp_path / "proxy"
    async with (
        lab.boot(memory=MEMORY, cache=CACHE, saved=True) as guest,
        proxied(path, guest.socket) as cut,
        open_balloon(path) as balloon,
    ):
        async with in_the_middle(balloon, balloon.reclaim, guard=SLOWLY) as call:
            cut.set()
        assert isinstance(call.got, MonitorClosed)
        assert len(call.got.unknown_outcome) == 1
        async with open_balloon(guest.socket) as again:
            with trio.fail_after(300):
                await again.resize(MEMORY)
        await stays_at(guest, MEMORY)
        left = "the last target, until somebody sets another"
        return said(call.got), left


@fault("The socket's file is removed during `resize`")
async def test_socket_removed() -> Row:
    async with (
        lab.boot(memory=MEMORY, cache=CACHE, saved=True) as guest,
        open_balloon(guest.socket) as balloon,
    ):
        async with in_the_middle(balloon, balloon.resize, TARGET) as call:
            guest.socket.unlink()
        await stays_at(guest, TARGET)
        with pytest.raises(MonitorUnreachable) as caught:
            async with open_monitor(guest.socket):
                pytest.fail("there is no such file")
        got = f"{said(call.got)}; clients that connect later: {said(caught.value)}"
        return got, "the size asked for"


@define
class HostClock:
    """The host's clock, which somebody sets."""

    offset: int = 0

    def __call__(self) -> float:
        """Return what it shows."""
        return time.time() + self.offset


@asynccontextmanager
async def opened_with_a_clock() -> AsyncGenerator[tuple[lab.Guest, Balloon, HostClock]]:
    clock = HostClock()
    async with (
        lab.boot(memory=MEMORY, cache=CACHE, saved=True) as guest,
        open_balloon(guest.socket, wall_clock=clock) as balloon,
    ):
        yield guest, balloon, clock


@fault("The host's clock is set, by an hour either way, during `reclaim`")
@pytest.mark.parametrize("step", [HOUR, -HOUR])
async def test_clock_in_reclaim(step: int) -> Row:
    async with opened_with_a_clock() as (guest, balloon, clock):
        assert ((await balloon.refresh_stats()).age or 0) < HOUR / 2
        async with in_the_middle(balloon, balloon.reclaim, guard=SLOWLY) as call:
            clock.offset = step
        await comes_to(guest, MEMORY)
        age = (await balloon.refresh_stats()).age
        # A sample from the future has no age.
        assert age is None if step < 0 else age is not None and age > HOUR / 2
        return said(call.got), "all its memory"


@fault("The host's clock is set, by an hour either way, during `resize`")
@pytest.mark.parametrize("step", [HOUR, -HOUR])
async def test_clock_in_resize(step: int) -> Row:
    async with opened_with_a_clock() as (guest, balloon, clock):
        async with in_the_middle(balloon, balloon.resize, TARGET) as call:
            clock.offset = step
        await stays_at(guest, TARGET)
        return said(call.got), "the size asked for"


def on_a_full_disk(folder: Path) -> list[str]:
    """Return what runs a program that sees a full file system in a folder."""
    own = ["unshare", "-m"] if os.geteuid() == 0 else ["unshare", "-Urm"]
    mount = ["mount", "-t", "tmpfs", "-o", "size=4k", "none", str(folder)]
    if subprocess.run([*own, *mount], check=False, capture_output=True).returncode:
        pytest.skip("nothing can be mounted here, even in a namespace of our own")
    script = f'{" ".join(mount)}; head -c 4096 /dev/zero >{folder}/full; exec "$@"'
    return [*own, "sh", "-c", script, "sh"]


def with_a_quota(_: Path) -> list[str]:
    """Return what runs a program that can write no file of any length."""
    # Python would leave half of a compiled module behind.
    return ["env", "PYTHONDONTWRITEBYTECODE=1", "prlimit", "--fsize=100"]


@fault("The disk is full when `qmpballoon reclaim --report FILE` writes the report")
@pytest.mark.parametrize("shortage", [on_a_full_disk, with_a_quota])
async def test_no_room_for_the_report(
    shortage: Callable[[Path], list[str]],
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> Row:
    report = tmp_path / "report.json"
    wrapped = [*shortage(tmp_path), *PROGRAM]
    # There is room for notes. Root of a user's own namespace cannot write to /run.
    notes = tmp_path_factory.mktemp("notes")
    monkeypatch.setenv("QMPBALLOON_RUNTIME_DIR", str(notes))
    async with lab.boot(memory=MEMORY, cache=CACHE, saved=True) as guest:
        done = await trio.run_process(
            [*wrapped, "reclaim", str(guest.socket), "--report", str(report)],
            check=False,
            capture_stdout=True,
            capture_stderr=True,
        )
        (line,) = done.stderr.decode().splitlines()
        assert str(report) in line
        assert b"cache" in done.stdout  # the summary is there all the same
        assert not await trio.Path(report).exists()
        assert (await ask(guest, "query-balloon"))["actual"] == MEMORY
        await comes_to(guest, MEMORY)
        return f"exit status {done.returncode}, and one line", "all its memory"
