"""Which QEMUs of a host are VMs: real ones that are stopped, and one that pretends.

No guest is booted: each QEMU is stopped before its first instruction.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from command import object_of, run
from qemu_likes import NOBODY, listening

from qmpballoon.fleet.sources import make_source
from qmpballoon.fleet.vm_spec import Refused, VmSpec
from qmpballoon.testing.lab import ProgressBar
from qmpballoon.testing.lab._parts import find_qemu

if TYPE_CHECKING:
    from collections.abc import Callable, Generator


MiB = 1 << 20
as_root = pytest.mark.skipif(
    os.geteuid() != 0 or not (shutil.which("unshare") and shutil.which("setpriv")),
    reason="needs root, unshare and setpriv",
)


@pytest.fixture
def start(tmp_path: Path) -> Generator[Callable[..., int]]:
    """Start QEMUs that do not run their guests; end them at the end."""
    qemu = find_qemu(None, ProgressBar())
    pids: list[int] = []

    def launch(
        *options: str,
        prefix: tuple[str, ...] = (),
        folder: Path = tmp_path,
        while_it_starts: Callable[[int], None] | None = None,
    ) -> int:
        """Start a QEMU and return its process id.

        The process that was started first is another one: it ends when QEMU runs.
        """
        pidfile = folder / f"pid-{len(pids)}"
        line = [*map(str, qemu.command), "-S", "-accel", "tcg", "-m", "64"]
        line += ["-nodefaults", "-display", "none", "-daemonize"]
        line += ["-device", "virtio-balloon-pci,id=balloon0", "-pidfile", str(pidfile)]
        with subprocess.Popen([*prefix, *line, *options]) as starter:
            if while_it_starts is not None:
                while_it_starts(starter.pid)
        assert starter.returncode == 0
        pids.append(int(pidfile.read_text()))
        return pids[-1]

    yield launch
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def qmp(path: Path | str) -> tuple[str, str]:
    return ("-qmp", f"unix:{path},server=on,wait=off")


async def find_vms(
    *wanted: object,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the VMs that `fleet status` shows, and what it refuses.

    Where none is named, it holds the monitors of other tests' guests meanwhile.
    """
    seconds = "120" if wanted and not str(wanted[0]).startswith("-") else "5"
    done = await run("fleet", "status", *wanted, "--json", "--timeout", seconds)
    seen = object_of(done)
    return seen["vms"], seen["refused"]


async def find_sizes(vms: list[dict[str, Any]]) -> list[int]:
    """Return the RAM of each VM that was found, however long they take to tell it."""
    known, _ = await find_vms(*(vm["address"] for vm in vms))
    return [vm["balloon"]["total"] for vm in known]


async def test_two_monitors_are_one_vm(
    start: Callable[..., int], tmp_path: Path
) -> None:
    first, second = tmp_path / "1.qmp", tmp_path / "2.qmp"
    start(*qmp(first), *qmp(second), "-name", "web")
    link = tmp_path / "link"
    link.symlink_to(tmp_path)
    for wanted in (
        [tmp_path / "*.qmp"],
        [first, link / "1.qmp"],
        [first, tmp_path / "*.qmp", link / "*.qmp"],
    ):
        vms, refused = await find_vms(*wanted)
        assert (len(vms), refused) == (1, [])
        assert vms[0]["balloon"]["total"] == 64 * MiB
    vms, _ = await find_vms(tmp_path / "*.qmp")
    assert vms[0]["address"] == str(second)


def test_one_that_starts(start: Callable[..., int], tmp_path: Path) -> None:
    """Two processes have its command line, until it waits no longer for a client."""
    path = tmp_path / "slow.qmp"
    find = make_source([])

    def look(starter: int) -> None:
        """Wait until both are seen at once: the starter is none, and QEMU is one."""
        vms: list[str] = []
        refused: set[int | None] = set()
        while not (vms and starter in refused):
            found = find()
            refused = {each.pid for each in found if isinstance(each, Refused)}
            specs = [each for each in found if isinstance(each, VmSpec)]
            vms = [each.name for each in specs if str(each.address) == str(path)]
        with socket.socket(socket.AF_UNIX) as client:
            while client.connect_ex(str(path)) != 0:
                pass
        assert vms == ["slow"]

    waiting = f"unix:{path},server=on,wait=on"
    start("-qmp", waiting, "-name", "slow", while_it_starts=look)


async def test_what_people_write(start: Callable[..., int], tmp_path: Path) -> None:
    """Real QEMUs take all of these, and each is found by its process."""
    config = tmp_path / "qemu.conf"
    config.write_text(
        f'[chardev "c"]\nbackend = "socket"\npath = "{tmp_path}/c"\nserver = "on"\n'
        'wait = "off"\n[mon]\nchardev = "c"\nmode = "control"\n'
    )
    name = f"qmpballoon-{os.getpid()}"
    pids = {
        start("-qmp", f"unix:{tmp_path}/a,server=yes,wait=n"),
        start(
            *("-chardev", f"socket,id=b,path={tmp_path}/b,server,nowait"),
            *("-qmp", "chardev:b"),
        ),
        start("-readconfig", str(config)),
        start("-qmp", f"unix:{name},abstract=on,server=on,wait=off"),
    }
    vms, _ = await find_vms()
    ours = [vm for vm in vms if vm["name"] in {f"pid-{pid}" for pid in pids}]
    assert {vm["address"].rpartition("/")[2] for vm in ours} == {
        *("a", "b", "c", f"unix-abstract:{name}")
    }
    assert await find_sizes(ours) == [64 * MiB] * 4


@as_root
async def test_a_container_with_a_managers_monitors(
    start: Callable[..., int], tmp_path: Path
) -> None:
    """As on a host of Proxmox VE's or Incus', with a mount namespace of its own."""

    def container(*options: str) -> int:
        folders = "/run/qemu-server /run/incus/vm1"
        script = f'mount -t tmpfs none /run && mkdir -p {folders} && exec "$0" "$@"'
        return start(*options, prefix=("unshare", "-m", "sh", "-c", script))

    config = tmp_path / "incus.conf"
    config.write_text(
        '[chardev "monitor"]\nbackend = "socket"\n'
        'path = "/run/incus/vm1/qemu.monitor"\nserver = "on"\nwait = "off"\n'
        '[mon]\nchardev = "monitor"\nmode = "control"\n'
    )
    second = qmp("/run/incus/vm1/balloon.qmp")
    incus = container("-readconfig", str(config), *second, "-name", "vm1")
    proxmox = container(
        *("-chardev", "socket,id=qmp,path=/run/qemu-server/100.qmp,server=on,wait=off"),
        *("-mon", "chardev=qmp,mode=control", "-name", "web,debug-threads=on"),
    )
    vms, refused = await find_vms()
    (vm,) = [vm for vm in vms if f"/proc/{incus}/" in vm["address"]]
    assert vm["name"] == "vm1"
    assert await find_sizes([vm]) == [64 * MiB]
    assert vm["address"] == f"/proc/{incus}/root/run/incus/vm1/balloon.qmp"
    assert not [vm for vm in vms if f"/proc/{proxmox}/" in vm["address"]]
    (reason,) = [each["reason"] for each in refused if each["pid"] == proxmox]
    assert "Proxmox VE's own: give the VM a second monitor with" in reason


@pytest.fixture
def shared() -> Generator[Path]:
    """Return a folder that everybody may write to."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def python() -> Path:
    """Return a Python that others may run too."""
    usual = Path("/usr/bin/python3")
    return usual if usual.exists() else Path(sys.executable)


@as_root
async def test_vms_of_two_users_and_a_pretender(
    start: Callable[..., int], tmp_path: Path, shared: Path, python: Path
) -> None:
    become = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
    mine = start(*qmp(tmp_path / "mine.qmp"), "-name", "mine")
    theirs = start(*qmp(shared / "theirs.qmp"), prefix=become, folder=shared)
    # It listens at a socket of its own, and names that of another's VM.
    with listening(
        [python],
        shared / "pretender.qmp",
        *qmp(tmp_path / "mine.qmp"),
        argv0="qemu-system-x86_64",
        prefix=become,
    ) as pretender:
        vms, refused = await find_vms()
        reasons = {each["pid"]: each["reason"] for each in refused}
        assert [vm["name"] for vm in vms if "mine.qmp" in vm["address"]] == ["mine"]
        assert "it calls itself qemu-system-x86_64" in reasons[pretender]
        assert "give --user nobody" in reasons[theirs]
        assert mine not in reasons
        # Trusted, it counts; and the pretender still does not.
        vms, refused = await find_vms("--user", "root", "--user", "nobody")
        assert {f"pid-{theirs}", "mine"} <= {vm["name"] for vm in vms}
        assert pretender in {each["pid"] for each in refused}
        # A glob finds sockets, and it is asked who listens there.
        vms, _ = await find_vms(shared / "*.qmp")
        assert {vm["state"] for vm in vms} == {"refused"}
        assert all("belongs to user nobody" in vm["detail"] for vm in vms)
