"""The man pages that are installed say what the command and the documentation say."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
import pytest

from qmpballoon.cli._findings import KINDS
from qmpballoon.cli._group import command_line

if TYPE_CHECKING:
    from collections.abc import Iterator

TREE: Final = Path(__file__).parents[2]
MAN_PAGE: Final = TREE / "share/man/man1/qmpballoon.1"


def list_commands(
    command: click.Command, context: click.Context
) -> Iterator[click.Context]:
    """Yield the context of a command, and of all below it."""
    yield context
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below
            yield from list_commands(below, click.Context(below, context, name))


CONTEXTS: Final = list(
    list_commands(command_line, click.Context(command_line, info_name="qmpballoon"))
)


def words_of(text: str) -> str:
    """Return a text without its layout and markup."""
    text = re.sub(r"\[([^]]+)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"^\.(?!B )\w.*$|^\.B ", "", text, flags=re.MULTILINE)
    text = re.sub(r"\\f[BIPR]|\\&|`", "", text)
    text = text.replace(r"\(aq", "'").replace(r"\-", "-")
    return f" {' '.join(text.split())} "


@pytest.mark.parametrize("context", CONTEXTS, ids=lambda it: it.command_path)
def test_the_man_page_says_what_the_help_says(context: click.Context) -> None:
    sections = re.split(r"^\.SS ", MAN_PAGE.read_text("utf-8"), flags=re.MULTILINE)
    (section,) = [each for each in sections if f"\n{context.command_path} [" in each]
    command, words = context.command, words_of(section)
    said = [command.help or "", command.epilog or ""]
    for option in command.params:
        if isinstance(option, click.Option):
            said += [", ".join(option.opts), option.help or ""]
    missing = [text for text in said if words_of(text).strip() not in words]
    assert missing == [], "tox -e man makes the page anew"


def split_at_headings(text: str, mark: str) -> dict[str, str]:
    """Return the sections of a page by their headings, which begin with a mark."""
    _, *parts = re.split(rf"^{mark} (\S+)\n", text, flags=re.MULTILINE)
    return dict(zip(parts[::2], parts[1::2], strict=True))


def test_the_doctors_man_page_says_what_its_findings_mean() -> None:
    page = (TREE / "docs/reference/doctor.md").read_text("utf-8")
    man_page = MAN_PAGE.with_name("qmpballoon-doctor.1").read_text("utf-8")
    said = split_at_headings(page.partition("\n## What the host got")[0], "##+")
    shown = split_at_headings(man_page.replace(r"\-", "-"), r"\.S[HS]")
    for kind in KINDS:
        # The man page has another page's title in place of a link to it.
        parts = re.split(r"\[\]\([^)]*\)", said[kind])
        words = words_of(shown[kind])
        missing = [part for part in parts if words_of(part).strip() not in words]
        assert missing == [], "tox -e man makes the page anew"
