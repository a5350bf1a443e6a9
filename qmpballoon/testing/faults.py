"""What can go wrong with a QEMU and the way to it; all of it is off by default.

A :class:`FaultPlan` is one flat value, so that hypothesis shrinks a failing world by
switching faults off one after the other, and what is left is what it takes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from attrs import field, frozen
from attrs.validators import ge, gt, optional

from qmpballoon.sizes import MiB, format_size
from qmpballoon.testing.model.dimms import (
    ALIGNMENT,
    PERIPHERAL,
    add_backend,
    add_dimm,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from attrs import Attribute

    from qmpballoon.testing.model.machine import Machine

__all__ = ["NO_FAULTS", "FaultPlan", "happenings"]


def _pluggable(_: FaultPlan, attribute: Attribute[int], size: int) -> None:
    if size % ALIGNMENT:
        unit = format_size(ALIGNMENT)
        raise ValueError(f"{attribute.name} is {size}: it must be whole {unit}")


@frozen
class FaultPlan:
    """Times in nanoseconds since the machine was started; None: it does not happen.

    Attributes:
        chunk: The client gets at most so many bytes at a time; 1: byte by byte.
        chunk_pause: Nanoseconds between two such chunks.
        cut_after: The connection breaks after so many bytes to the client.
        reply_delay: Nanoseconds that every reply takes.
        event_delay: Nanoseconds by which every event is late.
        event_copies: How often every event is sent.
        freeze_at: QEMU's process is stopped: it neither reads nor writes.
        freeze_for: For so long, in nanoseconds.
        kill_at: QEMU's process is killed.
        stall_at: Nothing in the guest moves; QEMU answers.
        stall_for: For so long, in nanoseconds.
        reset_at: The guest reboots by itself.
        plug_at: A DIMM is plugged in, where there are slots.
        plug_size: Its size in bytes.
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
    plug_size: int = field(default=128 * MiB, validator=[gt(0), _pluggable])


NO_FAULTS: Final = FaultPlan()


def happenings(plan: FaultPlan) -> list[tuple[int, Callable[[Machine], None]]]:
    """Return what happens to the machine itself, and when; in order of time."""

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
