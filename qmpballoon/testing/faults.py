"""What can go wrong with a QEMU and the connection to it. By default nothing does.

A :class:`FaultPlan` is one flat value. When a test with hypothesis fails, shrinking
switches the faults off one after the other, and leaves those that the failure needs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from attrs import field, frozen
from attrs.validators import ge, gt, optional

from qmpballoon.sizes import MiB, format_size
from qmpballoon.testing.model.dimms import ALIGNMENT, add_backend, add_dimm
from qmpballoon.testing.model.vm import PERIPHERAL

if TYPE_CHECKING:
    from collections.abc import Callable

    from attrs import Attribute

    from qmpballoon.testing.model.machine import Machine

__all__ = ["NO_FAULTS", "FaultPlan", "list_actions"]


def _check_pluggable(_: FaultPlan, attribute: Attribute[int], size: int) -> None:
    if size % ALIGNMENT:
        unit = format_size(ALIGNMENT)
        raise ValueError(f"{attribute.name} is {size}: it must be whole {unit}")


@frozen
class FaultPlan:
    """The faults of one run.

    Times are nanoseconds since the machine was started. ``None`` means that the fault
    does not happen.

    Attributes:
        chunk: Most bytes that the client gets at once; 1: byte by byte.
        chunk_pause: Nanoseconds between two such chunks.
        cut_after: The connection breaks after so many bytes to the client, once.
        reply_delay: Nanoseconds that every reply takes.
        event_delay: Nanoseconds by which every event is late.
        event_copies: How often every event is sent.
        freeze_at: QEMU's process is stopped: it neither reads nor writes.
        freeze_for: How long it is stopped, in nanoseconds.
        kill_at: QEMU's process is killed.
        stall_at: Nothing in the guest moves. QEMU still answers.
        stall_for: How long the guest stalls, in nanoseconds.
        reset_at: The guest reboots by itself.
        plug_at: A DIMM is plugged in, if there is a free slot.
        plug_size: Its size in bytes, a multiple of 2 MiB.
    """

    chunk: int | None = field(default=None, validator=optional(gt(0)))
    chunk_pause: int = field(default=0, validator=ge(0))
    cut_after: int | None = field(default=None, validator=optional(ge(0)))
    reply_delay: int = field(default=0, validator=ge(0))
    event_delay: int = field(default=0, validator=ge(0))
    event_copies: int = field(default=1, validator=gt(0))
    freeze_at: int | None = field(default=None, validator=optional(ge(0)))
    freeze_for: int = field(default=0, validator=ge(0))
    kill_at: int | None = field(default=None, validator=optional(ge(0)))
    stall_at: int | None = field(default=None, validator=optional(ge(0)))
    stall_for: int = field(default=0, validator=ge(0))
    reset_at: int | None = field(default=None, validator=optional(ge(0)))
    plug_at: int | None = field(default=None, validator=optional(ge(0)))
    plug_size: int = field(default=128 * MiB, validator=[gt(0), _check_pluggable])


NO_FAULTS: Final = FaultPlan()
"""The plan by which nothing goes wrong."""


def list_actions(plan: FaultPlan) -> list[tuple[int, Callable[[Machine], None]]]:
    """Return what a plan does to the machine itself, with its times, in their order.

    The other faults are in the connection and in the process's time; see
    :mod:`qmpballoon.testing.server`.
    """

    def plug(machine: Machine) -> None:
        if len(machine.dimms) < machine.config.slots:
            add_backend(machine, "fault", plan.plug_size)
            add_dimm(machine, PERIPHERAL, "fault-dimm", "fault")

    planned: list[tuple[int | None, Callable[[Machine], None]]] = [
        (plan.stall_at, lambda machine: machine.guest.stall(plan.stall_for)),
        (plan.reset_at, lambda machine: machine.reset(by_guest=True)),
        (plan.plug_at, plug),
        (plan.kill_at, lambda machine: machine.die()),
    ]
    timed = [(at, action) for at, action in planned if at is not None]
    return sorted(timed, key=lambda item: item[0])
