"""Time on asyncio for its monitors: waiting that a cancellation does not break off.

A cancellation strikes once on asyncio: what is awaited afterwards, while cleaning
up, is not cancelled again. But the next one may come right then, and a guest's
memory is to be given back all the same.
"""

from __future__ import annotations

import asyncio
import math
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["AsyncioTime"]


class AsyncioTime:
    """What an asyncio :class:`~qmpballoon.monitor.Monitor` has besides ``execute``."""

    def __init__(self) -> None:
        self._shields: dict[asyncio.Task[object], _Shield] = {}

    def now(self) -> float:
        """Return the event loop's time in seconds."""
        return asyncio.get_running_loop().time()

    async def sleep(self, seconds: float) -> None:
        """Wait for so many seconds.

        Cancellation: at once, with no effect.
        """
        never: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        await self.wait(never, self.now() + max(seconds, 0.0))

    def shield(self, seconds: float) -> AbstractContextManager[object]:
        """Let what is awaited of this monitor go on although its task is cancelled.

        A cancellation strikes once on asyncio, but it may strike again while the
        first is being cleaned up after. Within the block of this context manager
        one that strikes an ``execute`` or ``sleep`` of this monitor is held back,
        and raised at the block's end. Anything else that is awaited there is
        cancelled as ever.

        Args:
            seconds: For so long at most; then what is awaited times out.
        """
        return _Shield(self._shields, self.now() + seconds)

    async def wait(self, future: asyncio.Future[Any], deadline: float) -> None:
        """Wait until that is done, or too late; it is not cancelled with us."""
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
                shield.struck = cancelled
            # Looked at here: who is cancelled in every turn of the loop, as anyio
            # does it, is never told by the wait.
            if future.done() or self.now() >= deadline:
                return


class _Shield(AbstractContextManager[None]):
    """Holds back the cancellations of one task; see :meth:`AsyncioTime.shield`."""

    def __init__(
        self, shields: dict[asyncio.Task[object], _Shield], deadline: float
    ) -> None:
        self.deadline = deadline
        self.struck: asyncio.CancelledError | None = None
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
        if self.struck is not None:
            raise self.struck
