"""Timelines as files: pages, charts, tables and recordings.

:func:`save` writes a timeline in the format that the file's name ends in. Charts need
matplotlib, from the extra ``charts``. It is loaded only when a chart is drawn.
"""

from __future__ import annotations

import csv
import io
import json
import os
import stat
from importlib import import_module
from typing import TYPE_CHECKING, Final

from attrs import astuple, fields

from qmpballoon._printable import make_value_printable
from qmpballoon.balloon.sampling import Sample
from qmpballoon.export.facts import Facts, list_settings
from qmpballoon.export.figure import draw_figure, render_figure
from qmpballoon.export.page import format_page
from qmpballoon.export.recording import open_recording, read_recording
from qmpballoon.export.series import SERIES, Series
from qmpballoon.export.summary import Change

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from qmpballoon.balloon.sampling import Timeline

__all__ = [
    "SERIES",
    "SUFFIXES",
    "Change",
    "Facts",
    "Series",
    "draw_figure",
    "format_csv",
    "format_page",
    "list_settings",
    "open_recording",
    "read_recording",
    "render_figure",
    "require",
    "save",
]

_CHARTS: Final = (".svg", ".png")
SUFFIXES: Final = (".html", *_CHARTS, ".csv", ".json")
"""What the name of a file may end in."""
CHOICE: Final = f"{', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}"


def format_csv(timeline: Timeline) -> str:
    """Return a timeline as comma-separated values.

    There is a header with the names of a sample's attributes, and a line for each
    sample. What was not known is an empty field.

    Args:
        timeline: The samples.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(attribute.name for attribute in fields(Sample))
    writer.writerows(
        [make_value_printable(value) for value in astuple(sample)]
        for sample in timeline
    )
    return text.getvalue()


def require(path: Path) -> None:
    """Check that a file of this name can be saved, before there is anything to save.

    Args:
        path: The file. Its folder is not checked.

    Raises:
        ModuleNotFoundError: It is a chart, and matplotlib is not installed.
        ValueError: The name does not end in one of :data:`SUFFIXES`.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{path.name!r} has no known format: end it in {CHOICE}")
    if path.suffix.lower() in _CHARTS:
        import_module("matplotlib")


def save(
    path: Path,
    timeline: Timeline,
    *,
    title: str,
    facts: Facts | None = None,
    document: Mapping[str, object] | None = None,
) -> None:
    """Write a timeline to a file, in the format that the file's name ends in.

    The file is replaced as a whole, and keeps its permissions. If anything fails, the
    old file stays as it was. A symbolic link is replaced, not followed.

    Args:
        path: The file.
        timeline: The samples.
        title: The heading of a page or a chart.
        facts: What a page says besides; by default what the samples tell.
        document: What a JSON file contains; by default the timeline.

    Raises:
        OSError: The file cannot be written.
        ModuleNotFoundError: It is a chart, and matplotlib is not installed.
        ValueError: The name does not end in one of :data:`SUFFIXES`.
    """
    require(path)
    data = _render(path.suffix.lower(), timeline, title, facts, document)
    try:
        _replace(path, data)
    except OSError as error:  # its own message may not name the file
        raise OSError(error.errno, error.strerror, str(path)) from error


def _replace(path: Path, data: bytes) -> None:
    # Its name does not contain the path's name, which may have the maximum length.
    temporary = path.parent / f".qmpballoon-{os.urandom(8).hex()}"
    with temporary.open("xb") as file:  # with the permissions of any new file
        try:
            if path.is_file() and not path.is_symlink():
                temporary.chmod(stat.S_IMODE(path.stat().st_mode))
            file.write(data)
            file.flush()
            temporary.replace(path)
        except BaseException:
            temporary.unlink()
            raise


def _render(
    suffix: str,
    timeline: Timeline,
    title: str,
    facts: Facts | None,
    document: Mapping[str, object] | None,
) -> bytes:
    match suffix:
        case ".html":
            return format_page(timeline, title=title, facts=facts).encode()
        case ".csv":
            return format_csv(timeline).encode()
        case ".json":
            value = {"timeline": timeline.to_json()} if document is None else document
            shown = make_value_printable(value)
            return f"{json.dumps(shown, indent=2)}\n".encode()
        case _:
            figure = draw_figure(timeline, title=title)
            return render_figure(figure, suffix.removeprefix("."))
