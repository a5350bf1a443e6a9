"""The code blocks of the documentation, for the tests that run them.

A block that cannot be run has a comment in the line before it that says why::

    <!-- not run: needs a Proxmox VE host -->

A block for another VM than the usual one has the options of ``qmpballoon fake``::

    <!-- fake: --no-driver -->
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

from attrs import frozen

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["DOCS", "Block", "blocks", "commands"]

DOCS: Final = Path(__file__).parents[2] / "docs"
_BLOCK: Final = re.compile(
    r"(?:^<!-- (?P<key>not run|fake): (?P<value>[^\n]+) -->\n\n?)?"
    r"^(?P<fence>```+)(?:\{code-block\} )?(?P<language>[a-z]+)\n"
    r"(?::caption: (?P<caption>[^\n]+)\n\n)?(?P<source>.*?)^(?P=fence)$",
    re.DOTALL | re.MULTILINE,
)


@frozen
class Block:
    """One fenced block.

    Attributes:
        place: Where it is, as ``page.md:line``.
        language: What it says it is.
        source: What it says.
        not_run: Why it cannot be run; empty if it can.
        fake: Options for the VM that it is run on.
        caption: What is written above it.
    """

    place: str
    language: str
    source: str
    not_run: str
    fake: str
    caption: str


def blocks(*pages: Path) -> Iterator[Block]:
    """Yield the blocks of pages, by default of all the documentation's."""
    for page in pages or sorted(DOCS.rglob("*.md")):
        text = page.read_text(encoding="utf-8")
        for match in _BLOCK.finditer(text):
            key, value = match["key"], match["value"] or ""
            line = text.count("\n", 0, match.start("fence")) + 1
            yield Block(
                place=f"{page.relative_to(DOCS)}:{line}",
                language=match["language"],
                source=match["source"],
                not_run=value if key == "not run" else "",
                fake=value if key == "fake" else "",
                caption=match["caption"] or "",
            )


def commands(source: str) -> Iterator[tuple[str, str]]:
    """Yield each command of a ``console`` block, with the output that is shown."""
    for part in re.split(r"^\$ ", source, flags=re.MULTILINE)[1:]:
        lines = part.splitlines(keepends=True)
        end = next(n for n, line in enumerate(lines, 1) if not line.endswith("\\\n"))
        yield "".join(lines[:end]), "".join(lines[end:])
