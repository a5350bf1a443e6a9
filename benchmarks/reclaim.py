"""The cost of the guard: a guarded reclaim compared with one bare ``balloon`` command.

Boots a real guest for each size. In turns it reclaims from the guest under the guard,
and brings it to the same size with one ``balloon`` command, looking every few
milliseconds. Each time the idle guest starts with its full size and the same page
cache. The benchmark prints how long each way took to reach that size, and the ratio.

::

    python benchmarks/reclaim.py --memory 2G 4G --runs 3
"""

from __future__ import annotations

import argparse
import statistics
from typing import TYPE_CHECKING, Final

import trio

from qmpballoon import Balloon, MiB, open_balloon
from qmpballoon.sizes import format_size, parse_size
from qmpballoon.testing import lab

if TYPE_CHECKING:
    from collections.abc import Sequence

_CACHE: Final = 0.7  # of the guest's memory
# Seconds between two polls. Each takes CPU time from QEMU, and so, under TCG, from the
# guest.
_LOOK: Final = 0.005


async def fill(guest: lab.Guest, balloon: Balloon, memory: int) -> None:
    """Bring the guest to its full size, and fill its page cache anew."""
    await balloon.resize(memory)
    await guest.drop_cache()
    await guest.fill_cache(int(memory * _CACHE))


async def reclaim_guarded(balloon: Balloon) -> tuple[float, int]:
    """Reclaim and hold; return the seconds it took, and the size reached."""
    start = trio.current_time()
    report = await balloon.reclaim(hold=True)
    return trio.current_time() - start, report.after.actual


async def inflate_bare(balloon: Balloon, size: int) -> float:
    """Set the target to the size; return the seconds until it is reached."""
    start = trio.current_time()
    await balloon.set_target(size)
    while await balloon.actual() > size + MiB:  # noqa: ASYNC110 - QEMU has to be asked
        await trio.sleep(_LOOK)
    return trio.current_time() - start


async def compare(memory: int, runs: int) -> None:
    """Measure both ways on one guest, in turn, and print the figures."""
    async with lab.boot(memory=memory) as guest, open_balloon(guest.socket) as balloon:
        ratios: list[float] = []
        for _ in range(runs):
            await fill(guest, balloon, memory)
            with_guard, size = await reclaim_guarded(balloon)
            await fill(guest, balloon, memory)
            without = await inflate_bare(balloon, size)
            ratios.append(with_guard / without)
            print(
                f"{format_size(memory):>8} -> {format_size(size):>9}"
                f"  bare {without:5.2f} s  guarded {with_guard:5.2f} s"
                f"  ratio {ratios[-1]:.2f}"
            )
        print(
            f"{format_size(memory):>8}     median ratio {statistics.median(ratios):.2f}"
        )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run it for each size."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--memory", nargs="+", type=parse_size, default=[2 << 30])
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args(arguments)
    for memory in options.memory:
        trio.run(compare, memory, options.runs)


if __name__ == "__main__":
    main()
