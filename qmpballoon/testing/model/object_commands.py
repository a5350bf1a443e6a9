"""The commands that look at QEMU's objects, and those that plug memory in."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Final

from qmpballoon.testing.model.objects import add_backend, add_dimm
from qmpballoon.testing.model.qom import AmbiguousPath, device_not_found
from qmpballoon.testing.model.session import Command
from qmpballoon.testing.model.visit import Argument, QmpError, check_type

if TYPE_CHECKING:
    from collections.abc import Callable

    from qmpballoon.testing.machine import Machine
    from qmpballoon.testing.model.qobject import Value
    from qmpballoon.testing.model.qom import Node

__all__ = ["object_commands"]

_PATH: Final = Argument("path", "string")
_PROPERTY: Final = Argument("property", "string")
_UNPLUG_TIME: Final = 100_000_000


def object_commands(machine: Machine) -> dict[str, Command]:
    """Return the commands about objects."""
    return {**_qom_commands(machine), **_type_commands(machine), **_plug(machine)}


def _qom_commands(machine: Machine) -> dict[str, Command]:
    tree = machine.tree

    def find(path: str) -> Node:
        try:
            return tree[tree.resolve(path)]
        except AmbiguousPath:
            raise device_not_found(path) from None

    def qom_list(arguments: dict[str, Any]) -> Value:
        node = tree[tree.resolve(arguments["path"])]
        return [{"name": p.name, "type": p.type} for p in node.properties.values()]

    def qom_get(arguments: dict[str, Any]) -> Value:
        return find(arguments["path"]).find(arguments["property"]).get()

    def qom_set(arguments: dict[str, Any]) -> Value:
        found = find(arguments["path"]).find(arguments["property"])
        found.set(arguments["value"])
        return {}

    def qom_list_get(arguments: dict[str, Any]) -> Value:
        return [{"properties": _read_all(machine, path)} for path in arguments["paths"]]

    return {
        "qom-list": Command(qom_list, (_PATH,)),
        "qom-get": Command(qom_get, (_PATH, _PROPERTY)),
        "qom-set": Command(qom_set, (_PATH, _PROPERTY, Argument("value", "any"))),
        "qom-list-get": Command(qom_list_get, (Argument("paths", "strings"),)),
    }


def _read_all(machine: Machine, path: str) -> Value:
    """Return an object's properties, with the values of those that can be read."""
    result: list[Value] = []
    for each in machine.tree[machine.tree.resolve(path)].properties.values():
        entry: dict[str, Value] = {"name": each.name, "type": each.type}
        with contextlib.suppress(QmpError):
            entry["value"] = each.get()
        result.append(entry)
    return result


def _type_commands(machine: Machine) -> dict[str, Command]:
    types = machine.profile.types
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
            found = machine.profile.properties.get(name, {})
            if command not in found:
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


def _plug(machine: Machine) -> dict[str, Command]:
    identity = (Argument("id", "string"),)
    return {
        "object-add": Command(lambda a: _object_add(machine, a), schema=None),
        "object-del": Command(lambda a: _object_del(machine, str(a["id"])), identity),
        "device_add": Command(lambda a: _device_add(machine, a), schema=None),
        "device_del": Command(lambda a: _device_del(machine, str(a["id"])), identity),
        "query-memory-devices": Command(lambda _: _memory_devices(machine)),
    }


def _object_add(machine: Machine, arguments: dict[str, Any]) -> Value:
    for name in ("qom-type", "id"):
        if name not in arguments:
            raise QmpError(f"Parameter '{name}' is missing")
        check_type(name, "string", arguments[name])
    if arguments["qom-type"] != "memory-backend-ram":
        raise QmpError(
            f"Parameter 'qom-type' does not accept value '{arguments['qom-type']}'"
        )
    if "size" not in arguments:
        raise QmpError("Parameter 'size' is missing")
    check_type("size", "uint64", arguments["size"])
    add_backend(machine, arguments["id"], arguments["size"])
    return {}


def _object_del(machine: Machine, name: str) -> Value:
    if name not in machine.backends:
        raise QmpError(f"object '{name}' not found")
    if any(dimm.backend == name for dimm in machine.dimms.values()):
        raise QmpError(machine.profile.busy_memory.format(name))
    del machine.backends[name]
    machine.tree.remove(f"/objects/{name}")
    return {}


def _device_del(machine: Machine, name: str) -> Value:
    if name in machine.dimms:
        if machine.guest.driver_ready:
            machine.dimms[name].leaves_at = machine.guest.now + _UNPLUG_TIME
        return {}
    if f"/machine/peripheral/{name}" not in machine.tree:
        raise device_not_found(name)
    raise QmpError("Bus 'pcie.0' does not support hotplugging")


def _device_add(machine: Machine, arguments: dict[str, Any]) -> Value:
    driver = arguments.get("driver")
    if driver is None:
        raise QmpError("Parameter 'driver' is missing")
    if driver == "virtio-balloon-pci":
        raise QmpError("Bus 'pcie.0' does not support hotplugging")
    if driver != "pc-dimm":
        raise QmpError(f"'{driver}' is not a valid device model name")
    name = arguments.get("id", f"device[{len(machine.dimms)}]")
    if f"/machine/peripheral/{name}" in machine.tree:
        raise QmpError(f"Duplicate device ID '{name}'")
    backend = arguments.get("memdev")
    if backend is None:
        raise QmpError("'memdev' property must be set")
    if backend not in machine.backends:
        raise device_not_found(backend)
    if any(dimm.backend == backend for dimm in machine.dimms.values()):
        raise QmpError(f"can't use already busy memdev: {backend}")
    add_dimm(machine, name, backend)
    return {}


def _memory_devices(machine: Machine) -> Value:
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
                "id": name,
            },
        }
        for name, dimm in machine.dimms.items()
    ]
