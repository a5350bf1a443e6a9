"""The limits of a VM, in bytes of its RAM."""

from __future__ import annotations

import math
from typing import Any

import pytest

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


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({"floor": "3GiB", "ceiling": "2GiB"}, "floor 3GiB is above the ceiling 2GiB"),
        ({"floor": "60%", "ceiling": "50%"}, "floor 60% is above the ceiling 50%"),
        ({"ceiling": "0"}, "more than nothing"),
        ({"weight": 0}, "weight"),
        ({"weight": math.inf}, "weight"),
        ({"weight": math.nan}, "weight"),
    ],
)
def test_limits_that_cannot_be_are_refused(limits: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        VmSpec("vm", UnixAddress("x"), **limits)


@pytest.mark.parametrize(
    "limits",
    [
        {"floor": "2GiB"},
        {"ceiling": "512MiB"},
        {"floor": "2GiB", "ceiling": "2GiB"},
        {"floor": "90%", "ceiling": "1GiB"},  # which is larger depends on the RAM
        {"weight": 0.01},
    ],
)
def test_limits_that_can_be_are_taken(limits: dict[str, Any]) -> None:
    VmSpec("vm", UnixAddress("x"), **limits)
