"""Draws what all live pages have: the document, the table, bars, what happened. Pure.

All texts are put into a tree of elements, which escapes them when it is serialised. So
a name is always shown as text, whatever it contains.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Final
from xml.etree import ElementTree as ET

from qmpballoon._printable import make_printable
from qmpballoon.export.panels import make
from qmpballoon.sizes import format_size

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from qmpballoon.web.board import Entry, LiveBoard

__all__ = [
    "LONGEST_NAME",
    "draw_bar",
    "draw_log",
    "draw_log_section",
    "draw_row",
    "draw_table",
    "format_entrance",
    "format_live_page",
    "format_refusal",
    "write_parts",
]

LONGEST_NAME: Final = 100
"""Characters of a name that are shown."""
_MOST_ENTRIES: Final = 100  # of a list


# Whole pages


def format_entrance() -> str:
    """Return the page that lets in a browser which has just got its cookie.

    It is not a redirection: after one, a browser that comes from another site would not
    send a strict cookie.
    """
    return _format_document(
        "qmpballoon",
        [make("meta", {"http-equiv": "refresh", "content": "0; url=./"})],
        [make("main", {}, make("p", {}, make("a", {"href": "./"}, "To the pages")))],
    )


def format_refusal() -> str:
    """Return the page for who shows neither a token nor a cookie."""
    return _format_document(
        "No entry",
        [],
        [
            make(
                "main",
                {},
                make("h1", {}, "No entry"),
                make(
                    "p",
                    {},
                    "Open the link that the server printed when it was started. Each"
                    " start makes a new one, unless there is a --token-file.",
                ),
            )
        ],
    )


def format_live_page(
    board: LiveBoard,
    title: str,
    events: str,
    *header: ET.Element,
    body: Sequence[ET.Element],
    change_key: str | None = None,
) -> str:
    """Return a live page.

    Args:
        board: What it shows.
        title: The heading.
        events: Where its stream is.
        header: What is below the heading.
        body: The rest.
        change_key: What changes need; ``None``: there can be none.
    """
    key = (
        []
        if change_key is None
        else [make("meta", {"name": "change-key", "content": change_key})]
    )
    # Before it is connected, nothing is to say that it is live.
    connection = {"id": "connection", "role": "status", "data-events": events}
    return _format_document(
        f"{title} - qmpballoon",
        [
            *key,
            make("script", {"src": "page.js", "defer": "defer"}),
            make("script", {"src": "live.js", "defer": "defer"}),
        ],
        [
            make(
                "header",
                {},
                make("h1", {}, title),
                *header,
                make(
                    "p",
                    connection | {"data-since": f"{board.run}-{board.tick}"},
                    "As it was when the page was loaded.",
                ),
            ),
            make("main", {}, *body),
        ],
    )


def _format_document(
    title: str, head: Sequence[ET.Element], body: Sequence[ET.Element]
) -> str:
    page = make(
        "html",
        {"lang": "en"},
        make(
            "head",
            {},
            make("meta", {"charset": "utf-8"}),
            make(
                "meta",
                {"name": "viewport", "content": "width=device-width, initial-scale=1"},
            ),
            make("meta", {"name": "color-scheme", "content": "light dark"}),
            make("title", {}, title),
            make("link", {"rel": "icon", "href": "data:,"}),
            make("link", {"rel": "stylesheet", "href": "page.css"}),
            make("link", {"rel": "stylesheet", "href": "live.css"}),
            *head,
        ),
        make("body", {}, *body),
    )
    return f"<!DOCTYPE html>\n{_write(page)}\n"


def write_parts(
    parts: Iterable[tuple[str, ET.Element]],
) -> Iterator[tuple[str, str]]:
    """Write parts as HTML, one after the other."""
    return ((name, _write(part)) for name, part in parts)


def _write(element: ET.Element) -> str:
    return ET.tostring(element, encoding="unicode", method="html")


# The table


def draw_table(
    what: str,
    columns: Iterable[tuple[str, str]],
    parts: Mapping[str, str],
    rows: Iterable[ET.Element],
) -> ET.Element:
    """Draw a table that can be sorted and filtered.

    Args:
        what: What its rows are, such as ``"VMs"``.
        columns: What each heading says, and the member of a row's data by which it
            sorts.
        parts: The parts of a bar, in their order, and what each is called.
        rows: The rows.
    """
    head = [
        make(
            "th",
            {"scope": "col"},
            make("button", {"type": "button", "data-sort": key}, heading),
        )
        for heading, key in columns
    ]
    legend = [make("li", {"class": f"key {key}"}, name) for key, name in parts.items()]
    return make(
        "section",
        {"aria-label": what},
        make(
            "p",
            {"id": "tools", "hidden": "hidden"},
            make("label", {"for": "filter"}, f"Show {what} with"),
            make("input", {"id": "filter", "type": "search"}),
        ),
        make("ul", {"class": "legend"}, *legend),
        make(
            "div",
            {
                "class": "wide",
                "tabindex": "0",
                "role": "region",
                "aria-label": f"Table of {what}",
            },
            make(
                "table",
                {"class": "live"},
                make("thead", {}, make("tr", {}, *head)),
                make("tbody", {}, *rows),
            ),
        ),
    )


def draw_row(name: str, keys: Mapping[str, object], *cells: ET.Element) -> ET.Element:
    """Draw a row.

    Args:
        name: The part's.
        keys: What it is sorted by; ``None`` for what is not known.
        cells: Its cells.
    """
    data = {f"data-{key}": "" if it is None else str(it) for key, it in keys.items()}
    return make("tr", {"id": name, **data}, *cells)


def draw_bar(
    sizes: Mapping[str, int], whole: int, names: Mapping[str, str]
) -> list[ET.Element]:
    """Draw what makes up a whole. Others may say what cannot be: the bar ends there.

    Args:
        sizes: Bytes of each part, in their order.
        whole: Bytes.
        names: What each part is called.
    """
    if not sizes or whole <= 0:
        return []
    said = ", ".join(
        f"{names[part]} {format_size(size)}" for part, size in sizes.items()
    )
    bars: list[ET.Element] = []
    end = 0.0
    for part, size in sizes.items():
        start, end = end, min(end + 100 * max(size, 0) / whole, 100.0)
        place = {"x": f"{start:.1f}%", "width": f"{end - start:.1f}%"}
        bars.append(make("rect", {"class": part, **place, "height": "100%"}))
    return [make("svg", {"class": "bar", "role": "img", "aria-label": said}, *bars)]


# What happened


def draw_log_section(log: ET.Element) -> ET.Element:
    """Draw what happened, below its heading."""
    return make(
        "section",
        {},
        make("h2", {}, "What happened, and why"),
        log,
    )


def draw_log(entries: Iterable[Entry], *, with_names: bool) -> ET.Element:
    """Draw what happened, the newest first.

    Args:
        entries: What happened, the newest last.
        with_names: Whether to say which VM it was.
    """
    newest = list(entries)[-_MOST_ENTRIES:][::-1]
    return make(
        "ul",
        {"id": "log"},
        *(_draw_entry(each, with_name=with_names) for each in newest),
    )


def _draw_entry(entry: Entry, *, with_name: bool) -> ET.Element:
    at = datetime.fromtimestamp(entry.at).astimezone()
    stamp = at.isoformat(timespec="seconds")
    time = make("time", {"datetime": stamp, "title": stamp}, f"{at:%H:%M:%S}")
    name = "" if entry.vm is None else make_printable(entry.vm, LONGEST_NAME)
    return make(
        "li", {}, time, f" {name} {entry.text}" if with_name else f" {entry.text}"
    )
