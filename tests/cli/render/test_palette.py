"""What is drawn in a terminal can be read on its background, and told apart."""

from __future__ import annotations

import io
import re

import pytest
from attrs import evolve
from contrast import READABLE, compute_contrast
from pages import HOST, RULES, WELL
from rich.console import Console
from rich.theme import Theme

from qmpballoon.balloon.sampling import Sample
from qmpballoon.cli._display import make_console
from qmpballoon.cli.render.chart import Chart
from qmpballoon.cli.render.history import History
from qmpballoon.cli.render.palette import PALETTES, Palette, choose_palette
from qmpballoon.cli.render.table import draw_fleet, draw_screen
from qmpballoon.export.series import SERIES
from qmpballoon.fleet.vm_view import VM_STATES
from qmpballoon.sizes import GiB

BLACK, WHITE = (0, 0, 0), (255, 255, 255)
BACKGROUNDS = {"dark": [BLACK], "light": [WHITE], "unknown": [BLACK, WHITE]}
STEPS = (0, 95, 135, 175, 215, 255)  # xterm's, of each of red, green and blue
ESCAPE = re.compile(r"\x1b\[([\d;]*)m")
COLOURED = re.compile(r"(?:^|;)(?:38;5;(\d+)|(38;2[\d;]*|48[\d;]*|3[0-7]|4\d|2|9\d))\b")


def rgb(number: int) -> tuple[int, int, int]:
    """Return the red, green and blue of one of xterm's colours above the first 16."""
    if number >= 232:
        return (8 + 10 * (number - 232),) * 3
    number -= 16
    return STEPS[number // 36], STEPS[number // 6 % 6], STEPS[number % 6]


def colours(palette: Palette) -> set[int]:
    others = {palette.good, palette.warning, palette.bad, palette.secondary}
    return {*palette.curves.values()} | others


def test_the_formula_gives_the_ratios_that_are_known() -> None:
    assert compute_contrast(BLACK, WHITE) == pytest.approx(21)
    assert compute_contrast((0x76, 0x76, 0x76), WHITE) == pytest.approx(4.54, abs=0.005)


@pytest.mark.parametrize("kind", PALETTES)
def test_every_colour_can_be_read(kind: str) -> None:
    ratios = {
        (number, background): compute_contrast(rgb(number), background)
        for number in colours(PALETTES[kind])
        for background in BACKGROUNDS[kind]
    }
    assert min(colours(PALETTES[kind])) >= 16
    assert {key: ratio for key, ratio in ratios.items() if ratio < READABLE} == {}


@pytest.mark.parametrize("palette", PALETTES.values())
def test_every_curve_has_a_colour_of_its_own(palette: Palette) -> None:
    assert palette.curves.keys() == {series.name for series in SERIES}
    assert len({*palette.curves.values()}) == len(SERIES)
    assert len({palette.good, palette.warning, palette.bad}) == 3


@pytest.mark.parametrize(
    ("told", "kind"),
    [
        ("15;0", "dark"),
        ("12;8", "dark"),
        ("0;default;6", "dark"),
        ("0;15", "light"),
        ("0;7", "light"),
        ("0;default;15", "light"),
        ("default;default", "unknown"),
        ("0;16", "unknown"),
        ("0;\u0661", "unknown"),
        ("0", "unknown"),
        ("", "unknown"),
    ],
)
def test_the_background_is_what_the_terminal_tells(told: str, kind: str) -> None:
    assert choose_palette({"COLORFGBG": told}) == PALETTES[kind]


def test_without_a_word_on_the_background_it_is_unknown() -> None:
    assert choose_palette({}) == PALETTES["unknown"]


@pytest.mark.parametrize("kind", PALETTES)
def test_nothing_else_is_drawn_in_colour(kind: str) -> None:
    palette = PALETTES[kind]
    out = io.StringIO()
    console = Console(
        file=out,
        width=100,
        height=60,
        force_terminal=True,
        color_system="256",
        highlight=False,
        theme=Theme(palette.make_styles()),
        _environ={},
    )
    poor = evolve(HOST, available=RULES.reserve // 2, pressed=True)
    views = [
        evolve(
            WELL, name=state, state=state, detail=state if state != "healthy" else ""
        )
        for state in VM_STATES
    ]
    chart = Chart("title")
    chart.add(Sample(0.0, GiB, GiB, GiB, GiB, GiB, GiB, GiB))
    chart.add(Sample(9.0, GiB, GiB, GiB, GiB, GiB, GiB, GiB))
    console.print(draw_fleet(HOST, RULES, views, 100))
    many = draw_screen(poor, RULES, views * 20, History(), width=100, height=24)
    console.print(many)
    console.print(chart.render(100, 30, palette))
    found = {
        (number, other)
        for codes in ESCAPE.findall(out.getvalue())
        for number, other in COLOURED.findall(codes)
    }
    assert found == {(str(number), "") for number in colours(palette)}


def test_the_console_has_the_colours_for_the_background(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLORFGBG", "0;15")
    colour = make_console().get_style("bad").color
    assert colour is not None
    assert colour.number == PALETTES["light"].bad


@pytest.mark.parametrize(
    ("term", "colour"), [("xterm-256color", True), ("linux", False), ("xterm", False)]
)
def test_where_there_are_few_colours_none_is_used(
    term: str, colour: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("COLORTERM", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")  # as on a terminal
    monkeypatch.setenv("TERM", term)
    assert make_console().no_color is not colour
