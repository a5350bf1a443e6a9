"""The human monitor's commands, as far as they are about ballooning.

Its answers are text with DOS line ends, and its errors are answers, too.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from qmpballoon.testing.machine import Machine

__all__ = ["run_hmp"]

_NO_BALLOON: Final = "Error: No balloon device has been activated\r\n"


def run_hmp(machine: Machine, line: str) -> str:
    """Carry out a line; return what it prints."""
    match line.split():
        case []:
            return ""
        case ["info", topic] if topic in _INFO:
            return _INFO[topic](machine)
        case ["balloon", size] if re.fullmatch("[0-9]+", size):
            return _balloon(machine, int(size))
        case words:
            shown = line if words[0] == "info" else words[0]
            return f"unknown command: '{shown}'\r\n"


def _info_balloon(machine: Machine) -> str:
    if machine.device is None:
        return _NO_BALLOON
    actual = machine.device.actual(machine.guest.memory.ram)
    return f"balloon: actual={actual >> 20}\r\n"


def _info_status(machine: Machine) -> str:
    if machine.running:
        return "VM status: running\r\n"
    detail = "" if machine.status == "paused" else f" ({machine.status})"
    return f"VM status: paused{detail}\r\n"


def _info_version(machine: Machine) -> str:
    greeting = machine.profile.greeting["version"]
    assert isinstance(greeting, dict)  # noqa: S101 -- the profile's form
    numbers = greeting["qemu"]
    assert isinstance(numbers, dict)  # noqa: S101 -- likewise
    version = ".".join(str(numbers[part]) for part in ("major", "minor", "micro"))
    return f"{version}{greeting['package']}\r\n"


_INFO: Final = {
    "balloon": _info_balloon,
    "status": _info_status,
    "version": _info_version,
}


def _balloon(machine: Machine, mebibytes: int) -> str:
    if machine.device is None:
        return _NO_BALLOON
    if mebibytes == 0:
        name = machine.profile.size_parameter
        return f"Error: Parameter '{name}' expects a size\r\n"
    machine.set_target(mebibytes << 20)
    return ""
