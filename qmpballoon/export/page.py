"""A timeline as a page: one HTML file that needs nothing else, and opens anywhere.

Everything a reader needs is there without a script: the charts are SVG, and figures and
words are text. The script adds interaction: a read-out at the pointer, and zoom.

A content security policy forbids everything that the page does not need: nothing is
loaded, and only its own style sheet and script are used. All texts are put into a tree
of elements, which escapes them when it is serialised. So a VM's name is always shown as
text, whatever it contains.

The charts are separate parts (:func:`draw_charts`), so that a live page can be sent new
ones to replace the old.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import TYPE_CHECKING, Final
from xml.etree import ElementTree as ET

from qmpballoon._printable import make_printable
from qmpballoon.balloon.sampling import Timeline
from qmpballoon.export.facts import Facts
from qmpballoon.export.panels import Axis, draw_panel, make, make_panels

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from qmpballoon.balloon.sampling import Sample
    from qmpballoon.export.panels import Panel
    from qmpballoon.export.summary import Change

__all__ = ["draw_charts", "draw_facts", "format_page"]

# What keeps a page below 2 MB, whatever is in the samples: each takes less than 300
# bytes, of which a tenth are seen on a wide screen. Of more, every second is left out.
_MOST_SAMPLES: Final = 5000
_MOST_MARKS: Final = 100  # lines of the list
_LONGEST_TITLE: Final = 200  # characters
FOLDER: Final = Path(__file__).parent


def format_page(timeline: Timeline, *, title: str, facts: Facts | None = None) -> str:
    """Return a timeline as an HTML page. The same arguments give the same page.

    Args:
        timeline: The samples. Of more than 5,000 some are left out; not the first, the
            last or marked ones.
        title: The heading.
        facts: What to say besides; by default what the samples tell.
    """
    shown = Timeline(_MOST_SAMPLES)
    for sample in timeline:
        shown.add(sample)
    samples = list(shown)
    about = facts or Facts.of_timeline(timeline)
    heading = make_printable(title, _LONGEST_TITLE)
    style, script = _read("page.css"), _read("page.js")
    page = make(
        "html",
        {"lang": "en"},
        make(
            "head",
            {},
            make("meta", {"charset": "utf-8"}),
            _make_policy(style, script),
            make(
                "meta",
                {"name": "viewport", "content": "width=device-width, initial-scale=1"},
            ),
            make("meta", {"name": "color-scheme", "content": "light dark"}),
            make("title", {}, heading),
            make("style", {}, style),
        ),
        make(
            "body",
            {},
            make(
                "header",
                {},
                make("h1", {}, heading),
                make("p", {}, make_printable(about.sentence)),
            ),
            make("main", {}, *draw_charts(samples), *draw_facts(about, samples)),
            make("footer", {}, f"Made by qmpballoon from {len(timeline)} samples."),
            make("script", {}, script),
        ),
    )
    return f"<!DOCTYPE html>\n{ET.tostring(page, encoding='unicode', method='html')}\n"


def _read(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


def _make_policy(style: str, script: str) -> ET.Element:
    """Allow the page's own style sheet and script, and nothing else."""
    policy = (
        f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)};"
        " base-uri 'none'; form-action 'none'"
    )
    return make("meta", {"http-equiv": "Content-Security-Policy", "content": policy})


def _hash(text: str) -> str:
    import hashlib  # noqa: PLC0415 - loads OpenSSL

    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


# Charts


def draw_charts(samples: Sequence[Sample], ram: int | None = None) -> list[ET.Element]:
    """Draw the charts, what the read-out is done with, and the figures for it.

    Args:
        samples: What is shown; with none there is nothing.
        ram: As for :func:`make_panels`.
    """
    panels = make_panels(samples, ram)
    if not panels:
        return []
    return [
        make(
            "section",
            {"id": "charts", "aria-label": "Charts"},
            _draw_controls(len(samples)),
            *(draw_panel(panel, samples) for panel in panels),
            make(
                "script",
                {"id": "samples", "type": "application/json"},
                _format_samples(samples, panels),
            ),
        )
    ]


def _draw_controls(count: int) -> ET.Element:
    """Draw what the script needs; without a script it stays hidden."""
    last = count - 1
    buttons = {"in": "Zoom in", "out": "Zoom out", "all": "Show all"}
    return make(
        "div",
        {"id": "controls", "hidden": "hidden"},
        # What the slider says is announced; on a live page it changes each second.
        make(
            "label",
            {"for": "time"},
            "Time ",
            make("output", {"for": "time", "aria-live": "off"}),
        ),
        make(
            "input",
            {"id": "time", "type": "range", "min": 0, "max": last, "value": last},
        ),
        *(
            make("button", {"type": "button", "data-zoom": name}, text)
            for name, text in buttons.items()
        ),
    )


def _format_samples(samples: Sequence[Sample], panels: Sequence[Panel]) -> str:
    """Return the values of all curves, by their names, as JSON: numbers only."""
    columns: dict[str, Sequence[int | None]] = {"t": Axis.of(samples).times}
    for panel in panels:
        columns |= {curve.name: curve.shown for curve in panel.curves}
    return json.dumps(columns, separators=(",", ":"))


# Words and figures


def draw_facts(facts: Facts, samples: Sequence[Sample]) -> list[ET.Element]:
    """Draw what a page says besides its charts, but for the sentence.

    Args:
        facts: What to say.
        samples: Those of the charts; their marks are listed.
    """
    sections = {
        "Before and after": _draw_changes(facts.changes),
        "What it brought, and what it cost": [
            make("p", {}, make_printable(remark)) for remark in facts.remarks
        ],
        "What happened when": _draw_marks(samples),
        "Settings": _draw_settings(facts.settings),
    }
    return [
        make("section", {}, make("h2", {}, heading), *parts)
        for heading, parts in sections.items()
        if parts
    ]


def _draw_changes(changes: Sequence[Change]) -> list[ET.Element]:
    if not changes:
        return []
    headings = [
        make("th", {"scope": "col"}, heading)
        for heading in ("memory", "before", "after", "change")
    ]
    rows = [
        make(
            "tr",
            {},
            make("th", {"scope": "row"}, make_printable(change.name)),
            *(make("td", {}, cell) for cell in change.format()),
        )
        for change in changes
    ]
    return [
        make(
            "table",
            {},
            make("thead", {}, make("tr", {}, *headings)),
            make("tbody", {}, *rows),
        )
    ]


def _draw_marks(samples: Sequence[Sample]) -> list[ET.Element]:
    marks = [
        make("li", {}, f"{sample.t:.1f} s: {make_printable(sample.mark)}")
        for sample in samples
        if sample.mark is not None
    ]
    left_out = len(marks) - _MOST_MARKS
    more = [make("li", {}, f"and {left_out} more")] if left_out > 0 else []
    return [make("ul", {}, *marks[:_MOST_MARKS], *more)] if marks else []


def _draw_settings(settings: Mapping[str, str]) -> list[ET.Element]:
    if not settings:
        return []
    parts = [
        part
        for name, value in settings.items()
        for part in (
            make("dt", {}, make_printable(name)),
            make("dd", {}, make_printable(value)),
        )
    ]
    return [make("dl", {}, *parts)]
