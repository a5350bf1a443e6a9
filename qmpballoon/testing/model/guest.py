"""A Linux guest: its memory, its balloon driver, its processes.

The driver moves one step of 1 MiB after the other, thousands of them in a large
resize. They are not simulated one by one: between two times at which anything else
happens all steps take equally long, so the guest is advanced to any time by one
division, and still only ever shows whole steps.

How fast the driver inflates depends on what it takes (free pages, cache that has to
be dropped first, processes' memory that has to be swapped out) and on how little is
left: each time that what can still be had halves, below a 64th of RAM, so does the
rate. At the floor it stops, and tries again five times a second.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from attrs import define, field, frozen

from qmpballoon.testing.model.guest_config import SECOND, GuestConfig
from qmpballoon.testing.model.memory import PAGE, STEP, Memory
from qmpballoon.testing.model.statistics import Witness

if TYPE_CHECKING:
    import random

    from qmpballoon.testing.model.workload import WorkloadStep

__all__ = ["SECOND", "Guest", "GuestConfig"]

_RETRY: Final = SECOND // 5
_REPORT_AFTER: Final = 2 * SECOND
_READ_BACK_EVERY: Final = SECOND // 10
_STALLS_PER_RETRY: Final = 2
_PRESSURE_BELOW: Final = 64  # one part in so many of RAM
_PRESSURE_LEVELS: Final = 3


@frozen
class _Segment:
    """Equal steps ahead: how large (negative: deflation), how long, how many."""

    size: int
    duration: int
    count: int
    swapping: bool = False


@define
class Guest:
    """A guest that is advanced along its own clock, which stands while it is paused.

    Attributes:
        memory: Its books.
        now: Nanoseconds on its clock.
        target: The balloon's size that the device asks for, in bytes.
        changed_at: When the balloon last moved, on its clock.
        oom_kills: Times that the kernel killed a process for its memory.
        panicked: It is dead until it is reset.
    """

    config: GuestConfig
    memory: Memory
    deflate_on_oom: bool
    free_page_reporting: bool
    rng: random.Random
    now: int = field(init=False, default=0)
    target: int = field(init=False, default=0)
    changed_at: int = field(init=False, default=0)
    oom_kills: int = field(init=False, default=0)
    panicked: bool = field(init=False, default=False)
    stalled_until: int = field(init=False, default=0)
    _ready_at: int | None = field(init=False, default=None)
    _todo: list[WorkloadStep] = field(init=False)
    _step_from: int = field(init=False, default=0)
    _floor_since: int | None = field(init=False, default=None)
    _report_at: int | None = field(init=False, default=None)
    _read_back_at: int | None = field(init=False, default=None)
    _stalls: int = field(init=False, default=0)
    _pace: int = field(init=False, default=1000)
    _witness: Witness = field(init=False, factory=Witness)

    def __attrs_post_init__(self) -> None:
        self._todo = list(self.config.workload)
        self.memory.swap = self.config.swap
        self._draw_pace()

    def _draw_pace(self) -> None:
        # No two guests are equally fast, nor is one after a reboot.
        self._pace = self.rng.randint(950, 1050)

    # Its life

    def start_booted(self) -> None:
        """Begin in the middle of its life, with the driver there."""
        self._settle_in(self.config.cache)
        self._ready_at = self.now

    def boot(self) -> None:
        """Begin, or begin again: everything it had is gone."""
        ram = self.memory.ram
        first = self._ready_at is None
        cache = self.config.cache if first else self.config.pinned
        self.memory = Memory(ram, swap=self.config.swap)
        self._settle_in(cache)
        self.panicked = False
        self.oom_kills = self._stalls = 0
        self._floor_since = None
        self._ready_at = self.now + self.config.boot_time
        self._step_from = self._ready_at
        self._draw_pace()

    def _settle_in(self, cache: int) -> None:
        config, memory = self.config, self.memory
        memory.used = min(config.used, memory.free)
        memory.cache = min(cache, memory.spare)  # as much as can be read
        memory.pinned = min(config.pinned, memory.cache)

    @property
    def begun(self) -> bool:
        """Tell whether it was ever started."""
        return self._ready_at is not None

    @property
    def driver_ready(self) -> bool:
        """Tell whether a balloon driver drives the device."""
        ready = self._ready_at is not None and self.now >= self._ready_at
        return self.config.driver and ready

    def plug(self, size: int) -> None:
        """Add memory, or take some that is not in use away."""
        idle = self._segment() is None
        self.memory.ram += size
        self._wake(idle=idle)

    def set_target(self, size: int) -> None:
        """Take the balloon's size that the device asks for, in bytes."""
        idle = self._segment() is None
        self.target = size
        self._wake(idle=idle)

    def stall(self, duration: int) -> None:
        """Let nothing in it move for so long."""
        self.stalled_until = max(self.stalled_until, self.now + duration)
        self._step_from = max(self._step_from, self.stalled_until)

    # Time

    def next_event_time(self) -> int | None:
        """Return when it next does something by itself, apart from stepping."""
        times = [self._todo[0].at] if self._todo else []
        if self._ready_at is not None and self.now < self._ready_at:
            times.append(self._ready_at)
        others = (self._report_at, self._read_back_at, self._panic_at())
        times += [t for t in others if t is not None]
        if segment := self._segment():
            last = self._first_step(segment) + (segment.count - 1) * segment.duration
            times.append(last)
        return max(min(times), self.now) if times else None

    def next_step_time(self) -> int | None:
        """Return when the balloon's size changes next."""
        segment = self._segment()
        return self._first_step(segment) if segment else None

    def advance(self, to: int) -> None:
        """Let time pass up to ``to``, and everything happen that happens by then."""
        while (event := self.next_event_time()) is not None and event <= to:
            self._move(event)
            self.now = event
            self._happen()
        self._move(to)
        self.now = max(self.now, to)

    def _move(self, to: int) -> None:
        """Take the steps that fit in until ``to``; they are all equal."""
        segment = self._segment()
        if segment is None:
            return
        count = min(segment.count, (to - self._step_from) // segment.duration)
        if count <= 0:
            return
        if segment.swapping:
            self.memory.swap_out(count * segment.size)
        if segment.size > 0:
            self.memory.inflate(count * segment.size)
        else:
            self.memory.deflate(-count * segment.size)
        self._step_from += count * segment.duration
        self.changed_at = self._step_from

    def _happen(self) -> None:
        idle = self._segment() is None
        while self._todo and self._todo[0].at <= self.now:
            self._work(self._todo.pop(0))
        if self._report_at is not None and self._report_at <= self.now:
            self._report_at = None
            self.memory.report_free_pages()
        if self._read_back_at is not None and self._read_back_at <= self.now:
            self._read_back_at = None
            self.memory.swap_in(self.config.swap_rate // (SECOND // _READ_BACK_EVERY))
        panic_at = self._panic_at()
        if panic_at is not None and panic_at <= self.now:
            self.panicked = True
        self._wake(idle=idle)

    def _first_step(self, segment: _Segment) -> int:
        return max(self._step_from, self.stalled_until) + segment.duration

    def _wake(self, *, idle: bool) -> None:
        """Begin to step from now on, if the driver was idle; else go on in step."""
        if idle:
            self._step_from = max(self._step_from, self.now)
        self._watch_floor()
        if self._read_back_at is None and self._reads_back:
            self._read_back_at = self.now + _READ_BACK_EVERY

    @property
    def _reads_back(self) -> bool:
        """Tell whether there is room by now for what was swapped out."""
        memory = self.memory
        wanted = self.config.refaults > 0 and memory.swapped > 0
        return wanted and self.target <= memory.balloon and memory.spare >= PAGE

    def _watch_floor(self) -> None:
        at_floor = self.driver_ready and self.at_floor
        if at_floor and self._floor_since is None:
            self._floor_since = self.now
        elif not at_floor and self._floor_since is not None:
            self._stalls = self.alloc_stalls
            self._floor_since = None
            self._step_from = max(self._step_from, self.now)

    # The driver

    @property
    def at_floor(self) -> bool:
        """Tell whether the balloon wants more and there is nothing left to give."""
        memory = self.memory
        left = memory.reclaimable + memory.swappable
        return self.target > memory.balloon and left < PAGE

    def _segment(self) -> _Segment | None:
        """Return the equal steps that the driver takes next, if it takes any."""
        missing = self.target - self.memory.balloon
        if missing == 0 or self.panicked or not self.driver_ready:
            return None
        return self._inflation(missing) if missing > 0 else self._deflation(-missing)

    def _deflation(self, surplus: int) -> _Segment:
        size = min(STEP, surplus)
        duration = self._duration(size, self.config.deflate_rate)
        return _Segment(-size, duration, surplus // size)

    def _inflation(self, missing: int) -> _Segment | None:
        # Looked up once: this is asked more often than anything else in here.
        spare, droppable, left = self.memory.at_hand()
        size = min(STEP, missing, left // PAGE * PAGE)
        if size == 0:
            return self._squeezing(missing)
        free = spare >= size
        source = spare if free else droppable
        rate = self.config.inflate_rate if free else self.config.reclaim_rate
        level, above = self._pressure(left)
        count = min(missing // size, source // size, -(-above // size))
        duration = self._duration(size, rate) << level
        return _Segment(size, duration, max(1, count))

    def _squeezing(self, missing: int) -> _Segment | None:
        """Return the steps for which processes' memory is swapped out."""
        config, source = self.config, self.memory.swappable
        size = min(STEP, missing, source)
        if size == 0:
            return None
        # What its processes want back at once costs its time both ways.
        rate = config.swap_rate * (100 - config.refaults) // (100 + config.refaults)
        count = min(missing, source) // size
        return _Segment(size, self._duration(size, max(1, rate)), count, swapping=True)

    def _pressure(self, left: int) -> tuple[int, int]:
        """Return how often the rate is halved, and what may go until it is again."""
        limit = self.memory.ram // _PRESSURE_BELOW
        level = 0
        while left <= limit and level < _PRESSURE_LEVELS:
            level += 1
            limit //= 2
        return level, left - limit if level < _PRESSURE_LEVELS else left

    def _duration(self, size: int, rate: int) -> int:
        return max(1, size * SECOND * 1000 // (rate * self._pace))

    # Processes

    def _work(self, step: WorkloadStep) -> None:
        delta = (abs(step.delta) + PAGE - 1) // PAGE * PAGE
        if step.kind == "cache":
            self._read_or_delete(delta, delete=step.delta < 0)
        elif step.delta > 0:
            self._allocate(delta)
        else:
            self.memory.release(min(delta, self.memory.allocated))
        if self.free_page_reporting and self.memory.warm and self._report_at is None:
            self._report_at = self.now + _REPORT_AFTER

    def _read_or_delete(self, size: int, *, delete: bool) -> None:
        memory = self.memory
        if not delete:
            memory.read(size)
            return
        size = min(size, memory.droppable)
        memory.cache -= size
        memory.warm += size

    def _allocate(self, size: int) -> None:
        memory = self.memory
        short = max(0, size - memory.reclaimable)
        swapped = min(short, memory.swappable)
        memory.swap_out(swapped)
        short -= swapped
        if short > 0:
            self._stalls += short // STEP + 1
            if self.deflate_on_oom:
                memory.deflate(min(memory.balloon, -(-short // STEP) * STEP))
                self.changed_at = self.now
        if size <= memory.reclaimable:
            memory.allocate(size)
            return
        self.oom_kills += 1
        memory.release(memory.allocated)

    def _panic_at(self) -> int | None:
        after = self.config.panic_after
        if after is None or self._floor_since is None or self.panicked:
            return None
        return None if self.deflate_on_oom else self._floor_since + after

    # What it says of itself

    @property
    def alloc_stalls(self) -> int:
        """Times that an allocation had to wait, so far."""
        stalls = self._stalls + self.memory.swapped_out // STEP
        if self._floor_since is None:
            return stalls
        retries = (self.now - self._floor_since) // _RETRY
        return stalls + retries * _STALLS_PER_RETRY

    def statistics(self) -> dict[str, int]:
        """Return what its driver answers, under QEMU's names without ``stat-``."""
        return self._witness.answer(self)

    @property
    def answer_time(self) -> int | None:
        """When it will have answered if it is asked now; None: never."""
        config = self.config
        silent = config.silent_after is not None and self.now >= config.silent_after
        if config.stats_delay is None or silent or self.panicked:
            return None
        return max(self.now, self.stalled_until) + config.stats_delay
