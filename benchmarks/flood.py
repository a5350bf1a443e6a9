"""How a flood of events affects replies, with a slow reader of events and with none.

A fake QEMU in another process sends two events with each reply, about ten thousand
events a second. The benchmark prints the latencies of the replies, and by how much the
process' memory has grown: medians, and the middle half of the ratios to rounds without
events.

    python benchmarks/flood.py [--events N] [--rounds N]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import socket
import time
from functools import partial
from statistics import median, quantiles
from typing import TYPE_CHECKING

import trio
from fleet_size import read_resident
from monitor import compare

from qmpballoon.trio import open_monitor

if TYPE_CHECKING:
    from qmpballoon.trio import TrioMonitor

GREETING = {"QMP": {"version": {}, "capabilities": []}}
NAMES = ("BALLOON_CHANGE", "BALLOON_CHANGE", "BALLOON_CHANGE", "RTC_CHANGE")
BURST = 2  # events with each reply


def serve(sock: socket.socket, events: int) -> None:
    """Answer every command, and send some events before each reply."""
    sock.sendall(encode(GREETING))
    timestamp = {"seconds": 1, "microseconds": 2}
    sent = -BURST  # none before the reply to qmp_capabilities
    for text in sock.makefile("rb"):
        reply = encode({"return": {"actual": 1}, "id": json.loads(text)["id"]})
        before = b"".join(
            encode(
                {"timestamp": timestamp, "event": NAMES[n % 4], "data": {"actual": n}}
            )
            for n in range(max(sent, 0), min(sent + BURST, events))
        )
        sent += BURST
        sock.sendall(before + reply)


def encode(message: object) -> bytes:
    """Return a message as QEMU writes it."""
    return json.dumps(message).encode() + b"\r\n"


async def ask(monitor: TrioMonitor, times: int) -> list[float]:
    """Ask ``times`` times; return the latencies in seconds."""
    latencies: list[float] = []
    for _ in range(times):
        start = time.perf_counter()
        await monitor.execute("query-balloon")
        latencies.append(time.perf_counter() - start)
    return latencies


async def measure(events: int, *, readers: bool) -> tuple[float, float, int, int]:
    """Return median and 99th percentile of the latencies, bytes grown, and events."""
    ours, theirs = socket.socketpair()
    fake = multiprocessing.get_context("fork").Process(
        target=serve, args=(theirs, events), daemon=True
    )
    fake.start()
    theirs.close()
    read = 0

    async with open_monitor(ours) as monitor, trio.open_nursery() as nursery:
        with monitor.subscribe() as subscription:

            async def slow() -> None:
                nonlocal read
                async for _ in subscription:
                    read += 1
                    await trio.sleep(0.01)

            if readers:
                nursery.start_soon(slow)
            await ask(monitor, 1000)
            before = read_resident()
            latencies = await ask(monitor, (events or 20_000) // BURST)
            grown = read_resident() - before
            lost = sum(subscription.lost.values())
            nursery.cancel_scope.cancel()
    fake.kill()
    fake.join()
    cuts = quantiles(latencies, n=100)
    return cuts[49], cuts[98], grown, lost + read


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--events", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    kinds = {
        "quiet": (0, False),
        "no reader": (options.events, False),
        "slow reader": (options.events, True),
    }
    found: dict[str, list[tuple[float, float, int, int]]] = {name: [] for name in kinds}
    for _ in range(options.rounds):
        for name, (number, readers) in kinds.items():
            found[name].append(trio.run(partial(measure, number, readers=readers)))
    quiet = [high for _, high, _, _ in found["quiet"]]
    for name, seen in found.items():
        middles, highs, grown, events = zip(*seen, strict=True)
        print(
            f"{name:12} median {median(middles) * 1e6:5.0f} µs, 99 % within"
            f" {median(highs) * 1e6:5.0f} µs, ratio {compare(highs, quiet)};"
            f" {max(events)} events, memory {median(grown) / 1024:+.0f} KiB",
            flush=True,
        )


if __name__ == "__main__":
    main()
