"""Finding VMs: by sockets, by a file, by processes."""

from __future__ import annotations

import os
import socket
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from permissions import as_somebody_else
from qemu_likes import NOBODY, fake_process

from qmpballoon.address import LibvirtVm, TcpAddress, UnixAddress
from qmpballoon.fleet import processes, sources
from qmpballoon.fleet.processes import QemuProcess, find_processes
from qmpballoon.fleet.sources import make_source
from qmpballoon.fleet.vm_spec import Refused, VmSpec
from qmpballoon.sizes import GiB

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from qmpballoon.address import Address


@pytest.fixture
def bind(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Make sockets below a folder that is the current one."""
    before = Path.cwd()
    os.chdir(tmp_path)
    with ExitStack() as stack:

        def make(name: str) -> Path:
            Path(name).parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(socket.socket(socket.AF_UNIX)).bind(name)
            return Path(name)

        yield make
    os.chdir(before)


def make_vms(wanted: Sequence[str]) -> Callable[[], list[VmSpec]]:
    """Return a source of which nothing is refused."""
    source = make_source(wanted)

    def find() -> list[VmSpec]:
        found = source()
        assert not [each for each in found if isinstance(each, Refused)]
        return [each for each in found if isinstance(each, VmSpec)]

    return find


def test_sockets_come_and_go(bind: Callable[[str], Path]) -> None:
    find = make_vms(["vms/*.qmp"])
    assert find() == []
    path = bind("vms/web.qmp")
    bind("vms/db.qmp")
    Path("vms/notes.qmp").write_text("no socket")
    assert [spec.name for spec in find()] == ["db", "web"]
    assert find()[1].address == UnixAddress("vms/web.qmp")
    path.unlink()
    assert [spec.name for spec in find()] == ["db"]


def test_sockets_of_plain_names_are_called_like_their_folders(
    bind: Callable[[str], Path],
) -> None:
    bind("incus/web/qemu.monitor")
    bind("incus/db/qemu.monitor")
    found = make_vms(["incus/*/qemu.monitor"])()
    assert [spec.name for spec in found] == ["db", "web"]


@pytest.mark.parametrize("pattern", ["vms/*.qmp", "vms/**/*.qmp"])
def test_a_folder_that_may_not_be_read(
    pattern: str, bind: Callable[[str], Path], tmp_path: Path
) -> None:
    file = tmp_path / "vms.toml"
    file.write_text(f"[[vm]]\nsockets = {pattern!r}\n", encoding="utf-8")
    file.chmod(0o644)
    bind("vms/web.qmp")
    with as_somebody_else(tmp_path / "vms"):
        for wanted in (pattern, str(file)):
            with pytest.raises(PermissionError) as caught:
                make_source([wanted])
            assert caught.value.filename == "vms"
        (spec,) = make_vms(["vms/web.qmp"])()  # its monitor says that
        assert spec.name == "web"


def test_a_folder_below_one_that_may_not_be_read(
    bind: Callable[[str], Path], tmp_path: Path
) -> None:
    # Path.is_dir says so until Python 3.13, and then that there is no such folder.
    bind("vms/web/qmp")
    with as_somebody_else(tmp_path / "vms"):
        with pytest.raises(PermissionError) as caught:
            make_source(["vms/web/*"])
        assert caught.value.filename == "vms/web"


def test_a_folder_that_is_not_there_yet(bind: Callable[[str], Path]) -> None:
    bind("vms/web.qmp")
    find = make_vms(["later/*.qmp", "vms/web.qmp/*.qmp"])
    assert find() == []
    bind("later/db.qmp")
    assert [spec.name for spec in find()] == ["db"]


def test_names_are_distinct_and_monitors_too(bind: Callable[[str], Path]) -> None:
    bind("a/vm1.qmp")
    bind("b/vm1.qmp")
    found = make_vms(["a/*.qmp", "*/vm1.qmp"])()
    assert [spec.name for spec in found] == ["a/vm1.qmp", "b/vm1.qmp"]


def test_what_was_named_is_a_vm_whether_it_is_there_or_not() -> None:
    found = make_vms(["/nowhere/vm7.qmp", "tcp:host:4444"])()
    assert found == [
        VmSpec("vm7", UnixAddress("/nowhere/vm7.qmp")),
        VmSpec("host:4444", TcpAddress("host", 4444)),
    ]


def test_a_file_says_what_is_wanted(bind: Callable[[str], Path]) -> None:
    bind("web-1.qmp")
    path = Path("fleet.toml")
    path.write_text("""
        [defaults]
        headroom = "10%"
        [[vm]]
        name = "database"
        address = "/run/db.qmp"
        floor = 4294967296
        weight = 2
        [[vm]]
        sockets = "web-*.qmp"
        ceiling = "50%"
        headroom = "1GiB"
    """)
    database, web = make_vms([str(path)])()
    assert database == VmSpec(
        "database",
        UnixAddress("/run/db.qmp"),
        floor=str(4 * GiB),
        headroom="10%",
        weight=2.0,
    )
    assert (web.name, web.ceiling, web.headroom) == ("web-1", "50%", "1GiB")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[vm]]\naddres = '/a'", "'addres' is unknown"),
        ("[[vm]]\nname = 'x'", "needs either an address or sockets"),
        ("[[vm]]\naddress = '/a'\nsockets = '*'", "either an address or sockets"),
        ("[[vm]]\nsockets = '*'\nname = 'x'", "leave name out"),
        ("[[vm]]\naddress = '/a'\nfloor = 'lots'", "floor: 'lots' is not a size"),
        ("[[vm]]\naddress = '/a'\nfloor = true", "floor is True"),
        ("[[vm]]\naddress = '/a'\nweight = 0", "weight is 0.0: give"),
        ("[[vm]]\naddress = '/a'\nweight = 'x'", "weight is 'x'"),
        ("[[vm]]\naddress = 7", "7 is no monitor's address"),
        ("[[vm]]\naddress='/a'\nname='x'\n[[vm]]\naddress='/b'\nname='x'", "2 VMs"),
        ("[defaults]\nname = 'x'", "'name' is unknown"),
        ("[[vm]]\naddress='/a'\n[[vm]]\naddress='unix:/a'", "2 VMs at /a"),
        ("[[vm]]\naddress = '/a'\nname = ['x']", "name is \\['x'\\]: give text"),
        ("[[vm]]\naddress = '/a'\nname = ''", "name is '': give text"),
        ("[[vm]]\nsockets = '*'\nfloor = 'lots'", "floor: 'lots' is not a size"),
        ("[[vm]]\nsockets = '*'\nweight = -1", "weight is -1.0: give"),
        ("[[vm]]\naddress='/a'\nfloor='4G'\nceiling='2G'", "floor 4G is above"),
        ("[defaults]\nfloor='50%'\n[[vm]]\naddress='/a'\nceiling='9%'", "is above"),
        ("[[vm]]\naddress = '/a'\nceiling = 0", "ceiling is 0: give more"),
        ("defaults = 3", r"write \[defaults\] above them"),
        ("vm = 3", r"write \[\[vm\]\] above each"),
        ("vm = [3]", r"write \[\[vm\]\] above each"),
        ("[vm]\naddress = '/a'", r"write \[\[vm\]\] above each"),
        ("[[vm]", "Expected"),
        (f"[[vm]]\naddress = '/a'\nweight = 1{'0' * 400}", "weight is inf: give"),
        (f"vm = {'[' * 5000}", "nested too deep"),
    ],
)
def test_files_that_make_no_sense(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "fleet.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        make_source([str(path)])
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "fleet.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"fleet\.toml: .*: save it as UTF-8"):
        make_source([str(path)])


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "fleet.toml"
    path.symlink_to("/proc/self/mem")  # it opens, and has no first page
    with pytest.raises(OSError, match=r"Input/output error: .*fleet\.toml"):
        make_source([str(path)])


def test_vms_of_libvirts(tmp_path: Path) -> None:
    file = tmp_path / "fleet.toml"
    file.write_text("""
        [[vm]]
        address = "libvirt:database"
        floor = "1GiB"

        [[vm]]
        name = "front"
        address = "libvirt:web"
    """)
    assert make_vms([str(file), "libvirt:vm1"])() == [
        VmSpec("database", LibvirtVm("database"), floor="1GiB"),
        VmSpec("front", LibvirtVm("web")),
        VmSpec("vm1", LibvirtVm("vm1")),
    ]
    with pytest.raises(ValueError, match="write libvirt:NAME"):
        make_source(["libvirt:"])


# One QEMU, one VM


def qemu(proc: Path, pid: int, *paths: str) -> None:
    """Let there be a QEMU with these monitors, in their order."""
    options = [word for path in paths for word in ("-qmp", f"unix:{path},server=on")]
    fake_process(proc, pid, ["/usr/bin/qemu-system-x86_64", *options])


@pytest.fixture
def proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A process file system, of which root's are ours."""
    folder = tmp_path / "proc"
    folder.mkdir()

    def find(
        users: Collection[int], known: Sequence[QemuProcess | Refused]
    ) -> list[QemuProcess | Refused]:
        return find_processes({*users, 0}, folder, known)

    monkeypatch.setattr(sources, "find_processes", find)
    return folder


def test_a_host_is_its_processes(proc: Path, bind: Callable[[str], Path]) -> None:
    first, second = (str(bind(name).absolute()) for name in ("1.qmp", "2.qmp"))
    qemu(proc, 7, first, second)
    qemu(proc, 8)
    fake_process(proc, 9, ["qemu-kvm"], exe="/usr/bin/perl")
    web, mute, pretender = make_source([])()
    assert isinstance(web, VmSpec)
    assert (web.name, web.address, web.is_named) == (
        "pid-7",
        UnixAddress(second),
        False,
    )
    assert web.process is not None
    assert mute == Refused(
        "pid-8",
        "it has no QMP monitor: start it with -qmp unix:PATH,server=on",
        pid=8,
    )
    assert isinstance(pretender, Refused)


def test_one_qemu_is_one_vm(proc: Path, bind: Callable[[str], Path]) -> None:
    first, second = (str(bind(name).absolute()) for name in ("1.qmp", "2.qmp"))
    Path("link").symlink_to(".")
    Path("other.qmp").symlink_to("1.qmp")
    qemu(proc, 7, first, second)
    for wanted in (["*.qmp"], ["1.qmp", "*.qmp", second], ["link/*.qmp", "*.qmp"]):
        assert len(make_vms(wanted)()) == 1
    # The last on its command line, of those that were asked for; but a named one first.
    assert [str(vm.address) for vm in make_vms(["*.qmp"])()] == ["2.qmp"]
    assert [str(vm.address) for vm in make_vms(["other.qmp", "*.qmp"])()] == [
        "other.qmp"
    ]
    # Also where the process cannot be seen.
    (proc / "7" / "cmdline").unlink()
    assert len(make_vms(["*.qmp", "1.qmp", "link/1.qmp"])()) == 2


def test_a_qemu_without_its_socket_is_only_what_leads_to_it(proc: Path) -> None:
    """It has not made it yet, or somebody has removed it."""
    qemu(proc, 7, "/nowhere/vm.qmp")
    wanted = ["libvirt:db", "libvirt:web", "/nowhere/else.qmp", "/nowhere/vm.qmp"]
    found = make_vms(wanted)()
    assert [str(vm.address) for vm in found] == wanted
    assert [vm.process is not None for vm in found] == [False, False, False, True]


def test_ports_of_one_qemu(proc: Path, bind: Callable[[str], Path]) -> None:
    path = str(bind("1.qmp").absolute())
    line = ["qemu-kvm", "-qmp", "tcp::4444,server=on", "-qmp", f"unix:{path},server=on"]
    fake_process(proc, 7, line)
    assert len(make_vms(["tcp:127.0.0.1:4444", "tcp:localhost:4444", path])()) == 1
    assert len(make_vms(["tcp:elsewhere:4444", "tcp:localhost:4444"])()) == 2


@pytest.mark.parametrize("order", [1, -1])
def test_a_specific_entry_wins_over_a_glob(
    order: int, bind: Callable[[str], Path]
) -> None:
    bind("a.qmp")
    bind("b.qmp")
    entries = [
        "[[vm]]\nsockets = '*.qmp'\nfloor = '1GiB'\n",
        "[[vm]]\nname = 'db'\naddress = './a.qmp'\nfloor = '2GiB'\n",
    ]
    # An editor on Windows begins with a byte-order mark.
    Path("fleet.toml").write_text(
        "\ufeff" + "".join(entries[::order]), encoding="utf-8"
    )
    found = {vm.name: vm.floor for vm in make_vms(["fleet.toml"])()}
    assert found == {"db": "2GiB", "b": "1GiB"}
    assert {vm.name for vm in make_vms(["fleet.toml", "*.qmp"][::order])()} == {
        "db",
        "b",
    }


def test_a_monitor_that_a_manager_needs_is_never_taken(
    proc: Path, bind: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    own, second = (str(bind(name).absolute()) for name in ("own.qmp", "2.qmp"))

    def needed(address: Address) -> str:
        return "a manager's own: leave it" if "own" in str(address) else ""

    for module in (sources, processes):
        monkeypatch.setattr(module, "find_manager", needed)
    qemu(proc, 7, second, own)
    for wanted in ([], [own], ["own*"]):
        (vm,) = make_vms(wanted)()
        assert str(vm.address) == second
    (proc / "7").rename(proc / "gone")
    qemu(proc, 8, own)
    for wanted in ([], [own], ["own*"]):
        (refused,) = make_source(wanted)()
        assert isinstance(refused, Refused)
        assert "a manager's own: leave it" in refused.reason


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it gives files away")
def test_sockets_in_a_folder_of_somebody_else(bind: Callable[[str], Path]) -> None:
    bind("theirs/a.qmp")
    os.chown("theirs", NOBODY, NOBODY)
    (refused,) = make_source(["theirs/*.qmp"])()
    assert isinstance(refused, Refused)
    assert "belongs to user nobody: give --user nobody" in refused.reason
    assert len(make_source(["theirs/*.qmp"], users=["root", "nobody"])()) == 1
    assert isinstance(make_source(["theirs/a.qmp"])()[0], VmSpec)  # it was named


def test_an_entry_that_fails_keeps_its_vms(
    bind: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    bind("a.qmp")
    find = make_source(["*.qmp", "/run/b.qmp"])
    before = find()

    def fail(*_: object, **__: object) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr("glob.glob", fail)
    found = find()
    assert found[:2] == before
    assert found[2] == Refused(
        "*.qmp", "it cannot be searched: [Errno 24] Too many open files"
    )


def test_a_socket_whose_name_is_no_utf_8(bind: Callable[[str], Path]) -> None:
    bind("caf\udce9.sock")
    (vm,) = make_vms(["*.sock"])()
    assert (vm.name, vm.address) == (r"caf\xe9", UnixAddress("caf\udce9.sock"))
