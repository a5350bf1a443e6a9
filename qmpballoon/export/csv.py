"""A timeline as comma-separated values, for spreadsheets."""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING

from attrs import astuple, fields

from qmpballoon.balloon.sampling import Sample

if TYPE_CHECKING:
    from qmpballoon.balloon.sampling import Timeline

__all__ = ["format_csv"]


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
    writer.writerows(astuple(sample) for sample in timeline)
    return text.getvalue()
