"""A real QEMU with a throwaway Linux guest."""

from __future__ import annotations

from qmpballoon.sizes import GiB, MiB
from qmpballoon.testing.lab.booting import boot
from qmpballoon.testing.lab.errors import GuestCommandError, LabError
from qmpballoon.testing.lab.guest import Guest
from qmpballoon.testing.lab.progress import Progress, ProgressBar

__all__ = [
    "GiB",
    "Guest",
    "GuestCommandError",
    "LabError",
    "MiB",
    "Progress",
    "ProgressBar",
    "boot",
]
