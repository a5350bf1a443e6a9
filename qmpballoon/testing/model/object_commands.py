"""The commands about QEMU's objects: properties, types and virtio devices."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Final

from qmpballoon.testing.model.arguments import Argument, QmpError
from qmpballoon.testing.model.monitor import Command
from qmpballoon.testing.model.objects import find_balloon_path
from qmpballoon.testing.model.qom import AmbiguousPath, make_not_found

if TYPE_CHECKING:
    from collections.abc import Callable

    from qmpballoon.testing.model.qobject import Value
    from qmpballoon.testing.model.qom import Node
    from qmpballoon.testing.model.vm import Vm

__all__ = ["build_object_commands"]

_PATH: Final = Argument("path", "string")
_PROPERTY: Final = Argument("property", "string")

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


def build_object_commands(vm: Vm) -> dict[str, Command]:
    """Return the commands about a VM's objects."""
    return {
        **_build_qom_commands(vm),
        **_build_type_commands(vm),
        "x-query-virtio": Command(lambda _: _list_virtio(vm)),
        "x-query-virtio-status": Command(
            lambda arguments: _read_virtio_status(vm, str(arguments["path"])), (_PATH,)
        ),
    }


# Properties


def _build_qom_commands(vm: Vm) -> dict[str, Command]:
    tree = vm.tree

    def find(path: str) -> Node:
        try:
            return tree[tree.resolve(path)]
        except AmbiguousPath:
            raise make_not_found(path) from None

    def qom_list(arguments: dict[str, Any]) -> Value:
        node = tree[tree.resolve(arguments["path"])]
        return [{"name": p.name, "type": p.type} for p in node.properties.values()]

    def qom_get(arguments: dict[str, Any]) -> Value:
        return find(arguments["path"]).find(arguments["property"]).get()

    def qom_set(arguments: dict[str, Any]) -> Value:
        found = find(arguments["path"]).find(arguments["property"])
        if found.target:
            tree.check_link(found.name, found.target, arguments["value"])
        found.set(arguments["value"])
        return {}

    def qom_list_get(arguments: dict[str, Any]) -> Value:
        return [{"properties": _read_all(vm, path)} for path in arguments["paths"]]

    return {
        "qom-list": Command(qom_list, (_PATH,)),
        "qom-get": Command(qom_get, (_PATH, _PROPERTY)),
        "qom-set": Command(qom_set, (_PATH, _PROPERTY, Argument("value", "any"))),
        "qom-list-get": Command(qom_list_get, (Argument("paths", "strings"),)),
    }


def _read_all(vm: Vm, path: str) -> Value:
    """Return an object's properties, with their values where those can be read."""
    result: list[Value] = []
    for each in vm.tree[vm.tree.resolve(path)].properties.values():
        entry: dict[str, Value] = {"name": each.name, "type": each.type}
        with contextlib.suppress(QmpError):
            entry["value"] = each.get()
        result.append(entry)
    return result


# Types


def _build_type_commands(vm: Vm) -> dict[str, Command]:
    types = vm.profile.types
    parents = {str(t["name"]): t.get("parent") for t in types}

    def implements(name: Value, ancestor: str) -> bool:
        while name is not None and name != ancestor:
            name = parents.get(str(name))
        return name is not None

    def list_types(arguments: dict[str, Any]) -> Value:
        ancestor = arguments.get("implements")
        return [
            entry
            for entry in types
            if (ancestor is None or implements(entry["name"], ancestor))
            and (arguments.get("abstract") or not entry.get("abstract"))
        ]

    def properties(command: str) -> Callable[[dict[str, Any]], Value]:
        def run(arguments: dict[str, Any]) -> Value:
            name = arguments["typename"]
            found = vm.profile.properties.get(name, {})
            if command not in found:
                if name in parents and command.startswith("device"):
                    raise QmpError(
                        "Parameter 'typename' expects a non-abstract device type"
                    )
                what = "Class" if command.startswith("qom") else "Device"
                raise QmpError(f"{what} '{name}' not found", "DeviceNotFound")
            return found[command]

        return run

    typename = (Argument("typename", "string"),)
    return {
        "qom-list-types": Command(
            list_types,
            (
                Argument("implements", "string", optional=True),
                Argument("abstract", "boolean", optional=True),
            ),
        ),
        **{
            name: Command(properties(name), typename)
            for name in ("qom-list-properties", "device-list-properties")
        },
    }


# Virtio devices


def _find_backend_path(vm: Vm) -> str:
    path = find_balloon_path(vm.config)
    if vm.config.balloon == "virtio-balloon-device":
        return path
    return f"{path}/virtio-backend"


def _list_virtio(vm: Vm) -> Value:
    """Return the virtio devices, as ``x-query-virtio`` does."""
    if vm.device is None:
        if vm.profile.no_virtio_is_an_error:
            raise QmpError("No virtio devices found")
        return []
    return [{"path": _find_backend_path(vm), "name": "virtio-balloon"}]


def _read_virtio_status(vm: Vm, path: str) -> Value:
    """Return a virtio device's status, as ``x-query-virtio-status`` does.

    The members are in QEMU's order.
    """
    profile = vm.profile
    if vm.device is None or path != _find_backend_path(vm):
        raise QmpError(f"Path {path} is not a {profile.virtio_device_words}")
    if profile.virtio_status_aborts:
        vm.abort()
    ready = vm.guest.driver_ready
    none: dict[str, Value] = {"transports": [], "dev-features": []}
    offered = _list_offered(vm)
    return {
        "name": "virtio-balloon",
        "device-id": 5,
        "vhost-started": False,
        "device-endian": "little",
        "guest-features": _list_accepted(vm) if ready else none,
        "host-features": offered,
        "backend-features": none,
        "num-vqs": 3 + vm.config.free_page_reporting,
        "status": {"statuses": list(_DRIVER_OK) if ready else []},
        "isr": 0,
        "queue-sel": 2 if ready else 0,
        "vm-running": vm.running,
        "broken": False,
        "disabled": False,
        "use-started": True,
        "started": ready,
        "start-on-kick": False,
        "disable-legacy-check": False,
        "bus-name": "",
        "use-guest-notifier-mask": True,
    }


def _list_offered(vm: Vm) -> dict[str, Value]:
    """Return the features that the device offers."""
    config, profile = vm.config, vm.profile
    features = (
        (config.free_page_reporting, _REPORTING),
        (config.page_poison, _POISON),
        (config.deflate_on_oom, _DEFLATE),
        (True, _STATS),
    )
    return {
        "transports": _select_named(vm, _TRANSPORTS),
        "dev-features": [text for wanted, text in features if wanted],
        "unknown-dev-features": profile.unknown_virtio_features,
    }


def _list_accepted(vm: Vm) -> dict[str, Value]:
    """Return the features that Linux's driver accepts."""
    config = vm.config
    features = (
        (config.free_page_reporting, _REPORTING),
        (config.deflate_on_oom, _DEFLATE),
        (True, _STATS),
    )
    accepted: dict[str, Value] = {
        "transports": _select_named(vm, (_EVENT_IDX, _RING_RESET, _VERSION_1)),
        "dev-features": [text for wanted, text in features if wanted],
    }
    if not vm.profile.names_ring_reset:
        accepted["unknown-dev-features"] = _RING_RESET_BIT
    return accepted


def _select_named(vm: Vm, transports: tuple[str, ...]) -> list[str]:
    """Return the transport features that this version has a name for."""
    named = vm.profile.names_ring_reset
    return [text for text in transports if named or text != _RING_RESET]
