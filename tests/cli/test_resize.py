"""``qmpballoon resize`` on simulated VMs."""

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING

import pytest
from command import FAST, actual, line_of, object_of, run, serve, start, until
from in_process import status_of

from qmpballoon.sizes import GiB, MiB
from qmpballoon.testing import GuestConfig, MachineConfig
from qmpballoon.testing import serve as serve_in_thread

if TYPE_CHECKING:
    from pathlib import Path


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


def test_a_report_of_a_resize(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serve_in_thread(MachineConfig(name="a <guest>", guest=FAST)) as fake:
        figures, page = tmp_path / "report.json", tmp_path / "report.html"
        resize = ("resize", fake.socket)
        assert status_of(*resize, "1536M", "--json", "--report", figures) == 0
        assert status_of(*resize, "2G", "--unguarded", "--report", page) == 0
        assert "2 GiB" in capsys.readouterr().out
    seen = json.loads(figures.read_text())
    assert (seen["outcome"], seen["actual"]) == ("reached", 3 * GiB // 2)
    sizes = [sample["actual"] for sample in seen["timeline"]]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] == seen["actual"]
    text = page.read_text()
    assert "<h1>Resizing a &lt;guest&gt;</h1>" in text
    assert "Requested 2 GiB, reached: 1.5 GiB" in text
    assert "none: the guest was not watched" in text


@pytest.mark.parametrize("target", ["3G", "150%"])
async def test_more_than_the_vm_has_is_all_of_it(
    socket_path: Path, target: str
) -> None:
    async with serve(socket_path) as fake:
        await run("resize", socket_path, "1536M")
        result = await run("resize", socket_path, target)
        assert actual(fake) == 2 * GiB
    assert result.returncode == 0
    assert "3 GiB is more than the VM's memory" in result.stdout


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


async def test_resize_without_a_driver_is_named(
    socket_path: Path, tmp_path: Path
) -> None:
    page = tmp_path / "report.html"
    async with serve(socket_path, guest=GuestConfig(driver=False)):
        result = await run("resize", socket_path, "1G", "--report", page)
    assert result.returncode == 3
    assert "virtio_balloon" in line_of(result)
    assert "Requested 1 GiB, stalled: 2 GiB" in page.read_text()
    assert "virtio_balloon" in page.read_text()


async def test_resize_below_the_floor(socket_path: Path) -> None:
    async with serve(socket_path) as fake:
        result = await run("resize", socket_path, "8M", "--json")
        assert actual(fake) == fake.machine.config.memory
    assert result.returncode == 6
    assert result.stdout == ""
    assert "floor" in line_of(result)


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
