"""``qmpballoon watch`` on simulated VMs."""

from __future__ import annotations

import json
import signal
from functools import partial
from typing import TYPE_CHECKING

import pytest
import trio
from command import run, serve, start
from in_process import status_of

from qmpballoon import open_balloon
from qmpballoon.cli.watch import watch_balloon
from qmpballoon.sizes import GiB
from qmpballoon.testing import SECOND, Machine, simulate
from qmpballoon.testing import serve as threaded

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from qmpballoon.balloon import Sample
    from qmpballoon.testing import FakeQemu

SAMPLE = {
    "age",
    "t",
    "target",
    "actual",
    "free",
    "available",
    "disk_caches",
    "resident",
}


def stall(machine: Machine) -> None:
    machine.guest.stall(3600 * SECOND)


async def test_watch_records_what_it_shows(socket_path: Path, tmp_path: Path) -> None:
    record, chart = tmp_path / "record.jsonl", tmp_path / "chart.svg"
    arguments = ("--interval", "0.1", "--count", "3")
    async with serve(socket_path):
        result = await run(
            "watch", socket_path, *arguments, "--record", record, "--json"
        )
    assert result.returncode == 0
    assert result.stdout == record.read_text()
    samples = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(samples) == 3
    assert all(sample.keys() >= SAMPLE for sample in samples)
    assert all(sample["disk_caches"] == 1 * GiB for sample in samples)
    assert (await run("plot", record, "--output", chart)).returncode == 0
    assert chart.read_text().startswith("<?xml")
    shown = await run("plot", record)
    assert shown.returncode == 0
    assert "guest cache" in shown.stdout


@pytest.mark.parametrize("stop", [Machine.stop, stall], ids=["paused", "hangs"])
def test_figures_of_a_guest_that_is_silent_are_not_shown_as_new(
    stop: Callable[[Machine], object], capsys: pytest.CaptureFixture[str]
) -> None:
    watch = ("watch", "--interval", "0.1", "--count", "2")
    with threaded() as fake:
        fake.do(stop)
        assert status_of(*watch, fake.socket) == 0
        shown = capsys.readouterr().out.splitlines()
        assert status_of(*watch, fake.socket, "--json") == 0
        printed = capsys.readouterr().out.splitlines()
    first, second = (json.loads(line) for line in printed)
    assert all("the guest is silent, its figures are " in line for line in shown[1:])
    assert second["available"] == first["available"]
    assert second["age"] > first["age"] > 3  # it was waited for that long


def test_a_guest_that_fell_silent_soon_after_a_sample_is_silent_at_the_next() -> None:
    notes: list[str] = []

    async def main(fake: FakeQemu) -> None:
        def show(_: Sample, note: str = "") -> None:
            notes.append(note)

        async with (
            open_balloon(fake.connect(), wall_clock=fake.wall_clock) as balloon,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(partial(watch_balloon, balloon, 30.0, 4, [show]))
            await trio.sleep(42)  # it answers every second until then
            fake.machine.stop()

    simulate(main)
    assert notes[:2] == ["", ""]
    assert [note.partition(", ")[0] for note in notes[2:]] == [
        "the guest is silent"
    ] * 2


@pytest.mark.parametrize("seconds", [-3600, 3600])
def test_no_guest_is_silent_because_the_clock_was_set(seconds: int) -> None:
    notes: list[str] = []

    async def main(fake: FakeQemu) -> None:
        def show(_: Sample, note: str = "") -> None:
            notes.append(note)

        def tell_time() -> float:
            return fake.wall_clock() + (seconds if notes else 0)

        async with open_balloon(fake.connect(), wall_clock=tell_time) as balloon:
            await watch_balloon(balloon, 1.0, 3, [show])

    simulate(main)
    assert notes == ["", "", ""]


async def test_watch_ends_with_whoever_reads_it(socket_path: Path) -> None:
    watch = ("watch", socket_path, "--interval", "0.1", "--json")
    async with serve(socket_path), start(*watch) as command:
        assert json.loads(await command.stdout.receive_some())["actual"] == 2 * GiB
        await command.stdout.aclose()
        assert await command.process.wait() == 128 + signal.SIGPIPE


async def test_an_interrupted_watch_just_ends(socket_path: Path) -> None:
    async with serve(socket_path), start("watch", socket_path) as command:
        await command.stdout.receive_some()
        command.process.send_signal(signal.SIGINT)
        assert await command.process.wait() == 0
        assert await command.said() == ""


async def test_one_that_is_to_take_more_samples_is_interrupted(
    socket_path: Path,
) -> None:
    counted = ("watch", socket_path, "--count", "1000000")
    async with serve(socket_path), start(*counted) as command:
        await command.stdout.receive_some()
        command.process.send_signal(signal.SIGINT)
        assert await command.process.wait() == 128 + signal.SIGINT
