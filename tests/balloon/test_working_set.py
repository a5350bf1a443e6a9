"""A reclaim stops at what the guest reads again, and at nothing else."""

from __future__ import annotations

import math
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from attrs import define, frozen
from hypothesis import given, settings
from hypothesis import strategies as st
from simulation import make_balloon, make_machine, run

from qmpballoon.balloon._working_set import (
    NO_REREAD_LIMITS,
    RereadLimits,
    WorkingSet,
)
from qmpballoon.balloon.guard import Guard
from qmpballoon.sizes import GiB, MiB
from qmpballoon.testing import SECOND, FileReads, GuestConfig, Machine

if TYPE_CHECKING:
    from qmpballoon.balloon import ReclaimReport
    from qmpballoon.balloon.sampling import Sample, Timeline

BOOTED = 60 * SECOND
MEMORY = 2 * GiB
CACHE = 1200 * MiB
FAST, SLOW = 400 * MiB, 50 * MiB  # bytes a second that a disk reads
ALL = Guard(reread_within=0)  # all that can be spared


def make(*files: FileReads, disk_rate: int = FAST, disks: int = 1) -> Machine:
    guest = GuestConfig(cache=CACHE, files=files, disk_rate=disk_rate)
    return make_machine(guest, memory=MEMORY, disks=disks)


def reclaim(
    machine: Machine, guard: Guard | None = None, *, hold: bool = True
) -> ReclaimReport:
    return run(make_balloon(machine).reclaim(guard=guard, hold=hold))


@cache
def reclaim_all() -> ReclaimReport:
    """Reclaim from a guest that reads nothing, whatever it would read again."""
    return reclaim(make(), ALL)


def cache_of(report: ReclaimReport) -> int:
    return report.after.stats.disk_caches or 0


def count_turns(timeline: Timeline) -> int:
    """Return how often the guest's size went up after down, or down after up."""
    sizes = [sample.actual for sample in timeline]
    grows = [later > earlier for earlier, later in pairwise(sizes) if later != earlier]
    return sum(later != earlier for earlier, later in pairwise(grows))


def read_meanwhile(machine: Machine, seconds: int) -> int:
    """Return the bytes that the guest reads from its disk in the next seconds."""
    before = machine.guest.read
    machine.advance(machine.now + seconds * SECOND)
    return machine.guest.read - before


def check_loop(size: int, machine: Machine, report: ReclaimReport) -> None:
    """Hold that a loop is still cached, and little else, if that can be spared."""
    assert report.outcome == "done"
    assert read_meanwhile(machine, 5) == 0
    assert size <= cache_of(report)
    everything = cache_of(reclaim_all())
    cold = CACHE - max(size, everything)
    assert CACHE - cache_of(report) >= 0.85 * cold
    assert count_turns(report.timeline) <= 6


@pytest.mark.parametrize("disk_rate", [FAST, SLOW])
@pytest.mark.parametrize("share", [0.2, 0.35, 0.6])
@pytest.mark.parametrize("period", [0.5, 2])
def test_what_a_loop_reads_stays_cached(
    share: float, period: float, disk_rate: int
) -> None:
    size = round(CACHE * share)
    machine = make(FileReads("loop", size, round(size / period)), disk_rate=disk_rate)
    report = reclaim(machine)
    check_loop(size, machine, report)
    assert "stopped at what the guest reads again" in report.reason
    assert "reads again" in {sample.mark for sample in report.timeline}
    assert cache_of(report) <= 1.25 * size


def test_a_gentle_reclaim_of_a_cold_guest_takes_as_much_in_the_time() -> None:
    report, other = reclaim(make(), Guard(gentle=20)), reclaim(make())
    assert report.handed_over >= 0.97 * other.handed_over
    assert 20 <= report.seconds <= 20 * 1.1 + other.seconds
    assert count_turns(report.timeline) <= 2
    # Half of the cache is left after half of the time.
    half = next(sample for sample in report.timeline if sample.t >= 10)
    assert 0.4 * CACHE < (half.disk_caches or 0) < 0.7 * CACHE


def test_however_gently_memory_is_taken_that_is_no_stall() -> None:
    """Some 135 MiB of cache in 160 seconds are less than a mebibyte a second."""
    amount, guard = 714 * MiB, Guard(gentle=160)
    report = run(make_balloon(make()).reclaim(amount, guard=guard))
    assert report.reason == "all that was to be taken was taken"
    assert abs(report.handed_over - amount) <= MiB
    assert 160 <= report.seconds < 190


@settings(max_examples=2)
@given(
    share=st.integers(25, 60),
    gentle=st.floats(20, 40),
    part=st.floats(0.03, 0.1),
    disk_rate=st.integers(50, 1000).map(lambda count: count * MiB),
)
def test_what_is_read_again_within_a_tenth_of_the_time_stays(
    share: int, gentle: float, part: float, disk_rate: int
) -> None:
    size = CACHE * share // 100
    loop = FileReads("loop", size, round(size / (gentle * part)))
    machine = make(loop, disk_rate=disk_rate)
    report = reclaim(machine, Guard(gentle=gentle))
    assert report.outcome == "done"
    assert read_meanwhile(machine, 10) <= size // 10
    assert CACHE - cache_of(report) >= 0.85 * (CACHE - size)
    assert report.seconds < 2 * gentle + 30


def test_without_it_all_is_taken() -> None:
    size = CACHE * 35 // 100
    machine = make(FileReads("loop", size, size))
    report = reclaim(machine, ALL)
    assert cache_of(report) < size / 2
    assert read_meanwhile(machine, 5) >= 5 * size * 9 // 10
    assert "available" in report.reason


def test_it_is_given_back_as_ever() -> None:
    size = CACHE * 35 // 100
    report = reclaim(make(FileReads("loop", size, size)), hold=False)
    assert report.after.actual == MEMORY
    assert "stopped at what the guest reads again" in report.reason


def test_an_amount_that_cuts_a_loop_is_not_taken() -> None:
    size = CACHE * 60 // 100
    machine = make(FileReads("loop", size, size))
    report = run(make_balloon(machine).reclaim(1400 * MiB, hold=True))
    check_loop(size, machine, report)
    assert MEMORY - report.after.actual < 1400 * MiB


def test_a_cold_guest_gives_as_much_as_soon() -> None:
    report, other = reclaim(make()), reclaim_all()
    assert report.handed_over == other.handed_over
    assert report.seconds <= 1.05 * other.seconds


def test_without_disks_nothing_changes() -> None:
    loop = FileReads("loop", CACHE // 2, CACHE // 2)
    report, other = reclaim(make(loop, disks=0)), reclaim(make(loop, disks=0), ALL)
    assert report.timeline == other.timeline


@pytest.mark.parametrize("rate", [3 * MiB, 30 * MiB, 300 * MiB])
@pytest.mark.parametrize(
    ("begin", "seconds"),
    [(0, None), (1, None), (1, 2)],
    ids=["before", "meanwhile", "for a while"],
)
def test_a_stream_stops_nothing(rate: int, begin: int, seconds: int | None) -> None:
    start = BOOTED + begin * SECOND if begin else 0
    end = None if seconds is None else start + seconds * SECOND
    machine = make(FileReads("stream", GiB, rate, start, end))
    report = reclaim(machine)
    assert report.handed_over >= 0.97 * reclaim_all().handed_over
    assert MEMORY - report.after.actual >= 0.97 * report.handed_over
    assert report.seconds < 45
    assert count_turns(report.timeline) <= 6


@pytest.mark.parametrize("begin", [0, BOOTED + SECOND])
def test_a_loop_is_told_from_a_stream_beside_it(begin: int) -> None:
    loop = FileReads("loop", 400 * MiB, 400 * MiB)
    machine = make(loop, FileReads("stream", GiB, 30 * MiB, begin))
    report = reclaim(machine)
    # What the stream reads pushes nothing out that is read again.
    assert read_meanwhile(machine, 5) <= 5 * 31 * MiB
    assert cache_of(report) <= 600 * MiB


def test_a_slow_stream_beside_a_loop_gets_nothing() -> None:
    """It wavers about the limit, and would be fed for as long as that can last."""
    loop = FileReads("loop", 850 * MiB, 800 * MiB)
    stream = FileReads("stream", GiB, 4 * MiB, BOOTED + 2 * SECOND)
    report = reclaim(make(loop, stream, disk_rate=80 * MiB))
    assert report.seconds < 20
    assert cache_of(report) <= 900 * MiB


def test_what_a_stream_reads_beside_a_loop_is_no_edge() -> None:
    """For a moment both read, and the one goes on at a fifth of that."""
    size = GiB * 6 // 10 * 32 // 100
    rate = round(size / 0.95)
    loop = FileReads("loop", size, rate)
    stream = FileReads("stream", GiB, rate // 20, BOOTED + 1089 * SECOND // 1000)
    guest = GuestConfig(cache=GiB * 6 // 10, files=(loop, stream), disk_rate=908 * MiB)
    machine = make_machine(guest, memory=GiB, disks=1)
    report = reclaim(machine)
    assert report.seconds < 60
    assert cache_of(report) <= 300 * MiB


@pytest.mark.parametrize("rate", [100 * MiB, 400 * MiB])
def test_of_random_reads_few_miss(rate: int) -> None:
    machine = make(FileReads("zipf", 600 * MiB, rate))
    reclaim(machine)
    assert read_meanwhile(machine, 5) <= 5 * rate // 20


@settings(max_examples=8)
@given(
    share=st.integers(25, 70),  # more than the headroom
    period=st.floats(0.2, 2),
    disk_rate=st.integers(50, 1000).map(lambda count: count * MiB),
    memory=st.integers(1, 8).map(lambda count: count * GiB),
    stream=st.none() | st.floats(0, 3),
)
def test_a_guest_keeps_what_it_reads_and_gives_the_rest(
    share: int, period: float, disk_rate: int, memory: int, stream: float | None
) -> None:
    cache = memory * 6 // 10
    size = cache * share // 100
    files = [FileReads("loop", size, round(size / period))]
    rate = min(files[0].rate, disk_rate)
    if stream is not None:
        begin = BOOTED + round(stream * SECOND)
        files.append(FileReads("stream", GiB, rate // 20, begin))
    guest = GuestConfig(cache=cache, files=tuple(files), disk_rate=disk_rate)
    machine = make_machine(guest, memory=memory, disks=1)
    report = reclaim(machine)
    assert report.outcome == "done"
    streamed = 0 if stream is None else 5 * rate // 20
    assert read_meanwhile(machine, 5) <= streamed + size // 10
    cold = cache - max(size, guest.pinned + Guard().compute_limits(memory).headroom)
    # What a stream has just read is not cold yet.
    assert cache - cache_of(report) >= 0.85 * cold - 32 * MiB - streamed
    assert count_turns(report.timeline) <= 10


# The rule alone

TICK = 0.04
LIMITS = RereadLimits.of(GiB, 30)


@define
class Loop:
    """A guest that reads a set in a loop, and pauses after each round.

    Attributes:
        size: Bytes of the set.
        used: Bytes that the guest needs besides.
        pause: Seconds between two rounds.
        cached: Bytes of the set that are cached.
        reads: Bytes read from its disk.
        left: Bytes of this round that are not read yet.
        wait: Seconds until the next round.
    """

    size: int
    used: int
    pause: float
    cached: int
    reads: int = 0
    left: float = 0
    wait: float = 0.0

    def go_on(self, actual: int) -> None:
        room = max(0, actual - self.used)
        self.cached = min(self.cached, room)
        if self.wait > 0:
            self.wait -= TICK
            return
        # From the cache it reads ten times as fast.
        is_whole = self.cached >= self.size
        step = FAST * TICK * (10 if is_whole else 1)
        if not is_whole:
            missed = round(min(step, self.left))
            if room >= self.size:
                missed = min(missed, self.size - self.cached)
            self.reads += missed
            self.cached = min(self.cached + missed, room, self.size)
        self.left -= step
        if self.left <= 0:
            self.left, self.wait = self.size, self.pause


@define
class Bursts:
    """A guest that reads now and then, whatever it has.

    Attributes:
        rate: Bytes a second while it reads.
        seconds: For how long it reads.
        pause: Seconds between.
        used: Bytes that it needs.
        reads: Bytes read from its disk.
        ticks: How long it has gone on.
    """

    rate: int
    seconds: float
    pause: float
    used: int = 200 * MiB
    reads: int = 0
    ticks: int = 0

    def go_on(self, _: int) -> None:
        self.ticks += 1
        if (self.ticks * TICK - 1) % (self.seconds + self.pause) < self.seconds:
            self.reads += round(self.rate * TICK) if self.ticks * TICK > 1 else 0


@define
class Liar:
    """A guest that reads whenever memory is taken from it, and for a while after.

    Attributes:
        rate: Bytes a second while it reads; ``factor`` times as many each time.
        seconds: For how long it reads after something was taken.
        factor: See ``rate``.
        used: Bytes that it needs.
        reads: Bytes read from its disk.
        last: What it had.
        left: Seconds for which it reads on.
    """

    rate: float
    seconds: float
    factor: float
    used: int = 200 * MiB
    reads: int = 0
    last: int = 0
    left: float = 0.0

    def go_on(self, actual: int) -> None:
        if actual < self.last and self.left <= 0:
            self.left = self.seconds
            self.rate = min(self.rate * self.factor, 10 * GiB)
        self.last = actual
        if self.left > 0:
            self.left -= TICK
            self.reads += round(self.rate * TICK)


@frozen
class End:
    """Where a run ended."""

    loop: Loop | Bursts | Liar
    rule: WorkingSet
    seconds: float
    actual: int
    turns: int


def take_from(
    loop: Loop | Bursts | Liar,
    full: int,
    rate: int,
    limits: RereadLimits = LIMITS,
    watch: float = 2,
) -> End:
    """Take memory from a guest at a rate, by the rule alone, down to what it uses."""
    rule, actual, target = WorkingSet(limits, full), full, full
    quiet, turns, grew = 0.0, 0, False
    for tick in range(round((300 + full / rate) / TICK)):
        loop.go_on(actual)
        again = rule.observe(tick * TICK, actual, loop.reads)
        least = max(again.size, rule.edge or 0, loop.used)
        # A balloon deflates at a gibibyte a second.
        target = least if again.size else max(least, actual - round(rate * TICK))
        before = actual
        actual = min(target, actual + round(GiB * TICK))
        if actual != before:
            turns += (actual > before) != grew
            grew = actual > before
        quiet = quiet + TICK if actual == before and not again.size else 0.0
        if quiet > watch:
            return End(loop, rule, tick * TICK, actual, turns)
    raise AssertionError("it goes on for ever")


@settings(max_examples=60)
@given(
    size=st.integers(64, 1500).map(lambda count: count * MiB),
    pause=st.floats(0, 1.5),
    rate=st.integers(100, 1000).map(lambda count: count * MiB),
)
def test_the_edge_is_found_whatever_the_set(size: int, pause: float, rate: int) -> None:
    used, full = 200 * MiB, MEMORY
    loop = Loop(size, used, pause, size)
    end = take_from(loop, full, rate)
    assert loop.cached >= size * 9 // 10
    assert end.actual - used <= size * 5 // 4 + 16 * MiB
    assert end.turns <= 8


@pytest.mark.parametrize("pause", [10, 40, 60])
def test_a_set_that_is_read_once_in_a_while_is_found_by_who_takes_gently(
    pause: float,
) -> None:
    size, used = 400 * MiB, 200 * MiB
    end = take_from(Loop(size, used, pause, size), MEMORY, 400 * MiB)
    assert end.actual - used < size
    gentle = 11 * pause  # a round takes a second
    rate = round((MEMORY - used) / gentle)
    loop = Loop(size, used, pause, size)
    end = take_from(loop, MEMORY, rate, watch=gentle / 10)
    assert loop.cached >= size * 9 // 10
    assert end.actual - used <= size * 5 // 4


@settings(max_examples=100)
@given(
    rate=st.integers(2, 400).map(lambda count: count * MiB),
    seconds=st.floats(0.1, 8),
    pause=st.floats(0.1, 20),
)
def test_it_ends_whatever_is_read_by_the_way(
    rate: int, seconds: float, pause: float
) -> None:
    end = take_from(Bursts(rate, seconds, pause), MEMORY, 400 * MiB)
    assert end.turns <= 16


@settings(max_examples=60)
@given(
    rate=st.integers(1, 100).map(lambda count: count * MiB),
    seconds=st.floats(0.1, 60),
    factor=st.floats(1, 4),
    full=st.integers(1, 16).map(lambda count: count * GiB),
)
def test_who_reads_whenever_something_is_taken_does_not_hold_that_up_for_ever(
    rate: int, seconds: float, factor: float, full: int
) -> None:
    liar = Liar(rate, seconds, factor)
    end = take_from(liar, full, GiB, RereadLimits.of(full, 30))
    assert end.seconds < 300


def test_reads_that_nothing_ends_are_none_of_ours() -> None:
    rule = WorkingSet(LIMITS, GiB)
    sizes = [
        rule.observe(tick * TICK, GiB // 2, max(0, tick - 25) * 4 * MiB).size
        for tick in range(200)
    ]
    assert GiB in sizes
    assert sizes[-1] == 0
    assert (rule.edge, rule.is_suspected) == (None, False)
    assert not rule.was_found


@pytest.mark.parametrize(
    ("high", "low", "period", "part"),
    [(4.6, 4.0, 1.5, 0.5), (30, 0, 1.5, 0.2), (12, 0, 4.5, 0.33)],
    ids=["wavers", "short bursts", "bursts"],
)
def test_reads_that_begin_and_end_by_themselves_hold_nothing_up(
    high: float, low: float, period: float, part: float
) -> None:
    """They go on for ever, whatever is given back, and a reclaim does not."""
    rule, reads, held = WorkingSet(LIMITS, GiB), 0, 0
    for tick in range(round(120 / TICK)):
        seconds = tick * TICK
        if seconds > 1:
            reads += round(
                (high if seconds % period < period * part else low) * MiB * TICK
            )
        held = tick if rule.observe(seconds, GiB // 2, reads).size else held
    assert 1 < held * TICK < 40


def test_a_loop_that_needs_all_that_was_taken_has_it_within_seconds() -> None:
    """Steps as large as the first would take it longer than its memory is worth."""
    full, rate = 16 * GiB, 200 * MiB
    rule = WorkingSet(RereadLimits.of(full, 30), full)
    for tick in range(round(15 / TICK)):
        reads = max(0, tick - 25) * round(rate * TICK)
        if rule.observe(tick * TICK, 2 * GiB, reads).size == full:
            return
    pytest.fail("it still lacks some")


@pytest.mark.parametrize("first", [0.02, 0.07, 0.24])
def test_what_it_reads_by_itself_is_known_from_few_samples(first: float) -> None:
    rule = WorkingSet(LIMITS, GiB)
    for seconds in (0.0, first, *(0.3 + tick * TICK for tick in range(100))):
        again = rule.observe(seconds, GiB // 2, round(seconds * 100 * MiB))
        assert again.size == 0


def test_what_it_reads_by_itself_fills_nothing_of_what_it_is_given() -> None:
    def list_sizes(own: int) -> list[int]:
        rule = WorkingSet(LIMITS, 64 * GiB)
        reads = [tick * own + max(0, tick - 25) * 128 * MiB for tick in range(150)]
        return [
            rule.observe(tick * TICK, GiB, read).size for tick, read in enumerate(reads)
        ]

    assert max(list_sizes(0)) > 2 * GiB
    assert list_sizes(8 * MiB) == list_sizes(0)


def test_what_it_reads_by_itself_is_forgotten_when_it_has_ended() -> None:
    rule, reads = WorkingSet(RereadLimits.of(GiB, 2), GiB), 0

    def go(seconds: float, rate: int, begin: float) -> bool:
        """Read at a rate; return whether memory was given back for it."""
        nonlocal reads
        given = False
        for tick in range(1, round(seconds / TICK) + 1):
            reads += round(rate * TICK)
            given |= rule.observe(begin + tick * TICK, GiB // 2, reads).size > 0
        return given

    assert not go(10, 100 * MiB, 0)
    assert not go(1, 0, 10)
    assert not go(1, 100 * MiB, 11)
    assert not go(5, 0, 12)
    assert go(1, 100 * MiB, 17)


def test_a_pause_between_two_rounds_is_no_end() -> None:
    rule, reads = WorkingSet(LIMITS, GiB), 0
    for tick in range(200):
        seconds = tick * TICK
        # A second of reads, and a pause of a second and a half.
        reads += 4 * MiB if seconds >= 1 and (seconds - 1) % 2.5 < 1 else 0
        rule.observe(seconds, GiB // 4, reads)
        assert rule.is_reading == (seconds >= 1)
        assert rule.edges == 0


@pytest.mark.parametrize("limits", [NO_REREAD_LIMITS, RereadLimits.of(GiB, 0)])
def test_with_no_limits_no_reads_matter(limits: RereadLimits) -> None:
    rule = WorkingSet(limits, GiB)
    for tick in range(100):
        assert rule.observe(tick * TICK, GiB // 2, tick * GiB).size == 0


def test_a_program_that_starts_takes_nothing_back() -> None:
    rule = WorkingSet(LIMITS, GiB)
    sizes = [
        rule.observe(tick * TICK, GiB // 2, 12 * MiB if tick > 25 else 0).size
        for tick in range(100)
    ]
    assert max(sizes) == GiB // 2
    assert sizes[-1] == 0
    assert not rule.is_suspected


@given(
    st.lists(
        st.tuples(st.floats(0, 2), st.integers(0, 4 * GiB), st.integers(0, 2**50)),
        max_size=60,
    ),
    st.sampled_from([0, 1, 30, math.inf]),
)
def test_whatever_is_read_it_gives_back_no_more_than_there_was(
    looks: list[tuple[float, int, int]], within: float
) -> None:
    rule, seconds = WorkingSet(RereadLimits.of(4 * GiB, within), 4 * GiB), 0.0
    for pause, actual, reads in looks:
        seconds += pause
        assert 0 <= rule.observe(seconds, actual, reads).size <= 4 * GiB
        assert 0 <= (rule.edge or 0) <= 4 * GiB


# While it is kept

# With more headroom a guest that is kept is sampled less often.
ROOMY = Guard(headroom=400 * MiB)


def keep(machine: Machine, seconds: float, seen: list[Sample]) -> ReclaimReport:
    return run(
        make_balloon(machine).keep(
            guard=ROOMY,
            seconds=seconds,
            on_progress=lambda progress: seen.append(progress.sample),
        )
    )


def find_size(seen: list[Sample], at: float) -> int:
    """Return the size that the guest had at a time."""
    return next(sample.actual for sample in seen if sample.t >= at)


@pytest.mark.parametrize("disk_rate", [FAST, SLOW])
def test_kept_memory_that_is_read_again_is_given_back(disk_rate: int) -> None:
    size = 800 * MiB
    begin = BOOTED + 20 * SECOND
    machine = make(FileReads("loop", size, size, begin), disk_rate=disk_rate)
    seen: list[Sample] = []
    report = keep(machine, 60, seen)
    assert "kept for 60 s" in report.reason
    first_round = 20 + size / min(size, disk_rate)
    later = [each for each in seen if first_round + 6 <= each.t < 60]
    assert later
    assert {each.disk_reads for each in later} == {seen[-1].disk_reads}
    assert min(each.disk_caches or 0 for each in later) >= size
    # The rest is still kept.
    assert later[-1].actual <= find_size(seen, 19) + 1.25 * size


@pytest.mark.parametrize(("stream", "seconds"), [(None, 60), (4, 400)])
def test_a_stream_gets_nothing_for_good(stream: int | None, seconds: int) -> None:
    begin = BOOTED + 20 * SECOND
    end = None if stream is None else begin + stream * SECOND
    machine = make(FileReads("stream", GiB, 200 * MiB, begin, end))
    seen: list[Sample] = []
    report = keep(machine, seconds, seen)
    assert f"kept for {seconds} s" in report.reason
    assert find_size(seen, seconds - 10) <= find_size(seen, 19) + 32 * MiB
    assert count_turns(report.timeline) <= 8


def test_what_it_reads_no_more_is_taken_again_later() -> None:
    begin = BOOTED + 20 * SECOND
    loop = FileReads("loop", 800 * MiB, 400 * MiB, begin, begin + 60 * SECOND)
    seen: list[Sample] = []
    keep(make(loop), 400, seen)
    assert find_size(seen, 100) >= find_size(seen, 19) + 300 * MiB
    assert find_size(seen, 390) <= find_size(seen, 19) + 32 * MiB


def test_a_set_in_use_is_tried_seldom() -> None:
    size = 800 * MiB
    machine = make(FileReads("loop", size, size))
    report = keep(machine, 1000, [])
    assert "kept for 1000 s" in report.reason
    # Two tries, and each costs a round or two.
    assert machine.guest.read <= 4 * 2 * size
    assert count_turns(report.timeline) <= 16


# A resize


@pytest.mark.parametrize(("guard", "actual"), [(None, 500 * MiB), (Guard(), 631 * MiB)])
def test_a_resize_stops_there_if_its_guard_says_so(
    guard: Guard | None, actual: int
) -> None:
    machine = make(FileReads("loop", 400 * MiB, 400 * MiB))
    result = run(
        make_balloon(machine).resize(500 * MiB, guard=guard, on_stall="settle")
    )
    assert result.actual == pytest.approx(actual, rel=0.05)
    why = "" if result.diagnosis is None else result.diagnosis.detail
    assert ("reads again" in why) == (guard is not None)
