"""The human monitor's arithmetic: numbers in its commands may be sums.

Values are 64 bits wide and wrap around. Registers of a processor, which may be part of
a sum, are all unknown here.

Source: ``get_expr`` in QEMU's monitor/hmp.c.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, TypeAlias

from attrs import define

from qmpballoon.testing.model.qobject import UINT64_MAX

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["SPACE", "ExpressionError", "evaluate"]

SPACE: Final = " \t\n\v\f\r"
"""What QEMU skips between words."""

_NUMBER: Final = re.compile(r"0[xX][0-9a-fA-F]+|0[0-7]*|[1-9][0-9]*")
_BINARY: Final = re.compile(r"0[bB][01]+")
_INT64_MIN: Final = -(1 << 63)


class ExpressionError(ValueError):
    """An expression that is none, in QEMU's words."""


def evaluate(text: str, *, binary: bool) -> tuple[int, str]:
    """Evaluate the expression that a text begins with.

    Args:
        text: The text.
        binary: Whether numbers may be written as in 0b101.

    Returns:
        The value, and the rest of the text.

    Raises:
        ExpressionError: It begins with none.
        OverflowError: QEMU dies of it.
    """
    parser = _Parser(text.lstrip(SPACE), binary)
    value = parser.sum()
    return value, parser.rest


def _wrapped(value: int) -> int:
    """Return a number as 64 bits with a sign hold it."""
    value &= UINT64_MAX
    return value - (1 << 64) if value >> 63 else value


def _divided(left: int, right: int) -> int:
    """Divide as C does, towards zero."""
    if right == 0:
        raise ExpressionError("division by zero")
    if left == _INT64_MIN and right == -1:
        raise OverflowError("the processor traps")
    quotient = abs(left) // abs(right)
    return quotient if (left < 0) == (right < 0) else -quotient


def _remainder(left: int, right: int) -> int:
    return left - _divided(left, right) * right


_Operators: TypeAlias = "dict[str, Callable[[int, int], int]]"

_SUMS: Final[_Operators] = {"+": int.__add__, "-": int.__sub__}
_LOGIC: Final[_Operators] = {"&": int.__and__, "|": int.__or__, "^": int.__xor__}
_PRODUCTS: Final[_Operators] = {"*": int.__mul__, "/": _divided, "%": _remainder}
_SIGNS: Final = {"+": int.__pos__, "-": int.__neg__, "~": int.__invert__}


@define
class _Parser:
    """Reads an expression; ``rest`` is what is left of the text."""

    rest: str
    _binary: bool

    def sum(self) -> int:
        return self._chain(_SUMS, self._logic)

    def _logic(self) -> int:
        return self._chain(_LOGIC, self._product)

    def _product(self) -> int:
        return self._chain(_PRODUCTS, self._single)

    def _chain(self, operators: _Operators, part: Callable[[], int]) -> int:
        value = part()
        while (found := self.rest[:1]) in operators:
            self._skip(1)
            value = _wrapped(operators[found](value, part()))
        return value

    def _single(self) -> int:
        match first := self.rest[:1]:
            case "":
                raise ExpressionError("unexpected end of expression")
            case "+" | "-" | "~":
                self._skip(1)
                return _wrapped(_SIGNS[first](self._single()))
            case "(":
                return self._in_brackets()
            case "'":
                return self._character()
            case "$":
                raise ExpressionError("unknown register")
            case _:
                return self._number()

    def _in_brackets(self) -> int:
        self._skip(1)
        value = self.sum()
        if not self.rest.startswith(")"):
            raise ExpressionError("')' expected")
        self._skip(1)
        return value

    def _character(self) -> int:
        # QEMU sees bytes: a character of several has no end where it looks for it.
        raw = self.rest.encode("utf-8", "surrogatepass")[1:3]
        if not raw:
            raise ExpressionError("character constant expected")
        if raw[1:] != b"'":
            raise ExpressionError("missing terminating ' character")
        self._skip(3)
        return raw[0]

    def _number(self) -> int:
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
        return _wrapped(value)

    def _skip(self, count: int) -> None:
        self.rest = self.rest[count:].lstrip(SPACE)
