"""What the monitors of all front ends have in common: name, process, deadlines, clocks.

The clock for asyncio has a module of its own, because it also holds back
cancellations: :mod:`qmpballoon._transport.asyncio_clock`.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Final

from qmpballoon._checks import require_seconds
from qmpballoon._transport import qemu_process

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Self

    import trio

    from qmpballoon.qmp.events import EventBuffer
    from qmpballoon.qmp.messages import Event

__all__ = [
    "COMMAND_TIMEOUT",
    "AsyncSubscription",
    "BlockingClock",
    "MonitorBase",
    "TrioClock",
]

# QEMU answers the commands of this library in milliseconds, but its main loop also does
# other work, such as a migration's last phase or I/O on a storage that hangs. Chosen,
# not measured: long enough for such a pause, short enough that an orchestrator notices
# a QEMU that is stopped.
COMMAND_TIMEOUT: Final = 10.0
"""Seconds for one command, including the time it waits for its turn."""


class MonitorBase:
    """The part of a monitor that does not depend on how it waits.

    Attributes:
        name: The name that messages use for the monitor.
        pid: The process id of QEMU; ``None`` if it is not known.
    """

    def __init__(
        self,
        *,
        name: str,
        pid: int | None,
        command_timeout: float,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__()  # asyncio's clock has a state
        self.name: str = name
        self.pid: int | None = pid
        self._command_timeout = require_seconds(command_timeout, "command_timeout")
        self._wall_clock = wall_clock

    def resident(self) -> int | None:
        """Return QEMU's resident memory in bytes; ``None`` if it cannot be known."""
        return None if self.pid is None else qemu_process.read_resident(self.pid)

    def wall_clock(self) -> float:
        """Return seconds since the epoch, for the age of statistics."""
        return self._wall_clock()

    def _choose_timeout(self, timeout: float | None) -> float:
        """Return the seconds for a command: those given, or the monitor's own."""
        if timeout is None:
            return self._command_timeout
        return require_seconds(timeout, "timeout")


class BlockingClock:
    """The clock of a monitor in blocking code."""

    def now(self) -> float:
        """Return the monotonic time in seconds."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Wait for that many seconds; zero or less returns at once."""
        time.sleep(max(seconds, 0.0))


class TrioClock:
    """The clock of a monitor on trio.

    It loads trio when it is used: programs without trio load libvirt's monitors too.
    """

    def now(self) -> float:
        """Return trio's time in seconds."""
        import trio  # noqa: PLC0415 - see the class

        return trio.current_time()

    async def sleep(self, seconds: float) -> None:
        """Wait for that many seconds.

        If the call is cancelled, it ends at once and has no effect.
        """
        import trio  # noqa: PLC0415 - see the class

        await trio.sleep(max(seconds, 0.0))

    def shield(self, seconds: float) -> trio.CancelScope:
        """Return a scope that outside cancellations do not reach.

        Args:
            seconds: The scope ends after that many seconds at the latest.
        """
        import trio  # noqa: PLC0415 - see the class

        return trio.move_on_after(seconds, shield=True)


class AsyncSubscription(ABC):
    """The part of a subscription to events that does not depend on the event loop."""

    def __init__(self, buffer: EventBuffer) -> None:
        self._buffer = buffer

    @property
    def lost(self) -> Mapping[str, int]:
        """How many events of each name were dropped unread."""
        return self._buffer.lost

    @abstractmethod
    async def receive(self) -> Event:
        """Return the next event."""

    def __aiter__(self) -> Self:
        """Return itself."""
        return self

    async def __anext__(self) -> Event:
        """Return the next event, as :meth:`receive` does."""
        return await self.receive()
