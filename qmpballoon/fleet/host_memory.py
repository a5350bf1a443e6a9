"""How much memory the host has left.

There are up to three answers, and the lowest counts:

* the kernel's estimate, ``MemAvailable``;
* what is left of the limit that was set for all VMs of the fleet together;
* what is left of the limit of the control group that the VMs run in, which can be
  short of memory while the host is not.

See proc(5) for meminfo, and Documentation/accounting/psi.rst and
Documentation/admin-guide/cgroup-v2.rst in Linux.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from attrs import field, frozen

from qmpballoon.fleet.guests import Host

__all__ = ["HostMemory", "parse_meminfo", "parse_pressure"]

_UNDER_PRESSURE: Final = 10.0
"""Percent of the last 10 seconds in which some task waited for memory; above it the
host counts as under pressure. On a host with memory to spare it is 0."""


@frozen
class HostMemory:
    """Reads the host's memory.

    Attributes:
        limit: How many bytes all VMs together may hold; ``None``: no limit.
        cgroup: The folder of the control group (v2) that the VMs run in; ``None``: its
            limit and pressure do not count.
        proc: Where the process file system is.
    """

    limit: int | None = None
    cgroup: Path | None = None
    proc: Path = field(default=Path("/proc"))

    def read(self, held: int = 0, promised: int = 0) -> Host:
        """Return the host's memory as it is now.

        Args:
            held: Bytes of it that the VMs hold.
            promised: Bytes that guests were given and have not touched yet.

        Raises:
            OSError: A file of the kernel cannot be read.
        """
        meminfo = parse_meminfo((self.proc / "meminfo").read_text())
        total, available = meminfo["MemTotal"], meminfo["MemAvailable"]
        if self.limit is not None:
            total, available = min(total, self.limit), min(available, self.limit - held)
        pressure = self.proc / "pressure" / "memory"
        if self.cgroup is not None:
            limit, left = _read_cgroup(self.cgroup, total)
            total, available = min(total, limit), min(available, left)
            pressure = self.cgroup / "memory.pressure"
        return Host(
            total=total,
            available=available,
            promised=promised,
            pressed=_read_pressure(pressure) > _UNDER_PRESSURE,
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


def _read_cgroup(folder: Path, total: int) -> tuple[int, int]:
    """Return a control group's limit, and what is left of it."""
    limit = (folder / "memory.max").read_text().strip()
    if limit == "max":
        return total, total
    current = int((folder / "memory.current").read_text())
    lines = (folder / "memory.stat").read_text().splitlines()
    # Cache that is not in active use is what the kernel reclaims first.
    cache = dict(line.split() for line in lines).get("inactive_file", "0")
    return int(limit), int(limit) - current + int(cache)
