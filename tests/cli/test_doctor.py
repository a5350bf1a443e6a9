"""``qmpballoon doctor`` on simulated VMs."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import pytest
from attrs import evolve
from command import FAST, object_of, run, serve
from in_process import only_line, status_of

from qmpballoon.cli._findings import make_finding
from qmpballoon.cli.doctor import _choose_status, _Report
from qmpballoon.trio import open_monitor

if TYPE_CHECKING:
    from pathlib import Path

UP = evolve(FAST, boot_time=0)
# On a host that is busy, too, whoever answers does so in time.
PATIENTLY = ("--watch", "0.01", "--connect-timeout", "300", "--timeout", "300")


async def test_a_vm_that_is_well(socket_path: Path) -> None:
    async with serve(socket_path, UP) as fake:
        before = fake.machine.guest.memory.balloon
        result = await run("doctor", socket_path, *PATIENTLY)
        assert fake.machine.guest.memory.balloon == before
        assert fake.machine.device is not None
        assert fake.machine.device.interval == 0
    assert result.returncode == 0, result.stderr
    first, *findings, empty, more = result.stdout.splitlines()
    assert f", {socket_path}, QEMU 10.0." in first
    assert first.endswith(", running")
    assert all(line.startswith("note: ") for line in findings)
    assert (empty, more) == ("", "What each means: man qmpballoon-doctor")


async def test_all_that_a_glob_matches_are_examined(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        for number in range(3):
            fake = serve(tmp_path / f"vm{number}", balloon=None)
            await stack.enter_async_context(fake)
        result = await run("doctor", str(tmp_path / "vm*"), *PATIENTLY, "--json")
    vms = object_of(result)["vms"]
    assert result.returncode == 5
    assert [vm["name"] for vm in vms] == ["vm0", "vm1", "vm2"]
    assert {vm["findings"][0]["kind"] for vm in vms} == {"no-balloon"}


async def test_one_line_of_each_finding_with_the_heaviest_first(
    socket_path: Path,
) -> None:
    async with serve(socket_path, UP, free_page_reporting=True, page_poison=False):
        result = await run("doctor", socket_path, *PATIENTLY)
    assert result.returncode == 3, result.stdout
    weights = [line.partition(":")[0] for line in result.stdout.splitlines()[1:-2]]
    assert weights == sorted(weights, key=["warning", "note"].index)
    assert "(page-poison)" in result.stdout


async def test_a_monitor_that_is_held(socket_path: Path) -> None:
    async with serve(socket_path), open_monitor(socket_path):
        hastily = ("--connect-timeout", "0.3")
        result = await run("doctor", socket_path, *hastily, "--json")
    (vm,) = object_of(result)["vms"]
    assert result.returncode == 4
    assert vm["status"] is None
    assert vm["qemu"] == {"version": None, "pid": None}
    assert [each["kind"] for each in vm["findings"]] == ["monitor-busy"]


def test_no_socket(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of("doctor", tmp_path / "nowhere") == 4
    out, err = capsys.readouterr()
    assert "error: there is no socket at" in out
    assert "is the VM running? (monitor-unreachable)" in out
    assert err == ""


def test_no_vms(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of("doctor", tmp_path / "*.qmp") == 0
    assert "there are no VMs" in only_line(capsys)


def test_a_wrong_argument(capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of("doctor", "tcp:nowhere") == 2
    assert "write tcp:HOST:PORT" in only_line(capsys)


@pytest.mark.parametrize(
    ("kinds", "status"),
    [
        ([], 0),
        (["only-monitor"], 0),
        (["only-monitor", "owed"], 3),
        (["owed", "huge-pages"], 5),
        (["no-driver", "owed"], 5),
        (["no-balloon", "monitor-busy"], 4),
    ],
)
def test_the_worst_finding_of_all_vms_decides(kinds: list[str], status: int) -> None:
    reports = [
        _Report(name=kind, address="", findings=[make_finding(kind, "")])
        for kind in kinds
    ]
    assert _choose_status(reports) == status
