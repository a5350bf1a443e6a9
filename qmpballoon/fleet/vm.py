"""What is known of one VM, and what follows from it.

Pure: polls of the VM in, its state out.

Statistics that cannot be true, such as more memory than the VM has, put the VM in the
state ``nonsense``. It is then left alone until half a minute after the last of them.
What the guest was granted, how fast it moves and what it holds are taken from the
host's figures: see :mod:`qmpballoon.fleet.movement`.

A guest's statistics mean something only together with the size that the guest had when
it took them. QEMU reports neither when it asked the guest nor what the size was then.
So a sample counts as *aligned* with the present size only if the size was already the
same at the poll before the one that first showed the sample.

A guest that can have used hardly any memory since its last answer is polled less often:
see :mod:`qmpballoon.fleet.usage`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from attrs import define, evolve, field, frozen

from qmpballoon.balloon.device import LARGEST_PAGE, lacks_ram
from qmpballoon.balloon.results import describe_holder
from qmpballoon.balloon.stats import GuestStats
from qmpballoon.fleet.guests import Guest
from qmpballoon.fleet.hot_cache import CacheSample, HotCache
from qmpballoon.fleet.movement import Pace, Promise, Stray
from qmpballoon.fleet.usage import UsageBound, UsageRate
from qmpballoon.fleet.vm_view import NO_STATISTICS, SmallGuest, VmCounters, VmView
from qmpballoon.sizes import format_size

if TYPE_CHECKING:
    from qmpballoon.balloon.results import DiskReads, ResizeResult
    from qmpballoon.fleet.vm_spec import Bounds, Limit, VmSpec
    from qmpballoon.fleet.vm_view import VmState

__all__ = ["VmRecord"]

_DETAILS: Final[dict[VmState, str]] = {
    "stale": "the guest does not answer: it hangs, or lost its driver",
    "no-driver": "the guest never answered: load virtio_balloon in it (on Windows"
    " install the Balloon Service too)",
}
_OWED: Final = (
    "a run that was interrupted left the guest with less than its {}: the next `fleet"
    " run` or reclaim gives that back"
)
# Seconds for which a guest that stalled is not asked again. The pause doubles with each
# stall, up to 10 minutes: what made a guest stall, such as a busy driver or memory that
# it cannot free, often lasts. A guest that reports nonsense is left alone for as long
# as one that stalled once.
_FIRST_PAUSE: Final = 30.0
_LONGEST_PAUSE: Final = 600.0
# Periods. A VM that does nothing is polled at least this often.
_LONGEST_WAIT: Final = 4


@frozen
class _Watched:
    """What a guest had available while a move watched it.

    Attributes:
        at: When, on the monitor's clock.
        actual: Bytes that it had then.
        available: Bytes of these that it had available.
    """

    at: float
    actual: int
    available: int


def _keep_bounds(_: str, __: int, bounds: Bounds) -> Bounds:
    return bounds


@define
class VmRecord:
    """Keeps what is known of one VM.

    Attributes:
        spec: The VM and its limits.
        stale_after: Seconds without an answer, after which the guest counts as silent.
        period: Seconds between two polls, and between two plans.
        actual: How many bytes the guest has; ``None`` if not known.
        total: Bytes of its RAM.
        capacity: Bytes of memory that its guest can have: RAM, and what else is plugged
            in.
        resident: Bytes of the host's memory that QEMU holds.
        target: The size that it is moving to.
        stats: The guest's latest statistics.
        counters: What has happened to the VM.
        bounds: Its limits, known once its RAM is.
        owed: The size in bytes that an interrupted run owes the guest.
        holder: The id of another process that holds memory of the guest.
        found: The size in bytes that the guest had before it was first moved; ``None``
            if that was all its RAM, or if it has had all its RAM since.
        polled_at: When it was last polled, on the monitor's clock.
        checked_at: When it was last polled, or found not to need it.
        disk_reads: What it has read from its disks, if that is known.
        limit: Returns the limits that apply, given those of its specification.
    """

    spec: VmSpec
    stale_after: float
    period: float = 1.0
    actual: int | None = None
    total: int | None = None
    capacity: int | None = None
    resident: int | None = None
    target: int | None = None
    stats: GuestStats = field(factory=GuestStats)
    counters: VmCounters = field(factory=VmCounters)
    bounds: Bounds | None = None
    owed: int | None = None
    holder: int | None = None
    found: int | None = None
    polled_at: float = -math.inf
    checked_at: float = -math.inf
    disk_reads: DiskReads | None = None
    limit: Limit = _keep_bounds
    _state: VmState = "connecting"
    _detail: str = ""
    # These are all moments on the monitor's clock.
    _connected_at: float = -math.inf
    _steady_since: float = math.inf  # since when it has its present size
    _asked_at: float = -math.inf  # the latest sample is not older than this
    _answered_at: float = -math.inf
    _stalled_until: float = -math.inf
    _pause: float = _FIRST_PAUSE
    _nonsense_until: float = -math.inf
    _nonsense: str = ""
    _silence: str = ""  # why it does not answer, if that is known
    _prompted_at: float = -math.inf  # when it was last prompted for an answer
    _has_driver: bool = False  # its balloon has moved
    _doubts_ram: bool = False
    _is_unjudged: bool = False  # its statistics exceed the RAM that was known
    _usage_rate: UsageRate = field(factory=UsageRate)
    _promise: Promise = field(factory=Promise)
    _last_size: int = 0  # bytes that it had when the connection was lost
    _pace: Pace | None = None
    _stray: Stray = field(factory=Stray)
    _watched: _Watched | None = None
    _was_moved: bool = False  # by this fleet
    _left_at: int | None = None  # the target of a move that did not end
    _hot_cache: HotCache = field(factory=HotCache)
    _usage_bound: UsageBound = field(factory=UsageBound)

    def begin_anew(self) -> VmRecord:
        """Return a record of the same VM with only what must not be lost.

        For a VM whose figures have raised an error: each of them may be the cause.
        """
        new = VmRecord(self.spec, self.stale_after, self.period, limit=self.limit)
        new.counters = self.counters
        new.found, new._was_moved = self.found, self._was_moved
        new._last_size = self._size
        return new

    # Events

    def note_connected(self, now: float) -> None:
        """Note that the monitor answers, and that the balloon was found."""
        self._state, self._detail = "healthy", ""
        self._connected_at = now
        self._answered_at = self.polled_at = self.checked_at = -math.inf
        self._steady_since = math.inf
        self._silence, self._prompted_at = "", now
        self.stats = GuestStats()
        self._usage_rate, self._usage_bound = UsageRate(), UsageBound()
        self._stray, self._watched = Stray(), None
        self._hot_cache = HotCache()

    def note_lost(
        self,
        state: VmState,
        detail: str,
        resident: int | None = None,
        *,
        has_ended: bool = False,
    ) -> None:
        """Note that it cannot be reached. What was known of it no longer counts.

        What it was granted still counts, as it may touch that. So does its size, until
        its QEMU is known to have ended.

        Args:
            state: Its state.
            detail: What is wrong and what to do.
            resident: Bytes that its QEMU still holds; ``None`` if not known.
            has_ended: Whether nobody listens at its monitor any more.
        """
        if self.connected:
            self.counters = evolve(self.counters, losses=self.counters.losses + 1)
            self._promise.note_lost(self.polled_at)
            self._last_size = self._size
        if has_ended:
            self._last_size = 0
        self._state, self._detail = state, detail
        self.actual = self.target = None
        self._pace = None
        self.resident, self.disk_reads = resident, None

    def note_holder(self, holder: int | None) -> None:
        """Note which other process holds memory of its guest; ``None``: none does."""
        if holder != self.holder:
            self._stray = Stray()  # that process moves it, and may go on to
        self.holder = holder

    def note_turn(self, now: float, ran: float | None) -> None:
        """Note that it is its turn to be polled, even if it will not be.

        Args:
            now: When.
            ran: Seconds for which its QEMU has run so far; ``None``: not known.
        """
        self._usage_bound.note_turn(now, ran)

    def note_idle(self, now: float) -> None:
        """Note that it has not changed since its last poll, as far as the host sees."""
        self.checked_at = now
        available, actual = self.stats.reclaimable, self.actual
        if actual is not None and available is not None:
            self._usage_rate.add_sample(now, actual - available)
            self._watch_size(now, actual)

    def note_poll(
        self,
        now: float,
        actual: int,
        stats: GuestStats,
        resident: int | None,
        disk_reads: DiskReads | None = None,
    ) -> None:
        """Take in what a poll has shown."""
        first = self.polled_at == -math.inf
        if actual != self.actual or first:
            self._steady_since = now
        is_new = stats.last_update != self.stats.last_update and not first
        if is_new:
            self._asked_at, self._answered_at = self.polled_at, now
            self._usage_bound.note_answer(now, stats.age)
        self.polled_at = self.checked_at = now
        if now >= self._stalled_until:
            self._detail = ""
        self.actual, self.stats, self.resident = actual, stats, resident
        if self.total is not None and not self.is_owed:
            self.owed = None  # it has it
        if is_new and self._is_aligned and stats.reclaimable is not None:
            self._usage_rate.add_sample(now, actual - stats.reclaimable)
            self._watch_reads(now, actual, min(actual, stats.reclaimable))
        self.disk_reads = disk_reads
        self._left_at = None
        self._note_found()
        self._promise.observe(self._untouched_memory)
        self._watch_size(now, actual)
        is_too_much = not stats.nonsense and stats.find_nonsense(self.capacity)
        # Memory may have been plugged, so the RAM is asked for before judging.
        self._is_unjudged = bool(is_too_much)
        self._doubts_ram |= self._is_unjudged or actual > (self.total or 0)
        if not self._is_unjudged:
            self._judge_stats(now)

    def note_resident(self, resident: int | None) -> None:
        """Note how much of the host's memory its QEMU holds, between two polls.

        Args:
            resident: Bytes; ``None`` if that is not known.
        """
        self.resident = resident
        self._promise.observe(self._untouched_memory)

    def note_ram(self, total: int | None, capacity: int | None) -> None:
        """Note its RAM; if QEMU does not tell, the largest size seen so far.

        Args:
            total: Bytes of its RAM.
            capacity: Bytes of memory that its guest can have.
        """
        known = total or max(self.total or 0, self.actual or 0)
        if known and known != self.total:
            if self.total is not None:
                self._stray.shift(known - self.total)
            self.total = known
            self._compute_bounds()
        self.capacity, self._doubts_ram, self._is_unjudged = capacity, False, False
        self._note_found()
        self._has_driver |= known > (self.actual or known)
        self._judge_stats(self.polled_at)

    def note_limit(self, limit: Limit) -> None:
        """Note the function that changes its limits from now on."""
        self.limit = limit
        self._compute_bounds()

    def _compute_bounds(self) -> None:
        if self.total is not None:
            own = self.spec.compute_bounds(self.total)
            self.bounds = self.limit(self.spec.name, self.total, own)

    def note_prompted(self, now: float, stopped: str | None) -> None:
        """Note that a silent guest was prompted for an answer.

        Args:
            now: When.
            stopped: Why the VM does not run, and what to do; ``None`` if it runs.
        """
        self._prompted_at, self._silence = now, stopped or ""

    def note_timeout(self, detail: str) -> None:
        """Note that QEMU did not answer a poll."""
        self._detail = detail

    def note_move_started(self, now: float, target: int) -> None:
        """Note that its balloon is about to be moved."""
        self.target, self._pace = target, Pace(now)
        self._was_moved, self._left_at = True, None
        self._promise.add(now, target - (self.actual or 0))

    def note_progress(
        self, now: float, actual: int, available: int | None = None
    ) -> None:
        """Note its size during a move. This counts as an answer: the move polls it.

        Args:
            now: When.
            actual: Bytes that the guest has.
            available: Bytes of these that it has available, if the move watches that.
        """
        self._note_regained(now, actual)
        self.actual, self._answered_at = actual, now
        if available is not None:
            self._watched = _Watched(now, actual, available)
            self._usage_rate.add_close_sample(now, actual - available)
        if self._pace is not None:
            self._pace.add_sample(now, actual)

    def note_move_ended(self, now: float, result: ResizeResult) -> None:
        """Note how its move ended."""
        self._note_regained(now, result.actual)
        self.target, self.actual = None, result.actual
        self._steady_since = now
        self._note_found()
        self._stray.leave_at(now, result.target)
        change, asked = result.actual - result.before, result.requested - result.before
        self._count_move(change, reached=result.outcome == "reached")
        self._has_driver |= change != 0
        self._promise.withdraw(max(0, asked) - max(0, change))
        if result.outcome == "reached":
            # It can be moved again once it has answered at its new size.
            self._pause, self._watched = _FIRST_PAUSE, None
            return
        # A guest in trouble has a target above its size: it gets everything back.
        in_trouble = result.target > result.actual
        if asked < 0 and (in_trouble or abs(change) < abs(asked) // 2):
            detail = result.diagnosis.detail if result.diagnosis else ""
            self._leave_alone(
                now, detail or "it gave less than half of what it had to spare"
            )

    def _note_regained(self, now: float, actual: int) -> None:
        """Note what a shrinking guest gets back: it counts as granted."""
        before, target = self.actual, self.target
        if before is not None and target is not None and target <= before:
            self._promise.add(now, actual - before)

    def _count_move(self, change: int, *, reached: bool) -> None:
        counters = self.counters
        self.counters = evolve(
            counters,
            moves=counters.moves + 1,
            given=counters.given + max(0, change),
            taken=counters.taken + max(0, -change),
            stalls=counters.stalls + (not reached),
        )

    def note_move_dropped(self, left_at: int | None) -> None:
        """Note that it is no longer moving, however the move ended.

        Args:
            left_at: The last target in bytes, if QEMU has confirmed it; else ``None``.
        """
        if self.target is not None:
            # How far it went is not known.
            self._stray, self._left_at = Stray(), left_at
        self.target = self._pace = None

    def _note_found(self) -> None:
        """Note the size that it was found with, if that is less than all its RAM."""
        if self.actual is None or self.total is None:
            return
        if not lacks_ram(self.actual, self.total):
            self.found = None
        elif not self._was_moved:
            self.found = self.actual

    def _leave_alone(self, now: float, why: str) -> None:
        self._detail = why
        self._stalled_until = now + self._pause
        self._pause = min(self._pause * 2, _LONGEST_PAUSE)

    def _watch_size(self, now: float, actual: int) -> None:
        """Notice that somebody else moves its balloon."""
        if self.target is not None or self.holder is not None:
            return
        if self._stray.observe(now, actual):
            self._has_driver = self._doubts_ram = True
        if self._stray.was_moved(now):
            self._leave_alone(now, _describe_other(actual))

    def _watch_reads(self, now: float, actual: int, available: int) -> None:
        """Notice that its guest reads again what was taken from it.

        The reads are those of the previous poll, which was before the guest took the
        sample. So the sample shows all memory that these reads have filled.
        """
        bounds, total = self.bounds, self.total
        reads, free = self.disk_reads, self.stats.free
        if bounds is None or total is None or reads is None or free is None:
            return
        self._hot_cache.observe(
            CacheSample(
                at=now,
                read=reads.bytes,
                actual=actual,
                free=free,
                available=available,
                headroom=bounds.headroom,
                taken=max(0, min(total, bounds.ceiling) - actual),
            )
        )

    def _judge_stats(self, now: float) -> None:
        nonsense = self.stats.find_nonsense(self.capacity)
        if nonsense is not None:
            self._nonsense = nonsense
            self._nonsense_until = now + _FIRST_PAUSE

    # Conclusions

    @property
    def connected(self) -> bool:
        """Whether its monitor answers."""
        return self._state == "healthy"

    def get_state(self, now: float) -> VmState:
        """Return its state."""
        if not self.connected:
            return self._state
        if now < self._nonsense_until:
            return "nonsense"
        if self._is_fresh(now):
            answers: VmState = "stalled" if now < self._stalled_until else "healthy"
            return answers if self.holder is None else "held"
        if self._answered_at > -math.inf:
            return "stale"
        if now - self._connected_at <= self.stale_after:
            return "connecting"
        is_known = self._has_driver or self._silence or self.stats.last_update
        return "stale" if is_known else "no-driver"

    def is_known(self, now: float) -> bool:
        """Return whether it is known well enough for plans, or cannot take part."""
        state = self.get_state(now)
        return state != "connecting" and (state != "healthy" or self._is_aligned)

    @property
    def doubts_ram(self) -> bool:
        """Whether its RAM has to be asked for: the guest has more than was known."""
        return self._doubts_ram

    def is_out_soon(self, now: float) -> bool:
        """Whether its guest is shrinking, and about to use up all that it has."""
        guest = self.make_guest(now)
        is_shrinking = guest is not None and (guest.target or 0) < guest.actual
        return guest is not None and is_shrinking and guest.is_out_soon

    @property
    def is_owed(self) -> bool:
        """Whether the guest lacks some of what an interrupted run owes it."""
        due = min(self.owed or 0, self.total or 0)
        return self.actual is not None and due - self.actual >= LARGEST_PAGE

    def may_wait(self, now: float) -> bool:
        """Return whether it need not be polled now, because little can have changed.

        This is so if its guest had more to spare than it can have used since its last
        answer.

        Args:
            now: The time of this turn, which was noted already.
        """
        longest = min(_LONGEST_WAIT * self.period, self.stale_after - self.period)
        # Half a period of tolerance, because turns do not come at exact times.
        if now + self.period / 2 - self.polled_at > longest:
            return False
        guest, used = self.make_guest(now), self._usage_bound.compute()
        if guest is None or used is None:
            return False
        if guest.is_moving or self._doubts_ram or self.is_owed:
            return False
        return guest.available - used >= guest.desired_available + guest.hot

    def is_to_be_prompted(self, now: float) -> bool:
        """Return whether the guest is silent, and should be prompted for an answer.

        Another client may have cleared the polling interval. So it is set again before
        the guest counts as silent, and repeatedly afterwards.
        """
        patience = max(self.stale_after / 2, 2 * self.period)
        last = max(self._answered_at, self._prompted_at)
        return self.connected and now - last > patience

    def count_promised(self, now: float) -> int:
        """Return the bytes that it was granted and has not touched yet."""
        return self._promise.count(now)

    def count_held(self, now: float) -> int:
        """Return the bytes of the host's memory that it holds, without promised ones.

        If that is not known, it counts with all that its guest has.
        """
        if self.resident is not None:
            return self.resident
        return max(0, self._size - self.count_promised(now))

    @property
    def _size(self) -> int:
        """Bytes that its guest may have.

        If it has not been polled since it was connected to, this is its last known
        size, and at least what its QEMU was seen to hold.
        """
        if self.actual is None:
            return max(self._last_size, self.resident or 0)
        return max(self.actual, self.target or 0)

    @property
    def above_floor(self) -> int:
        """Bytes that it holds above its floor, as far as that is known."""
        if self.actual is None or self.bounds is None:
            return 0
        resident = self.actual if self.resident is None else self.resident
        return max(0, min(self.actual, resident) - self.bounds.floor)

    def make_guest(self, now: float) -> Guest | None:
        """Return its guest as plans see it; ``None`` if it cannot be moved now."""
        available, bounds = self.stats.reclaimable, self.bounds
        actual, total = self.actual, self.total
        watched = self._watched if self._was_watched_last else None
        is_current = self._is_aligned or self.target is not None or watched is not None
        if not (self._is_fresh(now) and is_current) or self.holder is not None:
            return None
        if self._is_unjudged or now < self._nonsense_until:
            return None
        if available is None or bounds is None or actual is None or total is None:
            return None
        if watched is not None:
            available = max(0, watched.available + actual - watched.actual)
        return Guest(
            name=self.spec.name,
            actual=actual,
            total=total,
            # A guest cannot have more available than it has.
            available=min(available, actual),
            headroom=bounds.headroom,
            floor=bounds.floor,
            ceiling=bounds.ceiling,
            weight=self.spec.weight,
            target=self.target,
            delivers=self._pace.predict(now) if self._pace else None,
            free=min(self.stats.free or 0, actual),
            untouched=self._untouched,
            is_stalled=now < self._stalled_until,
            usage_increase=self._usage_rate.predict_increase(self.period),
            hot=self._hot_cache.size,
        )

    def find_small(self) -> SmallGuest | None:
        """Return its guest if it has less than all its RAM."""
        size = self.actual if self._left_at is None else self._left_at
        if not self.connected or size is None or self.total is None:
            return None
        if not lacks_ram(size, self.total):
            return None
        return SmallGuest(self.spec.name, size, self.total, self.found)

    def make_view(self, now: float) -> VmView:
        """Return it as it is shown."""
        state = self.get_state(now)
        return VmView(
            name=self.spec.name,
            address=str(self.spec.address),
            state=state,
            detail=self._describe_state(state),
            actual=self.actual,
            total=self.total,
            target=self.target,
            resident=self.resident,
            bounds=self.bounds,
            stats=self.stats,
            counters=self.counters,
            disk_reads=self.disk_reads,
            hot=self._hot,
            owed=self.owed if self.is_owed else None,
            holder=self.holder,
        )

    @property
    def _hot(self) -> int | None:
        """Bytes of hot cache, if that is known."""
        is_known = self.connected and self._hot_cache.is_known
        return self._hot_cache.size if is_known else None

    def _describe_state(self, state: VmState) -> str:
        if state == "nonsense":
            return (
                f"the guest says nonsense: {self._nonsense}; restart its balloon"
                " driver, or the guest"
            )
        if state == "held" and self.holder is not None:
            return f"memory of the guest is {describe_holder(self.holder)}"
        if not self._detail and state == "healthy" and self.is_owed:
            return _OWED.format(format_size(self.owed or 0))
        if self._detail or state != "stale":
            return self._detail or _DETAILS.get(state, "")
        never = self._answered_at == -math.inf and self.stats.last_update is None
        return self._silence or (NO_STATISTICS if never else _DETAILS[state])

    def _is_fresh(self, now: float) -> bool:
        return self.connected and now - self._answered_at <= self.stale_after

    @property
    def _was_watched_last(self) -> bool:
        """Whether a move has seen its guest later than any poll has."""
        return self._watched is not None and self._watched.at > self._asked_at

    @property
    def _is_aligned(self) -> bool:
        return self._asked_at >= self._steady_since

    @property
    def _untouched_memory(self) -> int | None:
        """Bytes of its size that the host has not backed with memory, if known.

        A growing guest counts with its target: it may be there before the next poll.
        """
        if self.actual is None or self.resident is None:
            return None
        return max(0, max(self.actual, self.target or 0) - self.resident)

    @property
    def _untouched(self) -> int:
        """Bytes of its size that the host would not gain, by the guest's statistics.

        If the guest lies, the host expects more from it than it gives, and the next
        plan asks others for the rest.
        """
        untouched = self._untouched_memory or 0
        # Memory that the guest has not touched is free in it. Whatever else the host
        # has not backed is memory that the guest's kernel never uses.
        knows_free = self._is_aligned and self.stats.free is not None
        return min(untouched, self.stats.free or 0) if knows_free else untouched


def _describe_other(actual: int) -> str:
    return (
        f"its size became {format_size(actual)}, and this fleet did not ask for that:"
        " another program moves its balloon, or it takes memory back by itself"
        " (deflate-on-oom); let only one of them do so"
    )
