"""What moves while a subcommand runs, on a terminal and where there is none."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import termios
from typing import TYPE_CHECKING

import pytest
import trio
from command import PROGRAM, serve

from qmpballoon.balloon.sampling import Sample
from qmpballoon.cli._display import show_timeline
from qmpballoon.sizes import GiB, MiB

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def test_a_title_and_lines_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with show_timeline("title") as show:
        for n in range(3):
            show(Sample(n / 10, GiB if n else None, 2 * GiB - n * MiB))
    title, first, second, last = capsys.readouterr().out.splitlines()
    assert title == "title"
    assert first.startswith("   0.0 s  watching")
    assert second.startswith("   0.1 s  taking")
    assert last.startswith("   0.2 s  taking")


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
