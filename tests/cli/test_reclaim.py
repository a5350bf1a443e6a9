"""``qmpballoon reclaim`` on simulated VMs."""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
from typing import TYPE_CHECKING, Any

import documents
import pytest
import trio
from attrs import evolve
from command import (
    FAST,
    PROGRAM,
    actual,
    line_of,
    object_of,
    run,
    serve,
    start,
    until,
)
from in_process import status_of

from qmpballoon.sizes import GiB, MiB
from qmpballoon.testing import SECOND, GuestConfig, WorkloadStep

if TYPE_CHECKING:
    from pathlib import Path

    from qmpballoon.testing import ThreadedFake

SAMPLE = {"t", "target", "actual", "free", "available", "disk_caches", "resident"}


def test_a_page_of_a_reclaim(fake: ThreadedFake, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    reclaim = ("reclaim", fake.socket, "64M", "--headroom", "200M")
    assert status_of(*reclaim, "--report", page) == 0
    text = page.read_text()
    assert "Requested 64 MiB, handed over 64 MiB" in text
    assert "<dt>headroom</dt><dd>200 MiB</dd>" in text
    assert "The guest's page cache" in text


async def test_reclaim(socket_path: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    async with serve(socket_path) as fake:
        result = await run("reclaim", socket_path, "--json", "--report", report)
        assert actual(fake) == fake.machine.config.memory
        assert fake.machine.guest.memory.cache < fake.machine.config.guest.cache // 5
    assert result.returncode == 0
    assert result.stderr == ""
    seen = object_of(result)
    assert seen == json.loads(report.read_text())
    assert seen["outcome"] == "done"
    assert seen["held"] is False
    assert (
        seen["before"]["actual"]
        == seen["after"]["actual"]
        == fake.machine.config.memory
    )
    assert seen["before"]["stats"]["disk_caches"] == fake.machine.config.guest.cache
    assert seen["after"]["stats"]["disk_caches"] == fake.machine.guest.memory.cache
    # The guard stops near enough, if late samples make it stop earlier, too.
    assert seen["handed_over"] >= seen["requested"] * 0.95
    assert seen["seconds"] > 0
    assert all(sample.keys() >= SAMPLE for sample in seen["timeline"])
    smallest = min(sample["actual"] for sample in seen["timeline"])
    assert smallest == fake.machine.config.memory - seen["handed_over"]


async def test_reclaim_and_hold_an_amount(socket_path: Path) -> None:
    async with serve(socket_path) as fake:
        result = await run("reclaim", socket_path, "25%", "--hold")
        assert actual(fake) == fake.machine.config.memory * 3 // 4
    assert result.returncode == 0
    assert "held" in result.stdout
    assert re.search("taking: .*requested", result.stdout)


async def test_what_is_held_is_given_back_by_the_command_that_is_shown(
    tmp_path: Path,
) -> None:
    path = tmp_path / "a socket: vm1.qmp"
    memory = 2 * GiB + 4096
    async with serve(path, memory=memory) as fake:
        result = await run("reclaim", path, "25%", "--hold")
        assert actual(fake) < memory
        line = result.stdout.splitlines()[-1]
        assert line.startswith("  qmpballoon resize ")
        done = await run(*shlex.split(line, comments=True)[1:])
        assert actual(fake) == memory
        assert done.returncode == 0
        given_back = await run("reclaim", path, "25%")
    assert "qmpballoon" not in given_back.stdout.splitlines()[-1]


async def test_a_guest_that_was_found_small_and_is_left_so_is_named(
    socket_path: Path,
) -> None:
    async with serve(socket_path) as fake:
        await run("resize", socket_path, "1G")
        result = await run("reclaim", socket_path, "64M")
        assert actual(fake) == GiB
    assert result.returncode == 0
    assert "done: " in result.stderr
    assert "it is left with 1 GiB, as it was found" in result.stderr


@pytest.mark.parametrize("form", [(), ("--json",)])
async def test_what_could_not_be_given_back_is_said(
    socket_path: Path, form: tuple[str, ...]
) -> None:
    async with serve(socket_path) as fake:
        balloon = fake.machine.commands["balloon"]

        def overridden(arguments: dict[str, Any]) -> Any:  # noqa: ANN401 - JSON
            answer = balloon.run(arguments)
            if arguments["value"] == fake.machine.config.memory:  # it is given back
                balloon.run({"value": GiB})
            return answer

        fake.machine.commands = {
            **fake.machine.commands,
            "balloon": evolve(balloon, run=overridden),
        }
        result = await run("reclaim", socket_path, *form)
    assert result.returncode == 3
    assert "another client sets targets" in line_of(result)
    assert form or "not all of it given back" in result.stdout


async def test_a_dry_run_takes_nothing(socket_path: Path) -> None:
    async with serve(socket_path) as fake:
        shown = await run("reclaim", socket_path, "--dry-run")
        plan = object_of(await run("reclaim", socket_path, "--dry-run", "--json"))
        assert fake.machine.device is not None
        assert fake.machine.device.asked == 0
    assert shown.returncode == 0
    assert "can be taken" in shown.stdout
    assert plan["binding"] == "headroom"
    assert plan["amount"] == plan["from_free"] + plan["from_cache"]
    assert plan["actual"] - plan["amount"] == plan["target"]


async def test_reclaim_with_nothing_to_spare(socket_path: Path) -> None:
    async with serve(socket_path):
        result = await run("reclaim", socket_path, "--headroom", "100%", "--json")
    assert result.returncode == 6
    assert object_of(result)["outcome"] == "refused"
    assert object_of(result)["handed_over"] == 0
    assert "nothing to take" in line_of(result)


async def test_reclaim_from_a_guest_that_comes_to_need_its_memory(
    socket_path: Path,
) -> None:
    burst = WorkloadStep(at=5 * SECOND // 2, delta=900 * MiB)
    async with serve(socket_path, guest=GuestConfig(workload=(burst,))) as fake:
        result = await run(
            "reclaim", socket_path, "--max-rate", "400M", "--headroom", "600M", "--json"
        )
        assert fake.machine.guest.oom_kills == 0
        assert actual(fake) == fake.machine.config.memory
    seen = object_of(result)
    assert (seen["outcome"], result.returncode) in {("stopped", 3), ("done", 0)}


async def test_reclaim_from_a_silent_guest(socket_path: Path) -> None:
    async with serve(socket_path, guest=GuestConfig(stats_delay=None)):
        result = await run("reclaim", socket_path, "--json")
    assert result.returncode == 5
    assert result.stdout == ""
    line_of(result)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
async def test_an_interrupted_reclaim_gives_back(
    socket_path: Path, number: signal.Signals
) -> None:
    slowly = ("reclaim", socket_path, "--max-rate", "100M")
    async with serve(socket_path) as fake, start(*slowly) as command:
        await until(lambda: actual(fake) < fake.machine.config.memory)
        command.process.send_signal(number)
        assert await command.process.wait() == 128 + number
        assert "its memory back" in await command.said()
        await until(lambda: actual(fake) == fake.machine.config.memory)


@pytest.mark.parametrize("number", [signal.SIGTSTP, signal.SIGTTOU])
async def test_what_stops_a_job_does_not_stop_the_watching(
    socket_path: Path, number: signal.Signals
) -> None:
    slowly = ("reclaim", socket_path, "256M", "--max-rate", "400M", "--json")
    async with serve(socket_path) as fake, start(*slowly) as command:
        await until(lambda: actual(fake) < fake.machine.config.memory)
        command.process.send_signal(number)
        with trio.fail_after(300):
            shown = b"".join([chunk async for chunk in command.stdout]).decode()
            assert await command.process.wait() == 0
        assert json.loads(shown)["handed_over"] == 256 * MiB


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
async def test_a_signal_ends_keeping_with_all_that_is_said_at_its_end(
    socket_path: Path, tmp_path: Path, number: signal.Signals
) -> None:
    report = tmp_path / "report.json"
    keep = ("reclaim", socket_path, "512M", "--keep", "--report", report)
    async with serve(socket_path) as fake, start(*keep) as command:
        shown = ""
        while "keeping: " not in shown:
            shown += (await command.stdout.receive_some()).decode()
        command.process.send_signal(number)
        with trio.fail_after(300):
            shown += b"".join([chunk async for chunk in command.stdout]).decode()
            assert await command.process.wait() == 0
        assert await command.said() == ""
        assert actual(fake) == fake.machine.config.memory
    assert "given back" in shown
    assert "host: QEMU resident" in shown
    assert "and given back; kept for" in " ".join(shown.split())
    seen = json.loads(report.read_text())
    assert (seen["outcome"], seen["handed_over"]) == ("done", 512 * MiB)
    assert "until it was to end" in seen["reason"]


async def test_a_signal_while_memory_is_taken_ends_keeping_too(
    socket_path: Path,
) -> None:
    keep = ("reclaim", socket_path, "--keep", "--max-rate", "100M", "--json")
    async with serve(socket_path) as fake, start(*keep) as command:
        await until(lambda: actual(fake) < fake.machine.config.memory)
        command.process.send_signal(signal.SIGTERM)
        with trio.fail_after(300):
            shown = b"".join([chunk async for chunk in command.stdout]).decode()
            assert await command.process.wait() == 0
        assert actual(fake) == fake.machine.config.memory
    documents.check("reclaim", seen := json.loads(shown))
    assert seen["outcome"] == "done"


async def test_the_next_signal_does_not_wait_for_the_guest(socket_path: Path) -> None:
    slow = evolve(FAST, deflate_rate=MiB)
    keep = ("reclaim", socket_path, "512M", "--keep", "--json")
    async with serve(socket_path, guest=slow) as fake, start(*keep) as command:
        memory = fake.machine.config.memory
        await until(lambda: actual(fake) == memory - 512 * MiB)
        device = fake.machine.device
        assert device is not None
        command.process.send_signal(signal.SIGINT)
        await until(lambda: device.asked == 0)
        command.process.send_signal(signal.SIGINT)
        with trio.fail_after(300):
            assert await command.process.wait() == 128 + signal.SIGINT
        assert "is given its memory back" in await command.said()


async def test_a_report_that_cannot_be_written_does_not_cost_the_summary(
    socket_path: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "reports"
    folder.mkdir()
    slowly = ("reclaim", socket_path, "512M", "--max-rate", "1G")
    report = folder / "report.json"
    async with serve(socket_path), start(*slowly, "--report", report) as command:
        shown = (await command.stdout.receive_some()).decode()
        folder.rmdir()
        shown += b"".join([chunk async for chunk in command.stdout]).decode()
        assert await command.process.wait() == 1
        assert "report.json" in await command.said()
    assert "and given back" in shown


async def test_a_reclaim_under_nohup_goes_on(socket_path: Path) -> None:
    arguments = ["reclaim", str(socket_path), "--max-rate", "1G"]
    async with serve(socket_path) as fake:
        process = await trio.lowlevel.open_process(
            ["nohup", *PROGRAM, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        await until(lambda: actual(fake) < fake.machine.config.memory)
        process.send_signal(signal.SIGHUP)
        assert await process.wait() == 0
