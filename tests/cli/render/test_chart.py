"""The chart in the terminal: it fits, it can be read, and it goes away properly."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import struct
import termios
from typing import TYPE_CHECKING

import pytest
import trio
from command import PROGRAM, serve
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from qmpballoon.balloon.sampling import Sample
from qmpballoon.cli.render.chart import SERIES, canvas, seconds_label
from qmpballoon.cli.render.live import Phases
from qmpballoon.cli.render.screen import Chart
from qmpballoon.sizes import GiB, MiB, TiB

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

ESCAPE = re.compile(r"\x1b\[[0-9;]*m")
BRAILLE = re.compile("[\u2801-\u28ff]")


def shrinking(total: int = 2 * GiB, seconds: float = 8.0) -> list[Sample]:
    """Return samples of a guest that loses half of its memory, mostly cache."""
    steps = 40
    return [
        Sample(
            t=seconds * step / steps,
            target=total // 2,
            actual=total - total * step // (2 * steps),
            total=total,
            free=total // 8,
            available=total * 3 // 4 - total * step // (2 * steps),
            disk_caches=total * 5 // 8 - total * step // (2 * steps),
            resident=total * 9 // 10 - total * step // (2 * steps),
        )
        for step in range(steps + 1)
    ]


samples = st.builds(
    shrinking,
    st.integers(MiB, 16 * TiB),
    st.floats(0.0, 1e7, allow_nan=False),
)


@settings(max_examples=30)  # a drawing takes a while
@given(samples, st.integers(30, 200), st.integers(6, 60), st.booleans())
def test_a_canvas_has_the_size_it_was_asked_for(
    timeline: Sequence[Sample],
    width: int,
    height: int,
    colour: bool,
) -> None:
    lines = canvas(timeline, width, height, colour=colour).splitlines()
    assert len(lines) == height
    assert max(len(ESCAPE.sub("", line)) for line in lines) <= width


def test_with_colour_each_line_has_its_own() -> None:
    text = canvas(shrinking(), 80, 20, colour=True)
    assert BRAILLE.search(text)
    for series in SERIES:
        assert f"38;5;{series.colour}m" in text


def test_without_colour_each_line_has_its_letter() -> None:
    text = canvas(shrinking(), 80, 20, colour=False)
    assert "\x1b" not in text
    assert not BRAILLE.search(text)
    for series in SERIES:
        assert series.letter in text


def test_figures_that_are_not_known_are_not_drawn() -> None:
    text = canvas(
        [Sample(0.0, None, GiB), Sample(1.0, None, GiB)], 80, 20, colour=False
    )
    drawn = {
        series.letter for series in SERIES if f"{series.letter}{series.letter}" in text
    }
    assert drawn == {"a"}


@pytest.mark.parametrize(
    ("total", "seconds", "labels"),
    [
        (2 * GiB, 4.0, {"0 GiB", "0.5 GiB", "2 GiB", "0 s", "4 s"}),
        (512 * MiB, 90.0, {"0 MiB", "128 MiB", "512 MiB", "20 s", "1:40"}),
        (16 * GiB, 7000.0, {"4 GiB", "16 GiB", "30:00", "2:00:00"}),
    ],
)
def test_axes_have_round_figures_and_units(
    total: int, seconds: float, labels: set[str]
) -> None:
    text = canvas(shrinking(total, seconds), 80, 20, colour=False)
    assert {label for label in labels if label in text} == labels


def test_times_on_the_axis() -> None:
    shown = [seconds_label(seconds) for seconds in (0, 59, 60, 150, 3600, 36_061)]
    assert shown == ["0 s", "59 s", "1:00", "2:30", "1:00:00", "10:01:01"]


@settings(max_examples=30)  # a drawing takes a while
@given(samples, st.integers(56, 200), st.integers(12, 60))
def test_the_whole_chart_fits_the_terminal(
    timeline: Sequence[Sample], width: int, height: int
) -> None:
    out = io.StringIO()
    console = Console(file=out, width=width, height=height, color_system=None)
    chart = Chart("a VM of a very long name " * 10)
    for sample in timeline:
        chart.add(sample)
    console.print(chart.render(console, height))
    lines = out.getvalue().splitlines()
    assert len(lines) == height
    assert max(len(line) for line in lines) <= width
    # Nothing is cut off the figures.
    assert len(re.findall(r"\d (?:MiB|GiB)\b", "\n".join(lines[-3:]))) >= 5


def test_phases() -> None:
    full, less = Sample(0.0, None, 2 * GiB), Sample(0.0, GiB, GiB)
    asked_back = Sample(0.0, 2 * GiB, GiB)
    phases = Phases()
    words = [
        phases.of(sample)
        for sample in (
            full,
            Sample(0.0, 2 * GiB, 2 * GiB),
            less,
            asked_back,
            Sample(0.0, 2 * GiB, 2 * GiB),
        )
    ]
    assert words == ["watching", "beginning", "taking", "giving back", "given back"]


class Terminal:
    """A terminal of 80 columns and 24 lines with the command in it."""

    def __init__(self, *arguments: object, term: str = "xterm-256color") -> None:
        self.arguments = [*PROGRAM, *map(str, arguments)]
        self.term = term
        self.shown = ""

    async def run(self, until: Callable[[str], bool], keys: bytes | None) -> int:
        """Run the command; type the keys once it shows what is waited for.

        ``None`` closes the terminal.
        """
        master, terminal = pty.openpty()
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
        process = await trio.lowlevel.open_process(
            self.arguments,
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            # The terminal becomes its own: typed there, Ctrl-C is a signal.
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
            env={**os.environ, "TERM": self.term, "PYTHONUTF8": "1"},
        )
        os.close(terminal)
        with trio.fail_after(30):
            while not until(self.shown):
                await self._read(master)
            if keys is None:
                os.close(master)
                return await process.wait()
            os.write(master, keys)
            while await self._read(master):
                pass
            status = await process.wait()
        os.close(master)
        return status

    async def _read(self, master: int) -> bool:
        await trio.lowlevel.wait_readable(master)
        try:
            data = os.read(master, 65536)
        except OSError:  # how Linux says that nobody has the terminal open
            return False
        self.shown += data.decode(errors="replace")
        return bool(data)


@pytest.mark.parametrize("term", ["xterm-256color", "dumb"])
async def test_a_terminal_that_is_closed_gives_back(
    socket_path: Path, term: str
) -> None:
    terminal = Terminal("reclaim", socket_path, "--max-rate", "100M", term=term)
    async with serve(socket_path) as fake:
        await terminal.run(lambda shown: "taking" in shown, None)
        assert fake.machine.device is not None
        assert fake.machine.device.asked == 0


async def test_ctrl_c_leaves_the_terminal_as_it_was(socket_path: Path) -> None:
    terminal = Terminal("reclaim", socket_path, "--max-rate", "100M")
    async with serve(socket_path) as fake:
        status = await terminal.run(lambda shown: "taking" in shown, b"\x03")
        assert fake.machine.device is not None
        assert fake.machine.device.asked == 0
    assert status == 130
    before, _, after = terminal.shown.rpartition("\x1b[?1049l")
    assert before.startswith("\x1b[?1049h\x1b[H\x1b[?25l")
    assert after.startswith("\x1b[?25h")
    # What remains on the first screen: the chart, and what became of the guest.
    assert "guest cache" in after
    assert "its memory back" in after
    assert "Traceback" not in terminal.shown


async def test_the_bar_of_a_resize(socket_path: Path) -> None:
    terminal = Terminal("resize", socket_path, "1G")
    async with serve(socket_path):
        assert await terminal.run(lambda shown: "1 GiB" in shown, b"") == 0
    assert "reached: 2 GiB -> 1 GiB" in terminal.shown
    assert terminal.shown.count("\x1b[?25h") == terminal.shown.count("\x1b[?25l")
