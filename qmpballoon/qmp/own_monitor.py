"""Adding a monitor to a running QEMU for one client alone: the commands for it.

A monitor serves one client at a time. QEMU 11.1 can be given more of them while it
runs. A client holds the existing monitor for a moment. ``getfd`` hands QEMU one end of
a connection, ``chardev-add`` makes a character device of it, and ``object-add`` puts a
monitor on that. QEMU then greets at the other end. With ``close-action``, device and
monitor vanish when that end is closed, for whatever reason.

If the end is closed before QEMU has greeted, QEMU does not notice, and the monitor
would stay. So the client holds the existing monitor until the greeting, to undo there
what was begun.

Source: QAPI reference, ``MonitorQMPProperties``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, cast

from attrs import frozen

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from qmpballoon.qmp.messages import Version

__all__ = [
    "GETFD",
    "Step",
    "can_add_monitor",
    "find_leftovers",
    "list_steps",
    "list_undo_steps",
    "make_name",
]

GETFD: Final = "getfd"
"""The command with which the descriptor is sent."""

_PREFIX: Final = "qmpballoon-"
# The filename of a character device begins with this once its other end is closed, and
# with "unix:" before. A device made of a descriptor is never connected again. Seen on
# 11.1.3; source: char-socket.c.
_DEAD: Final = "disconnected:fd:"

# Development versions of 11.1 call themselves 11.0.50 and so on. Those that do not have
# the object refuse it, which costs two more commands.
_FIRST: Final = (11, 0)


@frozen
class Step:
    """One command, to be sent when those before it have been answered.

    Attributes:
        command: Its name.
        arguments: Its arguments.
    """

    command: str
    arguments: Mapping[str, object]


def can_add_monitor(version: Version | None) -> bool:
    """Tell whether a QEMU may know how to add a monitor; asking it changes nothing.

    Args:
        version: Its version; ``None`` if it is not known: then it may.
    """
    return version is None or (version.major, version.minor) >= _FIRST


def make_name(number: int) -> str:
    """Return the name for a descriptor, its character device and its monitor.

    Args:
        number: A number that no other monitor of ours in this QEMU has.
    """
    return f"{_PREFIX}{number}"


def find_leftovers(answer: object) -> Iterator[str]:
    """Yield the names of monitors that earlier clients of ours have left behind.

    A client leaves one if it is killed within the milliseconds in which QEMU adds its
    monitor.

    Args:
        answer: What ``query-chardev`` returned.
    """
    for each in cast("list[object]", answer) if isinstance(answer, list) else []:
        match each:
            case {"label": str(label), "filename": str(filename)}:
                if label.startswith(_PREFIX) and filename == f"{_DEAD}{label}":
                    yield label
            case _:
                pass


def list_steps(name: str) -> tuple[Step, ...]:
    """Return the commands that add a monitor. The descriptor goes with the first.

    Args:
        name: The name for the descriptor, the character device and the monitor.
    """
    address = {"type": "fd", "data": {"str": name}}
    backend = {"type": "socket", "data": {"addr": address, "server": False}}
    return (
        Step(GETFD, {"fdname": name}),
        Step("chardev-add", {"id": name, "backend": backend}),
        Step(
            "object-add",
            {
                "qom-type": "monitor-qmp",
                "id": name,
                "chardev": name,
                "close-action": "delete",
            },
        ),
    )


def list_undo_steps(name: str) -> tuple[Step, ...]:
    """Return the commands that undo any number of :func:`list_steps`.

    QEMU refuses those for which there is nothing to undo.
    """
    return (
        Step("object-del", {"id": name}),
        Step("chardev-remove", {"id": name}),
        Step("closefd", {"fdname": name}),
    )
