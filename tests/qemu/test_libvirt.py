"""The balloon through a real libvirtd, which holds QEMU's only monitor."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import time
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING

import documents
import libvirtd
import pytest
import trio
from command import PROGRAM, start
from frontends import on_each
from metrics import figures, state, url_of
from scenarios import wait_for
from through_libvirt import ALL

from qmpballoon import (
    CommandNotFound,
    DeviceNotFound,
    MiB,
    MonitorClosed,
    MonitorTimeout,
    MonitorUnreachable,
    NoBalloonDevice,
    libvirt,
)
from qmpballoon._transport.qemu_process import find_qemu_pid
from qmpballoon.testing.lab import ProgressBar
from qmpballoon.testing.lab._parts import find_qemu

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from frontends import FrontEnd
    from libvirtd import Connection, Domain

pytestmark = [pytest.mark.qemu, pytest.mark.libvirt]

MEMORY = 256 * MiB


@pytest.fixture(scope="module")
def connection(request: pytest.FixtureRequest) -> Iterator[Connection]:
    reason = libvirtd.missing()
    if reason is None:
        with libvirtd.running() as connection:
            yield connection
    elif request.config.getoption("require_qemu"):
        pytest.fail(reason, pytrace=False)
    else:
        pytest.skip(reason)


@pytest.fixture(scope="module")
def domain(connection: Connection) -> Iterator[Domain]:
    with libvirtd.domain(connection, memory=MEMORY) as domain:
        yield domain


@pytest.fixture(scope="module")
def newest(connection: Connection) -> Iterator[Domain]:
    """A guest of a QEMU that is newer than libvirt."""
    qemu = find_qemu("11.1", ProgressBar()).command
    with libvirtd.domain(connection, memory=MEMORY, qemu=qemu) as domain:
        yield domain


@contextmanager
def stopped(pid: int) -> Generator[None]:
    """Have a process stand still for the time of the block."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


async def drive(front: FrontEnd, domain: Domain) -> None:
    async with front.open_balloon(domain) as balloon:
        fresh = await balloon.refresh_stats(timeout=300)  # it may still be booting
        assert 150 * MiB < (fresh.total or 0) < MEMORY
        info = await balloon.query()
        assert (info.actual, info.total) == (MEMORY, MEMORY)
        before = balloon.resident()
        assert before is not None
        assert before > 50 * MiB
        result = await balloon.resize(200 * MiB)
        assert (result.outcome, result.actual) == ("reached", 200 * MiB)
        report = await balloon.reclaim(16 * MiB, hold=True)
        assert (report.outcome, report.held) == ("done", True)
        assert report.after.resident is not None
        await balloon.set_target(MEMORY)
        await wait_for(balloon, MEMORY)
        with pytest.raises(CommandNotFound):
            await balloon.monitor.execute("nope")
        with pytest.raises(DeviceNotFound):
            await balloon.monitor.execute("qom-list", {"path": "/nope"})
        with pytest.raises(TypeError):
            await balloon.monitor.execute("x", {"a": object()})
        assert await balloon.get_stats_interval() == 0


@on_each(*ALL)
def test_a_guest_of_libvirts(front: FrontEnd, domain: Domain) -> None:
    front.run(drive(front, domain))


def look(domain: Domain) -> list[object]:
    """Return the character devices and the objects that QEMU has."""
    monitor = libvirt.LibvirtMonitor(domain, command_timeout=libvirt.COMMAND_TIMEOUT)
    arguments = {"path": "/objects"}
    return [monitor.execute("query-chardev"), monitor.execute("qom-list", arguments)]


@on_each(*ALL)
def test_a_monitor_of_its_own(front: FrontEnd, newest: Domain) -> None:
    async def main() -> None:
        async with front.open_balloon(newest, own=True) as balloon:
            assert look(newest) != before
            await balloon.refresh_stats(timeout=60)  # it may still be booting
            assert balloon.resident() is not None
            result = await balloon.resize(200 * MiB)
            assert (result.outcome, result.actual) == ("reached", 200 * MiB)
            await balloon.set_target(MEMORY)
            await wait_for(balloon, MEMORY)

    before = look(newest)
    front.run(main())
    deadline = time.monotonic() + 120
    while look(newest) != before:
        assert time.monotonic() < deadline


def test_the_command_with_a_monitor_of_its_own(
    connection: Connection, newest: Domain
) -> None:
    vm = f"libvirt:{newest.name()}"
    before = look(newest)
    shown = command(connection, "status", vm, "--own-monitor", "--json")
    seen = json.loads(shown.stdout)
    assert seen["qemu"]["version"].startswith("11.1.")
    assert seen["vm"] == {"name": newest.name(), "status": "running"}
    assert seen["balloon"]["actual"] == MEMORY
    assert seen["host"]["resident"] > 50 * MiB
    deadline = time.monotonic() + 120
    while look(newest) != before:
        assert time.monotonic() < deadline


def test_the_command_with_a_monitor_that_qemu_cannot_add(
    connection: Connection, domain: Domain
) -> None:
    vm = f"libvirt:{domain.name()}"
    seen = json.loads(command(connection, "status", vm, "--json").stdout)
    version = seen["qemu"]["version"]
    if tuple(int(part) for part in version.split(".")) >= (11, 1):
        pytest.skip(f"the installed QEMU, {version}, can")
    older = command(connection, "status", vm, "--own-monitor")
    assert older.returncode == 4
    (line,) = older.stderr.splitlines()
    assert "cannot, only 11.1 and later" in line


@on_each(*ALL)
def test_a_cancelled_reclaim_gives_back(front: FrontEnd, domain: Domain) -> None:
    async def scenario() -> None:
        async with front.open_balloon(domain) as balloon:
            await balloon.refresh_stats(timeout=300)
            with front.interrupted() as strike:
                await balloon.reclaim(on_progress=lambda _: strike())
                pytest.fail("it went on")
            assert balloon.target == MEMORY
            await wait_for(balloon, MEMORY)

    front.run(scenario())


def test_the_event_loop_is_not_held_up(domain: Domain) -> None:
    """While QEMU does not answer, others run; and the deadline holds."""

    async def main() -> None:
        balloon = await libvirt.find_balloon_asyncio(domain, command_timeout=2)
        pid = await find_qemu_pid(balloon.monitor)
        assert pid is not None
        turns = 0
        with stopped(pid):
            late = asyncio.create_task(balloon.query())
            while not late.done():
                turns += 1
                await asyncio.sleep(0.01)
            with pytest.raises(MonitorTimeout, match="'query-balloon' within"):
                await late
        assert turns > 20
        while True:
            try:
                assert await balloon.actual() == MEMORY
                break
            except MonitorTimeout:  # the late one may still be before it
                continue

    asyncio.run(main())


@on_each(*ALL)
def test_no_balloon_and_no_vm(front: FrontEnd, connection: Connection) -> None:
    async def find() -> None:
        async with front.open_balloon(vm):
            pytest.fail("it was found")

    with libvirtd.domain(connection, memory=MEMORY, balloon=False) as vm:
        with pytest.raises(NoBalloonDevice):
            front.run(find())
        vm.destroy()
        with pytest.raises(MonitorClosed, match="start the VM"):
            front.run(find())


def test_a_connection_that_may_not_write(
    connection: Connection, domain: Domain
) -> None:
    reader = import_module("libvirt").openReadOnly(connection.getURI())
    try:
        with pytest.raises(MonitorUnreachable, match="may write"):
            libvirt.find_balloon(reader.lookupByName(domain.name()))
    finally:
        reader.close()


def test_qemu_dies(connection: Connection) -> None:
    with libvirtd.domain(connection, memory=MEMORY) as domain:
        balloon = libvirt.find_balloon(domain)
        domain.destroy()
        with pytest.raises(MonitorClosed):
            balloon.query()


def command(
    connection: Connection, *arguments: str
) -> subprocess.CompletedProcess[str]:
    """Run the command, as whoever uses that libvirt by default."""
    done = subprocess.run(
        [*PROGRAM, *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"LIBVIRT_DEFAULT_URI": connection.getURI()},
    )
    documents.check_output(arguments, done.stdout)
    return done


def test_the_command(connection: Connection, domain: Domain) -> None:
    vm = f"libvirt:{domain.name()}"
    seen = json.loads(command(connection, "status", vm, "--json").stdout)
    assert seen["socket"] == vm
    assert seen["vm"] == {"name": domain.name(), "status": "running"}
    assert seen["balloon"]["actual"] == MEMORY
    assert seen["host"]["resident"] > 50 * MiB
    resized = command(connection, "resize", vm, "200M", "--json")
    assert json.loads(resized.stdout)["actual"] == 200 * MiB
    reclaimed = command(connection, "reclaim", vm, "16M", "--json")
    assert json.loads(reclaimed.stdout)["outcome"] == "done"
    watched = command(connection, "watch", vm, "--count", "1", "--json")
    assert json.loads(watched.stdout)["actual"] == 200 * MiB
    assert command(connection, "resize", vm, "100%").returncode == 0


def test_the_command_on_a_fleet(connection: Connection, domain: Domain) -> None:
    libvirt.find_balloon(domain).refresh_stats(timeout=300)  # it may still be booting
    vms = (f"libvirt:{domain.name()}", "libvirt:nobody")
    shown = command(connection, "fleet", "status", *vms, "--json", "--timeout", "30")
    by_name = {vm["name"]: vm for vm in json.loads(shown.stdout)["vms"]}
    ours = by_name[domain.name()]
    assert (ours["state"], ours["balloon"]["actual"]) == ("healthy", MEMORY)
    assert ours["stats"]["fresh"]
    assert ours["host"]["resident"] > 50 * MiB
    assert by_name["nobody"]["state"] == "gone"
    planned = command(connection, "fleet", "plan", vms[0], "--reserve", "0", "--json")
    assert json.loads(planned.stdout)["moves"] == []


def test_the_command_reclaims_from_a_fleet(
    connection: Connection, domain: Domain
) -> None:
    balloon = libvirt.find_balloon(domain)
    balloon.refresh_stats(timeout=300)  # it may still be booting
    vm = f"libvirt:{domain.name()}"
    arguments = (vm, "--hold", "--json", "--timeout", "30")
    done = command(connection, "fleet", "reclaim", "16M", *arguments)
    try:
        report = json.loads(done.stdout)
        assert [vm["name"] for vm in report["vms"]] == [domain.name()]
        assert 0 < report["handed_over"] <= 16 * MiB
        assert balloon.actual() == MEMORY - report["handed_over"]
    finally:
        balloon.resize(MEMORY)


async def test_the_command_serves_metrics(
    connection: Connection, domain: Domain, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIBVIRT_DEFAULT_URI", connection.getURI())
    vms = (f"libvirt:{domain.name()}", "libvirt:nobody")
    names = (
        "qmpballoon_vm_memory_actual_bytes",
        "qmpballoon_vm_memory_resident_bytes",
        "qmpballoon_guest_memory_available_bytes",
    )
    async with start("exporter", *vms, "--listen", "0", "--period", "0.5") as running:
        url = await url_of(running.stdout)
        with trio.fail_after(300):
            seen: dict[str, dict[str, float]] = {}
            while not {*names} <= seen.get(domain.name(), {}).keys():
                await trio.sleep(0.1)
                seen = await figures(url)
            ours = seen[domain.name()]
            assert ours[names[0]] == MEMORY
            assert ours[names[1]] > 50 * MiB
            while state(seen["nobody"]) != "gone":
                await trio.sleep(0.1)
                seen = await figures(url)
            running.process.send_signal(signal.SIGINT)
            assert await running.process.wait() == 0


def test_the_command_in_vain(connection: Connection) -> None:
    missing = command(connection, "status", "libvirt:nobody")
    assert missing.returncode == 4
    (line,) = missing.stderr.splitlines()  # and none of libvirt's own
    assert "has no VM 'nobody'" in line


def test_the_command_and_a_daemon_that_stops(
    connection: Connection, domain: Domain
) -> None:
    with stopped(libvirtd.pid(connection)):
        late = command(
            connection, "status", f"libvirt:{domain.name()}", "--connect-timeout", "1"
        )
    assert late.returncode == 4
    (line,) = late.stderr.splitlines()
    assert "within 1 s" in line
