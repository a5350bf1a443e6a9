"""The man page that is installed says what the command itself says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
import pytest

from qmpballoon.cli._group import command_line

if TYPE_CHECKING:
    from collections.abc import Iterator

MAN_PAGE: Final = Path(__file__).parents[2] / "share/man/man1/qmpballoon.1"


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
