"""Subscriptions to events on an event loop, and the feed that distributes events."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from qmpballoon._transport.error_messages import copy_error, make_not_subscribed
from qmpballoon.errors import MonitorClosed

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType
    from typing import Self

    from qmpballoon.errors import MonitorError
    from qmpballoon.qmp.events import EventBuffer
    from qmpballoon.qmp.messages import Event

__all__ = ["AsyncSubscription", "EventFeed", "FeedSubscription"]


class AsyncSubscription(ABC):
    """The part of a subscription that is the same wherever its events come from."""

    def __init__(self, buffer: EventBuffer) -> None:
        self._buffer = buffer

    @property
    def lost(self) -> Mapping[str, int]:
        """How many events of each name were dropped unread."""
        return self._buffer.lost

    async def receive(self) -> Event:
        """Return the next event.

        If the call is cancelled, it ends at once and no event is lost.

        Raises:
            MonitorError: The connection has ended, and all events have been read.
            RuntimeError: The block has ended, and all events have been read.
        """
        await self._let_others_run()
        while (event := self._buffer.get()) is None:
            self._raise_if_ended()
            await self._wait()
        return event

    def __aiter__(self) -> Self:
        """Return itself."""
        return self

    async def __anext__(self) -> Event:
        """Return the next event, as :meth:`receive` does.

        Raises:
            StopAsyncIteration: This end has closed the connection.
        """
        try:
            return await self.receive()
        except MonitorClosed:
            if self._is_closed_by_us():
                raise StopAsyncIteration from None
            raise

    @abstractmethod
    async def _let_others_run(self) -> None:
        """Give other tasks their turn."""

    @abstractmethod
    async def _wait(self) -> None:
        """Wait until an event has come, or no more events will come."""

    @abstractmethod
    def _raise_if_ended(self) -> None:
        """Raise the reason if no more events will come."""

    @abstractmethod
    def _is_closed_by_us(self) -> bool:
        """Tell whether this end has closed the connection."""


class EventFeed:
    """Gives each event of a monitor to all subscriptions.

    Attributes:
        subscriptions: The open ones.
        failure: Why no more events will come; ``None`` while they may.
        is_closed_by_us: Whether that is because this end has closed the connection.
    """

    def __init__(self) -> None:
        # The keys count. An empty set takes three times the memory of an empty dict.
        self.subscriptions: dict[FeedSubscription, None] = {}
        self.failure: MonitorError | None = None
        self.is_closed_by_us: bool = False

    def put(self, event: Event) -> None:
        """Give an event to all subscriptions."""
        for subscription in self.subscriptions:
            subscription.put(event)

    def end(self, failure: MonitorError, *, by_us: bool) -> None:
        """Record that no more events come, and wake all readers."""
        self.failure, self.is_closed_by_us = failure, by_us
        for subscription in self.subscriptions:
            subscription.wake()


class FeedSubscription(AsyncSubscription):
    """A subscription whose events come from an :class:`EventFeed`."""

    def __init__(self, feed: EventFeed, buffer: EventBuffer) -> None:
        super().__init__(buffer)
        self._feed = feed

    def __enter__(self) -> Self:
        """Begin to take events in."""
        self._feed.subscriptions[self] = None
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop taking events in. Those that came before can still be read."""
        self._feed.subscriptions.pop(self, None)
        self.wake()

    def put(self, event: Event) -> None:
        """Take an event in, if it is one that was asked for; the feed calls this.

        :meta private:
        """
        if self._buffer.put(event):
            self.wake()

    @abstractmethod
    def wake(self) -> None:
        """Wake the tasks that wait in :meth:`receive`; the feed calls this.

        :meta private:
        """

    def _raise_if_ended(self) -> None:
        if self._feed.failure is not None:
            raise copy_error(self._feed.failure)
        if self not in self._feed.subscriptions:
            raise make_not_subscribed()

    def _is_closed_by_us(self) -> bool:
        return self._feed.is_closed_by_us
