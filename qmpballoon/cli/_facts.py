"""Gathers the facts about a VM: over its monitor, and from /proc and control groups.

Nothing is changed; the guest is only asked to report its memory. Only the four methods
of :class:`~qmpballoon.monitor.Monitor` are awaited, so this runs on every event loop.
:mod:`qmpballoon.cli._findings` decides what the facts mean.

Source: QAPI reference, ``qom-list``, ``qom-get``, ``query-memory-devices``,
``query-memory-size-summary``, ``query-migrate``; proc(5) for the rest.
"""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

from attrs import evolve

from qmpballoon._printable import make_printable
from qmpballoon._transport.qemu_process import (
    read_huge_pages,
    read_locked,
    read_state,
)
from qmpballoon.address import LibvirtVm, TcpAddress, UnixAddress
from qmpballoon.balloon.balloon import Balloon
from qmpballoon.balloon.qom import CONTAINERS, find_device, list_children
from qmpballoon.cli._findings import (
    Backend,
    Facts,
    Finding,
    HostFacts,
    make_finding,
    went_both_ways,
)
from qmpballoon.errors import (
    BalloonUnavailable,
    CommandError,
    CommandNotFound,
    MonitorBusy,
    MonitorError,
    NoBalloonDevice,
    StatsUnavailable,
)
from qmpballoon.fleet.command_line import parse_command_line
from qmpballoon.fleet.host_memory import find_limit
from qmpballoon.fleet.processes import QemuProcess, find_manager

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from qmpballoon.address import Vm
    from qmpballoon.fleet.command_line import MonitorOption
    from qmpballoon.fleet.vm_spec import Refused
    from qmpballoon.monitor import Monitor

__all__ = ["explain_refused", "explain_unreachable", "gather", "read_host"]

_PROC: Final = Path("/proc")
_LOOK: Final = 0.1  # seconds between two looks at the guest's size
_ANY_MEMORY: Final = "memory-backend-"
# Devices that a balloon can suffer from. VFIO's ccw and ap devices pin nothing.
_SUSPECTS: Final = re.compile(r"vfio-(?!ccw|ap)|vhost-user|vhost-vdpa")
# The type of a -netdev, where it is named: in QEMU's own syntax, or in JSON.
_TYPE: Final = re.compile(r'\btype"?\s*[=:]\s*"?([\w-]+)')


# Where no monitor answers


def explain_refused(refused: Refused, processes: Sequence[object]) -> Finding:
    """Say why a VM has no monitor that could be used.

    Args:
        refused: What a search for VMs has refused.
        processes: What runs on this host.
    """
    monitors = [
        monitor.address
        for each in processes
        if isinstance(each, QemuProcess) and each.pid == refused.pid
        for monitor in each.monitors
    ]
    if refused.address:
        monitors.append(UnixAddress(refused.address))
    managed = any(find_manager(address) for address in monitors)
    return make_finding(
        "monitor-shared" if managed else "monitor-missing", refused.reason
    )


def explain_unreachable(error: MonitorError) -> Finding:
    """Say why a monitor does not answer."""
    if not isinstance(error, MonitorBusy):
        return make_finding("monitor-unreachable", str(error))
    if error.pid is not None and read_state(error.pid) in ("T", "t"):
        return make_finding(
            "qemu-stopped",
            f"QEMU is stopped, by a signal or a debugger: let it go on"
            f" (kill -CONT {error.pid})",
        )
    return make_finding(
        "monitor-busy",
        f"{error}; with --own-monitor, QEMU 11.1 and later need it free only for a"
        " moment",
    )


# Over the monitor


async def gather(monitor: Monitor, seconds: float) -> Facts:
    """Ask QEMU and its guest for all that findings are made of.

    Args:
        monitor: The way to QEMU.
        seconds: How long to watch whether somebody else moves the balloon, at most: it
            ends once two have been seen to.

    Raises:
        MonitorError: QEMU can no longer be asked.

    Cancellation: the statistics interval is restored.
    """
    facts = await _ask_vm(monitor)
    if facts.is_preconfig:
        return facts
    facts = await _ask_memory(facts, monitor)
    try:
        balloon = Balloon(monitor, *await find_device(monitor))
        facts = await _ask_balloon(facts, balloon, seconds)
    except NoBalloonDevice as error:
        return evolve(facts, missing=_shorten(monitor, error))
    except BalloonUnavailable as error:
        return evolve(facts, unavailable=_shorten(monitor, error))
    return facts


async def _ask_vm(monitor: Monitor) -> Facts:
    status = await _try(monitor, "query-status")
    name = status.get("status")
    is_preconfig = False
    if name == "prelaunch":
        # QEMU allows it only once there is a machine.
        try:
            await monitor.execute("query-memory-size-summary")
        except CommandNotFound:
            pass
        except CommandError:
            is_preconfig = True
    version = await _try(monitor, "query-version")
    migration = await _try(monitor, "query-migrate")
    return Facts(
        status=str(name or "unknown"),
        is_preconfig=is_preconfig,
        version=_format_version(version.get("qemu")),
        migration=str(migration.get("status", "")),
    )


def _format_version(qemu: object) -> str:
    match qemu:
        case {"major": int(major), "minor": int(minor), "micro": int(micro)}:
            return f"{major}.{minor}.{micro}"
        case _:
            return ""


async def _ask_balloon(facts: Facts, balloon: Balloon, seconds: float) -> Facts:
    """Add what the balloon says, and its guest."""
    interval = await balloon.get_stats_interval()
    start = balloon.monitor.now()
    sizes = [await balloon.actual()]
    silence = ""
    if facts.status == "running":
        try:
            await balloon.refresh_stats()
        except StatsUnavailable as error:
            silence = _shorten(balloon.monitor, error)
        while balloon.monitor.now() - start < seconds and not went_both_ways(sizes):
            sizes.append(await balloon.actual())
            await balloon.monitor.sleep(_LOOK)
    info = await balloon.query()
    sizes.append(info.actual)
    return evolve(
        facts,
        actual=info.actual,
        total=info.total,
        capacity=info.capacity,
        sizes=tuple(sizes),
        seconds=balloon.monitor.now() - start,
        interval=interval,
        owed=balloon.read_owed(),
        holder=balloon.read_holder(),
        features=await balloon.features(),
        stats=await balloon.stats(),
        silence=silence,
    )


async def _ask_memory(facts: Facts, monitor: Monitor) -> Facts:
    """Add what the VM's memory is made of, and which devices use it."""
    backends = [
        await _describe_backend(monitor, f"/objects/{name}", kind)
        for name, kind in await list_children(monitor, "/objects")
        if kind.startswith(_ANY_MEMORY)
    ]
    devices = [
        kind
        for container in CONTAINERS[:2]
        for name, kind in await list_children(monitor, container)
        if _SUSPECTS.match(kind)
        and not await _get(monitor, f"{container}/{name}", "x-balloon-allowed")
    ]
    return evolve(
        facts,
        backends=tuple(backends),
        devices=tuple(devices),
        virtio_mem=await _sum_virtio_mem(monitor),
    )


async def _describe_backend(monitor: Monitor, path: str, kind: str) -> Backend:
    place = await _get(monitor, path, "mem-path")
    return Backend(
        kind=kind,
        is_shared=await _get(monitor, path, "share") is True,
        is_huge=await _get(monitor, path, "hugetlb") is True,
        path=place if isinstance(place, str) else "",
    )


async def _sum_virtio_mem(monitor: Monitor) -> int | None:
    found: list[int] = []
    try:
        devices = await monitor.execute("query-memory-devices")
    except CommandError:
        return None
    for device in cast("list[object]", devices) if isinstance(devices, list) else []:
        match device:
            case {"type": "virtio-mem", "data": {"size": int(size)}}:
                found.append(size)
            case _:
                pass
    return sum(found) if found else None


async def _get(monitor: Monitor, path: str, name: str) -> object:
    """Read a property; ``None`` if this QEMU does not have it."""
    try:
        return await monitor.execute("qom-get", {"path": path, "property": name})
    except CommandError:
        return None


async def _try(monitor: Monitor, command: str) -> Mapping[str, object]:
    """Run a query; its result is empty if this QEMU does not answer it."""
    try:
        answer = await monitor.execute(command)
    except CommandError:
        return {}
    return cast("Mapping[str, object]", answer) if isinstance(answer, dict) else {}


def _shorten(monitor: object, error: Exception) -> str:
    """Return a message without the monitor's name, which stands above it."""
    return str(error).removeprefix(f"{getattr(monitor, 'name', '')}: ")


# On the host


def read_host(
    facts: Facts,
    address: Vm,
    pid: int | None,
    resident: int | None,
    proc: Path = _PROC,
) -> Facts:
    """Add what this host knows of a VM's QEMU.

    Args:
        facts: What QEMU said.
        address: Where its monitor is.
        pid: Its process; ``None`` if it is not known.
        resident: Bytes of its resident memory; ``None`` if they are not known.
        proc: Where the process file system is.
    """
    if pid is None or resident is None:
        why = _explain_unknown(address, pid)
        return evolve(facts, host=HostFacts(resident=resident, why_unknown=why))
    limit = find_limit(pid, proc)
    arguments = _read(proc / str(pid) / "cmdline").split("\0")
    monitors = _list_monitors(arguments)
    host = HostFacts(
        resident=resident,
        locked=read_locked(pid) or 0,
        huge_pages=read_huge_pages(pid) or 0,
        limit=limit.limit if limit else None,
        group=make_printable(str(limit.folder)) if limit else "",
        monitors=len(monitors) or None,
        manager=_find_manager(monitors),
        networks=_list_networks(arguments),
    )
    mounts = _read(proc / str(pid) / "mountinfo").splitlines()
    backends = [
        evolve(each, is_huge=each.is_huge or is_on_hugetlbfs(each.path, mounts))
        for each in facts.backends
    ]
    return evolve(facts, host=host, backends=tuple(backends))


def _explain_unknown(address: Vm, pid: int | None) -> str:
    if pid is not None:
        return (
            f"/proc/{pid}/status cannot be read: run as root, or without the mount"
            " option hidepid"
        )
    match address:
        case TcpAddress():
            return (
                "over TCP nobody tells which process QEMU is: use a monitor on a unix"
                " socket, on the VM's host"
            )
        case LibvirtVm():
            return "libvirt's VM runs on another host: run the command there"
        case _:
            return (
                "the process at the other end of the socket is no QEMU that can be seen"
                " from here: run outside of the container, and let QEMU make the socket"
                " itself"
            )


def is_on_hugetlbfs(path: str, mounts: Sequence[str]) -> bool:
    """Tell whether a path is on a hugetlbfs, by the lines of ``mountinfo``."""
    kinds: dict[str, str] = {}
    for line in mounts:
        before, _, after = line.partition(" - ")
        kinds[before.split()[4]] = after.partition(" ")[0]
    places = [Path(path), *Path(path).parents] if path.startswith("/") else []
    nearest = next((kinds[str(each)] for each in places if str(each) in kinds), "")
    return nearest == "hugetlbfs"


def _list_monitors(arguments: Sequence[str]) -> tuple[MonitorOption, ...]:
    """Return the QMP monitors on a command line; none if it does not name them all."""

    def refuse(path: str) -> str:
        raise OSError(0, "it is not read for this", path)

    line = parse_command_line(arguments[1:], refuse)
    return () if line.problem else line.monitors


def _find_manager(monitors: Sequence[MonitorOption]) -> str:
    """Return whose a monitor is that a manager of VMs needs; empty if none is."""
    found = [find_manager(each.address) for each in monitors if each.address]
    # What else it says is for those who have no other monitor.
    return next(filter(None, found), "").partition(":")[0]


def _list_networks(arguments: Sequence[str]) -> tuple[str, ...]:
    """Return the types of the ``-netdev`` on a command line."""
    values = [
        value
        for option, value in pairwise(arguments)
        if option in ("-netdev", "--netdev")
    ]
    named = [_TYPE.search(value) for value in values]
    return tuple(
        found[1] if found else value.partition(",")[0]
        for found, value in zip(named, values, strict=True)
    )


def _read(path: Path) -> str:
    """Return the text of a file; empty if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
