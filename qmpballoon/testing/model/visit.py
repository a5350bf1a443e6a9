"""Arguments checked the way QEMU's generated code checks them.

Members are visited in the schema's order and the first that is missing or of the
wrong type is complained of; only then comes what does not belong there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

from attrs import frozen

from qmpballoon.testing.model.hashtable import first_left
from qmpballoon.testing.model.qobject import INT64_MAX, UINT64_MAX, in_table_order

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from qmpballoon.testing.model.qobject import Value

__all__ = ["Aborted", "Argument", "Kind", "QmpError", "check_type", "visit"]

Kind = Literal["integer", "uint64", "string", "boolean", "strings", "uint64s", "any"]

_ARRAYS: Final[dict[Kind, Kind]] = {"strings": "string", "uint64s": "uint64"}


class Aborted(Exception):
    """QEMU has died in the middle of a command; there is no answer."""


class QmpError(Exception):
    """A command fails.

    Attributes:
        error_class: QEMU's error class.
        desc: Its description.
    """

    def __init__(self, desc: str, error_class: str = "GenericError") -> None:
        super().__init__(desc)
        self.desc = desc
        self.error_class = error_class


@frozen
class Argument:
    """One argument of a command; ``check`` refuses values that are of its type."""

    name: str
    kind: Kind
    optional: bool = False
    check: Callable[[Value], None] | None = None


def visit(schema: Sequence[Argument], given: dict[str, Value]) -> None:
    """Check a command's arguments.

    Raises:
        QmpError: In QEMU's words.
    """
    for argument in schema:
        if argument.name in given:
            check_type(argument.name, argument.kind, given[argument.name])
            if argument.check is not None:
                argument.check(given[argument.name])
        elif not argument.optional:
            raise QmpError(f"Parameter '{argument.name}' is missing")
    known = [argument.name for argument in schema]
    if given.keys() <= set(known):
        return  # as nearly always: no table need be laid out
    names = [name for name, _ in in_table_order(given)]
    raise QmpError(f"Parameter '{first_left(names, known)}' is unexpected")


def check_type(name: str, kind: Kind, value: Value) -> None:
    """Check one value's type.

    Raises:
        QmpError: In QEMU's words.
    """
    if kind in _ARRAYS:
        _check_array(name, _ARRAYS[kind], value)
        return
    if _fits(kind, value):
        return
    if kind == "uint64":
        raise QmpError(f"Parameter '{name}' expects uint64")
    raise QmpError(f"Invalid parameter type for '{name}', expected: {kind}")


def _check_array(name: str, kind: Kind, value: Value) -> None:
    if not isinstance(value, list):
        raise QmpError(f"Invalid parameter type for '{name}', expected: array")
    for i, each in enumerate(value):
        check_type(f"{name}[{i}]", kind, each)


def _fits(kind: Kind, value: Value) -> bool:
    match kind:
        case "integer":
            return _is_integer(value, INT64_MAX)
        case "uint64":
            # A negative number becomes a huge one: QEMU takes it.
            return _is_integer(value, UINT64_MAX)
        case "string":
            return isinstance(value, str)
        case "boolean":
            return isinstance(value, bool)
        case _:
            return True


def _is_integer(value: Value, largest: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value <= largest
