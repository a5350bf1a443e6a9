"""What is wanted of a VM in the fleet, and what follows for its size.

Sizes may be shares of the VM's RAM, which is known only once it can be asked.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from attrs import field, frozen

from qmpballoon.balloon.guard import Guard
from qmpballoon.sizes import GiB, parse_size

if TYPE_CHECKING:
    from attrs import Attribute

    from qmpballoon.address import Vm

__all__ = ["Bounds", "Spec"]


def _size(_: object, attribute: Attribute[str | None], value: str | None) -> None:
    if value is None:
        return
    try:
        parse_size(value, whole=GiB)
    except ValueError as error:
        raise ValueError(f"{attribute.name}: {error}") from error


def _weight(_: object, __: object, value: float) -> None:
    if not 0 < value < math.inf:  # NaN is not, either
        raise ValueError(f"weight: {value} is none: give a number above 0, such as 2")


@frozen
class Bounds:
    """The limits of one VM, in bytes.

    Attributes:
        floor: What it never goes below.
        ceiling: What it never goes above.
        headroom: What it keeps available.
    """

    floor: int
    ceiling: int
    headroom: int


@frozen
class Spec:
    """A VM of the fleet.

    Attributes:
        name: What it is called; no two VMs of a fleet have the same name.
        address: Where it is reached.
        floor: What it never goes below, like ``"1GiB"`` or ``"25%"`` of its RAM; by
            default a 32nd of it, and at least 64 MiB.
        ceiling: What it never goes above; by default all its RAM.
        headroom: What it keeps available; by default 64 MiB and 2 % of its RAM.
        weight: Above 0; one with twice the weight is left with twice as much.

    Raises:
        ValueError: A limit makes no sense, or contradicts another.
    """

    name: str
    address: Vm
    floor: str | None = field(default=None, validator=_size)
    ceiling: str | None = field(default=None, validator=_size)
    headroom: str | None = field(default=None, validator=_size)
    weight: float = field(default=1.0, validator=_weight)

    def __attrs_post_init__(self) -> None:
        """Refuse what no RAM can make sense of."""
        if self.ceiling is None:
            return
        ceiling = parse_size(self.ceiling, whole=GiB)
        if ceiling == 0:
            raise ValueError(f"ceiling is {self.ceiling}: give more than nothing")
        floor = self.floor or "0"
        alike = ("%" in floor) == ("%" in self.ceiling)
        if alike and parse_size(floor, whole=GiB) > ceiling:
            raise ValueError(
                f"floor {floor} is above the ceiling {self.ceiling}: lower the one or"
                " raise the other"
            )

    def bounds(self, total: int) -> Bounds:
        """Return the limits as they are for a VM with so many bytes of RAM.

        A floor above the ceiling, as only shares and sizes mixed can make it, is
        lowered to the ceiling.
        """

        def of_total(text: str | None) -> int | None:
            return None if text is None else parse_size(text, whole=total)

        guard = Guard(headroom=of_total(self.headroom), floor=of_total(self.floor))
        limits, ceiling = guard.limits(total), of_total(self.ceiling)
        ceiling = total if ceiling is None else min(ceiling, total)
        return Bounds(min(limits.floor, ceiling), ceiling, limits.headroom)
