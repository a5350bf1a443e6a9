"""``qmpballoon status`` on simulated VMs."""

from __future__ import annotations

import json
import os
from datetime import datetime
from typing import TYPE_CHECKING

import pytest
from command import object_of, run, serve
from in_process import status_of
from notes import hold_elsewhere

from qmpballoon import blocking
from qmpballoon.balloon import Balloon
from qmpballoon.sizes import GiB
from qmpballoon.testing import SECOND, GuestConfig, MachineConfig
from qmpballoon.testing import serve as threaded

if TYPE_CHECKING:
    from pathlib import Path


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
    assert seen["stats"]["fresh"]
    assert seen["host"] == {"resident": None}  # it is no QEMU that serves here
    assert shown.returncode == 0
    assert "vm1, running" in shown.stdout
    assert "page cache 1 GiB" in shown.stdout


def test_a_guest_that_is_paused_is_not_asked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It could not answer, and the command would wait for it."""

    async def fail(*_: object, **__: object) -> None:
        pytest.fail("it was asked")

    monkeypatch.setattr(Balloon, "refresh_stats", fail)
    with threaded() as fake:
        with blocking.open_monitor(fake.socket) as monitor:
            monitor.execute("stop")
        assert status_of("status", fake.socket, "--json") == 0
    seen = json.loads(capsys.readouterr().out)
    assert seen["vm"]["status"] == "paused"
    assert seen["stats"]["free"] is not None  # what it said last
    assert not seen["stats"]["fresh"]


async def test_status_of_a_guest_that_says_nothing(socket_path: Path) -> None:
    async with serve(socket_path, guest=GuestConfig(driver=False)):
        result = await run("status", socket_path, "--json")
        shown = await run("status", socket_path)
    assert result.returncode == 0
    assert object_of(result)["stats"]["last_update"] is None
    assert object_of(result)["stats"]["free"] is None
    assert "virtio_balloon" in shown.stdout


def test_figures_of_a_guest_that_is_silent_have_their_age(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with threaded() as fake:
        fake.do(lambda machine: machine.guest.stall(3600 * SECOND))
        assert status_of("status", fake.socket) == 0
    assert " s ago, it does not answer now" in capsys.readouterr().out


def test_it_says_which_figure_cannot_be_true(
    capsys: pytest.CaptureFixture[str],
) -> None:
    guest = GuestConfig(claims={"free-memory": 9 * GiB})
    with threaded(MachineConfig(guest=guest)) as fake:
        assert status_of("status", fake.socket) == 0
    assert "cannot be true: 9 GiB are free, and it can" in capsys.readouterr().out


@pytest.mark.parametrize(
    "call", [("reclaim",), ("fleet", "reclaim")], ids=["reclaim", "fleet reclaim"]
)
def test_what_cannot_be_noted_is_said_once(
    call: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("QMPBALLOON_RUNTIME_DIR", str(tmp_path / "missing" / "folder"))
    for door in ("blocking", "trio"):
        find = f"qmpballoon.{door}.connect.find_peer_pid"
        monkeypatch.setattr(find, lambda _: os.getpid())
    with threaded() as fake:
        names = {"reclaim": (fake.socket, "64M"), "fleet": ("64M", fake.socket)}
        assert status_of(*call, *names[call[0]]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert "what the guest is to get back cannot be noted: [Errno 2] No such" in line
    assert "name another folder (QMPBALLOON_RUNTIME_DIR)" in line


def test_which_process_holds_memory_is_said_and_nothing_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("QMPBALLOON_RUNTIME_DIR", str(tmp_path))
    for door in ("blocking", "trio"):  # the fake is no QEMU: this process stands for it
        find = f"qmpballoon.{door}.connect.find_peer_pid"
        monkeypatch.setattr(find, lambda _: os.getpid())
    with threaded() as fake:
        size = MachineConfig().memory
        holder = hold_elsewhere(tmp_path, os.getpid(), size)
        held = f"held by process {holder}, which gives it back when it ends: wait"
        said = f"memory of the guest is {held}"
        assert status_of("status", fake.socket) == 0
        assert f"memory is  {held}" in capsys.readouterr().out
        assert status_of("status", fake.socket, "--json") == 0
        balloon = json.loads(capsys.readouterr().out)["balloon"]
        assert (balloon["owed"], balloon["holder"]) == (None, holder)
        assert status_of("doctor", fake.socket, "--watch", "0.01") in (3, 5)
        assert f"warning: its memory is {held}" in capsys.readouterr().out
        assert status_of("fleet", "status", fake.socket) == 0
        shown = capsys.readouterr().out
        assert "1 VM: 1 held" in shown
        assert said in shown
        assert status_of("reclaim", fake.socket, "--dry-run") == 0
        assert f"refused now, because {said}" in capsys.readouterr().out
        assert status_of("fleet", "plan", fake.socket) == 0
        assert f"takes no part: {said}" in capsys.readouterr().err
        assert status_of("reclaim", fake.socket, "64M") == 6
        assert f"nothing was taken: {said}" in capsys.readouterr().err
        assert status_of("fleet", "reclaim", "64M", fake.socket) == 6
        (line,) = capsys.readouterr().err.splitlines()
        assert f"takes no part: {said}" in line
        with blocking.open_balloon(fake.socket) as unmoved:
            assert unmoved.actual() == size
