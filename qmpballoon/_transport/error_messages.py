"""The exceptions that all front ends raise, with the same messages.

A program that changes from one front end to another gets the same types and texts.
"""

from __future__ import annotations

import copy
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from qmpballoon.errors import (
    MonitorBusy,
    MonitorClosed,
    MonitorError,
    MonitorTimeout,
    MonitorUnreachable,
    ProtocolError,
    QmpBalloonError,
)

if TYPE_CHECKING:
    from collections.abc import Generator

__all__ = [
    "copy_error",
    "make_broken",
    "make_closed",
    "make_closed_by_qemu",
    "make_closed_by_us",
    "make_command_timeout",
    "make_forked",
    "make_negotiation_timeout",
    "make_no_greeting",
    "make_not_subscribed",
    "make_protocol_error",
    "make_unwatched",
    "name_errors",
]

E = TypeVar("E", bound=MonitorError)


def make_no_greeting(name: str, pid: int | None) -> MonitorBusy:
    """Make the error for a connection on which no greeting came in time."""
    busy = MonitorBusy(
        f"{name} did not greet in time: another client holds it, QEMU is stopped, or"
        " it is no QMP monitor, or one over websocket or TLS; close that client, or"
        " give the VM a second -qmp monitor"
    )
    busy.pid = pid
    return _name_vm(busy, name)


def make_negotiation_timeout(name: str, passed_over: int) -> MonitorTimeout:
    """Make the error for a peer that greeted and did not answer the negotiation.

    Args:
        name: The monitor's name.
        passed_over: How many replies to others it has sent.
    """
    other = "it sent a reply, but none to ours: a reply has the id of its command"
    but = f"; {other}" if passed_over else ""
    late = MonitorTimeout(f"{name} greeted, and did not answer in time{but}")
    return _name_vm(late, name)


def make_command_timeout(name: str, command: str, timeout: float) -> MonitorTimeout:
    """Make the error for a command without an answer after ``timeout`` seconds."""
    late = MonitorTimeout(
        f"{name} did not answer {command!r} within {timeout:g} s: QEMU is stopped or"
        " overloaded"
    )
    return _name_vm(late, name)


def make_closed(name: str, what: str) -> MonitorClosed:
    """Make the error for a connection that has ended; ``what`` says how."""
    return _name_vm(MonitorClosed(f"{name}: the connection {what}"), name)


def make_closed_by_qemu(name: str) -> MonitorClosed:
    """Make the error for a connection that the other end closed."""
    return make_closed(name, "was closed by QEMU")


def make_closed_by_us(name: str) -> MonitorClosed:
    """Make the error for a connection that this end closed."""
    return make_closed(name, "was closed by us")


def make_forked(name: str, process: int) -> MonitorClosed:
    """Make the error for a connection in a process that was forked meanwhile."""
    what = f"belongs to process {process}, which this one was forked from: open another"
    return make_closed(name, what)


def make_broken(name: str, error: BaseException) -> MonitorClosed:
    """Make the error for a connection that broke."""
    return make_closed(name, f"broke: {error}")


def make_protocol_error(name: str, error: ProtocolError) -> ProtocolError:
    """Make the error for a peer that does not speak QMP, with the monitor's name."""
    return _name_vm(ProtocolError(f"{name}: {error}"), name)


def make_unwatched(name: str, error: OSError) -> MonitorUnreachable:
    """Make the error for a socket that the kernel does not tell about."""
    failure = MonitorUnreachable(
        f"{name} cannot be waited for: {error.strerror}: raise the limit of file"
        " descriptors (ulimit -n, LimitNOFILE=), or of watches (sysctl fs.epoll)"
    )
    failure.errno = error.errno
    return _name_vm(failure, name)


@contextmanager
def name_errors(vm: str | None) -> Generator[None]:
    """Add the VM's name to exceptions that the block raises.

    Args:
        vm: The name that the VM was given; ``None`` if it was given none.
    """
    try:
        yield
    except QmpBalloonError as error:
        if vm is not None and error.vm is None:
            error.args = (f"{vm}: {error}", *error.args[1:])
            error.vm = vm
        raise


def make_not_subscribed() -> RuntimeError:
    """Make the error for reading a subscription outside its ``with`` block."""
    return RuntimeError("events come in a with block of the subscription")


def _name_vm(error: E, name: str) -> E:
    error.vm = name
    return error


def copy_error(failure: MonitorError, unknown: tuple[str, ...] = ()) -> MonitorError:
    """Copy an error, because each caller needs an exception object of its own.

    One object that several callers raise would collect the tracebacks of all of them.

    Args:
        failure: What happened to the monitor.
        unknown: The commands of this caller whose outcome is unknown.
    """
    suffix = f"; it is not known what became of {', '.join(unknown)}" if unknown else ""
    copied = copy.copy(failure)
    copied.args = (f"{failure}{suffix}",)
    copied.unknown_outcome = unknown
    return copied
