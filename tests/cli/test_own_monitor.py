"""``--own-monitor``, and who has a monitor of its own without it."""

from __future__ import annotations

import itertools
import json
import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
import trio
from command import FAST, serve, start, until
from fake_libvirt import FakeConnection, FakeDomain, install
from in_process import only_line, status_of

from qmpballoon import blocking
from qmpballoon.sizes import GiB
from qmpballoon.testing import Machine, MachineConfig
from qmpballoon.testing import serve as serve_in_thread
from qmpballoon.trio import open_monitor

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

    from qmpballoon.testing import FakeQemu
    from qmpballoon.testing.model.chardevs import Descriptor, QmpMonitor

ASKED = ("query-version", "query-chardev")
COMMANDS = [["status"], ["resize", "1G"], ["reclaim"], ["reclaim", "--dry-run"]]


async def use_shared(fake: FakeQemu) -> None:
    """Use the shared monitor while another client has one of its own."""
    with trio.fail_after(300):
        async with open_monitor(fake.connect()) as monitor:
            await monitor.execute("query-status")
    assert len(fake.machine.monitors) == 2


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_what_is_done_on_one_is_done(
    command: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    added: list[str] = []
    begin_serving = Machine.begin_serving

    def note(machine: Machine, monitor: QmpMonitor, descriptor: Descriptor) -> None:
        added.append(monitor.name)
        begin_serving(machine, monitor, descriptor)

    monkeypatch.setattr(Machine, "begin_serving", note)
    name, *rest = command
    with serve_in_thread(MachineConfig(guest=FAST), version="11.1") as fake:
        assert status_of(name, fake.socket, *rest, "--own-monitor", "--json") == 0
        while fake.do(lambda machine: len(machine.monitors)) > 1:
            pass  # QEMU has not noticed yet that the client left
    assert len(added) == 1
    assert json.loads(capsys.readouterr().out)


async def test_the_shared_one_is_free_while_it_watches(socket_path: Path) -> None:
    watch = ("watch", socket_path, "--own-monitor", "--json")
    async with serve(socket_path, version="11.1") as fake, start(*watch) as command:
        data = await command.stdout.receive_some()
        assert json.loads(data.splitlines()[0])["actual"] == 2 * GiB
        await use_shared(fake)
        command.process.send_signal(signal.SIGINT)
        assert await command.process.wait() == 0
        await until(lambda: len(fake.machine.chardevs) == 1)


async def test_keeping_keeps_nobody_out(socket_path: Path) -> None:
    keep = ("reclaim", socket_path, "512M", "--keep")
    async with serve(socket_path, version="11.1") as fake, start(*keep) as command:
        shown = ""
        while "keeping: " not in shown:
            shown += (await command.stdout.receive_some()).decode()
        await use_shared(fake)
        command.process.send_signal(signal.SIGINT)
        with trio.fail_after(300):
            async for _ in command.stdout:
                pass
            assert await command.process.wait() == 0


async def test_a_doctor_keeps_nobody_out_and_sees_what_they_do(
    socket_path: Path,
) -> None:
    # It ends as soon as the guest has gone both ways.
    doctor = ("doctor", socket_path, "--watch", "300", "--json")
    async with serve(socket_path, version="11.1") as fake, start(*doctor) as command:
        await until(lambda: len(fake.machine.monitors) == 2)
        with trio.fail_after(300):
            async with open_monitor(fake.connect()) as monitor:
                for size in itertools.cycle([GiB, 2 * GiB]):
                    await monitor.execute("balloon", {"value": size})
                    await until(lambda size=size: fake.machine.actual == size)  # type: ignore[misc]
                    if command.process.poll() is not None:
                        break
            said = b"".join([part async for part in command.stdout])
    (vm,) = json.loads(said)["vms"]
    assert "two-managers" in {each["kind"] for each in vm["findings"]}


async def test_a_fleet_keeps_nobody_out(socket_path: Path) -> None:
    fleet = ("fleet", "status", socket_path, "--watch", "--json")
    async with serve(socket_path, version="11.1") as fake, start(*fleet):
        await until(lambda: len(fake.machine.monitors) == 2)
        await use_shared(fake)


@pytest.mark.parametrize("command", [*COMMANDS, ["watch"]], ids=" ".join)
def test_an_older_qemu_is_told_of(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    name, *rest = command
    with serve_in_thread() as fake:
        assert status_of(name, fake.socket, *rest, "--own-monitor") == 4
        assert fake.do(lambda machine: len(machine.chardevs)) == 1
    line = only_line(capsys)
    assert "can be added (QEMU 10.0." in line
    assert "without --own-monitor" in line


@contextmanager
def libvirts(version: str, monkeypatch: pytest.MonkeyPatch) -> Generator[FakeDomain]:
    """Have a libvirt with one VM of that version."""
    with (
        serve_in_thread(MachineConfig(guest=FAST), version=version) as fake,
        blocking.open_monitor(fake.socket) as monitor,
    ):
        domain = FakeDomain(monitor)
        domain.hang.set()
        install(monkeypatch, lambda _: FakeConnection(domain))
        yield domain


def test_on_a_vm_of_libvirts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with libvirts("11.1", monkeypatch) as domain:
        assert status_of("status", "libvirt:vm1", "--own-monitor", "--json") == 0
        assert domain.came == [*ASKED, "getfd", "chardev-add", "object-add"]
        assert domain.closed
    assert json.loads(capsys.readouterr().out)["balloon"]["actual"] == 2 * GiB


def test_libvirts_older_qemu_is_told_of(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with libvirts("10.0", monkeypatch) as domain:
        assert status_of("status", "libvirt:vm1", "--own-monitor") == 4
        assert domain.came == ["query-version"]
        assert domain.closed
    assert "without --own-monitor" in only_line(capsys)


@pytest.mark.parametrize(("version", "own"), [("11.1", True), ("10.0", False)])
def test_a_fleet_of_libvirts(
    version: str, monkeypatch: pytest.MonkeyPatch, *, own: bool
) -> None:
    with libvirts(version, monkeypatch) as domain:
        assert status_of("fleet", "status", "libvirt:vm1", "--json") == 0
        assert ("query-balloon" in domain.came) != own
