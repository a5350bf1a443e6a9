"""The commands that plug memory and devices into a running VM.

Up to 9.1 QEMU turned the arguments of ``device_add`` into options of its command line
first, which are text. Later versions take each value as it is.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final, cast

from qmpballoon.testing.model.arguments import (
    Argument,
    QmpError,
    check_arguments,
    check_type,
)
from qmpballoon.testing.model.chardev_commands import (
    MONITORS,
    add_monitor,
    delete_monitor,
)
from qmpballoon.testing.model.config import SECOND
from qmpballoon.testing.model.dimms import add_backend, add_dimm, is_busy
from qmpballoon.testing.model.monitor import Command
from qmpballoon.testing.model.qobject import order_members
from qmpballoon.testing.model.vm import PERIPHERAL

if TYPE_CHECKING:
    from collections.abc import Callable

    from qmpballoon.testing.model.arguments import Kind
    from qmpballoon.testing.model.qobject import Value
    from qmpballoon.testing.model.vm import Vm

__all__ = ["build_plug_commands"]

_ANONYMOUS: Final = "/machine/peripheral-anon"
_UNPLUG_TIME: Final = SECOND // 10
"""How long the guest takes to release a DIMM: soon, but not at once."""

_ID: Final = re.compile(r"[A-Za-z][A-Za-z0-9._-]*")
_BAD_ID: Final = QmpError("Parameter 'id' expects an identifier")
_NUMBER: Final = re.compile(r"\s*[-+]?(0[xX][0-9a-fA-F]+|0[0-7]*|[1-9][0-9]*)")
_BUSES: Final = {"pcie.0": "PCIE", "isa.0": "ISA", "main-system-bus": "System"}
_ABSTRACT: Final = ("device", "pci-device", "virtio-pci")
_DIMMS: Final = ("pc-dimm", "nvdimm")
_POLICIES: Final = ("default", "preferred", "bind", "interleave")


def _check_kind(kind: Value) -> None:
    if kind != "memory-backend-ram":
        raise QmpError(f"Parameter 'qom-type' does not accept value '{kind}'")


def _check_host_nodes(nodes: Value) -> None:
    if any(node >> 16 for node in cast("list[int]", nodes)):
        raise QmpError("Parameter 'null' expects uint16_t")


def _check_policy(policy: Value) -> None:
    if policy not in _POLICIES:
        raise QmpError(f"Parameter 'policy' does not accept value '{policy}'")


def _check_threads(threads: Value) -> None:
    if cast("int", threads) >> 32:
        raise QmpError("Parameter 'prealloc-threads' expects uint32_t")


_BACKEND: Final = (
    Argument("qom-type", "string", check=_check_kind),
    Argument("id", "string"),
    Argument("dump", "boolean", optional=True),
    Argument("host-nodes", "uint64s", optional=True, check=_check_host_nodes),
    Argument("merge", "boolean", optional=True),
    Argument("policy", "string", optional=True, check=_check_policy),
    Argument("prealloc", "boolean", optional=True),
    Argument("prealloc-threads", "uint64", optional=True, check=_check_threads),
    Argument("prealloc-context", "string", optional=True),
    Argument("share", "boolean", optional=True),
    Argument("reserve", "boolean", optional=True),
    Argument("size", "uint64"),
    Argument("x-use-canonical-path-for-ramblock-id", "boolean", optional=True),
)


def build_plug_commands(vm: Vm) -> dict[str, Command]:
    """Return the commands that plug into a VM, and unplug from it."""
    identity = (Argument("id", "string"),)
    return {
        "object-add": Command(lambda a: _add_object(vm, a), schema=None),
        "object-del": Command(lambda a: _delete_object(vm, str(a["id"])), identity),
        "device_add": Command(lambda a: _add_device(vm, a), schema=None),
        "device_del": Command(lambda a: _delete_device(vm, str(a["id"])), identity),
        "query-memory-devices": Command(lambda _: _list_memory_devices(vm)),
    }


# Objects


def _add_object(vm: Vm, given: dict[str, Any]) -> Value:
    kind = given.get("qom-type")
    schema: tuple[Argument, ...] | None = None
    # A malformed type is refused as one that is unknown.
    if vm.profile.has_monitor_objects and isinstance(kind, str):
        schema = MONITORS.get(kind)
    check_arguments(schema or _BACKEND, given)
    if not _ID.fullmatch(given["id"]):
        raise _BAD_ID
    if schema:
        add_monitor(vm, given)
    else:
        _add_memory(vm, given)
    return {}


def _add_memory(vm: Vm, given: dict[str, Any]) -> None:
    kind, name = given["qom-type"], given["id"]
    for member, value in order_members(given):
        if member in {"size", "prealloc-threads"} and value == 0:
            raise QmpError(f"property '{member}' of {kind} doesn't take value '0'")
        if member == "prealloc-context":
            vm.tree.check_link(member, "thread-context", value)
    add_backend(vm, name, given["size"] % (1 << 64))
    _check_nodes(vm, given)


def _check_nodes(vm: Vm, given: dict[str, Any]) -> None:
    """Remove the new backend if its policy does not fit its nodes."""
    policy, nodes = given.get("policy", "default"), given.get("host-nodes", [])
    if bool(nodes) == (policy != "default"):
        return
    _remove_backend(vm, given["id"])
    if nodes:
        raise QmpError(
            "host-nodes must be empty for policy default, or you should explicitly"
            " specify a policy other than default"
        )
    raise QmpError(f"host-nodes must be set for policy {policy}")


def _delete_object(vm: Vm, name: str) -> Value:
    if f"/objects/{name}" not in vm.tree or not _ID.fullmatch(name):
        raise QmpError(f"object '{name}' not found")
    if name in vm.monitors:
        delete_monitor(vm, name)
        return {}
    if is_busy(vm, name):
        raise QmpError(vm.profile.busy_memory.format(name))
    _remove_backend(vm, name)
    return {}


def _remove_backend(vm: Vm, name: str) -> None:
    del vm.backends[name]
    vm.tree.remove_child("/objects", name)


def _list_memory_devices(vm: Vm) -> Value:
    return [
        {
            "type": "dimm",
            "data": {
                "memdev": f"/objects/{dimm.backend}",
                "hotplugged": True,
                "addr": dimm.address,
                "hotpluggable": True,
                "size": dimm.size,
                "slot": dimm.slot,
                "node": 0,
                **({} if dimm.id is None else {"id": dimm.id}),
            },
        }
        for dimm in sorted(vm.dimms.values(), key=lambda dimm: dimm.address)
    ]


# Devices


def _delete_device(vm: Vm, name: str) -> Value:
    tree = vm.tree
    path = tree.resolve(name if name.startswith("/") else f"{PERIPHERAL}/{name}", name)
    if path in vm.dimms:
        if vm.guest.driver_ready:
            vm.dimms[path].leaves_at = vm.guest.now + _UNPLUG_TIME
        return {}
    kind = tree[path].type
    if kind.endswith("-cpu"):
        raise QmpError("Boot CPU is unpluggable")
    if not kind.endswith(("-device", "-pci", "-transitional")):
        raise QmpError(vm.profile.not_a_device.format(name))
    bus = "virtio-bus" if kind == "virtio-balloon-device" else "pcie.0"
    raise QmpError(f"Bus '{bus}' does not support hotplugging")


def _add_device(vm: Vm, given: dict[str, Any]) -> Value:
    profile = vm.profile
    name = given.get("id") if isinstance(given.get("id"), str) else None
    if profile.devices_are_options:
        given = _convert_to_options(given)
        if name is not None and not _ID.fullmatch(name):
            raise _BAD_ID
    driver, bus = (
        text if isinstance(text := given.get(key), str) else None
        for key in ("driver", "bus")
    )
    if driver is None:
        raise QmpError("Parameter 'driver' is missing")
    _check_driver(vm, driver)
    _check_bus(vm, driver, bus)
    parent, name = _identify(vm, name)
    wanted = {
        key: _parse_property(vm, f"{parent}/{name}", key, value)
        for key, value in order_members(given)
        if key not in {"driver", "bus", "id"}
    }
    add_dimm(
        vm,
        parent,
        name,
        cast("str | None", wanted.get("memdev")),
        type_=driver,
        slot=cast("int", wanted.get("slot", -1)),
        address=cast("int", wanted.get("addr", 0)),
        node=cast("int", wanted.get("node", 0)),
    )
    return {}


def _convert_to_options(given: dict[str, Value]) -> dict[str, Value]:
    """Return values as options, which are text and leave some values out."""
    options: dict[str, Value] = {}
    for name, value in given.items():
        match value:
            case bool():
                options[name] = "on" if value else "off"
            case int() | str():
                options[name] = str(value)
            case float():
                options[name] = f"{value:.17g}"
            case _:
                pass
    return options


def _check_driver(vm: Vm, driver: str) -> None:
    kinds = {str(entry["name"]): entry for entry in vm.profile.types}
    abstract = kinds.get(driver, {}).get("abstract") or driver in _ABSTRACT
    if driver.startswith(("memory-backend", "monitor")) or not (
        abstract or driver in kinds
    ):
        raise QmpError(f"'{driver}' is not a valid device model name")
    if abstract:
        raise QmpError("Parameter 'driver' expects a non-abstract device type")


def _check_bus(vm: Vm, driver: str, bus: str | None) -> None:
    """Refuse devices that need a bus. Only DIMMs, which need none, are plugged in."""
    has_virtio_bus = bool(vm.config.balloon)
    is_pci = driver.startswith("virtio-balloon-pci")
    is_virtio = not is_pci and driver not in _DIMMS
    if bus == "virtio-bus" and has_virtio_bus and is_virtio:
        raise QmpError("Bus 'virtio-bus' is full")
    if bus is not None and bus not in _BUSES:
        raise QmpError(f"Bus '{bus}' not found")
    if bus is not None and not (is_pci and bus == "pcie.0"):
        raise QmpError(f"Device '{driver}' can't go on {_BUSES[bus]} bus")
    if is_pci:
        raise QmpError("Bus 'pcie.0' does not support hotplugging")
    if is_virtio and vm.profile.full_bus_is_found and has_virtio_bus:
        raise QmpError("A 'virtio-bus' bus was found but is full")
    if is_virtio:
        raise QmpError(f"No 'virtio-bus' bus found for device '{driver}'")


def _identify(vm: Vm, name: str | None) -> tuple[str, str]:
    """Return the path of the object that a device belongs to, and its name there."""
    if name is None:
        vm.anonymous += 1
        return _ANONYMOUS, f"device[{vm.anonymous - 1}]"
    if vm.profile.bad_device_id and not _ID.fullmatch(name):
        raise QmpError(vm.profile.bad_device_id.format(name))
    if vm.tree.has_child(PERIPHERAL, name):
        raise QmpError(f"Duplicate device ID '{name}'")
    return PERIPHERAL, name


def _parse_property(vm: Vm, path: str, name: str, value: Value) -> Value:
    """Return the value that a property of a new DIMM is set to.

    Args:
        vm: The VM.
        path: The path of the new DIMM.
        name: The property's name.
        value: The value as it was given.
    """
    known = vm.profile.properties["pc-dimm"]["qom-list-properties"]
    if all(entry["name"] != name for entry in known):
        raise QmpError(f"Property 'pc-dimm.{name}' not found")
    if name == "memdev":
        found = vm.tree.check_link(name, "memory-backend", value, itself=path)
        return None if found is None else found.rpartition("/")[2]
    if name not in _PARSERS:
        raise QmpError(f"Property 'pc-dimm.{name}' is not writable")
    return _PARSERS[name](vm, name, value)


def _parse_slot(vm: Vm, name: str, value: Value) -> Value:
    slot = _parse_number(vm, name, "integer", value)
    if not -(1 << 31) <= slot < 1 << 31:
        raise QmpError(f"Parameter '{name}' expects int32_t")
    return slot


def _parse_node(vm: Vm, name: str, value: Value) -> Value:
    node = _parse_number(vm, name, "uint64", value) % (1 << 64)
    if node >> 32:
        raise QmpError(f"Parameter '{name}' expects uint32_t")
    return node


def _parse_address(vm: Vm, name: str, value: Value) -> Value:
    return _parse_number(vm, name, "uint64", value) % (1 << 64)


def _parse_number(vm: Vm, name: str, kind: Kind, value: Value) -> int:
    if vm.profile.devices_are_options:
        text = str(value)
        if not _NUMBER.fullmatch(text):
            raise QmpError(f"Parameter '{name}' expects integer")
        digits = text.strip()
        octal = digits.lstrip("+-").startswith("0") and digits.lstrip("+-").isdigit()
        return int(digits, 8 if octal else 0)
    check_type(name, kind, value)
    return cast("int", value)


def _parse_realized(vm: Vm, name: str, value: Value) -> Value:
    if not vm.profile.devices_are_options:
        check_type(name, "boolean", value)
    return value


_PARSERS: Final[dict[str, Callable[[Vm, str, Value], Value]]] = {
    "slot": _parse_slot,
    "node": _parse_node,
    "addr": _parse_address,
    "realized": _parse_realized,
}
