"""The command against a simulated VM, each time in a process of its own."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from datetime import datetime
from typing import TYPE_CHECKING, Any

import pytest
import trio
from attrs import evolve
from command import PROGRAM, run, serve, start

from qmpballoon.sizes import GiB, MiB
from qmpballoon.testing import SECOND, GuestConfig, WorkloadStep

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from qmpballoon.testing import FakeQemu


SAMPLE = {"t", "target", "actual", "free", "available", "disk_caches", "resident"}


def line_of(result: subprocess.CompletedProcess[str]) -> str:
    """Return the one line on standard error."""
    (line,) = result.stderr.splitlines()
    assert line.startswith("qmpballoon: ")
    return line


def object_of(result: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """Return the one object on standard output."""
    (line,) = result.stdout.splitlines()
    value = json.loads(line)
    assert isinstance(value, dict)
    return value


def actual(fake: FakeQemu) -> int:
    memory = fake.machine.guest.memory
    return memory.ram - memory.balloon


# status


async def test_status(socket_path: Path) -> None:
    async with serve(socket_path, name="vm1") as fake:
        seen = object_of(await run("status", socket_path, "--json"))
        shown = await run("status", socket_path)
    assert seen["socket"] == str(socket_path)
    assert seen["vm"] == {"name": "vm1", "status": "running"}
    assert seen["qemu"]["version"].startswith("10.0.")
    assert seen["balloon"]["path"] == "/machine/peripheral/balloon0"
    assert seen["balloon"]["type"] == "virtio-balloon-pci"
    assert (
        seen["balloon"]["actual"]
        == seen["balloon"]["total"]
        == fake.machine.config.memory
    )
    assert seen["balloon"]["target"] is None
    assert seen["balloon"]["features"]["free-page-reporting"] is False
    assert datetime.fromisoformat(seen["stats"]["last_update"]).tzinfo is not None
    assert seen["stats"]["disk_caches"] == fake.machine.config.guest.cache
    assert seen["stats"]["interval"] == 0
    assert seen["host"] == {"resident": None}  # it is no QEMU that serves here
    assert shown.returncode == 0
    assert "vm1, running" in shown.stdout
    assert "page cache 1 GiB" in shown.stdout


async def test_status_of_a_guest_that_says_nothing(socket_path: Path) -> None:
    async with serve(socket_path, guest=GuestConfig(driver=False)):
        result = await run("status", socket_path, "--json")
        shown = await run("status", socket_path)
    assert result.returncode == 0
    assert object_of(result)["stats"]["last_update"] is None
    assert object_of(result)["stats"]["free"] is None
    assert "virtio_balloon" in shown.stdout


# resize


async def test_resize(socket_path: Path) -> None:
    async with serve(socket_path) as fake:
        result = await run("resize", socket_path, "75%", "--json")
        assert actual(fake) == 3 * GiB // 2
        shown = await run("resize", socket_path, "2G")
        assert actual(fake) == 2 * GiB
    assert result.returncode == 0
    assert result.stderr == ""
    seen = object_of(result)
    assert seen["outcome"] == "reached"
    assert (seen["before"], seen["requested"]) == (2 * GiB, 3 * GiB // 2)
    assert seen["actual"] == seen["requested"]
    assert seen["diagnosis"] is None
    assert seen["seconds"] > 0
    assert shown.returncode == 0
    assert "reached: 1.5 GiB -> 2 GiB" in shown.stdout


@pytest.mark.parametrize(
    ("on_stall", "outcome", "size"),
    [
        ("raise", "stalled", None),
        ("settle", "settled", None),
        ("rollback", "rolled-back", 2 * GiB),
    ],
)
async def test_resize_that_does_not_get_there(
    socket_path: Path,
    on_stall: str,
    outcome: str,
    size: int | None,
) -> None:
    async with serve(socket_path) as fake:
        result = await run(
            "resize", socket_path, "64M", "--on-stall", on_stall, "--json"
        )
        seen = object_of(result)
        assert result.returncode == 3
        assert seen["outcome"] == outcome
        assert seen["diagnosis"]["kind"] == "guest-at-floor"
        assert seen["diagnosis"]["detail"]
        assert seen["actual"] == actual(fake) == seen["target"]
        assert size is None or actual(fake) == size
        assert fake.machine.guest.oom_kills == 0


async def test_resize_without_a_driver_is_named(socket_path: Path) -> None:
    async with serve(socket_path, guest=GuestConfig(driver=False)):
        result = await run("resize", socket_path, "1G")
    assert result.returncode == 3
    assert "virtio_balloon" in line_of(result)


async def test_resize_below_the_floor(socket_path: Path) -> None:
    async with serve(socket_path) as fake:
        result = await run("resize", socket_path, "8M", "--json")
        assert actual(fake) == fake.machine.config.memory
    assert result.returncode == 6
    assert result.stdout == ""
    assert "floor" in line_of(result)


# reclaim


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
    # The guard stops near enough: within a sixteenth of the headroom, 7 MiB here.
    assert seen["handed_over"] >= seen["requested"] - 7 * MiB
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
    assert "taking: requested" in result.stdout


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


async def test_a_vm_without_a_balloon(socket_path: Path) -> None:
    async with serve(socket_path, balloon=None):
        for command in (["status"], ["resize", "1G"], ["reclaim"], ["watch"]):
            name, *rest = command
            result = await run(name, socket_path, *rest, "--json")
            assert result.returncode == 5
            assert result.stdout == ""
            assert "virtio-balloon-pci" in line_of(result)


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize("command", ["status", "watch --count 1 --json", "reclaim 1M"])
async def test_output_that_is_closed(
    command: str, closed: str, socket_path: Path
) -> None:
    name, *rest = command.split()
    shell = ["sh", "-c", f'"$@" {closed}', "sh", *PROGRAM]
    async with serve(socket_path):
        done = await trio.run_process(
            [*shell, name, str(socket_path), *rest],
            check=False,
            capture_stderr=True,
        )
    assert (done.returncode, done.stderr) == (0, b"")


async def test_a_socket_whose_name_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"qmp-\xff")
    async with serve(path):
        for command in (["status"], ["reclaim", "--dry-run"], ["reclaim", "1M"]):
            name, *rest = command
            result = await run(name, path, *rest)
            assert (result.returncode, result.stderr) == (0, "")
        seen = object_of(await run("status", path, "--json"))
    assert seen["socket"] == str(path)


async def test_a_vm_whose_name_the_terminal_cannot_show(socket_path: Path) -> None:
    ascii_only = {**os.environ, "PYTHONIOENCODING": "ascii"}
    async with serve(socket_path, name="Bär"):
        for command in (["status", socket_path], ["fleet", "status", socket_path]):
            done = await trio.run_process(
                [*PROGRAM, *map(str, command)],
                capture_stdout=True,
                capture_stderr=True,
                env=ascii_only,
            )
            assert done.stderr == b""


# watch and plot


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


async def test_watch_ends_with_whoever_reads_it(socket_path: Path) -> None:
    watch = ("watch", socket_path, "--interval", "0.1", "--json")
    async with serve(socket_path), start(*watch) as command:
        assert json.loads(await command.stdout.receive_some())["actual"] == 2 * GiB
        await command.stdout.aclose()
        assert await command.process.wait() == 128 + signal.SIGPIPE


async def test_a_plot_ends_with_whoever_reads_it(tmp_path: Path) -> None:
    record = tmp_path / "record.jsonl"
    record.write_text('{"t": 1.0, "target": null, "actual": 1073741824}\n')
    async with start("plot", record) as command:
        await command.stdout.aclose()
        assert await command.process.wait() == 128 + signal.SIGPIPE
        assert await command.said() == ""


async def test_a_demo_ends_with_whoever_reads_it() -> None:
    async with start(
        "demo", "--simulated", "--memory", "512M", "--cache", "64M"
    ) as demo:
        await demo.stdout.receive_some()
        await demo.stdout.aclose()
        assert await demo.process.wait() == 128 + signal.SIGPIPE
        assert await demo.said() == ""


# Signals


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


async def test_an_interrupted_resize_stays_where_it_is(socket_path: Path) -> None:
    # Slow enough to be caught on its way, fast enough not to have stalled.
    guest = GuestConfig(inflate_rate=100 * MiB, reclaim_rate=100 * MiB)
    async with (
        serve(socket_path, guest=guest) as fake,
        start("resize", socket_path, "1G") as command,
    ):
        await until(lambda: actual(fake) < fake.machine.config.memory)
        command.process.send_signal(signal.SIGINT)
        assert await command.process.wait() == 128 + signal.SIGINT
        assert "interrupted: the guest stays" in await command.said()
        assert fake.machine.device is not None
        left = fake.machine.config.memory - fake.machine.device.asked * 4096
        assert GiB < left == actual(fake)


async def test_an_interrupted_watch_just_ends(socket_path: Path) -> None:
    async with serve(socket_path), start("watch", socket_path) as command:
        await command.stdout.receive_some()
        command.process.send_signal(signal.SIGINT)
        assert await command.process.wait() == 128 + signal.SIGINT
        assert await command.said() == ""


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something to become true of the simulated machine."""
    with trio.fail_after(20):
        while not condition():  # noqa: ASYNC110 - the machine tells nobody
            await trio.sleep(0.02)


# The demo


async def test_the_demo_with_a_simulated_guest(tmp_path: Path) -> None:
    chart = tmp_path / "chart.png"
    result = await run("demo", "--simulated", "--report", chart)
    assert result.returncode == 0
    assert result.stderr == ""
    assert "a simulated guest" in result.stdout
    cache, resident = map(int, re.findall(r"by (\d+)%", result.stdout))
    assert cache >= 80
    assert resident >= 80
    assert chart.read_bytes().startswith(b"\x89PNG")
