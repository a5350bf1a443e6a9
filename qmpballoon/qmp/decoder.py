r"""Bytes in, JSON values out.

QMP puts nothing reliable between two messages: QEMU ends each with CRLF, spreads
one over many lines with ``pretty=on``, and some peers send no newline at all. So
the end of a message is where its brackets close, and nothing else.

Finding that place byte by byte in Python is slow, and parsing again and again
until it works is quadratic. Instead:

1. C-speed operations on bytes strip everything but the brackets, commas and colons
   that stand outside strings. Every byte is looked at once, however the stream is
   cut, and in pieces no longer than what came before them.
2. From those few the depth is counted, until it comes back to zero.
3. Then :mod:`json` is given the message, once. It finds the very place where it
   ends. It is also told to count the keys that it keeps: they are as many as there
   are colons, or some key is there twice.

Most messages are one short line that was received whole. Such a line is parsed
at once; only if it begins with no complete message does it go the way above.

A peer may be broken or hostile, so size, nesting and the number of tokens are
bounded before anything is parsed. QEMU's own parser has the same three limits,
64 MiB, 1024 levels and 2 Mi tokens; the defaults here are as large or smaller.
"""

from __future__ import annotations

import json
import math
import re
from bisect import bisect_left
from typing import Final, NoReturn

from attrs import frozen

from qmpballoon.errors import ProtocolError
from qmpballoon.qmp._shape import Shape

__all__ = ["Decoder", "Limits"]

_BLANK: Final = b" \t\r\n"
_BLANKS: Final = re.compile(rb"[ \t\r\n]*")
_SHORT: Final = 4096  # bytes; statistics have some 700
# Bytes that are looked at at once, at first and later: whatever follows the message
# is looked at in vain, and a piece has a price of its own.
_FIRST_PIECE: Final = 256
_LONGEST_PIECE: Final = 8192
_OPEN: Final = b"{["
_CLOSE: Final = b"}]"
_SURROGATE: Final = re.compile(rb"\\u[dD][89a-fA-F]")
_HINTS: Final = {
    b"QEMU ": "a human monitor (HMP); the VM needs a QMP one, such as "
    "-qmp unix:PATH,server=on,wait=off",
    b"HTTP/": "an HTTP server",
    b"SSH-": "an SSH server",
    b"RFB ": "a VNC server",
}


@frozen
class Limits:
    """What a peer may send in one message before it counts as broken.

    Attributes:
        size: Bytes in one message.
        depth: Levels of nested objects and arrays. Python's own parser gives up
            somewhat below a thousand.
        tokens: Values, keys and brackets in one message; a short message of many
            tiny values takes up far more memory than its own length.
    """

    size: int = 16 * 1024 * 1024
    depth: int = 512
    tokens: int = 2 * 1024 * 1024


class Decoder:
    """An incremental decoder for a stream of JSON objects.

    Feed it what was received with :meth:`feed`, then call :meth:`next` until it
    returns ``None``.

    After a :exc:`ProtocolError` the offending input is dropped, up to the end of
    its message, or of its line where no message could be made out. What follows
    is decoded as if nothing had happened.
    """

    def __init__(self, limits: Limits | None = None) -> None:
        self._limits = limits or Limits()
        self._short = min(_SHORT, self._limits.size)
        self._buffer = bytearray()
        self._start: int = 0  # where the message being received begins
        self._seen: int = 0  # how far its shape is known
        self._shape = _EMPTY
        self._skipping = False  # dropping the rest of a bad line

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Take in what was received; any length, cut anywhere."""
        del self._buffer[: self._start]
        self._seen -= self._start
        self._start = 0
        self._buffer += data

    @property
    def pending(self) -> int:
        """How many bytes of an incomplete message are held."""
        return len(self._buffer) - self._start

    def next(self) -> dict[str, object] | list[object] | None:
        """Return the next complete value, or ``None`` if more input is needed.

        Raises:
            ProtocolError: What was received is no JSON object or array, or
                exceeds the limits. Any other exception is a bug.
        """
        if self._start == len(self._buffer) or not self._find_start():
            return None
        if self._seen == self._start and (value := self._take_from_line()) is not None:
            return value
        while self._may_end():
            piece = self._next_piece()
            shape = self._shape.after(piece, self._limits.depth)
            self._check(shape, len(piece))
            if shape.closed:
                return self._take(piece, shape)
            self._shape = shape
            self._seen += len(piece)
        return None

    def _find_start(self) -> bool:
        """Move to the first byte of a message, if it has been received."""
        if self._skipping:
            self._skip_line()
        new = self._seen == self._start < len(self._buffer)
        if new and self._buffer[self._start] not in _OPEN:
            self._skip_blanks()
        return self.pending > 0

    def _skip_blanks(self) -> None:
        blanks = _BLANKS.match(self._buffer, self._start)
        self._move_to(blanks.end() if blanks else self._start)
        if self.pending and self._buffer[self._start] not in _OPEN:
            self._fail_at_start()

    def _skip_line(self) -> None:
        newline = self._buffer.find(b"\n", self._start)
        self._skipping = newline < 0
        self._move_to(len(self._buffer) if newline < 0 else newline + 1)

    def _move_to(self, start: int) -> None:
        """Have the next message begin at ``start``, or behind it."""
        self._start = self._seen = start
        self._shape = _EMPTY

    def _take_from_line(self) -> dict[str, object] | list[object] | None:
        """Take a message that a short line begins with; ``None`` if none does."""
        end = self._buffer.find(b"\n", self._start, self._start + self._short)
        line = self._buffer[self._start : max(end, self._start)]
        # Only what is within the limits even if all brackets and commas count.
        opened = line.count(b"{") + line.count(b"[")
        if not 0 < opened <= self._limits.depth or 2 * len(line) > self._limits.tokens:
            return None
        try:
            value, size = _parse(line)
        except ProtocolError:
            return None
        # What is left of the line is the CR of CRLF, as a rule.
        rest = line[size:].strip(_BLANK)
        self._start = self._seen = self._start + size if rest else end + 1
        return value

    def _may_end(self) -> bool:
        """Tell whether a look at what has come since the last one is worth it."""
        if self._seen + self._short <= len(self._buffer) or (
            self.pending > self._limits.size
        ):
            return True
        return any(self._buffer.find(bracket, self._seen) >= 0 for bracket in _CLOSE)

    def _next_piece(self) -> bytes:
        """Return the bytes to be looked at next, as long as the message up to them."""
        size = min(max(_FIRST_PIECE, self._seen - self._start), _LONGEST_PIECE)
        # Not beyond the limit, and one byte at least: then it is beyond it.
        left = max(self._start + self._limits.size - self._seen, 1)
        end = self._seen + min(size, left)
        return bytes(memoryview(self._buffer)[self._seen : end])

    def _check(self, shape: Shape, more: int) -> None:
        """Refuse a message that goes beyond the limits with so many bytes more."""
        limits = self._limits
        if self._seen + more > self._start + limits.size:
            self._fail(f"a message of more than {limits.size} bytes")
        if shape.tokens > limits.tokens:
            self._fail(f"a message of more than {limits.tokens} tokens")
        if shape.deepest > limits.depth:
            self._fail(f"a message nested over {limits.depth} levels deep")

    def _take(self, piece: bytes, shape: Shape) -> dict[str, object] | list[object]:
        """Parse and remove the message that ends within ``piece``."""
        end = self._seen + len(piece)
        message = bytes(memoryview(self._buffer)[self._start : end])
        try:
            value, size = _parse(message, shape.keys)
        except ProtocolError:
            before, bound = self._shape, self._limits.depth
            length = bisect_left(
                range(1, len(piece)),
                True,  # noqa: FBT003 - what is looked for
                key=lambda size: before.after(piece[:size], bound).closed,
            )
            self._move_to(self._seen + length + 1)
            raise
        self._move_to(self._start + size)
        return value

    def _fail_at_start(self) -> NoReturn:
        sample = bytes(self._buffer[self._start : self._start + 40])
        for prefix, hint in _HINTS.items():
            if sample.startswith(prefix):
                self._fail(f"this is {hint}")
        self._fail(f"a message starts with {sample!r}")

    def _fail(self, what: str) -> NoReturn:
        """Drop the line that holds the current message, and report it."""
        self._start = self._seen
        self._skip_line()
        raise _not_qmp(what)


def _parse(
    message: bytes | bytearray, keys: int | None = None
) -> tuple[dict[str, object] | list[object], int]:
    """Return the value that ``message`` begins with, and how many bytes it takes.

    Args:
        message: More may follow it, of which nothing need be any good.
        keys: How many keys are written in it, to see quickly if some are the same.
    """
    bad: UnicodeDecodeError | None = None
    try:
        text = message.decode()
    except UnicodeDecodeError as error:  # of what follows, it may be
        bad, text = error, message[: error.start].decode()
    try:
        value, size = _parse_text(text, keys)
        if b"\\u" in message and _SURROGATE.search(message):
            _refuse_lone_surrogates(value)
    # UnicodeError and JSONDecodeError are ValueErrors, as is a number of too
    # many digits.
    except (ValueError, RecursionError) as error:
        raise _not_qmp(f"{bad or error} in {bytes(message[:80])!r}") from None
    return value, size if text.isascii() else len(text[:size].encode())


def _parse_text(
    text: str, keys: int | None
) -> tuple[dict[str, object] | list[object], int]:
    if keys is None:
        return _JSON.raw_decode(text)
    kept = 0

    def count(members: dict[str, object]) -> dict[str, object]:
        nonlocal kept
        kept += len(members)
        return members

    fast = json.JSONDecoder(
        parse_constant=_refuse_constant, parse_float=_finite, object_hook=count
    )
    value: dict[str, object] | list[object]
    value, size = fast.raw_decode(text)
    # Not only a key that is there twice makes the difference, but also colons behind
    # the end.
    return (value, size) if kept == keys else _JSON.raw_decode(text)


def _not_qmp(what: str) -> ProtocolError:
    return ProtocolError(f"the peer does not speak QMP: {what}")


def _refuse_lone_surrogates(value: object) -> None:
    # They are legal for json and cannot be encoded by anything downstream.
    json.dumps(value, ensure_ascii=False).encode("utf-8")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON value")


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"the number {text:.40} is too large")
    return number


def _unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("an object with the same key twice")
    return members


_EMPTY: Final = Shape()
_JSON: Final = json.JSONDecoder(
    parse_constant=_refuse_constant,
    parse_float=_finite,
    object_pairs_hook=_unique_keys,
)
