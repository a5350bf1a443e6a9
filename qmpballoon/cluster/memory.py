"""A bus in memory, with all the faults that a server and a network have.

For tests and simulated worlds, on trio's clock: on a ``MockClock`` an hour takes no
time. The server can be emptied, fall back to an older copy, be stopped so that it does
not answer, or be down so that it refuses; each client can be cut off, and messages can
be late or be lost.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, TypeVar

import trio
from attrs import define, field

from qmpballoon.cluster.bus import LARGEST_VALUE, MOST_HOSTS
from qmpballoon.errors import BusError

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Mapping, Sequence

__all__ = ["MemoryBus", "MemoryServer"]

_T = TypeVar("_T")

_TIMEOUT: Final = 2.0  # seconds that a client waits for an answer
_MOST_KEYS: Final = 4 * MOST_HOSTS


@define
class MemoryServer:
    """A server in memory.

    Attributes:
        is_down: Whether it refuses connections.
        is_stopped: Whether it does not answer, as after SIGSTOP.
        cut_off: The names of clients that cannot reach it.
        delay: Seconds that each answer takes.
        loss: The probability that a request or its answer is lost, 0 to 1.
        rng: Decides what is lost; needed if anything is.
        operations: How many commands it has carried out, by their names.
        received: Bytes of keys and values that it was sent.
        sent: Bytes of keys and values that it has sent.
    """

    is_down: bool = False
    is_stopped: bool = False
    cut_off: set[str] = field(factory=set[str])
    delay: float = 0.0
    loss: float = 0.0
    rng: random.Random | None = None
    operations: dict[str, int] = field(factory=dict[str, int])
    received: int = 0
    sent: int = 0
    _values: dict[str, tuple[bytes, float]] = field(
        factory=dict[str, tuple[bytes, float]]
    )

    def connect(self, name: str) -> MemoryBus:
        """Return a client's bus.

        Args:
            name: The client's name, by which it can be cut off.
        """
        return MemoryBus(self, name)

    def empty(self) -> None:
        """Lose all values."""
        self._values.clear()

    def copy(self) -> dict[str, tuple[bytes, float]]:
        """Return a copy of all values, as a replica or a backup has it."""
        return dict(self._values)

    def fall_back(self, values: Mapping[str, tuple[bytes, float]]) -> None:
        """Have the values of an older copy."""
        self._values = dict(values)

    def put(self, key: str, value: bytes) -> None:
        """Set a value by hand, as somebody with all rights can."""
        self._values[key] = (value, math.inf)

    def read(self, key: str) -> bytes | None:
        """Return a value as it is now; ``None``: there is none."""
        value, until = self._values.get(key, (None, math.inf))
        return value if until > trio.current_time() else None

    def list_keys(self) -> list[str]:
        """Return all keys."""
        return [key for key in self._values if self.read(key) is not None]

    def set(self, key: str, value: bytes, until: float) -> None:
        """Set a value until a moment on trio's clock."""
        self._values[key] = (value, until)

    def count(self, operation: str, received: int, sent: int) -> None:
        """Count an operation, and the bytes that it moves."""
        self.operations[operation] = self.operations.get(operation, 0) + 1
        self.received += received
        self.sent += sent

    def is_lost(self) -> bool:
        """Decide whether a message is lost."""
        return self.rng is not None and self.rng.random() < self.loss


@define
class MemoryBus:
    """A client's connection to a :class:`MemoryServer`; a ``Bus``.

    Attributes:
        server: The server.
        name: The client's name.
    """

    server: MemoryServer
    name: str

    async def get(self, keys: Sequence[str], /) -> dict[str, bytes]:
        """See :meth:`Bus.get`."""

        def get() -> dict[str, bytes]:
            found = {key: self.server.read(key) for key in keys}
            values = {
                key: value if len(value) <= LARGEST_VALUE else b""
                for key, value in found.items()
                if value is not None
            }
            self.server.count("get", sum(map(len, keys)), _measure(values))
            return values

        return await self._ask(get)

    async def list_keys(self, prefix: str, /) -> list[str]:
        """See :meth:`Bus.list_keys`."""

        def list_keys() -> list[str]:
            keys = [key for key in self.server.list_keys() if key.startswith(prefix)]
            if len(keys) > _MOST_KEYS:
                raise BusError(f"there are {len(keys)} keys: too many")
            self.server.count("list_keys", len(prefix), sum(map(len, keys)))
            return keys

        return await self._ask(list_keys)

    async def publish(self, values: Mapping[str, bytes], /, *, expires: float) -> None:
        """See :meth:`Bus.publish`."""

        def publish() -> None:
            until = trio.current_time() + expires
            for key, value in values.items():
                self.server.set(key, value, until)
                self.server.count("publish", len(key) + len(value), 0)

        await self._ask(publish)

    async def compare_and_set(
        self,
        key: str,
        expected: bytes | None,
        value: bytes,
        /,
        *,
        expires: float | None = None,
    ) -> bool:
        """See :meth:`Bus.compare_and_set`."""

        def compare_and_set() -> bool:
            size = len(key) + len(expected or b"") + len(value)
            self.server.count("compare_and_set", size, 0)
            found = self.server.read(key)
            if found is not None and len(found) > LARGEST_VALUE:
                found = b""
            if found != expected:
                return False
            seconds = math.inf if expires is None else expires
            self.server.set(key, value, trio.current_time() + seconds)
            return True

        return await self._ask(compare_and_set)

    async def _ask(self, answer: Callable[[], _T]) -> _T:
        """Have the server answer, unless a fault is in the way."""
        server, began = self.server, trio.current_time()
        await trio.sleep(server.delay)
        if server.is_down:
            raise BusError("the server refuses connections: start it")
        if not (self._is_unheard() or server.is_lost()):
            found = answer()
            if not (self._is_unheard() or server.is_lost()):
                return found
        await trio.sleep_until(began + _TIMEOUT)
        raise BusError(f"the server did not answer within {_TIMEOUT:g} s: see to it")

    def _is_unheard(self) -> bool:
        return self.server.is_stopped or self.name in self.server.cut_off


def _measure(values: Mapping[str, bytes]) -> int:
    return sum(len(key) + len(value) for key, value in values.items())
