"""A simulated machine on the clock of an event loop, whichever that is.

A :class:`~qmpballoon.testing.Machine` has no clock and does no I/O.
:class:`SimulatedQemu` gives it a clock; :class:`~qmpballoon.testing.FakeQemu` and
:class:`~qmpballoon.testing.AsyncioFakeQemu` add clients, on trio and on asyncio.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, TypeVar

from attrs import define

from qmpballoon.testing.descriptors import ReceivedDescriptor
from qmpballoon.testing.model.config import SECOND

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator

    from qmpballoon.testing.faults import FaultPlan
    from qmpballoon.testing.model.chardevs import Descriptor
    from qmpballoon.testing.model.machine import AnySession, Machine

__all__ = ["ConnectionCut", "FaultySender", "SimulatedQemu"]

T = TypeVar("T")


class SimulatedQemu(ABC):
    """A simulated machine and its clock.

    Attributes:
        faults: What goes wrong with it.
    """

    def __init__(
        self, machine: Machine, faults: FaultPlan, now: Callable[[], float]
    ) -> None:
        self._machine = machine
        self._now = now
        self.faults = faults
        machine.reply_delay = machine.reply_delay or faults.reply_delay
        machine.event_delay = faults.event_delay
        machine.event_copies = faults.event_copies
        # The clock's time at which the machine's is 0. A freeze moves `_origin` on.
        self._origin = self._began = now() - machine.now / SECOND
        self._frozen = False
        self._due: int | None = None

    @property
    def machine(self) -> Machine:
        """The machine as it is now.

        Call :meth:`touch` after changing it, or use :meth:`do`.
        """
        self._advance()
        return self._machine

    @property
    def actual(self) -> int:
        """Bytes the guest has now, as QEMU tells it; all its RAM without a balloon."""
        actual = self.machine.actual
        return self._machine.guest.memory.ram if actual is None else actual

    @property
    def target(self) -> int:
        """Bytes the guest was last asked to have; all its RAM if it was not asked."""
        target = self.machine.target
        return self._machine.guest.memory.ram if target is None else target

    @property
    def available(self) -> int:
        """Bytes the guest really has available now, whatever it reports."""
        return self.machine.guest.memory.available

    @property
    def oom_kills(self) -> int:
        """How many processes the guest has killed for want of memory."""
        return self.machine.guest.oom_kills

    def do(self, action: Callable[[Machine], T]) -> T:
        """Call a function with the machine, and return the function's result.

        Args:
            action: For example ``Machine.stop`` or ``lambda machine: machine.status``.
        """
        self.touch()
        try:
            return action(self.machine)
        finally:
            self.touch()

    def wall_clock(self) -> float:
        """Return the host's time in seconds since the epoch, whatever QEMU does."""
        return self._machine.config.epoch / SECOND + self._now() - self._began

    def touch(self) -> None:
        """Advance the machine to now, and send its clients what that leads to."""
        self._advance()
        self._machine.advance(self._machine.now)  # does what is due at this moment
        self._machine.settle()
        self._wake()

    @abstractmethod
    def _wake(self) -> None:
        """Have the machine's output sent, and set the alarm for the next."""

    def _convert_to_clock(self, time: int | None) -> float:
        return math.inf if time is None else self._origin + time / SECOND

    def _find_deadline(self) -> float:
        """Return when the machine next sends something on its own, by the clock."""
        machine = self._machine
        self._due = None if self._frozen else machine.find_next_output()
        return -math.inf if machine.ended else self._convert_to_clock(self._due)

    def _advance(self, at_least: int = 0) -> None:
        """Advance the machine to now. The caller calls :meth:`_wake` afterwards."""
        machine = self._machine
        if self._frozen:
            return
        # Seconds are floating-point numbers: a timer that fired may look early.
        now = round((self._now() - self._origin) * SECOND)
        now = max(now, at_least, machine.now)
        # Many commands come at the time of the one before: then nothing is due.
        if now > machine.now or (self._due is not None and self._due <= now):
            machine.advance(now)

    def _find_client(
        self, session: AnySession, descriptor: Descriptor
    ) -> socket.socket | None:
        """Return a socket on the client of a monitor that was added on a descriptor.

        It is ``None`` if there is nobody to serve: the client has left, or the monitor
        is gone already, and with it the descriptor.
        """
        if session.closed or self._machine.ended:
            return None
        if not descriptor.is_connected:
            self._machine.miss_client(session)
            return None
        assert isinstance(descriptor, ReceivedDescriptor)  # noqa: S101 - both doors do
        return descriptor.duplicate()

    def _begin_freeze(self, at: int) -> None:
        """Stop QEMU's process; the time of all others goes on."""
        self._advance(at)
        self._frozen = True
        self._wake()

    def _end_freeze(self) -> None:
        """Let QEMU's process go on."""
        duration = self.faults.freeze_for
        self._frozen = False
        self._origin += duration / SECOND
        self._machine.sleep(duration)
        self._wake()


class ConnectionCut(Exception):
    """The plan cuts the connection here."""


@define
class FaultySender:
    """Divides what is sent to clients, with the faults that are planned for that.

    Attributes:
        faults: The plan.
        left: Bytes until the connection is cut, which happens once; ``None``: never.
    """

    faults: FaultPlan
    left: int | None

    @property
    def pause(self) -> float:
        """Seconds between two pieces."""
        return self.faults.chunk_pause / SECOND

    def divide(self, data: bytes) -> Iterator[bytes | None]:
        """Yield the pieces to send one after the other, and ``None`` for a pause.

        Raises:
            ConnectionCut: The plan cuts the connection after the last piece.
        """
        size = self.faults.chunk or len(data)
        for start in range(0, len(data), size):
            chunk = data[start : start + size][: self.left]
            yield chunk
            self._count(len(chunk))
            if size < len(data):
                yield None

    def _count(self, sent: int) -> None:
        if self.left is None:
            return
        self.left -= sent
        if self.left == 0:
            self.left = None
            raise ConnectionCut
