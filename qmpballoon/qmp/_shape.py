"""How far a message has come, told from its bytes without parsing it.

Only what stands outside strings matters for that, and only brackets, commas and
colons: operations on bytes that run at C speed strip all the rest. The few bytes
that are left are counted, at C speed again, unless a message may end among them.
"""

from __future__ import annotations

from itertools import accumulate
from typing import Final

from attrs import field, frozen

__all__ = ["Shape"]

_OTHERS: Final = bytes(byte for byte in range(256) if byte not in b'{}[],:"')
_ALIKE: Final = bytes.maketrans(b"[]", b"{}")
_PASSES: Final = 16  # through the brackets of a piece; QEMU's own nest less deep
# As signed numbers: what each of them does to the depth.
_STEPS: Final = bytes.maketrans(b"{},:", bytes([1, 255, 0, 0]))


@frozen
class Shape:
    """What is known of a message, from its beginning to somewhere.

    Attributes:
        depth: How many brackets are open.
        deepest: How many there were at most. While their number is within the bound
            that :meth:`after` is given it may be too high, up to that number.
        tokens: Values, keys and brackets.
        keys: Keys; the same one twice counts twice.
        closed: Whether the message has ended. What followed it is not counted.
    """

    depth: int = 0
    deepest: int = 0
    tokens: int = 0
    keys: int = 0
    closed: bool = False
    _in_string: bool = field(default=False, alias="in_string")
    # The last byte was a backslash in force.
    _escaped: bool = field(default=False, alias="escaped")

    def after(self, piece: bytes, bound: int) -> Shape:
        """Return the shape with some more bytes, at least one.

        Args:
            piece: What comes next.
            bound: How many levels are nothing remarkable.
        """
        outside, in_string, escaped = self._outside_strings(piece)
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
        return Shape(
            depth=depth,
            deepest=max(self.deepest, deepest),
            # Every token but a bracket or the last value has a separator behind it.
            tokens=self.tokens + len(outside) + separators,
            keys=self.keys + keys,
            closed=depth <= 0,
            in_string=in_string,
            escaped=escaped,
        )

    def _may_close(self, outside: bytes) -> bool:
        """Tell whether the message may end within these bytes, not only behind them.

        Pairs of brackets with nothing in between are dropped until none is left: then
        the closing ones that lead close what was open before.
        """
        brackets = outside.translate(None, b",:")
        if self.depth == 0:  # the very first one would vanish with its partner
            brackets = brackets[1:]
        for _ in range(_PASSES):
            before = len(brackets)
            brackets = brackets.replace(b"{}", b"")
            if len(brackets) == before:
                return before - len(brackets.lstrip(b"}")) >= max(self.depth, 1)
        return True

    def _outside_strings(self, piece: bytes) -> tuple[bytes, bool, bool]:
        """Return what counts of a piece, square brackets as curly ones.

        And whether it leaves off in a string, and behind a backslash.
        """
        escaped = False
        if self._escaped and piece[:1] in {b'"', b"\\"}:
            piece = piece[1:]
        if b"\\" in piece:
            escaped = (len(piece) - len(piece.rstrip(b"\\"))) % 2 == 1
            piece = piece.replace(b"\\\\", b"").replace(b'\\"', b"")
        left = piece.translate(_ALIKE, _OTHERS)
        if self._in_string:
            left = b'"' + left
        # Strings in which nothing counts are now pairs of quotes. Dropping the closing
        # quote of one and the opening quote of the next makes one string of the two,
        # which changes nothing: it is skipped either way.
        parts = left.replace(b'""', b"").split(b'"')
        return b"".join(parts[::2]), len(parts) % 2 == 0, escaped
