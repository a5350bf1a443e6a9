"""Page cache that guests read again: what is made of samples, and what a fleet does."""

from __future__ import annotations

from contextlib import asynccontextmanager
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Final

import pytest
import trio
from attrs import define, evolve
from hypothesis import given
from hypothesis import strategies as st
from worlds import GUEST, open_world, simulated, supervised, view

from qmpballoon.fleet.control_loop import reclaim, run_control_loop
from qmpballoon.fleet.hot_cache import CacheSample, HotCache
from qmpballoon.fleet.policy import Move, Rules
from qmpballoon.sizes import GiB, MiB
from qmpballoon.testing import SECOND, FileReads, MachineConfig, WorkloadStep, ramp

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from worlds import World

    from qmpballoon.fleet.policy import FleetPlan
    from qmpballoon.fleet.supervisor import Supervisor

HEADROOM: Final = 84 * MiB
ABOVE: Final = 100 * MiB  # available above the headroom, at first
TAKEN: Final = 2 * GiB


@define
class Watched:
    """A guest whose samples are made up, one a second."""

    cache: HotCache
    last: CacheSample

    def live(
        self,
        seconds: int = 1,
        *,
        read: int = 0,
        grown: int = 0,
        filled: int = 0,
    ) -> int:
        """Let time pass, in each second of which so much happens.

        Args:
            seconds: How many.
            read: Bytes read from disks.
            grown: Bytes that it is given.
            filled: Bytes of free memory that it fills.

        Returns:
            What is made of it.
        """
        for _ in range(seconds):
            last = self.last
            self.last = CacheSample(
                at=last.at + 1,
                read=last.read + read,
                actual=last.actual + grown,
                free=last.free + grown - filled,
                available=last.available + grown,
                headroom=last.headroom,
                taken=last.taken - grown,
            )
            self.cache.observe(self.last)
        return self.cache.size


def watched(usual: int = 0, seconds: int = 120) -> Watched:
    """Return a guest that has read so much a second, for two minutes."""
    start = CacheSample(0, 0, GiB, 20 * MiB, ABOVE + HEADROOM, HEADROOM, TAKEN)
    guest = Watched(HotCache(), start)
    guest.live(seconds, read=usual)
    assert guest.cache.size == 0
    return guest


def test_who_reads_nothing_has_no_hot_cache() -> None:
    assert watched().live(60) == 0


def test_a_guest_lacks_a_byte_for_each_that_replaced_another() -> None:
    guest = watched()
    assert guest.live(read=40 * MiB) == 0
    size = guest.live(read=40 * MiB)
    assert ABOVE + 75 * MiB < size <= ABOVE + 80 * MiB
    # It is given nothing. So it lacks more and more, and never more than was taken.
    assert size < guest.live(20, read=400 * MiB) <= ABOVE + TAKEN
    assert guest.live(read=4 * GiB) == ABOVE + TAKEN


def test_reads_that_fill_free_memory_count_for_nothing() -> None:
    guest = watched()
    guest.live(grown=GiB)
    assert guest.live(10, read=100 * MiB, filled=100 * MiB) == 0


def test_one_burst_of_reads_is_nothing_that_is_read_again() -> None:
    guest = watched()
    for _ in range(10):
        assert guest.live(read=400 * MiB) == 0
        assert guest.live(5) == 0


@pytest.mark.parametrize("usual", [5 * MiB, 50 * MiB])
def test_what_is_usual_does_not_count(usual: int) -> None:
    guest = watched(usual)
    assert guest.live(600, read=usual) == 0
    # Up to ten seconds' reads may come at once.
    assert guest.live(8, read=2 * usual) == 0
    assert guest.live(10, read=2 * usual + 20 * MiB) > 0


def test_before_it_is_known_what_is_usual_nothing_counts() -> None:
    guest = watched(400 * MiB, seconds=8)
    assert not guest.cache.is_known
    assert guest.live(read=400 * MiB) == 0
    guest.live(2)
    assert guest.cache.is_known


def test_what_is_kept_and_tried_again_slowly() -> None:
    guest = watched()
    guest.live(2, read=200 * MiB)
    guest.live(grown=600 * MiB)
    guest.live(read=600 * MiB, filled=600 * MiB)
    size = guest.live(60)
    assert size >= ABOVE + 375 * MiB
    after = guest.live(60)
    assert size * 3 // 4 < after < size
    # What is in use was taken: it gets back a quarter more, and that is kept longer.
    guest.live(grown=-600 * MiB)
    tried = guest.live(2, read=200 * MiB) - ABOVE
    assert after // 5 < tried <= after // 4
    guest.live(grown=600 * MiB, filled=600 * MiB)
    size = guest.cache.size
    assert guest.live(120) == size
    assert guest.live(60) < size
    assert guest.live(1800) == 0


def test_memory_that_stays_free_is_not_hot() -> None:
    guest = watched()
    guest.live(2, read=200 * MiB)
    guest.live(grown=600 * MiB)
    guest.live(read=100 * MiB, filled=100 * MiB)
    # Of what it was given it has filled 100 MiB, and some is always free.
    assert guest.live(40) == ABOVE + 100 * MiB


def test_reads_that_go_on_when_all_is_back_are_not_ours() -> None:
    guest = watched()
    assert guest.live(3, read=100 * MiB) > 0
    guest.live(grown=TAKEN)
    assert guest.live(10, read=100 * MiB, filled=100 * MiB) > 0
    assert guest.live(2, read=100 * MiB) == 0


def test_a_stream_is_ignored_for_times_that_grow() -> None:
    guest = watched()
    is_hot = [guest.live(read=50 * MiB) > 0 for _ in range(3000)]
    spans = [(hot, len(list(seconds))) for hot, seconds in groupby(is_hot)]
    assert max(span for hot, span in spans if hot) <= 32
    ignored = [span for hot, span in spans if not hot][1:-1]
    assert len(ignored) == 5
    for number, span in enumerate(ignored):
        assert 60 * 2**number <= span <= 60 * 2**number + 5


@given(
    st.lists(
        st.tuples(
            st.integers(-1, 30),
            st.integers(-GiB, 2**63),
            *[st.integers(0, 4 * GiB)] * 3,
            st.integers(-GiB, 4 * GiB),
        )
    )
)
def test_whatever_is_said_it_is_no_more_than_there_is(
    samples: list[tuple[int, int, int, int, int, int]],
) -> None:
    cache, most, now = HotCache(), 0, 0.0
    for seconds, read, actual, free, taken, above in samples:
        now += seconds
        cache.observe(CacheSample(now, read, actual, free, above, 0, taken))
        most = max(most, max(0, above) + taken)
        assert 0 <= cache.size <= most


# Whole hosts

RULES = Rules(reserve=GiB, buffer=256 * MiB)
BEGIN: Final = 40  # seconds, when files begin to be read that were not read before
SETTLED: Final = 20


def start(
    world: World,
    name: str,
    cache: int,
    *files: FileReads,
    disks: int = 1,
    workload: tuple[WorkloadStep, ...] = (),
) -> None:
    guest = evolve(GUEST, cache=cache, files=files, workload=workload)
    world.start(name, MachineConfig(memory=4 * GiB, guest=guest, disks=disks))


@asynccontextmanager
async def controlled(
    world: World, sizes: dict[str, int], moves: list[Move] | None = None
) -> AsyncGenerator[Supervisor]:
    """Have a fleet controlled that has come to its sizes.

    It begins so many seconds after the world. The host then has its reserve and its
    buffer.
    """

    def note(_: object, plan: FleetPlan) -> None:
        if moves is not None:
            moves.extend(plan.moves)

    begin = trio.current_time()
    async with supervised(world) as fleet, trio.open_nursery() as nursery:
        await fleet.wait_until_known(5)
        for name, size in sizes.items():
            fleet.start_move(Move(name, 4 * GiB, size, "test"))
        await fleet.wait_for_moves()
        await trio.sleep_until(begin + SETTLED)
        spare = world.read(0, 0).available - RULES.reserve - RULES.buffer
        world.memory -= spare
        run = partial(run_control_loop, on_plan=note)
        nursery.start_soon(run, fleet, world.read, RULES)
        yield fleet
        nursery.cancel_scope.cancel()


def count_read(world: World, name: str) -> int:
    world.fakes[name].touch()
    return world.fakes[name].machine.guest.read


def count_fed(moves: list[Move]) -> int:
    """Return the bytes that were given because something was read again."""
    return sum(move.change for move in moves if "reads again" in move.reason)


@pytest.mark.parametrize("size", [800 * MiB, 1200 * MiB])
@simulated
async def test_a_set_that_is_read_after_it_was_taken_comes_back_and_stays(
    size: int,
) -> None:
    """Some 700 MiB of cache are left, and a round takes two seconds, or three."""
    rate = 400 * MiB
    loop = FileReads("loop", size, rate, begin=BEGIN * SECOND)
    async with open_world() as world:
        start(world, "reads", 2 * GiB, loop)
        start(world, "cold", 3 * GiB)
        async with controlled(world, {"reads": GiB, "cold": 2 * GiB}):
            # Within 5 seconds of the second round.
            await trio.sleep_until(BEGIN + 2 * size / rate + 5)
            before = count_read(world, "reads")
            assert before >= size
            await trio.sleep_until(BEGIN + 90)
            assert count_read(world, "reads") == before


@pytest.mark.parametrize("rate", [0, 50 * MiB])
@simulated
async def test_a_cold_guest_gives_as_if_its_disk_was_not_watched(rate: int) -> None:
    """So does one through whose disk a stream goes all the time."""
    files = (FileReads("stream", MiB, rate),) if rate else ()
    sizes: list[int | None] = []
    for disks in (0, 1):
        async with open_world() as world:
            start(world, "cold", 2 * GiB, *files, disks=disks)
            start(world, "other", GiB)
            sized = {"cold": 3 * GiB, "other": 3 * GiB}
            async with controlled(world, sized) as fleet:
                world.memory -= GiB
                await trio.sleep(40)
                sizes.append(view(fleet, "cold").actual)
    assert sizes[0] is not None
    assert sizes[0] < 2 * GiB + 256 * MiB
    assert sizes[1] == sizes[0]


@simulated
async def test_a_stream_is_not_fed_for_ever() -> None:
    stream = FileReads("stream", MiB, 50 * MiB, begin=BEGIN * SECOND)
    moves: list[Move] = []
    async with open_world() as world:
        start(world, "reads", 2 * GiB, stream)
        start(world, "cold", 3 * GiB)
        sizes = {"reads": GiB, "cold": 2 * GiB}
        async with controlled(world, sizes, moves) as fleet:
            await trio.sleep_until(BEGIN + 45)
            fed = count_fed(moves)
            # No more than it has read in half a minute, and a headroom.
            assert 256 * MiB < fed < 30 * 50 * MiB + 146 * MiB
            await trio.sleep_until(BEGIN + 85)
            assert count_fed(moves) == fed
            # What it was given can be taken like any other.
            assert view(fleet, "reads").hot == 0


BY_TURNS: Final = [
    FileReads("stream", GiB, 200 * MiB, at * SECOND, (at + 25) * SECOND)
    for at in range(BEGIN, BEGIN + 120, 30)
]
"""Reads that end before they are taken to be a stream's, and begin anew."""


@pytest.mark.parametrize(
    "files",
    [[FileReads("loop", 8 * GiB, 400 * MiB, begin=BEGIN * SECOND)], BY_TURNS],
    ids=["for ever", "by turns"],
)
@simulated
async def test_who_reads_its_disks_for_ever_takes_nothing_from_who_needs_it(
    files: list[FileReads],
) -> None:
    """Its files are larger than its RAM, and the other one needs more from then on."""
    needs = ramp((BEGIN + 5) * SECOND, (BEGIN + 45) * SECOND, 900 * MiB, 100)
    async with open_world() as world:
        start(world, "reads", 2 * GiB, *files)
        start(world, "needs", GiB, workload=needs)
        sizes = {"reads": 2 * GiB, "needs": GiB}
        async with controlled(world, sizes) as fleet:
            await trio.sleep_until(BEGIN + 60)
            needy = view(fleet, "needs")
            assert needy.above_headroom is not None
            assert needy.above_headroom >= 0
            assert world.fakes["needs"].machine.guest.oom_kills == 0
            assert world.read(0, 0).available >= RULES.reserve


@simulated
async def test_a_gentle_reclaim_leaves_guests_what_they_read_again() -> None:
    """There are 8 GiB. One of them is read in a loop, a round in 5 seconds."""
    read: dict[float, int] = {}
    gained: dict[float, int] = {}
    for gentle in (0.0, 60.0):
        async with open_world() as world:
            start(world, "reads", 3 * GiB, FileReads("loop", GiB, GiB // 5))
            start(world, "cold", 3 * GiB)
            async with supervised(world) as fleet:
                await trio.sleep(30)
                began = trio.current_time()
                report = await reclaim(
                    *(fleet, 6 * GiB, RULES),
                    hold=True,
                    gentle=gentle,
                    on_progress=lambda size: gained.update({trio.current_time(): size}),
                )
                assert trio.current_time() - began >= gentle * 1.1
                assert report.handed_over >= 5 * GiB
                before = count_read(world, "reads")
                await trio.sleep(30)
                read[gentle] = count_read(world, "reads") - before
    assert read[0.0] > GiB
    assert read[60.0] == 0
    # It is taken evenly.
    half = max(size for at, size in gained.items() if 0 <= at - began <= 30)
    assert 2 * GiB < half < 3.5 * GiB


@simulated
async def test_a_gentle_reclaim_does_not_make_up_for_time_in_which_it_was_stopped() -> (
    None
):
    clock = trio.lowlevel.current_clock()
    assert isinstance(clock, trio.testing.MockClock)
    gained: list[tuple[float, int]] = []

    def look(size: int) -> None:
        gained.append((trio.current_time(), size))
        if [each for _, each in gained if each > GiB // 2] == [size]:
            clock.jump(50)

    async with open_world() as world:
        start(world, "cold", 3 * GiB)
        async with supervised(world) as fleet:
            await fleet.wait_until_known(5)
            report = await reclaim(
                fleet, 2 * GiB, RULES, hold=True, gentle=60, on_progress=look
            )
    assert report.handed_over >= 2 * GiB - 16 * MiB
    jumped, size = next(each for each in gained if each[1] > GiB // 2)
    later = [each for at, each in gained if jumped + 50 <= at < jumped + 60]
    assert size < max(later) < size + GiB // 2


@asynccontextmanager
async def reading_in_little() -> AsyncGenerator[Supervisor]:
    """Supervise a guest that reads a loop in the GiB it was left, and a cold one."""
    loop = FileReads("loop", 900 * MiB, 450 * MiB, begin=BEGIN * SECOND)
    async with open_world() as world:
        start(world, "reads", 2 * GiB, loop)
        start(world, "cold", 3 * GiB)
        async with supervised(world) as fleet:
            await fleet.wait_until_known(5)
            fleet.start_move(Move("reads", 4 * GiB, GiB, "test"))
            await fleet.wait_for_moves()
            await trio.sleep_until(BEGIN + 5)
            assert view(fleet, "reads").hot
            yield fleet


@simulated
async def test_a_gentle_reclaim_gives_nobody_more_than_it_had() -> None:
    async with reading_in_little() as fleet:
        report = await reclaim(fleet, GiB, RULES, hold=True, gentle=5)
        assert report.handed_over >= GiB - 16 * MiB
        assert (view(fleet, "reads").actual or 0) <= GiB


@pytest.mark.parametrize("gentle", [0.0, 5.0])
@simulated
async def test_hot_cache_that_is_not_to_be_taken_stays(gentle: float) -> None:
    async with reading_in_little() as fleet:
        takes_hot = gentle > 0  # it never is with gentle
        report = await reclaim(
            *(fleet, 8 * GiB, RULES), hold=True, gentle=gentle, takes_hot=takes_hot
        )
        assert report.handed_over > 2 * GiB
        assert view(fleet, "reads").actual == GiB


@simulated
async def test_what_a_guest_reads_again_is_taken_from_others() -> None:
    loop = FileReads("loop", 900 * MiB, 450 * MiB, begin=BEGIN * SECOND)
    async with open_world() as world:
        start(world, "reads", 2 * GiB, loop)
        start(world, "cold", 3 * GiB)
        async with controlled(world, {"reads": GiB, "cold": 2 * GiB}) as fleet:
            await trio.sleep_until(BEGIN + 10)
            size, before = view(fleet, "reads").actual, count_read(world, "reads")
            hot = view(fleet, "reads").hot
            assert hot is not None
            assert hot >= 900 * MiB - 146 * MiB
            world.memory = world.memory - world.read(0, 0).available + GiB
            await trio.sleep_until(BEGIN + 40)
            assert world.read(0, 0).available >= RULES.reserve
            assert view(fleet, "reads").actual == size
            assert count_read(world, "reads") == before
            assert (view(fleet, "cold").actual or 0) < 2 * GiB
