"""A simulated guest that suffers while it has less memory than it needs.

It reports plenty of memory as available all the time, as a real one does whose cache is
in use. Only its swapping, its faults or its silence show what it needs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

from attrs import evolve

from qmpballoon.balloon.device import PAGE
from qmpballoon.balloon.guard import Guard
from qmpballoon.sizes import GiB, MiB
from qmpballoon.testing import SECOND

if TYPE_CHECKING:
    from qmpballoon.testing import Machine

__all__ = ["NEEDS", "SUFFERINGS", "Suffering", "SufferingKind"]

SufferingKind = Literal["swap-out", "major-faults", "silence"]

SUFFERINGS: Final[tuple[SufferingKind, ...]] = ("swap-out", "major-faults", "silence")

NEEDS: Final = GiB + 512 * MiB
"""Bytes that the guest needs."""

_RATES: Final = {"swap-out": 20 * MiB, "major-faults": 1000, "silence": 0}  # a second


class Suffering:
    """Has a guest suffer; its ``look`` is to be called all the time.

    Args:
        machine: The VM of the guest.
        kind: What it does when it has less than it needs.
        begins: Seconds of the machine's clock before which it needs nothing.

    Attributes:
        lowest: The least it was asked to have, in bytes.
    """

    def __init__(
        self, machine: Machine, kind: SufferingKind, begins: float = 0.0
    ) -> None:
        self.lowest: int = machine.guest.memory.ram
        self._machine = machine
        self._kind = kind
        self._begins = begins
        self._looked_at = machine.now
        self._counted = 0.0

    @property
    def told(self) -> int:
        """Bytes that the guest is asked to have."""
        assert self._machine.device is not None
        return self._machine.guest.memory.ram - self._machine.device.asked * PAGE

    @property
    def least(self) -> int:
        """Bytes that no call asks it to go below: two steps less than it needs."""
        return NEEDS - 2 * int(Guard().compute_limits(NEEDS).step)

    def look(self, _: int = 0) -> None:
        """Let it suffer for the time that has passed."""
        machine, guest = self._machine, self._machine.guest
        passed = (machine.now - self._looked_at) / SECOND
        self._looked_at = machine.now
        self.lowest = min(self.lowest, self.told)
        has = guest.memory.ram - guest.memory.balloon
        suffers = has < NEEDS and machine.now >= self._begins * SECOND
        if self._kind == "silence":
            silent = guest.now if suffers else None
            if suffers == (guest.config.silent_after is None):
                guest.config = evolve(guest.config, silent_after=silent)
            return
        if suffers:
            self._counted += passed * _RATES[self._kind]
        claims: dict[str, int | None] = {self._kind: int(self._counted)}
        guest.config = evolve(guest.config, claims=claims)
