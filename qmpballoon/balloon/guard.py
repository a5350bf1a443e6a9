"""What a guest must keep: every limit, and how its default is derived.

:class:`Guard` holds what the caller asks for. :class:`GuestLimits` holds the resulting
figures for one guest. While the balloon moves, :mod:`~qmpballoon.balloon._controller`
decides by these limits; :mod:`~qmpballoon.balloon._alarms` says when the guest is in
trouble.

The rules:

1. A guest can spare what it reports as *available*, page cache included, less the
   headroom. It never goes below its floor.
2. The target is at most one step below what the guest has. If the guest begins to
   allocate, it can lose no more than that step before the target is raised.
3. A guest below its headroom gets back what it lacks. A guest gets everything back if
   it is below half of its headroom, has a process killed, or falls silent.
4. From a guest that shows memory pressure in other ways nothing more is taken until the
   pressure ends. If it does not end, the guest gets everything back:
   :mod:`~qmpballoon.balloon._pressure`.

All calls that shrink a guest follow these rules. Leaving an argument out never removes
a rule: ``None`` stands for the default, and "no limit" is ``math.inf``.

A guest's statistics are hints, which can be wrong or falsified. They can make the guard
more careful than it need be. They can never take the guest below its floor.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

from attrs import field, frozen

from qmpballoon._checks import (
    require_finite_seconds,
    require_seconds,
    require_size,
)
from qmpballoon.balloon._pressure import NO_PRESSURE_LIMITS, PressureLimits
from qmpballoon.balloon._working_set import NO_REREAD_LIMITS, RereadLimits
from qmpballoon.sizes import MiB

if TYPE_CHECKING:
    from attrs import Attribute

__all__ = ["RESIZE_GUARD", "RESIZE_HEADROOM", "Guard", "GuestLimits"]

RESIZE_HEADROOM: Final = 32 * MiB
"""Bytes that a guest keeps available while ``resize`` shrinks it by default.

With less, the next allocation may kill the guest: a process that writes 0.8 GiB a
second allocates 32 MiB between two samples, 40 ms apart."""
_RESIZE_FLOOR: Final = 32 * MiB  # no Linux guest survives with less

# The default headroom. A process that writes 1.6 GiB a second allocates 64 MiB between
# two samples, 40 ms apart; with less available, Linux reclaims in every allocation. The
# share is a margin for the kernel, whose watermarks grow with the RAM.
_HEADROOM: Final = 64 * MiB
_HEADROOM_PART: Final = 50  # a 50th of the RAM
# The default floor, which protects a guest whose statistics are wrong. Linux's page
# structures alone take a 64th of the RAM, ballooned or not: this is twice that.
_FLOOR: Final = 64 * MiB
_FLOOR_PART: Final = 32
# The default step. With 128 MiB ahead, a guest of 1 GiB in which a process wrote
# 350 MiB lived on in 4 runs of 4; with one bare ``balloon`` it panicked. A large guest
# moves faster.
_STEP: Final = 128 * MiB
_STEP_PART: Final = 32
# The default time within which memory has to be read again to be worth keeping: the
# break-even of the five-minute rule (Gray and Putzolu, 1987), the price of one read a
# second divided by the price of a page. With an NVMe disk at $300 that reads 500,000
# pages of 4 KiB a second, and memory at $5 a GiB: 300/500000 / (5/262144) = 31 s.
_REREAD_WITHIN: Final = 30.0


def _check_optional_size(
    _: object, attribute: Attribute[int | None], value: object
) -> None:
    if value is not None:
        require_size(value, attribute.name)


def _check_optional_share(
    _: object, attribute: Attribute[float | None], value: object
) -> None:
    if value is None:
        return
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"{attribute.name} is {value!r}: it must be a share, 0 to 1")
    if not 0 <= value <= 1:
        raise ValueError(f"{attribute.name} is {value}: it must be from 0 to 1")


def _check_rate(_: object, attribute: Attribute[Any], value: object) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"{attribute.name} is {value!r}: it must be a rate a second")
    if not value > 0:  # false for NaN, too
        raise ValueError(f"{attribute.name} is {value}: it must be above 0 a second")


def _check_optional_rate(
    self: object, attribute: Attribute[Any], value: object
) -> None:
    if value is not None:
        _check_rate(self, attribute, value)


@frozen(kw_only=True)
class Guard:
    """What a guest must keep, and what counts as trouble.

    All arguments are keywords. ``None`` stands for the default. Rates and
    ``stale_after`` may be ``math.inf``: then there is no such limit.

    Attributes:
        headroom: Bytes that the guest keeps available. By default 64 MiB and 2 % of its
            RAM: 74 MiB for a guest of 512 MiB, 10.3 GiB for one of 512 GiB.
        headroom_share: The same as a share of its RAM, 0 to 1. If both are given the
            guest keeps the sum of them.
        floor: Bytes below which the guest never goes, whatever it reports. By default a
            32nd of its RAM, and at least 64 MiB.
        step: How far below the guest's size the target may be: bytes, 1 MiB or more. By
            default 128 MiB, or a 32nd of the RAM if that is more.
        max_rate: Bytes a second to take at most. By default there is no limit. A guest
            that gave less, or was not looked at, for a while is not asked for more
            than half a second's worth at once.
        gentle: Seconds over which page cache is taken, evenly. Free memory is taken at
            once. Time in which nobody looked at the guest does not count. Cache that
            the guest reads again within a tenth of that time is noticed, and left to
            it. By default 0: as fast as the guest gives it.
        swap_rate: Bytes a second that the guest may swap out beyond the rate that it
            had before. By default a 4096th of its RAM, and at least 1 MiB.
        fault_rate: Major page faults a second that it may have beyond the rate that it
            had before. By default 100 for each 16 GiB of its RAM, and at least 100.
        stale_after: Seconds without an answer after which the guest counts as silent.
        reread_within: Page cache is left to the guest if it would read it again from
            its disks within this many seconds. By default 30, which suits an NVMe
            disk. With 0 all that can be spared is taken.

    Raises:
        TypeError: A value is not a number of the right kind.
        ValueError: A value is out of range.
    """

    headroom: int | None = field(default=None, validator=_check_optional_size)
    headroom_share: float | None = field(default=None, validator=_check_optional_share)
    floor: int | None = field(default=None, validator=_check_optional_size)
    step: int | None = field(default=None, validator=_check_optional_size)
    max_rate: float = field(default=math.inf, validator=_check_rate)
    gentle: float = 0.0
    stale_after: float = 3.0
    swap_rate: float | None = field(default=None, validator=_check_optional_rate)
    fault_rate: float | None = field(default=None, validator=_check_optional_rate)
    reread_within: float = _REREAD_WITHIN

    def __attrs_post_init__(self) -> None:
        """Refuse values that make no sense, before anything is sent."""
        require_seconds(self.stale_after, "stale_after")
        require_seconds(self.reread_within, "reread_within")
        require_finite_seconds(self.gentle, "gentle")
        if self.step is not None and self.step < MiB:
            raise ValueError(f"step is {self.step}: it must be at least 1 MiB")

    def compute_limits(self, total: int) -> GuestLimits:
        """Return the figures for one guest.

        Args:
            total: Bytes of its RAM.
        """
        floor, step = self.floor, self.step
        return GuestLimits(
            headroom=self._compute_headroom(total),
            floor=max(_FLOOR, total // _FLOOR_PART) if floor is None else floor,
            step=max(_STEP, total // _STEP_PART) if step is None else step,
            max_rate=self.max_rate,
            gentle=self.gentle,
            stale_after=self.stale_after,
            pressure=PressureLimits.of(total, self.swap_rate, self.fault_rate),
            rereads=RereadLimits.of(total, self.reread_within),
        )

    def _compute_headroom(self, total: int) -> int:
        if self.headroom is None and self.headroom_share is None:
            return _HEADROOM + total // _HEADROOM_PART
        return (self.headroom or 0) + round((self.headroom_share or 0) * total)


@frozen
class GuestLimits:
    """The figures of a guard for one guest, as :meth:`Guard.compute_limits` returns.

    Attributes:
        headroom: Bytes that the guest keeps available.
        floor: Bytes below which it never goes.
        step: How many bytes below its size the target may be.
        max_rate: Bytes a second to take at most.
        gentle: Seconds over which page cache is taken.
        stale_after: Seconds without an answer after which it counts as silent.
        pressure: What counts as memory pressure; by default nothing does.
        rereads: When memory is worth keeping because of what the guest reads; by
            default never.
    """

    headroom: int
    floor: int
    step: float = math.inf
    max_rate: float = math.inf
    gentle: float = 0.0
    stale_after: float = math.inf
    pressure: PressureLimits = NO_PRESSURE_LIMITS
    rereads: RereadLimits = NO_REREAD_LIMITS


RESIZE_GUARD: Final = Guard(
    headroom=RESIZE_HEADROOM, floor=_RESIZE_FLOOR, reread_within=0
)
"""The guard of ``resize`` if none is given: a headroom and a floor of 32 MiB.

A resize is an order, so it leaves the guest less than a reclaim does: enough not to be
killed. All alarms are on, but what the guest reads again does not stop it. To change
some of these limits and keep the others, use ``attrs.evolve(RESIZE_GUARD, ...)``."""
