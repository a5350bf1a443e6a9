"""What the command's tests have in common."""

from __future__ import annotations

import socket
import subprocess
import time
from typing import TYPE_CHECKING

import pytest
import trio
from command import PROGRAM
from valkey_server import run_server

from qmpballoon.cluster.valkey import open_bus
from qmpballoon.cluster.view import look
from qmpballoon.testing import GuestConfig, MachineConfig, serve

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path


@pytest.fixture
def socket_path(tmp_path: Path) -> Path:
    """Where a VM's monitor is."""
    return tmp_path / "qmp"


@pytest.fixture
def listener(tmp_path: Path) -> Generator[socket.socket]:
    """A socket that tells whether anybody has connected."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "qmp"))
        listening.listen()
        listening.settimeout(0)
        yield listening


@pytest.fixture(scope="session")
def joined(tmp_path_factory: pytest.TempPathFactory) -> Generator[str]:
    """Run a host with one VM in a cluster of its own; yield the server's URL."""
    folder = tmp_path_factory.mktemp("cluster")
    guest = GuestConfig(cache=128 << 20, inflate_rate=20 << 30, deflate_rate=20 << 30)
    with run_server(folder) as server, serve(MachineConfig(1 << 30, guest=guest)) as vm:
        url = f"unix://{server.path}"
        words = (vm.socket, "--reserve", "0", "--host", "h1", "--cluster", url)
        run = subprocess.Popen(
            [*PROGRAM, "fleet", "run", *words, "--state", str(folder / "state")],
            stdout=subprocess.DEVNULL,
        )
        try:
            trio.run(_wait_until_joined, url)
            yield url
        finally:
            run.terminate()
            run.wait()


async def _wait_until_joined(url: str) -> None:
    async with open_bus(url) as bus:
        with trio.fail_after(300):
            while True:
                view = await look(bus, time.time())
                if any(host.state and host.state.offer.total for host in view.hosts):
                    return
                await trio.sleep(0.05)
