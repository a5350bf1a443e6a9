"""The order in which glib walks a hash table of names.

QEMU takes a request's arguments out of such a table one by one, as a command's schema
names them, and complains of the first that is left. Which of several that is follows
from the table's layout: 8 places or more, filled by a hash of the name, and by steps
that grow where a place is taken.

Source: ``g_str_hash`` and ``ghash.c`` of glib, since 2.60.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

__all__ = ["first_left"]

_SMALLEST: Final = 3  # bits
# The largest prime below each power of two, which places are taken modulo.
_PRIMES: Final = (1, 2, 3, 7, 13, 31, 61, 127, 251, 509, 1021, 2039, 4093, 8191)
_GROWTH: Final = 1.333
_SPARSE: Final = 4


def first_left(names: Iterable[str], taken: Collection[str]) -> str | None:
    """Return the first name in a table that others were taken out of.

    Args:
        names: What is put into it, in this order.
        taken: What is taken out again, in this order; not all of it need be there.
    """
    table = _Table()
    for name in names:
        table.insert(name)
    for name in taken:
        table.remove(name)
    return next((place for place in table.places if place), None)


def _hash(name: str) -> int:
    value = 5381
    for byte in name.encode("utf-8", "surrogatepass"):
        signed = byte - 256 if byte > 127 else byte  # noqa: PLR2004 - a C char's range
        value = (value * 33 + signed) & 0xFFFFFFFF
    return max(value, 2)


class _Table:
    """Names by place; an empty one is where a name was taken out."""

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
        """Return where a name is, or where it would go."""
        places = self.places
        return self._first(
            name, lambda place: places[place] is None or places[place] == name
        )

    def _first(self, name: str, fits: Callable[[int], bool]) -> int:
        """Return the first place of those for a name that fits."""
        prime = _PRIMES[min(self._bits, len(_PRIMES) - 1)]
        place, step = (_hash(name) * 11 & 0xFFFFFFFF) % prime, 0
        while not fits(place):
            step += 1
            place = (place + step) % (1 << self._bits)
        return place

    def _fit(self) -> None:
        """Grow a table that is full, and shrink one that is nearly empty."""
        size = len(self.places)
        count = sum(bool(place) for place in self.places)
        occupied = size - self.places.count(None)
        sparse = size > 1 << _SMALLEST and size > _SPARSE * count
        if sparse or size <= occupied + occupied // 16:
            self._bits = max(_SMALLEST, int(count * _GROWTH).bit_length())
            self._rearrange()

    def _rearrange(self) -> None:
        """Give each name its new place; who is in that goes on to its own."""
        old = self.places
        places = old + [None] * ((1 << self._bits) - len(old))
        settled = set[int]()
        for start in range(len(old)):
            if start in settled:
                continue
            name, places[start] = places[start], None
            while name:
                place = self._first(name, lambda place: place not in settled)
                settled.add(place)
                name, places[place] = places[place], name
        self.places = places[: 1 << self._bits]
