"""What the host says: which process QEMU is, and how much memory it holds.

A guest's word that it has handed memory over is a hint; the host's figures are
the proof. Everything here returns ``None`` where a thing cannot be known, such
as over TCP, from inside another pid namespace, or without permission.

Sources: unix(7) for ``SO_PEERCRED``, proc(5) for the rest.
"""

from __future__ import annotations

import socket
import struct
from pathlib import Path
from typing import TYPE_CHECKING, cast

from qmpballoon.errors import CommandError

if TYPE_CHECKING:
    from qmpballoon.monitor import Monitor

__all__ = ["find_qemu_pid", "qemu_pid", "resident"]

_PROC = Path("/proc")
_NAMES = frozenset({"kvm", "qemu-kvm"})  # what distributions also call it
_UCRED = struct.Struct("iII")  # pid, uid, gid


def qemu_pid(sock: socket.socket) -> int | None:
    """Return the process id of the QEMU at the other end of a connected socket.

    The kernel tells who began to listen there. That may be somebody else, who
    handed the socket to QEMU: libvirt does, and socket activation. So a process
    that does not look like QEMU is not taken for it.

    Args:
        sock: A connected socket.
    """
    if sock.family != socket.AF_UNIX:
        return None
    try:
        peer = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    except OSError:
        return None
    pid: int = _UCRED.unpack(peer)[0]
    # 0: the process is in a pid namespace that cannot be seen from ours.
    return pid if pid > 0 and _looks_like_qemu(_PROC / str(pid)) else None


async def find_qemu_pid(monitor: Monitor) -> int | None:
    """Return the process id of the QEMU behind a monitor, by what it says itself.

    For monitors whose socket is in other hands. QEMU tells the ids of the threads
    that its CPUs run in; they have to be threads of one process on this host, and
    that has to look like QEMU. Do not ask for a QEMU on another host: its numbers
    could be those of one here.

    Args:
        monitor: The way to QEMU.

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
                pids.add(_process_of(thread))
            case _:
                pids.add(None)
    pid = pids.pop() if len(pids) == 1 else None
    return pid if pid is not None and _looks_like_qemu(_PROC / str(pid)) else None


def resident(pid: int) -> int | None:
    """Return the resident memory of a process, in bytes.

    This is ``VmRSS``: anonymous, file-backed and shared memory alike, so guests
    on a memfd count too. Guest memory on hugetlbfs does not show in it.

    Args:
        pid: The process id.
    """
    kilobytes = _status(pid, "VmRSS")
    return None if kilobytes is None else kilobytes * 1024


def _process_of(thread: int) -> int | None:
    return _status(thread, "Tgid")


def _status(task: int, name: str) -> int | None:
    """Read a figure of a process or a thread; ``None`` where there is none."""
    try:
        status = _read(_PROC / str(task) / "status")
    except OSError:
        return None
    for line in status.splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    return None  # a zombie has no memory map


def _looks_like_qemu(process: Path) -> bool:
    """Tell by the program's file, its name and its arguments.

    One is enough. Hosts rename the process (``-name process=``), call the binary
    ``kvm``, or start it through its own dynamic linker.
    """
    return any("qemu-system-" in name or name in _NAMES for name in _names(process))


def _names(process: Path) -> list[str]:
    names: list[str] = []
    try:
        names.append(_read(process / "comm").strip())
        arguments = _read(process / "cmdline").split("\0")[:8]
        names += [Path(argument).name for argument in arguments]
        names.append((process / "exe").readlink().name)
    except OSError:  # gone, or exe without permission: what was read will do
        pass
    return names


def _read(path: Path) -> str:
    # A process may call itself anything, also what is no UTF-8.
    return path.read_text(encoding="utf-8", errors="replace")
