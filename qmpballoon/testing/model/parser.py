"""QEMU's JSON parser, in both versions that there are.

Both build values from tokens with a stack of their own, so nesting needs no recursion.
They differ in their errors' words, in whether a key may be any value at first, and in
when they report an error: up to 10.x at the end of the message, later at the token that
is wrong. :class:`Grammar` holds the differences.

Source: QEMU's ``qobject/json-parser.c``.
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
    """The text is not JSON. The message is QEMU's, without its beginning."""


@frozen
class Grammar:
    """The errors of one version of the parser, and when it reports them.

    Attributes:
        eager: It reports an error at the wrong token and with its position, not at the
            message's end.
        key: The error for a key that does not begin as a string; ``None``: it reads any
            value there, and reports ``key_type`` when that is complete.
        key_type: The error for a complete key that is not a string.
        colon: The error for a missing colon.
        in_object: The error for a missing comma or brace.
        in_array: The error for a missing comma or bracket.
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

    After an error, make a new parser.
    """

    grammar: Grammar
    _stack: list[_Frame] = field(init=False, factory=list[_Frame])

    def push(self, token: Token) -> tuple[Value] | None:
        """Take a token; return the value, in a tuple, once it is complete.

        Raises:
            ParseError: The token is not allowed here.
        """
        if not self._stack:
            return self._push_value(token)
        frame = self._stack[-1]
        if frame.expect in {"key", "key-or-end"}:
            return self._push_key(frame, token)
        if frame.expect == "colon":
            if token.kind != ":":
                raise ParseError(self.grammar.colon)
            frame.expect = "value"
            return None
        if frame.expect == "separator":
            return self._push_separator(frame, token)
        if frame.expect == "value-or-end" and token.kind == "]":
            return self._close()
        return self._push_value(token)

    def _push_key(self, frame: _Frame, token: Token) -> tuple[Value] | None:
        if frame.expect == "key-or-end" and token.kind == "}":
            return self._close()
        if self.grammar.key is not None and token.kind != "string":
            raise ParseError(self.grammar.key)
        return self._push_value(token)

    def _push_separator(self, frame: _Frame, token: Token) -> tuple[Value] | None:
        array = isinstance(frame.value, list)
        if token.kind == ("]" if array else "}"):
            return self._close()
        if token.kind != ",":
            grammar = self.grammar
            raise ParseError(grammar.in_array if array else grammar.in_object)
        frame.expect = "value" if array else "key"
        return None

    def _push_value(self, token: Token) -> tuple[Value] | None:
        if token.kind == "{":
            self._stack.append(_Frame({}, "key-or-end"))
            return None
        if token.kind == "[":
            self._stack.append(_Frame([], "value-or-end"))
            return None
        return self._add(_parse_scalar(token))

    def _close(self) -> tuple[Value] | None:
        return self._add(self._stack.pop().value)

    def _add(self, value: Value) -> tuple[Value] | None:
        """Add a complete value to the object or array that it is part of."""
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


def _parse_scalar(token: Token) -> Value:
    match token.kind:
        case "integer":
            number = int(token.raw) if len(token.raw) <= len(str(-UINT64_MAX)) else None
            if number is not None and -INT64_MAX - 1 <= number <= UINT64_MAX:
                return number
            return float(token.raw)
        case "float":
            return float(token.raw)
        case "string":
            return _parse_string(token.raw)
        case "keyword":
            if token.raw in _KEYWORDS:
                return _KEYWORDS[token.raw]
            word = token.raw.decode()
            raise ParseError(f"invalid keyword '{word}'")
        case _:
            raise ParseError("expecting value")


def _parse_string(raw: bytes) -> str:
    """Return the text of a string token."""
    body = raw[1:-1]
    if b"\\" not in body and body.isascii():
        return body.decode()
    # The closing quote stays: QEMU's errors quote it, too.
    text = raw[1:].decode("utf-8", "surrogateescape").replace("\udcc0\udc80", "\0")
    chars: list[str] = []
    at = 0
    while at < len(text) - 1:
        if text[at] == "\\":
            char, at = _parse_escape(text, at)
        else:
            char, at = text[at], at + 1
            if not _is_character(ord(char)):
                raise ParseError("invalid UTF-8 sequence in string")
        chars.append(char)
    return "".join(chars)


def _parse_escape(text: str, at: int) -> tuple[str, int]:
    """Return the escaped character at ``at``, and the index after it."""
    escape = text[at + 1]
    if escape in _ESCAPES:
        return _ESCAPES[escape], at + 2
    if escape != "u":
        raise ParseError("invalid escape sequence in string")
    end = at + 6
    code = _parse_hex4(text, at + 2)
    if code in _HIGH and text[end : end + 2] == "\\u":
        low = _parse_hex4(text, end + 2)
        if low in _LOW:
            code, end = 0x10000 + ((code & 0x3FF) << 10 | low & 0x3FF), end + 6
    if not _is_character(code):
        raise ParseError(f"{text[at:end]} is not a valid Unicode character")
    return chr(code), end


def _parse_hex4(text: str, at: int) -> int:
    digits = text[at : at + 4]
    return int(digits, 16) if len(digits) == 4 and _HEX.issuperset(digits) else -1  # noqa: PLR2004 -- as in its name


def _is_character(code: int) -> bool:
    """Whether a code point is a character: no surrogate, no non-character."""
    return (
        0 <= code <= _MAX_CODE_POINT
        and code not in _HIGH
        and code not in _LOW
        and code not in _NON_CHARACTERS
        and code & _LAST_TWO != _LAST_TWO
    )


def decode_lossy(raw: bytes) -> str:
    """Return bytes as QEMU prints them: up to a NUL, U+FFFD for what is not UTF-8."""
    text = raw.partition(b"\0")[0].decode("utf-8", "replace")
    return "".join(c if _is_character(ord(c)) else "\ufffd" for c in text)
