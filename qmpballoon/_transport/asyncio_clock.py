"""The clock of a monitor on asyncio, with a shield against cancellations.

asyncio raises each cancellation once: what a task awaits afterwards, while it cleans
up, is not cancelled. But a second cancellation may come during the cleanup. The shield
holds that one back until a guest has its memory again.
"""

from __future__ import annotations

import asyncio
import math
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["AsyncioClock"]


class AsyncioClock:
    """The clock and the shield of a monitor on asyncio."""

    def __init__(self) -> None:
        self._shields: dict[asyncio.Task[object], _Shield] = {}

    def now(self) -> float:
        """Return the event loop's time in seconds."""
        return asyncio.get_running_loop().time()

    async def sleep(self, seconds: float) -> None:
        """Wait for that many seconds.

        If the call is cancelled, it ends at once and has no effect.
        """
        never: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        await self.wait(never, self.now() + max(seconds, 0.0))

    def shield(self, seconds: float) -> AbstractContextManager[object]:
        """Return a context manager that holds this task's cancellations back.

        A cancellation that hits an ``execute`` or ``sleep`` of this monitor inside
        the block is held back, and raised at the end of the block. Anything else that
        the block awaits is cancelled as usual.

        Args:
            seconds: After that many seconds, the monitor's calls time out.
        """
        return _Shield(self._shields, self.now() + seconds)

    async def wait(self, future: asyncio.Future[Any], deadline: float) -> None:
        """Wait until the future is done or the deadline has passed.

        If the call is cancelled, the future is not. The monitors call this.

        :meta private:
        """
        task = asyncio.current_task()
        shield = None if task is None else self._shields.get(task)
        if shield is not None:
            deadline = min(deadline, shield.deadline)
        while True:
            left = deadline - self.now()
            try:
                await asyncio.wait(
                    {future}, timeout=None if math.isinf(left) else max(left, 0.0)
                )
            except asyncio.CancelledError as cancelled:
                if shield is None:
                    raise
                shield.held_back = cancelled
            # Checked here and not by the wait's result: anyio cancels a task again in
            # every turn of the event loop, and then no wait ever returns normally.
            if future.done() or self.now() >= deadline:
                return


class _Shield(AbstractContextManager[None]):
    """Holds the cancellations of one task back; see :meth:`AsyncioClock.shield`."""

    def __init__(
        self, shields: dict[asyncio.Task[object], _Shield], deadline: float
    ) -> None:
        self.deadline = deadline
        self.held_back: asyncio.CancelledError | None = None
        self._shields = shields

    def __enter__(self) -> None:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a shield is for a task: call it from a coroutine")
        self._task: asyncio.Task[object] = task
        self._outer = self._shields.get(task)
        self._shields[task] = self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._outer is None:
            del self._shields[self._task]
        else:
            self._shields[self._task] = self._outer
        if self.held_back is not None:
            raise self.held_back
