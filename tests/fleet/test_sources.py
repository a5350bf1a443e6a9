"""Finding VMs: by sockets, by a file, by processes."""

from __future__ import annotations

import os
import socket
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from permissions import as_somebody_else

from qmpballoon.address import LibvirtVm, TcpAddress, UnixAddress
from qmpballoon.fleet import sources as fleet_sources
from qmpballoon.fleet.sources import (
    find_processes,
    make_file_source,
    make_socket_source,
    make_source,
    parse_monitors,
)
from qmpballoon.fleet.vm_spec import VmSpec
from qmpballoon.sizes import GiB

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


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


def test_sockets_come_and_go(bind: Callable[[str], Path]) -> None:
    find = make_socket_source("vms/*.qmp")
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
    found = make_socket_source("incus/*/qemu.monitor")()
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
        (spec,) = make_source(["vms/web.qmp"])()  # its monitor says that
        assert spec.name == "web"


def test_names_are_distinct_and_monitors_too(bind: Callable[[str], Path]) -> None:
    bind("a/vm1.qmp")
    bind("b/vm1.qmp")
    found = make_source(["a/*.qmp", "*/vm1.qmp"])()
    assert [spec.name for spec in found] == ["a/vm1.qmp", "b/vm1.qmp"]


def test_what_was_named_is_a_vm_whether_it_is_there_or_not() -> None:
    found = make_source(["/nowhere/vm7.qmp", "tcp:host:4444"])()
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
    database, web = make_source([str(path)])()
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
        make_file_source(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "fleet.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"fleet\.toml: .*: save it as UTF-8"):
        make_file_source(path)


@pytest.mark.parametrize(
    ("line", "address"),
    [
        ("-qmp unix:/run/a.qmp,server=on,wait=off", UnixAddress("/run/a.qmp")),
        ("-qmp unix:a.qmp,server,nowait", UnixAddress("/home/a.qmp")),
        ("--qmp-pretty unix:/a,,b,server=on", UnixAddress("/a,b")),
        ("-qmp tcp::4444,server=on", TcpAddress("localhost", 4444)),
        ("-qmp tcp:[::1]:4444,server=on", TcpAddress("::1", 4444)),
        (
            "-mon chardev=q,mode=control -chardev socket,id=q,path=/r/1.qmp,server=on",
            UnixAddress("/r/1.qmp"),
        ),
        (
            "-mon m,mode=control -chardev socket,host=0.0.0.0,port=1,server=on,id=m",
            TcpAddress("127.0.0.1", 1),
        ),
    ],
)
def test_command_lines(line: str, address: object) -> None:
    assert parse_monitors(line.split(), Path("/home")) == [address]


@pytest.mark.parametrize(
    "line",
    [
        "-monitor unix:/run/a,server=on",
        "-qmp stdio",
        "-qmp unix:/run/client.sock",
        "-chardev socket,id=m,path=/run/hmp,server=on -mon chardev=m,mode=readline",
        "-chardev socket,id=m,fd=33,server=on -mon chardev=m,mode=control",
        "-mon chardev=gone,mode=control",
        "-qmp tcp:host:port,server=on",
        "-qmp",
    ],
)
def test_command_lines_without_a_monitor_to_connect_to(line: str) -> None:
    assert parse_monitors(line.split(), Path("/home")) == []


def test_processes(tmp_path: Path) -> None:
    def process(pid: int, line: str) -> None:
        folder = tmp_path / str(pid)
        folder.mkdir()
        (folder / "cmdline").write_text(line.replace(" ", "\0") + "\0")
        (folder / "cwd").symlink_to("/srv")

    process(
        20,
        "/usr/bin/qemu-system-x86_64 -name guest=web,debug-threads=on"
        " -qmp unix:/run/first,server=on -qmp unix:second,server=on",
    )
    process(3, "qemu-kvm -qmp unix:/run/b,server=on")
    process(4, "vim qemu-system-x86_64 -qmp unix:/run/c,server=on")
    process(5, "qemu-system-arm -nographic")
    (tmp_path / "6").mkdir()
    assert list(find_processes(tmp_path)) == [
        ("pid-3", UnixAddress("/run/b")),
        ("web", UnixAddress("/srv/second")),
    ]


def test_a_host_is_its_processes_and_well_known_places(
    bind: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    bind("run/100.qmp")
    bind("run/web.qmp")
    monkeypatch.setattr(fleet_sources, "PLACES", ("run/*.qmp",))
    web = ("web", UnixAddress("run/web.qmp"))
    monkeypatch.setattr("qmpballoon.fleet.sources.find_processes", lambda: iter([web]))
    assert [spec.name for spec in make_source([])()] == ["web", "100"]


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
    assert make_source([str(file), "libvirt:vm1"])() == [
        VmSpec("database", LibvirtVm("database"), floor="1GiB"),
        VmSpec("front", LibvirtVm("web")),
        VmSpec("vm1", LibvirtVm("vm1")),
    ]
    with pytest.raises(ValueError, match="write libvirt:NAME"):
        make_source(["libvirt:"])
