"""Find a VM's balloon in QEMU's object tree (QOM), before there is a handle of it.

Source: QAPI reference, ``qom-list``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, cast

from qmpballoon.errors import DeviceNotFound, NoBalloonDevice, ProtocolError
from qmpballoon.monitor import make_error

if TYPE_CHECKING:
    from qmpballoon.monitor import Monitor

__all__ = ["CONTAINERS", "find_device", "list_children"]

CONTAINERS: Final = (
    "/machine/peripheral",  # devices that were given an id
    "/machine/peripheral-anon",  # those without
    "/machine/unattached",  # what the machine type brings
)
"""The objects in QOM that devices belong to."""
_TYPES: Final = (
    "virtio-balloon-pci",
    "virtio-balloon-pci-transitional",
    "virtio-balloon-pci-non-transitional",
    "virtio-balloon-ccw",
    "virtio-balloon-device",
)


async def find_device(monitor: Monitor) -> tuple[str, str]:
    """Find the balloon device of the VM behind a monitor.

    Args:
        monitor: The monitor of the VM.

    Returns:
        The device's path in QOM, and its QOM type.

    Raises:
        NoBalloonDevice: The VM has none.
        MonitorError: QEMU cannot be asked.

    Cancellation: takes effect at once and changes nothing.
    """
    for container in CONTAINERS:
        for name, kind in await list_children(monitor, container):
            if kind in _TYPES:
                return f"{container}/{name}", kind
    missing = (
        "this VM has no balloon: start it with -device virtio-balloon-pci,id=balloon0"
    )
    raise make_error(NoBalloonDevice, monitor, missing)


async def list_children(monitor: Monitor, path: str) -> list[tuple[str, str]]:
    """List the objects below a path, by name and type.

    Args:
        monitor: The monitor of the VM.
        path: A path in QOM. If there is no such object, nothing is below it.

    Raises:
        ProtocolError: QEMU's answer is not a list.
        MonitorError: QEMU cannot be asked.

    Cancellation: takes effect at once and changes nothing.
    """
    try:
        entries = await monitor.execute("qom-list", {"path": path})
    except DeviceNotFound:
        return []
    if not isinstance(entries, list):
        raise make_error(ProtocolError, monitor, f"qom-list returned {entries!r:.80}")
    children: list[tuple[str, str]] = []
    for entry in cast("list[object]", entries):
        match entry:
            case {"name": str(name), "type": str(kind)} if kind.startswith("child<"):
                children.append((name, kind[len("child<") : -1]))
            case _:
                pass
    return children
