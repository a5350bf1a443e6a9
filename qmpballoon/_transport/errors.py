"""What the front ends say when a monitor does not answer as it should.

Said here once, so that a program which goes from one front end to another finds
the same exceptions with the same words.
"""

from __future__ import annotations

from qmpballoon.errors import MonitorBusy, MonitorClosed, MonitorError, MonitorTimeout

__all__ = [
    "closed_by_peer",
    "closed_by_us",
    "not_answered",
    "not_greeted",
    "not_negotiated",
    "not_subscribed",
    "retold",
]


def not_greeted(name: str, pid: int | None) -> MonitorBusy:
    """Say that a connection was made, and no greeting came."""
    busy = MonitorBusy(
        f"{name} did not greet in time: another client holds it, QEMU is stopped, or"
        " it is no QMP monitor; close that client, or give the VM a second -qmp"
        " monitor"
    )
    busy.pid = pid
    return busy


def not_negotiated(name: str) -> MonitorTimeout:
    """Say that a greeting came, and then nothing."""
    return MonitorTimeout(f"{name} greeted, and did not answer in time")


def not_answered(name: str, command: str, timeout: float) -> MonitorTimeout:
    """Say that a command's answer did not come within so many seconds."""
    return MonitorTimeout(
        f"{name} did not answer {command!r} within {timeout:g} s: QEMU is stopped or"
        " overloaded"
    )


def closed_by_peer(name: str) -> MonitorClosed:
    """Say that the other end closed the connection."""
    return MonitorClosed(f"{name} was closed by QEMU")


def closed_by_us(name: str) -> MonitorClosed:
    """Say that this end closed the connection."""
    return MonitorClosed(f"{name} was closed by us")


def not_subscribed() -> RuntimeError:
    """Say that nobody takes in the events that are waited for."""
    return RuntimeError("events come in a with block of the subscription")


def retold(failure: MonitorError, unknown: tuple[str, ...] = ()) -> MonitorError:
    """Make an exception of its own for each who is told of a failure.

    Args:
        failure: What happened.
        unknown: The commands of the one who is told that nothing more is known of.
    """
    suffix = f"; it is not known what became of {', '.join(unknown)}" if unknown else ""
    return type(failure)(f"{failure}{suffix}", unknown)
