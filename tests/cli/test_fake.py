"""``qmpballoon fake``: each option does what it says, and bad input is refused."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio
from command import PROGRAM, run, start

from qmpballoon.errors import NoBalloonDevice
from qmpballoon.sizes import GiB, MiB
from qmpballoon.testing import PROFILES
from qmpballoon.trio import open_balloon, open_monitor

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from command import Running


@asynccontextmanager
async def fake(path: Path, *options: str) -> AsyncGenerator[Running]:
    """Start it, and wait until it says that it listens."""
    async with start("fake", path, *options) as running:
        with trio.fail_after(300):
            said = await running.stdout.receive_some()
        assert said.endswith(f" listens on {path}\n".encode())
        yield running


@pytest.mark.parametrize("version", PROFILES)
async def test_profile(tmp_path: Path, version: str) -> None:
    path = tmp_path / "qmp"
    async with fake(path, "--profile", version), open_monitor(str(path)) as monitor:
        greeting = monitor.greeting
        assert greeting is not None
        assert greeting.version is not None
        assert f"{greeting.version.major}.{greeting.version.minor}" == version


async def test_without_options_it_is_what_its_help_says(tmp_path: Path) -> None:
    path = tmp_path / "qmp"
    async with fake(path), open_balloon(str(path)) as balloon:
        assert balloon.path == "/machine/peripheral/balloon0"
        assert await balloon.actual() == 2 * GiB
        stats = await balloon.refresh_stats()
        assert stats.disk_caches == GiB
        assert await balloon.is_running()


async def test_sizes_and_id(tmp_path: Path) -> None:
    path = tmp_path / "qmp"
    sizes = ("--memory", "512M", "--used", "300M", "--cache", "0")
    async with (
        fake(path, *sizes, "--id", "mem.1"),
        open_balloon(str(path)) as balloon,
    ):
        assert balloon.path == "/machine/peripheral/mem.1"
        assert await balloon.actual() == 512 * MiB
        stats = await balloon.refresh_stats()
        assert stats.disk_caches == 0
        assert stats.total is not None
        assert stats.free is not None
        assert stats.total - stats.free == 300 * MiB


async def test_memory_is_rounded_up_as_qemu_does(tmp_path: Path) -> None:
    path = tmp_path / "qmp"
    async with fake(path, "--memory", "500000001"), open_balloon(str(path)) as balloon:
        assert await balloon.actual() == 500006912


async def test_paused(tmp_path: Path) -> None:
    path = tmp_path / "qmp"
    async with fake(path, "--paused"), open_monitor(str(path)) as monitor:
        before = await monitor.execute("query-status")
        assert isinstance(before, dict)
        assert before["status"] == "prelaunch"
        await monitor.execute("cont")
        after = await monitor.execute("query-status")
        assert isinstance(after, dict)
        assert after["status"] == "running"


async def test_no_driver(tmp_path: Path) -> None:
    path = tmp_path / "qmp"
    async with fake(path, "--no-driver"), open_balloon(str(path)) as balloon:
        await balloon.request_stats(1)
        assert (await balloon.stats()).last_update is None


async def test_it_holds_as_much_memory_as_qemu_would(tmp_path: Path) -> None:
    path = tmp_path / "qmp"
    sizes = ("--memory", "512M", "--used", "100M", "--cache", "250M", "--hold-memory")
    async with fake(path, *sizes), open_balloon(str(path)) as balloon:
        with trio.fail_after(300):
            # Only the host tells.
            while (balloon.resident() or 0) < 380 * MiB:  # noqa: ASYNC110
                await trio.sleep(0.05)
            await balloon.resize(300 * MiB)
            while (balloon.resident() or 0) > 370 * MiB:  # noqa: ASYNC110
                await trio.sleep(0.05)


async def test_no_balloon(tmp_path: Path) -> None:
    path = tmp_path / "qmp"
    async with fake(path, "--no-balloon"):
        with pytest.raises(NoBalloonDevice):
            async with open_balloon(str(path)):
                pass


async def test_dimms_can_be_plugged_in(tmp_path: Path) -> None:
    path = tmp_path / "qmp"
    backend = {"qom-type": "memory-backend-ram", "id": "m", "size": GiB}
    async with fake(path), open_balloon(str(path)) as balloon:
        await balloon.monitor.execute("object-add", backend)
        dimm = {"driver": "pc-dimm", "id": "d", "memdev": "m"}
        await balloon.monitor.execute("device_add", dimm)
        assert (await balloon.query()).total == 3 * GiB


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
async def test_interrupted_it_ends_well_and_leaves_nothing(
    tmp_path: Path, number: signal.Signals
) -> None:
    path = tmp_path / "qmp"
    async with fake(path) as running:
        running.process.send_signal(number)
        with trio.fail_after(300):
            assert await running.process.wait() == 0
            assert await running.said() == ""
    assert not path.exists()


async def test_it_ends_when_its_client_says_quit(tmp_path: Path) -> None:
    path = tmp_path / "qmp"
    async with fake(path) as running:
        async with open_monitor(str(path)) as monitor:
            await monitor.execute("quit")
        with trio.fail_after(300):
            assert await running.process.wait() == 0
    assert not path.exists()


async def test_a_socket_that_nobody_listens_on_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "qmp"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    async with fake(path), open_monitor(str(path)):
        pass


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--memory", "0"), "above 0"),
        (("--memory", "lots"), "not a size"),
        (("--used=-1",), "not a size"),
        (("--profile", "6.0"), "is not one of"),
        (("--seed", "x"), "not a valid integer"),
        (("--id", ""), "is not an id"),
        (("--id", "a b/c"), "is not an id"),
    ],
)
async def test_bad_options(
    tmp_path: Path, options: tuple[str, ...], complaint: str
) -> None:
    done = await run("fake", tmp_path / "qmp", *options)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert complaint in line
    assert not (tmp_path / "qmp").exists()


async def test_where_it_cannot_listen(tmp_path: Path) -> None:
    file, taken = tmp_path / "file", tmp_path / "taken"
    file.write_text("precious")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(taken))
        listening.listen()
        for path, complaint in (
            (file, "in use"),
            (taken, "in use"),
            (tmp_path, "is a directory"),
            (tmp_path / "missing" / "qmp", "No such file"),
            (tmp_path / ("a" * 120), "too long"),
        ):
            done = await run("fake", path)
            assert (done.returncode, done.stdout) == (2, ""), path
            (line,) = done.stderr.splitlines()
            assert complaint in line
    assert file.read_text() == "precious"
    assert taken.is_socket()


def test_where_it_cannot_say_that_it_listens(tmp_path: Path) -> None:
    path = tmp_path / "qmp"
    full = os.open("/dev/full", os.O_WRONLY)
    done = subprocess.run(
        [*PROGRAM, "fake", str(path)],
        check=False,
        stdout=full,
        stderr=subprocess.PIPE,
        text=True,
        timeout=300,
        # As most have it: what cannot be written is tried again at the end.
        env={k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"},
    )
    os.close(full)
    assert done.returncode == 1
    assert done.stderr == "qmpballoon: No space left on device: standard output\n"
    assert not path.exists()
