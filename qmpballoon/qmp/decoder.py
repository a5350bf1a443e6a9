r"""Turns bytes into JSON values.

QMP has no reliable separator between messages: QEMU ends each with CRLF, ``pretty=on``
spreads one over many lines, and some peers send no newline at all. So a message ends
where its brackets close.

Finding that place byte by byte is slow in Python. Parsing again with each read, until
that succeeds, takes quadratic time. Instead:

1. Operations on bytes, which run at C speed, remove everything but the brackets, commas
   and colons outside strings. Each byte is looked at once, however the stream is cut.
   The pieces are never longer than the part of the message before them.
2. The remaining few bytes give the depth, until it returns to zero.
3. Then :mod:`json` parses the message, once, and finds its exact end. The keys that it
   keeps are counted: if they are fewer than the colons, a key occurs twice.

Most messages are one short line that was received whole. Such a line is parsed at once.
It is scanned as above only if it does not begin with a complete message.

A peer may be broken or hostile, so size, depth and number of tokens are limited before
anything is parsed. QEMU's own parser has the same three limits: 64 MiB, 1024 levels and
2 Mi tokens. The defaults here are as large or smaller. A program may have thousands of
peers. So what all decoders together hold of unfinished messages is limited, too.
"""

from __future__ import annotations

import json
import math
import re
import weakref
from bisect import bisect_left
from itertools import accumulate
from typing import TYPE_CHECKING, Final, NoReturn

from attrs import field, frozen

from qmpballoon.errors import ProtocolError

if TYPE_CHECKING:
    from collections.abc import Generator

__all__ = ["Decoder", "Limits"]

_BLANK: Final = b" \t\r\n"
_BLANKS: Final = re.compile(rb"[ \t\r\n]*")
# Bytes of a line that is parsed at once; a reply with statistics has about 700.
_SHORT: Final = 4096
# Bytes to scan at once, at first and later. A compromise: bytes after the message's end
# are scanned in vain, but each piece has a fixed cost.
_FIRST_PIECE: Final = 256
_LONGEST_PIECE: Final = 8192
_OPEN: Final = b"{["
_CLOSE: Final = b"}]"
_IRRELEVANT: Final = bytes(byte for byte in range(256) if byte not in b'{}[],:"')
# Bytes of an unfinished message that each decoder may hold whatever the others hold: 90
# times a reply with statistics.
_ALLOWANCE: Final = 64 * 1024
# Bytes that all decoders with more than the allowance may hold together. It is QEMU's
# own limit for one message, and room for four of the longest ones here.
_TOTAL: Final = 64 * 1024 * 1024
_SQUARE_TO_CURLY: Final = bytes.maketrans(b"[]", b"{}")
# How often to remove pairs of brackets; QEMU's own messages nest less deep.
_PASSES: Final = 16
# How each byte changes the depth, as a signed number.
_STEPS: Final = bytes.maketrans(b"{},:", bytes([1, 255, 0, 0]))
_SURROGATE: Final = re.compile(rb"\\u[dD][89a-fA-F]")
_HINTS: Final = {
    b"QEMU ": "a human monitor (HMP); the VM needs a QMP one, such as "
    "-qmp unix:PATH,server=on,wait=off",
    b"HTTP/": "an HTTP server",
    b"\xff": "a telnet monitor; leave telnet=on out",  # IAC, which no UTF-8 contains
    b"SSH-": "an SSH server",
    b"RFB ": "a VNC server",
}


# What each decoder with more than its allowance holds, by its identity.
_held: Final[dict[int, int]] = {}


@frozen
class Limits:
    """What a peer may send in one message before it counts as broken.

    Attributes:
        size: Bytes in one message.
        depth: Levels of nested objects and arrays. Python's own parser fails
            somewhat below a thousand.
        tokens: Values, keys and brackets in one message. A short message of many tiny
            values takes far more memory than its own length.
    """

    size: int = 16 * 1024 * 1024
    depth: int = 512
    tokens: int = 2 * 1024 * 1024


_DEFAULT_LIMITS: Final = Limits()


class Decoder:
    """An incremental decoder for a stream of JSON objects.

    Give received bytes to :meth:`feed`, then call :meth:`next` until it returns
    ``None``.

    After a :exc:`ProtocolError` the bad input is dropped up to the end of its message,
    or of its line if there is no message to be found. What follows is decoded as usual.

    Args:
        limits: What the peer may send in one message.
    """

    def __init__(self, limits: Limits | None = None) -> None:
        self._limits = limits or _DEFAULT_LIMITS
        self._short = min(_SHORT, self._limits.size)
        self._buffer = bytearray()
        self._start: int = 0  # where the message being received begins
        self._seen: int = 0  # how far it was scanned
        self._scan = _NOT_SCANNED
        self._skipping = False  # dropping the rest of a bad line
        self._is_counted = False  # among those that hold more than their allowance
        self._finalizer: weakref.finalize[..., Decoder] | None = None

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Take received bytes in; they may be cut anywhere."""
        if self._start:
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
            ProtocolError: The bytes are no JSON object or array, or exceed the limits.
                Any other exception is a bug.
        """
        if self._is_counted:
            self._count(0)
        if not self._find_start():
            return None
        if self._seen == self._start and (value := self._take_from_line()) is not None:
            return value
        while self._may_end():
            piece = self._next_piece()
            scan = self._scan.extend(piece, self._limits.depth)
            self._check_limits(scan, len(piece))
            if scan.closed:
                return self._take(piece, scan)
            self._scan = scan
            self._seen += len(piece)
        if self.pending > _ALLOWANCE:
            self._count(self.pending)
        return None

    def clear(self) -> None:
        """Drop what is held: nothing more will come."""
        self._buffer.clear()
        self._move_to(0)
        if self._is_counted:
            self._count(0)

    def _count(self, size: int) -> None:
        """Count what is held together with what all other decoders hold."""
        if size == 0:
            _held.pop(id(self), None)
            self._is_counted = False
            return
        if sum(_held.copy().values()) + size > _TOTAL:
            self._seen = len(self._buffer)
            self._fail("one of too many long messages that are not finished")
        if self._finalizer is None:  # not every decoder is cleared in the end
            self._finalizer = weakref.finalize(self, _held.pop, id(self), None)
        self._is_counted = True
        _held[id(self)] = size

    def _find_start(self) -> bool:
        """Move to the first byte of a message, if it has been received."""
        if self._skipping:
            self._skip_line()
        buffer, start = self._buffer, self._start
        if start == len(buffer):
            if start:  # a thousand decoders are not to hold what they have decoded
                buffer.clear()
                self._move_to(0)
            return False
        if self._seen == start and buffer[start] not in _OPEN:
            self._skip_blanks()
        return len(buffer) > self._start

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
        """Let the next message begin at ``start`` or later."""
        self._start = self._seen = start
        self._scan = _NOT_SCANNED

    def _take_from_line(self) -> dict[str, object] | list[object] | None:
        """Remove and return the message at the beginning of a short line, if any."""
        start, limits = self._start, self._limits
        end = self._buffer.find(b"\n", start, start + self._short)
        if end < 0:
            return None
        line = self._buffer[start:end]
        # Only if it is within the limits even if all brackets and commas count.
        opened = line.count(b"{") + line.count(b"[")
        if opened > limits.depth or 2 * len(line) > limits.tokens:
            return None
        try:
            value, size = _parse(line)
        except ProtocolError:
            return None
        # The rest of the line is usually the CR of CRLF.
        rest = line[size:].strip(_BLANK)
        self._start = self._seen = start + size if rest else end + 1
        return value

    def _may_end(self) -> bool:
        """Tell whether the message may have ended since the last scan."""
        if self._seen + self._short <= len(self._buffer) or (
            self.pending > self._limits.size
        ):
            return True
        return any(self._buffer.find(bracket, self._seen) >= 0 for bracket in _CLOSE)

    def _next_piece(self) -> bytes:
        """Return the bytes to scan next: as many as were scanned before."""
        size = min(max(_FIRST_PIECE, self._seen - self._start), _LONGEST_PIECE)
        # Not beyond the limit, but one byte at least: with it the limit is exceeded.
        left = max(self._start + self._limits.size - self._seen, 1)
        end = self._seen + min(size, left)
        return bytes(memoryview(self._buffer)[self._seen : end])

    def _check_limits(self, scan: MessageScan, more: int) -> None:
        """Refuse a message that exceeds the limits with ``more`` further bytes."""
        limits = self._limits
        if self._seen + more > self._start + limits.size:
            self._fail(f"a message of more than {limits.size} bytes")
        if scan.tokens > limits.tokens:
            self._fail(f"a message of more than {limits.tokens} tokens")
        if scan.deepest > limits.depth:
            self._fail(f"a message nested over {limits.depth} levels deep")

    def _take(
        self, piece: bytes, scan: MessageScan
    ) -> dict[str, object] | list[object]:
        """Parse and remove the message that ends in ``piece``."""
        end = self._seen + len(piece)
        message = bytes(memoryview(self._buffer)[self._start : end])
        try:
            value, size = _parse(message, scan.keys)
        except ProtocolError:
            before, bound = self._scan, self._limits.depth
            length = bisect_left(
                range(1, len(piece)),
                True,  # noqa: FBT003 - what is looked for
                key=lambda size: before.extend(piece[:size], bound).closed,
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
        """Drop the line with the current message, and raise an error for it."""
        self._start = self._seen
        self._skip_line()
        raise _make_error(what)


@frozen
class MessageScan:
    """The brackets, keys and tokens of a message, up to where it was scanned.

    Attributes:
        depth: How many brackets are open.
        deepest: The largest depth so far. As long as it is at most the ``bound`` of
            :meth:`extend`, it may be an overestimate, but never above that bound.
        tokens: Values, keys and brackets.
        keys: Keys; a repeated key counts each time.
        closed: Whether the message has ended. Bytes after its end are not counted.
    """

    depth: int = 0
    deepest: int = 0
    tokens: int = 0
    keys: int = 0
    closed: bool = False
    _in_string: bool = field(default=False, alias="in_string")
    # The last byte was a backslash that escapes the next one.
    _escaped: bool = field(default=False, alias="escaped")

    def extend(self, piece: bytes, bound: int) -> MessageScan:
        """Return the scan that includes the next bytes, at least one.

        Args:
            piece: The next bytes.
            bound: The depth that is allowed; a larger one is counted exactly.
        """
        outside, in_string, escaped = self._strip_strings(piece)
        opened = outside.count(b"{")
        deepest = self.depth + opened
        if deepest > bound or self._may_close(outside):
            steps = memoryview(outside.translate(_STEPS)).cast("b")
            depths = list(accumulate(steps, initial=self.depth))
            end = next((n for n, depth in enumerate(depths) if n and depth <= 0), None)
            outside = outside[:end]
            opened = outside.count(b"{")
            deepest = max(depths[: len(outside) + 1])
        keys = outside.count(b":")
        separators = keys + outside.count(b",")
        depth = self.depth + 2 * opened + separators - len(outside)
        return MessageScan(
            depth=depth,
            deepest=max(self.deepest, deepest),
            # Every token except brackets and last values is followed by a separator.
            tokens=self.tokens + len(outside) + separators,
            keys=self.keys + keys,
            closed=depth <= 0,
            in_string=in_string,
            escaped=escaped,
        )

    def _may_close(self, outside: bytes) -> bool:
        """Tell whether the message may end among these bytes.

        Pairs of brackets with nothing in between are removed until there are none. The
        closing brackets that are then at the beginning close brackets opened before.
        """
        brackets = outside.translate(None, b",:")
        if self.depth == 0:  # the message's own bracket must stay
            brackets = brackets[1:]
        for _ in range(_PASSES):
            before = len(brackets)
            brackets = brackets.replace(b"{}", b"")
            if len(brackets) == before:
                return before - len(brackets.lstrip(b"}")) >= max(self.depth, 1)
        return True

    def _strip_strings(self, piece: bytes) -> tuple[bytes, bool, bool]:
        """Return the brackets, commas and colons of a piece that are outside strings.

        Square brackets come back as curly ones. The second value tells whether the
        piece ends in a string, the third whether it ends with an escaping backslash.
        """
        escaped = False
        if self._escaped and piece[:1] in {b'"', b"\\"}:
            piece = piece[1:]
        if b"\\" in piece:
            escaped = (len(piece) - len(piece.rstrip(b"\\"))) % 2 == 1
            piece = piece.replace(b"\\\\", b"").replace(b'\\"', b"")
        left = piece.translate(_SQUARE_TO_CURLY, _IRRELEVANT)
        if self._in_string:
            left = b'"' + left
        # Strings without brackets, commas and colons are now pairs of quotes. Removing
        # such a pair may also join two neighbouring strings into one. That changes
        # nothing, because both are skipped.
        parts = left.replace(b'""', b"").split(b'"')
        return b"".join(parts[::2]), len(parts) % 2 == 0, escaped


def _parse(
    message: bytes | bytearray, keys: int | None = None
) -> tuple[dict[str, object] | list[object], int]:
    """Return the value at the beginning of some bytes, and how many bytes it takes.

    Args:
        message: The message. Anything may follow it.
        keys: How many keys it has, if known; this saves looking for repeated ones.
    """
    bad: UnicodeDecodeError | None = None
    try:
        text = message.decode()
    except UnicodeDecodeError as error:  # perhaps after the message
        bad, text = error, message[: error.start].decode()
    try:
        value, size = _parse_text(text, keys)
        # One byte is found ten times as fast as two.
        if b"\\" in message and _SURROGATE.search(message):
            _refuse_lone_surrogates(value)
    # UnicodeError and JSONDecodeError are ValueErrors, as is a number of too
    # many digits.
    except (ValueError, RecursionError) as error:
        raise _make_error(f"{bad or error} in {bytes(message[:80])!r}") from None
    return value, size if text.isascii() else len(text[:size].encode())


def _parse_text(
    text: str, keys: int | None
) -> tuple[dict[str, object] | list[object], int]:
    if keys is None:
        return _JSON.raw_decode(text)
    kept = 0

    def count() -> Generator[dict[str, object], dict[str, object], None]:
        """Return each object that is sent: faster than a function that is called."""
        nonlocal kept
        members: dict[str, object] = {}
        while True:
            members = yield members
            kept += len(members)

    counting = count()
    next(counting)
    fast = json.JSONDecoder(
        parse_constant=_refuse_constant,
        parse_float=_parse_float,
        object_hook=counting.send,
    )
    value: dict[str, object] | list[object]
    value, size = fast.raw_decode(text)
    # The numbers also differ if there are colons after the message's end.
    return (value, size) if kept == keys else _JSON.raw_decode(text)


def _make_error(what: str) -> ProtocolError:
    return ProtocolError(f"the peer does not speak QMP: {what}")


def _refuse_lone_surrogates(value: object) -> None:
    # The json module accepts them, but no text with them can be encoded.
    json.dumps(value, ensure_ascii=False).encode("utf-8")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON value")


def _parse_float(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"the number {text:.40} is too large")
    return number


def _build_object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("an object with the same key twice")
    return members


_NOT_SCANNED: Final = MessageScan()
_JSON: Final = json.JSONDecoder(
    parse_constant=_refuse_constant,
    parse_float=_parse_float,
    object_pairs_hook=_build_object,
)
