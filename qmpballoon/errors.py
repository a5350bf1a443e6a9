"""Every exception that qmpballoon raises on purpose.

::

    QmpBalloonError
    ├── MonitorError
    │   ├── MonitorUnreachable     no socket, refused, no permission
    │   ├── MonitorBusy            connected, but never greeted
    │   ├── MonitorClosed          QEMU went away
    │   ├── MonitorTimeout         a deadline passed
    │   └── ProtocolError          the peer does not speak QMP
    ├── CommandError               QEMU said no
    │   ├── CommandNotFound
    │   └── DeviceNotFound
    └── BalloonError
        ├── NoBalloonDevice        the VM has none
        ├── BalloonUnavailable     it has one that cannot work here
        ├── BalloonStalled         the target was not reached, and why
        ├── UnsafeTarget           refused: it would hurt the guest
        └── StatsUnavailable       the guest does not report statistics

The first level says whom to look at: the way to QEMU, QEMU itself, or the
guest and its balloon. Bad arguments are plain :exc:`TypeError` or
:exc:`ValueError`, raised before anything is sent. Every message says what
happened, to which VM (as its monitor is called), and what can be done about it, in one
line.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qmpballoon.balloon.results import Diagnosis, ResizeResult

__all__ = [
    "BalloonError",
    "BalloonStalled",
    "BalloonUnavailable",
    "CommandError",
    "CommandNotFound",
    "DeviceNotFound",
    "MonitorBusy",
    "MonitorClosed",
    "MonitorError",
    "MonitorTimeout",
    "MonitorUnreachable",
    "NoBalloonDevice",
    "ProtocolError",
    "QmpBalloonError",
    "StatsUnavailable",
    "UnsafeTarget",
    "make_command_error",
]


class QmpBalloonError(Exception):
    """The base of every exception that qmpballoon raises on purpose."""


class MonitorError(QmpBalloonError):
    """The way to QEMU failed: nothing is known of the VM's state from now on.

    Attributes:
        unknown_outcome: The commands that were sent and not answered. Each may
            or may not have been, or may yet be, carried out.
    """

    def __init__(self, message: str, unknown_outcome: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.unknown_outcome = unknown_outcome


class MonitorUnreachable(MonitorError):
    """Nobody could be connected to: no socket, refused, or no permission."""


class MonitorBusy(MonitorError):
    """Connected, but no greeting came in time.

    QEMU serves one client on a monitor at a time; the next one connects and is
    not greeted before the first has left.

    Attributes:
        pid: The process id of the QEMU that did not greet, ``None`` where it cannot be
            known.
    """

    pid: int | None = None


class MonitorClosed(MonitorError):
    """The connection ended, from the other side or from ours."""


class MonitorTimeout(MonitorError):
    """QEMU did not answer in time: it is stopped, swapped out or overloaded."""


class ProtocolError(MonitorError):
    """What the peer sent is not QMP: it is another service, or broken."""


class CommandError(QmpBalloonError):
    """QEMU refused a command.

    Attributes:
        command: The command's name.
        error_class: QEMU's error class, most often ``"GenericError"``.
        desc: QEMU's description, word for word. It is written for people, and
            changes between versions.
    """

    def __init__(
        self, command: str, error_class: str, desc: str, monitor: str = ""
    ) -> None:
        where = f"{monitor}: " if monitor else ""
        super().__init__(f"{where}QEMU refused {command!r}: {desc} ({error_class})")
        self.command = command
        self.error_class = error_class
        self.desc = desc


class CommandNotFound(CommandError):
    """This QEMU does not have the command."""


class DeviceNotFound(CommandError):
    """No object of this QEMU has that path or id."""


_BY_CLASS = {"CommandNotFound": CommandNotFound, "DeviceNotFound": DeviceNotFound}


def make_command_error(
    command: str, error_class: str, desc: str, monitor: str = ""
) -> CommandError:
    """Make the exception for a QMP error class, the general one where none fits.

    Args:
        command: What was refused.
        error_class: QEMU's.
        desc: QEMU's.
        monitor: What messages call it.
    """
    kind = _BY_CLASS.get(error_class, CommandError)
    return kind(command, error_class, desc, monitor)


class BalloonError(QmpBalloonError):
    """The way to QEMU works; the balloon, or the guest behind it, does not."""


class NoBalloonDevice(BalloonError):
    """The VM has no virtio-balloon device."""


class BalloonUnavailable(BalloonError):
    """The VM has a balloon that its host cannot drive (QEMU's ``KVMMissingCap``)."""


class BalloonStalled(BalloonError):
    """The balloon did not reach its target.

    Attributes:
        result: What was reached, and what target was left behind.
        diagnosis: Why, as far as it can be told from outside the guest.
    """

    def __init__(self, message: str, result: ResizeResult) -> None:
        super().__init__(message)
        self.result = result

    @property
    def diagnosis(self) -> Diagnosis | None:
        """Why the balloon stalled, where that could be told."""
        return self.result.diagnosis


class UnsafeTarget(BalloonError):
    """The guest could not live with that target; nothing was sent."""


class StatsUnavailable(BalloonError):
    """The guest does not report statistics, or no longer does."""
