"""A bounded buffer of QEMU events, which counts the events that it drops.

A slow reader must neither delay the replies that follow its events nor make memory
grow. So the buffer is bounded. When it is full, the oldest event *of the same name* is
dropped first: many ``BALLOON_CHANGE`` events do not displace the only ``SHUTDOWN``.
Dropped events are counted by name.
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
        names: Which events to keep; by default all.
        capacity: How many events to hold, at least 1.

    Raises:
        TypeError: A name is not text, or the capacity is not an integer.
        ValueError: The capacity is less than 1.

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
        """Return the number of unread events."""
        return len(self._events)

    def put(self, event: Event) -> bool:
        """Take an event in if it has one of the names; tell whether it does."""
        if self._names and event.name not in self._names:
            return False
        if len(self._events) == self._capacity:
            self._make_room(event)
        self._events.append(event)
        return True

    def get(self) -> Event | None:
        """Remove and return the oldest event; ``None`` if there is none."""
        return self._events.popleft() if self._events else None

    def _make_room(self, event: Event) -> None:
        """Drop the oldest event of the same name, or else the oldest of all."""
        names = [held.name for held in self._events]
        oldest = names.index(event.name) if event.name in names else 0
        self.lost[names[oldest]] += 1
        del self._events[oldest]
