"""How often a fleet is looked at, and how long its VMs may take."""

from __future__ import annotations

from typing import Final

from attrs import asdict, frozen

from qmpballoon._checks import require_seconds

__all__ = ["Settings"]

_DAY: Final = 86400  # seconds


@frozen
class Settings:
    """How often things are done, and how long they may take; in seconds.

    Attributes:
        period: Between two looks at a VM, and two plans: guests that grow are to have
            enough until the next. Above 0, and a day at most.
        stale_after: Without an answer of the guest, after which it is silent.
        rescan: Between two looks for VMs that have come or gone; likewise.
        open_timeout: For connecting and greeting.
        command_timeout: For one command.
        move_timeout: For one move of a balloon.
        first_pause: Before the first new attempt to connect.
        longest_pause: Between two attempts.

    Raises:
        TypeError: One of them is no number.
        ValueError: One of them is out of range.
    """

    period: float = 1.0
    stale_after: float = 5.0
    rescan: float = 5.0
    open_timeout: float = 5.0
    command_timeout: float = 5.0
    move_timeout: float = 30.0
    first_pause: float = 0.5
    longest_pause: float = 30.0

    def __attrs_post_init__(self) -> None:
        """Refuse what would make tasks fail, or spin, later on."""
        for name, seconds in asdict(self).items():
            require_seconds(seconds, name)
        for name in ("period", "rescan"):
            seconds = getattr(self, name)
            if not 0 < seconds <= _DAY:
                raise ValueError(
                    f"{name} is {seconds}: it must be above 0, and {_DAY} seconds at"
                    " most"
                )
