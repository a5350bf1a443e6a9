"""No call harms a guest: random guests, each compared to itself without us."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attrs import evolve, frozen
from faults import Cancelled, attempt, monitor_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from simulation import make_balloon, make_machine

from qmpballoon.balloon.device import PAGE
from qmpballoon.balloon.guard import Guard
from qmpballoon.errors import StatsUnavailable
from qmpballoon.sizes import MiB, TiB
from qmpballoon.testing import SECOND, GuestConfig, Machine, WorkloadStep, ramp

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from qmpballoon.balloon._reclaim import ReclaimReport
    from qmpballoon.balloon.balloon import Balloon
    from qmpballoon.balloon.results import OnStall

BOOTED = 60 * SECOND
MILLISECOND = SECOND // 1000
UNTIL = 30  # seconds in which the guests do something


@frozen
class Life:
    """A guest, and what happens in it."""

    memory: int
    guest: GuestConfig
    seed: int
    version: str

    def machine(self) -> Machine:
        return make_machine(
            self.guest, memory=self.memory, seed=self.seed, version=self.version
        )


@st.composite
def ramps(draw: st.DrawFn, memory: int) -> tuple[WorkloadStep, ...]:
    """Allocate as fast as a guest can, hold it, and free it; perhaps several times."""
    steps: tuple[WorkloadStep, ...] = ()
    at = BOOTED + draw(st.integers(0, 8000)) * MILLISECOND
    for _ in range(draw(st.integers(0, 4))):
        size = memory * draw(st.integers(1, 50)) // 100
        # In a second a process of a large guest fills no more than others do.
        seconds = max(size / min(memory // 4, 1 << 30), 0.1)
        stop = at + round(seconds * SECOND)
        steps += ramp(at, stop, size, steps=max(1, round(seconds * 100)))
        at = stop + draw(st.integers(0, 3000)) * MILLISECOND
        if draw(st.booleans()):
            steps += (WorkloadStep(at, -size),)
    return steps


@st.composite
def lives(draw: st.DrawFn, *, delay: int | None = 20) -> Life:
    memory = draw(st.integers(256, 2048) | st.integers(256, TiB // MiB)) * MiB
    used = memory * draw(st.integers(2, 60)) // 100
    return Life(
        memory,
        GuestConfig(
            used=used,
            cache=memory * draw(st.integers(0, 100)) // 100,
            # A guest of any size is done in some seconds, or simulating takes ages.
            inflate_rate=max(1 << 30, memory // 8),
            reclaim_rate=max(1 << 29, memory // 8),
            deflate_rate=max(2 << 30, memory // 4),
            stats_delay=draw(st.integers(0, (delay or 1000) * MILLISECOND)),
            extended_stats=draw(st.booleans()),
            workload=draw(ramps(memory)),
        ),
        draw(st.integers(0, 1000)),
        draw(st.sampled_from(["7.2", "10.0", "11.1"])),
    )


def without_us(life: Life, until: int = BOOTED + 120 * SECOND) -> int:
    """Return how many processes are killed by then if nobody reclaims."""
    machine = life.machine()
    machine.advance(until)
    return machine.guest.oom_kills


def told(machine: Machine) -> int:
    assert machine.device is not None
    return machine.guest.memory.ram - machine.device.asked * PAGE


class Watch:
    """Looks at the guest itself, before and after every call."""

    def __init__(self, balloon: Balloon) -> None:
        self.machine = monitor_of(balloon).machine
        self.lowest = self.lowest_told = self.machine.guest.memory.ram
        monitor_of(balloon).before_call = self.look
        monitor_of(balloon).after_call = self.look

    def look(self, _: int) -> None:
        assert self.machine.actual is not None
        self.lowest = min(self.lowest, self.machine.actual)
        self.lowest_told = min(self.lowest_told, told(self.machine))


def check(report: ReclaimReport, life: Life) -> None:
    """Hold the figures of a report against each other."""
    assert report.before.actual == life.memory
    if report.outcome == "refused":
        assert (len(report.timeline), report.handed_over) == (0, 0)
        return
    sizes = [sample.actual for sample in report.timeline]
    times = [sample.t for sample in report.timeline]
    assert report.handed_over == report.before.actual - min(sizes)
    assert times == sorted(times)
    assert times[-1] <= report.seconds
    assert report.held == (report.after.actual < report.before.actual)
    for sample in report.timeline:
        known = sample.free, sample.total
        assert None in known or sample.free <= sample.total  # type: ignore[operator]


def reclaim(life: Life) -> tuple[Machine, Watch, BaseException | None]:
    balloon = make_balloon(life.machine())
    watch = Watch(balloon)
    reports: list[ReclaimReport] = []

    async def operation(balloon: Balloon) -> None:
        reports.append(await balloon.reclaim())

    raised = attempt(balloon, operation)
    for report in reports:
        check(report, life)
    return watch.machine, watch, raised


# One takes a second or so: some by default, and thousands of them by night.
quiet = settings(
    max_examples=max(10, settings().max_examples // 10),
    suppress_health_check=list(HealthCheck),
)


@quiet
@given(lives())
def test_nobody_is_killed_who_would_have_lived_without_us(life: Life) -> None:
    machine, watch, raised = reclaim(life)
    assert raised is None or isinstance(raised, StatsUnavailable)
    limits = Guard().compute_limits(life.memory)
    assert watch.lowest_told >= limits.floor
    assert watch.lowest >= limits.floor
    assert told(machine) == life.memory
    machine.advance(max(machine.now, BOOTED + 120 * SECOND))
    assert machine.guest.oom_kills <= without_us(life)
    assert not machine.guest.panicked


@quiet
@given(lives(delay=None), st.integers(0, 8000), st.integers(0, 2**62), st.booleans())
def test_late_frozen_or_lying_statistics_never_take_it_below_its_floor(
    life: Life, frozen_at: int, lie: int, freeze: bool
) -> None:
    guest = (
        evolve(life.guest, frozen_after=BOOTED + frozen_at * MILLISECOND)
        if freeze
        else evolve(life.guest, claims={"available-memory": lie, "oom-kills": lie % 3})
    )
    life = evolve(life, guest=guest)
    balloon = make_balloon(life.machine())
    watch = Watch(balloon)
    machine = watch.machine
    raised = attempt(balloon, lambda balloon: balloon.reclaim())
    assert raised is None or isinstance(raised, StatsUnavailable)
    assert watch.lowest_told >= Guard().compute_limits(life.memory).floor
    assert told(machine) == life.memory


@quiet
@given(
    lives(), st.integers(1, 2000), st.booleans(), st.sampled_from(["before", "after"])
)
def test_cancelled_anywhere_the_guest_can_live_with_its_target(
    life: Life, number: int, hold: bool, before: bool
) -> None:
    balloon = make_balloon(life.machine())
    monitor = monitor_of(balloon)

    def cancel(call: int) -> None:
        if call == number:
            raise Cancelled

    if before:
        monitor.before_call = cancel
    else:
        monitor.after_call = cancel
    raised = attempt(balloon, lambda balloon: balloon.reclaim(hold=hold))
    machine = monitor.machine
    if isinstance(raised, Cancelled):
        assert told(machine) == life.memory
        machine.advance(max(machine.now, BOOTED + 120 * SECOND))
        assert machine.guest.oom_kills <= without_us(life)


@quiet
@given(lives(), st.integers(1, 40))
def test_keeping_kills_nobody_who_would_have_lived_without_us(
    life: Life, seconds: int
) -> None:
    balloon = make_balloon(life.machine())
    watch = Watch(balloon)
    raised = attempt(balloon, lambda balloon: balloon.keep(seconds=seconds))
    assert raised is None or isinstance(raised, StatsUnavailable)
    machine = watch.machine
    assert watch.lowest_told >= Guard().compute_limits(life.memory).floor
    assert told(machine) == life.memory
    machine.advance(max(machine.now, BOOTED + 120 * SECOND))
    assert machine.guest.oom_kills <= without_us(life)
    assert not machine.guest.panicked


@quiet
@given(lives(), st.integers(1, 100), st.sampled_from(["settle", "rollback"]))
def test_resizing_kills_nobody_who_would_have_lived_without_us(
    life: Life, percent: int, on_stall: OnStall
) -> None:
    balloon = make_balloon(life.machine())
    watch = Watch(balloon)
    floor = Guard().compute_limits(life.memory).floor
    target = max(floor, life.memory * percent // 100)
    raised = attempt(
        balloon,
        lambda balloon: balloon.resize(target, guard=Guard(), on_stall=on_stall),
    )
    assert raised is None
    machine = watch.machine
    assert watch.lowest_told >= target
    # What it needs later is up to whoever ordered that size.
    assert machine.guest.oom_kills <= without_us(life, machine.now)
    assert not machine.guest.panicked


@quiet
@given(
    lives(delay=None),
    st.integers(0, 8000),
    st.integers(0, 2**62),
    st.sampled_from(["keep", "resize"]),
    st.booleans(),
)
def test_no_lie_takes_a_guest_below_its_floor_in_any_call(
    life: Life, frozen_at: int, lie: int, call: str, freeze: bool
) -> None:
    guest = (
        evolve(life.guest, frozen_after=BOOTED + frozen_at * MILLISECOND)
        if freeze
        else evolve(life.guest, claims={"available-memory": lie, "swap-out": lie % 3})
    )
    balloon = make_balloon(evolve(life, guest=guest).machine())
    watch = Watch(balloon)
    floor = Guard().compute_limits(life.memory).floor
    calls: dict[str, Callable[[Balloon], Coroutine[Any, Any, Any]]] = {
        "keep": lambda balloon: balloon.keep(seconds=5),
        "resize": lambda balloon: balloon.resize(
            floor, guard=Guard(), on_stall="settle"
        ),
    }
    raised = attempt(balloon, calls[call])
    assert raised is None or isinstance(raised, StatsUnavailable)
    assert watch.lowest_told >= floor
    assert call == "resize" or told(watch.machine) == life.memory
