"""What the host knows about QEMU: its process id, its memory, its processor time.

A guest may claim that it has handed memory over; the host's figures prove it. Every
function here returns ``None`` if the host cannot tell: over TCP, from inside another
pid namespace, or without permission.

Sources: unix(7) for ``SO_PEERCRED``, clock_getcpuclockid(3) for the processor time,
proc(5) for the rest.
"""

from __future__ import annotations

import mmap
import os
import socket
import struct
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

from qmpballoon.errors import CommandError

if TYPE_CHECKING:
    from qmpballoon.monitor import Monitor

__all__ = [
    "FIRST_ARGUMENTS",
    "find_peer_pid",
    "find_qemu_pid",
    "is_qemu_name",
    "read_huge_pages",
    "read_locked",
    "read_peer",
    "read_processor_time",
    "read_resident",
    "read_start_time",
    "read_state",
]

_PROC: Final = Path("/proc")
# Distributions also install QEMU under these names.
_NAMES: Final = frozenset({"kvm", "qemu-kvm"})
FIRST_ARGUMENTS: Final = 8
"""The program's path is among the first so many arguments, even if the dynamic linker
starts it: then up to three options of the linker, each with a value, may come first."""

# The clock of what the scheduler has given all threads of a process, in nanoseconds.
_SCHEDULER_CLOCK: Final = 2  # CPUCLOCK_SCHED
_UCRED: Final = struct.Struct("iII")  # pid, uid, gid


def find_peer_pid(sock: socket.socket) -> int | None:
    """Return the process id of the QEMU at the other end of a unix socket.

    The kernel names the process that began to listen on the socket. That process may
    be another one, which handed the socket to QEMU: libvirt and systemd's socket
    activation do that. So the process counts only if it looks like QEMU.

    Args:
        sock: A connected socket.

    Returns:
        The process id; ``None`` if it cannot be known.
    """
    if sock.family != socket.AF_UNIX:
        return None
    try:
        pid, _ = read_peer(sock)
    except OSError:
        return None
    # 0: the process is in a pid namespace that is not visible from here.
    return pid if pid > 0 and _looks_like_qemu(_PROC / str(pid)) else None


def read_peer(sock: socket.socket) -> tuple[int, int]:
    """Return the process and the user that began to listen on a unix socket.

    Args:
        sock: A connected socket.

    Returns:
        The process id, or 0 if it cannot be seen from our pid namespace; and the user's
        id.

    Raises:
        OSError: The kernel does not tell.
    """
    peer = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    pid, uid, _ = _UCRED.unpack(peer)
    return pid, uid


async def find_qemu_pid(monitor: Monitor) -> int | None:
    """Ask a QEMU on this host for its process id.

    This is for monitors whose socket somebody else holds. QEMU reports the thread ids
    of its virtual CPUs. They must be threads of one process on this host, and that
    process must look like QEMU. Do not call this for a QEMU on another host: its
    thread ids may also exist here.

    Args:
        monitor: The monitor of that QEMU.

    Returns:
        The process id; ``None`` if it cannot be known.

    Raises:
        MonitorError: QEMU cannot be asked.

    If the call is cancelled, it has no effect.

    Source: QAPI reference, ``query-cpus-fast``.
    """
    try:
        cpus = await monitor.execute("query-cpus-fast")
    except CommandError:
        return None  # older than 2.12
    pids: set[int | None] = set()
    for cpu in cast("list[object]", cpus) if isinstance(cpus, list) else []:
        match cpu:
            case {"thread-id": int(thread)}:
                pids.add(_read_status(thread, "Tgid"))
            case _:
                pids.add(None)
    pid = pids.pop() if len(pids) == 1 else None
    return pid if pid is not None and _looks_like_qemu(_PROC / str(pid)) else None


def read_resident(pid: int) -> int | None:
    """Return the resident memory of a process in bytes.

    This is ``VmRSS``: anonymous, file-backed and shared memory together, so it also
    counts guest memory on a memfd. It does not count guest memory on hugetlbfs.

    Args:
        pid: The process id.

    Returns:
        Bytes; ``None`` if the process has ended or cannot be read.
    """
    # Of the files that have it, statm takes the kernel and us the least time.
    try:
        file = os.open(f"{_PROC}/{pid}/statm", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        pages = int(os.read(file, mmap.PAGESIZE).split(None, 2)[1])
    except OSError:
        return None
    finally:
        os.close(file)
    return pages * mmap.PAGESIZE or None  # a zombie has no memory map


def read_processor_time(pid: int) -> float | None:
    """Return how long a process has run on processors, all its threads together.

    With KVM and with TCG, virtual CPUs are threads of QEMU.

    Args:
        pid: The process id.

    Returns:
        Seconds since it began; ``None`` if the process has ended.
    """
    try:
        return time.clock_gettime((~pid << 3) | _SCHEDULER_CLOCK)
    except OSError:
        return None


def read_locked(pid: int) -> int | None:
    """Return how much of a process' memory is locked, in bytes.

    This is ``VmLck``: what ``-overcommit mem-lock=on`` and VFIO keep in memory. It
    counts address space, so it can be more than the process' resident memory.

    Args:
        pid: The process id.

    Returns:
        Bytes; ``None`` if the process has ended or cannot be read.
    """
    return _read_size(pid, "VmLck")


def read_huge_pages(pid: int) -> int | None:
    """Return how much hugetlbfs memory a process has, in bytes; as :func:`read_locked`.

    This is ``HugetlbPages``, which ``VmRSS`` does not include.
    """
    return _read_size(pid, "HugetlbPages")


def read_start_time(pid: int, proc: Path = _PROC) -> int | None:
    """Return when a process began, in the kernel's ticks since the host started.

    With the process id, it tells a process from all others since then.

    Args:
        pid: The process id.
        proc: Where the kernel shows processes.

    Returns:
        Ticks; ``None`` if the process has ended.
    """
    try:
        return int(_read_stat(pid, proc)[19])
    except (OSError, ValueError, IndexError):
        return None


def read_state(pid: int) -> str | None:
    """Return the state of a process, as in proc(5): ``T`` if it is stopped.

    Args:
        pid: The process id.

    Returns:
        A letter; ``None`` if the process has ended.
    """
    try:
        return _read_stat(pid, _PROC)[0]
    except (OSError, IndexError):
        return None


def _read_stat(pid: int, proc: Path) -> list[str]:
    """Return the fields of a process' ``stat`` after its name."""
    # The name may hold anything, also spaces and brackets.
    return _read(proc / str(pid) / "stat").rpartition(")")[2].split()


def _read_size(pid: int, name: str) -> int | None:
    """Return a figure of kilobytes from the status of a process, in bytes."""
    kilobytes = _read_status(pid, name)
    return None if kilobytes is None else kilobytes * 1024


def _read_status(task: int, name: str) -> int | None:
    """Return a figure from the status of a process or thread, if it has that figure."""
    try:
        status = _read(_PROC / str(task) / "status")
    except OSError:
        return None
    for line in status.splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    return None  # a zombie has no memory map


def _looks_like_qemu(process: Path) -> bool:
    """Tell whether any name of a process is one of QEMU's.

    A single match is enough. Hosts rename the process (``-name process=``), call the
    binary ``kvm``, or start it through its own dynamic linker.
    """
    return any(map(is_qemu_name, _list_names(process)))


def is_qemu_name(name: str) -> bool:
    """Tell whether a program of this name, without its folder, may be QEMU."""
    return "qemu-system-" in name or name in _NAMES


def _list_names(process: Path) -> list[str]:
    """Return the names of a process: its own, its arguments' and its program's."""
    names: list[str] = []
    try:
        names.append(_read(process / "comm").strip())
        arguments = _read(process / "cmdline").split("\0")[:FIRST_ARGUMENTS]
        names += [Path(argument).name for argument in arguments]
        names.append((process / "exe").readlink().name)
    except OSError:  # it has ended, or exe needs a permission: use what was read
        pass
    return names


def _read(path: Path) -> str:
    # A process may choose any bytes as its name, even if they are not UTF-8.
    return path.read_text(encoding="utf-8", errors="replace")
