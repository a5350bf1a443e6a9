"""What can go wrong in the lab, apart from what is being tested in it."""

from __future__ import annotations

from qmpballoon.errors import QmpBalloonError

__all__ = ["GuestCommandError", "LabError"]


class LabError(QmpBalloonError):
    """The lab could not do its part: no QEMU, no boot, no answer from the guest."""


class GuestCommandError(LabError):
    """A command ran in the guest and failed.

    Attributes:
        command: The shell command.
        status: Its exit status; 128 + N where signal N ended it (137: killed,
            as by the guest's OOM killer).
        output: What it printed, both streams together.
    """

    def __init__(self, command: str, status: int, output: str) -> None:
        tail = output.strip().splitlines()[-1:] or ["no output"]
        super().__init__(f"{command!r} ended with {status} in the guest: {tail[0]}")
        self.command = command
        self.status = status
        self.output = output
