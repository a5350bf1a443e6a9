"""Clients get monitors of their own from real QEMUs, and leave nothing in them."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
import trio
from added_monitors import KILLED
from frontends import CONNECTING, on_each
from qemu.qmp import QMPClient
from real import DEADLINE, qemu_command, running_qemu
from talk import make
from test_monitors import client

from qmpballoon import asyncio as aio
from qmpballoon import blocking
from qmpballoon.errors import OwnMonitorUnavailable
from qmpballoon.trio import open_monitor

if TYPE_CHECKING:
    from pathlib import Path

    from frontends import FrontEnd

pytestmark = [pytest.mark.qemu, pytest.mark.conformance]

OPTIONS = ["-m", "64", "-device", "virtio-balloon-pci"]
PROGRAM = """
import sys, time
from qmpballoon.blocking import open_monitor

with open_monitor(sys.argv[1], own=True):
    print("ready", flush=True)
    time.sleep(600)
"""


def look(path: Path) -> tuple[Any, Any]:
    """Return the character devices and the objects that QEMU has."""
    with client(path) as shared:
        return (
            shared.execute("query-chardev"),
            shared.execute("qom-list", path="/objects"),
        )


def wait_until(path: Path, before: tuple[Any, Any]) -> None:
    """Wait until all is as before: QEMU has to notice that a client left."""
    deadline = time.monotonic() + DEADLINE
    while (found := look(path)) != before:
        assert time.monotonic() < deadline, found


@on_each(*CONNECTING)
def test_it_is_found_and_left(front: FrontEnd, tmp_path: Path) -> None:
    async def main() -> int | None:
        async with front.open_balloon(str(path), own=True) as balloon:
            now = look(path)  # the shared monitor is free
            assert len(now[0]["return"]) == len(before[0]["return"]) + 1
            assert (await balloon.query()).total == 64 << 20
            monitor: Any = balloon.monitor
            assert monitor.resident() > 1 << 20
            pid: int | None = monitor.pid
            return pid

    with running_qemu(qemu_command("11.1"), tmp_path, OPTIONS) as path:
        before = look(path)
        pid = front.run(main())
        assert str(path) in read_command_line(pid)
        wait_until(path, before)


def test_over_a_client_that_goes_on(tmp_path: Path) -> None:
    async def main() -> None:
        held = QMPClient()
        await held.connect(str(path))
        before = await see(held)
        async with aio.open_balloon(held, own=True) as balloon:
            assert await see(held) != before
            assert (await balloon.query()).total == 64 << 20
            assert (balloon.resident() or 0) > 1 << 20
            assert str(path) in read_command_line(balloon.monitor.pid)
        async with asyncio.timeout(120):
            while await see(held) != before:
                pass
        await held.disconnect()

    async def see(held: QMPClient) -> tuple[object, object]:
        objects = await held.execute("qom-list", {"path": "/objects"})
        return await held.execute("query-chardev"), objects

    with running_qemu(qemu_command("11.1"), tmp_path, OPTIONS) as path:
        look(path)  # it has started
        asyncio.run(main())


def read_command_line(pid: int | None) -> str:
    with open(f"/proc/{pid}/cmdline", encoding="utf-8") as file:  # noqa: PTH123
        return file.read()


def test_cancelled_anywhere_it_leaves_nothing(tmp_path: Path) -> None:
    async def cancel_at(number: int) -> bool:
        """Cancel at a place; return whether it came to that."""
        count = 0

        class Counter(trio.abc.Instrument):
            def after_task_step(self, task: trio.lowlevel.Task) -> None:
                nonlocal count
                count += task is this
                if count == number:
                    scope.cancel()

        this, counter = trio.lowlevel.current_task(), Counter()
        with trio.CancelScope() as scope:
            trio.lowlevel.add_instrument(counter)
            try:
                async with open_monitor(str(path), own=True) as monitor:
                    await monitor.execute("query-status")
            finally:
                trio.lowlevel.remove_instrument(counter)
        return count >= number

    with running_qemu(qemu_command("11.1"), tmp_path, OPTIONS) as path:
        before = look(path)
        number = 1
        while trio.run(cancel_at, number):
            wait_until(path, before)
            number += 1
        assert number > len(("greeting", "capabilities", "getfd", "add", "add"))


def test_killed_it_leaves_nothing(tmp_path: Path) -> None:
    with running_qemu(qemu_command("11.1"), tmp_path, OPTIONS) as path:
        before = look(path)
        with subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(path)], stdout=subprocess.PIPE
        ) as program:
            assert program.stdout is not None
            assert program.stdout.readline() == b"ready\n"
            assert look(path) != before
            program.send_signal(signal.SIGKILL)
        wait_until(path, before)


@pytest.mark.parametrize("command", ["chardev-add", "object-add"])
def test_what_one_left_that_was_killed_meanwhile_is_removed(
    command: str, tmp_path: Path
) -> None:
    with running_qemu(qemu_command("11.1"), tmp_path, OPTIONS) as path:
        before = look(path)
        killed = subprocess.run(
            [sys.executable, "-c", KILLED, str(path), command], check=False
        )
        assert killed.returncode == -signal.SIGKILL
        if command == "chardev-add":  # after the other, QEMU may just greet
            assert look(path) != before
        with blocking.open_monitor(str(path), own=True):
            pass
        wait_until(path, before)


@pytest.mark.parametrize("version", ["7.2", "10.0"])
def test_an_older_qemu_is_shared(version: str, tmp_path: Path) -> None:
    async def main() -> None:
        with pytest.raises(OwnMonitorUnavailable, match=f"QEMU {version}"):
            async with open_monitor(str(path), own=True):
                pytest.fail("it opened")
        async with open_monitor(str(path), own="auto") as monitor:
            assert await monitor.execute("query-chardev") == before[0]["return"]

    with running_qemu(qemu_command(version), tmp_path, OPTIONS) as path:
        before = look(path)
        trio.run(main)
        assert look(path) == before


@pytest.mark.parametrize("version", ["7.2", "10.0"])
def test_an_older_qemu_knows_no_monitors_as_objects(
    version: str, tmp_path: Path
) -> None:
    with running_qemu(qemu_command(version), tmp_path, OPTIONS) as path:
        for kind in ("monitor-qmp", "monitor-hmp"):
            arguments = {"qom-type": kind, "id": "m", "chardev": "compat_monitor0"}
            with client(path) as shared:
                real = shared.execute("object-add", **arguments)
            fake = make(version).execute("object-add", **arguments)
            assert fake == real["error"]
