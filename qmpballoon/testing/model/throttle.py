"""Events that QEMU sends once a second at most.

The first goes out at once. What comes within the second after it replaces what
came before, and the newest goes out when the second is over, which begins another.
An event's timestamp is the time at which it was made, not that of its delivery.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from attrs import define, field

if TYPE_CHECKING:
    from qmpballoon.testing.model.qobject import Value

__all__ = ["THROTTLE_PERIOD", "Throttle"]

THROTTLE_PERIOD: Final = 1_000_000_000
"""Nanoseconds between two events of a throttled kind."""


@define
class Throttle:
    """Lets events of one kind through, once a period.

    Attributes:
        due: When the period ends that runs; None: none does.
    """

    due: int | None = field(init=False, default=None)
    _newest: dict[str, Value] | None = field(init=False, default=None)

    @property
    def is_open(self) -> bool:
        """Tell whether an event would go out at once."""
        return self.due is None

    def offer(self, event: dict[str, Value], now: int) -> dict[str, Value] | None:
        """Take an event; return it if it goes out at once."""
        if self.due is not None:
            self._newest = event
            return None
        self.due = now + THROTTLE_PERIOD
        return event

    def expire(self, now: int) -> dict[str, Value] | None:
        """End the period that is over; return the event that goes out now, if any."""
        if self.due is None or now < self.due:
            return None
        event, self._newest = self._newest, None
        self.due = None if event is None else now + THROTTLE_PERIOD
        return event
