"""``qmpballoon doctor`` on real QEMUs: it names the fault that was planted first.

Most of them run no guest: a QEMU without a kernel, stopped or at its firmware, is
enough to show what a VM was started with.
"""

from __future__ import annotations

import os
import resource
import signal
import socket
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pytest
import trio
from attrs import field, frozen
from command import object_of, run

from qmpballoon.cli.doctor import _examine_all, _Limits
from qmpballoon.errors import MonitorClosed, MonitorUnreachable
from qmpballoon.fleet.processes import choose_users
from qmpballoon.fleet.sources import make_source
from qmpballoon.sizes import GiB, MiB
from qmpballoon.testing import lab
from qmpballoon.testing.lab._parts import find_qemu
from qmpballoon.testing.lab._qemu import run_process
from qmpballoon.trio import open_monitor

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

    from qmpballoon.cli.doctor import _Report
    from qmpballoon.trio import TrioMonitor

MEMORY = 64 * MiB
BALLOON = ("-device", "virtio-balloon-pci,id=balloon0")
STOPPED = ("-S",)
# No guest is in these VMs: that is found, too, but was not planted.
ABSENT = {"never-started", "no-driver"}
LIMITS = _Limits(connect=30, ask=60, watch=0.01)


def backend(kind: str, *members: str) -> tuple[str, ...]:
    """Return the options that make a VM's RAM of a certain kind of memory."""
    parts = (f"memory-backend-{kind}", "id=mem", f"size={MEMORY}", *members)
    return ("-object", ",".join(parts), "-machine", "memory-backend=mem")


async def stop(monitor: TrioMonitor) -> None:
    await monitor.execute("stop")


async def poll_guest(monitor: TrioMonitor) -> None:
    about = {"path": "balloon0", "property": "guest-stats-polling-interval"}
    await monitor.execute("qom-set", {**about, "value": 7})


@frozen(kw_only=True)
class Planted:
    """A VM with something wrong.

    Attributes:
        kind: What is to be found first.
        words: Words that the finding has.
        options: QEMU's, beside two monitors.
        prepare: What is done to it before it is examined.
    """

    kind: str
    words: str
    options: tuple[str, ...] = (*BALLOON, *STOPPED)
    prepare: Callable[[TrioMonitor], Awaitable[None]] | None = field(default=None)


PLANTED = [
    Planted(kind="no-balloon", words="-device virtio-balloon-pci", options=STOPPED),
    Planted(kind="never-started", words="start it (cont)"),
    Planted(
        kind="preconfig", words="x-exit-preconfig", options=(*BALLOON, "--preconfig")
    ),
    Planted(
        kind="waits-for-migration",
        words="wait until its migration has come in",
        options=(*BALLOON, "-incoming", "defer"),
    ),
    Planted(
        kind="not-running", words="resume it (cont)", options=BALLOON, prepare=stop
    ),
    Planted(kind="no-driver", words="load virtio_balloon", options=BALLOON),
    Planted(
        kind="huge-pages",
        words="whole ones only",
        # Without a reservation the host needs no huge pages for this.
        options=(*BALLOON, *STOPPED, *backend("memfd", "hugetlb=on", "reserve=off")),
    ),
    Planted(
        kind="shared-memory",
        words="gets it back all the same",
        options=(*BALLOON, *STOPPED, *backend("memfd", "share=on")),
    ),
    Planted(
        kind="private-file",
        words="cut out of that file",
        options=(
            *(*BALLOON, *STOPPED),
            *backend("file", "share=off", "mem-path={folder}/ram"),
        ),
    ),
    Planted(
        kind="page-poison",
        words="leave page-poison=on",
        options=(
            "-device",
            f"{BALLOON[1]},free-page-reporting=on,page-poison=off",
            *STOPPED,
        ),
    ),
    Planted(
        kind="deflate-on-oom",
        words="takes it back from the balloon by itself",
        options=("-device", f"{BALLOON[1]},deflate-on-oom=on", *STOPPED),
    ),
    Planted(
        kind="virtio-mem",
        words="which a balloon cannot take, beside 64 MiB",
        options=(
            *(*BALLOON, *STOPPED, "-m", f"{MEMORY >> 20}M,maxmem=1G"),
            *("-object", f"memory-backend-ram,id=more,size={MEMORY}"),
            *("-device", "virtio-mem-pci,memdev=more,requested-size=16M,block-size=2M"),
        ),
    ),
    Planted(kind="polled-by-others", words="every 7 s", prepare=poll_guest),
]


@asynccontextmanager
async def start_qemu(
    folder: Path,
    *options: str,
    monitor: str | None = None,
    version: str | None = None,
) -> AsyncGenerator[tuple[str, int]]:
    """Run a QEMU without a kernel; yield where its monitor is, and its process id."""
    path = monitor or f"unix:{folder / 'qmp'}"
    command = [
        *find_qemu(version, lambda _: None).command,
        *("-machine", "q35", "-accel", "tcg,tb-size=16", "-m", f"{MEMORY >> 20}M"),
        *("-nodefaults", "-nographic", "-monitor", "none"),
        *("-qmp", f"{path},server=on,wait=off"),
        *(option.format(folder=folder) for option in options),
    ]
    errors = folder / "errors"
    async with run_process(command, errors) as process:
        with trio.fail_after(120):
            while not await is_up(path):
                assert process.poll() is None, errors.read_text()
                await trio.sleep(0.02)
        yield path, process.pid


async def is_up(address: str) -> bool:
    """Tell whether QEMU has started; wait until nobody holds its monitor."""
    with suppress(MonitorUnreachable, MonitorClosed):  # not yet, or it has ended
        async with open_monitor(address, timeout=120):
            return True
    return False


async def examine(address: str) -> _Report:
    """Return what is found about one VM."""
    found = make_source([address])()
    (report,) = await _examine_all(found, choose_users(), LIMITS)
    return report


def second_monitor(folder: Path) -> tuple[str, str]:
    return ("-qmp", f"unix:{folder / 'second'},server=on,wait=off")


@pytest.mark.parametrize("planted", PLANTED, ids=lambda planted: planted.kind)
async def test_a_planted_fault_is_named_first(planted: Planted, tmp_path: Path) -> None:
    options = (*planted.options, *second_monitor(tmp_path))
    async with start_qemu(tmp_path, *options) as (address, _):
        if planted.prepare is not None:
            async with open_monitor(address) as monitor:
                await planted.prepare(monitor)
        report = await examine(address)
    first = next(
        each for each in report.findings if each.kind not in ABSENT - {planted.kind}
    )
    assert (first.kind, planted.words in first.detail) == (planted.kind, True), first


async def test_a_migration(tmp_path: Path) -> None:
    options = (*BALLOON, *STOPPED, "-m", "256M", *second_monitor(tmp_path))
    with socket.socket(socket.AF_UNIX) as target:
        target.bind(str(tmp_path / "target"))
        target.listen()  # nobody reads what is sent there: it never ends
        async with start_qemu(tmp_path, *options) as (address, _):
            async with open_monitor(address) as monitor:
                await monitor.execute("migrate", {"uri": f"unix:{tmp_path}/target"})
                with trio.fail_after(60):
                    while await read(monitor, "query-migrate", "status") != "active":  # noqa: ASYNC110
                        await trio.sleep(0.01)
            report = await examine(address)
    first = next(each for each in report.findings if each.kind not in ABSENT)
    assert first.kind == "migrating"
    assert "(active), and its target goes with it: wait" in first.detail


async def test_a_qemu_that_does_not_start(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="no-such-device"):
        async with start_qemu(tmp_path, "-device", "no-such-device"):
            pytest.fail("it started")


async def test_the_only_monitor_of_one_that_adds_others(tmp_path: Path) -> None:
    options = (*BALLOON, *STOPPED)
    async with start_qemu(tmp_path, *options, version="11.1") as (address, _):
        report = await examine(address)
    assert "only-monitor" not in {each.kind for each in report.findings}


async def test_the_only_monitor(tmp_path: Path) -> None:
    async with start_qemu(tmp_path, *BALLOON, *STOPPED) as (address, pid):
        report = await examine(address)
    assert report.pid == pid
    assert [each.kind for each in report.findings if each.severity == "note"] == [
        "only-monitor",
        "deflate-on-oom",
        "free-page-reporting",
    ]


async def test_a_monitor_that_another_client_holds(tmp_path: Path) -> None:
    async with start_qemu(tmp_path, *BALLOON) as (address, _), open_monitor(address):
        result = await run("doctor", address, "--connect-timeout", "0.2", "--json")
    (vm,) = object_of(result)["vms"]
    assert result.returncode == 4
    assert [each["kind"] for each in vm["findings"]] == ["monitor-busy"]
    assert "give the VM a second -qmp monitor" in vm["findings"][0]["detail"]


async def test_a_qemu_that_is_stopped(tmp_path: Path) -> None:
    async with start_qemu(tmp_path, *BALLOON) as (address, pid):
        os.kill(pid, signal.SIGSTOP)
        result = await run("doctor", address, "--connect-timeout", "0.2", "--json")
    (vm,) = object_of(result)["vms"]
    assert result.returncode == 4
    assert [each["kind"] for each in vm["findings"]] == ["qemu-stopped"]
    assert f"kill -CONT {pid}" in vm["findings"][0]["detail"]


async def test_a_monitor_that_belongs_to_a_manager(tmp_path: Path) -> None:
    # The path of a socket has 107 characters at most, and pytest's folder many of them.
    with TemporaryDirectory() as short:
        folder = Path(short) / "libvirt" / "qemu" / "domain-1-vm1"
        folder.mkdir(parents=True)
        path = f"unix:{folder / 'monitor.sock'}"
        async with start_qemu(tmp_path, *BALLOON, monitor=path) as (address, _):
            report = await examine(address)
        (finding,) = report.findings
        assert finding.kind == "monitor-shared"
        assert "name the VM libvirt:NAME" in finding.detail
        options = (*BALLOON, *STOPPED, *second_monitor(tmp_path))
        async with start_qemu(tmp_path, *options, monitor=path):
            report = await examine(second_monitor(tmp_path)[1].partition(",")[0])
        first = next(each for each in report.findings if each.kind not in ABSENT)
        assert first.kind == "managed"
        assert "libvirt's own: that manager may set targets" in first.detail


async def test_a_monitor_over_tcp(tmp_path: Path) -> None:
    with trio.socket.socket() as sock:
        await sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    where = f"tcp:127.0.0.1:{port}"
    async with start_qemu(tmp_path, *BALLOON, *STOPPED, monitor=where) as (address, _):
        report = await examine(address)
    assert report.pid is None
    notes = [each for each in report.findings if each.severity == "note"]
    assert notes[0].kind == "resident-unknown"
    assert "use a monitor on a unix socket" in notes[0].detail


async def test_locked_memory(tmp_path: Path) -> None:
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if os.geteuid() != 0 and soft != resource.RLIM_INFINITY:
        pytest.skip("this user may not lock memory")
    options = (*BALLOON, *STOPPED, "-overcommit", "mem-lock=on")
    async with start_qemu(tmp_path, *options) as (address, _):
        report = await examine(address)
    assert report.findings[0].kind == "locked-memory"
    assert "without -overcommit mem-lock" in report.findings[0].detail


@pytest.fixture
def limited_group() -> Any:  # noqa: ANN401 - a generator of a path
    """A control group of version 1 with a limit of 48 MiB, if one can be made."""
    folder = Path("/sys/fs/cgroup/memory") / f"qmpballoon-test-{os.getpid()}"
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error.strerror}")
    (folder / "memory.limit_in_bytes").write_text(str(MEMORY * 3 // 4))
    yield folder
    folder.rmdir()


async def test_a_limited_control_group(limited_group: Path, tmp_path: Path) -> None:
    options = (*BALLOON, *STOPPED, *second_monitor(tmp_path))
    async with start_qemu(tmp_path, *options) as (address, pid):
        (limited_group / "cgroup.procs").write_text(str(pid))
        report = await examine(address)
    first = next(each for each in report.findings if each.kind not in ABSENT)
    assert first.kind == "cgroup-limit"
    assert f"{limited_group} is limited to 48 MiB" in first.detail


async def test_a_guest_that_is_well_and_one_that_two_clients_pull_at() -> None:
    patiently = ("--connect-timeout", "60", "--timeout", "60", "--watch")
    async with lab.boot(memory=GiB, saved=True) as guest:
        # On a host that is busy a guest may take longer than it is given to answer.
        with trio.fail_after(120):
            while True:
                result = await run("doctor", guest.socket, *patiently, "0.1", "--json")
                if result.returncode == 0:
                    break
        (vm,) = object_of(result)["vms"]
        assert (vm["status"], vm["qemu"]["pid"]) == ("running", guest.pid)
        assert vm["qemu"]["version"] == guest.qemu_version

        async def pull() -> None:
            async with open_monitor(guest.second_socket) as monitor:
                while True:
                    for size in (GiB - 64 * MiB, GiB - 8 * MiB):
                        await monitor.execute("balloon", {"value": size})
                        while await read(monitor, "query-balloon", "actual") != size:  # noqa: ASYNC110
                            await trio.sleep(0.01)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(pull)
            result = await run("doctor", guest.socket, *patiently, "300", "--json")
            nursery.cancel_scope.cancel()
    (vm,) = object_of(result)["vms"]
    assert result.returncode == 3, vm
    assert vm["findings"][0]["kind"] == "two-managers"
    assert "turn ballooning off in all but one" in vm["findings"][0]["detail"]


async def read(monitor: TrioMonitor, command: str, name: str) -> object:
    """Return a member of what a command returns."""
    answer = await monitor.execute(command)
    assert isinstance(answer, dict)
    return answer.get(name)
