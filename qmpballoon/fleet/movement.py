"""How a VM's size changes: what it was granted, how fast it moves, who moves it.

Pure: times and sizes in, figures out. Nothing here relies on the guest, which can say
anything about the memory that it uses. What counts is what the host sees of its QEMU:
the size that QEMU reports, and the memory that the process holds.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from attrs import define, field

from qmpballoon.sizes import MiB

__all__ = ["Pace", "Promise", "Stray"]

# Seconds for which a grant counts if the host cannot see whether it was touched. A
# guest in need is given what it uses until four plans later, and plans that help guests
# in time are at most 5 seconds apart. So within 20 seconds an honest guest has touched
# its grant, and the host's available memory has fallen by it. Half as much is added for
# guests that use it later than they said.
_PROMISE_LASTS: Final = 30.0

# Seconds within which a move has to show how fast it is. Before a balloon moves,
# ``resize`` asks the guest for statistics; a guest that is short of memory takes a
# second or two to answer.
_GRACE: Final = 2.0
# Seconds over which the pace is measured, and for which it is extrapolated. Within that
# time the host gets what was predicted, or another guest is asked for it.
_WINDOW: Final = 2.0

# Bytes. A guest's own rounding and its last page are smaller by far.
_STRAY: Final = 4 * MiB
# Seconds. If a guest is not at the size that it was left at, and has not come nearer to
# it for so long, somebody else has moved it. A guest that was restarted inflates its
# balloon again within that time.
_SETTLED: Final = 5.0
# So many steps away from that size within so many seconds are somebody else's. A
# restart makes one step, or two if it is polled in the middle.
_STEPS: Final = 3
_STEPS_WITHIN: Final = 30.0


@define
class Promise:
    """The bytes that a guest was granted and has not touched yet.

    If the host sees how much memory the QEMU holds, a grant counts until it has been
    touched: what is left of it never exceeds the guest's size less that memory.
    Otherwise it counts for 30 seconds.
    """

    # A list, like the steps below: an empty deque takes ten times the memory.
    _grants: list[tuple[float, int]] = field(factory=list[tuple[float, int]])
    _lasts: bool = False

    def add(self, now: float, size: int) -> None:
        """Note that the guest is granted some bytes."""
        if size > 0:
            self._grants.append((now, size))

    def withdraw(self, size: int) -> None:
        """Note that some of the bytes granted last did not reach the guest."""
        while size > 0 and self._grants:
            at, granted = self._grants.pop()
            if granted > size:
                self._grants.append((at, granted - size))
            size -= granted

    def note_lost(self, now: float) -> None:
        """Note that nothing is seen of the guest any more: the 30 seconds begin."""
        if not self._lasts:
            return
        total = sum(size for _, size in self._grants)
        self._grants.clear()
        self.add(now, total)
        self._lasts = False

    def observe(self, untouched: int | None) -> None:
        """Take in how much of its size the guest cannot have touched.

        Args:
            untouched: Bytes; ``None``: the host cannot see that.
        """
        self._lasts = untouched is not None
        if untouched is None:
            return
        surplus = sum(size for _, size in self._grants) - untouched
        # The oldest grants are assumed to have been touched first.
        while surplus > 0 and self._grants:
            at, granted = self._grants.pop(0)
            if granted > surplus:
                self._grants.insert(0, (at, granted - surplus))
            surplus -= granted

    def count(self, now: float) -> int:
        """Return how many bytes count as promised."""
        while not self._lasts and self._grants:
            if now - self._grants[0][0] <= _PROMISE_LASTS:
                break
            del self._grants[0]
        return sum(size for _, size in self._grants)


@define
class Pace:
    """How fast a move under way is.

    A move counts for what it delivers, not for what it still owes. If a guest gives
    slowly, or stops, others have to be asked before its time is over.
    """

    _started_at: float
    _seen: deque[tuple[float, int]] = field(factory=deque[tuple[float, int]])

    def add_sample(self, now: float, actual: int) -> None:
        """Take in the size of the guest."""
        self._seen.append((now, actual))
        while len(self._seen) > 1 and self._seen[1][0] <= now - _WINDOW:
            self._seen.popleft()

    def predict(self, now: float) -> int | None:
        """Return how many bytes the guest moves soon; ``None`` if not known yet."""
        if now - self._started_at < _GRACE:
            return None
        # A guest without new samples makes no progress.
        recent = [sample for sample in self._seen if sample[0] > now - 2 * _WINDOW]
        if not recent:
            return 0
        (since, before), (_, after) = recent[0], recent[-1]
        return int(abs(after - before) / max(now - since, _WINDOW) * _WINDOW)


@define
class Stray:
    """Notices that somebody else moves a balloon.

    QEMU keeps only the last target, and has no command that returns it. But a guest
    does not leave its target on its own, unless it was restarted: then it has its full
    size until its driver is loaded, and returns to the target. So one step away proves
    nothing.
    """

    _left_at: int | None = None
    _last: int | None = None
    _progress_at: float = 0.0
    _steps: list[float] = field(factory=list[float])

    def leave_at(self, now: float, size: int) -> None:
        """Note the size that the guest has now and should stay at."""
        self._left_at = self._last = size
        self._progress_at = now

    def shift(self, change: int) -> None:
        """Note that the guest's RAM has changed: its size changes with it."""
        if self._left_at is not None:
            self._left_at += change
        if self._steps:
            self._steps.pop()

    def observe(self, now: float, actual: int) -> bool:
        """Take in the size of a guest that nobody here moves.

        Returns:
            Whether it has just moved away from the size that it was left at.
        """
        if self._left_at is None or self._last is None:
            # A guest that was moving when it was found has to come to rest first.
            is_at_rest = self._last is not None and abs(actual - self._last) <= _STRAY
            if is_at_rest:
                self.leave_at(now, actual)
            self._last, self._progress_at = actual, now
            return False
        distance = abs(actual - self._left_at)
        before = abs(self._last - self._left_at)
        self._last = actual
        is_away = distance > before + _STRAY
        if is_away:
            self._steps.append(now)
        elif distance <= _STRAY or distance < before:
            self._progress_at = now
        while self._steps and self._steps[0] < now - _STEPS_WITHIN:
            del self._steps[0]
        return is_away

    def was_moved(self, now: float) -> bool:
        """Return whether somebody else moves it; if so, forget what shows that."""
        if self._left_at is None or self._last is None:
            return False
        moved = len(self._steps) >= _STEPS or now - self._progress_at > _SETTLED
        if moved:
            self._steps.clear()
            self.leave_at(now, self._last)
        return moved
