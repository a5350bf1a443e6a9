"""Recordings: files with a sample on each line, as JSON.

``watch --json`` prints this format, and ``watch --record`` writes it to a file.
"""

from __future__ import annotations

import json
import math
import os
from contextlib import contextmanager
from errno import ENOSPC
from typing import TYPE_CHECKING, Any, Final, cast

from attrs import fields

from qmpballoon.balloon.sampling import Sample, Timeline

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable
    from pathlib import Path

__all__ = ["open_recording", "read_recording"]

# Far more than there can be; with larger numbers no curve can be computed.
_MOST_SECONDS: Final = 10**9
_MOST_BYTES: Final = 2**80


@contextmanager
def open_recording(path: Path) -> Generator[Callable[[Sample], None]]:
    """Open a file for a recording; a context manager. A file of that name is replaced.

    Args:
        path: The file.

    Yields:
        A function that writes a sample to the file at once.

    Raises:
        OSError: The file cannot be written; from the function, too.
    """
    # Unbuffered, so that nothing is left to be written, and to fail, at the end.
    with path.open("wb", buffering=0) as file:

        def write(sample: Sample) -> None:
            line = f"{json.dumps(sample.to_json())}\n".encode()
            try:
                written = file.write(line)
            except OSError as error:  # its own message does not name the file
                raise OSError(error.errno, error.strerror, str(path)) from error
            if written < len(line):
                raise OSError(ENOSPC, os.strerror(ENOSPC), str(path))

        yield write


def read_recording(lines: Iterable[str]) -> Timeline:
    """Read a recording.

    If the last line is incomplete, because of a full disk or a crash, it is left out.
    Names that a later version has added are ignored.

    Args:
        lines: The lines of the file, with their ends.

    Raises:
        ValueError: A line is not a sample, or is older than the one before. The message
            says which.
    """
    timeline = Timeline()
    for number, line in enumerate(lines, 1):
        try:
            timeline.add(_parse_sample(line))
        except (TypeError, ValueError, RecursionError) as error:
            if line.endswith("\n"):  # otherwise it was cut off
                raise ValueError(
                    f"line {number} is not a sample, or is older than the one before:"
                    " give a file that watch --record has written"
                ) from error
    return timeline


def _parse_sample(line: str) -> Sample:
    value = json.loads(line)
    if not isinstance(value, dict):
        raise TypeError(line)
    members = cast("dict[str, Any]", value)
    names = [attribute.name for attribute in fields(Sample)]
    sample = Sample(**{name: members[name] for name in names if name in members})
    _check(sample)
    return sample


def _check(sample: Sample) -> None:
    """Refuse wrong values, which would fail only when they are used."""
    for attribute in fields(Sample):
        value = getattr(sample, attribute.name)
        match attribute.name:
            case "t":
                right = isinstance(value, int | float) and 0 <= value <= _MOST_SECONDS
            case "age":
                right = value is None or (
                    isinstance(value, int | float) and 0 <= value < math.inf
                )
            case "mark":
                right = value is None or isinstance(value, str)
            case "actual":
                right = _is_size(value)
            case _:
                right = value is None or _is_size(value)
        if not right or isinstance(value, bool):
            raise TypeError(f"{attribute.name} is {value!r}")


def _is_size(value: object) -> bool:
    return isinstance(value, int) and 0 <= value < _MOST_BYTES
