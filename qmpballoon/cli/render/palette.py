"""The colours in a terminal, for each kind of background.

All colours are from 16 to 255, which look the same on all terminals. Users can change
the first 16, which may then be hard to read. On its background each has a contrast of
at least 4.5:1 (WCAG 2.1, level AA), which tests check.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from attrs import frozen

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["PALETTES", "Palette", "choose_palette"]


@frozen(kw_only=True)
class Palette:
    """Colours by what they mean.

    Attributes:
        curves: The colour of each curve of a chart, by the curve's name.
        good: All is well.
        warning: Something is to be looked at.
        bad: Something is wrong.
        secondary: What matters less: axes, old figures.
    """

    curves: Mapping[str, int]
    good: int
    warning: int
    bad: int
    secondary: int

    def make_styles(self) -> dict[str, str]:
        """Return styles for rich, by name."""
        return {
            "good": f"color({self.good})",
            "warning": f"color({self.warning})",
            "bad": f"bold color({self.bad})",
            "secondary": f"color({self.secondary})",
            "used": f"color({self.curves['actual']})",
            "cache": f"color({self.curves['disk_caches']})",
            "free": f"color({self.curves['free']})",
            "bar.complete": f"color({self.curves['actual']})",
            "bar.finished": f"color({self.good})",
        }


PALETTES: Final[Mapping[str, Palette]] = {
    "dark": Palette(
        curves={
            "available": 37,
            "free": 78,
            "disk_caches": 214,
            "resident": 205,
            "target": 252,
            "actual": 39,
        },
        good=78,
        warning=214,
        bad=203,
        secondary=245,
    ),
    "light": Palette(
        curves={
            "available": 23,
            "free": 28,
            "disk_caches": 130,
            "resident": 162,
            "target": 238,
            "actual": 26,
        },
        good=28,
        warning=130,
        bad=160,
        secondary=241,
    ),
    # There are just six that can be read on white and on black.
    "unknown": Palette(
        curves={
            "available": 98,
            "free": 29,
            "disk_caches": 131,
            "resident": 163,
            "target": 243,
            "actual": 63,
        },
        good=29,
        warning=163,
        bad=131,
        secondary=243,
    ),
}
"""The palettes, by the background that they are for."""

_DARK: Final = {*range(7), 8}


def choose_palette(environment: Mapping[str, str]) -> Palette:
    """Choose the colours for a terminal.

    Many terminals set ``COLORFGBG`` to the numbers of their colours, the background's
    last: ``15;0`` or ``0;default;15``. Of the 16 colours, the first seven and dark grey
    count as dark.

    Args:
        environment: The process' environment variables.
    """
    found = re.search(r";(\d|1[0-5])\Z", environment.get("COLORFGBG", ""), re.ASCII)
    if found is None:
        return PALETTES["unknown"]
    return PALETTES["dark" if int(found[1]) in _DARK else "light"]
