"""A timeline as a page: all it needs is in it, and what it says is what was seen.

What only a browser can tell, tests/browser asks one.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
from attrs import define, evolve, field
from contrast import READABLE, compute_contrast
from hypothesis import given
from hypothesis import strategies as st
from timelines import NONE, ONE, make_reclaim, make_timeline

from qmpballoon import export
from qmpballoon._printable import make_printable
from qmpballoon.balloon.guard import Guard
from qmpballoon.balloon.results import Diagnosis, ResizeResult
from qmpballoon.balloon.sampling import Sample
from qmpballoon.export import page
from qmpballoon.export.series import SERIES
from qmpballoon.sizes import GiB, MiB, format_size

if TYPE_CHECKING:
    from contrast import Rgb

    from qmpballoon.balloon.sampling import Timeline

TITLE: Final = "Reclaiming memory from vm1"
LARGEST: Final = 2_000_000  # bytes
VOID: Final = {"input", "meta"}
# What would have a browser ask for something.
ASKING: Final = {"action", "background", "data", "href", "poster", "src", "srcset"}
STRICTEST: Final = "default-src 'none'"


@define
class Read(HTMLParser):
    """A page as a browser reads it; where tags do not match, it is refused.

    Attributes:
        tags: All elements, in order: names and attributes.
        texts: All texts and the names of the elements that they stand in, in order.
    """

    tags: list[tuple[str, dict[str, str | None]]] = field(factory=list)
    texts: list[tuple[str, str]] = field(factory=list)
    _open: list[str] = field(factory=list)

    def __attrs_pre_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open:
            self.texts.append((self._open[-1], data))

    def find(self, tag: str) -> str:
        """Return the first text that stands in an element of this name."""
        return next(text for name, text in self.texts if name == tag)

    @property
    def samples(self) -> dict[str, list[int | None]]:
        """The values that the page's script reads out."""
        (found,) = (text for text in self.find_all("script") if text[:1] == "{")
        values: dict[str, list[int | None]] = json.loads(found)
        return values

    def find_all(self, tag: str) -> list[str]:
        return [text for name, text in self.texts if name == tag]


def read(text: str) -> Read:
    reader = Read()
    reader.feed(text)
    reader.close()
    assert reader._open == []  # noqa: SLF001 - its own test
    return reader


@cache
def reclaimed() -> Read:
    return read(export.format_page(make_reclaim(), title=TITLE))


@pytest.mark.parametrize("timeline", [make_reclaim(), ONE, NONE])
def test_a_page_needs_nothing_else(timeline: Timeline) -> None:
    text = export.format_page(timeline, title=TITLE)
    for _, attributes in read(text).tags:
        assert not ASKING & attributes.keys()
        assert not [name for name in attributes if name.startswith("on")]
    assert "@import" not in text
    assert "url(" not in text
    assert set(re.findall(r"https?://[^\"]+", text)) <= {"http://www.w3.org/2000/svg"}


def test_a_page_obeys_only_its_own_style_sheet_and_script() -> None:
    seen = reclaimed()
    (policy,) = (
        str(attributes["content"])
        for tag, attributes in seen.tags
        if tag == "meta" and "http-equiv" in attributes
    )
    assert policy.startswith(STRICTEST)
    assert "unsafe" not in policy
    script = seen.find_all("script")[-1]
    for text in (seen.find("style"), script):
        digest = hashlib.sha256(text.encode()).digest()
        assert f"'sha256-{base64.b64encode(digest).decode()}'" in policy
    # The policy forbids these, too.
    assert not [attributes for _, attributes in seen.tags if "style" in attributes]


def test_a_page_says_what_was_seen() -> None:
    seen = reclaimed()
    assert seen.find("h1") == seen.find("title") == TITLE
    assert "Requested 1 GiB, handed over 1 GiB" in seen.find("p")
    assert seen.find("li") == "actual "
    assert "1.0 s: stalled" in seen.find_all("li")
    table = [text for name, text in seen.texts if name in {"th", "td"}]
    row = table.index("guest: size")
    assert table[row : row + 4] == ["guest: size", "2 GiB", "2 GiB", "0 B"]


def test_the_read_out_has_the_samples_values() -> None:
    timeline = make_reclaim()
    values = reclaimed().samples
    assert values["t"] == [0, 1000, 2000]
    for series in SERIES:
        assert values[series.name] == [series.get_size(sample) for sample in timeline]
    assert values["balloon"] == [0, GiB, 0]


def test_without_a_script_the_last_values_can_be_read() -> None:
    last = make_reclaim()[-1]
    shown = reclaimed().find_all("b")
    assert format_size(last.actual) in shown
    assert len(shown) == len(SERIES) + 1  # and the balloon


def test_what_nobody_knew_is_left_out() -> None:
    assert read(export.format_page(ONE, title=TITLE)).samples.keys() == {
        *("t", "balloon", "actual")
    }
    assert "no samples" in export.format_page(NONE, title=TITLE).lower()
    samples = [Sample(0.0, None, GiB, free=MiB), Sample(1.0, None, GiB)]
    seen = read(export.format_page(make_timeline(*samples), title=TITLE))
    assert seen.samples["free"] == [MiB, None]
    assert "unknown" in seen.find_all("b")


def test_disk_reads_are_a_rate() -> None:
    samples = [Sample(float(t), None, GiB, disk_reads=4 * t * MiB) for t in range(3)]
    seen = read(export.format_page(make_timeline(*samples), title=TITLE))
    assert seen.samples["reads"] == [None, 4 * MiB, 4 * MiB]
    assert "4 MiB/s" in seen.find_all("b")


HOSTILE: Final = "</script><script>alert(1)</script><img src=x onerror=alert(1)>\x1b[2J"


def test_what_others_have_chosen_stays_a_text() -> None:
    timeline = make_timeline(
        Sample(0.0, None, GiB, mark=HOSTILE), Sample(1.0, None, GiB)
    )
    facts = export.Facts(
        sentence=HOSTILE,
        changes=[export.Change(HOSTILE, GiB, MiB)],
        remarks=[HOSTILE],
        settings={HOSTILE: HOSTILE},
    )
    text = export.format_page(timeline, title=HOSTILE, facts=facts)
    seen, quiet = read(text), read(export.format_page(ONE, title="x"))
    assert {tag for tag, _ in seen.tags} <= {tag for tag, _ in quiet.tags} | {
        *("dl", "dt", "dd", "line", "rect")
    }
    assert len([tag for tag, _ in seen.tags if tag == "script"]) == 2
    for name in ("h1", "p", "dt", "dd"):
        assert seen.find(name) == make_printable(HOSTILE)
    assert "\x1b" not in text


def test_of_very_long_timelines_a_page_holds_what_can_be_seen() -> None:
    size = 2**63 - 1
    full = Sample(
        *(0.0, size, size, size, size, size, size, size, 0), mark="a word " * 1000
    )
    count = 12_000
    samples = [
        evolve(full, t=t / 7, actual=size - t, disk_reads=t * 2**40)
        for t in range(count)
    ]
    text = export.format_page(make_timeline(*samples), title="x" * 1_000_000)
    assert len(text.encode()) < LARGEST
    values = read(text).samples
    assert len(values["t"]) <= 5000
    assert (values["t"][0], values["t"][-1]) == (0, round((count - 1) / 7 * 1000))


@given(
    st.lists(st.floats(0, 1e9), min_size=1, max_size=4),
    st.none() | st.integers(0, 2**63 - 1),
    st.text(),
)
def test_every_timeline_is_a_page(
    times: list[float], size: int | None, mark: str
) -> None:
    samples = [Sample(t, size, size or 1, free=size, mark=mark) for t in sorted(times)]
    seen = read(export.format_page(make_timeline(*samples), title=mark))
    assert seen.samples["free" if size is not None else "actual"]
    for tag, attributes in seen.tags:
        if tag == "text":
            for name in ("x", "y"):
                assert float((attributes.get(name) or "0").rstrip("%em")) <= 101


# What a page says of each call


def test_a_resize_says_how_it_ended() -> None:
    why = Diagnosis("no-driver", "the guest has no balloon driver: load it")
    result = ResizeResult("stalled", GiB, 2 * GiB, 2 * GiB, GiB, 3.0, why)
    facts = export.Facts.of_resize(result, NONE, export.list_settings(None, GiB))
    assert facts.sentence.startswith("Requested 1 GiB, stalled: 2 GiB")
    assert list(facts.remarks) == [why.detail]
    (change,) = facts.changes
    assert change.format() == ("2 GiB", "2 GiB", "0 B")
    assert facts.settings == {"guard": "none: the guest was not watched"}


def test_the_settings_are_the_guards() -> None:
    guard = Guard(headroom=MiB, max_rate=MiB, gentle=600, reread_within=0)
    settings = export.list_settings(guard, GiB)
    assert settings["headroom"] == "1 MiB"
    assert settings["rate"] == "1 MiB/s"
    assert "600 s" in settings["gentle"]
    usual = export.list_settings(Guard(), GiB)
    assert usual["rate"] == "no limit"
    assert "gentle" not in usual
    assert settings.keys() - {"gentle"} == usual.keys()


# How it looks


def list_colours(rule: str) -> dict[str, Rgb]:
    """Return the colours that a part of the style sheet sets, by their names."""
    found = re.findall(r"--(\w+): #(..)(..)(..)", rule)
    return {name: (int(r, 16), int(g, 16), int(b, 16)) for name, r, g, b in found}


def test_all_colours_can_be_read_in_light_in_dark_and_printed() -> None:
    style = Path(str(page.__file__)).with_name("page.css").read_text(encoding="utf-8")
    rules = re.findall(r":root \{.*?\}", style, re.DOTALL)
    light, dark, printed = map(list_colours, rules)
    assert light.keys() == dark.keys() == printed.keys()
    for palette in (light, dark, printed):
        assert palette.keys() >= {series.name for series in SERIES}
        contrasts = {
            name: compute_contrast(colour, palette["back"])
            for name, colour in palette.items()
            if name not in {"back", "line"}  # the grid's lines may be faint
        }
        assert {name for name, ratio in contrasts.items() if ratio < READABLE} == set()
