"""The commands that look at QEMU's objects and their types."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Final

from qmpballoon.testing.model.qom import AmbiguousPath, device_not_found
from qmpballoon.testing.model.session import Command
from qmpballoon.testing.model.visit import Argument, QmpError

if TYPE_CHECKING:
    from collections.abc import Callable

    from qmpballoon.testing.model.machine import Machine
    from qmpballoon.testing.model.qobject import Value
    from qmpballoon.testing.model.qom import Node

__all__ = ["object_commands"]

_PATH: Final = Argument("path", "string")
_PROPERTY: Final = Argument("property", "string")


def object_commands(machine: Machine) -> dict[str, Command]:
    """Return the commands about objects."""
    return {**_qom_commands(machine), **_type_commands(machine)}


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
        if found.target:
            tree.check_link(found.name, found.target, arguments["value"])
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
