"""Events of qemu.qmp: for our readers, and no more than so many for nobody."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import TYPE_CHECKING

from qemu.qmp import EventListener

from qmpballoon._checks import require_count
from qmpballoon._transport.errors import not_subscribed
from qmpballoon.errors import ProtocolError
from qmpballoon.qmp import Event
from qmpballoon.qmp.messages import parse

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType
    from typing import Self

    from qemu.qmp import Message

    from qmpballoon.asyncio.monitor import AsyncioMonitor
    from qmpballoon.qmp.events import EventBuffer

__all__ = ["EventSubscription", "bound", "refuse"]

_log = logging.getLogger(__name__)


class EventSubscription:
    """QEMU's events for one reader: a context manager, and an iterator inside it.

    ::

        with monitor.subscribe("BALLOON_CHANGE") as events:
            async for event in events:
                print(event.data)

    A reader that does not keep up loses the oldest events, of the same name where
    there are some; :attr:`lost` tells. It never holds up anybody else.
    """

    def __init__(self, monitor: AsyncioMonitor, buffer: EventBuffer) -> None:
        self._monitor = monitor
        self._buffer = buffer
        self._arrived = asyncio.Event()
        # The filter takes the events and lets none pass: what does, a listener
        # keeps in a history without end.
        self._listener = EventListener(event_filter=self._put)
        self._is_open = False

    def __enter__(self) -> Self:
        """Begin to take events in."""
        self._monitor.client.register_listener(self._listener)
        self._is_open = True
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Take no more in; what was is still there to be read."""
        self._monitor.client.remove_listener(self._listener)
        self._is_open = False
        self._arrived.set()

    @property
    def lost(self) -> Mapping[str, int]:
        """How many events of each name were dropped unread."""
        return self._buffer.lost

    async def receive(self) -> Event:
        """Return the next event.

        Raises:
            MonitorClosed: The client is not connected; no more will come.
            RuntimeError: No more will come, as this is outside the block.

        Cancellation: at once, and no event is lost.
        """
        await asyncio.sleep(0)
        while (event := self._buffer.get()) is None:
            self._monitor._raise_if_closed()  # noqa: SLF001
            if not self._is_open:
                raise not_subscribed()
            await self._wait_for_more()
        return event

    def __aiter__(self) -> Self:
        """Return itself."""
        return self

    async def __anext__(self) -> Event:
        """Return the next event, as :meth:`receive` does."""
        return await self.receive()

    async def _wait_for_more(self) -> None:
        self._arrived.clear()
        waits = (
            asyncio.create_task(self._arrived.wait()),
            asyncio.create_task(self._monitor.client.runstate_changed()),
        )
        try:
            await asyncio.sleep(0)  # after this they notice
            if not self._arrived.is_set():
                self._monitor._raise_if_closed()  # noqa: SLF001
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    def _put(self, message: Message) -> bool:
        # An exception in here would end the orchestrator's connection.
        with suppress(ProtocolError):
            event = parse(dict(message))
            if isinstance(event, Event) and self._buffer.put(event):
                self._arrived.set()
        return False


class _Bound:
    """An event filter that lets only so many events pile up unread.

    It refuses the newest, not the oldest: what a listener has accepted once stays
    in its history, read or not.
    """

    def __init__(self, listener: EventListener, limit: int) -> None:
        self._listener = listener
        self._limit = limit
        self._first = listener.event_filter
        self._accepted = 0  # since nothing was unread

    def __call__(self, event: Message) -> bool:
        if self._first is not None and not self._first(event):
            return False
        if self._listener.empty():
            self._accepted = 0
        if self._accepted == self._limit:
            _log.warning(
                "%d events lie unread in client.events: further ones are dropped"
                " until they are read; see unread_events",
                self._limit,
            )
        self._accepted += 1
        return self._accepted <= self._limit


def bound(listener: EventListener, limit: int) -> None:
    """Let no more than so many events pile up there unread, if nothing else does."""
    require_count(limit, "unread_events", "events", minimum=0)
    if not isinstance(listener.event_filter, _Bound) and (
        listener.event_filter is not refuse
    ):
        listener.event_filter = _Bound(listener, limit)


def refuse(_: Message) -> bool:
    """Let no event pass; a filter for a listener where nobody can read."""
    return False
