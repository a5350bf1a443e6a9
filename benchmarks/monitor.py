"""The cost of one command: qmpballoon compared with qemu.qmp and a blocking socket.

All three ask the same QEMU for ``query-balloon``, in turns, in one process. The ratios
count. A machine's speed changes from one second to the next, and the first client in a
round may be at an advantage. So ratios are taken within one round, and the order
changes with every round. The benchmark prints the median of the rounds' ratios and
the range of the middle half. QEMU's own share of the latency is in all three.

    python benchmarks/monitor.py [--rounds N] [--commands N] [--qemu PROGRAM]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import subprocess
import tempfile
import time
from collections import deque
from contextlib import contextmanager
from pathlib import Path
from statistics import median, quantiles
from typing import TYPE_CHECKING

import trio
from attrs import Factory, frozen
from qemu.qmp import QMPClient

from qmpballoon import asyncio as aio
from qmpballoon.trio import open_monitor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import TypeAlias

COMMAND = "query-balloon"
STARTED_WITHIN = 30  # seconds


@frozen
class Costs:
    """The costs of a client's commands in seconds: a median for each round."""

    cpu: list[float] = Factory(list[float])
    latency: list[float] = Factory(list[float])


class Meter:
    """Measures the time of each command of one round."""

    def __init__(self) -> None:
        self._latencies: list[float] = []
        self._cpu = time.process_time()
        self._last = time.perf_counter()

    def tick(self) -> None:
        """Note that a command was answered."""
        now = time.perf_counter()
        self._latencies.append(now - self._last)
        self._last = now

    def add_to(self, costs: Costs) -> None:
        """End the round, and add its medians to the costs."""
        cpu = time.process_time() - self._cpu
        costs.cpu.append(cpu / len(self._latencies))
        costs.latency.append(median(self._latencies))


if TYPE_CHECKING:
    # Sends a number of commands to a socket, and adds their costs.
    Client: TypeAlias = Callable[[Path, int, Costs], None]


def measure_ours(path: Path, commands: int, costs: Costs) -> None:
    """Measure qmpballoon on trio."""

    async def run() -> None:
        async with open_monitor(path) as monitor:
            meter = Meter()
            for _ in range(commands):
                await monitor.execute(COMMAND)
                meter.tick()
            meter.add_to(costs)

    trio.run(run)


def measure_ours_on_asyncio(path: Path, commands: int, costs: Costs) -> None:
    """Measure qmpballoon on asyncio."""

    async def run() -> None:
        async with aio.open_monitor(path) as monitor:
            meter = Meter()
            for _ in range(commands):
                await monitor.execute(COMMAND)
                meter.tick()
            meter.add_to(costs)

    asyncio.run(run())


def measure_qemu_qmp(path: Path, commands: int, costs: Costs) -> None:
    """Measure qemu.qmp on asyncio."""

    async def run() -> None:
        client = QMPClient()
        await client.connect(os.fspath(path))
        meter = Meter()
        for _ in range(commands):
            await client.execute(COMMAND)
            meter.tick()
        meter.add_to(costs)
        await client.disconnect()

    asyncio.run(run())


def measure_bare_socket(path: Path, commands: int, costs: Costs) -> None:
    """Measure a blocking socket, the least that any client in Python needs."""
    with socket.socket(socket.AF_UNIX) as sock, sock.makefile("rb") as replies:
        sock.connect(os.fspath(path))

        def execute(command: str) -> object:
            sock.sendall(json.dumps({"execute": command}).encode())
            return json.loads(replies.readline())["return"]

        replies.readline()  # the greeting
        execute("qmp_capabilities")
        meter = Meter()
        for _ in range(commands):
            execute(COMMAND)
            meter.tick()
        meter.add_to(costs)


CLIENTS: dict[str, Client] = {
    "qmpballoon": measure_ours,
    "on asyncio": measure_ours_on_asyncio,
    "qemu.qmp": measure_qemu_qmp,
    "bare socket": measure_bare_socket,
}


@contextmanager
def run_qemu(program: str) -> Iterator[Path]:
    """Run a QEMU with a balloon and no guest; yield its monitor's path."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "qmp")
        command = [
            *(program, "-machine", "q35", "-accel", "tcg", "-m", "64M", "-S"),
            *("-display", "none", "-nodefaults", "-device", "virtio-balloon-pci"),
            *("-qmp", f"unix:{path},server=on,wait=off"),
        ]
        with subprocess.Popen(command) as process:
            try:
                wait_for(path, process)
                yield path
            finally:
                process.kill()


def wait_for(path: Path, process: subprocess.Popen[bytes]) -> None:
    """Wait until QEMU listens."""
    deadline = time.monotonic() + STARTED_WITHIN
    while process.poll() is None and time.monotonic() < deadline:
        with socket.socket(socket.AF_UNIX) as sock:
            if sock.connect_ex(os.fspath(path)) == 0:
                return
        time.sleep(0.01)
    raise SystemExit("QEMU did not start")


def show(costs: dict[str, Costs]) -> None:
    """Print all costs, and their ratios to qemu.qmp's."""
    base = costs["qemu.qmp"]
    print(f"{COMMAND:15}{'CPU':>9}{'ratio':>18}{'latency':>12}{'ratio':>18}")
    for name, seen in costs.items():
        print(
            f"{name:15}{median(seen.cpu) * 1e6:6.1f} µs{compare(seen.cpu, base.cpu)}"
            f"{median(seen.latency) * 1e6:9.1f} µs"
            f"{compare(seen.latency, base.latency)}"
        )


def compare(costs: list[float], base: list[float]) -> str:
    """Return the median of the rounds' ratios, and the range of the middle half."""
    ratios = [cost / other for cost, other in zip(costs, base, strict=True)]
    low, middle, high = quantiles(ratios, n=4)
    return f"{middle:7.2f} {low:.2f}-{high:.2f}"


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--commands", type=int, default=300, help="in each round")
    parser.add_argument("--qemu", default="qemu-system-x86_64", metavar="PROGRAM")
    options = parser.parse_args()
    costs = {name: Costs() for name in CLIENTS}
    with run_qemu(options.qemu) as path:
        turn = deque(CLIENTS)
        for _ in range(options.rounds):
            for name in turn:
                CLIENTS[name](path, options.commands, costs[name])
            turn.rotate()
    show(costs)


if __name__ == "__main__":
    main()
