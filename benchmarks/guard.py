"""Does a reclaim harm the guest? Reclaims from real guests while they allocate memory.

Guests of several sizes, kernels and workloads are booted one after the other, and
memory is reclaimed from each while its workload runs. The table shows how the reclaim
ended, the least memory that the guest had available, the longest time that it was
below its headroom without allocating, and the OOM kills and panics, of which there
must be none.

::

    python benchmarks/guard.py --kernels 6.1 6.12 --memory 512M 1G 2G

Exit status 1 if any guest was harmed.
"""

from __future__ import annotations

import argparse
import math
import sys
from typing import TYPE_CHECKING, Final, TypeAlias

import trio
from attrs import define, field, frozen

from qmpballoon import Guard, MiB, ReclaimReport, Sample, open_balloon
from qmpballoon.sizes import format_size, parse_size
from qmpballoon.testing import lab

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

# Seconds below the headroom that count as harm: twice the shortest interval at which
# QEMU asks for statistics by itself.
_LONGEST_BELOW: Final = 2.0
_BURST: Final = 0.35  # of the guest's memory
_STEP: Final = 0.04  # of the guest's memory
_STEPS: Final = 8
_CYCLES: Final = 3  # of allocating and freeing


@define
class Hog:
    """Allocates memory in a guest, and notes when.

    Attributes:
        guest: The guest.
        memory: Its memory in bytes.
        half_way: Set when half of what can be reclaimed was handed over.
        spans: Start and end of each allocation, in seconds of trio's clock.
    """

    guest: lab.Guest
    memory: int
    half_way: trio.Event = field(factory=trio.Event)
    spans: list[tuple[float, float]] = field(factory=list[tuple[float, float]])

    async def allocate(self, share: float) -> None:
        """Allocate a share of the guest's memory."""
        began = trio.current_time()
        self.spans.append((began, math.inf))
        await self.guest.hog(int(self.memory * share))
        self.spans[-1] = (began, trio.current_time())


Workload: TypeAlias = "Callable[[Hog], Awaitable[None]]"


async def idle(hog: Hog) -> None:
    """Do nothing."""


async def static(hog: Hog) -> None:
    """Do nothing, with a good part of the memory in use from the start."""


async def burst_at_start(hog: Hog) -> None:
    """Allocate a good part of the memory as soon as the balloon moves."""
    await hog.allocate(_BURST)


async def burst_half_way(hog: Hog) -> None:
    """Allocate it when half of what can be reclaimed was handed over."""
    await hog.half_way.wait()
    await hog.allocate(_BURST)


async def growing(hog: Hog) -> None:
    """Allocate it step by step."""
    for _ in range(_STEPS):
        await hog.allocate(_STEP)


async def sawtooth(hog: Hog) -> None:
    """Allocate and free, again and again."""
    for _ in range(_CYCLES):
        await hog.allocate(_BURST / 2)
        await hog.guest.release()


WORKLOADS: Final = (idle, static, burst_at_start, burst_half_way, growing, sawtooth)


@frozen
class Case:
    """One guest and what happens to it."""

    kernel: str
    qemu: str | None
    memory: int
    workload: Workload


@frozen
class Verdict:
    """How the reclaim from a guest ended, and whether it did harm."""

    report: ReclaimReport
    start: float  # by trio's clock
    spans: Sequence[tuple[float, float]]
    oom_kills: int
    panic: bool

    @property
    def lowest(self) -> int:
        """The least memory the guest had available, in bytes."""
        return min(sample.available or 0 for sample in self.report.timeline)

    def longest_below(self, headroom: int) -> float:
        """Return the longest time below the headroom without allocating, in seconds."""
        longest, since = 0.0, None
        # The guard counts this as the headroom, too.
        enough = headroom - max(4 * MiB, headroom // 16)
        for sample in self.report.timeline:
            now = self.start + sample.t
            busy = any(began <= now <= ended for began, ended in self.spans)
            if busy or (sample.available or 0) >= enough:
                since = None
                continue
            since = sample.t if since is None else since
            longest = max(longest, sample.t - since)
        return longest


async def run(case: Case) -> Verdict:
    """Reclaim from one guest while its workload runs."""
    in_use = int(case.memory * _BURST) if case.workload is static else 0
    async with (
        lab.boot(
            memory=case.memory,
            cache=(case.memory - in_use) // 2,
            hog=in_use,
            kernel=case.kernel,
            qemu=case.qemu,
        ) as guest,
        open_balloon(guest.socket) as balloon,
        trio.open_nursery() as nursery,
    ):
        hog, starts = Hog(guest, case.memory), list[float]()

        def on_progress(sample: Sample) -> None:
            starts.append(trio.current_time() - sample.t)
            if sample.actual < case.memory * 0.6:
                hog.half_way.set()

        nursery.start_soon(case.workload, hog)
        report = await balloon.reclaim(guard=Guard(), on_progress=on_progress)
        hog.half_way.set()
        panic = "Kernel panic" in guest.console
        kills = 0 if panic else await guest.oom_kills()
        nursery.cancel_scope.cancel()
    return Verdict(report, starts[0], hog.spans, kills, panic)


def combine_cases(options: argparse.Namespace) -> Iterator[Case]:
    """Yield each combination of kernel, memory and workload."""
    for kernel in options.kernels:
        for memory in options.memory:
            for workload in WORKLOADS:
                yield Case(kernel, options.qemu, memory, workload)


async def main(options: argparse.Namespace) -> int:
    """Run all cases and print the table; return the exit status."""
    harmed = 0
    print(
        f"{'kernel':8} {'memory':>8} {'workload':16} {'outcome':8} {'taken':>9}"
        f" {'seconds':>8} {'lowest':>10} {'below':>7} {'oom':>4} {'panic':>6}"
    )
    for case in combine_cases(options):
        verdict = await run(case)
        below = verdict.longest_below(Guard().compute_limits(case.memory).headroom)
        bad = verdict.oom_kills > 0 or verdict.panic or below > _LONGEST_BELOW
        harmed += bad
        report = verdict.report
        print(
            f"{case.kernel:8} {format_size(case.memory):>8}"
            f" {case.workload.__name__:16} {report.outcome:8}"
            f" {format_size(report.handed_over):>9} {report.seconds:8.1f}"
            f" {format_size(verdict.lowest):>10} {below:6.2f}s {verdict.oom_kills:4}"
            f" {verdict.panic!s:>6}{'  <- HARMED' if bad else ''}",
            flush=True,
        )
    print(f"{harmed} guests harmed")
    return 1 if harmed else 0


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kernels", nargs="+", default=["6.1"])
    parser.add_argument("--memory", nargs="+", type=parse_size, default=[1024 * MiB])
    parser.add_argument("--qemu", help="a path or a version")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(trio.run(main, parse_arguments()))
