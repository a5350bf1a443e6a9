"""``qmpballoon status``: one look at a VM."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final, cast

import click

from qmpballoon.cli import _output
from qmpballoon.cli._options import (
    SECONDS,
    connect_timeout_option,
    json_option,
    socket_argument,
)
from qmpballoon.sizes import format_size

if TYPE_CHECKING:
    from qmpballoon.address import Vm
    from qmpballoon.balloon.balloon import Balloon
    from qmpballoon.balloon.stats import GuestStats
    from qmpballoon.cli._connect import VmMonitor

__all__ = ["status"]

_ANSWER_TIMEOUT: Final = 1.0  # seconds; a guest that is well takes milliseconds


@click.command()
@socket_argument
@connect_timeout_option
@click.option(
    "--timeout",
    type=SECONDS,
    default=8.0,
    metavar="SECONDS",
    help="How long QEMU may take to answer everything.",
)
@json_option
def status(
    socket: Vm, connect_timeout: float, timeout: float, *, as_json: bool
) -> None:
    """Show a VM, its balloon and its guest's memory.

    The guest is asked to report anew. One that does not answer shows with what it
    said last.
    """
    from qmpballoon.cli._session import run  # noqa: PLC0415 - loads trio

    seen = run(lambda: _look(socket, connect_timeout, timeout))
    if as_json:
        _output.print_json(seen)
    else:
        _output.say(_describe(seen))


async def _look(socket: Vm, connect_timeout: float, timeout: float) -> dict[str, Any]:
    import trio  # noqa: PLC0415 - loaded last

    from qmpballoon.balloon.balloon import find_balloon  # noqa: PLC0415
    from qmpballoon.cli._connect import open_monitor  # noqa: PLC0415
    from qmpballoon.errors import MonitorTimeout  # noqa: PLC0415

    async with open_monitor(socket, timeout=connect_timeout) as monitor:
        with trio.move_on_after(timeout):
            balloon = await find_balloon(
                monitor, resident=monitor.resident, wall_clock=time.time
            )
            return {"socket": str(socket), **await _ask(monitor, balloon)}
    raise MonitorTimeout(
        f"the monitor on {socket} did not answer everything within {timeout:g} s: QEMU"
        " is stopped or overloaded"
    )


async def _ask(monitor: VmMonitor, balloon: Balloon) -> dict[str, Any]:
    """Collect what is printed with ``--json``."""
    name = cast("dict[str, object]", await monitor.execute("query-name"))
    state = cast("dict[str, object]", await monitor.execute("query-status"))
    stats, interval = await _stats(balloon), await balloon.get_stats_interval()
    info = await balloon.query()
    return {
        "qemu": {"version": await _version(monitor), "pid": monitor.pid},
        "vm": {"name": name.get("name"), "status": state.get("status")},
        "balloon": {
            "path": balloon.path,
            "type": balloon.device_type,
            "actual": info.actual,
            "total": info.total,
            "target": info.target,
            "features": await balloon.features(),
        },
        "stats": {**stats.to_json(), "interval": interval},
        "host": {"resident": balloon.resident()},
    }


async def _version(monitor: VmMonitor) -> str | None:
    """Ask for QEMU's version: of libvirt's VMs, it is libvirt that was greeted."""
    match await monitor.execute("query-version"):
        case {"qemu": {"major": int(major), "minor": int(minor), "micro": int(micro)}}:
            return f"{major}.{minor}.{micro}"
        case _:
            return None


async def _stats(balloon: Balloon) -> GuestStats:
    """Have the guest report; take its last word if it does not."""
    from qmpballoon.errors import StatsUnavailable  # noqa: PLC0415

    try:
        return await balloon.refresh_stats(timeout=_ANSWER_TIMEOUT)
    except StatsUnavailable:
        return await balloon.stats()


def _describe(seen: dict[str, Any]) -> str:
    """Say it for people."""
    vm, host = seen["vm"], seen["host"]
    rows = {
        "VM": f"{vm['name'] or 'without a name'}, {vm['status']}",
        "QEMU": _describe_qemu(seen["qemu"]),
        **_describe_balloon(seen["balloon"]),
        "guest says": _describe_stats(seen["stats"]),
        "host": f"{_size(host['resident'])} resident",
    }
    return "\n".join(
        f"{click.style(f'{name:<11}', bold=True)}{text}" for name, text in rows.items()
    )


def _describe_qemu(qemu: dict[str, Any]) -> str:
    version = qemu["version"] or "of unknown version"
    return f"{version}, pid {qemu['pid'] or 'unknown'}"


def _describe_balloon(balloon: dict[str, Any]) -> dict[str, str]:
    actual, total = balloon["actual"], balloon["total"]
    features = [name for name, on in balloon["features"].items() if on]
    return {
        "balloon": ", ".join([f"{balloon['type']} at {balloon['path']}", *features]),
        "guest has": f"{_size(actual)} of {_size(total)}"
        + ("" if total is None else f", {_size(total - actual)} is in the balloon"),
    }


def _describe_stats(stats: dict[str, Any]) -> str:
    if stats["last_update"] is None:
        return "nothing: is the VM running, and virtio_balloon loaded in the guest?"
    memory = {
        "available": stats["available"],
        "free": stats["free"],
        "page cache": stats["disk_caches"],
        "of": stats["total"],
    }
    figures = ", ".join(f"{name} {_size(size)}" for name, size in memory.items())
    # Its time is known to the second only.
    if stats["age"] is None or stats["age"] <= _ANSWER_TIMEOUT + 1:
        return figures
    return f"{figures}; that was {stats['age']:.0f} s ago, it does not answer now"


def _size(size: int | None) -> str:
    return "unknown" if size is None else format_size(size)
