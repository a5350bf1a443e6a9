"""A Linux guest: its memory, its balloon driver, its processes.

The driver moves the balloon in steps of 1 MiB, thousands of them in a large resize.
They are not simulated one by one. Between two other events all steps take equally long,
so one division tells how many fit in. The balloon only ever moves by whole steps.

How fast the driver inflates depends on what it takes: free pages, cache that has to be
dropped first, or processes' memory that has to be swapped out. It also depends on how
much is left. Below a 64th of RAM, the rate halves whenever what is left has halved.
When nothing is left the driver stops, and retries five times a second.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from attrs import define, field, frozen

from qmpballoon.testing.model.config import SECOND
from qmpballoon.testing.model.files import FileSets
from qmpballoon.testing.model.memory import PAGE, STEP, Memory
from qmpballoon.testing.model.statistics import Counters, compute_statistics

if TYPE_CHECKING:
    import random

    from qmpballoon.testing.model.config import GuestConfig, WorkloadStep

__all__ = ["Guest"]

_RETRY: Final = SECOND // 5
"""How often the driver retries when no memory is left: Linux's driver sleeps 200 ms."""

_STALLS_PER_RETRY: Final = 2
"""Allocation stalls that a retry costs. Measured on Linux 7.2: 78 in 8 seconds."""

_REPORT_AFTER: Final = 2 * SECOND
"""When free pages are reported: Linux's ``PAGE_REPORTING_DELAY``."""

_READ_BACK_EVERY: Final = SECOND // 10
"""How often swapped memory is read back: fine enough to look continuous."""

_READ_EVERY: Final = SECOND // 10
"""How often files are read: as fine as memory is swapped in."""

_PRESSURE_BELOW: Final = 64
"""The rate falls when less than one part in so many of RAM is left."""

_PRESSURE_LEVELS: Final = 3
"""How often the rate is halved at most."""


@frozen
class _Steps:
    """Equal steps that the driver takes next.

    Attributes:
        size: Bytes in a step; negative: the balloon deflates.
        duration: Nanoseconds that a step takes.
        count: Number of steps.
        swapping: Processes' memory is swapped out for them.
    """

    size: int
    duration: int
    count: int
    swapping: bool = False


@define
class Guest:
    """A guest on its own clock, which stands still while the VM is paused.

    Attributes:
        config: What it is like.
        memory: Its memory.
        deflate_on_oom: Its balloon deflates before a process is killed.
        free_page_reporting: It reports free pages to the host.
        rng: Source of what differs from one guest to the next.
        now: Nanoseconds on its clock.
        target: The balloon size that the device asks for, in bytes.
        changed_at: When the balloon last moved, on its clock.
        oom_kills: Times that the kernel killed a process for its memory.
        panicked: It has panicked, and does nothing until it is reset.
        stalled_until: Nothing in it moves before then, on its clock.
        read: Bytes of files that it has read from disks. A reset of the machine does
            not reset what QEMU counts.
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
    read: int = field(init=False, default=0)
    _ready_at: int | None = field(init=False, default=None)
    _todo: list[WorkloadStep] = field(init=False)
    _step_from: int = field(init=False, default=0)
    _floor_since: int | None = field(init=False, default=None)
    _report_at: int | None = field(init=False, default=None)
    _read_back_at: int | None = field(init=False, default=None)
    _files: FileSets = field(init=False)
    _read_files_at: int | None = field(init=False, default=None)
    _stalls: int = field(init=False, default=0)
    _pace: int = field(init=False, default=1000)
    _frozen_statistics: dict[str, int] | None = field(init=False, default=None)

    def __attrs_post_init__(self) -> None:
        self._todo = list(self.config.workload)
        self.memory.swap = self.config.swap
        self._files = FileSets.of(self.config.files, self.config.disk_rate)
        self._draw_pace()

    def _draw_pace(self) -> None:
        # Guests differ in speed, and so does one guest after a reboot. In thousandths.
        self._pace = self.rng.randint(950, 1050)

    # Booting

    def start_booted(self) -> None:
        """Start as a guest that booted long ago, with its driver ready."""
        self._fill_memory(self.config.cache)
        self._files.fill(self.memory)
        self._ready_at = self.now
        self._plan_reads()

    def boot(self) -> None:
        """Boot, for the first time or again: memory is empty, the counters are 0."""
        ram = self.memory.ram
        first = self._ready_at is None
        cache = self.config.cache if first else self.config.pinned
        self.memory = Memory(ram, swap=self.config.swap)
        self._fill_memory(cache)
        if first:
            self._files.fill(self.memory)
        self.panicked = False
        self.oom_kills = self._stalls = 0
        self._floor_since = None
        self._ready_at = self.now + self.config.boot_time
        self._step_from = max(self._ready_at, self.stalled_until)
        self._plan_reads()
        self._draw_pace()

    def _fill_memory(self, cache: int) -> None:
        config, memory = self.config, self.memory
        memory.used = min(config.used, memory.free)
        memory.cache = min(cache, memory.spare)  # no more than can be read
        memory.pinned = min(config.pinned, memory.cache)

    @property
    def begun(self) -> bool:
        """Whether it was ever started."""
        return self._ready_at is not None

    @property
    def driver_ready(self) -> bool:
        """Whether a balloon driver drives the device."""
        ready = self._ready_at is not None and self.now >= self._ready_at
        return self.config.driver and ready

    def plug(self, size: int) -> None:
        """Add bytes of memory or, if negative, remove bytes that are not in use."""
        idle = self._plan_steps() is None
        self.memory.ram += size
        self._wake(idle=idle)

    def set_target(self, size: int) -> None:
        """Set the balloon size that the device asks for, in bytes."""
        idle = self._plan_steps() is None
        self.target = size
        self._wake(idle=idle)

    def stall(self, duration: int) -> None:
        """Stop all movement in it for a duration, in nanoseconds."""
        self.stalled_until = max(self.stalled_until, self.now + duration)
        self._step_from = max(self._step_from, self.stalled_until)

    # Time

    def find_next_event(self) -> int | None:
        """Return when it next does something on its own, other than a balloon step."""
        times = [self._todo[0].at] if self._todo else []
        if self._ready_at is not None and self.now < self._ready_at:
            times.append(self._ready_at)
        others = (
            self._report_at,
            self._read_back_at,
            self._read_files_at,
            self._find_panic_time(),
        )
        times += [t for t in others if t is not None]
        if steps := self._plan_steps():
            last = self._find_first_step(steps) + (steps.count - 1) * steps.duration
            times.append(last)
        return max(min(times), self.now) if times else None

    def find_next_step(self) -> int | None:
        """Return when the balloon next moves; ``None``: it does not."""
        steps = self._plan_steps()
        return self._find_first_step(steps) if steps else None

    def advance(self, to: int) -> None:
        """Let time pass until ``to``, and do everything that is due by then."""
        while (event := self.find_next_event()) is not None and event <= to:
            self._move(event)
            self.now = event
            self._do_due()
        self._move(to)
        self.now = max(self.now, to)

    def _move(self, to: int) -> None:
        """Take the steps that fit in until ``to``. All of them are equal."""
        steps = self._plan_steps()
        if steps is None:
            return
        count = min(steps.count, (to - self._step_from) // steps.duration)
        if count <= 0:
            return
        if steps.swapping:
            self.memory.swap_out(count * steps.size)
        if steps.size > 0:
            self.memory.inflate(count * steps.size)
        else:
            self.memory.deflate(-count * steps.size)
        self._step_from += count * steps.duration
        self.changed_at = self._step_from

    def _do_due(self) -> None:
        """Do what is due now, other than balloon steps."""
        idle = self._plan_steps() is None
        while self._todo and self._todo[0].at <= self.now:
            self._work(self._todo.pop(0))
        if self._report_at is not None and self._report_at <= self.now:
            self._report_at = None
            self.memory.report_free_pages()
        if self._read_back_at is not None and self._read_back_at <= self.now:
            self._read_back_at = None
            self.memory.swap_in(self.config.swap_rate // (SECOND // _READ_BACK_EVERY))
        if self._read_files_at is not None and self._read_files_at <= self.now:
            self._read_files()
        panic_at = self._find_panic_time()
        if panic_at is not None and panic_at <= self.now:
            self.panicked = True
        self._wake(idle=idle)

    def _find_first_step(self, steps: _Steps) -> int:
        return max(self._step_from, self.stalled_until) + steps.duration

    def _wake(self, *, idle: bool) -> None:
        """React to a change. A driver that was idle begins its first step now."""
        if idle:
            self._step_from = max(self._step_from, self.now)
        self._watch_floor()
        if self._read_back_at is None and self._reads_back:
            self._read_back_at = self.now + _READ_BACK_EVERY

    @property
    def _reads_back(self) -> bool:
        """Whether there is room to read back what was swapped out."""
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
        """Whether the balloon wants more, and no memory is left to give."""
        memory = self.memory
        left = memory.reclaimable + memory.swappable
        return self.target > memory.balloon and left < PAGE

    def _plan_steps(self) -> _Steps | None:
        """Return the equal steps that the driver takes next; ``None`` if it is idle."""
        missing = self.target - self.memory.balloon
        if missing == 0 or self.panicked or not self.driver_ready:
            return None
        return self._inflate(missing) if missing > 0 else self._deflate(-missing)

    def _deflate(self, surplus: int) -> _Steps:
        size = min(STEP, surplus)
        duration = self._compute_duration(size, self.config.deflate_rate)
        return _Steps(-size, duration, surplus // size)

    def _inflate(self, missing: int) -> _Steps | None:
        # One call for all three: no other code in here runs as often.
        spare, droppable, left = self.memory.measure_room()
        size = min(STEP, missing, left // PAGE * PAGE)
        if size == 0:
            return self._inflate_by_swapping(missing)
        free = spare >= size
        source = spare if free else droppable
        rate = self.config.inflate_rate if free else self.config.reclaim_rate
        level, above = self._compute_pressure(left)
        count = min(missing // size, source // size, -(-above // size))
        duration = self._compute_duration(size, rate) << level
        return _Steps(size, duration, max(1, count))

    def _inflate_by_swapping(self, missing: int) -> _Steps | None:
        """Return steps for which processes' memory is swapped out."""
        config, source = self.config, self.memory.swappable
        size = min(STEP, missing, source)
        if size == 0:
            return None
        # What the processes read back at once takes its time twice.
        rate = config.swap_rate * (100 - config.refaults) // (100 + config.refaults)
        count = min(missing, source) // size
        duration = self._compute_duration(size, max(1, rate))
        return _Steps(size, duration, count, swapping=True)

    def _compute_pressure(self, left: int) -> tuple[int, int]:
        """Return how often the rate is halved, and how many bytes until the next."""
        limit = self.memory.ram // _PRESSURE_BELOW
        level = 0
        while left <= limit and level < _PRESSURE_LEVELS:
            level += 1
            limit //= 2
        return level, left - limit if level < _PRESSURE_LEVELS else left

    def _compute_duration(self, size: int, rate: int) -> int:
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
            self.read += size
            memory.read(size)
            return
        size = min(size, memory.droppable)
        memory.cache -= size
        memory.warm += size

    def _read_files(self) -> None:
        """Read what processes read in the time until the next reads."""
        if not self.panicked and self.now >= self.stalled_until:
            self.read += self._files.read(self.memory, self.now, _READ_EVERY)
        self._plan_reads(_READ_EVERY)

    def _plan_reads(self, pause: int = 0) -> None:
        """Plan when files are read next, once it has booted.

        Args:
            pause: Nanoseconds until then at least.
        """
        ready = self._ready_at or 0
        earliest = max(self.now + pause, ready)
        self._read_files_at = self._files.find_next_read(earliest)

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

    def _find_panic_time(self) -> int | None:
        after = self.config.panic_after
        if after is None or self._floor_since is None or self.panicked:
            return None
        return None if self.deflate_on_oom else self._floor_since + after

    # Statistics

    @property
    def alloc_stalls(self) -> int:
        """Times that an allocation had to wait since the guest booted."""
        stalls = self._stalls + self.memory.swapped_out // STEP
        if self._floor_since is None:
            return stalls
        retries = (self.now - self._floor_since) // _RETRY
        return stalls + retries * _STALLS_PER_RETRY

    def tell_statistics(self) -> dict[str, int]:
        """Return what its driver tells, under QEMU's names without ``stat-``."""
        if self._frozen_statistics is not None:
            return self._frozen_statistics
        config = self.config
        counters = Counters(self.oom_kills, self.alloc_stalls)
        stats = compute_statistics(config, self.memory, counters)
        if config.frozen_after is not None and self.now >= config.frozen_after:
            self._frozen_statistics = stats
        return stats

    @property
    def answer_time(self) -> int | None:
        """When it answers a request for statistics made now; ``None``: never."""
        config = self.config
        silent = config.silent_after is not None and self.now >= config.silent_after
        if config.stats_delay is None or silent or self.panicked:
            return None
        return max(self.now, self.stalled_until) + config.stats_delay
