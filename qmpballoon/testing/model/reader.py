"""The monitor's input: tokens are gathered into messages, within QEMU's limits.

A message ends where braces and brackets balance, or where one more is closed than was
opened. The next message starts there, whatever was wrong with this one. QEMU's error
recovery is this, and the reset by a stray character.

Source: QEMU's ``qobject/json-streamer.c``.
"""

from __future__ import annotations

import json
import re
from collections import deque
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
    "read_simple",
]

MAX_NESTING: Final = 1024
"""Most open braces and brackets: QEMU's ``MAX_NESTING``."""

MAX_TOKEN_COUNT: Final = 2 << 20
"""Most tokens in a message: QEMU's ``MAX_TOKEN_COUNT``."""

_LONGEST_ERROR: Final = 1023
"""Characters that fit in the parser's buffer. Stray characters have no such limit."""


@frozen
class Parsed:
    """A message that is JSON, if not always a request."""

    value: Value


@frozen
class Malformed:
    """A message that is not JSON, with QEMU's error."""

    desc: str


def read_simple(data: bytes) -> Parsed | None:
    """Parse a simple request with Python's JSON parser; ``None``: it is not simple.

    Most requests are one object of printable ASCII without escapes, whose numbers are
    small integers. For those Python's parser returns what QEMU's does, in a twentieth
    of the time.
    """
    if not _SIMPLE.fullmatch(data) or data.count(b"{") + data.count(b"[") > _FLAT:
        return None
    try:
        return Parsed(_SIMPLE_DECODER.decode(data.decode("ascii")))
    except ValueError:
        return None


def _parse_small(digits: str) -> int:
    if len(digits) > _SMALL:
        raise ValueError(digits)
    return int(digits)


def _refuse(text: str) -> NoReturn:
    raise ValueError(text)


def _build_members(pairs: list[tuple[str, Value]]) -> dict[str, Value]:
    members = dict(pairs)
    if len(members) < len(pairs):
        raise ValueError("a key comes twice")
    return members


_SIMPLE: Final = re.compile(rb"\{[ -&(-\[\]-~]{,4096}\}\n?")
# Braces and brackets: fewer than QEMU allows, or Python can recurse into.
_FLAT: Final = 64
# Characters of an integer: all such integers fit in 64 bits.
_SMALL: Final = 18
_SIMPLE_DECODER: Final = json.JSONDecoder(
    object_pairs_hook=_build_members,
    parse_int=_parse_small,
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
        self._simple = deque[Parsed]()
        self._start_message()

    def feed(self, data: bytes) -> None:
        """Take bytes from the client, in chunks of any size."""
        # A client may send several requests at once, a line each.
        at = 0
        while at < len(data) and self._is_idle:
            end = data.find(b"\n", at) + 1 or len(data)
            parsed = read_simple(data[at:end])
            if parsed is None:
                break
            self._simple.append(parsed)
            self._lexer.pass_over(data[at:end])
            at = end
        self._lexer.feed(data[at:])

    @property
    def _is_idle(self) -> bool:
        return self._tokens == 0 and self._lexer.is_idle

    def next_message(self) -> Parsed | Malformed | None:
        """Return the next message; ``None`` if it needs more bytes."""
        if self._simple:
            return self._simple.popleft()
        while token := self._lexer.next_token():
            message = self._take(token)
            if message is not None:
                return message
        return None

    def _start_message(self) -> None:
        self._parser = Parser(self._grammar)
        self._braces = self._brackets = self._tokens = self._size = 0
        self._error: Malformed | None = None
        self._reported = False

    def _take(self, token: Token) -> Parsed | Malformed | None:
        self._braces += (token.kind == "{") - (token.kind == "}")
        self._brackets += (token.kind == "[") - (token.kind == "]")
        if token.kind == "error":
            return self._report_stray(token)
        if exceeded := self._count(token):
            return self._report_limit(exceeded)
        value = self._parse(token)
        open_ = self._braces > 0 or self._brackets > 0
        if open_ and self._braces >= 0 and self._brackets >= 0:
            return self._report_early()
        return self._finish(value)

    def _parse(self, token: Token) -> tuple[Value] | None:
        if self._error:
            return None
        try:
            return self._parser.push(token)
        except ParseError as error:
            text = str(error)[:_LONGEST_ERROR]
            self._error = self._make_malformed(text, token)
            return None

    def _report_early(self) -> Malformed | None:
        if self._reported or not (self._grammar.eager and self._error):
            return None
        self._reported = True
        return self._error

    def _finish(self, value: tuple[Value] | None) -> Parsed | Malformed | None:
        error, reported = self._error, self._reported
        self._start_message()
        if error:
            return None if reported else error
        return Parsed(value[0]) if value else None

    def _report_stray(self, token: Token) -> Malformed | None:
        reported = self._reported
        self._start_message()
        text = decode_lossy(token.raw)
        return None if reported else self._make_malformed(f"stray '{text}'", token)

    def _count(self, token: Token) -> str | None:
        """Count a token; return the error if a limit is exceeded."""
        if self._size + len(token.raw) + 1 > MAX_TOKEN_SIZE:
            return "JSON token size limit exceeded"
        if self._tokens + 1 > MAX_TOKEN_COUNT:
            return "JSON token count limit exceeded"
        if self._braces + self._brackets > MAX_NESTING:
            return "JSON nesting depth limit exceeded"
        self._size += len(token.raw)
        self._tokens += 1
        return None

    def _report_limit(self, text: str) -> Malformed | None:
        if not self._grammar.eager:
            self._start_message()
            return Malformed(text)
        self._error = self._error or Malformed(text)
        return self._report_early()

    def _make_malformed(self, text: str, token: Token) -> Malformed:
        position = f"{token.line}:{token.column}: " if self._grammar.eager else ""
        return Malformed(f"{position}JSON parse error, {text}")
