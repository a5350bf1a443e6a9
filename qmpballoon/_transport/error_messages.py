"""The exceptions that all front ends raise alike, with the same messages.

A program that changes from one front end to another finds the same types and texts.
"""

from __future__ import annotations

import copy

from qmpballoon.errors import MonitorBusy, MonitorClosed, MonitorError, MonitorTimeout

__all__ = [
    "copy_error",
    "make_closed_by_qemu",
    "make_closed_by_us",
    "make_command_timeout",
    "make_negotiation_timeout",
    "make_no_greeting",
    "make_not_subscribed",
]


def make_no_greeting(name: str, pid: int | None) -> MonitorBusy:
    """Make the error for a connection on which no greeting came in time."""
    busy = MonitorBusy(
        f"{name} did not greet in time: another client holds it, QEMU is stopped, or"
        " it is no QMP monitor, or one over websocket or TLS; close that client, or"
        " give the VM a second -qmp monitor"
    )
    busy.pid = pid
    return busy


def make_negotiation_timeout(name: str) -> MonitorTimeout:
    """Make the error for a peer that greeted and did not answer the negotiation."""
    return MonitorTimeout(f"{name} greeted, and did not answer in time")


def make_command_timeout(name: str, command: str, timeout: float) -> MonitorTimeout:
    """Make the error for a command without an answer after ``timeout`` seconds."""
    return MonitorTimeout(
        f"{name} did not answer {command!r} within {timeout:g} s: QEMU is stopped or"
        " overloaded"
    )


def make_closed_by_qemu(name: str) -> MonitorClosed:
    """Make the error for a connection that the other end closed."""
    return MonitorClosed(f"{name} was closed by QEMU")


def make_closed_by_us(name: str) -> MonitorClosed:
    """Make the error for a connection that this end closed."""
    return MonitorClosed(f"{name} was closed by us")


def make_not_subscribed() -> RuntimeError:
    """Make the error for reading a subscription outside its ``with`` block."""
    return RuntimeError("events come in a with block of the subscription")


def copy_error(failure: MonitorError, unknown: tuple[str, ...] = ()) -> MonitorError:
    """Make a copy of an error, because each caller needs another exception object.

    One that several callers raise would collect the tracebacks of all of them.

    Args:
        failure: What happened to the monitor.
        unknown: The commands of this caller whose outcome is unknown.
    """
    suffix = f"; it is not known what became of {', '.join(unknown)}" if unknown else ""
    copied = copy.copy(failure)
    copied.args = (f"{failure}{suffix}",)
    copied.unknown_outcome = unknown
    return copied
