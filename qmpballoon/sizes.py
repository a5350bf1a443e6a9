"""Reading and writing sizes as text.

The library counts in bytes. Only this module converts between text and bytes, so that
``2G`` means the same everywhere. As in QEMU's own options, ``K``, ``M``, ``G``, ``T``
and ``P`` are powers of 1024; only ``kB``, ``MB``, ``GB`` and so on are powers of 1000.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from qmpballoon._checks import LARGEST_SIZE

if TYPE_CHECKING:
    from fractions import Fraction

__all__ = ["GiB", "KiB", "MiB", "PiB", "TiB", "format_size", "parse_size"]

# Spelled as the units are: constants in capitals, such as GIB, would be misread.
KiB: Final = 1 << 10
"""1024 bytes."""
MiB: Final = 1 << 20
"""1024 KiB."""
GiB: Final = 1 << 30
"""1024 MiB."""
TiB: Final = 1 << 40
"""1024 GiB."""
PiB: Final = 1 << 50
"""1024 TiB."""

_SYMBOLS: Final = "KMGTP"
_FACTORS: Final = {
    "B": 1,
    **{symbol: 1 << 10 * n for n, symbol in enumerate(_SYMBOLS, 1)},
    **{f"{symbol}IB": 1 << 10 * n for n, symbol in enumerate(_SYMBOLS, 1)},
    **{f"{symbol}B": 1000**n for n, symbol in enumerate(_SYMBOLS, 1)},
}

# Characters. No size is longer; a longer text is refused before it is parsed, because
# converting many digits takes quadratic time.
_LONGEST: Final = 64
_SIZE: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*(%|[A-Za-z]*)")


def parse_size(text: str, *, whole: int | None = None) -> int:
    """Read a size.

    Args:
        text: ``"4096"`` (bytes), ``"512MiB"``, ``"1.5G"``, ``"200 MB"``, or a share of
            ``whole`` such as ``"50%"``, which may be more than 100 %. Upper and lower
            case mean the same. A fraction of a byte is dropped.
        whole: The size that 100 % is, in bytes. Without it percentages are refused.

    Returns:
        Bytes, from 0 to 2^63 - 1.

    Raises:
        TypeError: ``text`` is not text.
        ValueError: ``text`` is not a size; the message shows how to write one.
    """
    from fractions import Fraction  # noqa: PLC0415 - most programs parse no size

    text = _require_text(text)
    shown = repr(text if len(text) <= _LONGEST else text[:_LONGEST] + "...")
    match = _SIZE.fullmatch(text.strip()) if len(text) <= _LONGEST else None
    if match is None:
        raise ValueError(
            f"{shown} is not a size: write bytes, or like 512MiB, 1.5G or 50%"
        )
    number, unit = Fraction(match[1]), match[2].upper()
    if unit == "%":
        return _take_share(number, shown, whole)
    if unit not in _FACTORS and unit:
        raise ValueError(f"{shown} has an unknown unit: use K, M, G or T, as in 512M")
    if not unit and number.denominator != 1:
        raise ValueError(
            f"{shown} is a fraction of a byte: add a unit, as in {match[1]}G"
        )
    size = int(number * _FACTORS.get(unit, 1))
    if size > LARGEST_SIZE:
        raise ValueError(f"{shown} is more than QEMU accepts: give less than 8192P")
    return size


def _require_text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"the size is {value!r:.80}: it must be text, like 512MiB")
    return value


def _require_whole(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(
            f"the size is {value!r:.80}: it must be a whole number of bytes"
        )
    return value


def _take_share(percent: Fraction, shown: str, whole: int | None) -> int:
    if whole is None:
        raise ValueError(
            f"{shown} is a share, but there is no whole to take it of: give a size"
        )
    size = int(whole * percent / 100)
    if size > LARGEST_SIZE:
        raise ValueError(f"{shown} is more than QEMU accepts: give less than 8192P")
    return size


def format_size(size: int) -> str:
    """Return a size as text for people: ``"1.5 GiB"``, ``"512 MiB"``, ``"0 B"``.

    Args:
        size: Bytes; may be negative, as a difference.

    Returns:
        The size in the largest binary unit of which it has one or more, with at most
        one decimal.

    Raises:
        TypeError: ``size`` is not an integer. Floats are refused, as they can be
            infinite or NaN.
    """
    size = _require_whole(size)
    sign, size = ("-" if size < 0 else ""), abs(size)
    if size < KiB:
        return f"{sign}{size} B"
    tenths, symbol = 0, ""
    for n, symbol in enumerate(_SYMBOLS, 1):
        tenths = round(size * 10 / (1 << 10 * n))
        # Compared after rounding: 1 GiB less a byte must not become "1024 MiB".
        if tenths < 10 * KiB or symbol == _SYMBOLS[-1]:
            break
    decimal = f".{tenths % 10}" if tenths % 10 else ""
    return f"{sign}{tenths // 10}{decimal} {symbol}iB"
