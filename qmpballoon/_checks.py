"""Checks of arguments, before anything is sent, and of QEMU's answers.

The message of each error is one line. It names the argument and what it must be.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from typing import TypeGuard

__all__ = [
    "LARGEST_PORT",
    "LARGEST_SIZE",
    "is_interval",
    "is_size",
    "read_port",
    "require_callback",
    "require_command",
    "require_count",
    "require_finite_seconds",
    "require_flag",
    "require_interval",
    "require_kind",
    "require_seconds",
    "require_size",
]

_MAX_INTERVAL = 2**32 - 1  # seconds; QEMU refuses longer intervals
LARGEST_SIZE = 2**63 - 1
"""Bytes; QMP's integers are signed and have 64 bits."""
LARGEST_PORT = 65535
"""TCP's ports have 16 bits."""
_PORT_DIGITS = 9  # with zeros before it; int() refuses thousands of digits


def read_port(text: str) -> int | None:
    """Return the number of a TCP port, 0 and more; ``None`` if the text is no number.

    Raises:
        ValueError: The number is too large.
    """
    # int() also accepts "+1", "1_0" and digits of other scripts.
    if not (text.isascii() and text.isdigit()):
        return None
    if len(text) > _PORT_DIGITS or int(text) > LARGEST_PORT:
        raise ValueError(
            f"the TCP port {text[:20]} is too large: give {LARGEST_PORT} or less"
        )
    return int(text)


def is_size(value: object) -> TypeGuard[int]:
    """Tell whether a value can be a number of bytes in QMP."""
    return _is_whole(value, LARGEST_SIZE)


def is_interval(value: object) -> TypeGuard[int]:
    """Tell whether a value can be a statistics interval in whole seconds."""
    return _is_whole(value, _MAX_INTERVAL)


def _is_whole(value: object, largest: int) -> bool:
    return (
        isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= largest
    )


def require_size(value: object, name: str, *, minimum: int = 0) -> int:
    """Return ``value`` if it is a number of bytes, at least ``minimum``.

    Raises:
        TypeError: It is not an integer. Whole floats are refused too, as QEMU does.
        ValueError: It is out of range.
    """
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} is {value!r}: it must be a whole number of bytes")
    if value < minimum:
        raise ValueError(f"{name} is {value}: it must be at least {minimum} bytes")
    if value > LARGEST_SIZE:
        raise ValueError(f"{name} is {value}: it must be at most {LARGEST_SIZE} bytes")
    return value


def require_finite_seconds(value: object, name: str) -> float:
    """Return ``value`` if it is a number of seconds, and a time that ends.

    Raises:
        TypeError: It is not a number.
        ValueError: It is out of range.
    """
    seconds = require_seconds(value, name)
    if math.isinf(seconds):
        raise ValueError(f"{name} is inf: it must be a time that ends")
    return seconds


def require_count(value: object, name: str, of: str, *, minimum: int) -> int:
    """Return ``value`` if it is an integer, at least ``minimum``.

    Args:
        value: The argument.
        name: Its name.
        of: What it counts, for the message.
        minimum: The smallest number that is allowed.

    Raises:
        TypeError: It is not an integer.
        ValueError: It is too small.
    """
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} is {value!r}: it must be a whole number of {of}")
    if value < minimum:
        raise ValueError(f"{name} is {value}: it must be at least {minimum} {of}")
    return value


def require_command(command: object, arguments: object) -> None:
    """Check that a command and its arguments have the right types.

    Otherwise QEMU's error reply would have no id, and the json module would turn other
    keys into text. No message shows a value: it may be a secret.

    Raises:
        TypeError: The command or an argument's name is not text, or the arguments are
            not a mapping.
    """
    if not isinstance(command, str):
        raise TypeError(
            f"the command is of type {_get_type(command)}: it must be a name, like"
            " query-status"
        )
    if arguments is None:
        return
    if not isinstance(arguments, Mapping):
        raise TypeError(
            f"the arguments are of type {_get_type(arguments)}: give a mapping of the"
            " values by their names"
        )
    for name in cast("Mapping[object, object]", arguments):
        if not isinstance(name, str):
            raise TypeError(
                f"an argument's name is of type {_get_type(name)}: it must be text"
            )


def _get_type(value: object) -> str:
    return type(value).__name__


def require_kind(value: object, kind: type, name: str) -> None:
    """Check that a value is of a type, or ``None``.

    Raises:
        TypeError: It is neither.
    """
    if value is not None and not isinstance(value, kind):
        raise TypeError(f"{name} is {value!r:.80}: it must be a {kind.__name__}")


def require_flag(value: object, name: str) -> bool:
    """Return ``value`` if it is ``True`` or ``False``.

    Raises:
        TypeError: It is neither.
    """
    if not isinstance(value, bool):
        raise TypeError(f"{name} is {value!r:.80}: it must be True or False")
    return value


def require_callback(value: object, name: str) -> None:
    """Check that a value can be called, or is ``None``.

    Raises:
        TypeError: It is neither.
    """
    if value is not None and not callable(value):
        raise TypeError(f"{name} is {value!r:.80}: it must be a function")


def require_interval(value: object, name: str) -> int:
    """Return ``value`` if QEMU accepts it as a statistics interval in whole seconds.

    Raises:
        TypeError: It is not an integer.
        ValueError: It is out of range.
    """
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} is {value!r}: it must be a whole number of seconds")
    if not 0 <= value <= _MAX_INTERVAL:
        raise ValueError(f"{name} is {value}: it must be 0 to {_MAX_INTERVAL} seconds")
    return value


def require_seconds(value: object, name: str, *, minimum: float = 0.0) -> float:
    """Return ``value`` if it is a number of seconds, at least ``minimum``.

    ``math.inf`` is allowed: it means no limit.

    Raises:
        TypeError: It is not a number.
        ValueError: It is out of range, or NaN.
    """
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"{name} is {value!r}: it must be a number of seconds")
    # Written this way round, the comparison also refuses NaN.
    if not minimum <= value:
        raise ValueError(f"{name} is {value}: it must be at least {minimum} seconds")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{name} is too large: for no limit, use math.inf") from None
