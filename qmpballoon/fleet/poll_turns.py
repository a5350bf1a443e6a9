"""When each VM is polled: one timer wakes all tasks whose turn it is, on trio.

Setting a timer for each VM would double the scheduler's work for a poll. So polls that
are due within a fiftieth of a period begin together.

The caller decides whether a VM is polled in its turn: a guest that has done nothing
since its last poll has nothing new to report.
"""

from __future__ import annotations

import heapq
import math
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Final, Generic, TypeVar

import trio

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["PollTurns"]

T = TypeVar("T")
_TOGETHER: Final = 50  # parts of a period; turns within one of them begin together


class PollTurns(Generic[T]):
    """Wakes waiting tasks when it is their turn.

    Args:
        period: Seconds between two turns of each.
        may_pass: Called with one whose turn it is; returns whether it need not be woken
            until its next turn.
    """

    def __init__(self, period: float, may_pass: Callable[[T], bool]) -> None:
        self._period = period
        self._may_pass = may_pass
        # A heap, by time. The number identifies a wait; a later wait has a higher one.
        self._turns: list[tuple[float, int, T]] = []
        self._numbers = count()
        self._waiting: dict[T, tuple[int, trio.lowlevel.Task]] = {}
        self._timer = trio.CancelScope()

    async def wait(self, who: T, due: float) -> None:
        """Wait for a turn, or until :meth:`wake` is called.

        It can be cancelled at any moment.

        Args:
            who: Whose turn it is. It may wait for one turn at a time only.
            due: When the turn is, on trio's clock; a later one if it may pass then.
        """
        number = next(self._numbers)
        self._waiting[who] = number, trio.lowlevel.current_task()
        self._add(due, number, who)
        # A partial takes a third of the memory of a nested function.
        await trio.lowlevel.wait_task_rescheduled(partial(self._leave, who))

    def wake(self, who: T) -> None:
        """End a wait now; no effect if there is none."""
        if who in self._waiting:
            _, task = self._waiting.pop(who)
            trio.lowlevel.reschedule(task)

    def _leave(self, who: T, _: object) -> trio.lowlevel.Abort:
        del self._waiting[who]
        return trio.lowlevel.Abort.SUCCEEDED

    async def run(self) -> None:
        """Wake those whose turn it is, until cancelled."""
        while True:
            due = self._turns[0][0] if self._turns else math.inf
            with trio.CancelScope(deadline=due) as self._timer:
                await trio.sleep_forever()
            await trio.sleep(self._period / _TOGETHER)
            self._begin_turns(trio.current_time())

    def _add(self, due: float, number: int, who: T) -> None:
        heapq.heappush(self._turns, (due, number, who))
        # Setting a deadline takes long, and most turns come after others.
        if due < self._timer.deadline:  # noqa: PLR1730
            self._timer.deadline = due

    def _begin_turns(self, now: float) -> None:
        while self._turns and self._turns[0][0] <= now:
            due, number, who = heapq.heappop(self._turns)
            if self._waiting.get(who, (None,))[0] != number:
                continue  # it was woken early, or was cancelled
            if self._may_pass(who):
                self._add(max(due + self._period, now + self._period / 2), number, who)
            else:
                self.wake(who)
