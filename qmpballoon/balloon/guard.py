"""What a guest must keep, and what counts as trouble.

:class:`Guard` is what the caller wants, and :class:`Limits` the same as figures for
one guest. :mod:`~qmpballoon.balloon.plan` tells what follows from them at one moment,
and :mod:`~qmpballoon.balloon._controller` steers by them while the balloon moves.

The rules:

1. What can be spared is what the guest has *available*, page cache included, less
   the headroom; and the guest never goes below its floor.
2. The target runs only a step ahead of the balloon. Should the guest begin to
   allocate, no more than that step has still to be taken back.
3. A guest that falls under its headroom gets back what it lacks. One that falls
   under half of it, or has a process killed, or falls silent, gets everything.
4. A guest that begins to suffer in other ways is let alone until that is over, and
   gets everything if it is not: :mod:`~qmpballoon.balloon._pressure`.

A guest's statistics are hints from somebody who may be wrong, or lie. They can
make a guard more careful than it need be; they can never take it below the floor.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from attrs import field, frozen

from qmpballoon._checks import require_seconds, require_size
from qmpballoon.balloon._pressure import NO_STRAIN, StrainLimits
from qmpballoon.sizes import MiB

if TYPE_CHECKING:
    from attrs import Attribute

__all__ = ["Guard", "Limits"]


def _optional_size(_: object, attribute: Attribute[int | None], value: object) -> None:
    if value is not None:
        require_size(value, attribute.name)


def _optional_share(
    _: object, attribute: Attribute[float | None], value: object
) -> None:
    if value is None:
        return
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"{attribute.name} is {value!r}: it must be a share, 0 to 1")
    if not 0 <= value <= 1:
        raise ValueError(f"{attribute.name} is {value}: it must be from 0 to 1")


def _rate(_: object, attribute: Attribute[Any], value: object) -> None:
    if not isinstance(value, int | float):
        raise TypeError(f"{attribute.name} is {value!r}: it must be a rate a second")
    if not value > 0:  # NaN is not, either
        raise ValueError(f"{attribute.name} is {value}: it must be above 0 a second")


def _optional_rate(self: object, attribute: Attribute[Any], value: object) -> None:
    if value is not None:
        _rate(self, attribute, value)


@frozen
class Guard:
    """What a guest must keep, and what counts as trouble.

    Attributes:
        headroom: Bytes the guest keeps available. By default 64 MiB and 2 % of its
            RAM: 74 MiB for a guest of 512 MiB, 10.3 GiB for one of 512 GiB.
        headroom_share: The same as a share of its RAM, 0 to 1. Where both are given
            the guest keeps the sum of them.
        floor: Bytes the guest never goes below, whatever it says. By default a
            32nd of its RAM, and at least 64 MiB.
        step: Bytes the target runs ahead of the balloon at most. By default
            128 MiB, or a 32nd of the RAM where that is more.
        max_rate: Bytes a second to take at most.
        swap_rate: Bytes a second that the guest may swap out more than it did by
            itself. By default a 4096th of its RAM, and at least 1 MiB.
        fault_rate: Major page faults a second that it may have more than by itself.
            By default 100 for each 16 GiB of its RAM, and at least 100.
        stale_after: Seconds without an answer after which the guest counts as
            silent.
    """

    headroom: int | None = field(default=None, validator=_optional_size)
    headroom_share: float | None = field(
        default=None, validator=_optional_share, kw_only=True
    )
    floor: int | None = field(default=None, validator=_optional_size)
    step: int | None = field(default=None, validator=_optional_size)
    max_rate: float = field(default=math.inf, validator=_rate)
    stale_after: float = 3.0
    swap_rate: float | None = field(default=None, validator=_optional_rate)
    fault_rate: float | None = field(default=None, validator=_optional_rate)

    def __attrs_post_init__(self) -> None:
        """Refuse what makes no sense, before anything is sent."""
        require_seconds(self.stale_after, "stale_after")
        if self.step is not None and self.step < MiB:
            raise ValueError(f"step is {self.step}: it must be at least 1 MiB")

    def limits(self, total: int) -> Limits:
        """Return the figures for a guest with so many bytes of RAM."""
        floor, step = self.floor, self.step
        return Limits(
            headroom=self._headroom(total),
            floor=max(64 * MiB, total // 32) if floor is None else floor,
            step=max(128 * MiB, total // 32) if step is None else step,
            max_rate=self.max_rate,
            stale_after=self.stale_after,
            strain=StrainLimits.of(total, self.swap_rate, self.fault_rate),
        )

    def _headroom(self, total: int) -> int:
        if self.headroom is None and self.headroom_share is None:
            return 64 * MiB + total // 50
        return (self.headroom or 0) + round((self.headroom_share or 0) * total)


@frozen
class Limits:
    """A guard's figures for one guest; as in :class:`Guard`.

    By default there is no step, no cap on the rate, no strain, and silence is no
    trouble.
    """

    headroom: int
    floor: int
    step: int | None = None
    max_rate: float = math.inf
    stale_after: float = math.inf
    strain: StrainLimits = NO_STRAIN
