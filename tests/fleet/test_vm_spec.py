"""The limits of a VM, in bytes of its RAM."""

from __future__ import annotations

from qmpballoon.address import UnixAddress
from qmpballoon.fleet.vm_spec import VmSpec
from qmpballoon.sizes import GiB, MiB


def test_bounds_follow_from_the_ram() -> None:
    spec = VmSpec(
        "vm", UnixAddress("x"), floor="25%", ceiling="3GiB", headroom="100MiB"
    )
    bounds = spec.compute_bounds(4 * GiB)
    assert (bounds.floor, bounds.ceiling, bounds.headroom) == (GiB, 3 * GiB, 100 * MiB)
    small = spec.compute_bounds(GiB)
    assert (small.floor, small.ceiling) == (256 * MiB, GiB)


def test_a_floor_is_never_above_the_ceiling() -> None:
    bounds = VmSpec("vm", UnixAddress("x"), floor="2GiB", ceiling="50%").compute_bounds(
        2 * GiB
    )
    assert bounds.floor == bounds.ceiling == GiB
