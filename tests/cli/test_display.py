"""What moves while a subcommand runs, on a terminal and where there is none."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import termios
from typing import TYPE_CHECKING

import pytest
import trio
from command import PROGRAM, actual, run, serve

from qmpballoon.balloon.sampling import Sample
from qmpballoon.cli._display import show_timeline
from qmpballoon.sizes import GiB, MiB

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


ESCAPE = re.compile(r"\x1b\[[\d;?]*[a-zA-Z]")


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
    """A terminal of 24 lines with the command in it."""

    def __init__(
        self, *arguments: object, term: str = "xterm-256color", columns: int = 80
    ) -> None:
        self.arguments = [*PROGRAM, *map(str, arguments)]
        self.term = term
        self.columns = columns
        self.shown = ""

    async def run(self, until: Callable[[str], bool], keys: bytes | None) -> int:
        """Run the command; type the keys once it shows what is waited for.

        ``None`` closes the terminal.
        """
        master, terminal = pty.openpty()
        # These would count more than what the terminal says.
        environment = {
            name: value
            for name, value in os.environ.items()
            if name not in {"COLUMNS", "LINES"}
        }
        fcntl.ioctl(
            terminal, termios.TIOCSWINSZ, struct.pack("4H", 24, self.columns, 0, 0)
        )
        process = await trio.lowlevel.open_process(
            self.arguments,
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            # The terminal becomes its own: typed there, Ctrl-C is a signal.
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
            env={**environment, "TERM": self.term, "PYTHONUTF8": "1"},
        )
        os.close(terminal)
        with trio.fail_after(300):
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
        taken = actual(fake) - 32 * MiB
        status = await terminal.run(
            lambda shown: "taking" in shown and actual(fake) < taken, b"\x03"
        )
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


async def test_the_last_chart_and_the_summary_fit_on_the_screen(
    socket_path: Path,
) -> None:
    terminal = Terminal("reclaim", socket_path)
    async with serve(socket_path, disks=1):
        assert await terminal.run(lambda shown: "\x1b[?1049l" in shown, b"") == 0
    _, _, after = terminal.shown.rpartition("\x1b[?1049l")
    assert "guest cache" in after
    assert "disk reads" in after
    assert "from its disks" in after
    lines = [ESCAPE.sub("", line) for line in after.split("\r\n")]
    assert len(lines) <= 24  # the last of them is the prompt's
    assert max(map(len, lines)) <= 80
    assert lines[0].startswith("Reclaiming memory from")


@pytest.mark.parametrize("columns", [30, 79])
async def test_no_line_is_broken_between_a_size_and_its_unit(
    socket_path: Path, columns: int
) -> None:
    terminal = Terminal("reclaim", socket_path, "--dry-run", columns=columns)
    async with serve(socket_path):
        assert await terminal.run(lambda shown: "in about" in shown, b"") == 0
    lines = terminal.shown.strip().split("\r\n")
    assert len(lines) > 2
    assert max(map(len, lines)) <= columns
    assert [line for line in lines if line[-1].isdigit()] == []


async def test_a_command_to_copy_is_one_line(socket_path: Path) -> None:
    terminal = Terminal("reclaim", socket_path, "300M", "--hold", columns=40)
    async with serve(socket_path):
        assert await terminal.run(lambda shown: "gives it back" in shown, b"") == 0
    *_, last = terminal.shown.strip("\r\n").split("\r\n")
    assert last == f"  qmpballoon resize {socket_path} 2GiB  # gives it back"
    assert len(last) > 40


async def test_in_a_pipe_a_sentence_is_one_line(socket_path: Path) -> None:
    async with serve(socket_path, disks=1):
        lines = (await run("reclaim", socket_path)).stdout.splitlines()
    assert [line for line in lines if line != line.rstrip()] == []
    assert len(lines[lines.index("") :]) == 11
    assert lines[-2].startswith("The guest's page cache fell by")
    assert len(lines[-2]) > 80


async def test_the_bar_of_a_resize(socket_path: Path) -> None:
    terminal = Terminal("resize", socket_path, "1G")
    async with serve(socket_path):
        assert await terminal.run(lambda shown: "1 GiB" in shown, b"") == 0
    assert "reached: 2 GiB -> 1 GiB" in terminal.shown
    assert terminal.shown.count("\x1b[?25h") == terminal.shown.count("\x1b[?25l")
