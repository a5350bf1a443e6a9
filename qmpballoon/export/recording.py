"""Recordings: a sample a line, as ``watch --json`` prints and ``--record`` keeps."""

from __future__ import annotations

import json
import math
import os
from contextlib import contextmanager
from errno import ENOSPC
from typing import TYPE_CHECKING, Any, cast

from attrs import fields

from qmpballoon.balloon.sampling import Sample, Timeline

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable
    from pathlib import Path

__all__ = ["read_recording", "recorder"]


@contextmanager
def recorder(path: Path) -> Generator[Callable[[Sample], None]]:
    """Yield what writes a sample to a file, as a line, at once.

    Raises:
        OSError: The file cannot be written.
    """
    # Without a buffer there is nothing left to fail when the file is closed.
    with path.open("wb", buffering=0) as file:

        def write(sample: Sample) -> None:
            line = f"{json.dumps(sample.to_json())}\n".encode()
            try:
                written = file.write(line)
            except OSError as error:  # which does not say of what file
                raise OSError(error.errno, error.strerror, str(path)) from error
            if written < len(line):
                raise OSError(ENOSPC, os.strerror(ENOSPC), str(path))

        yield write


def read_recording(lines: Iterable[str]) -> Timeline:
    """Read a recording back.

    A last line that was cut off, as by a full disk or a crash, is left out. Names
    that a later version has added are ignored.

    Args:
        lines: The file's.

    Raises:
        ValueError: A line is no sample; says which.
    """
    timeline = Timeline()
    for number, line in enumerate(lines, 1):
        try:
            timeline.add(_sample(line))
        except (TypeError, ValueError, RecursionError) as error:
            if line.endswith("\n"):  # only the last one can have been cut off
                raise ValueError(
                    f"line {number} is no sample, or older than the one before: give a"
                    " file that watch --record has written"
                ) from error
    return timeline


def _sample(line: str) -> Sample:
    value = json.loads(line)
    if not isinstance(value, dict):
        raise TypeError(line)
    members = cast("dict[str, Any]", value)
    names = [attribute.name for attribute in fields(Sample)]
    sample = Sample(**{name: members[name] for name in names if name in members})
    _check(sample)
    return sample


def _check(sample: Sample) -> None:
    """Refuse figures that are none; they would fail where nobody expects it."""
    for attribute in fields(Sample):
        value = getattr(sample, attribute.name)
        match attribute.name:
            case "t":
                right = isinstance(value, int | float) and math.isfinite(value)
            case "mark":
                right = value is None or isinstance(value, str)
            case "actual":
                right = isinstance(value, int)
            case _:
                right = value is None or isinstance(value, int)
        if not right or isinstance(value, bool):
            raise TypeError(f"{attribute.name} is {value!r}")
