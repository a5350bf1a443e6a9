"""How much memory the host has left, seen in up to three ways.

The kernel's own estimate is one. Where VMs live in a control group with a limit,
that group can be short while the host has plenty; and a fleet can be told to get
along with less than there is. The least of them counts.

Sources: proc(5), meminfo; Documentation/accounting/psi.rst and
Documentation/admin-guide/cgroup-v2.rst in Linux.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from attrs import field, frozen

from qmpballoon.fleet.members import Host

__all__ = ["Gauge", "parse_meminfo", "parse_pressure"]

_PRESSED: Final = 10.0
"""Percent of the last 10 seconds in which some task waited for memory."""


@frozen
class Gauge:
    """Reads the host's memory.

    Attributes:
        limit: Bytes that all VMs together are to hold at most; ``None``: no limit.
        cgroup: The folder of the control group (v2) that the VMs live in.
        proc: Where the process file system is.
    """

    limit: int | None = None
    cgroup: Path | None = None
    proc: Path = field(default=Path("/proc"))

    def read(self, held: int = 0, promised: int = 0) -> Host:
        """Return the host as it is now.

        Args:
            held: Bytes of it that the VMs hold.
            promised: Bytes that they were given and have not touched yet.

        Raises:
            OSError: The kernel does not tell.
        """
        meminfo = parse_meminfo((self.proc / "meminfo").read_text())
        total, available = meminfo["MemTotal"], meminfo["MemAvailable"]
        if self.limit is not None:
            total, available = min(total, self.limit), min(available, self.limit - held)
        if self.cgroup is not None:
            most, left = _group(self.cgroup, total)
            total, available = min(total, most), min(available, left)
        pressure = (self.cgroup or self.proc / "pressure") / _PRESSURE[
            bool(self.cgroup)
        ]
        return Host(
            total=total,
            available=available,
            promised=promised,
            pressed=_pressure(pressure) > _PRESSED,
        )


_PRESSURE: Final = {False: "memory", True: "memory.pressure"}


def parse_meminfo(text: str) -> dict[str, int]:
    """Return what ``/proc/meminfo`` says, in bytes."""
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


def _pressure(path: Path) -> float:
    """Return 0 where the kernel keeps no account of pressure."""
    try:
        return parse_pressure(path.read_text())
    except OSError:
        return 0.0


def _group(folder: Path, total: int) -> tuple[int, int]:
    """Return a control group's limit, and what is left of it."""
    limit = (folder / "memory.max").read_text().strip()
    if limit == "max":
        return total, total
    current = int((folder / "memory.current").read_text())
    lines = (folder / "memory.stat").read_text().splitlines()
    cache = dict(line.split() for line in lines).get("inactive_file", "0")
    return int(limit), int(limit) - current + int(cache)
