"""When a guest is in trouble: one rule for all calls that take memory from it.

Pure: statistics in, an alarm out. ``reclaim``, ``keep``, ``resize`` and the fleet (by
``resize``) have the same alarms. They differ in how they react; see the table in "What
the guard promises" in the documentation.

:mod:`~qmpballoon.balloon._pressure` measures memory pressure. This module decides when
pressure is trouble: when it lasts, or when it is critical.
:mod:`~qmpballoon.balloon._working_set` finds what the guest reads again, which is never
trouble.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, Literal

from attrs import evolve, frozen

from qmpballoon.balloon._pressure import PressureMeter
from qmpballoon.balloon._working_set import WorkingSet
from qmpballoon.sizes import GiB, format_size

if TYPE_CHECKING:
    from qmpballoon.balloon._pressure import Pressure
    from qmpballoon.balloon.guard import GuestLimits
    from qmpballoon.balloon.results import AlarmKind
    from qmpballoon.balloon.sampling import Sample, Sampler
    from qmpballoon.balloon.stats import GuestStats

__all__ = ["Alarm", "Alarms", "Observation", "compute_pause"]

# Bytes a second that a guest may allocate. A process that writes to new memory reaches
# about 1 GiB/s (measured with dd to tmpfs, 0.4 to 2.8), one that only touches new 4 KiB
# pages 2 to 3.
_ALLOCATION_RATE: Final = GiB
# Each sample shows the answer to the previous sample's request. So a guest must be
# sampled twice before it can have used up what it can spare.
_SAMPLES: Final = 2
# Seconds of memory pressure after which a guest gets everything back. Rates are taken
# over a second, so pressure still shows for a second after it has ended.
_MAX_PRESSURE: Final = 3.0


def compute_pause(spare: int, age: float = 0.0) -> float:
    """Return for how many seconds a guest need not be sampled; below 0 if overdue.

    Args:
        spare: Bytes that the guest may allocate, as of its last answer, before it has
            to be sampled.
        age: Seconds since it was asked for that answer.
    """
    left = spare / _ALLOCATION_RATE
    return min(left / _SAMPLES, left - age)


@frozen
class Observation:
    """What is known of a guest at one moment, by which it is judged.

    Attributes:
        seconds: Seconds since the beginning.
        stats: What the guest last reported.
        actual: Bytes it has.
        basis: Bytes it had at most between being asked for ``stats`` and giving them.
        silence: Seconds since its last new answer.
        reads: Bytes that the VM has read from its disks; ``None``: not known.
    """

    seconds: float
    stats: GuestStats
    actual: int
    basis: int
    silence: float = 0.0
    reads: int | None = None

    @classmethod
    def of(cls, sampler: Sampler, sample: Sample) -> Observation:
        """Return what a sampler knows once it has taken a sample."""
        return cls(
            seconds=sample.t,
            stats=sampler.stats,
            actual=sample.actual,
            basis=sampler.basis,
            silence=sampler.silence,
            reads=sample.disk_reads,
        )


@frozen
class Alarm:
    """What is wrong with a guest at one moment.

    Attributes:
        level: ``"none"``; ``"hold"``: take no more for now; ``"trouble"``: the guest
            needs all of its memory back.
        kind: What the alarm is about; ``None`` for ``"none"``.
        reason: The same in words; empty for ``"none"``.
        begins: Whether a ``"hold"`` begins with this sample.
        size: Bytes that the guest should have at least, so that what it reads again
            stays cached.
    """

    level: Literal["none", "hold", "trouble"] = "none"
    kind: AlarmKind | None = None
    reason: str = ""
    begins: bool = False
    size: int = 0


_NONE: Final = Alarm()


class Alarms:
    """The alarms of one guest.

    Args:
        limits: What the guest must keep.
        first: What it reported at the beginning.
        full: Bytes that it had then.

    Attributes:
        holds: How often memory pressure has begun.
        working_set: Finds what it reads again.
    """

    def __init__(
        self, limits: GuestLimits, first: GuestStats, full: float = math.inf
    ) -> None:
        self.holds: int = 0
        self._limits = limits
        self._first = first
        self.working_set: WorkingSet = WorkingSet(limits.rereads, full)
        self._meter = PressureMeter(limits.pressure)
        self._pressed_since: float | None = None

    @property
    def reserve(self) -> int:
        """Bytes that the guest is expected to have available: its headroom.

        It is less if the guest had less at the beginning, which the balloon did not
        cause.
        """
        return min(self._limits.headroom, self._first.reclaimable or 0)

    @property
    def threshold(self) -> int:
        """Bytes available below which the guest is in trouble: half of the reserve."""
        return self.reserve // 2

    @property
    def is_pressed(self) -> bool:
        """Whether the last sample showed memory pressure."""
        return self._pressed_since is not None

    def is_short(self, available: int) -> bool:
        """Return whether a guest with this many bytes available needs some back."""
        return available < self.reserve * 3 // 4

    @property
    def is_quiet(self) -> bool:
        """Whether the guest neither read, swapped nor waited in its baseline."""
        return self._meter.is_quiet and self.working_set.is_quiet

    def end_baseline(self) -> None:
        """Stop measuring the guest's own rates: the last sample was of the baseline."""
        self._meter.end_baseline()
        self.working_set.end_baseline()

    def begin_anew(self, stats: GuestStats) -> None:
        """Judge the guest by what it has now, not by what it had at the beginning.

        It may have come to rest a little below its headroom. Its own rates of swapping,
        faults and reads stay what they were at the beginning.

        Args:
            stats: What it reports now.
        """
        self._first = stats
        self.working_set.begin_anew()

    def judge(self, seen: Observation) -> Alarm:
        """Judge the guest by what is known of it now."""
        seconds = seen.seconds
        pressure = self._meter.observe(seconds, seen.stats)
        pressed = self._judge_pressure(seconds, pressure)
        again = self.working_set.observe(seconds, seen.actual, seen.reads)
        trouble = self._find_trouble(seen.stats, seen.silence)
        if trouble is not None or again.size == 0:
            return trouble or pressed
        if pressed.level == "none":
            return Alarm("hold", "reads", again.reason, again.begins, again.size)
        return evolve(pressed, size=again.size)

    def describe_headroom(self, available: int) -> str:
        """Say that no more can be taken because of the headroom.

        Args:
            available: Bytes that the guest has available.
        """
        return (
            f"the guest has {format_size(available)} available, and is to keep"
            f" {format_size(self._limits.headroom)}"
        )

    def _find_trouble(self, stats: GuestStats, silence: float) -> Alarm | None:
        """Return the alarm that this sample alone raises, if any."""
        if silence > self._limits.stale_after:
            why = f"the guest has not answered for {silence:.1f} s"
            return Alarm("trouble", "silence", why)
        kills, available = self._first.oom_kills, stats.reclaimable
        if kills is not None and (stats.oom_kills or 0) > kills:
            why = "the guest killed a process for want of memory"
            return Alarm("trouble", "oom-kill", why)
        if available is None:
            why = "the guest no longer says what it has available"
            return Alarm("trouble", "unreported", why)
        if available < self.threshold:
            return Alarm("trouble", "headroom", self.describe_headroom(available))
        return None

    def _judge_pressure(self, seconds: float, pressure: Pressure) -> Alarm:
        """Track how long there has been pressure: it is trouble if long or critical."""
        if pressure.level == "none":
            self._pressed_since = None
            return _NONE
        begins = self._pressed_since is None
        if self._pressed_since is None:
            self._pressed_since = seconds
            self.holds += 1
        if pressure.level == "critical":
            return Alarm("trouble", "pressure", pressure.reason)
        if seconds < self._pressed_since + _MAX_PRESSURE:
            return Alarm("hold", "pressure", pressure.reason, begins)
        why = f"{pressure.reason}, although no more is taken from it"
        return Alarm("trouble", "pressure", why)
