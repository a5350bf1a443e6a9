"""A command's arguments, checked the way QEMU's generated code checks them.

QEMU visits the arguments in the schema's order and refuses the first that is missing or
of the wrong type. Only then does it refuse an argument that it does not know.

Which of several unknown arguments the error names follows from glib's hash table. QEMU
takes each argument that it knows out of such a table, and names the first that is left.
The table has 8 places or more. The hash of a name says which place it gets; where that
is taken, the search goes on in growing steps.

Source: QEMU's ``qobject-input-visitor.c``; ``g_str_hash`` and ``ghash.c`` of glib since
2.60.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

from attrs import frozen

from qmpballoon.testing.model.qobject import (
    INT64_MAX,
    UINT64_MAX,
    encode_text,
    order_members,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

    from qmpballoon.testing.model.qobject import Value

__all__ = [
    "Aborted",
    "Argument",
    "Kind",
    "QmpError",
    "check_arguments",
    "check_type",
    "find_first_left",
    "make_simulated_refusal",
]

Kind = Literal[
    "integer", "uint64", "string", "boolean", "object", "strings", "uint64s", "any"
]

_ARRAYS: Final[dict[Kind, Kind]] = {"strings": "string", "uint64s": "uint64"}

# glib's constants.
_SMALLEST: Final = 3  # bits
# The largest prime below each power of two. A hash modulo this is a name's first place.
_PRIMES: Final = (1, 2, 3, 7, 13, 31, 61, 127, 251, 509, 1021, 2039, 4093, 8191)
_GROWTH: Final = 1.333
_SPARSE: Final = 4


class Aborted(Exception):
    """QEMU died while it carried a command out. There is no reply."""


class QmpError(Exception):
    """A command failed.

    Attributes:
        error_class: QEMU's error class.
        desc: Its description.
    """

    def __init__(self, desc: str, error_class: str = "GenericError") -> None:
        super().__init__(desc)
        self.desc = desc
        self.error_class = error_class


def make_simulated_refusal(what: str) -> QmpError:
    """Return the error of something that QEMU does and the fake does not."""
    return QmpError(f"The simulated QEMU does not carry out {what}")


@frozen
class Argument:
    """One argument of a command.

    Attributes:
        name: Its name.
        kind: Its type.
        optional: It may be left out.
        check: Raises :exc:`QmpError` for values that have the right type and are
            refused all the same.
    """

    name: str
    kind: Kind
    optional: bool = False
    check: Callable[[Value], None] | None = None


def check_arguments(schema: Sequence[Argument], given: dict[str, Value]) -> None:
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
        return  # the usual case, without building a table
    names = [name for name, _ in order_members(given)]
    raise QmpError(f"Parameter '{find_first_left(names, known)}' is unexpected")


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
            # QEMU accepts a negative number and takes it for a huge one.
            return _is_integer(value, UINT64_MAX)
        case "string":
            return isinstance(value, str)
        case "boolean":
            return isinstance(value, bool)
        case "object":
            return isinstance(value, dict)
        case _:
            return True


def _is_integer(value: Value, largest: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value <= largest


# glib's hash table


def find_first_left(names: Iterable[str], taken: Collection[str]) -> str | None:
    """Return the first name in glib's hash table after others were removed.

    Args:
        names: The names that are inserted, in this order.
        taken: The names that are removed, in this order. They need not be there.

    Returns:
        The first name that is left; ``None`` if there is none.
    """
    table = _Table()
    for name in names:
        table.insert(name)
    for name in taken:
        table.remove(name)
    return next((place for place in table.places if place), None)


def _hash(name: str) -> int:
    value = 5381
    for byte in encode_text(name):
        signed = byte - 256 if byte > 127 else byte  # noqa: PLR2004 - a C char's range
        value = (value * 33 + signed) & 0xFFFFFFFF
    return max(value, 2)


class _Table:
    """A hash table of names. An empty string marks a place whose name was removed."""

    def __init__(self) -> None:
        self._bits = _SMALLEST
        self.places: list[str | None] = [None] * (1 << self._bits)

    def insert(self, name: str) -> None:
        self.places[self._place_of(name)] = name
        self._fit()

    def remove(self, name: str) -> None:
        place = self._place_of(name)
        if self.places[place] is not None:
            self.places[place] = ""
            self._fit()

    def _place_of(self, name: str) -> int:
        """Return the place where a name is, or would be inserted."""
        places = self.places
        return self._probe(
            name, lambda place: places[place] is None or places[place] == name
        )

    def _probe(self, name: str, fits: Callable[[int], bool]) -> int:
        """Return the first of a name's places that fits."""
        prime = _PRIMES[min(self._bits, len(_PRIMES) - 1)]
        place, step = (_hash(name) * 11 & 0xFFFFFFFF) % prime, 0
        while not fits(place):
            step += 1
            place = (place + step) % (1 << self._bits)
        return place

    def _fit(self) -> None:
        """Grow the table if it is full; shrink it if it is nearly empty."""
        size = len(self.places)
        count = sum(bool(place) for place in self.places)
        occupied = size - self.places.count(None)
        sparse = size > 1 << _SMALLEST and size > _SPARSE * count
        if sparse or size <= occupied + occupied // 16:
            self._bits = max(_SMALLEST, int(count * _GROWTH).bit_length())
            self._rearrange()

    def _rearrange(self) -> None:
        """Move each name to its new place. A name that was there is moved next."""
        old = self.places
        places = old + [None] * ((1 << self._bits) - len(old))
        settled = set[int]()
        for start in range(len(old)):
            if start in settled:
                continue
            name, places[start] = places[start], None
            while name:
                place = self._probe(name, lambda place: place not in settled)
                settled.add(place)
                name, places[place] = places[place], name
        self.places = places[: 1 << self._bits]
