"""Events, read while somebody waits for them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from qmpballoon._checks import require_seconds
from qmpballoon._transport.errors import not_subscribed

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from qmpballoon.blocking.monitor import BlockingMonitor
    from qmpballoon.qmp import Event
    from qmpballoon.qmp.events import EventBuffer

__all__ = ["EventSubscription"]

# Seconds; so late may be told of an event that another thread has read.
_EVENT_POLL: Final = 0.1


class EventSubscription:
    """QEMU's events for one reader, made by :meth:`BlockingMonitor.subscribe`.

    ::

        with monitor.subscribe("BALLOON_CHANGE") as events:
            for event in events:
                print(event.data)

    A reader that does not keep up loses the oldest events, of the same name where
    there are some; :attr:`lost` tells. While nobody reads the monitor at all, they
    wait in QEMU.
    """

    def __init__(self, monitor: BlockingMonitor, buffer: EventBuffer) -> None:
        self._monitor = monitor
        self._buffer = buffer

    @property
    def lost(self) -> Mapping[str, int]:
        """How many events of each name were dropped unread."""
        return self._buffer.lost

    def receive(self, timeout: float = math.inf) -> Event | None:
        """Return the next event; ``None`` if there was none for so many seconds.

        Raises:
            MonitorError: The connection ended; no more will come.
            RuntimeError: No more will come, as this is outside the block.
        """
        require_seconds(timeout, "timeout")
        monitor = self._monitor
        deadline = monitor.now() + timeout
        while (event := self._buffer.get()) is None:
            monitor._raise_if_failed()  # noqa: SLF001
            if self._buffer not in monitor._buffers:  # noqa: SLF001
                raise not_subscribed()
            if monitor._transfer():  # noqa: SLF001
                continue
            left = deadline - monitor.now()
            if left <= 0:
                return None
            monitor._poll(min(left, _EVENT_POLL))  # noqa: SLF001
        return event

    def __iter__(self) -> Iterator[Event]:
        """Iterate over the events, waiting for each, until the connection ends."""
        while (event := self.receive()) is not None:
            yield event
