"""The exceptions of qmpballoon.

::

    QmpBalloonError
    ├── MonitorError
    │   ├── MonitorUnreachable     no socket, refused, no permission
    │   │   └── UntrustedMonitor   another user or process listens there
    │   ├── MonitorBusy            connected, but never greeted
    │   ├── MonitorClosed          QEMU went away
    │   ├── MonitorTimeout         a deadline passed
    │   ├── OwnMonitorUnavailable  QEMU can add no further monitor
    │   └── ProtocolError          the peer does not speak QMP
    ├── CommandError               QEMU said no
    │   ├── CommandNotFound
    │   └── DeviceNotFound
    ├── ClusterError               many hosts
    │   ├── BusError               the server between them cannot be asked
    │   └── ClusterBusy            somebody else was first
    └── BalloonError
        ├── NoBalloonDevice        the VM has none
        ├── BalloonUnavailable     it has one that cannot work here
        ├── BalloonStalled         the target was not reached, and why
        │   └── BalloonTimeout     not within the timeout
        ├── UnsafeTarget           refused: it would hurt the guest
        ├── BalloonBusy            refused: another call moves the balloon
        └── StatsUnavailable       the guest does not report statistics
            └── StatsTimeout       it did not answer in time

The first level says where the problem is: the connection to QEMU, QEMU itself, the
server between the hosts of a cluster, or the guest and its balloon. Bad arguments raise
:exc:`TypeError` or :exc:`ValueError` before anything is sent. Each message is one line.
It says what happened, to which VM (by its monitor's name), and what to do about it.

The exceptions for a timeout that has passed are :exc:`TimeoutError`, too:
:exc:`MonitorBusy`, :exc:`MonitorTimeout`, :exc:`BalloonTimeout` and
:exc:`StatsTimeout`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qmpballoon.balloon.results import Diagnosis, ResizeResult

__all__ = [
    "BalloonBusy",
    "BalloonError",
    "BalloonStalled",
    "BalloonTimeout",
    "BalloonUnavailable",
    "BusError",
    "ClusterBusy",
    "ClusterError",
    "CommandError",
    "CommandNotFound",
    "DeviceNotFound",
    "MonitorBusy",
    "MonitorClosed",
    "MonitorError",
    "MonitorTimeout",
    "MonitorUnreachable",
    "NoBalloonDevice",
    "OwnMonitorUnavailable",
    "ProtocolError",
    "QmpBalloonError",
    "StatsTimeout",
    "StatsUnavailable",
    "UnsafeTarget",
    "UntrustedMonitor",
    "make_command_error",
]


class QmpBalloonError(Exception):
    """The base class of all exceptions of qmpballoon.

    Pickled or copied, an exception keeps its type, its message, its notes and all its
    fields.

    Attributes:
        vm: Which VM it is about: the ``name`` that was given when its monitor or
            balloon was opened, otherwise the name that messages use for its monitor;
            ``None`` if it is not about one VM.
    """

    vm: str | None = None

    def __reduce__(self) -> tuple[object, ...]:
        # By default an exception is restored from ``args``, which have the message
        # alone, but some constructors need more than that.
        return _restore, (type(self), self.args, self.__dict__)


def _restore(
    kind: type[QmpBalloonError], args: tuple[object, ...], fields: dict[str, object]
) -> QmpBalloonError:
    """Make an exception with these fields, without its constructor."""
    error = kind.__new__(kind)
    error.args = args
    error.__dict__.update(fields)
    return error


class MonitorError(QmpBalloonError):
    """The connection to QEMU failed, so the VM's state is unknown.

    Attributes:
        unknown_outcome: The names of the commands that were sent and not answered. QEMU
            may have carried out each of them, may still do so, or may never do so.
    """

    def __init__(self, message: str, unknown_outcome: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.unknown_outcome = unknown_outcome


class MonitorUnreachable(MonitorError):
    """No connection could be made: no socket, refused, or no permission.

    Attributes:
        errno: The system's error number, as in :class:`OSError`; ``None`` if it is not
            known.
    """

    errno: int | None = None


class UntrustedMonitor(MonitorUnreachable):
    """The user or process that listens at a socket is not the one that is expected.

    Nothing was sent.
    """


class MonitorBusy(MonitorError, TimeoutError):
    """Connected, but no greeting came in time.

    QEMU serves one client on a monitor at a time. The next one can connect, but is
    greeted only when the first has left.

    Attributes:
        pid: The process id of the QEMU that did not greet; ``None`` if it cannot be
            known.
    """

    pid: int | None = None


class MonitorClosed(MonitorError):
    """The connection was closed, by QEMU or by this side."""


class MonitorTimeout(MonitorError, TimeoutError):
    """QEMU did not answer in time: it is stopped, swapped out or overloaded.

    Also raised where a TCP connection was not made in time.
    """


class OwnMonitorUnavailable(MonitorError):
    """QEMU cannot add a monitor for this connection alone, and the caller asked for it.

    QEMU is older than 11.1, it refused, or no file descriptor can be sent to it: over
    TCP or TLS. Nothing is left behind in QEMU.
    """


class ProtocolError(MonitorError):
    """The peer does not speak QMP: it is another service, or broken."""


class CommandError(QmpBalloonError):
    """QEMU refused a command.

    Attributes:
        command: The command's name.
        error_class: QEMU's error class, most often ``"GenericError"``.
        desc: QEMU's description, unchanged. It is for people, and differs between
            versions.
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
    """This version of QEMU does not have the command."""


class DeviceNotFound(CommandError):
    """QEMU has no device or object with that path or id."""


_BY_CLASS = {"CommandNotFound": CommandNotFound, "DeviceNotFound": DeviceNotFound}


def make_command_error(
    command: str, error_class: str, desc: str, monitor: str = ""
) -> CommandError:
    """Make the exception for an error that QEMU replied.

    Use this in a monitor of your own.

    Args:
        command: The name of the command that QEMU refused.
        error_class: QEMU's error class. It decides on the exception's type.
        desc: QEMU's description.
        monitor: The name that messages use for the monitor.
    """
    kind = _BY_CLASS.get(error_class, CommandError)
    error = kind(command, error_class, desc, monitor)
    error.vm = monitor or None
    return error


class ClusterError(QmpBalloonError):
    """Something is wrong with a cluster of hosts, or with the server between them."""


class BusError(ClusterError):
    """The server between the hosts of a cluster cannot be asked, or refuses.

    A change that it was asked for may have been made or not.
    """


class ClusterBusy(ClusterError):
    """Refused: somebody else has changed the policy meanwhile, or another job runs.

    Nothing was changed.
    """


class BalloonError(QmpBalloonError):
    """QEMU answers, but the balloon or the guest does not do what was asked."""


class NoBalloonDevice(BalloonError):
    """The VM has no virtio-balloon device."""


class BalloonUnavailable(BalloonError):
    """The host cannot drive the VM's balloon (QEMU's error ``KVMMissingCap``)."""


class BalloonStalled(BalloonError):
    """The balloon did not reach its target.

    Attributes:
        result: The size that was reached, and the target that is set now.
        diagnosis: The reason, as far as it can be known from outside the guest.
    """

    def __init__(self, message: str, result: ResizeResult) -> None:
        super().__init__(message)
        self.result = result

    @property
    def diagnosis(self) -> Diagnosis | None:
        """Why the balloon stalled; ``None`` if that is not known."""
        return self.result.diagnosis


class BalloonTimeout(BalloonStalled, TimeoutError):
    """The balloon did not reach its target within the timeout of the call."""


class UnsafeTarget(BalloonError):
    """The target leaves the guest too little memory; nothing was sent."""


class BalloonBusy(BalloonError, RuntimeError):
    """Another call is moving the same balloon; nothing was sent.

    One call at a time may move a balloon: ``resize``, ``reclaim``, ``keep`` or
    ``set_target``. Two of them would undo each other's work. In one program this is a
    mistake. ``reclaim`` and ``keep`` also raise it if another process holds memory of
    the guest, which it took by another monitor: the message names the process.
    """


class StatsUnavailable(BalloonError):
    """The guest reports no statistics, or has stopped reporting them."""


class StatsTimeout(StatsUnavailable, TimeoutError):
    """The guest did not answer a request for statistics in time."""
