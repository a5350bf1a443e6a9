"""Does a reclaim leave a guest what it reads again? Real guests read a set in a loop.

A guest fills its page cache, and reads a part of it in a loop. Memory is reclaimed and
held, first with the default guard, and then, with the cache filled anew, by one bare
``balloon`` command to the size that a reclaim goes to that does not look at reads. The
table shows the page cache that is left, how much of the cold cache was taken, how long
a round of the loop takes before and after, and what is read from the disk in the ten
seconds after.

A guest without a loop is cold; one with ``stream`` has a program that begins to read a
disk a second after the reclaim begins, each page once.

::

    python benchmarks/working_set.py --memory 512M 1G --workloads cold stream 20 35 60

Exit status 1 if a guest reads again what it had, or keeps what it does not read.
"""

from __future__ import annotations

import argparse
import sys
from itertools import product
from typing import TYPE_CHECKING, Final

import trio
from attrs import define, evolve, frozen

from qmpballoon import Balloon, Guard, MiB, open_balloon
from qmpballoon.sizes import format_size, parse_size
from qmpballoon.testing import lab

if TYPE_CHECKING:
    from collections.abc import Sequence

_CACHE: Final = 0.6  # of the guest's memory
_STARTED: Final = 3.0  # seconds for the first rounds of a loop
_AFTER: Final = 10.0  # seconds in which it is seen what a guest reads
_STREAM: Final = 20_000  # MiB of the disk at which the stream begins: nothing cached
_LOOK: Final = 0.01  # seconds between two polls of a bare balloon
# What counts as kept and as taken: a tenth of a set may be read again, and 15 % of what
# is cold may stay.
_TAKEN: Final = 0.85
_STREAMED: Final = 0.03  # of what a bare balloon takes may stay with a stream


@frozen
class Case:
    """One guest and what it reads: a share of the cache in percent, 0 if nothing."""

    memory: int
    share: int
    streams: bool
    qemu: str | None
    kernel: str | None
    pause: float

    @property
    def name(self) -> str:
        """The workload in a word."""
        if self.streams:
            return "stream"
        return f"loop {self.share} %" if self.share else "cold"


@frozen
class Seen:
    """What was seen of a guest.

    Attributes:
        size: Bytes that it has.
        cache: Bytes of its page cache.
        round_time: Seconds of a round of the loop; ``None`` without a loop.
        seconds: Seconds until memory was taken.
        reads: Bytes that it read from its disk in the time after.
    """

    size: int
    cache: int
    round_time: float | None
    seconds: float = 0.0
    reads: int = 0


@frozen
class Result:
    """One guest before, after a reclaim, and after a bare ``balloon`` command."""

    case: Case
    set_size: int
    before: Seen
    guarded: Seen
    bare: Seen
    reason: str

    @property
    def holds(self) -> bool:
        """Whether the guest kept what it reads, and little else."""
        before, seen, bare = self.before, self.guarded, self.bare
        if self.case.streams:
            return seen.size - bare.size <= _STREAMED * (before.size - bare.size)
        # What a bare balloon cuts off the set has to stay.
        due = bare.size + max(0, self.set_size - bare.cache)
        if before.size - seen.size < _TAKEN * (before.size - due):
            return False
        # How long a round takes depends on what else the host does, too.
        return self.set_size == 0 or seen.reads <= self.set_size // 10


@define
class Loop:
    """A loop in a guest over the first part of its disk.

    Attributes:
        guest: The guest.
        size: Bytes of the part; 0: there is no loop.
        pause: Seconds between two rounds.
    """

    guest: lab.Guest
    size: int
    pause: float

    async def start(self) -> None:
        """Begin, and wait for the first rounds."""
        await self.guest.run("mkdir -p /tmp; echo >/tmp/rounds")
        if not self.size:
            return
        count = self.size // MiB
        await self.guest.run(
            "(while read a _ </proc/uptime;"
            f" do dd if=/dev/vda of=/dev/null bs=1M count={count} 2>/dev/null;"
            f" read b _ </proc/uptime; echo $a $b >>/tmp/rounds; sleep {self.pause};"
            " done) </dev/null >/dev/null 2>&1 &"
        )
        await trio.sleep(_STARTED)

    async def measure(self) -> float | None:
        """Return the seconds that a round takes now: the median of the last five."""
        rounds = (await self.guest.run("tail -n 5 /tmp/rounds")).split()
        times = [float(word) for word in rounds]
        spans = sorted(
            end - begin for begin, end in zip(times[::2], times[1::2], strict=True)
        )
        return spans[len(spans) // 2] if spans else None


async def look(balloon: Balloon, loop: Loop, seconds: float) -> Seen:
    """See what a guest reads in the time after memory was taken."""
    before = await count_reads(balloon)
    await trio.sleep(_AFTER)
    reads = await count_reads(balloon) - before
    return evolve(await measure(balloon, loop), seconds=seconds, reads=reads)


async def measure(balloon: Balloon, loop: Loop) -> Seen:
    """See what a guest has, and how fast its loop is."""
    stats, size = await balloon.refresh_stats(), await balloon.actual()
    return Seen(size, stats.disk_caches or 0, await loop.measure())


async def count_reads(balloon: Balloon) -> int:
    """Return the bytes that a VM has read from its disks."""
    reads = await balloon.disk_reads()
    return 0 if reads is None else reads.bytes


async def take_bare(balloon: Balloon, size: int) -> float:
    """Set a target; return the seconds until it is reached."""
    began = trio.current_time()
    await balloon.set_target(size)
    while await balloon.actual() > size + MiB:  # noqa: ASYNC110 - QEMU has to be asked
        await trio.sleep(_LOOK)
    return trio.current_time() - began


async def run(case: Case) -> Result:
    """Take memory from one guest in both ways."""
    filled = int(case.memory * _CACHE)
    async with (
        lab.boot(
            memory=case.memory,
            cache=filled,
            qemu=case.qemu,
            kernel=case.kernel,
            saved=True,
        ) as guest,
        open_balloon(guest.socket) as balloon,
    ):
        loop = Loop(guest, filled * case.share // 100 // MiB * MiB, case.pause)
        await loop.start()
        before = await measure(balloon, loop)
        target = (await balloon.plan_reclaim(guard=Guard(reread_within=0))).target
        if case.streams:
            await guest.run(
                f"(sleep 1; dd if=/dev/vda of=/dev/null bs=1M skip={_STREAM}"
                " 2>/dev/null) </dev/null >/dev/null 2>&1 & echo $! >/tmp/stream"
            )
        report = await balloon.reclaim(hold=True)
        guarded = await look(balloon, loop, report.seconds)
        if case.streams:
            await guest.run("kill $(cat /tmp/stream); killall dd", check=False)
        await balloon.resize(case.memory)
        await guest.drop_cache()
        await guest.fill_cache(filled)
        await trio.sleep(_STARTED)
        bare = await look(balloon, loop, await take_bare(balloon, target))
        return Result(case, loop.size, before, guarded, bare, report.reason)


def describe(seen: Seen) -> str:
    """Return the columns of one way to take memory."""
    round_time = "" if seen.round_time is None else f"{seen.round_time:.2f} s"
    size, cache = format_size(seen.size), format_size(seen.cache)
    return (
        f"{size:>9} {cache:>9} {seen.seconds:6.1f} s {round_time:>7}"
        f" {format_size(seen.reads):>9}"
    )


async def main(options: argparse.Namespace) -> int:
    """Run all cases and print the table; return the exit status."""
    columns = f"{'size':>9} {'cache':>9} {'time':>8} {'round':>7} {'reads':>9}"
    print(f"{'':46} | {'reclaim':44} | bare balloon")
    print(
        f"{'memory':>8} {'workload':9} {'set':>9} {'cache':>9} {'round':>7}"
        f" | {columns} | {columns}"
    )
    bad = 0
    for memory, workload in product(options.memory, options.workloads):
        share = int(workload) if workload.isdecimal() else 0
        case = Case(
            *(memory, share, workload == "stream", options.qemu, options.kernel),
            options.pause,
        )
        result = await run(case)
        bad += not result.holds
        time, cache = result.before.round_time, format_size(result.before.cache)
        print(
            f"{format_size(memory):>8} {case.name:9} {format_size(result.set_size):>9}"
            f" {cache:>9} {'' if time is None else f'{time:.2f} s':>7}"
            f" | {describe(result.guarded)} | {describe(result.bare)}"
            f"{'' if result.holds else f'  <- DOES NOT HOLD: {result.reason}'}",
            flush=True,
        )
    return 1 if bad else 0


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--memory", nargs="+", type=parse_size, default=[1024 * MiB])
    parser.add_argument(
        "--workloads",
        nargs="+",
        default=["cold", "stream", "20", "35", "60"],
        help="cold, stream, or the share of the cache that a loop reads, in percent",
    )
    parser.add_argument("--pause", type=float, default=0.1, help="seconds in a loop")
    parser.add_argument("--kernel", help="a path or a version")
    parser.add_argument("--qemu", help="a path or a version")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(trio.run(main, parse_arguments()))
