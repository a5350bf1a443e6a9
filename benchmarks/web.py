"""The cost of live pages: for the server, for a guest that is moved, for a browser.

::

    python benchmarks/web.py server --vms 100 --seconds 600
    python benchmarks/web.py guest
    python benchmarks/web.py browser --vms 50 --seconds 60

``server`` polls fake VMs whose figures change all the time, once a second, and compares
what it costs to have three readers of the page of all VMs, or of three VMs, with none.
``guest`` moves a real guest (see :mod:`qmpballoon.testing.lab`) with and without a
reader of its page, in turn, and says how long after QEMU's monitor the page shows a
size. ``browser`` opens the pages in Debian's chromium after an hour of samples, and
says how long its frames take, and how much memory it needs.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import socket
import tempfile
import threading
import time
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from itertools import pairwise
from statistics import median
from typing import TYPE_CHECKING, Any, Final

import fleet_size
import trio
from attrs import frozen

from qmpballoon import GiB, MiB, open_monitor
from qmpballoon._transport.http_hosts import KnownHosts
from qmpballoon._transport.listening import listen_on
from qmpballoon.balloon import Sample
from qmpballoon.fleet import Settings, make_source, open_fleet
from qmpballoon.testing import lab
from qmpballoon.web import Access, open_pages

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator
    from multiprocessing.synchronize import Event

    from qmpballoon.fleet import Supervisor
    from qmpballoon.trio import TrioMonitor
    from qmpballoon.web import Board

TOKEN: Final = "the-token-of-a-benchmark-is-no-secret"  # noqa: S105 - so it is
READERS: Final = 3
WARM_UP: Final = 60.0  # seconds in which all must have connected
HOUR: Final = 3600
TAKEN: Final = 400 * MiB
ROUNDS: Final = 12


# Fakes, in processes of their own


def vary() -> None:
    """Change the figures of all guests of a process, ten times a second."""
    while True:
        time.sleep(0.1)
        free = random.randrange(50 * MiB, 150 * MiB)  # noqa: S311 - as good as any
        fleet_size.STATS["stat-free-memory"] = free
        fleet_size.STATS["stat-available-memory"] = GiB - free
        fleet_size.STATS["stat-disk-caches"] = GiB - 2 * free


def serve(paths: list[str], ready: Event) -> None:
    """Serve many VMs, as the benchmark of a fleet's size does."""
    threading.Thread(target=vary, daemon=True).start()
    fleet_size.serve(paths, ready)


@contextmanager
def serving(count: int) -> Iterator[str]:
    """Serve VMs in another process; yield a glob of their sockets."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [f"{folder}/vm{number:03}.qmp" for number in range(count)]
        ready = multiprocessing.Event()
        process = multiprocessing.Process(target=serve, args=(paths, ready))
        process.start()
        ready.wait()
        try:
            yield f"{folder}/*.qmp"
        finally:
            process.kill()
            process.join()


# The pages


@asynccontextmanager
async def open_site(fleet: Supervisor) -> AsyncGenerator[tuple[Board, int]]:
    """Serve the pages of a fleet; yield the board, and the port."""
    access = Access(TOKEN, KnownHosts.of("127.0.0.1"))
    host = {"total": 64 * GiB, "available": 8 * GiB, "reserve": 4 * GiB}
    with listen_on("127.0.0.1", 0) as listener:
        async with open_pages(
            fleet, listener, access, lambda: {"host": host}, allow_changes=True
        ) as board:
            yield board, listener.getsockname()[1]


def connect(port: int, path: str) -> socket.socket:
    """Begin to read a stream."""
    reader = socket.create_connection(("127.0.0.1", port))
    request = f"GET /{path} HTTP/1.1\r\nHost: localhost\r\n"
    reader.sendall(f"{request}Authorization: Bearer {TOKEN}\r\n\r\n".encode())
    return reader


def read(port: int, path: str, received: Any) -> None:  # noqa: ANN401 - a shared number
    """Read a stream for ever, in a process of its own."""
    reader = connect(port, path)
    while data := reader.recv(1 << 20):
        with received.get_lock():
            received.value += len(data)


# What the server needs


async def measure_server(pattern: str, count: int, seconds: float) -> None:
    """Print a line for no readers, for those of all VMs, and for those of one."""
    rng = random.Random(0)  # noqa: S311 - spreads the polls
    async with open_fleet(
        make_source([pattern]), rng, settings=Settings(period=1.0)
    ) as fleet:
        await wait_for_all(fleet, count)
        async with open_site(fleet) as (_, port):
            line = f"{'readers':>12} {'core':>7} {'memory':>18} {'KB/s':>6} {'late':>7}"
            print(line)
            await measure_readers(fleet, "none", port, [], seconds / 10)
            pages = ["events"] * READERS
            await measure_readers(fleet, f"{READERS} of all", port, pages, seconds)
            pages = [f"events?vm=vm{number:03}" for number in range(READERS)]
            await measure_readers(fleet, f"{READERS} of one", port, pages, seconds)


async def wait_for_all(fleet: Supervisor, count: int) -> None:
    """Wait until all VMs are connected."""
    with trio.fail_after(WARM_UP):
        while sum(view.state == "healthy" for view in fleet.list_views()) < count:  # noqa: ASYNC110 - nobody tells
            await trio.sleep(1)


async def measure_readers(
    fleet: Supervisor, name: str, port: int, pages: list[str], seconds: float
) -> None:
    """Print what some readers cost."""
    received = multiprocessing.Value("Q", 0)
    processes = [
        multiprocessing.Process(target=read, args=(port, page, received), daemon=True)
        for page in pages
    ]
    for process in processes:
        process.start()
    await trio.sleep(5)
    before, sent, late = fleet_size.read_resident(), received.value, 0.0
    began, cpu = time.perf_counter(), time.process_time()
    while time.perf_counter() - began < seconds:
        await trio.sleep(0.1)
        late = max(late, fleet.poll_delay)
    took = time.perf_counter() - began
    share = (time.process_time() - cpu) / took
    rate = (received.value - sent) / took / 1000 / max(len(pages), 1)
    memory = f"{before / MiB:.0f} -> {fleet_size.read_resident() / MiB:.0f} MiB"
    print(
        f"{name:>12} {share:>7.1%} {memory:>18} {rate:>6.0f} {late:>5.2f} s", flush=True
    )
    for process in processes:
        process.kill()
        process.join()


# What a guest notices


async def measure_guest() -> None:
    """Move a guest with and without a reader, in turn."""
    with tempfile.TemporaryDirectory() as folder:
        second = f"{folder}/second.qmp"
        extra = ["-qmp", f"unix:{second},server=on,wait=off"]
        async with (
            lab.boot(memory=2 * GiB, cache=GiB, extra=extra) as guest,
            open_fleet(make_source([str(guest.socket)]), random.Random(0)) as fleet,  # noqa: S311 - as above
            open_monitor(second) as monitor,
        ):
            await wait_for_all(fleet, 1)
            (view,) = fleet.list_views()
            with_page, without = list[Move](), list[Move]()
            # The one that comes first has an advantage, or the other one.
            for number in range(2 * ROUNDS):
                if number % 4 in (0, 3):
                    await trio.sleep(2)
                    without.append(await move(fleet, view.name))
                    continue
                async with open_site(fleet) as (_, port):
                    with reading(port, f"events?vm={view.name}"):
                        await trio.sleep(2)
                        with_page.append(await move(fleet, view.name))
            async with open_site(fleet) as (_, port):
                lags = await measure_lags(fleet, view.name, port, monitor)
    print(f"{TAKEN / MiB:.0f} MiB taken and given back, {ROUNDS} times each:")
    print(f"without a reader {describe(without)}")
    print(f"with a reader    {describe(with_page)}")
    late = f"{median(lags):.2f} s after QMP, {max(lags):.2f} s at most"
    print(f"shown {late}, of {len(lags)} sizes")


def describe(moves: list[Move]) -> str:
    """Return the median time, the range, and the median processor time."""
    times, cpu = [move.seconds for move in moves], [move.cpu for move in moves]
    return (
        f"{median(times):.2f} s ({min(times):.2f} to {max(times):.2f}), of which this"
        f" process computed for {median(cpu) * 1000:.0f} ms"
    )


@contextmanager
def reading(port: int, path: str) -> Iterator[None]:
    """Have a process read a stream."""
    received = multiprocessing.Value("Q", 0)
    process = multiprocessing.Process(target=read, args=(port, path, received))
    process.start()
    try:
        yield
    finally:
        process.kill()
        process.join()


async def measure_lags(
    fleet: Supervisor, name: str, port: int, monitor: TrioMonitor
) -> list[float]:
    """Return how much later than QMP a page has shown the sizes of some moves."""
    seen: list[tuple[float, int]] = []
    shown: list[tuple[float, int]] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch, monitor, seen)
        nursery.start_soon(follow, port, name, shown)
        await trio.sleep(2)
        shown.clear()
        for _ in range(ROUNDS):
            await move(fleet, name)
            await trio.sleep(1)
        nursery.cancel_scope.cancel()
    return list_lags(seen, shown)


@frozen
class Move:
    """What it took to take some memory and give it back, in seconds."""

    seconds: float
    cpu: float


async def move(fleet: Supervisor, name: str) -> Move:
    """Take some memory, and give it back."""
    (view,) = fleet.list_views()
    size = view.actual or 0
    began, cpu = time.perf_counter(), time.process_time()
    async with fleet.borrow(name, size - TAKEN) as balloon:
        note = partial(fleet.note_size, name)
        await balloon.resize(size - TAKEN, on_progress=lambda seen: note(seen.actual))
        await balloon.resize(size, on_progress=lambda seen: note(seen.actual))
    return Move(time.perf_counter() - began, time.process_time() - cpu)


async def watch(monitor: TrioMonitor, seen: list[tuple[float, int]]) -> None:
    """Note the guest's size many times a second."""
    while True:
        answer: Any = await monitor.execute("query-balloon")
        seen.append((time.perf_counter(), answer["actual"]))
        await trio.sleep(0.02)


async def follow(port: int, name: str, shown: list[tuple[float, int]]) -> None:
    """Note the last size on the page, whenever it is sent."""
    reader = connect(port, f"events?vm={name}")
    stream = trio.SocketStream(trio.socket.from_stdlib_socket(reader))
    text = ""
    async for data in stream:
        text += data.decode()
        *blocks, text = text.split("\n\n")
        for block in blocks:
            begin = block.find('"actual\\":[')
            if begin < 0:
                continue
            end = block.index("]", begin)
            sizes = json.loads(block[begin + 10 : end + 1])
            shown.append((time.perf_counter(), sizes[-1]))


def list_lags(
    seen: list[tuple[float, int]], shown: list[tuple[float, int]]
) -> list[float]:
    """Return how old each size was when it was shown.

    A size is of the last moment until which QMP has told a larger and a smaller one.
    """
    lags: list[float] = []
    for at, size in shown:
        for (_, before), (then, after) in reversed(list(pairwise(seen))):
            low, high = sorted((before, after))
            if then <= at and low - MiB <= size <= high + MiB:
                lags.append(at - then)
                break
    return lags


# What a browser needs


async def measure_browser(pattern: str, count: int, seconds: float) -> None:
    """Have pages with an hour of samples in a browser, and print what they need."""
    async with open_fleet(make_source([pattern]), random.Random(0)) as fleet:  # noqa: S311 - as above
        await wait_for_all(fleet, count)
        async with open_site(fleet) as (board, port):
            await trio.sleep(2)
            for vm in board.vms.values():
                for t in range(HOUR):
                    size = 2 * GiB - (t % 300) * MiB
                    sample = Sample(
                        float(t), size, size, *[GiB - t * 1024] * 5, t * MiB
                    )
                    vm.history.add(sample)
            await trio.to_thread.run_sync(look, port, seconds)


LOOK: Final = """async (seconds) => {
  const times = [];
  let last = performance.now();
  const end = last + seconds * 1000;
  await new Promise((done) => {
    const frame = (now) => {
      times.push(now - last);
      last = now;
      now < end ? requestAnimationFrame(frame) : done();
    };
    requestAnimationFrame(frame);
  });
  times.sort((a, b) => a - b);
  const at = (share) => times[Math.floor(share * (times.length - 1))];
  return [at(0.5), at(0.99), times.at(-1)];
}"""


def look(port: int, seconds: float) -> None:
    """Open both pages, one after the other, and print what they need."""
    from playwright.sync_api import sync_playwright  # noqa: PLC0415 - only here

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path="/usr/bin/chromium", args=["--no-sandbox"]
        )
        page = browser.new_page()
        page.set_default_timeout(0)
        devtools = page.context.new_cdp_session(page)
        devtools.send("Performance.enable")
        page.goto(f"http://127.0.0.1:{port}/?token={TOKEN}")
        page.wait_for_selector("table.live")
        for name, path in (("all VMs", ""), ("one VM", "vm?name=vm000")):
            began = time.perf_counter()
            page.goto(f"http://127.0.0.1:{port}/{path}")
            page.wait_for_selector("svg.plot")
            first = time.perf_counter() - began
            size = len(page.content())
            heaps = [read_heap(devtools)]
            for _ in range(2):
                frames = page.evaluate(LOOK, seconds / 2)
                heaps.append(read_heap(devtools))
            memory = " -> ".join(f"{heap / MiB:.1f}" for heap in heaps)
            print(
                f"{name}: {size / 1000:.0f} KB, the first chart after"
                f" {first * 1000:.0f} ms; frames {frames[0]:.0f} ms, 99 of 100 within"
                f" {frames[1]:.0f} ms, the longest {frames[2]:.0f} ms; the script's"
                f" memory {memory} MiB",
                flush=True,
            )


def read_heap(devtools: Any) -> float:  # noqa: ANN401 - playwright's
    """Return how many bytes the page's script needs, without garbage."""
    devtools.send("HeapProfiler.collectGarbage")
    told = devtools.send("Performance.getMetrics")["metrics"]
    return next(each["value"] for each in told if each["name"] == "JSHeapUsedSize")


def main() -> None:
    """Measure one of the three."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("server", "guest", "browser"))
    parser.add_argument("--vms", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=60.0)
    arguments = parser.parse_args()
    if arguments.what == "guest":
        trio.run(measure_guest)
        return
    measure = measure_server if arguments.what == "server" else measure_browser
    with serving(arguments.vms) as pattern:
        trio.run(measure, pattern, arguments.vms, arguments.seconds)


if __name__ == "__main__":
    main()
