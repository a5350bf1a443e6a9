"""The human monitor's commands, as far as they are about ballooning.

Its answers are text with DOS line ends, and its errors are answers, too.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from attrs import frozen

from qmpballoon.testing.model.expression import SPACE, ExpressionError, evaluate
from qmpballoon.testing.model.qobject import INT64_MAX, UINT64_MAX

if TYPE_CHECKING:
    from collections.abc import Callable

    from qmpballoon.testing.model.machine import Machine

__all__ = ["run_hmp"]

_NO_BALLOON: Final = "Error: No balloon device has been activated\r\n"
# Up to a slash, after which a format may come.
_NAME: Final = re.compile(rf"[{SPACE}]*([^/{SPACE}]*)[{SPACE}]*")


@frozen
class _Command:
    """A command: its name, where that ends in the line, and what comes after it."""

    line: str
    name: str
    end: int
    rest: str

    @classmethod
    def at(cls, line: str, start: int = 0) -> _Command:
        found = _NAME.match(line, start)
        assert found is not None  # noqa: S101 -- it matches nothing, too
        return cls(line, found[1], found.end(1), line[found.end() :])

    @property
    def unknown(self) -> str:
        return f"unknown command: '{self.line[: self.end]}'\r\n"

    def failure(self, why: str) -> str:
        help_ = f'Try "help {self.line[: self.end]}" for more information'
        return f"{why}\r\n{help_}\r\n"

    @property
    def extraneous(self) -> str:
        return self.failure(f"{self.name}: extraneous characters at the end of line")


def run_hmp(machine: Machine, line: str) -> str:
    """Carry out a line; return what it prints."""
    if not line.strip(SPACE):
        return ""
    command = _Command.at(line)
    if command.name == "balloon":
        return _balloon(machine, command)
    if command.name != "info" or not command.rest:
        return command.unknown
    command = _Command.at(line, len(line) - len(command.rest))
    if command.name not in _INFO:
        return command.unknown
    return command.extraneous if command.rest else _INFO[command.name](machine)


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


_INFO: Final[dict[str, Callable[[Machine], str]]] = {
    "balloon": _info_balloon,
    "status": _info_status,
    "version": _info_version,
}


def _balloon(machine: Machine, command: _Command) -> str:
    try:
        mebibytes, rest = evaluate(command.rest, binary=machine.profile.binary_numbers)
    except ExpressionError as error:
        return command.failure(str(error))
    except OverflowError:
        machine.abort()
    if mebibytes < 0:
        return command.failure("enter a positive value")
    if rest:
        return command.extraneous
    if machine.device is None:
        return _NO_BALLOON
    size = mebibytes << 20 & UINT64_MAX
    if not 0 < size <= INT64_MAX:
        name = machine.profile.size_parameter
        return f"Error: Parameter '{name}' expects a size\r\n"
    machine.set_target(size)
    return ""
