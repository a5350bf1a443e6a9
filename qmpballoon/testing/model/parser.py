"""QEMU's JSON parser, in the two shapes that it has had.

Both push values together from tokens with a stack of their own, so that nesting
costs no recursion. They differ in words, in whether a key may be any value at
first, and in *when* they complain: up to 10.x at the end of a message, later on
at the token that is wrong. :class:`Grammar` holds the differences.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from attrs import define, field, frozen

from qmpballoon.testing.model.qobject import INT64_MAX, UINT64_MAX, Value

if TYPE_CHECKING:
    from qmpballoon.testing.model.lexer import Token

__all__ = ["Grammar", "ParseError", "Parser", "decode_lossy"]

_KEYWORDS: Final[dict[bytes, Value]] = {b"true": True, b"false": False, b"null": None}
_ESCAPES: Final = {
    '"': '"', "'": "'", "\\": "\\", "/": "/",
    "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t",
}  # fmt: skip
_HEX: Final = frozenset("0123456789abcdefABCDEF")
_HIGH: Final = range(0xD800, 0xDC00)
_LOW: Final = range(0xDC00, 0xE000)
_NON_CHARACTERS: Final = range(0xFDD0, 0xFDF0)
_LAST_TWO: Final = 0xFFFE
_MAX_CODE_POINT: Final = 0x10FFFF


class ParseError(Exception):
    """The text is not JSON; the message is QEMU's, without its beginning."""


@frozen
class Grammar:
    """What one version of the parser says, and when.

    Attributes:
        eager: It complains at the wrong token, with its position, not at the
            message's end.
        key: What it says of a key that is not a string; None: it reads any value
            there and complains once that is complete.
        key_type: What it says then.
        colon: What it says of a missing colon.
        in_object: What it says of a missing comma or brace.
        in_array: What it says of a missing comma or bracket.
    """

    eager: bool
    key: str | None
    key_type: str
    colon: str
    in_object: str
    in_array: str


@define
class _Frame:
    """An array or object that is being read."""

    value: list[Value] | dict[str, Value]
    expect: str
    key: str | None = None


@define
class Parser:
    """Builds one value from tokens.

    After an error the parser is spent: make another one.
    """

    grammar: Grammar
    _stack: list[_Frame] = field(init=False, factory=list[_Frame])

    def push(self, token: Token) -> tuple[Value] | None:
        """Take a token; return the value in a tuple once it is complete.

        Raises:
            ParseError: The token cannot stand here.
        """
        if not self._stack:
            return self._value(token)
        frame = self._stack[-1]
        if frame.expect in {"key", "key-or-end"}:
            return self._key(frame, token)
        if frame.expect == "colon":
            if token.kind != ":":
                raise ParseError(self.grammar.colon)
            frame.expect = "value"
            return None
        if frame.expect == "separator":
            return self._separator(frame, token)
        if frame.expect == "value-or-end" and token.kind == "]":
            return self._close()
        return self._value(token)

    def _key(self, frame: _Frame, token: Token) -> tuple[Value] | None:
        if frame.expect == "key-or-end" and token.kind == "}":
            return self._close()
        if self.grammar.key is not None and token.kind != "string":
            raise ParseError(self.grammar.key)
        return self._value(token)

    def _separator(self, frame: _Frame, token: Token) -> tuple[Value] | None:
        array = isinstance(frame.value, list)
        if token.kind == ("]" if array else "}"):
            return self._close()
        if token.kind != ",":
            grammar = self.grammar
            raise ParseError(grammar.in_array if array else grammar.in_object)
        frame.expect = "value" if array else "key"
        return None

    def _value(self, token: Token) -> tuple[Value] | None:
        if token.kind == "{":
            self._stack.append(_Frame({}, "key-or-end"))
            return None
        if token.kind == "[":
            self._stack.append(_Frame([], "value-or-end"))
            return None
        return self._done(_scalar(token))

    def _close(self) -> tuple[Value] | None:
        return self._done(self._stack.pop().value)

    def _done(self, value: Value) -> tuple[Value] | None:
        """Put a complete value where it belongs."""
        if not self._stack:
            return (value,)
        frame = self._stack[-1]
        if isinstance(frame.value, list):
            frame.value.append(value)
            frame.expect = "separator"
        elif frame.expect in {"key", "key-or-end"}:
            if not isinstance(value, str):
                raise ParseError(self.grammar.key_type)
            frame.key = value
            frame.expect = "colon"
        else:
            key = frame.key or ""
            if key in frame.value:
                raise ParseError("duplicate key")
            frame.value[key] = value
            frame.expect = "separator"
        return None


def _scalar(token: Token) -> Value:
    match token.kind:
        case "integer":
            number = int(token.raw) if len(token.raw) <= len(str(-UINT64_MAX)) else None
            if number is not None and -INT64_MAX - 1 <= number <= UINT64_MAX:
                return number
            return float(token.raw)
        case "float":
            return float(token.raw)
        case "string":
            return _string(token.raw)
        case "keyword":
            if token.raw in _KEYWORDS:
                return _KEYWORDS[token.raw]
            word = token.raw.decode()
            raise ParseError(f"invalid keyword '{word}'")
        case _:
            raise ParseError("expecting value")


def _string(raw: bytes) -> str:
    """Return a string token's text."""
    body = raw[1:-1]
    if b"\\" not in body and body.isascii():
        return body.decode()
    # The closing quote stays: QEMU's complaints quote beyond the string's end.
    text = raw[1:].decode("utf-8", "surrogateescape").replace("\udcc0\udc80", "\0")
    chars: list[str] = []
    at = 0
    while at < len(text) - 1:
        if text[at] == "\\":
            char, at = _escaped(text, at)
        else:
            char, at = text[at], at + 1
            if not _is_character(ord(char)):
                raise ParseError("invalid UTF-8 sequence in string")
        chars.append(char)
    return "".join(chars)


def _escaped(text: str, at: int) -> tuple[str, int]:
    """Return the character escaped at ``at``, and where the text goes on."""
    escape = text[at + 1]
    if escape in _ESCAPES:
        return _ESCAPES[escape], at + 2
    if escape != "u":
        raise ParseError("invalid escape sequence in string")
    end = at + 6
    code = _hex4(text, at + 2)
    if code in _HIGH and text[end : end + 2] == "\\u":
        low = _hex4(text, end + 2)
        if low in _LOW:
            code, end = 0x10000 + ((code & 0x3FF) << 10 | low & 0x3FF), end + 6
    if not _is_character(code):
        raise ParseError(f"{text[at:end]} is not a valid Unicode character")
    return chr(code), end


def _hex4(text: str, at: int) -> int:
    digits = text[at : at + 4]
    return int(digits, 16) if len(digits) == 4 and _HEX.issuperset(digits) else -1  # noqa: PLR2004 -- it is in the name


def _is_character(code: int) -> bool:
    """Tell characters from surrogates and from Unicode's non-characters."""
    return (
        0 <= code <= _MAX_CODE_POINT
        and code not in _HIGH
        and code not in _LOW
        and code not in _NON_CHARACTERS
        and code & _LAST_TWO != _LAST_TWO
    )


def decode_lossy(raw: bytes) -> str:
    """Return text as QEMU prints it: up to a NUL, U+FFFD for what is not UTF-8."""
    text = raw.partition(b"\0")[0].decode("utf-8", "replace")
    return "".join(c if _is_character(ord(c)) else "\ufffd" for c in text)
