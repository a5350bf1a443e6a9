"""Connecting again and again, with pauses that grow while it fails.

An iteration hands out connections that are not open yet: each is a context manager,
which opens the connection. So the iteration itself holds nothing open, and can be left
at any moment, even by an exception or a cancellation.
"""

from __future__ import annotations

from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    asynccontextmanager,
    contextmanager,
)
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from qmpballoon._checks import require_seconds
from qmpballoon.errors import QmpBalloonError

if TYPE_CHECKING:
    import random
    from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
    from typing import Self

__all__ = [
    "FIRST_PAUSE",
    "LONGEST_PAUSE",
    "AsyncReconnection",
    "Backoff",
    "BlockingReconnection",
]

T = TypeVar("T")

# Chosen, not measured. A QEMU that is restarted listens again within a second. If it
# stays away, two attempts a minute cost nothing.
FIRST_PAUSE: Final = 0.5
"""Seconds before the first attempt to connect again, at most."""
LONGEST_PAUSE: Final = 30.0
"""Seconds between two attempts to connect, at most."""

_BACKOFF: Final = 2.0  # each attempt waits up to twice as long
_MAX_DOUBLINGS: Final = 32  # keeps the power finite; the pause is limited long before


class Backoff:
    """Chooses how long to wait before each attempt to connect.

    An attempt has failed if the connection could not be opened, or if its block raised
    anything but this package's own errors, which end connections that worked.

    Args:
        rng: Spreads the attempts of many programs.
        first_pause: Seconds before the first attempt to connect again, at most.
        longest_pause: Seconds between two attempts, at most.

    Raises:
        TypeError: A pause is not a number.
        ValueError: A pause is negative.
    """

    def __init__(
        self, rng: random.Random, first_pause: float, longest_pause: float
    ) -> None:
        self._rng = rng
        self._first_pause = require_seconds(first_pause, "first_pause")
        self._longest_pause = require_seconds(longest_pause, "longest_pause")
        self._failures: int | None = None  # in succession; None before the first

    def begin_attempt(self) -> float:
        """Count an attempt; return the seconds to wait before it."""
        failures, self._failures = self._failures, (self._failures or 0) + 1
        if failures is None:
            return 0.0
        pause = self._first_pause * _BACKOFF ** min(failures, _MAX_DOUBLINGS)
        return min(pause, self._longest_pause) * self._rng.uniform(0.5, 1.0)

    def note_success(self) -> None:
        """Note that the attempt succeeded."""
        self._failures = 0

    @contextmanager
    def judge(self) -> Generator[None]:
        """Note whether the attempt succeeded, by how the block ends."""
        try:
            yield
        except QmpBalloonError:
            self.note_success()
            raise
        self.note_success()


class AsyncReconnection(Generic[T]):
    """An asynchronous iterator over connections, made by ``stay_connected``."""

    def __init__(
        self,
        opener: Callable[[], AbstractAsyncContextManager[T]],
        backoff: Backoff,
        sleep: Callable[[float], Awaitable[object]],
    ) -> None:
        self._opener = opener
        self._backoff = backoff
        self._sleep = sleep

    def __aiter__(self) -> Self:
        """Return itself."""
        return self

    async def __anext__(self) -> AbstractAsyncContextManager[T]:
        """Wait until it is time for an attempt; return what opens the connection."""
        await self._sleep(self._backoff.begin_attempt())
        return self._open()

    @asynccontextmanager
    async def _open(self) -> AsyncGenerator[T]:
        async with self._opener() as opened:
            with self._backoff.judge():
                yield opened


class BlockingReconnection(Generic[T]):
    """An iterator over connections, made by ``stay_connected``."""

    def __init__(
        self,
        opener: Callable[[], AbstractContextManager[T]],
        backoff: Backoff,
        sleep: Callable[[float], object],
    ) -> None:
        self._opener = opener
        self._backoff = backoff
        self._sleep = sleep

    def __iter__(self) -> Self:
        """Return itself."""
        return self

    def __next__(self) -> AbstractContextManager[T]:
        """Wait until it is time for an attempt; return what opens the connection."""
        self._sleep(self._backoff.begin_attempt())
        return self._open()

    @contextmanager
    def _open(self) -> Generator[T]:
        with self._opener() as opened, self._backoff.judge():
            yield opened
