"""The human monitor: its commands about ballooning, and their arithmetic.

The human monitor answers with text that has DOS line ends. Its errors are answers, too.

Where a command takes a number, it takes an expression: sums, products and brackets.
Values are 64 bits wide and wrap around. A register of a processor, which may be part of
an expression, is always unknown here.

Source: ``get_expr`` in QEMU's ``monitor/hmp.c``.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from attrs import define, frozen

from qmpballoon.testing.model.qobject import INT64_MAX, UINT64_MAX

if TYPE_CHECKING:
    from collections.abc import Callable

    from qmpballoon.testing.model.profiles import Profile
    from qmpballoon.testing.model.vm import Vm

__all__ = ["ExpressionError", "evaluate", "format_version", "run_hmp"]

_SPACE: Final = " \t\n\v\f\r"
"""Characters that QEMU skips between words."""
_NO_BALLOON: Final = "Error: No balloon device has been activated\r\n"
# A name ends at a slash, after which a format may come.
_NAME: Final = re.compile(rf"[{_SPACE}]*([^/{_SPACE}]*)[{_SPACE}]*")


@frozen
class _Command:
    """A command in a line.

    Attributes:
        line: The line.
        name: The command's name.
        end: Where the name ends in the line.
        rest: The text after the name.
    """

    line: str
    name: str
    end: int
    rest: str

    @classmethod
    def parse(cls, line: str, start: int = 0) -> _Command:
        found = _NAME.match(line, start)
        assert found is not None  # noqa: S101 -- it matches an empty text, too
        return cls(line, found[1], found.end(1), line[found.end() :])

    @property
    def unknown(self) -> str:
        return f"unknown command: '{self.line[: self.end]}'\r\n"

    def format_failure(self, why: str) -> str:
        help_ = f'Try "help {self.line[: self.end]}" for more information'
        return f"{why}\r\n{help_}\r\n"

    @property
    def extraneous(self) -> str:
        why = f"{self.name}: extraneous characters at the end of line"
        return self.format_failure(why)


def run_hmp(vm: Vm, line: str) -> str:
    """Carry out a line, and return what it prints."""
    if not line.strip(_SPACE):
        return ""
    command = _Command.parse(line)
    if command.name == "balloon":
        return _set_balloon(vm, command)
    if command.name != "info" or not command.rest:
        return command.unknown
    command = _Command.parse(line, len(line) - len(command.rest))
    if command.name not in _INFO:
        return command.unknown
    return command.extraneous if command.rest else _INFO[command.name](vm)


def _show_balloon(vm: Vm) -> str:
    if vm.actual is None:
        return _NO_BALLOON
    return f"balloon: actual={vm.actual >> 20}\r\n"


def _show_status(vm: Vm) -> str:
    if vm.running:
        return "VM status: running\r\n"
    detail = "" if vm.status == "paused" else f" ({vm.status})"
    return f"VM status: paused{detail}\r\n"


def format_version(profile: Profile) -> str:
    """Return a version's number, such as ``10.0.13``."""
    greeting: Any = profile.greeting["version"]
    return ".".join(str(greeting["qemu"][part]) for part in ("major", "minor", "micro"))


def _show_version(vm: Vm) -> str:
    greeting: Any = vm.profile.greeting["version"]
    return f"{format_version(vm.profile)}{greeting['package']}\r\n"


_INFO: Final[dict[str, Callable[[Vm], str]]] = {
    "balloon": _show_balloon,
    "status": _show_status,
    "version": _show_version,
}


def _set_balloon(vm: Vm, command: _Command) -> str:
    try:
        mebibytes, rest = evaluate(command.rest, binary=vm.profile.binary_numbers)
    except ExpressionError as error:
        return command.format_failure(str(error))
    except OverflowError:
        vm.abort()
    if mebibytes < 0:
        return command.format_failure("enter a positive value")
    if rest:
        return command.extraneous
    if vm.device is None:
        return _NO_BALLOON
    size = mebibytes << 20 & UINT64_MAX
    if not 0 < size <= INT64_MAX:
        name = vm.profile.size_parameter
        return f"Error: Parameter '{name}' expects a size\r\n"
    vm.set_target(size)
    return ""


# Arithmetic

_NUMBER: Final = re.compile(r"0[xX][0-9a-fA-F]+|0[0-7]*|[1-9][0-9]*")
_BINARY: Final = re.compile(r"0[bB][01]+")
_INT64_MIN: Final = -(1 << 63)


class ExpressionError(ValueError):
    """The text is no expression; the message is QEMU's."""


def evaluate(text: str, *, binary: bool) -> tuple[int, str]:
    """Evaluate the expression that a text begins with.

    Args:
        text: The text.
        binary: Numbers may be written in base 2, as in ``0b101``.

    Returns:
        The value, and the rest of the text.

    Raises:
        ExpressionError: The text does not begin with an expression.
        OverflowError: The expression ends QEMU: the processor traps.
    """
    evaluator = _Evaluator(text.lstrip(_SPACE), binary)
    value = evaluator.take_sum()
    return value, evaluator.rest


def _wrap(value: int) -> int:
    """Return the signed 64-bit integer that a number wraps around to."""
    value &= UINT64_MAX
    return value - (1 << 64) if value >> 63 else value


def _divide(left: int, right: int) -> int:
    """Divide as C does: the quotient is rounded towards zero."""
    if right == 0:
        raise ExpressionError("division by zero")
    if left == _INT64_MIN and right == -1:
        raise OverflowError("the processor traps")
    quotient = abs(left) // abs(right)
    return quotient if (left < 0) == (right < 0) else -quotient


def _take_remainder(left: int, right: int) -> int:
    return left - _divide(left, right) * right


_Operators: TypeAlias = "dict[str, Callable[[int, int], int]]"

_SUMS: Final[_Operators] = {"+": int.__add__, "-": int.__sub__}
_LOGIC: Final[_Operators] = {"&": int.__and__, "|": int.__or__, "^": int.__xor__}
_PRODUCTS: Final[_Operators] = {"*": int.__mul__, "/": _divide, "%": _take_remainder}
_SIGNS: Final = {"+": int.__pos__, "-": int.__neg__, "~": int.__invert__}


@define
class _Evaluator:
    """Evaluates an expression; ``rest`` is the text that is left."""

    rest: str
    _binary: bool

    def take_sum(self) -> int:
        return self._take_chain(_SUMS, self._take_logic)

    def _take_logic(self) -> int:
        return self._take_chain(_LOGIC, self._take_product)

    def _take_product(self) -> int:
        return self._take_chain(_PRODUCTS, self._take_single)

    def _take_chain(self, operators: _Operators, part: Callable[[], int]) -> int:
        value = part()
        while (found := self.rest[:1]) in operators:
            self._skip(1)
            value = _wrap(operators[found](value, part()))
        return value

    def _take_single(self) -> int:
        match first := self.rest[:1]:
            case "":
                raise ExpressionError("unexpected end of expression")
            case "+" | "-" | "~":
                self._skip(1)
                return _wrap(_SIGNS[first](self._take_single()))
            case "(":
                return self._take_brackets()
            case "'":
                return self._take_character()
            case "$":
                raise ExpressionError("unknown register")
            case _:
                return self._take_number()

    def _take_brackets(self) -> int:
        self._skip(1)
        value = self.take_sum()
        if not self.rest.startswith(")"):
            raise ExpressionError("')' expected")
        self._skip(1)
        return value

    def _take_character(self) -> int:
        # QEMU compares bytes: it does not find the closing quote behind a character of
        # more than one byte.
        raw = self.rest.encode("utf-8", "surrogatepass")[1:3]
        if not raw:
            raise ExpressionError("character constant expected")
        if raw[1:] != b"'":
            raise ExpressionError("missing terminating ' character")
        self._skip(3)
        return raw[0]

    def _take_number(self) -> int:
        found = _BINARY.match(self.rest) if self._binary else None
        found = found or _NUMBER.match(self.rest)
        if not found:
            first = self.rest[0]
            shown = first if first.isascii() else "\ufffd"
            raise ExpressionError(f"invalid char '{shown}' in expression")
        digits = found[0]
        octal = digits.startswith("0") and digits.isdigit()
        value = int(digits, 8) if octal else int(digits, 0)
        if value > UINT64_MAX:
            raise ExpressionError("number too large")
        self._skip(len(digits))
        return _wrap(value)

    def _skip(self, count: int) -> None:
        self.rest = self.rest[count:].lstrip(_SPACE)
