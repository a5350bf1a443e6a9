"""``qmpballoon status``: show a VM, its balloon and its guest's memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import click
from attrs import asdict

from qmpballoon._printable import make_printable
from qmpballoon.balloon.balloon import find_balloon
from qmpballoon.balloon.results import describe_holder
from qmpballoon.cli import _output
from qmpballoon.cli._options import (
    SECONDS,
    connect_timeout_option,
    json_option,
    own_monitor_option,
    socket_argument,
)
from qmpballoon.cli.render.summary import describe_owed
from qmpballoon.errors import StatsUnavailable
from qmpballoon.sizes import format_size

if TYPE_CHECKING:
    from qmpballoon.address import Vm
    from qmpballoon.balloon.balloon import Balloon
    from qmpballoon.balloon.stats import GuestStats

__all__ = ["status"]

# Seconds. A healthy guest answers in milliseconds, but it takes up to a second to tell
# its answer from the last one.
_ANSWER_TIMEOUT: Final = 2.0


@click.command()
@socket_argument
@connect_timeout_option
@own_monitor_option
@click.option(
    "--timeout",
    type=SECONDS,
    default=8.0,
    metavar="SECONDS",
    help="How long QEMU may take to answer everything.",
)
@json_option
def status(
    *,
    socket: Vm,
    connect_timeout: float,
    own_monitor: bool,
    timeout: float,
    as_json: bool,
) -> None:
    """Show a VM, its balloon and its guest's memory.

    The guest is asked for new statistics. If it does not answer, its last ones are
    shown, with their age.
    """
    from qmpballoon.cli._one_vm import VmMonitor, run_with_monitor  # noqa: PLC0415

    async def query(monitor: VmMonitor) -> tuple[dict[str, Any], str | None]:
        balloon = await find_balloon(monitor)
        seen, nonsense = await _collect(balloon, monitor.pid)
        return {"socket": str(socket), **seen}, nonsense

    seen, nonsense = run_with_monitor(
        socket,
        query,
        connect_timeout=connect_timeout,
        own=own_monitor,
        timeout=timeout,
    )
    if as_json:
        _output.print_json(seen)
    else:
        _output.say(_describe(seen, nonsense))


async def _collect(
    balloon: Balloon, pid: int | None
) -> tuple[dict[str, Any], str | None]:
    """Return what is printed with ``--json``, except for the socket; and nonsense.

    The latter is what the guest says that cannot be true, or ``None``.
    """
    vm = await balloon.query_vm()
    # The guest of a VM that does not run does not answer.
    new = await _refresh_stats(balloon) if vm.status == "running" else None
    stats = new or await balloon.stats()
    interval = await balloon.get_stats_interval()
    info, reads = await balloon.query(), await balloon.disk_reads()
    seen = {
        "qemu": {"version": vm.qemu_version, "pid": pid},
        "vm": {"name": vm.name, "status": vm.status},
        "balloon": {
            "path": balloon.path,
            "type": balloon.device_type,
            "actual": info.actual,
            "total": info.total,
            "target": info.target,
            "owed": balloon.read_owed(),
            "holder": balloon.read_holder(),
            "features": await balloon.features(),
        },
        "stats": {**stats.to_json(), "interval": interval, "fresh": new is not None},
        "host": {"resident": balloon.resident()},
        "disk_reads": None if reads is None else asdict(reads),
    }
    return seen, stats.find_nonsense(info.capacity)


async def _refresh_stats(balloon: Balloon) -> GuestStats | None:
    """Return new statistics; ``None`` if the guest does not answer."""
    try:
        return await balloon.refresh_stats(timeout=_ANSWER_TIMEOUT)
    except StatsUnavailable:
        return None


def _describe(seen: dict[str, Any], nonsense: str | None) -> str:
    """Format it for people."""
    vm, host = seen["vm"], seen["host"]
    rows = {
        "VM": f"{vm['name'] or 'without a name'}, {vm['status']}",
        "QEMU": _describe_qemu(seen["qemu"]),
        **_describe_balloon(seen["balloon"]),
        **_describe_owed(seen["balloon"]),
        "guest says": _describe_stats(seen["stats"], nonsense),
        "host": f"{_format(host['resident'])} resident",
        "disk reads": _describe_reads(seen["disk_reads"]),
    }
    return "\n".join(f"{name:<11}{make_printable(text)}" for name, text in rows.items())


def _describe_qemu(qemu: dict[str, Any]) -> str:
    version = qemu["version"] or "of unknown version"
    return f"{version}, pid {qemu['pid'] or 'unknown'}"


def _describe_balloon(balloon: dict[str, Any]) -> dict[str, str]:
    actual, total = balloon["actual"], balloon["total"]
    features = [name for name, on in balloon["features"].items() if on]
    return {
        "balloon": ", ".join([f"{balloon['type']} at {balloon['path']}", *features]),
        "guest has": f"{_format(actual)} of {_format(total)}"
        + ("" if total is None else f", {_format(total - actual)} is in the balloon"),
    }


def _describe_owed(balloon: dict[str, Any]) -> dict[str, str]:
    owed, actual, holder = (balloon[name] for name in ("owed", "actual", "holder"))
    if holder is not None:
        return {"memory is": describe_holder(holder)}
    if owed is None or owed <= actual:
        return {}
    return {"is owed": describe_owed(owed)}


def _describe_stats(stats: dict[str, Any], nonsense: str | None) -> str:
    if stats["last_update"] is None:
        return "nothing: is the VM running, and virtio_balloon loaded in the guest?"
    memory = {
        "available": stats["available"],
        "free": stats["free"],
        "page cache": stats["disk_caches"],
        "of": stats["total"],
    }
    parts = [", ".join(f"{name} {_format(size)}" for name, size in memory.items())]
    if nonsense is not None:
        parts.append(f"this cannot be true: {nonsense}")
    if not stats["fresh"]:
        age = stats["age"]
        when = "some time ago" if age is None else f"{age:.0f} s ago"
        parts.append(f"that was {when}, it does not answer now")
    return "; ".join(parts)


def _describe_reads(reads: dict[str, int] | None) -> str:
    if reads is None:
        return "unknown: the VM has no disk with a medium"
    return f"{format_size(reads['bytes'])} in {reads['operations']} requests"


def _format(size: int | None) -> str:
    return "unknown" if size is None else format_size(size)
