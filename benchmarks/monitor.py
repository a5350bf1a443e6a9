"""The cost of one command on each front end, compared with what stands below it.

All clients ask the same QEMU for ``query-balloon``, in turns, in one process. The
ratios count. A machine's speed changes from one second to the next, and the first
client in a round may be at an advantage. So ratios are taken within one round, and the
order changes with every round. The benchmark prints the median of the rounds' ratios
and the range of the middle half. QEMU's own share of the latency is in all of them.

    python benchmarks/monitor.py [--rounds N] [--commands N] [--qemu PROGRAM]

With ``--only CLIENT`` it runs one client alone, for tools that count system calls or
instructions, such as ``strace -c``.
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
from qmpballoon import blocking
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

    def __iter__(self) -> Iterator[list[float]]:
        """Iterate over both."""
        return iter((self.cpu, self.latency))


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


def measure_trio(path: Path, commands: int, costs: Costs) -> None:
    """Measure qmpballoon on trio."""

    async def run() -> None:
        async with open_monitor(path) as monitor:
            meter = Meter()
            for _ in range(commands):
                await monitor.execute(COMMAND)
                meter.tick()
            meter.add_to(costs)

    trio.run(run)


def measure_naive_trio(path: Path, commands: int, costs: Costs) -> None:
    """Measure a trio stream that is written to and read in turns, and nothing else."""

    async def run() -> None:
        async with await trio.open_unix_socket(path) as stream:
            received = bytearray()

            async def read_line() -> bytes:
                while (end := received.find(b"\n")) < 0:
                    received.extend(await stream.receive_some())
                line = received[:end]
                del received[: end + 1]
                return line

            async def execute(command: str) -> object:
                await stream.send_all(json.dumps({"execute": command}).encode())
                return json.loads(await read_line())["return"]

            await read_line()  # the greeting
            await execute("qmp_capabilities")
            meter = Meter()
            for _ in range(commands):
                await execute(COMMAND)
                meter.tick()
            meter.add_to(costs)

    trio.run(run)


def measure_blocking(path: Path, commands: int, costs: Costs) -> None:
    """Measure qmpballoon in blocking code."""
    with blocking.open_monitor(path) as monitor:
        meter = Meter()
        for _ in range(commands):
            monitor.execute(COMMAND)
            meter.tick()
        meter.add_to(costs)


def measure_asyncio(path: Path, commands: int, costs: Costs) -> None:
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


def measure_held_client(path: Path, commands: int, costs: Costs) -> None:
    """Measure qmpballoon over a client of qemu.qmp that somebody holds."""

    async def run() -> None:
        client = QMPClient()
        await client.connect(os.fspath(path))
        monitor = aio.HeldClientMonitor(client)
        meter = Meter()
        for _ in range(commands):
            await monitor.execute(COMMAND)
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
    "bare socket": measure_bare_socket,
    "blocking": measure_blocking,
    "naive trio": measure_naive_trio,
    "trio": measure_trio,
    "qemu.qmp": measure_qemu_qmp,
    "asyncio": measure_asyncio,
    "held client": measure_held_client,
}
# What each front end is compared with.
BASES: dict[str, str] = {
    "blocking": "bare socket",
    "trio": "naive trio",
    "asyncio": "qemu.qmp",
    "held client": "qemu.qmp",
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
    """Print all costs, and the ratios to those of what each is compared with."""
    print(f"| {COMMAND} | CPU | latency | compared with | CPU | latency |")
    print("|---|---|---|---|---|---|")
    for name, seen in costs.items():
        base = BASES.get(name)
        cells = [name, *(f"{median(row) * 1e6:.1f} µs" for row in seen)]
        if base is None:
            cells += ["", "", ""]
        else:
            pairs = zip(seen, costs[base], strict=True)
            cells += [base, *(compare(row, other) for row, other in pairs)]
        print("|", " | ".join(cells), "|")


def compare(costs: list[float], base: list[float]) -> str:
    """Return the median of the rounds' ratios, and the range of the middle half."""
    ratios = [cost / other for cost, other in zip(costs, base, strict=True)]
    low, middle, high = quantiles(ratios, n=4)
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--commands", type=int, default=300, help="in each round")
    parser.add_argument("--qemu", default="qemu-system-x86_64", metavar="PROGRAM")
    parser.add_argument("--only", choices=CLIENTS, metavar="CLIENT")
    options = parser.parse_args()
    costs = {name: Costs() for name in CLIENTS}
    if options.only is not None:
        with run_qemu(options.qemu) as path:
            CLIENTS[options.only](path, options.commands, costs[options.only])
        return
    with run_qemu(options.qemu) as path:
        turn = deque(CLIENTS)
        for _ in range(options.rounds):
            for name in turn:
                CLIENTS[name](path, options.commands, costs[name])
            turn.rotate()
    show(costs)


if __name__ == "__main__":
    main()
