"""What was seen, in forms to keep and to show: charts, tables, recordings.

A timeline goes into a file in the format that its name ends in. Charts need
matplotlib, from the extra ``charts``, which is loaded only for them.
"""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    from qmpballoon.balloon.sampling import Timeline

__all__ = ["CHOICE", "SUFFIXES", "require", "save"]

_MODE: Final = 0o644
_CHARTS: Final = (".svg", ".png")
SUFFIXES: Final = (*_CHARTS, ".csv", ".json")
"""What a file's name may end in."""
CHOICE: Final = f"{', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}"


def require(path: Path) -> None:
    """Make sure that a file of this name can be drawn or written, but for its place.

    Raises:
        ModuleNotFoundError: It is to be a chart, and matplotlib is missing.
        ValueError: The name ends in nothing known.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{path.name!r} names no format: end it in {CHOICE}")
    if path.suffix.lower() in _CHARTS:
        import_module("matplotlib")


def save(
    path: Path,
    timeline: Timeline,
    *,
    title: str,
    document: Mapping[str, object] | None = None,
) -> None:
    """Write a timeline to a file, in the format that the file's name ends in.

    The file is there in full or not at all: if anything goes wrong, what stood there
    before is untouched.

    Args:
        path: Where to.
        timeline: What was seen.
        title: The heading of a chart.
        document: What JSON is to hold instead of the timeline alone.

    Raises:
        OSError: It cannot be written.
        ModuleNotFoundError: It is to be a chart, and matplotlib is missing.
        ValueError: The name ends in nothing known.
    """
    require(path)
    data = _render(path.suffix.lower(), timeline, title, document)
    try:
        _replace(path, data)
    except OSError as error:  # which may not say of what file
        raise OSError(error.errno, error.strerror, str(path)) from error


def _replace(path: Path, data: bytes) -> None:
    # Not named after the path, whose name may be as long as names can be.
    with NamedTemporaryFile(
        dir=path.parent, prefix=".qmpballoon-", delete=False
    ) as file:
        temporary = Path(file.name)
        try:
            file.write(data)
            file.flush()
            # The temporary file is for its owner only; this one is for all.
            temporary.chmod(_MODE)
            temporary.replace(path)
        except BaseException:
            temporary.unlink()
            raise


def _render(
    suffix: str,
    timeline: Timeline,
    title: str,
    document: Mapping[str, object] | None,
) -> bytes:
    match suffix:
        case ".csv":
            from qmpballoon.export.csv import write_csv  # noqa: PLC0415 - rarely used

            return write_csv(timeline).encode()
        case ".json":
            value = {"timeline": timeline.to_json()} if document is None else document
            return f"{json.dumps(value, indent=2)}\n".encode()
        case _:
            from qmpballoon.export.figure import draw, render  # noqa: PLC0415 - slow

            return render(draw(timeline, title=title), suffix.removeprefix("."))
