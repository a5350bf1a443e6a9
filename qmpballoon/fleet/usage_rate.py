"""How fast a guest's use of memory grows, by its own statistics. Pure."""

from __future__ import annotations

from typing import Final

from attrs import define

__all__ = ["Growth"]

_LEAST: Final = 1.0  # seconds: a move takes some time, however soon the next plan comes


@define
class Growth:
    """The rate at which a guest came to use more, between the last two samples.

    Attributes:
        rate: Bytes a second; 0 if it does not grow, or that is not known.
    """

    rate: int = 0
    _at: float | None = None
    _used: int = 0

    def see(self, at: float, used: int) -> None:
        """Take in a sample.

        Args:
            at: Its moment, in seconds on any clock that runs steadily.
            used: Bytes that the guest could not do without then.
        """
        if self._at is not None:
            if at <= self._at:
                return
            self.rate = max(0, int((used - self._used) / (at - self._at)))
        self._at, self._used = at, used

    def until_next(self, period: float) -> int:
        """Return the bytes by which it grows until the next plan.

        Args:
            period: Seconds between two plans; less than one counts as one.
        """
        return int(self.rate * max(period, _LEAST))
