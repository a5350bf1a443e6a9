"""Do no harm: reclaim from real guests that come to need their memory.

Boots one guest after another, differing in size, kernel and what allocates in it,
reclaims from each while that goes on, and prints a table: how it ended, how little
the guest had available at worst, how long it was below its headroom at a stretch,
and what it must never show, OOM kills and panics.

::

    python benchmarks/guard.py --kernels 6.1 6.12 --memory 512M 1G 2G

Exit status 1 if any guest was harmed.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Final

import trio
from attrs import frozen

from qmpballoon import Guard, MiB, ReclaimReport, Sample, open_balloon
from qmpballoon.sizes import format_size, parse_size
from qmpballoon.testing import lab

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

_PATIENCE: Final = 2.0  # seconds below the headroom that count as too long
_BURST: Final = 0.35  # of the guest's memory
_STEP: Final = 0.04
_STEPS: Final = 8
_TEETH: Final = 3

Workload = "Callable[[lab.Guest, int, trio.Event], Awaitable[None]]"


async def idle(guest: lab.Guest, memory: int, _half_way: trio.Event) -> None:
    """Do nothing."""


async def static(guest: lab.Guest, memory: int, _half_way: trio.Event) -> None:
    """Do nothing, with a good part of the memory in use from the start."""


async def burst_at_start(guest: lab.Guest, memory: int, _half_way: trio.Event) -> None:
    """Allocate a good part of the memory as soon as the balloon moves."""
    await guest.hog(int(memory * _BURST))


async def burst_half_way(guest: lab.Guest, memory: int, half_way: trio.Event) -> None:
    """Allocate it when half of what can be had was handed over."""
    await half_way.wait()
    await guest.hog(int(memory * _BURST))


async def growing(guest: lab.Guest, memory: int, _half_way: trio.Event) -> None:
    """Allocate it step by step."""
    for _ in range(_STEPS):
        await guest.hog(int(memory * _STEP))


async def sawtooth(guest: lab.Guest, memory: int, _half_way: trio.Event) -> None:
    """Allocate and free, again and again."""
    for _ in range(_TEETH):
        await guest.hog(int(memory * _BURST / 2))
        await guest.release()


WORKLOADS: Final = (idle, static, burst_at_start, burst_half_way, growing, sawtooth)


@frozen
class Case:
    """One guest and what happens to it."""

    kernel: str
    qemu: str | None
    memory: int
    workload: Callable[[lab.Guest, int, trio.Event], Awaitable[None]]


@frozen
class Verdict:
    """What became of a guest."""

    report: ReclaimReport
    oom_kills: int
    panic: bool

    @property
    def lowest(self) -> int:
        """Bytes the guest had available at worst."""
        return min(sample.available or 0 for sample in self.report.timeline)

    def longest_below(self, headroom: int) -> float:
        """Seconds it was below its headroom at a stretch, by what counts as below."""
        longest, since = 0.0, None
        enough = headroom - max(4 * MiB, headroom // 16)
        for sample in self.report.timeline:
            if (sample.available or 0) >= enough:
                since = None
                continue
            since = sample.t if since is None else since
            longest = max(longest, sample.t - since)
        return longest


async def run(case: Case) -> Verdict:
    """Reclaim from one guest while its workload runs."""
    half_way = trio.Event()
    hog = int(case.memory * _BURST) if case.workload is static else 0
    cache = (case.memory - hog) // 2

    def on_progress(sample: Sample) -> None:
        if sample.actual < case.memory * 0.6:
            half_way.set()

    async with (
        lab.boot(
            memory=case.memory,
            cache=cache,
            hog=hog,
            kernel=case.kernel,
            qemu=case.qemu,
        ) as guest,
        open_balloon(guest.socket) as balloon,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(case.workload, guest, case.memory, half_way)
        report = await balloon.reclaim(guard=Guard(), on_progress=on_progress)
        half_way.set()
        panic = "Kernel panic" in guest.console
        kills = 0 if panic else await guest.oom_kills()
        nursery.cancel_scope.cancel()
    return Verdict(report, kills, panic)


def cases(options: argparse.Namespace) -> Iterator[Case]:
    """Combine what was asked for."""
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
    for case in cases(options):
        verdict = await run(case)
        below = verdict.longest_below(Guard().limits(case.memory).headroom)
        bad = verdict.oom_kills > 0 or verdict.panic or below > _PATIENCE
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


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kernels", nargs="+", default=["6.1"])
    parser.add_argument("--memory", nargs="+", type=parse_size, default=[1024 * MiB])
    parser.add_argument("--qemu", help="a path or a version")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(trio.run(main, parse()))
