"""Which QEMUs run on this host, whose they are, and where their monitors are.

Anybody can start a process with the name of a QEMU, and put any socket on its command
line. So a process counts only if its user is trusted and its program is a QEMU, and its
monitor counts only if that very process listens there. The latter is checked when the
monitor is connected to: see :class:`~qmpballoon.address.UnixAddress`.

Everything is read from /proc: see proc(5). Nothing is connected to.
"""

from __future__ import annotations

import fnmatch
import os
import pwd
import re
import stat
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

from attrs import evolve, field, frozen

from qmpballoon._printable import make_printable
from qmpballoon._transport.qemu_process import (
    FIRST_ARGUMENTS,
    is_qemu_name,
    read_start_time,
)
from qmpballoon._transport.sockets import name_user
from qmpballoon.address import AbstractAddress, TcpAddress, UnixAddress
from qmpballoon.fleet.command_line import MonitorOption, parse_command_line
from qmpballoon.fleet.vm_spec import Refused

if TYPE_CHECKING:
    from collections.abc import Collection, Hashable, Iterable, Sequence

    from qmpballoon.address import Address

__all__ = [
    "LIBVIRT",
    "FoundMonitor",
    "QemuProcess",
    "choose_users",
    "describe_users",
    "find_folder_problem",
    "find_manager",
    "find_processes",
    "identify_process",
    "identify_socket",
]

_PROC: Final = Path("/proc")
# The users that the VM managers' packages run QEMU as. Root trusts them by default.
_QEMU_USERS: Final = ("libvirt-qemu", "qemu", "root")
# The last is the copy with which the lab starts a QEMU that it has fetched.
_LOADER: Final = re.compile(r"ld[-.].*\.so[.0-9]*|ld-musl.*|ld\.so|qemu-loader")
_DELETED: Final = " (deleted)"
# Bytes of a file for -readconfig. Incus' are some 20 KiB.
_LONGEST_CONFIG: Final = 1 << 20
_LISTENS: Final = 0x10000  # __SO_ACCEPTCON in /proc/net/unix

# Monitors that a manager of VMs needs for itself: a client that stays connected would
# lock it out. By their paths, and what to do instead.
_SECOND: Final = "give the VM a second monitor with"
_PROXMOX: Final = (
    f"Proxmox VE's own: {_SECOND} `qm set VMID --args`, or on QEMU 11.1 and later give"
    " commands for one VM --own-monitor"
)
_INCUS: Final = f"the daemon's own: {_SECOND} raw.qemu"
LIBVIRT: Final = "libvirt's own: name the VM libvirt:NAME"
_RESERVED: Final = {
    "/run/qemu-server/*.qmp": _PROXMOX,
    "/run/incus/*/qemu.monitor": _INCUS,
    "/var/log/incus/*/qemu.monitor": _INCUS,
    "/var/log/lxd/*/qemu.monitor": _INCUS,
    "/var/snap/lxd/common/lxd/logs/*/qemu.monitor": _INCUS,
    "*/libvirt/qemu/*/monitor.sock": LIBVIRT,
}


@frozen
class FoundMonitor:
    """A monitor of a QEMU that runs on this host, which a client can connect to.

    Attributes:
        address: Where it is.
        socket: An identity of its socket; ``None`` if there is none yet.
    """

    address: Address
    socket: Hashable

    @property
    def identity(self) -> Hashable:
        """An identity of this monitor, even before QEMU has made its socket."""
        return self.address if self.socket is None else self.socket


@frozen
class QemuProcess:
    """A QEMU that runs on this host, of a user that is trusted.

    Attributes:
        pid: Its process id.
        started: When it started, in clock ticks since boot. Process ids are reused.
        name: Its VM's name, as its command line says.
        monitors: Its monitors, in the order of its command line.
        problem: Why there is no monitor that could be used; empty if there is one.
    """

    pid: int
    started: int
    name: str
    monitors: tuple[FoundMonitor, ...] = ()
    problem: str = field(default="", eq=False)

    @property
    def is_complete(self) -> bool:
        """Whether all of its monitors are known, so that it need not be read again."""
        sockets = [monitor.socket for monitor in self.monitors]
        return bool(sockets) and None not in sockets and not self.problem

    @property
    def identity(self) -> Hashable:
        """An identity of this QEMU process."""
        return ("process", self.pid, self.started)

    def choose_monitor(self) -> FoundMonitor | None:
        """Return the last monitor that no manager needs; ``None`` if there is none.

        The first is often a manager's.
        """
        free = [each for each in self.monitors if not find_manager(each.address)]
        return free[-1] if free else None

    def explain_refusal(self) -> str:
        """Say why it has no monitor that could be used."""
        if self.monitors:
            address = self.monitors[-1].address
            return f"its monitor {address} is {find_manager(address)}"
        return self.problem


# Users


def choose_users(names: Sequence[str] = ()) -> frozenset[int]:
    """Return the ids of the users whose QEMUs are VMs.

    Args:
        names: Names or ids of users. The user of this process counts as well, unless
            it is root. For root, if there are no names: root and the users that the VM
            managers' packages run QEMU as.

    Raises:
        ValueError: There is no such user.
    """
    own = os.geteuid()
    if own != 0:
        return frozenset({own, *map(_find_user, names)})
    if names:
        return frozenset(map(_find_user, names))
    known = (_find_known_user(name) for name in _QEMU_USERS)
    return frozenset(uid for uid in known if uid is not None)


def describe_users(users: Collection[int]) -> str:
    """Return the names of users, for people."""
    return ", ".join(sorted(map(name_user, users)))


def _find_user(name: str) -> int:
    uid = int(name) if name.isascii() and name.isdigit() else _find_known_user(name)
    if uid is None:
        raise ValueError(f"there is no user {name!r}: name one, or give a user's id")
    return uid


def _find_known_user(name: str) -> int | None:
    try:
        return pwd.getpwnam(name).pw_uid
    except (KeyError, ValueError):  # a name with a NUL, for example
        return None


def find_folder_problem(path: str, users: Collection[int]) -> str:
    """Say why sockets in the folder of a path are not trusted; empty if they are.

    Whoever owns a folder decides which sockets are in it.

    Args:
        path: The path of a socket.
        users: The ids of the users who are trusted, besides root and our own.
    """
    folders = {os.path.dirname(path) or "."}  # noqa: PTH120 - faster
    if os.path.islink(path):  # noqa: PTH114
        folders.add(os.path.dirname(_follow_links(path)))  # noqa: PTH120
    for folder in folders:
        try:
            owner = os.stat(folder).st_uid  # noqa: PTH116
        except OSError:  # connecting will say so
            continue
        if owner not in {0, os.geteuid(), *users}:
            name = name_user(owner)
            return (
                f"its folder {make_printable(folder)} belongs to user {name}:"
                f" give --user {name} if that user runs VMs"
            )
    return ""


# Identities


def identify_process(pid: int, proc: Path = _PROC) -> Hashable:
    """Return an identity of a process; ``None`` if it has ended."""
    started = read_start_time(pid, proc)
    return None if started is None else ("process", pid, started)


def identify_socket(address: Address) -> Hashable:
    """Return an identity of a socket on this host.

    Returns:
        A value that all addresses of the socket share; ``None`` if there is no such
        socket.
    """
    match address:
        case UnixAddress(path):
            try:
                found = os.stat(path)  # noqa: PTH116 - Path would normalise it
            except OSError:
                return None
            return ("file", found.st_dev, found.st_ino)
        case AbstractAddress(name):
            return ("abstract", name)
        case TcpAddress("localhost" | "127.0.0.1" | "::1", port):
            return ("tcp", "localhost", port)
        case TcpAddress(host, port):
            return ("tcp", host, port)


def find_manager(address: Address) -> str:
    """Say which manager of VMs needs a monitor for itself; empty if none does.

    Args:
        address: Where the monitor is.
    """
    if not isinstance(address, UnixAddress):
        return ""
    socket = identify_socket(address)
    if socket is None:
        return _match_manager.__wrapped__(address.path, None)
    return _match_manager(address.path, socket)


def _follow_links(path: str) -> str:
    """Return where a path leads to, or the path itself if it leads nowhere.

    The root of a process that has ended leads nowhere as long as its parent has not
    noticed the end.
    """
    try:
        return os.path.realpath(path)
    except OSError:
        return path


# A fleet asks for all its sockets every few seconds. As long as a path leads to the
# same socket, the answer is the same.
@lru_cache(maxsize=4096)
def _match_manager(path: str, _socket: Hashable) -> str:
    # The root of a process is stripped: inside a container, paths begin with /run, too.
    inside = re.sub(r"^/proc/\d+/root(?=/)", "", os.path.abspath(path))  # noqa: PTH100
    places = {re.sub("^/var/run/", "/run/", inside), _follow_links(path)}
    for pattern, manager in _RESERVED.items():
        if any(fnmatch.fnmatchcase(place, pattern) for place in places):
            return manager
    return ""


# Processes


def find_processes(
    users: Collection[int],
    proc: Path = _PROC,
    known: Iterable[QemuProcess | Refused] = (),
) -> list[QemuProcess | Refused]:
    """Return the QEMUs that run on this host, and processes that only look like one.

    Args:
        users: The ids of the users whose QEMUs count.
        proc: Where the process file system is.
        known: What was returned last time. QEMUs in it that are complete are not read
            again.

    Returns:
        The processes, sorted by process id. Those that have nothing to do with QEMU are
        left out.

    Raises:
        OSError: There is no process file system.
    """
    pids = sorted(int(name) for name in os.listdir(proc) if name.isdigit())  # noqa: PTH208 - faster
    before = {
        each.pid: each
        for each in known
        if isinstance(each, QemuProcess) and each.is_complete
    }
    looked_at = [_look_at(pid, users, proc, before.get(pid)) for pid in pids]
    found = [each for each in looked_at if each is not None]
    latest = _find_latest([each for each in found if isinstance(each, QemuProcess)])
    return [_refuse_earlier(each, latest) for each in found]


def _find_latest(qemus: Iterable[QemuProcess]) -> dict[Hashable, QemuProcess]:
    """Return, for each monitor, the last started QEMU that has it on its command line.

    Two QEMUs have the same monitor while one with ``-daemonize`` starts: the first
    process waits, and never listens. The same happens if somebody starts a QEMU with
    the socket of one that runs; then the path leads to the later one.
    """
    in_order = sorted(qemus, key=lambda qemu: (qemu.started, qemu.pid))
    return {qemu.monitors[-1].identity: qemu for qemu in in_order if qemu.monitors}


def _refuse_earlier(
    found: QemuProcess | Refused, latest: dict[Hashable, QemuProcess]
) -> QemuProcess | Refused:
    """Refuse a QEMU whose monitor was taken over by one that was started later."""
    if isinstance(found, Refused) or not found.monitors:
        return found
    monitor = found.monitors[-1]
    other = latest[monitor.identity]
    if other is found:
        return found
    reason = (
        f"process {other.pid}, which was started later, has the same monitor"
        f" {monitor.address}: if this one does not end by itself, as it does with"
        " -daemonize, start it with a socket of its own"
    )
    return Refused(found.name, reason, str(monitor.address), found.pid)


def _look_at(
    pid: int, users: Collection[int], proc: Path, before: QemuProcess | None
) -> QemuProcess | Refused | None:
    """Return what a process is; whatever goes wrong concerns this process only."""
    try:
        if before is not None and before.started == read_start_time(pid, proc):
            return before
        return _examine(pid, users, proc)
    except (FileNotFoundError, ProcessLookupError):  # it has ended
        return None
    except Exception as error:  # noqa: BLE001 - see above
        return Refused(f"pid-{pid}", f"it cannot be looked at: {error!r}", pid=pid)


def _examine(
    pid: int, users: Collection[int], proc: Path
) -> QemuProcess | Refused | None:
    process = proc / str(pid)
    try:
        line = _read(f"{process}/cmdline")
    except PermissionError:  # hidepid=1: nothing can be known
        return None
    program = os.fsdecode(line.partition(b"\0")[0])
    exe, claims_it = _read_program(process), _is_qemu(program)
    if exe is not None and not (claims_it or _is_qemu(exe) or _LOADER.fullmatch(exe)):
        return None  # as most processes
    arguments = [*map(os.fsdecode, line.removesuffix(b"\0").split(b"\0"))][1:]
    runs_it = claims_it if exe is None else _runs_qemu(process, exe, arguments)
    if not (runs_it or claims_it):
        return None
    owners = _read_users(process)
    strangers = sorted(owners - set(users))
    if not runs_it:
        reason = (
            f"it calls itself {make_printable(Path(program).name):.40}, but is"
            f" {make_printable(exe or '')}, of user {describe_users(owners)}"
        )
    elif strangers:
        name = name_user(strangers[0])
        reason = f"it belongs to user {name}: give --user {name} if that user runs VMs"
    else:
        return _read_qemu(process, program, arguments, users)
    return Refused(f"pid-{pid}", reason, pid=pid)


def _is_qemu(program: str) -> bool:
    return is_qemu_name(program.removesuffix(_DELETED).rpartition("/")[2])


def _read_program(process: Path) -> str | None:
    """Return the name of the file that a process runs; ``None`` if not permitted.

    Unlike its other names, a process cannot change this one.
    """
    try:
        program = os.readlink(f"{process}/exe")  # noqa: PTH115
    except PermissionError:
        return None
    return program.removesuffix(_DELETED).rpartition("/")[2]


def _read(path: str) -> bytes:
    # A scan reads thousands of these files, and pathlib takes longer than the kernel.
    with open(path, "rb", buffering=0) as file:  # noqa: PTH123
        return file.readall()


def _read_users(process: Path) -> set[int]:
    """Return the ids of all users whose rights a process has."""
    for line in _read(f"{process}/status").splitlines():
        if line.startswith(b"Uid:"):
            return {int(uid) for uid in line.split()[1:]}
    raise ValueError("its status has no Uid")


def _runs_qemu(process: Path, exe: str, arguments: Sequence[str]) -> bool:
    """Tell whether a process runs QEMU, directly or through the dynamic linker."""
    if _is_qemu(exe):
        return True
    if not _LOADER.fullmatch(exe) or not any(
        map(_is_qemu, arguments[:FIRST_ARGUMENTS])
    ):
        return False
    for line in _read(f"{process}/maps").splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) > 5 and b"x" in fields[1] and _is_qemu(os.fsdecode(fields[5])):  # noqa: PLR2004
            return True
    return False


def _read_qemu(
    process: Path, program: str, arguments: list[str], users: Collection[int]
) -> QemuProcess:
    """Return what is known of a QEMU that is trusted."""
    line = parse_command_line(arguments, _Files(process).read_config)
    found: list[FoundMonitor] = []
    problems = [line.problem] if line.problem else []
    for option in line.monitors:
        try:
            found.append(_locate_monitor(process, option, users))
        except ValueError as error:
            problems.append(f"its monitor {error}")
    if not (found or problems):
        problems = ["it has no QMP monitor: start it with -qmp unix:PATH,server=on"]
    pid = int(process.name)
    started = read_start_time(pid, process.parent)
    if started is None:
        raise ProcessLookupError(f"process {pid} has ended")
    # microvm.nix starts QEMU under the name of the VM.
    is_microvm = program.startswith("microvm@")
    name = line.name or (program.partition("@")[2] if is_microvm else "")
    return QemuProcess(
        pid=pid,
        started=started,
        name=make_printable(name) or f"pid-{process.name}",
        monitors=tuple(found),
        problem="; ".join(problems),
    )


def _locate_monitor(
    process: Path, option: MonitorOption, users: Collection[int]
) -> FoundMonitor:
    """Return how a QEMU's monitor is reached from here.

    Raises:
        ValueError: It cannot be reached, or not be trusted. The message continues "its
            monitor".
    """
    if option.problem:
        raise ValueError(option.problem)
    address: Address | None = option.address
    pid: int | None = int(process.name)
    files = _Files(process)
    if option.descriptor is not None:
        # Another process made the socket, and handed it on.
        address, pid = files.find_socket(option.descriptor), None
    if isinstance(address, UnixAddress):
        address = UnixAddress(files.locate(address.path), pid=pid, users=users)
        if problem := find_folder_problem(address.path, users):
            raise ValueError(f"{address} is not trusted: {problem}")
    elif address is None:
        raise ValueError("has no address")
    elif not files.shares("net"):
        raise ValueError(f"is {address} in another network namespace: use a unix path")
    elif isinstance(address, AbstractAddress):
        address = evolve(address, pid=pid, users=users)
    return FoundMonitor(address, identify_socket(address))


@frozen
class _Files:
    """The file system as a process sees it."""

    process: Path

    def shares(self, namespace: str) -> bool:
        """Tell whether it is in our namespace, as far as that can be known."""
        try:
            ours = os.readlink(self.process.parent / "self" / "ns" / namespace)  # noqa: PTH115
            return os.readlink(self.process / "ns" / namespace) == ours  # noqa: PTH115
        except OSError:
            return True

    def locate(self, path: str) -> str:
        """Return a path by which we reach what the process reaches by ``path``.

        Raises:
            ValueError: The path is relative to a folder that may not be known.
        """
        inside = path
        if not path.startswith("/"):
            try:
                folder = os.readlink(self.process / "cwd")  # noqa: PTH115
            except PermissionError:
                raise ValueError(
                    f"is {path}, in a folder that only root and its user may know"
                ) from None
            inside = os.path.join(folder.removesuffix(_DELETED), path)  # noqa: PTH118
        exact = f"{self.process}/root{inside}"
        seen, there = _stat(inside), _stat(exact)
        # A QEMU that has changed its root made its sockets before.
        return exact if there is not None and there != seen else inside

    def read_config(self, path: str) -> str:
        """Return the text of a file for ``-readconfig``."""
        place = self.locate(path)
        # A pipe would block, and a device may never end.
        descriptor = os.open(place, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:  # noqa: PTH123
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise OSError(0, "it is no regular file", path)
            return os.fsdecode(file.read(_LONGEST_CONFIG))

    def find_socket(self, descriptor: int) -> Address:
        """Return the address of a listening socket that the process holds.

        Raises:
            ValueError: It is not known.
        """
        try:
            link = os.readlink(self.process / "fd" / str(descriptor))  # noqa: PTH115
            table = (self.process / "net" / "unix").read_bytes().splitlines()
        except OSError as error:
            raise ValueError(f"is descriptor {descriptor}: {error.strerror}") from None
        for line in table[1:]:
            fields = line.split(maxsplit=7)
            inode = f"socket:[{fields[6].decode()}]" if len(fields) > 7 else ""  # noqa: PLR2004
            if inode == link and int(fields[3], 16) & _LISTENS:
                name = os.fsdecode(fields[7])
                is_abstract = name.startswith("@")
                return AbstractAddress(name[1:]) if is_abstract else UnixAddress(name)
        raise ValueError(f"is descriptor {descriptor}, which is no unix socket")


def _stat(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)  # noqa: PTH116
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino
