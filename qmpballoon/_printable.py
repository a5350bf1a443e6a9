"""Text that others have chosen, made fit to be shown on any surface.

Names of VMs, sockets and files, what QEMU says and what a guest says are chosen by
others. They can contain anything: escape sequences that a terminal obeys, newlines that
forge a line of a log, bytes that are not UTF-8, or a megabyte of text. So all of them
go through :func:`make_printable` before they are shown. They look the same on a
terminal, in a log, in JSON, in a label of Prometheus' and in a chart.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, cast

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["LONGEST", "describe_bug", "make_printable", "make_value_printable"]

LONGEST: Final = 1000
"""Characters of a shown text at most. The classic limit of a line in a log is 1,024
bytes (RFC 3164), and a time, a host and a program's name stand before it."""
_CUT: Final = " ... "
_NUMBERS: Final = frozenset({int, float, bool, type(None)})
"""What a value of JSON has most of, and needs no care."""


def make_printable(text: str, longest: int = LONGEST) -> str:
    r"""Return a text as one line of printable characters.

    Others become escapes as Python writes them: ``\n``, ``\x1b``, ``\u202e``. A byte of
    a file's name that is not UTF-8 becomes ``\xe9``. Backslashes stay as they are, so
    that a text that is printable already is not changed.

    Args:
        text: Any text.
        longest: Characters to return at most. A longer text loses its middle: its end
            often says what to do.
    """
    # Escapes only lengthen a text, so what is left out here would be cut anyway.
    if len(text) > longest:
        half = (longest - len(_CUT)) // 2
        text = f"{text[:half]}{_CUT}{text[-half:]}"
    if text.isprintable():
        return text
    shown = "".join(map(_escape, text))
    return shown if len(shown) <= longest else make_printable(shown, longest)


def _escape(character: str) -> str:
    if character.isprintable():
        return character
    if "\udc80" <= character <= "\udcff":  # how os.fsdecode tells a byte
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")


def make_value_printable(value: object) -> object:
    """Return a value of JSON with all texts in it made printable."""
    match value:
        case str():
            return make_printable(value)
        case dict():
            members = cast("dict[object, object]", value)
            return {
                key: item if type(item) in _NUMBERS else make_value_printable(item)
                for key, item in members.items()
            }
        case list() | tuple():
            items = cast("Sequence[object]", value)
            return [make_value_printable(item) for item in items]
        case _:
            return value


def describe_bug(error: BaseException) -> str:
    """Say in one line what an exception is that nobody expected, and where it began.

    Args:
        error: Any exception, one of whose texts cannot be had included.
    """
    try:
        text = str(error)
    except Exception as second:  # noqa: BLE001 - whatever its own code raises
        text = f"its text cannot be had: {type(second).__name__}"
    said = make_printable(f"{type(error).__name__}: {text}", LONGEST // 2)
    place, traceback = "", error.__traceback__
    while traceback is not None:
        code = traceback.tb_frame.f_code
        place = f" (in {code.co_qualname}, line {traceback.tb_lineno})"
        traceback = traceback.tb_next
    return make_printable(f"unexpected {said}{place}; please report it")
