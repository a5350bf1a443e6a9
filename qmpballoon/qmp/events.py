"""A bounded buffer of QEMU events, which tells what it had to drop.

A reader that does not keep up must neither hold up the replies that come behind
its events nor make memory grow. So the buffer has a bound, and when it is full
the oldest event *of the same name* goes first: a stream of ``BALLOON_CHANGE``
does not push out the one ``SHUTDOWN``. What was lost is counted by name.
"""

from __future__ import annotations

from collections import Counter, deque
from typing import TYPE_CHECKING

from qmpballoon._checks import require_count

if TYPE_CHECKING:
    from collections.abc import Collection

    from qmpballoon.qmp.messages import Event

__all__ = ["EventBuffer"]


class EventBuffer:
    """The events that one subscriber has not read yet.

    Args:
        names: Which events to keep; none means all.
        capacity: How many to hold, at least 1.

    Raises:
        TypeError: A name is no text, or the capacity no whole number.
        ValueError: The capacity is below 1.

    Attributes:
        lost: How many events of each name were dropped unread.
    """

    def __init__(self, names: Collection[str] = (), capacity: int = 64) -> None:
        require_count(capacity, "capacity", "events", minimum=1)
        for name in names:
            if not isinstance(name, str):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise TypeError(f"an event's name is {name!r}: it must be text")
        self.lost: Counter[str] = Counter()
        self._names = frozenset(names)
        self._capacity = capacity
        self._events: deque[Event] = deque()

    def __len__(self) -> int:
        """Return how many events wait to be read."""
        return len(self._events)

    def put(self, event: Event) -> bool:
        """Take an event in; tell whether it is one of ours."""
        if self._names and event.name not in self._names:
            return False
        if len(self._events) == self._capacity:
            self._drop_for(event)
        self._events.append(event)
        return True

    def get(self) -> Event | None:
        """Return and remove the oldest event, or ``None``."""
        return self._events.popleft() if self._events else None

    def _drop_for(self, event: Event) -> None:
        names = [held.name for held in self._events]
        oldest = names.index(event.name) if event.name in names else 0
        self.lost[names[oldest]] += 1
        del self._events[oldest]
