"""A monitor of one's own on a running QEMU: what to send for it, and to take it back.

A monitor serves one client at a time. QEMU 11.1 can be given further ones while it
runs: over a monitor that is held for a moment, ``getfd`` hands one end of a connection
over, ``chardev-add`` makes a character device of it, and ``object-add`` puts a monitor
on that. The other end is then greeted. With ``close-action`` both vanish when that end
is closed, however that comes about.

QEMU does not notice that an end was closed before it greeted: the monitor would stay.
So the shared monitor is held until then, to take back on it what was begun.

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
# QEMU says "unix:" of a character device whose other end is open, and nothing brings
# one back that was made of a descriptor. Seen on 11.1.3; source: char-socket.c.
_DEAD: Final = "disconnected:fd:"

# Builds on the way to 11.1 call themselves 11.0.50 and so on. Those without the object
# refuse it, which costs two more commands.
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
        version: Its version; ``None``: it tells none, and may.
    """
    return version is None or (version.major, version.minor) >= _FIRST


def make_name(number: int) -> str:
    """Return what to call a descriptor, its character device and its monitor.

    Args:
        number: One that no other of ours in this QEMU has.
    """
    return f"{_PREFIX}{number}"


def find_leftovers(answer: object) -> Iterator[str]:
    """Return the names of monitors of ours whose client has gone, and that stayed.

    That is what a client leaves that is killed within the milliseconds in which QEMU
    adds its monitor.

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
    """Return what adds a monitor. The descriptor goes with the first command.

    Args:
        name: What to call its descriptor, its character device and itself.
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
    """Return what takes back any number of :func:`list_steps`.

    QEMU refuses what is not there to be taken back.
    """
    return (
        Step("object-del", {"id": name}),
        Step("chardev-remove", {"id": name}),
        Step("closefd", {"fdname": name}),
    )
