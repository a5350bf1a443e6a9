r"""Does taking memory harm a guest? Real guests allocate memory meanwhile.

Guests of several sizes, kernels and workloads are booted one after the other, and
memory is taken from each while its workload runs: by ``reclaim``, by ``keep``, by
``resize`` to the guard's floor, or by a fleet's move to it. The table shows how the
call ended, the least memory that the guest had available, the longest time that it was
below its headroom without allocating, and the OOM kills and panics, of which there
must be none.

::

    python benchmarks/guard.py --kernels 6.1 6.12 --memory 512M 1G 2G \
        --calls reclaim keep resize fleet

Exit status 1 if any guest was harmed.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
from itertools import product
from typing import TYPE_CHECKING, Final, TypeAlias

import trio
from attrs import define, field, frozen

from qmpballoon import Guard, MiB, Sample, UnixAddress, open_balloon
from qmpballoon.fleet import Move, VmSpec, open_fleet
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
_KEPT: Final = 20.0  # seconds for which memory is kept
_WATCH: Final = 0.1  # seconds between two samples where the call gives none
# Below this part of its headroom a guest that is kept small gets what it lacks. The
# other calls leave it a 16th of the headroom off.
_KEPT_SHARE: Final = 0.75


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

CALLS: Final = ("reclaim", "keep", "resize", "fleet")


@frozen
class Case:
    """One guest, what happens to it, and the call that takes memory from it."""

    kernel: str
    qemu: str | None
    memory: int
    workload: Workload
    call: str


@frozen
class Verdict:
    """How a call ended, and whether it did harm."""

    call: str
    outcome: str
    seconds: float
    samples: Sequence[tuple[float, Sample]]  # with trio's time
    spans: Sequence[tuple[float, float]]
    oom_kills: int
    panic: bool

    @property
    def taken(self) -> int:
        """The most that the guest had given up, in bytes."""
        sizes = [sample.actual for _, sample in self.samples]
        return max(sizes) - min(sizes)

    @property
    def lowest(self) -> int:
        """The least memory the guest had available, in bytes."""
        return min(sample.available or 0 for _, sample in self.samples)

    def longest_below(self, headroom: int) -> float:
        """Return the longest time below the headroom without allocating, in seconds."""
        longest, since = 0.0, None
        # The guard counts this as the headroom, too.
        enough: float = headroom - max(4 * MiB, headroom // 16)
        if self.call == "keep":
            enough = headroom * _KEPT_SHARE
        for now, sample in self.samples:
            busy = any(began <= now <= ended for began, ended in self.spans)
            if busy or (sample.available or 0) >= enough:
                since = None
                continue
            since = now if since is None else since
            longest = max(longest, now - since)
        return longest


async def take(
    call: str, guest: lab.Guest, memory: int, on_sample: Callable[[Sample], None]
) -> str:
    """Take memory from a guest by a call; return how it ended."""
    floor = Guard().compute_limits(memory).floor
    if call == "fleet":
        spec = VmSpec("vm", UnixAddress(str(guest.socket)))
        rng = random.Random(0)  # noqa: S311 - nothing secret
        async with open_fleet(lambda: [spec], rng) as fleet:
            await fleet.wait_until_known(30)
            fleet.start_move(Move("vm", memory, floor, "benchmark"))
            await fleet.wait_for_moves(120)
            (seen,) = fleet.list_views()
            return seen.state
    async with open_balloon(guest.socket) as balloon:
        if call == "resize":
            result = await balloon.resize(floor, guard=Guard(), on_stall="settle")
            return result.outcome
        if call == "keep":
            report = await balloon.keep(
                guard=Guard(),
                seconds=_KEPT,
                on_progress=lambda seen: on_sample(seen.sample),
            )
        else:
            report = await balloon.reclaim(
                guard=Guard(), on_progress=lambda seen: on_sample(seen.sample)
            )
        return report.outcome


async def watch(guest: lab.Guest, on_sample: Callable[[Sample], None]) -> None:
    """Sample a guest through its second monitor."""
    async with open_balloon(guest.second_socket) as balloon:
        async for sample in balloon.watch(_WATCH):
            on_sample(sample)


async def run(case: Case) -> Verdict:
    """Take memory from one guest while its workload runs."""
    in_use = int(case.memory * _BURST) if case.workload is static else 0
    async with (
        lab.boot(
            memory=case.memory,
            cache=(case.memory - in_use) // 2,
            hog=in_use,
            kernel=case.kernel,
            qemu=case.qemu,
        ) as guest,
        trio.open_nursery() as nursery,
    ):
        hog, samples = Hog(guest, case.memory), list[tuple[float, Sample]]()

        def on_sample(sample: Sample) -> None:
            samples.append((trio.current_time(), sample))
            if sample.actual < case.memory * 0.6:
                hog.half_way.set()

        nursery.start_soon(case.workload, hog)
        if case.call in ("resize", "fleet"):
            nursery.start_soon(watch, guest, on_sample)
        began = trio.current_time()
        outcome = await take(case.call, guest, case.memory, on_sample)
        seconds = trio.current_time() - began
        hog.half_way.set()
        panic = "Kernel panic" in guest.console
        kills = 0 if panic else await guest.oom_kills()
        nursery.cancel_scope.cancel()
    return Verdict(case.call, outcome, seconds, samples, hog.spans, kills, panic)


def combine_cases(options: argparse.Namespace) -> Iterator[Case]:
    """Yield each combination of call, kernel, memory and workload."""
    for call, kernel, memory, workload in product(
        options.calls, options.kernels, options.memory, WORKLOADS
    ):
        if not options.workloads or workload.__name__ in options.workloads:
            yield Case(kernel, options.qemu, memory, workload, call)


async def main(options: argparse.Namespace) -> int:
    """Run all cases and print the table; return the exit status."""
    harmed = 0
    print(
        f"{'call':8} {'kernel':8} {'memory':>8} {'workload':16} {'outcome':9}"
        f" {'taken':>9}"
        f" {'seconds':>8} {'lowest':>10} {'below':>7} {'oom':>4} {'panic':>6}"
    )
    for case in combine_cases(options):
        verdict = await run(case)
        below = verdict.longest_below(Guard().compute_limits(case.memory).headroom)
        bad = verdict.oom_kills > 0 or verdict.panic or below > _LONGEST_BELOW
        harmed += bad
        print(
            f"{case.call:8} {case.kernel:8} {format_size(case.memory):>8}"
            f" {case.workload.__name__:16} {verdict.outcome:9}"
            f" {format_size(verdict.taken):>9} {verdict.seconds:8.1f}"
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
    parser.add_argument("--calls", nargs="+", choices=CALLS, default=["reclaim"])
    parser.add_argument(
        "--workloads", nargs="+", choices=[each.__name__ for each in WORKLOADS]
    )
    parser.add_argument("--qemu", help="a path or a version")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(trio.run(main, parse_arguments()))
