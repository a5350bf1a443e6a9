"""How soon ``resize`` returns after the target is reached, and the CPU time of waiting.

Boots a real guest and resizes it up and down. A process with a second monitor looks at
the balloon every millisecond, and notes when the target was reached. The delay is the
time from then until ``resize`` returns. The cost is this process' CPU time, divided by
the time that the resizes took.

::

    python benchmarks/resize.py --memory 2G --runs 10
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import time
from typing import TYPE_CHECKING

import trio

from qmpballoon import Balloon, open_balloon
from qmpballoon.sizes import parse_size
from qmpballoon.testing import lab

if TYPE_CHECKING:
    from collections.abc import Sequence
    from multiprocessing.connection import Connection

_LOOK = 0.001  # seconds


async def _watch(socket: str, orders: Connection) -> None:
    """Send the time at which each target that is received was reached."""
    async with open_balloon(socket) as balloon:
        orders.send(0.0)
        while (target := await trio.to_thread.run_sync(orders.recv)) is not None:
            arrived = False
            while not arrived:
                arrived = await balloon.actual() == target
                await trio.sleep(0 if arrived else _LOOK)
            orders.send(time.monotonic())


def watch(socket: str, orders: Connection) -> None:
    """Run the process with the second monitor."""
    trio.run(_watch, socket, orders)


async def measure_resize(
    balloon: Balloon, target: int, orders: Connection
) -> list[float]:
    """Resize; return the delay, the CPU time, and the time it took, in seconds."""
    orders.send(target)
    cpu, start = time.process_time(), time.monotonic()
    await balloon.resize(target)
    end, cpu = time.monotonic(), time.process_time() - cpu
    arrived = await trio.to_thread.run_sync(orders.recv)
    return [end - arrived, cpu, end - start]


async def measure(memory: int, runs: int) -> None:
    """Resize up and down, and print the figures."""
    ours, theirs = multiprocessing.Pipe()
    async with lab.boot(memory=memory) as guest, open_balloon(guest.socket) as balloon:
        looker = multiprocessing.get_context("spawn").Process(
            target=watch, args=(str(guest.second_socket), theirs), daemon=True
        )
        looker.start()
        await trio.to_thread.run_sync(ours.recv)
        for name, before, target in (
            ("shrinking", memory, memory // 2),
            ("growing", memory // 2, memory),
        ):
            figures: list[list[float]] = []
            for _ in range(runs):
                await balloon.resize(before)
                figures.append(await measure_resize(balloon, target, ours))
            late, cpu, seconds = zip(*figures, strict=True)
            print(
                f"{name:>9}: returns {statistics.median(late) * 1000:5.1f} ms after"
                f" the target is reached (median; at most {max(late) * 1000:.1f}), with"
                f" {sum(cpu) / sum(seconds):.2%} of a core, in"
                f" {statistics.median(seconds):.2f} s"
            )
        ours.send(None)
        looker.join()


def main(arguments: Sequence[str] | None = None) -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--memory", type=parse_size, default=2 << 30)
    parser.add_argument("--runs", type=int, default=10)
    options = parser.parse_args(arguments)
    trio.run(measure, options.memory, options.runs)


if __name__ == "__main__":
    main()
