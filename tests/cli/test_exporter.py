"""``qmpballoon exporter``, and `fleet run --metrics`, in processes of their own."""

from __future__ import annotations

import signal
import socket
from typing import TYPE_CHECKING

import pytest
import trio
from command import run, serve, start
from metrics import figures, url_of

from qmpballoon.sizes import GiB

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("arguments", ["exporter --listen 0", "fleet run --metrics 0"])
async def test_metrics_are_served(tmp_path: Path, arguments: str) -> None:
    path = tmp_path / "vm.qmp"
    command = [*arguments.split(), "--period", "0.3", "--reserve", "0", path]
    async with serve(path, memory=2 * GiB) as fake, start(*command) as running:
        is_run = command[0] == "fleet"
        url = await url_of(running.stderr if is_run else running.stdout)
        with trio.fail_after(300):
            name = "qmpballoon_guest_memory_disk_caches_bytes"
            seen = (await figures(url)).get("vm", {})
            while name not in seen:
                await trio.sleep(0.05)
                seen = (await figures(url)).get("vm", {})
        assert seen["qmpballoon_vm_memory_actual_bytes"] == 2 * GiB
        assert seen[name] == GiB
        assert fake.machine.device is not None
        assert fake.machine.device.interval == 1
        running.process.send_signal(signal.SIGINT)
        with trio.fail_after(300):
            assert await running.process.wait() == 0
        assert fake.machine.device.interval == 0


async def test_an_address_without_a_port() -> None:
    result = await run("exporter", "--listen", "everywhere")
    assert result.returncode == 2
    assert "has no port" in result.stderr


@pytest.mark.parametrize("arguments", ["exporter --listen", "fleet run --metrics"])
async def test_a_port_that_is_taken(tmp_path: Path, arguments: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = await run(*arguments.split(), port, tmp_path / "vm.qmp")
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use; give" in line


async def test_a_host_that_is_none(tmp_path: Path) -> None:
    result = await run("exporter", "--listen", "nowhere.invalid:0", tmp_path / "x")
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert "cannot listen on nowhere.invalid:0: " in line
