"""Which processes are QEMUs that can be trusted, and where their monitors are."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from qemu_likes import NOBODY, fake_process, listening, make_program

from qmpballoon.address import AbstractAddress, TcpAddress, UnixAddress
from qmpballoon.fleet.processes import (
    QemuProcess,
    choose_users,
    describe_users,
    find_folder_problem,
    find_manager,
    find_processes,
    identify_process,
)
from qmpballoon.fleet.vm_spec import Refused

needs_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="needs root: it runs processes of others"
)
QEMU = "/usr/bin/qemu-system-x86_64"
ROOT = frozenset({0, os.geteuid()})


def find_one(proc: Path) -> QemuProcess | Refused:
    (found,) = find_processes(ROOT, proc)
    return found


def find_qemu(proc: Path) -> QemuProcess:
    found = find_one(proc)
    assert isinstance(found, QemuProcess)
    return found


def find_refused(proc: Path) -> Refused:
    found = find_one(proc)
    assert isinstance(found, Refused)
    return found


def find_pid(pid: int) -> QemuProcess | Refused | None:
    found = find_processes(ROOT)
    return next((each for each in found if each.pid == pid), None)


# On a process file system of our own


def test_a_qemu(tmp_path: Path) -> None:
    line = [QEMU, "-name", "guest=web", "-qmp", "unix:/run/first,server=on"]
    fake_process(tmp_path, 20, [*line, "-qmp", "unix:second,server=on"])
    (tmp_path / "21").mkdir()
    (tmp_path / "self").mkdir()
    found = find_qemu(tmp_path)
    assert (found.pid, found.name, found.problem) == (20, "web", "")
    assert [each.address for each in found.monitors] == [
        UnixAddress("/run/first"),
        UnixAddress("/srv/second"),
    ]
    last = found.choose_monitor()
    assert last is not None
    assert isinstance(last.address, UnixAddress)
    assert last.address == UnixAddress("/srv/second")
    assert (last.address.pid, last.address.users) == (20, ROOT)


@pytest.mark.parametrize(
    "exe", [QEMU, f"{QEMU} (deleted)", "/usr/libexec/qemu-kvm", "/x/.qemu-system-arm-w"]
)
def test_a_program_is_known_by_its_file(tmp_path: Path, exe: str) -> None:
    fake_process(tmp_path, 3, ["microvm@db", "-qmp", "unix:/a,server"], exe=exe)
    assert find_qemu(tmp_path).name == "db"


@pytest.mark.parametrize(
    "linker",
    ["/usr/lib64/ld-linux-x86-64.so.2", "/home/a/QEMU-10/usr/bin/qemu-loader"],
)
def test_a_program_that_the_linker_runs(tmp_path: Path, linker: str) -> None:
    line = [linker, "--argv0", "x", QEMU, "-qmp", "stdio"]
    folder = fake_process(tmp_path, 3, line, exe=linker)
    maps = folder / "maps"
    maps.write_text(f"7f-80 r--p 0 08:01 7 {QEMU}\n80-81 r-xp 0 08:01 8 /lib/libc.so\n")
    assert find_processes(ROOT, tmp_path) == []
    maps.write_text(f"7f-80 r-xp 0 08:01 7 {QEMU}\n")
    assert "is on stdio" in find_qemu(tmp_path).explain_refusal()


def test_a_pretender(tmp_path: Path) -> None:
    line = ["qemu-system-x86_64", "-name", "db", "-qmp", "unix:/a,server"]
    fake_process(tmp_path, 3, line, exe="/usr/bin/perl\n", uid=0)
    found = find_refused(tmp_path)
    assert (found.name, found.pid) == ("pid-3", 3)
    assert found.reason == (
        r"it calls itself qemu-system-x86_64, but is perl\n, of user root"
    )


def test_somebody_elses_qemu(tmp_path: Path) -> None:
    fake_process(tmp_path, 3, [QEMU, "-name", "db"], uid=NOBODY)
    assert find_refused(tmp_path).reason == (
        "it belongs to user nobody: give --user nobody if that user runs VMs"
    )


def test_a_qemu_with_rights_of_others(tmp_path: Path) -> None:
    folder = fake_process(tmp_path, 3, [QEMU])
    (folder / "status").write_text(f"Uid:\t{NOBODY}\t0\t0\t0\n")
    assert "belongs to user nobody" in find_refused(tmp_path).reason


@pytest.mark.parametrize("has_socket", [False, True])
@pytest.mark.parametrize(("waiting", "serving"), [(3, 5), (32767, 300)])
def test_a_qemu_that_waits_for_its_daemon(
    tmp_path: Path, waiting: int, serving: int, has_socket: bool
) -> None:
    """With -daemonize, the first process has the same command line, until it ends."""
    path = tmp_path / "db.qmp"
    line = [QEMU, "-daemonize", "-name", "db", "-qmp", f"unix:{path},server,wait=off"]
    if has_socket:
        path.touch()
    proc = tmp_path / "proc"
    fake_process(proc, waiting, line, started=100)
    assert find_qemu(proc).pid == waiting
    fake_process(proc, serving, line, started=101)
    found = find_processes(ROOT, proc)
    (vm,) = [each for each in found if isinstance(each, QemuProcess)]
    (refused,) = [each for each in found if isinstance(each, Refused)]
    assert (vm.pid, vm.name) == (serving, "db")
    assert (refused.pid, refused.address) == (waiting, str(path))
    assert f"process {serving}, which was started later, has the same" in refused.reason
    # What is known of both is not read again, and yet the same.
    assert find_processes(ROOT, proc, known=found) == found


@pytest.mark.parametrize("line", [["vim", QEMU, "-qmp", "unix:/c,server"], [""]])
def test_what_has_nothing_to_do_with_qemu(tmp_path: Path, line: list[str]) -> None:
    fake_process(tmp_path, 4, line, exe="/usr/bin/vim")
    assert find_processes(ROOT, tmp_path) == []


def test_a_socket_that_was_handed_over(tmp_path: Path) -> None:
    line = [QEMU, "-chardev", "socket,id=m,fd=33,server=on", "-qmp", "chardev:m"]
    folder = fake_process(tmp_path, 3, line, links={"fd/33": "socket:[77]"})
    table = folder / "net" / "unix"
    assert "is descriptor 33" in find_qemu(tmp_path).explain_refusal()
    head = "Num RefCount Protocol Flags Type St Inode Path\n0: 2 0 "
    table.write_text(f"{head}00010000 0001 01 77 /run/a b.sock\n")
    (monitor,) = find_qemu(tmp_path).monitors
    assert monitor.address == UnixAddress("/run/a b.sock")
    assert isinstance(monitor.address, UnixAddress)
    assert monitor.address.pid is None  # who listened first is another process
    table.write_text(f"{head}00010000 0001 01 77 @vm\n")
    assert find_qemu(tmp_path).monitors[0].address == AbstractAddress("vm")
    table.write_text(f"{head}00000000 0001 03 77 /run/client\n")
    assert "is no unix socket" in find_qemu(tmp_path).explain_refusal()
    (folder / "fd" / "33").unlink()
    assert "descriptor 33: No such" in find_qemu(tmp_path).explain_refusal()


def test_another_network_namespace(tmp_path: Path) -> None:
    fake_process(tmp_path, 1, ["init"], exe="/sbin/init", links={"ns/net": "net:[1]"})
    (tmp_path / "1").rename(tmp_path / "self")
    line = [QEMU, "-qmp", "tcp::44,server", "-qmp", "unix:x,abstract=on,server"]
    folder = fake_process(tmp_path, 3, line, links={"ns/net": "net:[2]"})
    assert find_qemu(tmp_path).explain_refusal() == (
        "its monitor is tcp:localhost:44 in another network namespace: use a unix path;"
        " its monitor is unix-abstract:x in another network namespace: use a unix path"
    )
    (folder / "ns" / "net").unlink()
    (folder / "ns" / "net").symlink_to("net:[1]")
    assert [each.address for each in find_qemu(tmp_path).monitors] == [
        TcpAddress("localhost", 44),
        AbstractAddress("x"),
    ]


def test_a_configuration_file(tmp_path: Path) -> None:
    config = tmp_path / "qemu.conf"
    line = [QEMU, "-readconfig", str(config)]
    fake_process(tmp_path / "proc", 3, line)
    assert "qemu.conf cannot be read" in find_qemu(tmp_path / "proc").explain_refusal()
    config.write_text(
        '[chardev "monitor"]\nbackend = "socket"\npath = "/x/qemu.monitor"\n'
        'server = "on"\n[mon]\nchardev = "monitor"\nmode = "control"\n'
    )
    (monitor,) = find_qemu(tmp_path / "proc").monitors
    assert monitor.address == UnixAddress("/x/qemu.monitor")
    config.unlink()
    os.mkfifo(config)  # it must not be waited for
    assert "no regular file" in find_qemu(tmp_path / "proc").explain_refusal()


def test_a_relative_path_that_may_not_be_resolved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_process(tmp_path, 3, [QEMU, "-qmp", "unix:a,server", "-qmp", "unix:/b,server"])
    readlink = os.readlink

    def refuse(path: Path | str) -> str:
        if str(path).endswith(("/exe", "/cwd")):
            raise PermissionError(13, "Permission denied")
        return readlink(path)

    monkeypatch.setattr(os, "readlink", refuse)
    found = find_qemu(tmp_path)
    assert [str(each.address) for each in found.monitors] == ["/b"]
    assert "only root and its user may know" in found.problem


def test_whatever_goes_wrong_concerns_one_process(tmp_path: Path) -> None:
    fake_process(tmp_path, 3, [QEMU, "-qmp", "unix:/a,server"])
    (tmp_path / "3" / "status").write_text("nonsense")
    fake_process(tmp_path, 4, [QEMU, "-qmp", "unix:/b,server"])
    bad, good = find_processes(ROOT, tmp_path)
    assert isinstance(bad, Refused)
    assert "cannot be looked at: ValueError" in bad.reason
    assert isinstance(good, QemuProcess)


def test_names_that_are_no_utf_8(tmp_path: Path) -> None:
    line = [QEMU, "-name", os.fsdecode(b"caf\xe9\x1b"), "-qmp"]
    fake_process(tmp_path, 3, [*line, os.fsdecode(b"unix:/caf\xe9,server")])
    found = find_qemu(tmp_path)
    assert found.name == r"caf\xe9\x1b"
    assert found.monitors[0].address == UnixAddress("/caf\udce9")


def test_what_is_known_of_a_qemu_is_not_read_again(tmp_path: Path) -> None:
    path = tmp_path / "a.qmp"
    fake_process(tmp_path / "proc", 3, [QEMU, "-qmp", f"unix:{path},server"])
    found = find_processes(ROOT, tmp_path / "proc")
    path.touch()  # QEMU makes its socket after it has begun
    found = find_processes(ROOT, tmp_path / "proc", found)
    (tmp_path / "proc" / "3" / "cmdline").write_bytes(b"")
    assert find_processes(ROOT, tmp_path / "proc", found) == found
    (tmp_path / "proc" / "3" / "stat").write_text(f"3 (x) S {'9 ' * 40}")
    (other,) = find_processes(ROOT, tmp_path / "proc", found)
    assert isinstance(other, QemuProcess)
    assert (other.started, other.monitors) == (9, ())


# Monitors that managers need


@pytest.mark.parametrize(
    ("path", "manager"),
    [
        ("/var/run/qemu-server/100.qmp", "Proxmox"),
        ("/run/qemu-server/100.qmp", "Proxmox"),
        ("/proc/7/root/run/qemu-server/100.qmp", "Proxmox"),
        ("/run/incus/vm1/qemu.monitor", "daemon"),
        ("/var/log/lxd/p_vm1/qemu.monitor", "daemon"),
        ("/var/lib/libvirt/qemu/domain-1-web/monitor.sock", "libvirt:NAME"),
        ("/run/incus/vm1/balloon.qmp", ""),
        ("/run/vm100-balloon.qmp", ""),
    ],
)
def test_monitors_that_managers_need(path: str, manager: str) -> None:
    assert manager in find_manager(UnixAddress(path))
    assert bool(find_manager(UnixAddress(path))) == bool(manager)


@pytest.mark.parametrize("manager", ["", "daemon"])
def test_a_monitor_of_a_container_that_has_just_ended(manager: str) -> None:
    """Its process is still there, and its root leads nowhere."""
    name = "run/incus/vm1/qemu.monitor" if manager else "run/own.qmp"
    with subprocess.Popen(["true"]) as ended:
        os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
        path = f"/proc/{ended.pid}/root/{name}"
        assert manager in find_manager(UnixAddress(path))
        assert bool(find_manager(UnixAddress(path))) == bool(manager)


def test_of_several_monitors_the_last_free_one_is_held(tmp_path: Path) -> None:
    def qmp(path: str) -> list[str]:
        return ["-qmp", f"unix:{path},server=on"]

    own = qmp("/var/run/qemu-server/1.qmp")
    fake_process(tmp_path, 3, [QEMU, *qmp("/a"), *qmp("/b"), *own])
    chosen = find_qemu(tmp_path).choose_monitor()
    assert chosen is not None
    assert str(chosen.address) == "/b"
    fake_process(tmp_path, 4, [QEMU, *own])
    only = find_processes(ROOT, tmp_path)[1]
    assert isinstance(only, QemuProcess)
    assert only.choose_monitor() is None
    assert "is Proxmox VE's own: give the VM a second" in only.explain_refusal()


# Users and folders


def test_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert 0 in choose_users()
    assert NOBODY not in choose_users()
    assert choose_users(["nobody", "7"]) == {NOBODY, 7}
    monkeypatch.setattr(os, "geteuid", lambda: 4242)
    assert choose_users() == {4242}
    assert choose_users(["nobody"]) == {4242, NOBODY}
    assert describe_users({0, NOBODY, 999999}) == "999999, nobody, root"
    for name in ("no such user", "a\0b", "-1", "٣"):
        with pytest.raises(ValueError, match="there is no user"):
            choose_users([name])


@needs_root
def test_a_folder_of_somebody_else(tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir()
    os.chown(folder, NOBODY, NOBODY)
    (tmp_path / "link").symlink_to(folder / "x.qmp")
    for path in (folder / "x.qmp", tmp_path / "link"):
        assert "belongs to user nobody" in find_folder_problem(str(path), {0})
        assert find_folder_problem(str(path), {NOBODY}) == ""
    assert find_folder_problem(str(tmp_path / "y"), {0}) == ""


# On this host


def test_a_process_has_an_identity_of_its_own() -> None:
    mine = identify_process(os.getpid())
    assert mine is not None
    assert mine == identify_process(os.getpid())
    assert mine != identify_process(os.getppid())
    assert identify_process(2**22 + 1) is None


def test_a_running_program(tmp_path: Path) -> None:
    program, path = make_program(tmp_path), tmp_path / "a.qmp"
    with listening([program], path, "-qmp", f"unix:{path},server=on") as pid:
        found = find_pid(pid)
        assert isinstance(found, QemuProcess)
        assert found.identity == identify_process(pid)
        program.unlink()
        assert find_pid(pid) == found


def test_a_running_program_under_another_name(tmp_path: Path) -> None:
    program, path = make_program(tmp_path), tmp_path / "a.qmp"
    qmp = ("-qmp", f"unix:{path},server=on")
    with listening([program], path, *qmp, argv0="microvm@web") as pid:
        found = find_pid(pid)
        assert isinstance(found, QemuProcess)
        assert found.name == "web"
    path.unlink()
    with listening(
        [Path("/usr/bin/env").resolve().parent / "python3"],
        path,
        *qmp,
        argv0="qemu-system-x86_64",
    ) as pid:
        assert isinstance(find_pid(pid), Refused)


@needs_root
@pytest.mark.skipif(not shutil.which("unshare"), reason="there is no unshare")
def test_a_monitor_in_another_mount_namespace(tmp_path: Path) -> None:
    """It is reached through the root of its process, and only from outside so."""
    program, inside = make_program(tmp_path), tmp_path / "run"
    inside.mkdir()
    path = inside / "a.qmp"
    script = f'mount -t tmpfs none {inside} && exec "$0" "$@"'
    with listening(
        [program],
        path,
        *("-qmp", f"unix:{path},server=on"),
        prefix=["/usr/bin/unshare", "-m", "/bin/sh", "-c", script],
    ) as pid:
        assert not path.exists()
        found = find_pid(pid)
        assert isinstance(found, QemuProcess)
        (monitor,) = found.monitors
        assert str(monitor.address) == f"/proc/{pid}/root{path}"
        assert Path(str(monitor.address)).is_socket()


@needs_root
def test_a_member_of_the_sockets_group(tmp_path: Path) -> None:
    """Somebody who may write to the socket, and not look into QEMU's process."""
    program, path = make_program(tmp_path), tmp_path / "a.qmp"
    qmp = ("-qmp", f"unix:{path},server=on")
    with listening([program], path, *qmp) as pid:
        path.chmod(0o666)
        for folder in tmp_path.parents:
            if folder.stat().st_uid == 0 and folder != Path("/"):
                folder.chmod(folder.stat().st_mode | 0o711)
        tmp_path.chmod(0o711)
        os.seteuid(NOBODY)
        try:
            found = find_processes(choose_users(["root"]))
            (ours,) = [each for each in found if each.pid == pid]
            assert isinstance(ours, QemuProcess)
            chosen = ours.choose_monitor()
            assert chosen is not None
            assert str(chosen.address) == str(path)
            assert chosen.socket is not None
        finally:
            os.seteuid(0)


@needs_root
def test_a_running_program_of_somebody_else(tmp_path: Path) -> None:
    program = make_program(tmp_path)
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == 0 and folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o711)
    tmp_path.chmod(0o777)
    path = tmp_path / "a.qmp"
    become = [shutil.which("setpriv") or "", f"--reuid={NOBODY}", "--clear-groups"]
    if subprocess.run([*become, program, "-V"], check=False).returncode:
        pytest.skip("others may not run this Python")
    qmp = ("-qmp", f"unix:{path},server=on")
    with listening([program], path, *qmp, prefix=become) as pid:
        found = find_pid(pid)
        assert isinstance(found, Refused)
        assert "belongs to user nobody" in found.reason
