"""Links between the documents of a clone lead to a file, and to a heading in it.

Sphinx checks those of ``docs`` as well, when it builds them. This checks them as they
are followed in a clone, with those of the documents beside them.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Final

import pytest

TREE: Final = Path(__file__).parents[1]
PAGES: Final = sorted([*TREE.glob("*.md"), *(TREE / "docs").rglob("*.md")])
FENCED: Final = re.compile(r"^(```+|:::+).*?^\1$", re.DOTALL | re.MULTILINE)
LINK: Final = re.compile(r"\]\(\s*([^)\s]+)\s*\)")
FILE: Final = re.compile(r"\{download\}`(?:[^`<]*<)?([^`>]+)>?`")
LABEL: Final = re.compile(r"^\(([\w-]+)\)=$", re.MULTILINE)
HEADING: Final = re.compile(r"^#{1,6} +(.+)$", re.MULTILINE)


@cache
def read(page: Path) -> str:
    """Return a page without its code."""
    return FENCED.sub("", page.read_text("utf-8"))


@cache
def list_anchors(page: Path) -> frozenset[str]:
    """Return what a link to a page may have behind the ``#``."""
    text = read(page)
    slugs = (re.sub(r"[^\w -]", "", title.lower()) for title in HEADING.findall(text))
    return frozenset(
        [*LABEL.findall(text), *(slug.replace(" ", "-") for slug in slugs)]
    )


def is_dead(page: Path, link: str) -> bool:
    name, _, anchor = link.partition("#")
    target = page.parent / name if name else page
    if not target.exists():
        return True
    return bool(anchor) and anchor not in list_anchors(target)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(TREE)))
def test_no_link_is_dead(page: Path) -> None:
    links = [*LINK.findall(read(page)), *FILE.findall(read(page))]
    # Not addresses, nor names in Python, which Sphinx looks up.
    inside = [link for link in links if not re.match(r"[a-z]+:|#qmpballoon\.", link)]
    assert [link for link in inside if is_dead(page, link)] == []


FRONT_PAGE: Final = TREE / "docs/index.md"
AT_HAND: Final = {
    *("QEMU alone", "Proxmox VE", "Incus or LXD", "libvirt"),
    *("microVMs, Kata Containers", "an orchestrator of your own"),
    *("a host full of VMs", "many hosts"),
}


def list_ways() -> dict[str, str]:
    """Return where the front page sends those who have VMs, by what runs them."""
    rows = re.findall(r"^\| (.+) \| \[\]\((.+)\) \|$", read(FRONT_PAGE), re.MULTILINE)
    return dict(rows)


def read_section(link: str) -> str:
    """Return what a link of the front page leads to, with its code."""
    name, _, anchor = link.partition("#")
    page = FRONT_PAGE.parent / name
    parts = re.split(r"^(?=## )", page.read_text("utf-8"), flags=re.MULTILINE)
    title = anchor.replace("-", " ")
    found = [part for part in parts if part.lower().startswith(f"## {title}\n")]
    return found[0] if anchor else "".join(parts)


def test_the_front_page_knows_whoever_has_vms() -> None:
    assert list_ways().keys() == AT_HAND


@pytest.mark.parametrize("whose", sorted(AT_HAND))
def test_from_the_front_page_it_is_one_click_to_what_reclaims(whose: str) -> None:
    code = FENCED.finditer(read_section(list_ways()[whose]))
    assert any(re.search(r"\breclaim\b", block[0]) for block in code)


def test_a_dead_link_is_found() -> None:
    page = TREE / "README.md"
    assert is_dead(page, "docs/nowhere.md")
    assert is_dead(page, "docs/howto/connect.md#nowhere")
    assert not is_dead(page, "docs/howto/connect.md#permissions")
