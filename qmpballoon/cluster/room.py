"""What a host has room for, and what its guests can give, computed from its fleet.

Pure. Each host publishes both, so that nobody else has to know its guests.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from attrs import evolve

from qmpballoon.cluster.documents import Offer, Room
from qmpballoon.sizes import MiB

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from qmpballoon.cluster.documents import VmSummary
    from qmpballoon.fleet.guests import Guest, Host
    from qmpballoon.fleet.policy import Rules

__all__ = ["SMALLEST_GIFT", "compute_offer", "compute_room"]

SMALLEST_GIFT: Final = MiB
"""Bytes. A guest that can give less is not asked: moving its balloon costs more. This
is also the dead band of a host that is below its reserve."""


def compute_offer(guests: Iterable[Guest], total: int) -> Offer:
    """Return what a host's guests can give, by how much that costs them.

    This is what :func:`qmpballoon.fleet.take` can take: guests that are moving, that
    stalled or that are in need give nothing. All together give no more than their host
    has, whatever they or their QEMUs say.

    Args:
        guests: The guests.
        total: How much memory the host has, in bytes.
    """
    idle = cold = hot = 0
    for guest in filter(_can_give, guests):
        gain = _count_gain(guest)
        idle += min(guest.idle, gain)
        cold += gain - min(guest.idle, gain)
        hot += _count_gain(evolve(guest, hot=0)) - gain
    idle = min(idle, total)
    cold = min(cold, total - idle)
    return Offer(idle, cold, min(hot, total - idle - cold))


def compute_room(
    host: Host,
    rules: Rules,
    guests: Sequence[Guest],
    vms: Iterable[VmSummary],
    held: int,
) -> Room:
    """Return how much a host could give to a new VM.

    Memory that may be taken at any moment counts as taken: each VM counts with all the
    memory that its guest may touch without asking, or if that is not known, its RAM.

    Args:
        host: The host's memory.
        rules: What it keeps.
        guests: The guests that can be moved, and those that are moving.
        vms: All VMs.
        held: Bytes of the host's memory that the VMs hold now.
    """
    untouched = max(0, sum(map(_count_taken, vms)) - held)
    left = host.available - untouched - rules.reserve
    givers = [each for each in guests if _can_give(each)]
    cold = sum(guest.compute_reduction(_count_gain(guest)) for guest in givers)
    above_floors = sum(max(0, guest.actual - guest.floor) for guest in guests)
    # What guests report may be more than the host has.
    now, after_cold, to_floors = (
        min(max(0, left + given), host.total) for given in (0, cold, above_floors)
    )
    return Room(now, after_cold, to_floors)


def _can_give(guest: Guest) -> bool:
    # A guest in need has nothing to spare anyway.
    return not (guest.is_moving or guest.is_stalled)


def _count_gain(guest: Guest) -> int:
    return guest.gain if guest.gain >= SMALLEST_GIFT else 0


def _count_taken(vm: VmSummary) -> int:
    """Return the bytes that a VM holds or may take at any moment."""
    size = vm.total or 0
    if vm.actual is not None:
        size = max(vm.actual, vm.target or 0)
    return max(size, vm.resident or 0)
