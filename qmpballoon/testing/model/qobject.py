"""QEMU's values (QObject) as JSON, byte for byte.

QEMU keeps an object's members in a hash table of 512 buckets and writes them in the
table's order. So the order on the wire follows from the names alone. The fake writes
the same order, since clients' logs and recorded transcripts show it.

Source: ``tdb_hash`` in QEMU's ``qobject/qdict.c``, and ``qobject/json-writer.c``.
"""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING, Any, Final, TypeAlias, Union, cast

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = [
    "INT64_MAX",
    "UINT64_MAX",
    "Scalar",
    "Value",
    "encode_text",
    "order_members",
    "to_json",
]

Scalar: TypeAlias = bool | int | float | str | None
Value: TypeAlias = Union[Scalar, "Sequence[Value]", "dict[str, Value]"]
"""What a QObject can hold. Integers are 64 bits wide, signed or unsigned."""

INT64_MAX: Final = (1 << 63) - 1
UINT64_MAX: Final = (1 << 64) - 1

_BUCKETS: Final = 512
"""QEMU's ``QDICT_BUCKET_MAX``."""

_SHORT: Final = {
    '"': '\\"',
    "\\": "\\\\",
    "\b": "\\b",
    "\f": "\\f",
    "\n": "\\n",
    "\r": "\\r",
    "\t": "\\t",
}
_NEEDS_ESCAPE: Final = re.compile(r"[^ !#-\[\]-~]")


def encode_text(text: str) -> bytes:
    """Return a text's bytes in QEMU, whose strings have no byte that is 0."""
    return text.encode("utf-8", "surrogatepass").replace(b"\0", b"\xc0\x80")


@functools.lru_cache(maxsize=4096)
def _find_bucket(name: str) -> int:
    """Return the hash table's bucket for a member's name."""
    raw = encode_text(name)
    value = 0x238F13AF * len(raw)
    for i, byte in enumerate(raw):
        value += byte << (i * 5 % 24)
    return (1103515243 * value + 12345) % _BUCKETS


def order_members(members: dict[str, Value]) -> list[tuple[str, Value]]:
    """Return an object's members in the order in which QEMU iterates over them."""
    return [(name, members[name]) for name, _ in _lay_out(tuple(members))]


# A simulation writes the same few objects again and again. To sort and quote their
# names each time would take a tenth of its time.
@functools.lru_cache(maxsize=256)
def _lay_out(names: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """Return an object's names in the table's order, with the text before each value.

    Within a bucket the newest comes first.
    """
    newest_first = names[::-1]
    ordered = sorted(newest_first, key=_find_bucket)
    return tuple(
        (name, f"{', ' if i else ''}{_quote(name)}: ") for i, name in enumerate(ordered)
    )


def _escape(match: re.Match[str]) -> str:
    char = match[0]
    if char in _SHORT:
        return _SHORT[char]
    raw = char.encode("utf-16-be", "surrogatepass")
    return "".join(
        f"\\u{int.from_bytes(raw[i : i + 2], 'big'):04X}" for i in range(0, len(raw), 2)
    )


def _quote(text: str) -> str:
    return f'"{_NEEDS_ESCAPE.sub(_escape, text)}"'


def to_json(value: Value) -> str:
    """Return a value as QEMU writes it: ASCII, one line, members in table order."""
    # A stack of its own: a client's id may be nested deeper than Python can recurse.
    parts: list[str] = []
    todo: list[Iterator[tuple[str, Value]]] = [iter([("", value)])]
    ends = [""]
    while todo:
        for prefix, item in todo[-1]:
            parts.append(prefix)
            if write := _WRITE_SCALAR.get(type(item)):
                parts.append(write(item))
                continue
            if isinstance(item, dict):
                parts.append("{")
                ends.append("}")
                todo.append(_write_members(item))
            else:
                parts.append("[")
                ends.append("]")
                todo.append(_write_items(cast("Sequence[Value]", item)))
            break
        else:
            todo.pop()
            parts.append(ends.pop())
    return "".join(parts)


def _write_members(members: dict[str, Value]) -> Iterator[tuple[str, Value]]:
    layout = _lay_out(tuple(members))
    return iter([(prefix, members[name]) for name, prefix in layout])


def _write_items(items: Sequence[Value]) -> Iterator[tuple[str, Value]]:
    return iter([(", " if i else "", value) for i, value in enumerate(items)])


# By the type itself: most of what is written are numbers.
_WRITE_SCALAR: Final[dict[type, Callable[[Any], str]]] = {
    int: str,
    str: _quote,
    bool: lambda value: "true" if value else "false",
    type(None): lambda _: "null",
    float: lambda value: f"{value:.17g}",
}
