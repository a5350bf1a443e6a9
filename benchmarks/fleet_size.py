"""The cost of supervising many VMs: fake QEMUs in other processes, and one supervisor.

Every fake answers on a unix socket of its own. So the supervisor does what it does with
real VMs: it connects, polls each VM every second, and makes a plan every second. For
each size of the fleet the benchmark prints the share of one core that the supervisor
takes (the median of some rounds, and the middle half of them), the longest delay of a
poll beyond its second, how long the page of metrics takes, the supervisor's memory, and
how much of that each VM takes.

Each VM has a process, whose memory and processor time the supervisor reads. Guests are
``busy``, so that each is polled every second, or ``idle``.

::

    python benchmarks/fleet_size.py 10 100 1000 [--guests idle]

The fakes need more CPU time than the supervisor. They share the other cores.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import median, quantiles
from typing import TYPE_CHECKING, Final

import trio
from attrs import frozen
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest

from qmpballoon.fleet.control_loop import run_control_loop
from qmpballoon.fleet.host_memory import HostMemory
from qmpballoon.fleet.metrics import FleetCollector, FleetSnapshot
from qmpballoon.fleet.openers import raise_descriptor_limit
from qmpballoon.fleet.policy import Rules
from qmpballoon.fleet.sources import make_source
from qmpballoon.fleet.supervisor import open_fleet
from qmpballoon.fleet.vm_task import Settings
from qmpballoon.qmp import Connection, Failure, Greeting, Request, Return, Role, Version
from qmpballoon.sizes import GiB, MiB
from qmpballoon.trio import open_monitor

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator
    from multiprocessing.synchronize import Event

    from qmpballoon.address import Vm
    from qmpballoon.fleet.openers import Opener
    from qmpballoon.fleet.supervisor import Supervisor
    from qmpballoon.trio import TrioMonitor

PERIOD: Final = 1.0
ROUNDS: Final = 5
WARM_UP: Final = 60.0  # seconds in which all must have connected
CALM: Final = 10.0  # seconds between that and the measurement: all moves are made
STATS: Final = {
    "stat-total-memory": 2 * GiB,
    "stat-free-memory": 100 * MiB,
    "stat-available-memory": GiB,
    "stat-disk-caches": GiB,
    "stat-swap-in": 0,
    "stat-swap-out": 0,
    "stat-major-faults": 1000,
    "stat-minor-faults": 100_000,
    "stat-htlb-pgalloc": 0,
    "stat-htlb-pgfail": 0,
}
# What QEMU says of a disk, so that as much is decoded as of a real one.
READS: Final = {
    f"{what}_{unit}": 1_000_000
    for what in ("rd", "wr", "flush", "unmap", "zone_append")
    for unit in ("bytes", "operations", "merged", "total_time_ns")
} | {
    "invalid_rd_operations": 0,
    "failed_rd_operations": 0,
    "account_invalid": True,
    "account_failed": True,
    "idle_time_ns": 1_000_000_000,
    "wr_highest_offset": 1_000_000_000,
    "timed_stats": [],
}


def answer(request: Request, size: int) -> object:  # noqa: PLR0911 - one a command
    """Return the answer of a healthy VM of so many bytes to a supervisor's request."""
    match request.command, request.arguments.get("property"):
        case "qom-get", "guest-stats":
            return {"stats": STATS, "last-update": int(time.time())}
        case "qom-get", _:
            return 1
        case "query-balloon", _:
            return {"actual": size}
        case "query-memory-size-summary", _:
            return {"base-memory": 2 * GiB, "plugged-memory": 0}
        case "query-blockstats", _:
            return [{"node-name": "disk0", "qdev": "/machine/disk", "stats": READS}]
        case "qom-list", _:
            return [{"name": "b", "type": "child<virtio-balloon-pci>"}]
        case _:
            return {}


def reply_to(request: Request, size: int) -> Return | Failure:
    """Return a QEMU 10.0's reply, to which no monitors can be added."""
    if request.command == "object-add":
        what = "Parameter 'qom-type' does not accept value 'monitor-qmp'"
        return Failure("GenericError", what, request.id)
    return Return(answer(request, size), request.id)


async def serve_client(stream: trio.SocketStream) -> None:
    """Serve one VM's monitor."""
    connection, size = Connection(Role.SERVER), 2 * GiB
    # A client that had to wait for too long may have left.
    with suppress(trio.BrokenResourceError):
        await stream.send_all(connection.send_greeting(Greeting(Version(10, 0, 0), ())))
        async for data in stream:
            connection.receive_data(bytes(data))
            replies = b""
            while isinstance(request := connection.next_message(), Request):
                if request.command == "balloon":  # it has that size at once
                    size = int(str(request.arguments["value"]))
                replies += connection.send_reply(reply_to(request, size))
            await stream.send_all(replies)


def serve(paths: list[str], ready: Event) -> None:
    """Serve many VMs' monitors, in a process of their own, until killed."""

    async def listen() -> None:
        async with trio.open_nursery() as nursery:
            for path in paths:
                sock = trio.socket.socket(trio.socket.AF_UNIX)
                await sock.bind(path)
                sock.listen()
                listener = trio.SocketListener(sock)
                nursery.start_soon(trio.serve_listeners, serve_client, [listener])
            ready.set()

    trio.run(listen)


@frozen
class Figures:
    """The cost of one size of the fleet.

    Attributes:
        vms: How many there were.
        cpu: The share of one core in each round, 0 to 1.
        latest: The longest delay of a poll beyond the period, in seconds.
        scrape: Seconds for a page of metrics.
        memory: Bytes that the supervising process holds.
    """

    vms: int
    cpu: list[float]
    latest: float
    scrape: float
    memory: int


def make_opener(pids: dict[str, int], *, busy: bool) -> Opener:
    """Return what opens VMs' monitors, and tells which processes they have."""

    @asynccontextmanager
    async def open_vm(
        vm: Vm, /, *, timeout: float, command_timeout: float
    ) -> AsyncGenerator[TrioMonitor]:
        async with open_monitor(
            str(vm), timeout=timeout, command_timeout=command_timeout, own="auto"
        ) as monitor:
            monitor.pid = pids[str(vm)]
            if busy:
                # It has run ever since.
                monitor.processor_time = time.monotonic  # type: ignore[method-assign]
            yield monitor

    return open_vm


async def measure(
    pattern: str, pids: dict[str, int], seconds: float, *, busy: bool
) -> Figures:
    """Supervise the VMs, and measure the cost."""
    count = len(pids)
    memory = HostMemory(limit=2 * count * GiB)
    rules = Rules(reserve=256 * MiB, buffer=64 * MiB)
    latest = 0.0

    async def watch(fleet: Supervisor) -> None:
        """Note the longest delay of a poll, many times a second."""
        nonlocal latest
        while True:
            await trio.sleep(0.1)
            latest = max(latest, fleet.poll_delay)

    async with (
        open_fleet(
            make_source([pattern]),
            random.Random(0),  # noqa: S311 - spreads the polls
            settings=Settings(period=PERIOD),
            opener=make_opener(pids, busy=busy),
        ) as fleet,
        trio.open_nursery() as nursery,
    ):
        healthy = 0
        with trio.move_on_after(WARM_UP):
            while healthy < count:
                await trio.sleep(1)
                healthy = sum(view.state == "healthy" for view in fleet.list_views())
        if healthy < count:
            raise SystemExit(f"only {healthy} of {count} VMs are healthy")
        nursery.start_soon(partial(run_control_loop, fleet, memory.read, rules))
        await trio.sleep(CALM)
        nursery.start_soon(watch, fleet)
        shares: list[float] = []
        for _ in range(ROUNDS):
            cpu = time.process_time()
            await trio.sleep(seconds / ROUNDS)
            shares.append((time.process_time() - cpu) / seconds * ROUNDS)
        nursery.cancel_scope.cancel()
        held = read_resident()
        return Figures(count, shares, latest, scrape(fleet, memory, rules), held)


def scrape(fleet: Supervisor, memory: HostMemory, rules: Rules) -> float:
    """Return the seconds that a page of metrics takes, as a median of three."""
    registry = CollectorRegistry()
    registry.register(
        FleetCollector(lambda: FleetSnapshot(memory.read(), rules, fleet.list_views()))
    )
    times: list[float] = []
    for _ in range(3):
        start = time.perf_counter()
        generate_latest(registry)
        times.append(time.perf_counter() - start)
    return median(times)


def read_resident() -> int:
    """Return this process' resident memory, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return 0


@contextmanager
def start_processes(paths: list[str]) -> Generator[dict[str, int]]:
    """Yield a process for each VM, that does nothing."""
    pids = {
        path: os.posix_spawnp("sleep", ["sleep", "infinity"], os.environ)
        for path in paths
    }
    try:
        yield pids
    finally:
        for pid in pids.values():
            os.kill(pid, 9)
            os.waitpid(pid, 0)


def run_apart(count: int, seconds: float, *, busy: bool) -> Figures:
    """Measure in a process of its own, so that its memory is this fleet's alone."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(run, count, seconds, busy=busy).result()


def run(count: int, seconds: float, *, busy: bool) -> Figures:
    """Serve ``count`` VMs in other processes, and supervise them."""
    with serve_apart(count) as pids:
        pattern = str(Path(next(iter(pids))).parent / "*.qmp")
        return trio.run(partial(measure, pattern, pids, seconds, busy=busy))


@contextmanager
def serve_apart(count: int) -> Generator[dict[str, int]]:
    """Serve VMs in other processes; yield the process that each has, by its socket."""
    raise_descriptor_limit()
    with tempfile.TemporaryDirectory() as folder:
        paths = [f"{folder}/{number}.qmp" for number in range(count)]
        share = -(-count // 4)
        ready, processes = [], []
        for start in range(0, count, share):
            ready.append(multiprocessing.Event())
            process = multiprocessing.Process(
                target=serve,
                args=(paths[start : start + share], ready[-1]),
            )
            process.start()
            processes.append(process)
        for event in ready:
            event.wait()
        try:
            with start_processes(paths) as pids:
                yield pids
        finally:
            for process in processes:
                process.kill()
                process.join()


def main() -> None:
    """Print a line for each size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sizes", type=int, nargs="*", default=[10, 100, 1000])
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--guests", choices=["busy", "idle"])
    arguments = parser.parse_args()
    print("VMs    guests core                     late    scrape  memory   a VM")
    for kind in [arguments.guests] if arguments.guests else ["busy", "idle"]:
        first: Figures | None = None
        for count in arguments.sizes:
            seen = run_apart(count, arguments.seconds, busy=kind == "busy")
            print_figures(kind, seen, first)
            first = first or seen


def print_figures(kind: str, seen: Figures, first: Figures | None) -> None:
    """Print a line; what a VM takes is beyond what a smaller fleet takes."""
    low, middle, high = quantiles(seen.cpu, n=4)
    each = ""
    if first is not None and seen.vms > first.vms:
        more = (seen.memory - first.memory) / (seen.vms - first.vms)
        each = f"{more / 1024:5.1f} KiB"
    print(
        f"{seen.vms:<6} {kind:<6} {middle:6.1%} ({low:6.1%} to {high:6.1%})"
        f"  {seen.latest:5.2f} s {seen.scrape:5.2f} s"
        f" {seen.memory / MiB:4.0f} MiB {each}",
        flush=True,
    )


if __name__ == "__main__":
    main()
