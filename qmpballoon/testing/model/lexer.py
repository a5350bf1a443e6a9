r"""QEMU's JSON lexer: bytes in, tokens and stray characters out.

It is a table of states, as QEMU's is, because its errors depend on what happens between
the tokens: which byte ends a number, how many are skipped after a stray one, and where
the next token is said to start. Regular expressions are used only to skip long runs of
bytes that stay in one state.

QEMU accepts a little more than JSON: strings may have single quotes. A control
character other than a tab resets the lexer. A client sends one, such as ``\x01``, to
resynchronise.

Source: QEMU's ``qobject/json-lexer.c``.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

__all__ = ["MAX_TOKEN_SIZE", "Lexer", "Token"]

MAX_TOKEN_SIZE: Final = 64 << 20
"""Most bytes in a token, and in all tokens of a message: QEMU's
``MAX_TOKEN_SIZE``."""


class Token(NamedTuple):
    """A token, or bytes that belong to none.

    Attributes:
        kind: ``integer``, ``float``, ``keyword``, ``string``, one of the six structural
            characters, ``error`` for bytes that belong to no token, or the state in
            which a token grew too long.
        raw: Its bytes.
        line: The line in which it starts, from 1.
        column: The column in which it starts, as QEMU counts: one too many after a
            token that only the next character ended.
    """

    kind: str
    raw: bytes
    line: int
    column: int


_Row = dict[int, tuple[str, bool]]
"""For each byte the next state, and whether that state looks at the byte again."""

_STRUCTURE: Final = b"{}[]:,"
_DIGITS: Final = b"0123456789"
_LETTERS: Final = b"abcdefghijklmnopqrstuvwxyz"
_FINAL: Final = frozenset(["integer", "float", "keyword", "string", *"{}[]:,"])
_ERROR: Final = ("error", False)


def _make_row(*rules: tuple[bytes, str], ends: str | None = None) -> _Row:
    """Return a state's row; ``ends`` is the token that all other bytes end."""
    row: _Row = dict.fromkeys(range(256), (ends, True) if ends else _ERROR)
    for chars, state in rules:
        row.update(dict.fromkeys(chars, (state, False)))
    return row


def _make_string_rows(quote: bytes, name: str) -> dict[str, _Row]:
    printable = bytes(range(0x20, 0xFE))
    inside = ((printable, name), (b"\\", f"{name}-escape"), (quote, "string"))
    return {name: _make_row(*inside), f"{name}-escape": _make_row((printable, name))}


def _make_recovery_row() -> _Row:
    row: _Row = dict.fromkeys(range(256), ("recovery", False))
    resets = {*range(0x20), 0xFE, 0xFF, *_STRUCTURE} - {ord("\t")}
    row.update(dict.fromkeys(resets, ("start", True)))
    return row


_TABLE: Final[dict[str, _Row]] = {
    "start": _make_row(
        (b" \t\r\n", "start"),
        (b'"', "double"),
        (b"'", "single"),
        (b"0", "zero"),
        (b"123456789", "digits"),
        (b"-", "sign"),
        (_LETTERS, "word"),
        *((bytes([char]), chr(char)) for char in _STRUCTURE),
    ),
    **_make_string_rows(b'"', "double"),
    **_make_string_rows(b"'", "single"),
    "sign": _make_row((b"0", "zero"), (b"123456789", "digits")),
    "zero": _make_row((_DIGITS, "error"), (b".", "point"), ends="integer"),
    "digits": _make_row(
        (_DIGITS, "digits"), (b".", "point"), (b"eE", "exponent"), ends="integer"
    ),
    "point": _make_row((_DIGITS, "fraction")),
    "fraction": _make_row((_DIGITS, "fraction"), (b"eE", "exponent"), ends="float"),
    "exponent": _make_row((b"+-", "exponent-sign"), (_DIGITS, "exponent-digits")),
    "exponent-sign": _make_row((_DIGITS, "exponent-digits")),
    "exponent-digits": _make_row((_DIGITS, "exponent-digits"), ends="float"),
    "word": _make_row((_LETTERS, "word"), ends="keyword"),
    "recovery": _make_recovery_row(),
}


def _make_run_pattern(state: str) -> re.Pattern[bytes]:
    """Return a pattern for the bytes of one line that leave a state as it is."""
    chars = [byte for byte, next_ in _TABLE[state].items() if next_ == (state, False)]
    listed = b"".join(b"\\x%02x" % byte for byte in chars if byte != ord("\n"))
    return re.compile(b"[%b]+" % listed)


_RUNS: Final = {
    s: _make_run_pattern(s) for s in ("double", "single", "recovery", "start")
}


class Lexer:
    """Turns bytes into tokens, one at a time."""

    def __init__(self) -> None:
        self._pending = bytearray()
        self._at = 0
        self._state = "start"
        self._token = bytearray()
        self._line, self._column = 1, 0
        self._start = (1, 1)
        self._counted = False

    def feed(self, data: bytes) -> None:
        """Take bytes, in chunks of any size."""
        del self._pending[: self._at]
        self._at = 0
        self._pending += data

    @property
    def is_idle(self) -> bool:
        """Whether it is between two tokens, and has no bytes left to read."""
        left = self._at < len(self._pending)
        return self._state == "start" and not left and not self._counted

    def pass_over(self, line: bytes) -> None:
        """Count one line of whole tokens that another parser has read.

        The lexer must be idle.
        """
        self._column += len(line)
        if line.endswith(b"\n"):
            self._line += 1
            self._column = 0
        self._mark_start()

    def next_token(self) -> Token | None:
        """Return the next token; ``None`` if it needs more bytes."""
        while self._at < len(self._pending):
            self._skip_run()
            if self._at < len(self._pending) and (token := self._step()):
                return token
            if len(self._token) > MAX_TOKEN_SIZE:
                token = self._emit(self._state)
                self._state = "start"
                return token
        return None

    def _skip_run(self) -> None:
        """Skip bytes that leave the state as it is."""
        pattern = _RUNS.get(self._state)
        match = pattern and pattern.match(
            self._pending, self._at, self._at + MAX_TOKEN_SIZE
        )
        if not match or self._counted:
            return
        if self._state in {"double", "single"}:
            self._token += match[0]
        self._at = match.end()
        self._column += len(match[0])
        if self._state == "start":
            self._mark_start()

    def _step(self) -> Token | None:
        """Take one byte, and return the token that it ends, if any."""
        byte = self._pending[self._at]
        self._count(byte)
        state, again = _TABLE[self._state][byte]
        if not again:
            self._at += 1
            self._counted = False
            self._token.append(byte)
        self._state = state
        if state in _FINAL:
            token = self._emit(state)
            self._state = "start"
            self._mark_start()
            return token
        if state == "error":
            token = self._emit("error")
            self._state = "recovery"
            return token
        if state in {"start", "recovery"}:
            self._token.clear()
        if state == "start":
            self._mark_start()
        return None

    def _count(self, byte: int) -> None:
        """Advance the position. A byte that is looked at again counts once."""
        if self._counted:
            return
        self._counted = True
        self._column += 1
        if byte == ord("\n"):
            self._line += 1
            self._column = 0

    def _mark_start(self) -> None:
        # QEMU puts the next token's start behind the current character, even if that
        # character is looked at again.
        self._start = (self._line, self._column + 1)

    def _emit(self, kind: str) -> Token:
        token = Token(kind, bytes(self._token), *self._start)
        self._token.clear()
        return token
