"""Finding a VM's balloon device in QEMU's object tree (QOM).

Devices that were given an id live under ``/machine/peripheral``, those without
under ``/machine/peripheral-anon``, and what the machine brings by itself under
``/machine/unattached``. A VM has at most one balloon.

Source: QAPI reference, ``qom-list``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, cast

from qmpballoon.balloon.balloon import Balloon
from qmpballoon.balloon.device import NO_DEVICE
from qmpballoon.errors import DeviceNotFound, NoBalloonDevice, ProtocolError
from qmpballoon.monitor import said_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from qmpballoon.monitor import Monitor

__all__ = ["find_balloon"]

_CONTAINERS: Final = (
    "/machine/peripheral",
    "/machine/peripheral-anon",
    "/machine/unattached",
)
_TYPES: Final = (
    "virtio-balloon-pci",
    "virtio-balloon-pci-transitional",
    "virtio-balloon-pci-non-transitional",
    "virtio-balloon-ccw",
    "virtio-balloon-device",
)


async def find_balloon(
    monitor: Monitor,
    *,
    resident: Callable[[], int | None] = lambda: None,
    wall_clock: Callable[[], float | None] = lambda: None,
) -> Balloon:
    """Find the balloon device of the VM behind a monitor.

    Args:
        monitor: The way to QEMU.
        resident: Tells QEMU's resident memory in bytes, where the host can.
        wall_clock: Tells seconds since the epoch, for the age of statistics.

    Raises:
        NoBalloonDevice: The VM has none.
        MonitorError: QEMU cannot be asked.

    Cancellation: at once, with no effect.
    """
    for container in _CONTAINERS:
        for name, kind in await _children(monitor, container):
            if kind in _TYPES:
                path = f"{container}/{name}"
                return Balloon(
                    monitor, path, kind, resident=resident, wall_clock=wall_clock
                )
    raise NoBalloonDevice(said_of(monitor, NO_DEVICE))


async def _children(monitor: Monitor, path: str) -> list[tuple[str, str]]:
    """List the objects below a path, by name and type."""
    try:
        entries = await monitor.execute("qom-list", {"path": path})
    except DeviceNotFound:
        return []
    if not isinstance(entries, list):
        raise ProtocolError(said_of(monitor, f"qom-list returned {entries!r:.80}"))
    children: list[tuple[str, str]] = []
    for entry in cast("list[object]", entries):
        match entry:
            case {"name": str(name), "type": str(kind)} if kind.startswith("child<"):
                children.append((name, kind[len("child<") : -1]))
            case _:
                pass
    return children
