r"""Does a reclaim leave a guest what it reads again? Real guests read their disks.

A guest fills its page cache from its disks. Memory is reclaimed and held, with the
default guard. For comparison the guest then gets its memory and its cache back, and one
bare ``balloon`` command takes it to the size that a reclaim goes to that does not look
at reads. The workloads:

- ``loop``: a program reads a share of that cache again and again.
- ``zipf``: it reads blocks of 4 MiB at random, few of them often (Zipf).
- ``cold``: nothing reads anything.
- ``stream``: a second after the reclaim begins, a program begins to read a disk, each
  page once.
- ``keep``: nothing reads anything while memory is taken, by ``keep``. A loop begins
  20 s later.
- ``fleet``: the same, with a fleet that has taken memory from this guest and from a
  cold one, as they had more than the host may give.

Each row of the table is another guest. They are chosen so that each QEMU and kernel,
each size, bus, number of disks and speed of a disk is in several rows, with several
workloads.

::

    python benchmarks/working_set.py                    # all rows, in half an hour
    python benchmarks/working_set.py --rows loop zipf   # those with these workloads
    python benchmarks/working_set.py --report run.svg   # and a chart of the first

Exit status 1 if a guest lost what it reads, or kept what it does not read.
"""

# Some of matplotlib's methods take keyword arguments of no stated type.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import argparse
import random
import sys
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Final

import trio
from attrs import define, field, frozen

from qmpballoon import Balloon, Guard, MiB, UnixAddress, export, open_balloon
from qmpballoon.fleet import HostMemory, Rules, VmSpec, open_fleet, run_control_loop
from qmpballoon.sizes import GiB, format_size
from qmpballoon.testing import lab

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from qmpballoon.balloon import Progress, ReclaimReport

_CACHE: Final = 0.6  # of the guest's memory
_STARTED: Final = 4.0  # seconds for the first rounds of a loop
_AFTER: Final = 10.0  # seconds in which it is seen what a guest reads
_PAIRS: Final = 3  # times that rounds are compared
_SPAN: Final = 4.0  # seconds of rounds in each
_STREAM: Final = 20_000  # MiB of the disk at which the stream begins: nothing cached
_LATER: Final = 20.0  # seconds after which a loop begins
_STAYS: Final = 30.0  # seconds for which it is seen that it stays cached
_BLOCK: Final = 4 * MiB  # bytes of a random read: a guest starts few programs a second
_DRAWN: Final = 5000  # random reads, before they repeat
_LOOK: Final = 0.1  # seconds between two polls
_SLOW: Final = 50 * MiB  # bytes a second that a slow disk reads
_SHORT: Final = 0.9  # of a guest's page cache, that a host of two guests has too little
_LONGEST: Final = 240.0  # seconds in which a bare balloon gets there, if it does

# What is to hold
_READ: Final = 0.01  # of a set may be read in the time after: what else a guest does
_ABOVE: Final = 0.25  # of a set may be cached besides, if the guest can spare it
_TAKEN: Final = 0.85  # of what is cold is taken
_SLOWER: Final = 1.1  # times as long may a round take
_LIKE: Final = 0.97  # of what a reclaim takes that does not look at reads
_MISSES: Final = 0.05  # of random reads
_BACK: Final = 5.0  # seconds after the second round


@frozen
class Row:
    """One guest and what it reads.

    Attributes:
        workload: See above.
        share: Percent of its page cache that it reads again.
        memory: Bytes of RAM.
        new: Whether QEMU and kernel are new ones, or those of Debian 12.
        bus: What its disks are.
        disks: How many it reads.
        slow: Whether they are slowed down.
    """

    workload: str
    share: int = 0
    memory: int = GiB
    new: bool = False
    bus: str = "blk"
    disks: int = 1
    slow: bool = False

    @property
    def cache(self) -> int:
        """Bytes that it caches, whole MiB of each disk."""
        return int(self.memory * _CACHE) // self.disks // MiB * self.disks * MiB

    @property
    def set_size(self) -> int:
        """Bytes that it reads again, whole MiB of each disk."""
        size = self.cache * self.share // 100
        return size // self.disks // MiB * self.disks * MiB

    def describe(self) -> str:
        """Return the guest in words."""
        versions = "11.1, Linux 7.2" if self.new else "7.2, Linux 6.1"
        disks = f"{self.disks} virtio-{self.bus}" + (", slow" if self.slow else "")
        return f"{format_size(self.memory)}, QEMU {versions} | {disks}"


ROWS: Final = (
    Row("loop", 35),
    Row("loop", 20, GiB, bus="scsi", disks=3, slow=True),
    Row("loop", 60, 2 * GiB, disks=3),
    Row("loop", 60, GiB, slow=True),
    Row("loop", 20, 2 * GiB, new=True),
    Row("loop", 35, 2 * GiB, new=True, bus="scsi", slow=True),
    Row("loop", 60, GiB, new=True, bus="scsi", disks=3),
    Row("zipf", 60, GiB),
    Row("zipf", 60, 2 * GiB, new=True, bus="scsi"),
    Row("cold", 0, GiB, bus="scsi"),
    Row("cold", 0, 2 * GiB, new=True, disks=3),
    Row("stream", 0, 2 * GiB, bus="scsi", slow=True),
    Row("stream", 0, GiB, new=True, disks=3),
    Row("keep", 35, GiB, disks=3, slow=True),
    Row("keep", 35, 2 * GiB, new=True, bus="scsi"),
    Row("fleet", 60, GiB, bus="scsi"),
    Row("fleet", 60, GiB, new=True, slow=True),
)


# Guests


@asynccontextmanager
async def start(row: Row) -> AsyncGenerator[Workload]:
    """Boot a guest with its disks, and fill its page cache from them."""
    extra, names = (
        ["-object", f"throttle-group,id=slow,x-bps-read={_SLOW}"],
        list[str](),
    )
    if row.bus == "scsi":
        extra += ["-device", "virtio-scsi-pci"]
    for number in range(row.disks):
        node = f"driver=null-co,read-zeroes=on,size={1024 * GiB},node-name=null{number}"
        extra += ["-blockdev", node]
        drive = f"null{number}"
        if row.slow:
            drive = f"slow{number}"
            node = f"driver=throttle,throttle-group=slow,file=null{number}"
            extra += ["-blockdev", f"{node},node-name={drive}"]
        device = "scsi-hd" if row.bus == "scsi" else "virtio-blk-pci"
        extra += ["-device", f"{device},drive={drive}"]
        # The lab has a first disk of its own, on virtio-blk.
        names.append(
            f"sd{'abc'[number]}" if row.bus == "scsi" else f"vd{'bcd'[number]}"
        )
    versions = ("11.1", "7.2") if row.new else ("7.2", "6.1")
    async with lab.boot(
        memory=row.memory,
        qemu=versions[0],
        kernel=versions[1],
        extra=extra,
        saved=True,
    ) as guest:
        await guest.run("mkdir -p /tmp; echo 0 >/tmp/rounds; echo 0 >/tmp/count")
        for name in names:
            # A disk's last close drops its page cache. Random reads read what they ask
            # for, and others far ahead.
            ahead = 0 if row.workload == "zipf" else 4096
            await guest.run(f"echo {ahead} >/sys/block/{name}/queue/read_ahead_kb")
            await run_on(guest, f"exec sleep 1000000 </dev/{name}")
        workload = Workload(guest, row, names)
        await workload.fill()
        yield workload


async def run_on(guest: lab.Guest, command: str) -> None:
    """Have a guest run a command that goes on."""
    await guest.run(f"({command}) </dev/null >/dev/null 2>&1 &")


@define
class Workload:
    """A guest, and the programs in it that read.

    Attributes:
        guest: The guest.
        row: What it reads.
        names: Its disks.
        filled: How often its cache was filled.
    """

    guest: lab.Guest
    row: Row
    names: list[str]
    filled: int = 0

    async def fill(self) -> None:
        """Read what was not read before, as much as the guest caches."""
        count = self.row.cache // len(self.names) // MiB
        skip, self.filled = self.filled * count, self.filled + 1
        for name in self.names:
            read = f"dd if=/dev/{name} of=/dev/null bs=1M skip={skip} count={count}"
            await self.guest.run(read, timeout=600)

    async def fill_anew(self) -> None:
        """Drop the cache, and fill it; what is read again comes with it."""
        await self.guest.drop_cache()
        await self.fill()
        if self.row.share:
            await self.wait_rounds(3)

    async def start(self) -> None:
        """Begin to read again and again, and wait for the first rounds."""
        if self.row.workload == "zipf":
            blocks = draw_zipf(self.row.set_size // _BLOCK)
            await self.guest.run(f"echo '{' '.join(map(str, blocks))}' >/tmp/blocks")
            await run_on(self.guest, self._zipf())
        else:
            await run_on(self.guest, self._loop())

    def _loop(self) -> str:
        count = self.row.set_size // len(self.names) // MiB
        reads = "; ".join(
            f"dd if=/dev/{name} of=/dev/null bs=1M count={count} 2>/dev/null"
            for name in self.names
        )
        return (
            f"while read a _ </proc/uptime; do {reads}; read b _ </proc/uptime;"
            " echo $a $b >>/tmp/rounds; sleep 0.1; done"
        )

    def _zipf(self) -> str:
        return (
            "while true; do for i in $(cat /tmp/blocks); do"
            f" dd if=/dev/{self.names[0]} of=/dev/null bs={_BLOCK} count=1 skip=$i"
            " 2>/dev/null; n=$((n+1)); echo $n >/tmp/count; done; done"
        )

    async def stream(self) -> None:
        """Begin to read a disk once, a second from now."""
        await run_on(
            self.guest,
            f"sleep 1; exec dd if=/dev/{self.names[0]} of=/dev/null bs=1M"
            f" skip={_STREAM * (1 + self.filled)}",
        )

    async def end_stream(self) -> None:
        """End what a stream reads."""
        await self.guest.run("killall dd", check=False)

    async def count_rounds(self) -> int:
        """Return how many rounds have ended, or how many random reads."""
        if self.row.workload == "zipf":
            # While it is written it is empty.
            while not (count := await self.guest.run("cat /tmp/count")):
                pass
            return int(count)
        return int(await self.guest.run("wc -l </tmp/rounds"))

    async def time_rounds(self, seconds: float) -> list[float]:
        """Return how long each round takes that begins and ends in the next seconds."""
        # Of the first it is not known when it began.
        await self.wait_rounds(1)
        before = await self.count_rounds()
        await trio.sleep(seconds)
        await self.wait_rounds(max(0, before + 1 - await self.count_rounds()))
        lines = (await self.guest.run("cat /tmp/rounds")).splitlines()[before:]
        times = [line.split() for line in lines]
        return [float(end) - float(begin) for begin, end in times]

    async def wait_rounds(self, count: int) -> None:
        """Wait until so many more rounds have ended."""
        ended = await self.count_rounds() + count
        while await self.count_rounds() < ended:  # noqa: ASYNC110 - the guest is asked
            await trio.sleep(_LOOK)


def draw_zipf(count: int) -> list[int]:
    """Return blocks by Zipf's law, exponent 1, by the inverse of its distribution."""
    rng = random.Random(0)  # noqa: S311 - nothing secret
    return [int((count + 1) ** rng.random()) - 1 for _ in range(_DRAWN)]


# What is seen


@frozen
class Seen:
    """What was seen of a guest.

    Attributes:
        size: Bytes that it has.
        cache: Bytes of its page cache.
        reads: Bytes that it read from its disks in the time after.
        rounds: Rounds that ended in that time, or random reads.
        times: Seconds of rounds.
    """

    size: int
    cache: int
    reads: int = 0
    rounds: int = 0
    times: tuple[float, ...] = ()


async def look(balloon: Balloon, workload: Workload) -> Seen:
    """See what a guest reads in the time after memory was taken."""
    is_loop = workload.row.workload == "loop"
    stats, size = await balloon.refresh_stats(), await balloon.actual()
    before, rounds = await count_reads(balloon), await workload.count_rounds()
    times = list[float]()
    if is_loop:
        times = await workload.time_rounds(_AFTER)
    else:
        await trio.sleep(_AFTER)
    return Seen(
        size,
        stats.disk_caches or 0,
        await count_reads(balloon) - before,
        await workload.count_rounds() - rounds,
        tuple(times),
    )


async def count_reads(balloon: Balloon) -> int:
    """Return the bytes that a VM has read from its disks."""
    reads = await balloon.disk_reads()
    return 0 if reads is None else reads.bytes


async def compare_rounds(balloon: Balloon, workload: Workload) -> tuple[float, float]:
    """Return how long rounds take with the memory that is left, and with all of it.

    They are timed by turns: the machine may be slow for a while.
    """
    small, large = list[float](), list[float]()
    size = await balloon.actual()
    for _ in range(_PAIRS):
        small += await workload.time_rounds(_SPAN)
        await balloon.resize(workload.row.memory)
        large += await workload.time_rounds(_SPAN)
        # What it was given is free, and is what is taken.
        await balloon.resize(size, unguarded=True)
    return median(small), median(large)


async def take_bare(balloon: Balloon, size: int) -> None:
    """Set a target, and wait until it is reached, or for long."""
    await balloon.set_target(size)
    with trio.move_on_after(_LONGEST):
        while await balloon.actual() > size + MiB:  # noqa: ASYNC110 - QEMU is asked
            await trio.sleep(_LOOK)


# Rows


@define
class Verdict:
    """What came of a row: cells of the table, and what does not hold."""

    cells: list[str]
    wrong: list[str] = field(factory=list[str])

    def require(self, what: str, *, holds: bool) -> None:
        """Note what does not hold."""
        if not holds:
            self.wrong.append(what)


async def reclaim(row: Row, report: Path | None) -> Verdict:
    """Reclaim from a guest, and then take as much with a bare balloon."""
    async with start(row) as workload, open_balloon(workload.guest.socket) as balloon:
        if row.share:
            await workload.start()
            await trio.sleep(_STARTED)
        before = await look(balloon, workload)
        everything = Guard(reread_within=0)
        target = (await balloon.plan_reclaim(guard=everything)).target
        if row.workload == "stream":
            await workload.stream()
        seen = await balloon.reclaim(hold=True)
        guarded = await look(balloon, workload)
        times = (0.0, 0.0)
        if row.workload == "loop":
            times = await compare_rounds(balloon, workload)
        if row.workload == "stream":
            await workload.end_stream()
        if report is not None:
            await trio.to_thread.run_sync(draw_chart, report, row, seen)
        await balloon.resize(row.memory)
        await workload.fill_anew()
        if row.workload == "stream":
            await workload.stream()
        if row.share:
            await take_bare(balloon, target)
        else:
            await balloon.reclaim(hold=True, guard=everything)
        bare = await look(balloon, workload)
        await balloon.resize(row.memory)
        verdict = judge(row, seen, (before, guarded, bare), times)
        await require_unharmed(workload, verdict)
        return verdict


def draw_chart(path: Path, row: Row, report: ReclaimReport) -> None:
    """Write a chart of a reclaim as SVG, with a line at what is read again."""
    size = format_size(row.set_size)
    title = f"A guest that reads {size} again and again"
    figure = export.draw_figure(report.timeline, title=title)
    sizes = figure.axes[0]
    unit = GiB if sizes.get_ylabel() == "GiB" else MiB
    sizes.axhline(row.set_size / unit, color="#d55e00", linewidth=1.2)
    sizes.annotate(
        f"the {size} that it reads again",
        (0.5, row.set_size / unit),
        xycoords=("axes fraction", "data"),
        xytext=(0, -6),
        textcoords="offset points",
        color="#d55e00",
        va="top",
    )
    path.write_bytes(export.render_figure(figure, "svg"))


def judge(
    row: Row,
    report: ReclaimReport,
    seen: tuple[Seen, Seen, Seen],
    times: tuple[float, float],
) -> Verdict:
    """Judge a reclaim.

    Args:
        row: The guest.
        report: What the reclaim says.
        seen: What was seen before, after the reclaim, and after the bare balloon.
        times: How long rounds take after the reclaim, and with all memory.
    """
    before, guarded, bare = seen
    size = row.set_size
    cold = before.cache - max(size, bare.cache)
    taken = (before.cache - guarded.cache) / cold
    like = (before.size - guarded.size) / (before.size - bare.size)
    verdict = Verdict(
        [
            describe_size(guarded.size),
            describe_size(guarded.cache),
            f"{taken:.0%}" if row.share else f"{like:.0%} of it",
            describe_rounds(times) or describe_misses(row, before, guarded),
            describe_size(guarded.reads) if row.workload != "stream" else "",
            f"{report.seconds:.0f} s",
            describe_size(bare.size),
            describe_size(bare.cache),
            describe_rounds((median(bare.times or (0,)), times[1]))
            or describe_misses(row, before, bare),
            describe_size(bare.reads) if row.workload != "stream" else "",
        ]
    )
    verdict.require(report.reason, holds=report.outcome == "done")
    match row.workload:
        case "loop":
            above = guarded.cache - max(size, bare.cache)
            verdict.require("read again", holds=guarded.reads <= _READ * size)
            verdict.require("more is cached", holds=above <= _ABOVE * size)
            verdict.require("little was taken", holds=taken >= _TAKEN)
            verdict.require("slower", holds=times[0] <= _SLOWER * times[1])
        case "zipf":
            more = compute_misses(guarded) - compute_misses(before)
            verdict.require("misses", holds=more <= _MISSES)
        case _:
            verdict.require("little was taken", holds=like >= _LIKE)
    return verdict


def compute_misses(seen: Seen) -> float:
    """Return the share of random reads that came from the disk."""
    return seen.reads / _BLOCK / max(1, seen.rounds)


def describe_misses(row: Row, before: Seen, after: Seen) -> str:
    """Return how many more random reads miss than before."""
    if row.workload != "zipf":
        return ""
    return f"{compute_misses(after) - compute_misses(before):.1%} miss"


def describe_rounds(times: tuple[float, float]) -> str:
    """Return how many times as long a round takes."""
    return f"{times[0] / times[1]:.2f}" if times[1] else ""


def describe_size(size: int) -> str:
    """Return a size in MiB."""
    return f"{size / MiB:,.0f}"


async def keep(row: Row) -> Verdict:
    """Keep a guest small, and begin to read again and again."""
    async with start(row) as workload:
        kept = trio.Event()

        def note(progress: Progress) -> None:
            if progress.stage == "keeping":
                kept.set()

        ended = list[str]()

        async def hold() -> None:
            async with open_balloon(workload.guest.socket) as balloon:
                ended.append((await balloon.keep(on_progress=note)).reason)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(hold)
            await kept.wait()
            verdict = await come_back(workload)
            nursery.cancel_scope.cancel()
        verdict.wrong += ended  # nobody has ended it
        await require_unharmed(workload, verdict)
        return verdict


async def come_back(workload: Workload) -> Verdict:
    """Begin to read in a loop; see when all of it is cached, and whether it stays."""
    row = workload.row
    async with open_balloon(workload.guest.second_socket) as balloon:
        await trio.sleep(_LATER)
        stats, before = await balloon.stats(), await balloon.actual()
        small = Seen(before, stats.disk_caches or 0)
        await workload.start()
        read, last = await count_reads(balloon), trio.current_time()
        second: float | None = None
        began = trio.current_time()
        while trio.current_time() < (second or began + _LONGEST) + _BACK + _STAYS:
            await trio.sleep(_LOOK)
            now = await count_reads(balloon)
            if now - read > _READ * row.set_size:
                read, last = now, trio.current_time()
            # There was one line at the beginning.
            if second is None and await workload.count_rounds() > 1 + 1:
                second = trio.current_time()
        stats, size = await balloon.stats(), await balloon.actual()
    after = last - (second or began)
    verdict = Verdict(
        [
            describe_size(size),
            describe_size(stats.disk_caches or 0),
            "",
            f"back {max(0.0, after):.1f} s after round 2",
            "0" if after <= _BACK else "reads",
            "",
            describe_size(small.size),
            describe_size(small.cache),
            "",
            "",
        ]
    )
    verdict.require("it has read no two rounds", holds=second is not None)
    verdict.require("it reads again", holds=after <= _BACK)
    return verdict


async def run_fleet(row: Row) -> Verdict:
    """Have a fleet take memory from this guest and a cold one, and begin to read."""
    async with AsyncExitStack() as stack:
        workload = await stack.enter_async_context(start(row))
        cold = await stack.enter_async_context(start(Row("cold", memory=row.memory)))
        specs = [
            VmSpec(name, UnixAddress(str(guest.socket)))
            for name, guest in (("hot", workload.guest), ("cold", cold.guest))
        ]
        rng = random.Random(0)  # noqa: S311 - nothing secret
        fleet = await stack.enter_async_context(open_fleet(lambda: specs, rng))
        await fleet.wait_until_known(60)
        rules = Rules(reserve=0, buffer=64 * MiB)
        # So much of the two caches that the set does not fit, and fits with what the
        # other guest can spare.
        memory = HostMemory(limit=fleet.held - round(_SHORT * row.cache))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(run_control_loop, fleet, memory.read, rules))
            while memory.read(fleet.held, fleet.promised).available < 0:  # noqa: ASYNC110 - it has to be read
                await trio.sleep(_LOOK)
            verdict = await come_back(workload)
            nursery.cancel_scope.cancel()
        await require_unharmed(workload, verdict)
        return verdict


async def require_unharmed(workload: Workload, verdict: Verdict) -> None:
    """Hold that the guest has killed no process, and has not panicked."""
    has_panicked = "Kernel panic" in workload.guest.console
    verdict.require("panic", holds=not has_panicked)
    if not has_panicked:
        kills = await workload.guest.oom_kills()
        verdict.require("a process was killed", holds=kills == 0)


async def run(row: Row, report: Path | None) -> Verdict:
    """Run a row."""
    match row.workload:
        case "keep":
            return await keep(row)
        case "fleet":
            return await run_fleet(row)
        case _:
            return await reclaim(row, report)


_COLUMNS: Final = (
    *("guest", "disks", "workload", "set"),
    *("size", "cache", "taken", "rounds", "reads", "time"),
    *("`balloon`: size", "cache", "rounds", "reads", "holds"),
)


async def main(options: argparse.Namespace) -> int:
    """Run all rows and print the table; return the exit status."""
    print("| " + " | ".join(_COLUMNS) + " |")
    print("|---" * 3 + "|--:" * (len(_COLUMNS) - 4) + "|---|", flush=True)
    bad, report = 0, options.report
    for row in ROWS:
        if options.rows and row.workload not in options.rows:
            continue
        if options.numbers and ROWS.index(row) not in options.numbers:
            continue
        verdict = await run(row, report if row.workload == "loop" else None)
        report = None if row.workload == "loop" else report
        bad += bool(verdict.wrong)
        share = f" {row.share} %" if row.share else ""
        size = describe_size(row.set_size) if row.share else ""
        cells = [
            *(row.describe(), row.workload + share, size, *verdict.cells),
            "; ".join(verdict.wrong) or "yes",
        ]
        print("| " + " | ".join(cells) + " |", flush=True)
    return 1 if bad else 0


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", nargs="+", help="only those with these workloads")
    parser.add_argument("--numbers", nargs="+", type=int, help="only those, from 0")
    parser.add_argument("--report", type=Path, help="a chart of the first reclaim")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(trio.run(main, parse_arguments()))
