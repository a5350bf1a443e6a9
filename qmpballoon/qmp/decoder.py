r"""Bytes in, JSON values out.

QMP puts nothing reliable between two messages: QEMU ends each with CRLF, spreads
one over many lines with ``pretty=on``, and some peers send no newline at all. So
the end of a message is where its brackets close, and nothing else.

Finding that place byte by byte in Python is slow, and parsing again and again
until it works is quadratic. Instead:

1. A message can only end at a closing bracket that no comma, quote or closing
   bracket follows. A regular expression finds these few places.
2. Up to each of them, C-speed operations on bytes strip everything but the
   brackets that stand outside strings, and count those. Every byte is looked at
   once, however the stream is cut.
3. A message whose brackets are closed is given to :mod:`json`, once.

Most messages are one short line that was received whole. Such a line is parsed
at once; only if it begins with no complete message does it go the way above.

A peer may be broken or hostile, so size, nesting and the number of tokens are
bounded before anything is parsed. QEMU's own parser has the same three limits,
64 MiB, 1024 levels and 2 Mi tokens; the defaults here are as large or smaller.
"""

from __future__ import annotations

import json
import re
from itertools import accumulate
from typing import Final, NoReturn

from attrs import frozen

from qmpballoon.errors import ProtocolError

__all__ = ["Decoder", "Limits"]

_BLANK: Final = b" \t\r\n"
_BLANKS: Final = re.compile(rb"[ \t\r\n]*")
# Where a message can end; see above. Inside strings it matches too often, which
# costs a little time and nothing else.
_MAYBE_END: Final = re.compile(rb"[}\]](?=[ \t\r\n]*(?:[^ \t\r\n,}\]\"]|\Z))")
_NOT_SHAPE: Final = bytes(byte for byte in range(256) if byte not in b'{}[]"')
_SHORT: Final = 4096  # bytes; statistics have some 700
_OPEN: Final = b"{["
_CLOSE: Final = b"}]"
_STEP: Final = tuple((byte in _OPEN) - (byte in _CLOSE) for byte in range(256))
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
        self._seen: int = 0  # how far its brackets have been counted
        self._skipping = False  # dropping the rest of a bad line
        self._reset_shape()

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
        while (end := self._possible_end()) is not None:
            self._count_brackets(end)
            if self._depth <= 0:
                return self._take(end)
        self._count_brackets(len(self._buffer))
        # Closed, though nothing looked like an end: a comma follows, or a quote.
        return self._take(len(self._buffer)) if self._depth <= 0 else None

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
        self._start = self._seen = blanks.end() if blanks else self._start
        if self.pending and self._buffer[self._start] not in _OPEN:
            self._fail_at_start()

    def _skip_line(self) -> None:
        newline = self._buffer.find(b"\n", self._start)
        self._skipping = newline < 0
        self._start = self._seen = len(self._buffer) if newline < 0 else newline + 1
        self._reset_shape()

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

    def _possible_end(self) -> int | None:
        # At most up to the limit: a longer message is refused, not searched.
        stop = self._start + self._limits.size
        match = _MAYBE_END.search(self._buffer, self._seen, stop)
        return match.end() if match else None

    def _reset_shape(self) -> None:
        self._depth = 0
        self._tokens = 0
        self._in_string = False
        self._escaped = False  # the last byte seen was a backslash in force

    def _count_brackets(self, end: int) -> None:
        """Take the bytes up to ``end`` into the shape of the current message."""
        if end - self._start > self._limits.size:
            self._seen = self._start + self._limits.size
            self._fail(f"a message of more than {self._limits.size} bytes")
        chunk = bytes(memoryview(self._buffer)[self._seen : end])
        self._seen = end
        # Every token but a bracket or the last value has one of these behind it.
        # Those inside strings are counted too: the bound errs on the safe side.
        self._tokens += 2 * (chunk.count(b",") + chunk.count(b":"))
        outside = self._outside_strings(chunk)
        opened = outside.count(b"{") + outside.count(b"[")
        self._tokens += len(outside)
        if self._tokens > self._limits.tokens:
            self._fail(f"a message of more than {self._limits.tokens} tokens")
        if self._depth + opened > self._limits.depth:
            steps = accumulate(map(_STEP.__getitem__, outside), initial=self._depth)
            if max(steps) > self._limits.depth:
                self._fail(f"a message nested over {self._limits.depth} levels deep")
        self._depth += 2 * opened - len(outside)

    def _outside_strings(self, chunk: bytes) -> bytes:
        """Return the brackets of ``chunk`` that do not stand inside strings."""
        if self._escaped:
            chunk, self._escaped = chunk[1:], not chunk
        if b"\\" in chunk:
            self._escaped = (len(chunk) - len(chunk.rstrip(b"\\"))) % 2 == 1
            chunk = chunk.replace(b"\\\\", b"").replace(b'\\"', b"")
        shape = chunk.translate(None, _NOT_SHAPE)
        if self._in_string:
            shape = b'"' + shape
        # Strings without brackets are now pairs of quotes. Dropping the closing
        # quote of one and the opening quote of the next makes one string of the
        # two, which changes nothing: it is skipped either way.
        parts = shape.replace(b'""', b"").split(b'"')
        self._in_string = len(parts) % 2 == 0
        return b"".join(parts[::2])

    def _take(self, end: int) -> dict[str, object] | list[object]:
        """Parse and remove the message that ends at ``end``."""
        message = bytes(memoryview(self._buffer)[self._start : end])
        self._start = self._seen = end
        self._reset_shape()
        value, size = _parse(message)
        if size < len(message):
            raise _not_qmp(f"something follows a message: {message[size:][:40]!r}")
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


def _parse(message: bytes | bytearray) -> tuple[dict[str, object] | list[object], int]:
    """Return the value that ``message`` begins with, and how many bytes it takes."""
    try:
        text = message.decode()
        value: dict[str, object] | list[object]
        value, size = _JSON.raw_decode(text)
        if b"\\u" in message:
            _refuse_lone_surrogates(value)
    # UnicodeError and JSONDecodeError are ValueErrors, as is a number of too
    # many digits.
    except (ValueError, RecursionError) as error:
        raise _not_qmp(f"{error} in {bytes(message[:80])!r}") from None
    return value, size if text.isascii() else len(text[:size].encode())


def _not_qmp(what: str) -> ProtocolError:
    return ProtocolError(f"the peer does not speak QMP: {what}")


def _refuse_lone_surrogates(value: object) -> None:
    # They are legal for json and cannot be encoded by anything downstream.
    json.dumps(value, ensure_ascii=False).encode("utf-8")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON value")


def _unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("an object with the same key twice")
    return members


_JSON: Final = json.JSONDecoder(
    parse_constant=_refuse_constant, object_pairs_hook=_unique_keys
)
