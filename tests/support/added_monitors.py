"""What monitors of one's own leave in a fake QEMU: nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qmpballoon.testing.model.chardevs import SHARED

if TYPE_CHECKING:
    from qmpballoon.testing import Machine, ThreadedFake

__all__ = ["left_behind", "wait_until_gone"]


def left_behind(machine: Machine) -> list[str]:
    """Return what a machine has beyond what it was started with."""
    named = machine.monitors[SHARED].files
    return sorted({*machine.chardevs, *machine.monitors, *named} - {SHARED})


def wait_until_gone(fake: ThreadedFake) -> None:
    """Wait until QEMU has noticed that the clients left."""
    while fake.do(left_behind):
        pass
