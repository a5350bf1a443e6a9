"""Output that nobody reads: it blocks nobody, and what is dropped is said."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import threading
from contextlib import asynccontextmanager
from errno import ENOSPC
from typing import TYPE_CHECKING

import pytest
import trio
from command import PROGRAM, actual, serve, start, until

from qmpballoon.cli._writer import BackgroundWriter, open_writer
from qmpballoon.sizes import GiB

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

READERS = ["pipe", "terminal"]


def fill(writable: int) -> None:
    """Write until a reader would have to read."""
    os.set_blocking(writable, False)
    try:
        while True:
            os.write(writable, b"\n" * 512)
    except BlockingIOError:
        os.set_blocking(writable, True)


@asynccontextmanager
async def unread(kind: str, *arguments: object) -> AsyncGenerator[trio.Process]:
    """Start the command with an output that is full, and that nobody reads."""
    reader, writable = pty.openpty() if kind == "terminal" else os.pipe()
    fill(writable)
    process = await trio.lowlevel.open_process(
        [*PROGRAM, *map(str, arguments)],
        stdout=writable,
        stderr=writable,
        env={**os.environ, "TERM": "xterm-256color", "PYTHONUTF8": "1"},
        start_new_session=True,
    )
    os.close(writable)
    try:
        with trio.fail_after(300):
            yield process
    finally:
        process.kill()
        os.close(reader)
        with trio.CancelScope(shield=True):
            await process.wait()


async def end_what_waits_for_a_reader(process: trio.Process) -> None:
    """End the command by a signal: as any program, it waits for a reader in the end.

    One that comes before the end, while it still gives memory back, ends nothing.
    """
    while process.returncode is None:
        process.send_signal(signal.SIGTERM)
        with trio.move_on_after(1):
            await process.wait()
    assert process.returncode in (-signal.SIGTERM, 128 + signal.SIGTERM)


@pytest.mark.parametrize("kind", READERS)
async def test_a_reclaim_that_nobody_reads_goes_on_and_gives_back(
    kind: str, socket_path: Path
) -> None:
    async with (
        serve(socket_path) as fake,
        unread(kind, "reclaim", socket_path, "--keep") as process,
    ):
        await until(lambda: actual(fake) < GiB)
        device = fake.machine.device
        assert device is not None
        process.send_signal(signal.SIGTERM)
        await until(lambda: device.asked == device.interval == 0)
        await end_what_waits_for_a_reader(process)


@pytest.mark.parametrize(
    "command",
    [
        "watch --interval 0.1",
        "watch --interval 0.1 --json",
        "fleet status --watch",
        "fleet run --period 0.1",
        "exporter --period 0.1 --listen 0",
    ],
)
async def test_sigterm_ends_what_nobody_reads(command: str, socket_path: Path) -> None:
    name, *rest = command.split(" --")
    options = [part for option in rest for part in f"--{option}".split()]
    async with (
        serve(socket_path) as fake,
        unread("terminal", *name.split(), socket_path, *options) as process,
    ):
        device = fake.machine.device
        assert device is not None
        await until(lambda: device.interval > 0)
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0
        assert device.interval == 0


async def test_a_resize_that_nobody_reads_reaches_its_target(socket_path: Path) -> None:
    async with (
        serve(socket_path) as fake,
        unread("terminal", "resize", socket_path, "1G") as process,
    ):
        await until(lambda: actual(fake) == GiB)
        await end_what_waits_for_a_reader(process)


async def test_a_loop_outlives_the_reader_of_its_log(socket_path: Path) -> None:
    async with (
        serve(socket_path) as fake,
        start("exporter", socket_path, "--listen", "0", "--period", "0.1") as running,
    ):
        await running.stdout.aclose()
        device = fake.machine.device
        assert device is not None
        await until(lambda: device.interval > 0)
        running.process.terminate()
        with trio.fail_after(300):
            # It could not say where it listens, and so it does not end as if it had.
            assert await running.process.wait() == 1
        said = await running.said()
    assert said == (
        "qmpballoon: standard output: 1 message was not written: Broken pipe\n"
    )


async def test_watching_a_fleet_ends_with_its_reader(socket_path: Path) -> None:
    async with (
        serve(socket_path),
        start("fleet", "status", socket_path, "--watch") as running,
    ):
        await running.stdout.aclose()
        with trio.fail_after(300):
            assert await running.process.wait() == 128 + signal.SIGPIPE


async def test_a_recording_on_a_full_disk(socket_path: Path) -> None:
    async with (
        serve(socket_path),
        start("watch", socket_path, "--json", "--record", "/dev/full") as running,
    ):
        with trio.fail_after(300):
            assert await running.process.wait() == 1
        assert await running.said() == (
            "qmpballoon: No space left on device: /dev/full\n"
        )


def test_all_of_a_result_arrives_however_slowly_it_is_read() -> None:
    script = (
        "import sys; from qmpballoon.cli._writer import open_writers\n"
        "with open_writers(): sys.stdout.write('x' * 3_000_000)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as it:
        assert it.stdout is not None
        read = 0
        while chunk := it.stdout.read(65536):
            read += len(chunk)
    assert (read, it.returncode) == (3_000_000, 0)


# The writer alone


class Slow:
    """Something to write to that blocks until it is let go."""

    def __init__(self) -> None:
        self.written: list[str] = []
        self.begun = threading.Event()
        self.go = threading.Event()

    def write(self, piece: str) -> None:
        self.begun.set()
        self.go.wait(30)
        self.written.append(piece)


def test_what_finds_no_room_is_dropped_counted_and_said(
    capsys: pytest.CaptureFixture[str],
) -> None:
    slow = Slow()
    with open_writer("the log", slow.write) as writer:
        writer.submit("first", 5)
        slow.begun.wait(30)
        for _ in range(4):
            writer.submit("large", 1 << 19)
        assert writer.lost == 3
        assert not writer.is_idle
        slow.go.set()
    assert slow.written == ["first", "large"]
    assert writer.is_idle
    assert capsys.readouterr().err == (
        "qmpballoon: the log: 3 messages were not written: nobody reads it\n"
    )


def test_a_piece_of_any_size_has_room_where_nothing_waits() -> None:
    slow = Slow()
    slow.go.set()
    with open_writer("the log", slow.write) as writer:
        writer.submit("huge", 1 << 30)
    assert slow.written == ["huge"]


def test_an_exception_does_not_wait_for_readers(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qmpballoon.cli._writer._LAST_WORDS", 0.0)
    slow = Slow()

    def fail() -> None:
        with open_writer("the log", slow.write) as writer:
            writer.submit("piece", 5)
            slow.begun.wait(30)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    slow.go.set()
    assert "the log: 1 message was not written" in capsys.readouterr().err


def fail_always(_: str) -> None:
    raise OSError(ENOSPC, "No space left on device")


def test_a_strict_writer_raises_its_first_error() -> None:
    with pytest.raises(OSError, match="No space"), open_writer("f", fail_always) as it:
        it.submit("piece", 5)


def test_another_counts_its_errors_and_goes_on(
    capsys: pytest.CaptureFixture[str],
) -> None:
    broken, written = [True], list[str]()

    def write(piece: str) -> None:
        if broken.pop() if broken else False:
            fail_always(piece)
        written.append(piece)

    writer = BackgroundWriter("the log", write, is_strict=False)
    writer.submit("lost", 4)
    writer.submit("written", 7)
    writer.close()
    assert written == ["written"]
    assert writer.failure is None
    assert capsys.readouterr().err == (
        "qmpballoon: the log: 1 message was not written: No space left on device\n"
    )
