"""The command on VMs of libvirt's, where there is no libvirt.

In this process, where libvirt's module can be stood in for.
"""

from __future__ import annotations

import json
import queue
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio
from fake_libvirt import FakeConnection, FakeDomain, LibvirtError, install
from in_process import only_line, status_of
from metrics import figures

from qmpballoon import GiB, MiB, blocking
from qmpballoon.cli import _output
from qmpballoon.testing import MachineConfig, serve

if TYPE_CHECKING:
    from collections.abc import Iterator

COMMANDS = [["status"], ["resize", "1G"], ["reclaim"], ["watch"]]


@pytest.fixture
def domain(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDomain]:
    with (
        serve(MachineConfig(memory=2 * GiB)) as fake,
        blocking.open_monitor(fake.socket) as monitor,
    ):
        domain = FakeDomain(monitor)
        domain.hang.set()
        install(monkeypatch, lambda _: FakeConnection(domain))
        yield domain


def test_status(domain: FakeDomain, capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of("status", "libvirt:vm1", "--json") == 0
    seen = json.loads(capsys.readouterr().out)
    assert seen["socket"] == "libvirt:vm1"
    assert seen["qemu"]["version"].startswith("10.0.")
    assert seen["balloon"]["actual"] == seen["balloon"]["total"] == 2 * GiB
    assert domain.closed


def test_doctor(domain: FakeDomain, capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of("doctor", "libvirt:vm1", "--watch", "0.01", "--json") == 0
    (vm,) = json.loads(capsys.readouterr().out)["vms"]
    assert (vm["name"], vm["address"]) == ("vm1", "libvirt:vm1")
    assert vm["findings"][0]["kind"] == "resident-unknown"
    assert domain.closed


def test_resize(domain: FakeDomain, capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of("resize", "libvirt:vm1", "75%", "--json") == 0
    assert json.loads(capsys.readouterr().out)["actual"] == 3 * GiB // 2
    answer = domain.monitor.execute("query-balloon")
    assert isinstance(answer, dict)
    assert answer["actual"] == 3 * GiB // 2


def test_reclaim(domain: FakeDomain, capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of("reclaim", "libvirt:vm1", "256M", "--json") == 0
    assert json.loads(capsys.readouterr().out)["outcome"] == "done"
    assert status_of("reclaim", "libvirt:vm1", "--dry-run") == 0
    assert domain.closed


def test_watch(domain: FakeDomain, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--count", "2", "--interval", "0.05", "--json")
    assert status_of("watch", "libvirt:vm1", *arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [json.loads(line)["actual"] for line in lines] == [2 * GiB, 2 * GiB]
    assert domain.closed


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_no_such_vm(
    command: list[str], domain: FakeDomain, capsys: pytest.CaptureFixture[str]
) -> None:
    del domain
    name, *rest = command
    assert status_of(name, "libvirt:vm2", *rest) == 4
    assert "has no VM 'vm2'" in only_line(capsys)


def test_a_vm_that_does_not_run(
    domain: FakeDomain, capsys: pytest.CaptureFixture[str]
) -> None:
    domain.fails = "VIR_ERR_OPERATION_INVALID"
    assert status_of("status", "libvirt:vm1") == 4
    assert "start the VM" in only_line(capsys)
    assert domain.closed


def test_no_daemon(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(_: str | None) -> None:
        raise LibvirtError("VIR_ERR_OPERATION_FAILED")

    install(monkeypatch, refuse)
    assert status_of("status", "libvirt:vm1") == 4
    assert "is its daemon running" in only_line(capsys)


def test_a_daemon_that_hangs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    let_go = threading.Event()
    install(monkeypatch, lambda _: let_go.wait(10))
    try:
        assert status_of("status", "libvirt:vm1", "--connect-timeout", "0.2") == 4
    finally:
        let_go.set()
    line = only_line(capsys)
    assert "within 0.2 s" in line
    # libvirt 9 itself waits for five seconds for a daemon that is not installed.
    assert "or not installed" in line
    assert "LIBVIRT_DEFAULT_URI" in line


@pytest.fixture
def no_libvirt_python(monkeypatch: pytest.MonkeyPatch) -> None:
    class Nowhere:
        @staticmethod
        def find_spec(name: str, *_: object) -> None:
            if name == "libvirt":
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.delitem(sys.modules, "libvirt", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Nowhere, *sys.meta_path])


def test_no_libvirt_python(
    no_libvirt_python: None, capsys: pytest.CaptureFixture[str]
) -> None:
    del no_libvirt_python
    assert status_of("status", "libvirt:vm1") == 1
    assert "pip install 'qmpballoon[libvirt]'" in only_line(capsys)


def test_a_vm_without_a_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of("status", "libvirt:") == 2
    assert "libvirt:NAME" in only_line(capsys)


# Fleets


@pytest.fixture
def neighbour() -> Iterator[str]:
    """Have a VM with a socket of its own; its glob."""
    with serve(MachineConfig(memory=GiB)) as fake:
        yield str(fake.socket)


def states(capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    seen = json.loads(capsys.readouterr().out)
    return {vm["address"]: vm["state"] for vm in seen["vms"]}


def test_a_fleet_of_both_kinds(
    domain: FakeDomain, neighbour: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status_of("fleet", "status", "libvirt:vm1", neighbour, "--json") == 0
    assert states(capsys) == {"libvirt:vm1": "healthy", neighbour: "healthy"}
    assert domain.closed


def test_a_fleet_is_moved(
    domain: FakeDomain, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "fleet.toml"
    file.write_text('[[vm]]\naddress = "libvirt:vm1"\nceiling = "1536MiB"\n')
    arguments = ("fleet", "run", str(file), "--once", "--reserve", "0", "--json")
    assert status_of(*arguments) == 0
    (move,) = json.loads(capsys.readouterr().out)["moves"]
    assert (move["name"], move["target"]) == ("vm1", 3 * GiB // 2)
    answer = domain.monitor.execute("query-balloon")
    assert isinstance(answer, dict)
    assert answer["actual"] == 3 * GiB // 2


def test_a_fleet_is_reclaimed_from(
    domain: FakeDomain, capsys: pytest.CaptureFixture[str]
) -> None:
    amount = 256 * MiB
    arguments = ("fleet", "reclaim", amount, "libvirt:vm1", "--hold", "--json")
    assert status_of(*arguments) == 0
    report = json.loads(capsys.readouterr().out)
    (vm,) = report["vms"]
    assert (vm["name"], vm["requested"]) == ("vm1", amount)
    answer = domain.monitor.execute("query-balloon")
    assert answer == {"actual": 2 * GiB - report["handed_over"]}
    assert 0 <= amount - report["handed_over"] < MiB
    assert domain.closed


async def until_sizes_are(wanted: dict[str, int], url: str) -> None:
    """Wait until the page of metrics tells of VMs of these sizes."""
    name = "qmpballoon_vm_memory_actual_bytes"
    with trio.fail_after(300):
        while True:
            seen = await figures(url)
            if wanted == {vm: seen[vm].get(name) for vm in seen if vm}:
                return
            await trio.sleep(0.05)


def test_metrics_of_both_kinds(
    domain: FakeDomain, neighbour: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = {"vm1": 2 * GiB, Path(neighbour).parent.name: GiB}
    said: queue.Queue[str] = queue.Queue()
    monkeypatch.setattr(_output, "say", said.put)

    def look() -> None:
        url = said.get(timeout=300).removeprefix("metrics at ")
        try:
            trio.run(until_sizes_are, wanted, url)
        finally:
            signal.raise_signal(signal.SIGINT)  # the command goes on until Ctrl-C

    with ThreadPoolExecutor(1) as thread:
        looked = thread.submit(look)
        arguments = ("--listen", "0", "--period", "0.2")
        assert status_of("exporter", "libvirt:vm1", neighbour, *arguments) == 0
        looked.result()
    assert domain.closed


def test_a_fleet_and_a_vm_that_libvirt_does_not_have(
    domain: FakeDomain, neighbour: str, capsys: pytest.CaptureFixture[str]
) -> None:
    del domain
    assert status_of("fleet", "status", "libvirt:vm2", neighbour, "--json") == 0
    assert states(capsys) == {"libvirt:vm2": "gone", neighbour: "healthy"}


def test_a_fleet_and_a_daemon_that_hangs(
    monkeypatch: pytest.MonkeyPatch,
    neighbour: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It costs nobody else anything, and does not hold up the end."""
    let_go = threading.Event()
    install(monkeypatch, lambda _: let_go.wait(30))
    arguments = ("libvirt:vm1", neighbour, "--timeout", "3", "--json")
    try:
        assert status_of("fleet", "status", *arguments) == 0
        assert not let_go.is_set()
    finally:
        let_go.set()
    assert states(capsys) == {"libvirt:vm1": "connecting", neighbour: "healthy"}


def test_a_fleet_without_libvirt_python(
    no_libvirt_python: None, capsys: pytest.CaptureFixture[str]
) -> None:
    del no_libvirt_python
    assert status_of("fleet", "status", "libvirt:vm1") == 1
    assert "pip install 'qmpballoon[libvirt]'" in only_line(capsys)
