"""A thousand monitors at once: qmpballoon compared with qemu.qmp.

Fake QEMUs in other processes answer. Every second the client makes a sweep: it asks
each VM for its balloon's size and its statistics. The benchmark prints the CPU time of
a sweep and the memory of a connection, and ratios with the middle half of the rounds.
In each round the clients take turns, each in a process of its own, so that neither can
reuse the other's memory.

    python benchmarks/many.py 1000 [5000] [--sweeps N] [--rounds N]
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import resource
import tempfile
import time
from contextlib import AsyncExitStack
from statistics import median
from typing import TYPE_CHECKING

import trio
from attrs import frozen
from fleet_size import read_resident, serve
from monitor import compare
from qemu.qmp import QMPClient

from qmpballoon.trio import TrioMonitor, open_monitor

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from typing import TypeAlias

    Result: TypeAlias = "list[float]"

PATH = "/machine/peripheral/b"
STATS = {"path": PATH, "property": "guest-stats"}
PERIOD = 1.0
FAKES = 2  # processes


@frozen
class Costs:
    """A client's costs: CPU seconds for a sweep, and bytes for a connection."""

    cpu: float
    memory: float


def sweep_with_ours(paths: list[str], sweeps: int, result: Connection) -> None:
    """Sweep with qmpballoon."""

    async def look(monitor: TrioMonitor) -> None:
        await monitor.execute("query-balloon")
        await monitor.execute("qom-get", STATS)

    async def run() -> Costs:
        async with AsyncExitStack() as stack:
            before = read_resident()
            monitors = [
                await stack.enter_async_context(open_monitor(path, timeout=60))
                for path in paths
            ]
            memory = (read_resident() - before) / len(paths)
            times: list[float] = []
            for _ in range(sweeps):
                cpu, start = time.process_time(), trio.current_time()
                async with trio.open_nursery() as nursery:
                    for monitor in monitors:
                        nursery.start_soon(look, monitor)
                times.append(time.process_time() - cpu)
                await trio.sleep_until(start + PERIOD)
            return Costs(median(times), memory)

    result.send(trio.run(run))


def sweep_with_qemu_qmp(paths: list[str], sweeps: int, result: Connection) -> None:
    """Sweep with qemu.qmp."""

    async def look(client: QMPClient) -> None:
        await client.execute("query-balloon")
        await client.execute("qom-get", STATS)

    async def run() -> Costs:
        before = read_resident()
        clients = [QMPClient() for _ in paths]
        for client, path in zip(clients, paths, strict=True):
            await client.connect(path)
        memory = (read_resident() - before) / len(paths)
        times: list[float] = []
        for _ in range(sweeps):
            cpu, start = time.process_time(), time.monotonic()
            await asyncio.gather(*map(look, clients))
            times.append(time.process_time() - cpu)
            await asyncio.sleep(max(0.0, start + PERIOD - time.monotonic()))
        for client in clients:
            await client.disconnect()
        return Costs(median(times), memory)

    result.send(asyncio.run(run()))


def measure(count: int, sweeps: int, rounds: int) -> dict[str, list[Costs]]:
    """Measure both clients in turn on the same fakes."""
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        paths = [f"{folder}/{number}" for number in range(count)]
        fakes, costs = [], dict[str, list[Costs]]()
        for number in range(FAKES):
            ready = spawn.Event()
            fakes.append(
                spawn.Process(
                    target=serve, args=(paths[number::FAKES], ready), daemon=True
                )
            )
            fakes[-1].start()
            ready.wait()
        clients = {"qmpballoon": sweep_with_ours, "qemu.qmp": sweep_with_qemu_qmp}
        for name, client in list(clients.items()) * rounds:
            here, there = spawn.Pipe()
            process = spawn.Process(target=client, args=(paths, sweeps, there))
            process.start()
            costs.setdefault(name, []).append(here.recv())
            process.join()
        for fake in fakes:
            fake.kill()
            fake.join()
    return costs


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("sizes", type=int, nargs="*", default=[1000])
    parser.add_argument("--sweeps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    for count in options.sizes:
        costs = measure(count, options.sweeps, options.rounds)
        base = costs["qemu.qmp"]
        for name, seen in costs.items():
            times, sizes = [each.cpu for each in seen], [each.memory for each in seen]
            print(
                f"{count:5} {name:12} {median(times) / count * 1e6:6.1f} µs a VM, ratio"
                f" {compare(times, [each.cpu for each in base])};"
                f" {median(sizes) / 1024:5.1f} KiB a connection, ratio"
                f" {compare(sizes, [each.memory for each in base])}",
                flush=True,
            )


if __name__ == "__main__":
    main()
