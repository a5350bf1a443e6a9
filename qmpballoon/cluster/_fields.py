"""Write documents as JSON, and read those of others without trusting them.

Each document is one JSON object in UTF-8, with its kind and the version of its format.
What another host has written is not trusted: its size, its depth, each of its fields
and each number are checked, and texts are made printable. Unknown fields are ignored,
so that a newer host may say more. Another version is refused.
"""

from __future__ import annotations

import json
import math
import re
from typing import TYPE_CHECKING, Final, TypeVar, cast

from qmpballoon._checks import LARGEST_SIZE, is_size
from qmpballoon._printable import make_printable
from qmpballoon.cluster.bus import LARGEST_VALUE, require_host_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

__all__ = ["LONGEST_NAME", "LONGEST_TEXT", "Fields", "Malformed", "decode", "encode"]

_VERSION: Final = 1
_DEEPEST: Final = 8  # what is written here is nested at most 4 deep
LONGEST_NAME: Final = 256
"""Characters of a name at most; a VM may have a longer one."""
LONGEST_TEXT: Final = 500
"""Characters of another text at most."""
_LARGEST_REVISION: Final = 2**53 - 1  # the largest that every reader of JSON can hold
_JOB_ID: Final = re.compile(r"[0-9a-f]{8,32}")

_T = TypeVar("_T")


class Malformed(ValueError):
    """Data is not a document of ours, or says something that cannot be true."""


def encode(kind: str, content: Mapping[str, object]) -> bytes:
    """Return a document of a kind."""
    document = {"kind": kind, "v": _VERSION, **content}
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode(
        "utf-8", "backslashreplace"
    )


class Fields:
    """The fields of an object that somebody else has written; each is checked."""

    def __init__(self, value: object, what: str) -> None:
        if not isinstance(value, dict):
            raise Malformed(f"{what} is no JSON object")
        self._values = cast("dict[str, object]", value)
        self._what = what

    def read(self, name: str, is_right: Callable[[object], bool], kind: str) -> object:
        value = self._values.get(name)
        if not is_right(value):
            raise Malformed(f"{self._what}: {name} is {value!r:.80}: it must be {kind}")
        return value

    def size(self, name: str, *, minimum: int = 0) -> int:
        value = self._values.get(name)
        # A view of 1,000 hosts has 200,000 sizes.
        if type(value) is int and minimum <= value <= LARGEST_SIZE:
            return value
        value = self.read(name, is_size, "a number of bytes")
        if cast("int", value) < minimum:
            raise Malformed(
                f"{self._what}: {name} is {value}: it must be {minimum} or more"
            )
        return cast("int", value)

    def optional_size(self, name: str) -> int | None:
        return None if self._values.get(name) is None else self.size(name)

    def signed_size(self, name: str) -> int:
        value = self._values.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and is_size(-value):
            return value
        return self.size(name)

    def revision(self, name: str) -> int:
        value = self.size(name, minimum=1)
        if value > _LARGEST_REVISION:
            raise Malformed(
                f"{self._what}: {name} is {value}: it must be {_LARGEST_REVISION} or"
                " less"
            )
        return value

    def seconds(self, name: str) -> float:
        value = self.read(name, _is_seconds, "a number of seconds")
        return float(cast("float", value))

    def flag(self, name: str) -> bool:
        value = self.read(name, lambda value: isinstance(value, bool), "true or false")
        return cast("bool", value)

    def text(self, name: str, longest: int = LONGEST_TEXT) -> str:
        """Return a text, which may be left out; cut, and made printable."""
        value = self._values.get(name, "")
        if not isinstance(value, str):
            raise Malformed(f"{self._what}: {name} is {value!r:.80}: it must be text")
        return make_printable(value, longest)

    def name(self, name: str) -> str:
        """Return a text that must be there, and is what it is: it is not cut."""
        value = self.text(name, LONGEST_NAME + 1)
        if not value or len(value) > LONGEST_NAME:
            raise Malformed(
                f"{self._what}: {name} is {value!r:.80}: it must be 1 to"
                f" {LONGEST_NAME} characters"
            )
        return value

    def optional_name(self, name: str) -> str | None:
        return None if self._values.get(name) is None else self.name(name)

    def host(self, name: str) -> str:
        try:
            return require_host_name(self.name(name))
        except ValueError as error:
            raise Malformed(f"{self._what}: {error}") from error

    def job(self, name: str) -> str:
        value = self.name(name)
        if not _JOB_ID.fullmatch(value):
            raise Malformed(f"{self._what}: {name} is {value!r:.80}: it is no job's id")
        return value

    def items(
        self, name: str, read: Callable[[object, str], _T], most: int
    ) -> tuple[_T, ...]:
        values = self._values.get(name, [])
        if not isinstance(values, list) or len(cast("list[object]", values)) > most:
            raise Malformed(f"{self._what}: {name} must be a list of at most {most}")
        what = f"{self._what}, {name}"
        return tuple(read(value, what) for value in cast("list[object]", values))

    def mapping(self, name: str, most: int) -> Mapping[str, object]:
        value = self._values.get(name, {})
        if not isinstance(value, dict) or len(cast("dict[str, object]", value)) > most:
            raise Malformed(f"{self._what}: {name} must be an object of at most {most}")
        return cast("dict[str, object]", value)

    def optional(self, name: str, read: Callable[[object, str], _T]) -> _T | None:
        value = self._values.get(name)
        return None if value is None else read(value, f"{self._what}, {name}")

    def require_known(self, known: Iterable[str]) -> None:
        unknown = sorted(self._values.keys() - set(known))
        if unknown:
            choices = ", ".join(sorted(known))
            raise Malformed(
                f"{self._what}: {unknown[0]!r:.80} is unknown: use {choices}"
            )


def _is_seconds(value: object) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    # No clock is 34,000 years ahead.
    return math.isfinite(value) and 0 <= value < 2**40


def decode(data: bytes, kind: str) -> Fields:
    """Return the fields of a document of a kind.

    Raises:
        Malformed: It is not one. The message is one line.
    """
    if len(data) > LARGEST_VALUE:
        raise Malformed(f"the {kind} has {len(data)} bytes: too many")
    try:
        value: object = _DECODER.decode(data.decode("utf-8"))
        _require_flat(value, _DEEPEST)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"the {kind} is no JSON: {error!s:.80}") from error
    found = Fields(value, f"the {kind}")
    found.read("kind", lambda value: value == kind, f'"{kind}"')
    found.read(
        "v", lambda value: value == _VERSION, f"{_VERSION}, the version known here"
    )
    return found


def _refuse(text: str) -> object:
    raise ValueError(f"{text} is no number")


_DECODER: Final = json.JSONDecoder(parse_constant=_refuse)


def _require_flat(value: object, depth: int) -> None:
    """Refuse what is nested deeper than anything of ours."""
    if isinstance(value, dict | list):
        if not depth:
            raise ValueError("it is nested too deep")
        inner = value.values() if isinstance(value, dict) else value  # pyright: ignore[reportUnknownVariableType,reportUnknownMemberType]
        for each in cast("Iterable[object]", inner):
            if isinstance(each, dict | list):
                _require_flat(cast("object", each), depth - 1)
