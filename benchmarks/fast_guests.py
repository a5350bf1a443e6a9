"""Guests that hand memory over fast: a guarded reclaim and one bare ``balloon``.

Simulated guests of several sizes hand over between 0.1 and 20 GiB a second: those of a
host without KVM do less than 1, those on huge pages more than 10. Nothing runs in them,
and their page cache is cold. The benchmark prints how much longer the guarded reclaim
takes to reach the size that it ends with than one ``balloon`` to that size. On the
simulated clock, QEMU answers at once; what remains is what the guard waits for.

    python benchmarks/fast_guests.py [--memory SIZE...] [--rate SIZE...]
"""

from __future__ import annotations

import argparse
import random
from typing import TYPE_CHECKING, Final

import trio

from qmpballoon import open_balloon
from qmpballoon.sizes import MiB, format_size, parse_size
from qmpballoon.testing import GuestConfig, Machine, MachineConfig, run_world

if TYPE_CHECKING:
    from qmpballoon.testing import FakeQemu

_MEMORY: Final = ("512M", "4G", "64G", "1T")
_RATES: Final = ("100M", "512M", "2G", "5G", "20G")  # a second
_USED: Final = 8  # a part of its memory
_CACHE: Final = 0.75
# How often the guest is looked at, and when it is late: parts of the time that it would
# take for all of its memory.
_LOOK: Final = 0.0001
_LATE: Final = 10


def make_machine(memory: int, rate: int) -> Machine:
    """Return a VM whose idle guest hands over so many bytes a second."""
    guest = GuestConfig(
        used=memory // _USED,
        cache=int(memory * _CACHE),
        inflate_rate=rate,
        reclaim_rate=rate,
        deflate_rate=rate,
    )
    return Machine(
        MachineConfig(memory=memory, guest=guest),
        rng=random.Random(0),  # noqa: S311 - a seed
    )


def measure_guarded(memory: int, rate: int) -> tuple[int, float, int]:
    """Return the size that is reached, the seconds until then, and the samples."""
    seen: list[tuple[float, int]] = []

    async def run(fake: FakeQemu) -> None:
        async with open_balloon(fake.connect(), wall_clock=fake.wall_clock) as balloon:
            report = await balloon.reclaim(hold=True)
            seen.extend((each.t, each.actual) for each in report.timeline)

    run_world(run, make_machine(memory, rate), limit=_LATE * memory / rate + 60)
    size = seen[-1][1]
    # The rest is watching the guest where it is.
    return size, next(t for t, actual in seen if actual <= size + MiB), len(seen)


def measure_bare(memory: int, rate: int, size: int) -> float:
    """Return the seconds that one ``balloon`` to that size takes."""
    took: list[float] = []

    async def run(fake: FakeQemu) -> None:
        async with open_balloon(fake.connect(), wall_clock=fake.wall_clock) as balloon:
            began = trio.current_time()
            await balloon.set_target(size)
            while await balloon.actual() > size + MiB:  # noqa: ASYNC110 - it is asked
                await trio.sleep(_LOOK * memory / rate)
            took.append(trio.current_time() - began)

    run_world(run, make_machine(memory, rate), limit=_LATE * memory / rate + 60)
    return took[0]


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--memory", nargs="*", default=_MEMORY, metavar="SIZE")
    parser.add_argument("--rate", nargs="*", default=_RATES, metavar="SIZE")
    options = parser.parse_args()
    rates = [parse_size(rate) for rate in options.rate]
    print("| memory |", " | ".join(f"{format_size(rate)}/s" for rate in rates), "|")
    print("|---|", "---|" * len(rates), sep="")
    for memory in map(parse_size, options.memory):
        cells: list[str] = []
        for rate in rates:
            size, guarded, samples = measure_guarded(memory, rate)
            bare = measure_bare(memory, rate, size)
            ratio = guarded / bare
            cells.append(f"{ratio:.2f}: {guarded:.2f} s, {samples} samples")
        print(f"| {format_size(memory)} |", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    main()
