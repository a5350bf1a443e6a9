"""What a VM can be like, and what it cannot."""

from __future__ import annotations

import pytest

from qmpballoon.sizes import MiB
from qmpballoon.testing import SECOND, MachineConfig, ramp


def test_ramps_add_up() -> None:
    steps = ramp(SECOND, 2 * SECOND, 1000 * MiB + 1, steps=7)
    assert sum(step.delta for step in steps) == 1000 * MiB + 1
    assert all(SECOND <= step.at < 2 * SECOND for step in steps)


@pytest.mark.parametrize("balloon", ["virtio-balloon-ccw", "virtio-net-pci", ""])
def test_a_balloon_that_it_cannot_have_is_refused(balloon: str) -> None:
    with pytest.raises(ValueError, match=r"^balloon is "):
        MachineConfig(balloon=balloon)
