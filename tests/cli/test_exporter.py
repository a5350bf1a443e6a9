"""``qmpballoon exporter``, and `fleet run --metrics`, in processes of their own."""

from __future__ import annotations

import re
import signal
import urllib.request
from typing import TYPE_CHECKING

import pytest
import trio
from command import run, serve, start
from prometheus_client.parser import text_string_to_metric_families

from qmpballoon.sizes import GiB

if TYPE_CHECKING:
    from pathlib import Path


def figures(url: str) -> dict[str, float]:
    """Return the metrics of the VM ``vm`` by their names."""
    with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310 - our own
        text: bytes = answer.read()
    return {
        sample.name: sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
        if sample.labels.get("vm") == "vm"
    }


async def url_of(stream: trio.abc.ReceiveStream) -> str:
    text = ""
    with trio.fail_after(30):
        while not (found := re.search(r"(http://127\.0\.0\.1:\d+/metrics)\n", text)):
            text += (await stream.receive_some()).decode()
    return found[1]


@pytest.mark.parametrize("arguments", ["exporter --listen 0", "fleet run --metrics 0"])
async def test_metrics_are_served(tmp_path: Path, arguments: str) -> None:
    path = tmp_path / "vm.qmp"
    command = [*arguments.split(), "--period", "0.3", "--reserve", "0", path]
    async with serve(path, memory=2 * GiB) as machine, start(*command) as running:
        is_run = command[0] == "fleet"
        url = await url_of(running.stderr if is_run else running.stdout)
        with trio.fail_after(30):
            name = "qmpballoon_guest_memory_disk_caches_bytes"
            seen = await trio.to_thread.run_sync(figures, url)
            while name not in seen:
                await trio.sleep(0.05)
                seen = await trio.to_thread.run_sync(figures, url)
        assert seen["qmpballoon_vm_memory_actual_bytes"] == 2 * GiB
        assert seen[name] == GiB
        assert machine.device is not None
        assert machine.device.interval == 1
        running.process.send_signal(signal.SIGINT)
        with trio.fail_after(30):
            assert await running.process.wait() == 0
        assert machine.device.interval == 0


async def test_an_address_without_a_port() -> None:
    result = await run("exporter", "--listen", "everywhere")
    assert result.returncode == 2
    assert "has no port" in result.stderr
