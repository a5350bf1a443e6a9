"""Does the process leak? Resizes real guests up and down for as long as you like.

Guests of several sizes are booted. Each is resized again and again, while a sampler
watches it on the same connection; every tenth round uses a new connection. At the end
of each round, when no resize is running, the file descriptors and the tasks of this
process are counted, and its memory is read.

::

    python benchmarks/soak.py --minutes 20

The exit status is 1 if there are more descriptors or tasks, or more than :data:`SLACK`
more memory, in the last quarter of the rounds than in the second. The first quarter is
not counted: caches fill up in it.
"""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Final

import trio
from attrs import frozen

from qmpballoon import MiB, open_balloon
from qmpballoon.sizes import format_size, parse_size
from qmpballoon.testing import lab

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qmpballoon import Balloon

SLACK: Final = MiB  # the allocator's own variation
ROUNDS: Final = 8  # at least: two in each quarter
RECONNECT: Final = 10  # rounds
PRINT_INTERVAL: Final = 60.0  # seconds between two lines
SHARES: Final = (0.7, 0.9, 0.8, 1.0)  # of a guest's memory, in turn


@frozen
class Reading:
    """What this process holds at the end of a round."""

    seconds: float
    descriptors: int
    tasks: int
    resident: int

    @classmethod
    def take(cls, start: float) -> Reading:
        """Count and read it now."""
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        return cls(
            seconds=trio.current_time() - start,
            descriptors=len(os.listdir("/proc/self/fd")),  # noqa: PTH208 - counted
            tasks=trio.lowlevel.current_statistics().tasks_living,
            resident=pages * os.sysconf("SC_PAGESIZE"),
        )

    def __str__(self) -> str:
        return (
            f"{self.seconds:7.0f} s {self.descriptors:5} descriptors"
            f" {self.tasks:4} tasks {self.resident / MiB:8.2f} MiB"
        )


def describe_growth(readings: Sequence[Reading]) -> list[str]:
    """Say what has grown from the second quarter of the readings to the last."""
    quarter = len(readings) // 4
    early, late = readings[quarter : 2 * quarter], readings[-quarter:]
    found = [
        f"{name}: {before} at most, then {after}"
        for name in ("descriptors", "tasks")
        if (after := max(getattr(reading, name) for reading in late))
        > (before := max(getattr(reading, name) for reading in early))
    ]
    before = median(reading.resident for reading in early)
    after = median(reading.resident for reading in late)
    if after > before + SLACK:
        found.append(f"memory: {format_size(int(after - before))} more")
    return found


async def resize(balloon: Balloon, memory: int, turn: int) -> None:
    """Resize a guest once; raise an error if the target is not reached."""
    target = int(memory * SHARES[turn % len(SHARES)])
    await balloon.resize(target, timeout=120)


async def watch(balloon: Balloon) -> None:
    """Sample a guest for ever, as ``watch`` does."""
    async with balloon.sampler() as sampler:
        while True:
            await sampler.take()
            await trio.sleep(0.5)


async def drive(guest: lab.Guest, held: Balloon, memory: int, turn: int) -> None:
    """Do one round with one guest."""
    if turn % RECONNECT:
        await resize(held, memory, turn)
    else:
        async with open_balloon(guest.second_socket) as fresh:
            await resize(fresh, memory, turn)


async def soak(memories: Sequence[int], minutes: float) -> list[Reading]:
    """Resize the guests until the time is over."""
    readings: list[Reading] = []
    async with AsyncExitStack() as stack:
        guests: list[tuple[lab.Guest, Balloon, int]] = []
        for memory in memories:
            guest = await stack.enter_async_context(
                lab.boot(memory=memory, cache=memory // 4)
            )
            balloon = await stack.enter_async_context(open_balloon(guest.socket))
            guests.append((guest, balloon, memory))
        async with trio.open_nursery() as watching:
            for _, balloon, _ in guests:
                watching.start_soon(watch, balloon)
            start, printed = trio.current_time(), 0.0
            while len(readings) < ROUNDS or trio.current_time() - start < minutes * 60:
                async with trio.open_nursery() as nursery:
                    for guest, balloon, memory in guests:
                        nursery.start_soon(drive, guest, balloon, memory, len(readings))
                readings.append(Reading.take(start))
                if readings[-1].seconds >= printed:
                    printed += PRINT_INTERVAL
                    print(readings[-1], flush=True)
            watching.cancel_scope.cancel()
    return readings


def main(arguments: argparse.Namespace) -> int:
    """Run the test, print its result, and return the exit status."""
    readings = trio.run(soak, arguments.memory, arguments.minutes)
    print(readings[-1])
    print(f"{len(readings)} rounds with {len(arguments.memory)} guests")
    found = describe_growth(readings)
    print("; ".join(found) or "nothing grew")
    return 1 if found else 0


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument(
        "--memory",
        nargs="+",
        type=parse_size,
        default=[256 * MiB, 384 * MiB, 512 * MiB],
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main(parse_arguments()))
