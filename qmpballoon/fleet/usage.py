"""How much more memory a guest uses: by its samples, and by how long it has run.

Pure: times and figures in, bytes out. The guest's samples say how fast its use
increases. It may lie in them. So what it can have used since the last of them is
bounded by the host's own figures: how long its QEMU has run, and how fast a processor
fills memory.
"""

from __future__ import annotations

from typing import Final

from attrs import define, field

from qmpballoon.sizes import GiB

__all__ = ["UsageBound", "UsageRate"]

# Seconds. Even if the next plan comes sooner, a move takes some time.
_SHORTEST_PERIOD: Final = 1.0
# Bytes that a guest can use for each second that it has run: as fast as a core clears
# memory in huge pages, within its caches. With smaller pages it is half of that.
_FASTEST_USE: Final = 20 * GiB
# Turns that are remembered: more than there can be since the last answer of a guest
# that is polled every fourth period.
_MOST_TURNS: Final = 8


@define
class UsageRate:
    """How fast a guest's use of memory increases, measured by its last two samples.

    Attributes:
        rate: Bytes a second; 0 if its use does not increase, or is not known.
    """

    rate: int = 0
    _at: float | None = None
    _used: int = 0

    def add_sample(self, at: float, used: int) -> None:
        """Take in a sample.

        Args:
            at: When it was taken, in seconds on a monotonic clock.
            used: Bytes that the guest could not do without then.
        """
        if self._at is not None:
            if at <= self._at:
                return
            self.rate = max(0, int((used - self._used) / (at - self._at)))
        self._at, self._used = at, used

    def add_close_sample(self, at: float, used: int) -> None:
        """Take in one of many samples; those that come too close together are skipped.

        Args:
            at: When it was taken.
            used: As for :meth:`add_sample`.
        """
        if self._at is None or at - self._at >= _SHORTEST_PERIOD:
            self.add_sample(at, used)

    def predict_increase(self, period: float) -> int:
        """Return the bytes by which the use increases until the next plan.

        Args:
            period: Seconds between two plans; less than one second counts as one.
        """
        return int(self.rate * max(period, _SHORTEST_PERIOD))


@define
class UsageBound:
    """How much memory a guest can have used since its last answer, at most."""

    # The last turns: when they were, and for how many seconds QEMU had run by then. And
    # the seconds at the last turn before the guest's last answer.
    _turns: list[tuple[float, float | None]] = field(
        factory=list[tuple[float, float | None]]
    )
    _ran_before: float | None = None

    def note_turn(self, now: float, ran: float | None) -> None:
        """Note for how long QEMU has run.

        Args:
            now: When, in seconds on a monotonic clock.
            ran: Seconds on processors so far; ``None``: not known.
        """
        self._turns = [*self._turns[1 - _MOST_TURNS :], (now, ran)]

    def note_answer(self, now: float, age: float | None) -> None:
        """Note that the guest has answered.

        The answer does not show what the guest has used since it was given. So the
        bound counts from the last turn before that.

        Args:
            now: When the answer was seen.
            age: Seconds since it was given, at most; ``None`` if not known.
        """
        self._ran_before = None
        if age is not None and age >= 0:
            before = [ran for at, ran in self._turns if at <= now - age]
            self._ran_before = before[-1] if before else None

    def compute(self) -> int | None:
        """Return the bytes that it can have used by the last turn, if that is known."""
        ran = self._turns[-1][1] if self._turns else None
        # Another process, with a time of its own, may have taken QEMU's place.
        if ran is None or self._ran_before is None or ran < self._ran_before:
            return None
        return int((ran - self._ran_before) * _FASTEST_USE)
