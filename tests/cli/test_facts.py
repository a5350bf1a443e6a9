"""The facts that a doctor gathers: over simulated monitors, and from files."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

import pytest
import trio

from qmpballoon.address import LibvirtVm, TcpAddress, UnixAddress
from qmpballoon.cli._facts import (
    explain_refused,
    explain_unreachable,
    gather,
    is_on_hugetlbfs,
    read_host,
)
from qmpballoon.cli._findings import Backend, Facts, find_findings
from qmpballoon.errors import (
    CommandError,
    CommandNotFound,
    MonitorBusy,
    MonitorUnreachable,
)
from qmpballoon.fleet.processes import FoundMonitor, QemuProcess
from qmpballoon.fleet.vm_spec import Refused
from qmpballoon.sizes import GiB, MiB
from qmpballoon.testing import FakeQemu, GuestConfig, MachineConfig, simulate
from qmpballoon.trio import open_monitor

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from qmpballoon.monitor import Monitor
    from qmpballoon.trio import TrioMonitor

WATCH = 3.0
BOOT = 5.0  # seconds; longer than the simulated guest takes
BACKEND = "/objects/mem"


class Retelling:
    """A monitor that answers some commands otherwise than the one behind it."""

    def __init__(
        self, behind: TrioMonitor, answers: Mapping[tuple[str, str], object]
    ) -> None:
        self._behind = behind
        self._answers = answers
        self.name = behind.name
        self.sleep, self.now = behind.sleep, behind.now
        self.shield, self.wall_clock = behind.shield, behind.wall_clock

    async def execute(
        self, command: str, arguments: Mapping[str, object] | None = None
    ) -> object:
        given = arguments or {}
        about = "/".join(
            str(given[key]) for key in ("path", "property") if key in given
        )
        answer = self._answers.get((command, about))
        if isinstance(answer, Exception):
            raise answer
        if answer is not None:
            return answer
        return await self._behind.execute(command, arguments)


def ask(
    config: MachineConfig | None = None,
    answers: Mapping[tuple[str, str], object] | None = None,
    meanwhile: Callable[[FakeQemu], Any] | None = None,
    version: str = "10.0",
) -> Facts:
    """Return the facts about a simulated VM."""

    async def main(vm: FakeQemu) -> Facts:
        async with (
            open_monitor(vm.connect(), wall_clock=vm.wall_clock) as monitor,
            trio.open_nursery() as nursery,
        ):
            if meanwhile is not None:
                nursery.start_soon(meanwhile, vm)
            retelling: Monitor = Retelling(monitor, answers or {})
            await trio.sleep(BOOT)
            facts = await gather(retelling, WATCH)
            nursery.cancel_scope.cancel()
        return facts

    facts = simulate(main, config or MachineConfig(), version=version)
    assert isinstance(facts, Facts)
    return facts


def kinds(facts: Facts) -> list[str]:
    return [each.kind for each in find_findings(facts) if each.severity != "note"]


def listed(*children: tuple[str, str]) -> object:
    return [{"name": name, "type": f"child<{kind}>"} for name, kind in children]


@pytest.mark.parametrize("version", ["7.2", "8.2", "9.2", "10.0", "11.1"])
def test_a_vm_that_is_well(version: str) -> None:
    facts = ask(version=version)
    assert kinds(facts) == []
    assert facts.version.startswith(f"{version}.")
    assert facts.actual == facts.total == 2 * GiB
    assert {*facts.sizes} == {2 * GiB}
    assert WATCH <= facts.seconds < 2 * WATCH
    assert (facts.silence, facts.interval, facts.migration) == ("", 0, "")
    assert facts.stats.available
    assert facts.backends == (Backend(),)
    assert set(facts.features) >= {"deflate-on-oom", "free-page-reporting"}


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        (MachineConfig(balloon=None), "no-balloon"),
        (MachineConfig(paused=True), "never-started"),
        (MachineConfig(guest=GuestConfig(driver=False)), "no-driver"),
        (
            MachineConfig(guest=GuestConfig(claims={"free-memory": 3 * GiB})),
            "nonsense",
        ),
        (
            MachineConfig(
                guest=GuestConfig(
                    claims=dict.fromkeys(
                        ("free-memory", "available-memory", "disk-caches")
                    )
                )
            ),
            "no-statistics",
        ),
        (
            MachineConfig(guest=GuestConfig(claims={"available-memory": None})),
            "no-available",
        ),
        (MachineConfig(free_page_reporting=True, page_poison=False), "page-poison"),
    ],
)
def test_a_simulated_vm(config: MachineConfig, kind: str) -> None:
    assert kinds(ask(config)) == [kind]


def test_two_who_set_targets() -> None:
    async def pull(vm: FakeQemu) -> None:
        while True:
            for size in (GiB, 2 * GiB):
                vm.machine.set_target(size)
                await trio.sleep(0.5)

    assert kinds(ask(meanwhile=pull)) == ["two-managers"]


def test_one_who_sets_a_target() -> None:
    async def push(vm: FakeQemu) -> None:
        await trio.sleep(BOOT + 1)
        vm.machine.set_target(GiB)

    assert kinds(ask(meanwhile=push)) == ["moved-by-others"]


def test_a_guest_that_somebody_polls() -> None:
    async def main(vm: FakeQemu) -> Facts:
        async with open_monitor(vm.connect(), wall_clock=vm.wall_clock) as monitor:
            path = "/machine/peripheral/balloon0"
            about = {"path": path, "property": "guest-stats-polling-interval"}
            await monitor.execute("qom-set", {**about, "value": 5})
            facts = await gather(monitor, WATCH)
            assert await monitor.execute("qom-get", about) == 5
        return facts

    assert simulate(main).interval == 5


@pytest.mark.parametrize(
    ("answers", "kind"),
    [
        ({("query-migrate", ""): {"status": "active"}}, "migrating"),
        (
            {
                ("query-balloon", ""): CommandError(
                    "query-balloon", "KVMMissingCap", "no MMU"
                )
            },
            "balloon-unavailable",
        ),
        (
            {
                ("qom-list", "/machine/peripheral"): listed(
                    ("gpu", "vfio-pci"), ("balloon0", "virtio-balloon-pci")
                )
            },
            "vfio",
        ),
        (
            {
                ("qom-list", "/machine/peripheral-anon"): listed(
                    ("device[0]", "vhost-vdpa-device-pci")
                )
            },
            "vhost-vdpa",
        ),
        (
            {
                ("qom-list", "/objects"): listed(("mem", "memory-backend-memfd")),
                ("qom-get", f"{BACKEND}/hugetlb"): True,
            },
            "huge-pages",
        ),
        (
            {
                ("qom-list", "/objects"): listed(("mem", "memory-backend-file")),
                ("qom-get", f"{BACKEND}/mem-path"): "/run/vm.ram",
                ("qom-get", f"{BACKEND}/share"): False,
            },
            "private-file",
        ),
    ],
)
def test_what_no_simulated_vm_has(
    answers: Mapping[tuple[str, str], object], kind: str
) -> None:
    assert kinds(ask(answers=answers)) == [kind]


def test_vfio_devices_that_leave_the_balloon_alone() -> None:
    answers = {
        ("qom-list", "/machine/peripheral"): listed(
            ("mdev", "vfio-pci"),
            ("crypto", "vfio-ap"),
            ("dasd", "vfio-ccw"),
            ("balloon0", "virtio-balloon-pci"),
        ),
        ("qom-get", "/machine/peripheral/mdev/x-balloon-allowed"): True,
    }
    assert kinds(ask(answers=answers)) == []


def test_virtio_mem_is_added_up() -> None:
    device = {"type": "virtio-mem", "data": {"size": 3 * MiB}}
    dimm = {"type": "dimm", "data": {"size": GiB}}
    answers = {("query-memory-devices", ""): [device, dimm, device]}
    assert ask(answers=answers).virtio_mem == 6 * MiB
    assert ask().virtio_mem is None


def test_a_qemu_too_old_for_a_query() -> None:
    names = ("query-migrate", "query-memory-devices", "query-version")
    missing = {
        (name, ""): CommandNotFound(name, "CommandNotFound", "") for name in names
    }
    facts = ask(answers=missing)
    assert kinds(facts) == []
    assert (facts.version, facts.migration, facts.virtio_mem) == ("", "", None)


@pytest.mark.parametrize(
    ("error", "is_preconfig"),
    [(CommandError, True), (CommandNotFound, False)],
)
def test_a_qemu_that_waits_for_its_machine(
    error: type[CommandError], *, is_preconfig: bool
) -> None:
    name = "query-memory-size-summary"
    refusal = error(name, "GenericError", "")
    facts = ask(MachineConfig(paused=True), {(name, ""): refusal})
    assert facts.is_preconfig is is_preconfig
    assert kinds(facts)[0] == ("preconfig" if is_preconfig else "never-started")


# Where no monitor answers


def test_a_busy_monitor() -> None:
    finding = explain_unreachable(MonitorBusy("another client holds it; close it"))
    assert finding.kind == "monitor-busy"
    assert finding.detail.startswith(
        "another client holds it; close it; with --own-mon"
    )


def test_a_monitor_that_cannot_be_reached() -> None:
    error = MonitorUnreachable("there is no socket: is the VM running?")
    error.errno = errno.ENOENT
    assert explain_unreachable(error).kind == "monitor-unreachable"


def test_monitors_that_were_refused() -> None:
    own = UnixAddress("/run/qemu-server/100.qmp")
    qemu = QemuProcess(
        pid=7, started=1, name="a", monitors=(FoundMonitor(own, ("file", 1, 2)),)
    )
    shared = Refused("a", "its monitor is Proxmox VE's own: give it a second", pid=7)
    assert explain_refused(shared, [qemu]).kind == "monitor-shared"
    assert explain_refused(shared, []).kind == "monitor-missing"
    named = Refused("b", "this monitor is Proxmox VE's own", str(own))
    assert explain_refused(named, []).kind == "monitor-shared"
    strange = Refused("pid-9", "it belongs to user x: give --user x", pid=9)
    assert explain_refused(strange, [qemu]).kind == "monitor-missing"
    assert explain_refused(strange, [qemu]).detail == strange.reason


# The host


MOUNTS = """\
21 1 0:20 / / rw - ext4 /dev/vda rw
22 21 0:21 / /dev rw - devtmpfs none rw
23 22 0:22 / /dev/hugepages rw - hugetlbfs none rw
24 21 0:23 / /cg rw - cgroup2 none rw
"""


@pytest.mark.parametrize(
    ("path", "is_huge"),
    [
        ("/dev/hugepages", True),
        ("/dev/hugepages/libvirt/qemu/vm1", True),
        ("/dev/vm1", False),
        ("/dev/hugepages2/vm1", False),
        ("", False),
        ("relative", False),
    ],
)
def test_files_in_huge_pages(path: str, *, is_huge: bool) -> None:
    assert is_on_hugetlbfs(path, MOUNTS.splitlines()) is is_huge


def write_process(proc: Path, arguments: str) -> Path:
    folder = proc / "42"
    folder.mkdir()
    (folder / "cmdline").write_text(arguments.replace(" ", "\0"))
    (folder / "mountinfo").write_text(MOUNTS)
    return proc


def test_what_the_host_knows(tmp_path: Path) -> None:
    proc = write_process(
        tmp_path,
        "qemu -qmp unix:/a,server=on -m 1G -qmp unix:/b,server=on"
        " -netdev vhost-user,id=a,chardev=b"
        ' -netdev {"type":"vhost-vdpa","id":"c"} -netdev type=user,id=d',
    )
    huge = Backend(kind="memory-backend-file", path="/dev/hugepages/vm1")
    facts = read_host(
        Facts(backends=(huge, Backend())),
        UnixAddress("/run/vm1.qmp"),
        42,
        GiB,
        proc=proc,
    )
    assert [each.is_huge for each in facts.backends] == [True, False]
    assert facts.host.networks == ("vhost-user", "vhost-vdpa", "user")
    assert facts.host.resident == GiB
    assert (facts.host.monitors, facts.host.manager) == (2, "")
    assert facts.host.limit is None


def test_a_monitor_of_a_manager_beside_others(tmp_path: Path) -> None:
    own = "unix:/run/qemu-server/100.qmp,server=on"
    proc = write_process(tmp_path, f"qemu -qmp {own} -qmp unix:/b,server=on")
    facts = read_host(Facts(), UnixAddress("/b"), 42, GiB, proc)
    assert (facts.host.monitors, facts.host.manager) == (2, "Proxmox VE's own")


@pytest.mark.parametrize(
    "arguments", ["qemu -readconfig /vm.conf -qmp tcp:x:1", "qemu"]
)
def test_monitors_that_a_command_line_does_not_name(
    arguments: str, tmp_path: Path
) -> None:
    proc = write_process(tmp_path, arguments)
    facts = read_host(Facts(), UnixAddress("/run/vm1.qmp"), 42, GiB, proc)
    assert facts.host.monitors is None


@pytest.mark.parametrize(
    ("address", "pid", "words"),
    [
        (TcpAddress("localhost", 4444), None, "over TCP"),
        (LibvirtVm("vm1"), None, "another host"),
        (UnixAddress("/run/vm1.qmp"), None, "outside of the container"),
        (UnixAddress("/run/vm1.qmp"), 42, "/proc/42/status cannot be read"),
    ],
)
def test_why_resident_memory_is_not_known(
    address: UnixAddress, pid: int | None, words: str
) -> None:
    facts = read_host(Facts(), address, pid, None)
    assert words in facts.host.why_unknown
    kinds = [finding.kind for finding in find_findings(facts)]
    assert "resident-unknown" in kinds
