"""The fleet's table: what is seen on screens of several sizes."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING

import pages
import pytest
from attrs import evolve
from pages import HOST, RULES
from rich.console import Console
from rich.theme import Theme

from qmpballoon.cli._display import print_fleet
from qmpballoon.cli.render.history import History
from qmpballoon.cli.render.palette import PALETTES
from qmpballoon.cli.render.table import draw_screen
from qmpballoon.fleet.vm_view import VM_STATES
from qmpballoon.sizes import GiB, MiB, TiB

if TYPE_CHECKING:
    from qmpballoon.fleet.vm_view import VmView

WELL = evolve(pages.WELL, name="well")
GONE = evolve(WELL, name="away", state="gone", detail="there is no socket " * 20)
PALETTE = PALETTES["unknown"]
RED = f"\x1b[1;38;5;{PALETTE.bad}m"


def drawn(
    views: list[VmView],
    *,
    width: int = 80,
    height: int = 24,
    history: History | None = None,
) -> list[str]:
    """Return the lines of a screen that a fleet is shown on."""
    file = io.StringIO()
    console = Console(
        file=file,
        width=width,
        height=height,
        force_terminal=True,
        color_system="256",
        theme=Theme(PALETTE.make_styles()),
    )
    console.print(draw_screen(HOST, RULES, views, history, width=width, height=height))
    return file.getvalue().rstrip().splitlines()


def test_nothing_is_drawn_beyond_the_screen() -> None:
    fleet = [evolve(WELL, name=f"vm{number:03}") for number in range(100)]
    lines = drawn([*fleet, *[GONE] * 9], height=20)
    assert len(lines) < 20
    assert "109 VMs" in lines[1]
    assert "vm000" in "".join(lines)
    (hidden,) = [line for line in lines if "more" in line]
    shown = sum("vm0" in line for line in lines)
    assert f"and {109 - shown} more" in hidden


def test_every_state_is_shown_and_counted() -> None:
    views = [evolve(WELL, name=state, state=state) for state in VM_STATES]
    lines = drawn(views, width=300)
    summary = "\n".join(lines)
    for state in VM_STATES:
        assert summary.count(f"1 {state}") == 1


def test_what_is_wrong_is_one_line_below_the_table() -> None:
    lines = drawn([WELL, GONE], width=60)
    (note,) = [line for line in lines if "no socket" in line]
    assert "away" in note
    assert "…" in note


def test_who_is_in_need_is_red() -> None:
    needy = evolve(WELL, stats=evolve(WELL.stats, available=100 * MiB))
    assert f"{RED}  100 MiB" in "".join(drawn([needy]))
    assert RED not in "".join(drawn([WELL]))
    # What a guest said before it fell silent does not count any more.
    assert RED not in "".join(drawn([evolve(needy, state="stale")]))


def test_hot_cache_has_a_column_which_warns_if_some_of_it_is_lacking() -> None:
    warning = f"\x1b[38;5;{PALETTE.warning}m"
    (line,) = [line for line in drawn([WELL], width=120) if "well" in line]
    assert "  700 MiB" in line
    lacks = evolve(WELL, hot=1000 * MiB)
    (line,) = [line for line in drawn([lacks], width=120) if "well" in line]
    assert f"{warning}1000 MiB" in line
    assert "hot" not in "".join(drawn([WELL], width=60))


@pytest.mark.parametrize("width", range(50, 120))
def test_no_size_is_cut(width: int) -> None:
    long = evolve(
        WELL,
        name="a name of many letters",
        state="no-permission",
        actual=1023 * GiB + 900 * MiB,
        total=2 * TiB - GiB,
        resident=1000 * GiB + 500 * MiB,
    )
    shown = [
        re.sub(r"\x1b\[[\d;]*m", "", line) for line in drawn([long, WELL], width=width)
    ]
    assert max(map(len, shown)) <= width
    heading = next(line for line in shown if line.startswith(" VM "))
    rows = [line for line in shown if line.startswith((" a name", " well"))]
    assert len(rows) == 2
    for row in rows:
        cells = re.split(r"  +", row.strip())
        assert "\u2026" not in "".join(cells[1:])
        assert len(cells) == len(heading.split())
        assert all(re.fullmatch(r"[\d.]+ [MGT]iB", cell) for cell in cells[2:])
    # Where there is room, all of it is shown.
    assert width < 110 or len(heading.split()) == 9


def test_in_a_pipe_no_line_ends_with_spaces(
    capsys: pytest.CaptureFixture[str],
) -> None:
    print_fleet(HOST, RULES, [WELL, evolve(GONE, detail="there is no socket")])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 7
    assert [line for line in lines if line != line.rstrip()] == []


def test_where_nobody_watches_nothing_is_cut(
    capsys: pytest.CaptureFixture[str],
) -> None:
    fleet = [evolve(WELL, name=f"vm{number:03}") for number in range(100)]
    print_fleet(HOST, RULES, [*fleet, GONE])
    shown = capsys.readouterr().out
    assert "vm099" in shown
    assert "more" not in shown
    assert shown.count("no socket") == 20


# Pictures


def seen(name: str, *, used: int, cache: int, free: int, total: int = 1600) -> VmView:
    """Return a VM with so many MiB."""
    stats = evolve(
        WELL.stats,
        disk_caches=cache * MiB,
        free=free * MiB,
        available=(cache + free) * MiB,
    )
    actual = (used + cache + free) * MiB
    return evolve(WELL, name=name, actual=actual, total=total * MiB, stats=stats)


FAT = seen("fat", used=200, cache=1300, free=100)
NEEDY = seen("needy", used=700, cache=60, free=40)


def shown(views: list[VmView], history: History, width: int = 80) -> list[str]:
    """Return the lines of a screen with pictures, without their colours."""
    lines = drawn(views, width=width, history=history)
    return [re.sub(r"\x1b\[[\d;]*m", "", line).rstrip() for line in lines]


def test_on_80_columns_one_sees_who_is_fat_and_who_is_in_need() -> None:
    history = History()
    history.note(0, [FAT, NEEDY, GONE])
    lines = shown([FAT, NEEDY, GONE], history)
    (fat,) = [line for line in lines if line.startswith(" fat")]
    (needy,) = [line for line in lines if line.startswith(" needy")]
    assert max(map(len, lines)) <= 80
    assert "+1.2 GiB  ██▒▒▒▒▒▒▒▒▒▒▒▒▒░ " in fat
    assert "-28 MiB  ███████▒········ " in needy
    assert f"{'█':>12}" in fat
    assert f"{'▁':>12}" in needy
    assert "█ used  ▒ cache  ░ free  · in the balloon" in "".join(lines)
    doing = "needy lacks 28 MiB; in the last minute nothing moved; fat can spare most,"
    assert any(line.startswith(doing) for line in lines)
    red = "".join(drawn([FAT, NEEDY], history=history))
    assert re.search(re.escape(RED) + r" *-28 MiB", red)


def test_no_bar_is_longer_or_shorter_than_others() -> None:
    liar = evolve(FAT, name="liar", actual=2**62)
    empty = evolve(FAT, name="empty", actual=0)
    lines = shown([FAT, liar, empty, NEEDY], History())
    bars = [max(re.findall(r"[█▒░·]+", line), key=len) for line in lines[5:9]]
    assert [len(bar) for bar in bars] == [16] * 4


def test_pictures_are_left_out_where_there_is_no_room() -> None:
    history = History()
    assert "3 minutes" not in "".join(shown([FAT], history, 60))
    assert "memory  " not in "".join(shown([FAT], history, 40))
    # Nor are there any where they cannot be shown.
    assert "spare" not in "".join(drawn([FAT]))


@pytest.mark.parametrize("width", range(30, 140, 7))
def test_no_line_is_longer_than_the_screen(width: int) -> None:
    lines = shown([FAT, NEEDY, GONE], History(), width)
    assert max(map(len, lines)) <= width
    assert len(lines) < 24
