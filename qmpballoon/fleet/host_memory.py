"""How much memory the host has left.

There are up to three answers, and the lowest counts:

* the kernel's estimate, ``MemAvailable``;
* what is left of the limit that was set for all VMs of the fleet together;
* what is left of the limits of the control group that the VMs run in, and of the groups
  around it. A group can be short of memory while the host is not.

A control group has two limits. Above ``memory.max`` the kernel kills processes; above
``memory.high`` it makes them wait. So the lower one counts. A group may be removed
while it is watched, for example by a restart of its service, and come back. Meanwhile
it does not count, and the host's notes say so.

See proc(5) for meminfo, and Documentation/accounting/psi.rst and
Documentation/admin-guide/cgroup-v2.rst in Linux.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Final

from attrs import field, frozen

from qmpballoon.fleet.guests import Host

__all__ = ["GroupLimit", "HostMemory", "find_limit", "parse_meminfo", "parse_pressure"]

_UNDER_PRESSURE: Final = 10.0
"""Percent of the last 10 seconds in which some task waited for memory. Above this, the
host counts as under pressure. On a host with memory to spare the figure is 0."""


@frozen
class HostMemory:
    """Reads the host's memory.

    Attributes:
        limit: How many bytes all VMs together may hold; ``None``: no limit.
        cgroup: The folder of the control group (v2) that the VMs run in; ``None``: only
            the host's own limit and pressure count.
        proc: Where the process file system is.
    """

    limit: int | None = None
    cgroup: Path | None = None
    proc: Path = field(default=Path("/proc"))

    def read(self, held: int = 0, promised: int = 0) -> Host:
        """Return the host's memory as it is now.

        Args:
            held: Bytes of it that the VMs hold; they count against ``limit``.
            promised: Bytes that guests were given and have not touched yet.

        Raises:
            OSError: The host's own figures cannot be read.
        """
        meminfo = parse_meminfo((self.proc / "meminfo").read_text())
        total, available = meminfo["MemTotal"], meminfo["MemAvailable"]
        if self.limit is not None:
            total, available = min(total, self.limit), min(available, self.limit - held)
        pressure, notes = self.proc / "pressure" / "memory", list[str]()
        if self.cgroup is not None:
            try:
                limit, left = _read_groups(self.cgroup, total)
            except (OSError, ValueError):
                notes.append(
                    f"the control group {self.cgroup} cannot be read: its limit and its"
                    " pressure do not count until it can"
                )
            else:
                total, available = min(total, limit), min(available, left)
                pressure = self.cgroup / "memory.pressure"
        return Host(
            total=total,
            available=available,
            promised=promised,
            pressed=_read_pressure(pressure) > _UNDER_PRESSURE,
            notes=tuple(notes),
        )


def parse_meminfo(text: str) -> dict[str, int]:
    """Return the figures of ``/proc/meminfo``, in bytes."""
    figures: dict[str, int] = {}
    for line in text.splitlines():
        name, _, rest = line.partition(":")
        number, _, unit = rest.strip().partition(" ")
        figures[name] = int(number) * (1024 if unit == "kB" else 1)
    return figures


def parse_pressure(text: str) -> float:
    """Return the percentage of the last 10 seconds in which some task waited."""
    for line in text.splitlines():
        kind, *members = line.split()
        if kind == "some":
            figures = dict(member.split("=") for member in members)
            return float(figures["avg10"])
    return 0.0


def _read_pressure(path: Path) -> float:
    """Return the pressure; 0 if the kernel does not measure it."""
    try:
        return parse_pressure(path.read_text())
    except OSError:
        return 0.0


def _read_groups(folder: Path, total: int) -> tuple[int, int]:
    """Return the lowest limit of a group and those around it, and the least left.

    Raises:
        OSError: The group cannot be read.
        ValueError: It is not a control group with the memory controller.
    """
    limit, left = _read_group(folder, total)
    for parent in folder.absolute().parents:
        try:
            around = _read_group(parent, total)
        except (OSError, ValueError):
            break  # the root of the control groups has no limit
        limit, left = min(limit, around[0]), min(left, around[1])
    return limit, left


def _read_group(folder: Path, total: int) -> tuple[int, int]:
    """Return a control group's lower limit, and what is left of it."""
    limit = _read_limit(folder)
    if limit is None:
        return total, total
    current = int((folder / "memory.current").read_text())
    lines = (folder / "memory.stat").read_text().splitlines()
    # Cache that is not in active use is what the kernel reclaims first.
    cache = dict(line.split() for line in lines).get("inactive_file", "0")
    return limit, limit - current + int(cache)


def _read_limit(folder: Path) -> int | None:
    """Return a control group's lower limit; ``None`` if it has none.

    Raises:
        OSError: It is not a control group of version 2 with the memory controller.
    """
    limits = [(folder / "memory.max").read_text().strip()]
    with suppress(FileNotFoundError):
        limits.append((folder / "memory.high").read_text().strip())
    return min((int(each) for each in limits if each != "max"), default=None)


# The limit of one process


@frozen
class GroupLimit:
    """How much memory the control groups of a process allow it.

    Attributes:
        limit: Bytes.
        folder: The folder of the group with the lowest limit.
    """

    limit: int
    folder: Path


def find_limit(pid: int, proc: Path = Path("/proc")) -> GroupLimit | None:
    """Return the lowest limit of the control groups that a process is in.

    Groups of version 1 and 2 count, and the groups around them.

    Args:
        pid: The process id.
        proc: Where the process file system is.

    Returns:
        The limit; ``None`` if there is none below the host's memory, or if it cannot be
        read.
    """
    try:
        total = parse_meminfo((proc / "meminfo").read_text())["MemTotal"]
        groups = _read_lines(proc / str(pid) / "cgroup")
        mounts = _read_lines(proc / "self" / "mountinfo")
    except OSError:
        return None
    lowest = GroupLimit(total, proc)
    for root, inside in _locate_groups(groups, mounts):
        folder = root / inside.lstrip("/")
        for each in (folder, *folder.parents):
            try:
                limit = _read_any_limit(each)
            except (OSError, ValueError):
                limit = None
            if limit is not None and limit < lowest.limit:
                lowest = GroupLimit(limit, each)
            if each == root:
                break
    return lowest if lowest.limit < total else None


def _read_lines(path: Path) -> list[str]:
    """Return the lines of a file; names in them may be any bytes."""
    lines = path.read_bytes().split(b"\n")
    return [os.fsdecode(line) for line in lines if line]


def _locate_groups(groups: list[str], mounts: list[str]) -> list[tuple[Path, str]]:
    """Return where the hierarchies with a memory controller are, and the groups there.

    Args:
        groups: The lines of a process' ``cgroup`` file: see cgroups(7).
        mounts: The lines of ``mountinfo``: see proc_pid_mountinfo(5).
    """
    roots: dict[str, Path] = {}
    for line in mounts:
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2)
        if kind == "cgroup2" or (kind == "cgroup" and "memory" in options.split(",")):
            roots.setdefault(kind, Path(before.split()[4]))
    found: list[tuple[Path, str]] = []
    for line in groups:
        _, controllers, inside = line.split(":", 2)
        kind = "cgroup" if "memory" in controllers.split(",") else "cgroup2"
        if kind in roots and (kind == "cgroup" or not controllers):
            found.append((roots[kind], inside))
    return found


def _read_any_limit(folder: Path) -> int | None:
    """Return the limit of a control group of either version, if it has one.

    Raises:
        OSError: It cannot be read, or has no memory controller.
    """
    old = folder / "memory.limit_in_bytes"  # version 1
    return int(old.read_text()) if old.exists() else _read_limit(folder)
