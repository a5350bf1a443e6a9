"""Statistics are refreshed, guests sampled, and a timeline keeps what matters."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from attrs import evolve
from faults import monitor_of
from hypothesis import given
from hypothesis import strategies as st
from simulation import PATH, SimulatedMonitor, make_balloon, make_machine, run

from qmpballoon.balloon.balloon import Balloon
from qmpballoon.balloon.results import DiskReads
from qmpballoon.balloon.sampling import (
    Sample,
    Sampler,
    Timeline,
    find_recent_stats,
)
from qmpballoon.errors import StatsUnavailable
from qmpballoon.sizes import GiB, MiB
from qmpballoon.testing import (
    SECOND,
    GuestConfig,
    Machine,
    MachineConfig,
    WorkloadStep,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def give_some(machine: Machine) -> None:
    """Have a guest give some memory that never answered, as without a service."""
    machine.set_target(GiB)
    machine.advance(machine.now + 10 * SECOND)
    assert machine.device is not None
    machine.device.last_update = 0


# Refreshing


@pytest.mark.parametrize("interval", [0, 1, 60])
@pytest.mark.parametrize("clock", [True, False])
def test_a_refreshed_sample_is_of_now_and_the_interval_as_before(
    interval: int, *, clock: bool
) -> None:
    balloon = make_balloon(make_machine(), clock=clock)
    monitor = monitor_of(balloon)
    run(balloon.set_stats_interval(interval))
    for _ in range(5):  # several within one second, in which nothing changes
        before = monitor.machine_clock()
        stats = run(balloon.refresh_stats())
        assert stats.last_update is not None
        assert stats.last_update.timestamp() >= int(before)
        assert run(balloon.get_stats_interval()) == interval
        # At rest, nothing tells two answers of one second apart.
        assert monitor.machine_clock() - before < (1.1 if clock else 1.6)


def test_an_answer_of_the_same_second_is_not_taken_for_the_next_one() -> None:
    step = WorkloadStep(60 * SECOND + SECOND // 5, 100 * MiB, "cache")
    guest = GuestConfig(workload=(step,), stats_delay=SECOND // 20)
    balloon = make_balloon(make_machine(guest))
    before = run(balloon.refresh_stats())
    run(balloon.monitor.sleep(0.2))
    after = run(balloon.refresh_stats())
    assert after.last_update == before.last_update
    assert after.disk_caches == (before.disk_caches or 0) + 100 * MiB


@pytest.mark.parametrize("clock", [True, False])
@pytest.mark.parametrize("passed", [0.0, 0.5, 0.95])
def test_the_last_answer_of_a_guest_without_driver_is_not_taken_for_a_new_one(
    passed: float, *, clock: bool
) -> None:
    balloon = make_balloon(make_machine(), clock=clock)
    monitor = monitor_of(balloon)
    run(monitor.sleep(1 - monitor.machine_clock() % 1))
    run(balloon.refresh_stats())
    run(monitor.sleep(passed - monitor.machine_clock() % 1))
    monitor.machine.guest.stall(3600 * SECOND)  # in the second of its answer
    with pytest.raises(StatsUnavailable):
        run(balloon.refresh_stats())


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_wrong_clock_neither_hides_a_new_sample_nor_makes_an_old_one_new(
    hours: float,
) -> None:
    machine = make_machine()
    monitor = SimulatedMonitor(machine)
    monitor.skew = hours * 3600
    balloon = Balloon(monitor, PATH, "virtio-balloon-pci")
    run(balloon.refresh_stats())
    assert run(balloon.refresh_stats()).last_update is not None
    machine.guest.stall(3600 * SECOND)
    with pytest.raises(StatsUnavailable):
        run(balloon.refresh_stats())


def test_statistics_that_a_reset_wipes_out_are_waited_for() -> None:
    machine = make_machine(GuestConfig(boot_time=SECOND))
    balloon = make_balloon(machine)
    run(balloon.refresh_stats())
    machine.reset(by_guest=False)
    assert run(balloon.stats()).last_update is None
    assert run(balloon.refresh_stats()).available is not None


@pytest.mark.parametrize(
    ("guest", "break_it", "why"),
    [
        (GuestConfig(driver=False), lambda _: None, "load virtio_balloon"),
        (GuestConfig(stats_delay=None), give_some, "its balloon works"),
        (GuestConfig(), lambda machine: machine.stop(), "the VM is paused"),
        (
            GuestConfig(),
            lambda machine: machine.guest.stall(3600 * SECOND),
            "the guest hangs",
        ),
    ],
    ids=["no driver", "no statistics", "paused", "hangs"],
)
def test_a_guest_that_does_not_answer_is_given_up_in_time_with_a_reason(
    guest: GuestConfig, break_it: Callable[[object], None], why: str
) -> None:
    balloon = make_balloon(make_machine(guest))
    monitor = monitor_of(balloon)
    break_it(monitor.machine)
    start = monitor.now()
    with pytest.raises(StatsUnavailable, match=why):
        run(balloon.refresh_stats(timeout=2))
    assert monitor.now() - start < 2.1
    assert run(balloon.get_stats_interval()) == 0


# The sampler


def test_a_sampler_sees_the_guest_answer_many_times_a_second() -> None:
    machine = make_machine()
    balloon = make_balloon(machine)

    async def use() -> None:
        async with balloon.sampler() as sampler:
            await balloon.set_target(GiB)
            for number in range(20):
                await balloon.monitor.sleep(0.04)
                sample = await sampler.take("!" if number == 3 else None)
                assert sampler.silence == 0
                # What the guest said, it said when it had that much.
                assert sampler.basis >= sample.actual
                reserve = machine.guest.memory.reserve
                assert sampler.basis - sample.total - reserve <= 8 * MiB  # type: ignore[operator]
                assert (sample.mark == "!") == (number == 3)

    run(use())
    assert run(balloon.get_stats_interval()) == 0


@given(
    delay=st.integers(0, SECOND // 5),
    targets=st.lists(st.integers(768, 2048), min_size=4, max_size=12),
)
def test_an_answer_is_never_taken_for_that_of_a_smaller_guest(
    delay: int, targets: list[int]
) -> None:
    machine = make_machine(evolve(GuestConfig(), stats_delay=delay))
    balloon = make_balloon(machine)

    async def use() -> None:
        async with balloon.sampler() as sampler:
            for target in targets:
                await balloon.set_target(target * MiB)
                await balloon.monitor.sleep(0.04)
                sample = await sampler.take()
                said = (sample.total or 0) + machine.guest.memory.reserve
                # A guest that would seem to use less could lose more than it has.
                # QEMU hears of each MiB when the driver has given it.
                assert sampler.basis >= said - MiB

    run(use())


def test_a_sampler_tells_for_how_long_the_guest_is_silent() -> None:
    machine = make_machine()
    balloon = make_balloon(machine)

    async def use() -> None:
        async with balloon.sampler() as sampler:
            await balloon.monitor.sleep(1.1)
            await sampler.take()
            assert sampler.silence == 0
            machine.reset(by_guest=False)  # wipes the statistics out: no answer
            machine.guest.stall(3600 * SECOND)
            await balloon.monitor.sleep(2)
            sample = await sampler.take()
            assert sampler.silence == pytest.approx(2, abs=0.1)
            assert sample.available is None

    run(use())


# The timeline


def sample(t: float, mark: str | None = None) -> Sample:
    return Sample(t=t, target=None, actual=1, mark=mark)


def filled(count: int, capacity: int, marked: frozenset[int] = frozenset()) -> Timeline:
    timeline = Timeline(capacity)
    for t in range(count):
        timeline.add(sample(t, "!" if t in marked else None))
    return timeline


@given(st.integers(1, 200), st.integers(2, 40), st.frozensets(st.integers(0, 200)))
def test_it_is_bounded_in_order_and_keeps_both_ends(
    count: int, capacity: int, marked: frozenset[int]
) -> None:
    timeline = filled(count, capacity, marked)
    times = [kept.t for kept in timeline]
    assert len(timeline) == len(times) <= capacity
    assert times == sorted(set(times))
    assert (timeline[0].t, timeline[-1].t) == (0, count - 1)
    if count <= capacity:
        assert times == [*range(count)]
    else:
        assert len(timeline) >= capacity // 2


@given(
    st.integers(2, 41),
    st.integers(1, 200),
    st.frozensets(st.integers(0, 199), max_size=20),
)
def test_a_few_marked_samples_stay(
    capacity: int, count: int, marked: frozenset[int]
) -> None:
    seen = {t for t in marked if t < count}
    if len(seen) < capacity // 2:
        assert seen <= {kept.t for kept in filled(count, capacity, marked)}


def test_many_marked_samples_are_treated_like_all() -> None:
    timeline = filled(11, 10, frozenset({1, 3, 5, 7, 9}))
    assert [kept.t for kept in timeline] == [0, 2, 4, 6, 8, 10]


def test_time_does_not_go_back() -> None:
    timeline = filled(3, 10)
    timeline.add(sample(2))
    with pytest.raises(ValueError, match="older than the last one"):
        timeline.add(sample(1.9))


@pytest.mark.parametrize("capacity", [1, 0, -1])
def test_it_cannot_hold_less_than_both_ends(capacity: int) -> None:
    with pytest.raises(ValueError, match="at least 2"):
        Timeline(capacity)


def test_json_has_every_field_of_every_sample() -> None:
    printed = filled(2, 10).to_json()
    assert [each["t"] for each in printed] == [0, 1]
    assert {"target", "actual", "free", "available", "disk_caches", "resident"} <= {
        *printed[0]
    }


# Sampling


def test_the_time_of_a_sample_is_since_the_sampler_began() -> None:
    balloon = make_balloon(make_machine())  # up for a minute

    async def take_two() -> list[float]:
        async with balloon.sampler() as sampler:
            first = await sampler.take()
            await balloon.monitor.sleep(2)
            return [first.t, (await sampler.take()).t]

    first, second = run(take_two())
    assert 0 <= first < 0.1
    assert 2 <= second < 2.1


# Watching


def test_a_sample_comes_each_interval_and_is_new() -> None:
    machine = make_machine()
    balloon = make_balloon(machine)
    seen: list[tuple[float, int | None]] = []

    async def use() -> None:
        async for sample in balloon.watch(2):
            assert machine.device is not None
            assert machine.device.interval == 0
            seen.append((sample.t, sample.available))
            if len(seen) == 4:
                break
            machine.guest.memory.allocate(64 * MiB)

    run(use())
    assert [round(t) for t, _ in seen] == [0, 2, 4, 6]
    figures = [available or 0 for _, available in seen]
    assert [one - two for one, two in pairwise(figures)] == [64 * MiB] * 3


def test_a_silent_guest_is_watched_at_the_same_pace() -> None:
    machine = make_machine()
    balloon = make_balloon(machine)
    run(balloon.refresh_stats())
    machine.guest.stall(3600 * SECOND)

    async def use() -> list[Sample]:
        samples = balloon.watch(0.5)
        return [await anext(samples) for _ in range(4)]

    samples = run(use())
    assert samples[-1].t == pytest.approx(2.0, abs=0.1)
    assert {sample.available for sample in samples} == {machine.guest.memory.available}
    for sample in samples:
        assert sample.age == pytest.approx(sample.t + (samples[0].age or 0), abs=0.15)
    assert run(balloon.get_stats_interval()) == 0


@pytest.mark.parametrize("interval", [0, -1, math.nan, True, "1"])
def test_a_nonsensical_interval_is_refused_before_the_loop(interval: Any) -> None:  # noqa: ANN401 - nonsense
    balloon = make_balloon(make_machine())
    with pytest.raises((ValueError, TypeError), match="interval"):
        balloon.watch(interval)
    assert monitor_of(balloon).calls == 0


def test_a_timeline_is_compared_by_its_samples() -> None:
    one, other = Timeline(), Timeline(capacity=5)
    assert one == other != [1]
    one.add(Sample(1.0, None, GiB))
    assert one != other
    other.add(Sample(1.0, None, GiB))
    assert one == other
    assert repr(one) == "<Timeline of 1 samples in 0.0 s>"
    one.add(Sample(2.5, None, GiB))
    assert repr(one) == "<Timeline of 2 samples in 1.5 s>"
    assert repr(Timeline()) == "<Timeline of 0 samples in 0.0 s>"
    with pytest.raises(TypeError, match="unhashable"):
        hash(one)


# Disk reads


def make_reader(disks: int) -> Balloon:
    """Return a guest that reads 100 MiB of files at 1 s, and 50 MiB at 3 s."""
    reads = ((1, 100), (3, 50))
    steps = [WorkloadStep(at * SECOND, size * MiB, "cache") for at, size in reads]
    guest = GuestConfig(cache=64 * MiB, workload=tuple(steps))
    config = MachineConfig(memory=GiB, disks=disks, guest=guest)
    return make_balloon(Machine(config))


async def take_reads(balloon: Balloon) -> list[int | None]:
    async with balloon.sampler() as sampler:
        reads = [(await sampler.take()).disk_reads]
        for _ in range(2):
            await balloon.monitor.sleep(2)
            reads.append((await sampler.take()).disk_reads)
        return reads


@pytest.mark.parametrize("disks", [1, 3])
def test_samples_tell_what_was_read_since_the_beginning(disks: int) -> None:
    balloon = make_reader(disks)
    assert run(take_reads(balloon)) == [0, 100 * MiB, 150 * MiB]
    # Another sampler counts from its own beginning; QEMU from its start.
    assert run(take_reads(balloon)) == [0, 0, 0]
    assert run(balloon.disk_reads()) == DiskReads(150 * MiB, 1200)


def test_a_vm_without_disks_has_read_nothing_that_is_known() -> None:
    assert run(take_reads(make_reader(0))) == [None, None, None]


def test_watching_tells_what_is_read_meanwhile() -> None:
    async def watch() -> list[int | None]:
        samples = make_reader(1).watch(2)
        return [(await anext(samples)).disk_reads for _ in range(3)]

    assert run(watch()) == [0, 100 * MiB, 150 * MiB]


@pytest.mark.parametrize(
    ("took", "least", "most"), [(0.005, 20, 21), (0.1, 4, 8), (1.0, 2, 4)]
)
def test_disks_are_asked_about_the_less_often_the_longer_it_takes(
    took: float, least: int, most: int
) -> None:
    machine = Machine(MachineConfig(memory=GiB, disks=1))
    balloon = make_balloon(machine)
    monitor, asked = monitor_of(balloon), 0

    def count() -> int:
        return sum(name == "query-blockstats" for name, _ in monitor.commands)

    def answer_late(_: int) -> None:
        if monitor.commands[-1][0] == "query-blockstats" and count() > asked:
            machine.advance(machine.now + round(took * SECOND))

    async def take() -> None:
        nonlocal asked
        async with balloon.sampler() as sampler:
            for _ in range(20):
                asked = count()
                await sampler.take()
                await monitor.sleep(0.1)

    monitor.after_call = answer_late
    run(take())
    assert least <= count() <= most


def test_a_disk_that_is_unplugged_takes_nothing_away() -> None:
    machine = Machine(MachineConfig(memory=GiB, disks=1))
    balloon = make_balloon(machine)

    async def take(sampler: Sampler, disks: int, read: int) -> int | None:
        machine.config = evolve(machine.config, disks=disks)
        machine.guest.read = read
        return (await sampler.take()).disk_reads

    async def unplug() -> None:
        async with balloon.sampler() as sampler:
            assert await take(sampler, 1, 7 * MiB) == 7 * MiB
            assert await take(sampler, 0, 7 * MiB) == 7 * MiB
            assert await take(sampler, 1, 2 * MiB) == 7 * MiB
            assert await take(sampler, 1, 3 * MiB) == 8 * MiB

    run(unplug())


def test_recent_statistics_are_new_ones_if_the_guest_gives_any() -> None:
    balloon = make_balloon(make_machine())
    assert (run(balloon.stats()).age or 2) > 1
    found = run(find_recent_stats(balloon, 3.0))
    assert found is not None
    assert (found.age or 0) < 2


def test_recent_statistics_may_be_those_that_the_guest_gave_just_now() -> None:
    """Of a guest at rest, no new ones can be told from them within the same second."""
    balloon = make_balloon(make_machine())
    monitor = monitor_of(balloon)
    run(monitor.sleep(1.2 - monitor.machine_clock() % 1))
    last, began = run(balloon.refresh_stats()), monitor.now()
    found = run(find_recent_stats(balloon, 3.0))
    assert found is not None
    assert found.is_same_sample(last)
    assert monitor.now() - began < 0.2
    monitor.machine.guest.stall(3600 * SECOND)
    run(monitor.sleep(2.0))
    assert run(find_recent_stats(balloon, 3.0)) is None


def test_a_late_answer_is_of_the_largest_size_since_the_last_one() -> None:
    machine = make_machine(GuestConfig(stats_delay=SECOND // 2), memory=4 * GiB)
    balloon = make_balloon(machine)
    answers: list[tuple[int, int]] = []

    async def shrink() -> None:
        await balloon.set_target(GiB)
        async with balloon.sampler() as sampler:
            largest = 0
            for _ in range(60):
                await balloon.monitor.sleep(0.04)
                sample = await sampler.take()
                largest = max(largest, sample.actual)
                if sampler.silence == 0:
                    answers.append((sampler.basis, largest))
                    largest = sample.actual

    run(shrink())
    assert len(answers) > 2
    assert all(basis == largest for basis, largest in answers[1:])


def test_a_guest_at_rest_is_asked_again_as_soon_as_the_second_is_over() -> None:
    balloon = make_balloon(make_machine())
    monitor = monitor_of(balloon)
    run(monitor.sleep(1.7 - monitor.machine_clock() % 1))
    run(balloon.refresh_stats())
    began, done = monitor.now(), len(monitor.commands)
    run(balloon.refresh_stats())
    assert monitor.now() - began < 0.35
    # Once at first, and once when the second is over: more would be asked in vain.
    assert count_requests(monitor.commands[done:]) == 2


def count_requests(commands: list[tuple[str, Mapping[str, object]]]) -> int:
    """Return how often a guest was asked for its statistics."""
    return sum(
        name == "qom-set" and arguments["value"] != 0 for name, arguments in commands
    )


def test_a_guest_that_does_not_answer_at_once_is_looked_at_less_often() -> None:
    balloon = make_balloon(make_machine(GuestConfig(stats_delay=None)))
    with pytest.raises(StatsUnavailable):
        run(balloon.refresh_stats())
    looks = [name == "qom-get" for name, _ in monitor_of(balloon).commands]
    assert sum(looks) < 100  # 300 with a pause of 0.01 s between each two
