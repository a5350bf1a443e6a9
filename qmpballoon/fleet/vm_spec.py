"""A VM of the fleet and its limits, as the user gives them and in bytes.

The user may give a size as a share of the VM's RAM. The RAM is known only once the
VM's monitor answers.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, TypeAlias

from attrs import asdict, field, frozen

from qmpballoon.balloon.guard import Guard
from qmpballoon.sizes import GiB, parse_size

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from attrs import Attribute

    from qmpballoon.address import Vm

__all__ = ["Bounds", "Limit", "Refused", "VmSpec"]


def _check_size(_: object, attribute: Attribute[str | None], value: str | None) -> None:
    if value is None:
        return
    try:
        parse_size(value, whole=GiB)
    except ValueError as error:
        raise ValueError(f"{attribute.name}: {error}") from error


def _check_weight(_: object, __: object, value: float) -> None:
    if not 0 < value < math.inf:  # refuses NaN, too
        raise ValueError(f"weight is {value}: give a number above 0, such as 2")


@frozen
class Bounds:
    """The limits of one VM, in bytes.

    Attributes:
        floor: The size that the VM never goes below.
        ceiling: The size that it never goes above.
        headroom: How much memory its guest keeps available.
    """

    floor: int
    ceiling: int
    headroom: int


Limit: TypeAlias = "Callable[[str, int, Bounds], Bounds]"
"""Returns a VM's limits, from its name, its RAM in bytes, and its own limits."""


@frozen
class Refused:
    """Something that looked like a VM and is not one, or cannot be trusted.

    Attributes:
        name: Its name in messages. A process of a user who is not trusted is named by
            its id. The name stays free for a VM of the fleet.
        reason: Why it is refused, and what to do.
        address: Where its monitor is; empty if it has none, or several.
        pid: Its process id; ``None`` if it is not a process, or if that is not known.
    """

    name: str
    reason: str
    address: str = ""
    pid: int | None = None

    def to_json(self) -> dict[str, object]:
        """Return it as the command prints it."""
        return asdict(self)


@frozen
class VmSpec:
    """A VM of the fleet, and its limits.

    Attributes:
        name: Its name. No two VMs of a fleet have the same name.
        address: Where its monitor is.
        floor: The size that it never goes below: a size such as ``"1GiB"``, or a share
            of its RAM such as ``"25%"``. By default a 32nd of its RAM, and at least
            64 MiB.
        ceiling: The size that it never goes above, likewise. By default its RAM.
        headroom: How much memory its guest keeps available, likewise. By default
            64 MiB and 2 % of its RAM.
        weight: A number above 0. A VM with twice the weight is left with twice as
            much, and gets twice as much.
        is_named: Whether the user chose the name, or it comes from a socket's path.
            Otherwise QEMU is asked for its VM's name.
        process: An identity of its QEMU process; ``None`` if that is not known.
        socket: An identity of its monitor's socket, likewise. Process and socket tell
            which VM of the fleet this is; if neither is known, the address does. They
            do not count when two specifications are compared.

    Raises:
        ValueError: A limit is malformed, or contradicts another.
    """

    name: str
    address: Vm
    floor: str | None = field(default=None, validator=_check_size)
    ceiling: str | None = field(default=None, validator=_check_size)
    headroom: str | None = field(default=None, validator=_check_size)
    weight: float = field(default=1.0, validator=_check_weight)
    is_named: bool = field(default=True, eq=False, repr=False)
    process: Hashable = field(default=None, eq=False, repr=False)
    socket: Hashable = field(default=None, eq=False, repr=False)

    def __attrs_post_init__(self) -> None:
        """Refuse limits that contradict each other whatever the RAM is."""
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

    def compute_bounds(self, total: int) -> Bounds:
        """Return the limits in bytes.

        If one of floor and ceiling is a share and the other a size, the floor can be
        above the ceiling. It is then lowered to the ceiling.

        Args:
            total: The VM's RAM in bytes.
        """

        def parse(text: str | None) -> int | None:
            return None if text is None else parse_size(text, whole=total)

        guard = Guard(headroom=parse(self.headroom), floor=parse(self.floor))
        limits, ceiling = guard.compute_limits(total), parse(self.ceiling)
        ceiling = total if ceiling is None else min(ceiling, total)
        return Bounds(min(limits.floor, ceiling), ceiling, limits.headroom)
