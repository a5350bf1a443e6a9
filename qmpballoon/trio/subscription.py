"""Events on their way from the one task that reads to all who want to know.

What a reader has not read yet is in a bounded
:class:`~qmpballoon.qmp.events.EventBuffer`; here is how it waits for more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from qmpballoon._transport.errors import not_subscribed, retold

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType
    from typing import Self

    from qmpballoon.errors import MonitorError
    from qmpballoon.qmp import Event
    from qmpballoon.qmp.events import EventBuffer

__all__ = ["EventFeed", "EventSubscription"]


class EventFeed:
    """Hands each event to everyone who is subscribed.

    Attributes:
        subscriptions: Who is.
        failure: Why no more will come, once that is so.
    """

    def __init__(self) -> None:
        self.subscriptions: set[EventSubscription] = set()
        self.failure: MonitorError | None = None

    def put(self, event: Event) -> None:
        """Hand an event round."""
        for subscription in self.subscriptions:
            subscription.put(event)

    def end(self, failure: MonitorError) -> None:
        """Tell all who wait, and all who will, that no more comes."""
        self.failure = failure
        for subscription in self.subscriptions:
            subscription.wake()


class EventSubscription:
    """QEMU's events for one reader: a context manager, and an iterator inside it.

    ::

        with monitor.subscribe("BALLOON_CHANGE") as events:
            async for event in events:
                print(event.data)

    A reader that does not keep up loses the oldest events, of the same name where
    there are some; :attr:`lost` tells. It never holds up anybody else.
    """

    def __init__(self, feed: EventFeed, buffer: EventBuffer) -> None:
        self._feed = feed
        self._buffer = buffer
        self._readers = trio.lowlevel.ParkingLot()

    def __enter__(self) -> Self:
        """Begin to take events in."""
        self._feed.subscriptions.add(self)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Take no more in; what was is still there to be read."""
        self._feed.subscriptions.discard(self)
        self.wake()

    @property
    def lost(self) -> Mapping[str, int]:
        """How many events of each name were dropped unread."""
        return self._buffer.lost

    async def receive(self) -> Event:
        """Return the next event.

        Raises:
            MonitorError: The connection ended; no more will come.
            RuntimeError: No more will come, as this is outside the block.

        Cancellation: at once, and no event is lost.
        """
        await trio.lowlevel.checkpoint()
        while (event := self._buffer.get()) is None:
            if self._feed.failure is not None:
                raise retold(self._feed.failure)
            if self not in self._feed.subscriptions:
                raise not_subscribed()
            await self._readers.park()
        return event

    def __aiter__(self) -> Self:
        """Return itself."""
        return self

    async def __anext__(self) -> Event:
        """Return the next event, as :meth:`receive` does."""
        return await self.receive()

    def put(self, event: Event) -> None:
        """Take an event in, if it is one of ours; the feed calls this."""
        if self._buffer.put(event):
            self.wake()

    def wake(self) -> None:
        """Have those who wait look again; the feed calls this."""
        self._readers.unpark_all()
