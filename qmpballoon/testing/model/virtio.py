"""What QEMU shows of the virtio device behind the balloon."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from qmpballoon.testing.model.objects import balloon_path
from qmpballoon.testing.model.visit import QmpError

if TYPE_CHECKING:
    from qmpballoon.testing.model.machine import Machine
    from qmpballoon.testing.model.qobject import Value

__all__ = ["virtio_list", "virtio_status"]

_DRIVER_OK: Final = (
    "VIRTIO_CONFIG_S_ACKNOWLEDGE: Valid virtio device found",
    "VIRTIO_CONFIG_S_DRIVER: Guest OS compatible with device",
    "VIRTIO_CONFIG_S_FEATURES_OK: Feature negotiation complete",
    "VIRTIO_CONFIG_S_DRIVER_OK: Driver setup and ready",
)
_STATS: Final = "VIRTIO_BALLOON_F_STATS_VQ: Guest memory stats VQ available"
_POISON: Final = "VIRTIO_BALLOON_F_PAGE_POISON: Guest page poisoning enabled"
_DEFLATE: Final = "VIRTIO_BALLOON_F_DEFLATE_ON_OOM: Deflate balloon when guest OOM"
_REPORTING: Final = "VIRTIO_BALLOON_F_REPORTING: Page reporting VQ enabled"
_EVENT_IDX: Final = "VIRTIO_RING_F_EVENT_IDX: Used & avail. event fields enabled"
_RING_RESET: Final = "VIRTIO_F_RING_RESET: Driver can reset a queue individually"
_RING_RESET_BIT: Final = 1 << 40
_VERSION_1: Final = "VIRTIO_F_VERSION_1: Device compliant for v1 spec (legacy)"
_TRANSPORTS: Final = (
    _EVENT_IDX,
    "VIRTIO_RING_F_INDIRECT_DESC: Indirect descriptors supported",
    _RING_RESET,
    _VERSION_1,
    "VIRTIO_F_ANY_LAYOUT: Device accepts arbitrary desc. layouts",
    "VIRTIO_F_NOTIFY_ON_EMPTY: Notify when device runs out of avail. descs. on VQ",
)


def _backend_path(machine: Machine) -> str:
    path = balloon_path(machine)
    if machine.config.balloon == "virtio-balloon-device":
        return path
    return f"{path}/virtio-backend"


def virtio_list(machine: Machine) -> Value:
    """Return what ``x-query-virtio`` does."""
    if machine.device is None:
        if machine.profile.no_virtio_is_an_error:
            raise QmpError("No virtio devices found")
        return []
    return [{"path": _backend_path(machine), "name": "virtio-balloon"}]


def virtio_status(machine: Machine, path: str) -> Value:
    """Return what ``x-query-virtio-status`` does, in QEMU's order of members."""
    profile = machine.profile
    if machine.device is None or path != _backend_path(machine):
        raise QmpError(f"Path {path} is not a {profile.virtio_device_words}")
    if profile.virtio_status_aborts:
        machine.abort()
    ready = machine.guest.driver_ready
    none: dict[str, Value] = {"transports": [], "dev-features": []}
    offered = _offered(machine)
    return {
        "name": "virtio-balloon",
        "device-id": 5,
        "vhost-started": False,
        "device-endian": "little",
        "guest-features": _accepted(machine) if ready else none,
        "host-features": offered,
        "backend-features": none,
        "num-vqs": 3 + machine.config.free_page_reporting,
        "status": {"statuses": list(_DRIVER_OK) if ready else []},
        "isr": 0,
        "queue-sel": 2 if ready else 0,
        "vm-running": machine.running,
        "broken": False,
        "disabled": False,
        "use-started": True,
        "started": ready,
        "start-on-kick": False,
        "disable-legacy-check": False,
        "bus-name": "",
        "use-guest-notifier-mask": True,
    }


def _offered(machine: Machine) -> dict[str, Value]:
    config, profile = machine.config, machine.profile
    features = (
        (config.free_page_reporting, _REPORTING),
        (config.page_poison, _POISON),
        (config.deflate_on_oom, _DEFLATE),
        (True, _STATS),
    )
    return {
        "transports": _known(machine, _TRANSPORTS),
        "dev-features": [text for wanted, text in features if wanted],
        "unknown-dev-features": profile.unknown_virtio_features,
    }


def _accepted(machine: Machine) -> dict[str, Value]:
    """Return what Linux's driver takes of it."""
    config = machine.config
    features = (
        (config.free_page_reporting, _REPORTING),
        (config.deflate_on_oom, _DEFLATE),
        (True, _STATS),
    )
    accepted: dict[str, Value] = {
        "transports": _known(machine, (_EVENT_IDX, _RING_RESET, _VERSION_1)),
        "dev-features": [text for wanted, text in features if wanted],
    }
    if not machine.profile.names_ring_reset:
        accepted["unknown-dev-features"] = _RING_RESET_BIT
    return accepted


def _known(machine: Machine, transports: tuple[str, ...]) -> list[str]:
    """Return the features that this version has a name for."""
    named = machine.profile.names_ring_reset
    return [text for text in transports if named or text != _RING_RESET]
