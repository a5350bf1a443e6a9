"""Refusing bad arguments, in one line, before anything is sent; and bad answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from typing import TypeGuard

__all__ = [
    "is_interval",
    "is_size",
    "require_callback",
    "require_command",
    "require_count",
    "require_interval",
    "require_kind",
    "require_seconds",
    "require_size",
]

_MAX_INTERVAL = 2**32 - 1  # seconds; QEMU refuses longer ones
_MAX_SIZE = 2**63 - 1  # QMP's integers; QEMU refuses larger sizes


def is_size(value: object) -> TypeGuard[int]:
    """Tell whether that can be a number of bytes in QMP."""
    return _is_whole(value, _MAX_SIZE)


def is_interval(value: object) -> TypeGuard[int]:
    """Tell whether that can be a polling interval: whole seconds."""
    return _is_whole(value, _MAX_INTERVAL)


def _is_whole(value: object, largest: int) -> bool:
    return (
        isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= largest
    )


def require_size(value: object, name: str, *, minimum: int = 0) -> int:
    """Return ``value`` if it is a number of bytes, at least ``minimum``.

    Raises:
        TypeError: It is no integer. Floats are refused even if whole: QEMU
            refuses them too.
        ValueError: It is out of range.
    """
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} is {value!r}: it must be a whole number of bytes")
    if value < minimum:
        raise ValueError(f"{name} is {value}: it must be at least {minimum} bytes")
    if value > _MAX_SIZE:
        raise ValueError(f"{name} is {value}: it must be at most {_MAX_SIZE} bytes")
    return value


def require_count(value: object, name: str, of: str, *, minimum: int) -> int:
    """Return ``value`` if it is a number of things, at least ``minimum``.

    Raises:
        TypeError: It is no integer.
        ValueError: It is too small.
    """
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} is {value!r}: it must be a whole number of {of}")
    if value < minimum:
        raise ValueError(f"{name} is {value}: it must be at least {minimum} {of}")
    return value


def require_command(command: object, arguments: object) -> None:
    """Refuse what cannot be a command; its values are no part of any message.

    QEMU could not tell to which command its complaint belongs, and JSON would make
    names of other keys.

    Raises:
        TypeError: The command is no name, or the arguments have none.
    """
    if not isinstance(command, str):
        raise TypeError(
            f"the command is of type {_kind(command)}: it must be a name, like"
            " query-status"
        )
    if arguments is None:
        return
    if not isinstance(arguments, Mapping):
        raise TypeError(
            f"the arguments are of type {_kind(arguments)}: give a mapping of the"
            " values by their names"
        )
    for name in cast("Mapping[object, object]", arguments):
        if not isinstance(name, str):
            raise TypeError(
                f"an argument's name is of type {_kind(name)}: it must be text"
            )


def _kind(value: object) -> str:
    return type(value).__name__


def require_kind(value: object, kind: type, name: str) -> None:
    """Refuse what is neither of a type nor ``None``.

    Raises:
        TypeError: It is something else.
    """
    if value is not None and not isinstance(value, kind):
        raise TypeError(f"{name} is {value!r:.80}: it must be a {kind.__name__}")


def require_callback(value: object, name: str) -> None:
    """Refuse what can neither be called nor is ``None``.

    Raises:
        TypeError: It is something else.
    """
    if value is not None and not callable(value):
        raise TypeError(f"{name} is {value!r:.80}: it must be a function")


def require_interval(value: object, name: str) -> int:
    """Return ``value`` if QEMU takes it as a polling interval: whole seconds.

    Raises:
        TypeError: It is no integer.
        ValueError: It is out of range.
    """
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} is {value!r}: it must be a whole number of seconds")
    if not 0 <= value <= _MAX_INTERVAL:
        raise ValueError(f"{name} is {value}: it must be 0 to {_MAX_INTERVAL} seconds")
    return value


def require_seconds(value: object, name: str, *, minimum: float = 0.0) -> float:
    """Return ``value`` if it is a number of seconds, at least ``minimum``.

    ``math.inf`` is one: it means without end.

    Raises:
        TypeError: It is no number.
        ValueError: It is out of range, or NaN.
    """
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"{name} is {value!r}: it must be a number of seconds")
    # NaN is not at least anything.
    if not minimum <= value:
        raise ValueError(f"{name} is {value}: it must be at least {minimum} seconds")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(
            f"{name} is too large: for without end, use math.inf"
        ) from None
