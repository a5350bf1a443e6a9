"""The monitor's input: tokens gathered into messages, within QEMU's limits.

A message ends where braces and brackets balance, or where there is one more
closed than opened; whatever was wrong in it, the next one starts there. That and
the reset by a stray character is all of QEMU's error recovery.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Final, NoReturn

from attrs import frozen

from qmpballoon.testing.model.lexer import MAX_TOKEN_SIZE, Lexer, Token
from qmpballoon.testing.model.parser import Grammar, ParseError, Parser, decode_lossy

if TYPE_CHECKING:
    from qmpballoon.testing.model.qobject import Value

__all__ = [
    "MAX_NESTING",
    "MAX_TOKEN_COUNT",
    "Malformed",
    "Parsed",
    "Reader",
    "read_plain",
]

MAX_NESTING: Final = 1024
MAX_TOKEN_COUNT: Final = 2 << 20

_LONGEST_COMPLAINT: Final = 1023
"""What fits in the parser's buffer; a stray character has no such bound."""


@frozen
class Parsed:
    """A message that is JSON, whatever else it is."""

    value: Value


@frozen
class Malformed:
    """A message that is not JSON, and what QEMU says of it."""

    desc: str


def read_plain(data: bytes) -> Parsed | None:
    """Read one plain request the short way; None: it needs the long one.

    Most of what clients send is one object of printable ASCII without escapes and
    with small whole numbers. Of that, Python's own parser makes the same as QEMU's,
    in a twentieth of the time.
    """
    if not _PLAIN.fullmatch(data) or data.count(b"{") + data.count(b"[") > _FLAT:
        return None
    try:
        return Parsed(_PLAIN_DECODER.decode(data.decode("ascii")))
    except ValueError:
        return None


def _small(digits: str) -> int:
    if len(digits) > _SMALL:
        raise ValueError(digits)
    return int(digits)


def _refuse(text: str) -> NoReturn:
    raise ValueError(text)


def _unique(pairs: list[tuple[str, Value]]) -> dict[str, Value]:
    members = dict(pairs)
    if len(members) < len(pairs):
        raise ValueError("a key comes twice")
    return members


_PLAIN: Final = re.compile(rb"\{[ -&(-\[\]-~]{,4096}\}\n?")
_FLAT: Final = 64
_SMALL: Final = 18
_PLAIN_DECODER: Final = json.JSONDecoder(
    object_pairs_hook=_unique,
    parse_int=_small,
    parse_float=_refuse,
    parse_constant=_refuse,
)


class Reader:
    """Turns bytes into messages, one at a time.

    Args:
        grammar: The parser's version.
    """

    def __init__(self, grammar: Grammar) -> None:
        self._grammar = grammar
        self._lexer = Lexer()
        self._plain: Parsed | None = None
        self._start_message()

    def feed(self, data: bytes) -> None:
        """Take bytes from the client; any chunking will do."""
        if self._is_idle and (parsed := read_plain(data)):
            self._plain = parsed
            self._lexer.pass_over(data)
        else:
            self._lexer.feed(data)

    @property
    def _is_idle(self) -> bool:
        return self._plain is None and self._tokens == 0 and self._lexer.is_idle

    def next_message(self) -> Parsed | Malformed | None:
        """Return the next message, or None once more bytes are needed."""
        if self._plain is not None:
            plain, self._plain = self._plain, None
            return plain
        while token := self._lexer.next_token():
            message = self._take(token)
            if message is not None:
                return message
        return None

    def _start_message(self) -> None:
        self._parser = Parser(self._grammar)
        self._braces = self._brackets = self._tokens = self._size = 0
        self._complaint: Malformed | None = None
        self._said = False

    def _take(self, token: Token) -> Parsed | Malformed | None:
        self._braces += (token.kind == "{") - (token.kind == "}")
        self._brackets += (token.kind == "[") - (token.kind == "]")
        if token.kind == "error":
            return self._stray(token)
        if exceeded := self._over_limit(token):
            return self._limit(exceeded)
        value = self._parse(token)
        open_ = self._braces > 0 or self._brackets > 0
        if open_ and self._braces >= 0 and self._brackets >= 0:
            return self._say_early()
        return self._finish(value)

    def _parse(self, token: Token) -> tuple[Value] | None:
        if self._complaint:
            return None
        try:
            return self._parser.push(token)
        except ParseError as error:
            text = str(error)[:_LONGEST_COMPLAINT]
            self._complaint = self._malformed(text, token)
            return None

    def _say_early(self) -> Malformed | None:
        if self._said or not (self._grammar.eager and self._complaint):
            return None
        self._said = True
        return self._complaint

    def _finish(self, value: tuple[Value] | None) -> Parsed | Malformed | None:
        complaint, said = self._complaint, self._said
        self._start_message()
        if complaint:
            return None if said else complaint
        return Parsed(value[0]) if value else None

    def _stray(self, token: Token) -> Malformed | None:
        said = self._said
        self._start_message()
        text = decode_lossy(token.raw)
        return None if said else self._malformed(f"stray '{text}'", token)

    def _over_limit(self, token: Token) -> str | None:
        if self._size + len(token.raw) + 1 > MAX_TOKEN_SIZE:
            return "JSON token size limit exceeded"
        if self._tokens + 1 > MAX_TOKEN_COUNT:
            return "JSON token count limit exceeded"
        if self._braces + self._brackets > MAX_NESTING:
            return "JSON nesting depth limit exceeded"
        self._size += len(token.raw)
        self._tokens += 1
        return None

    def _limit(self, text: str) -> Malformed | None:
        if not self._grammar.eager:
            self._start_message()
            return Malformed(text)
        self._complaint = self._complaint or Malformed(text)
        return self._say_early()

    def _malformed(self, text: str, token: Token) -> Malformed:
        position = f"{token.line}:{token.column}: " if self._grammar.eager else ""
        return Malformed(f"{position}JSON parse error, {text}")
