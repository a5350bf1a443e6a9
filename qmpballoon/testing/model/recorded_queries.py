"""Queries that have nothing to do with ballooning, answered as QEMU was recorded to.

Orchestrators ask them before anything else. Their answers were read from a QEMU of the
version with one disk, and are in the profile; the long ones are in files of their own.
What of them depends on the VM (its memory, its disks, whether its processor has a NUMA
node) is put in here.
"""

from __future__ import annotations

import copy
import functools
import json
from typing import TYPE_CHECKING, Any, Final, cast

from qmpballoon.testing.model.arguments import (
    Argument,
    QmpError,
    make_simulated_refusal,
)
from qmpballoon.testing.model.monitor import Command
from qmpballoon.testing.model.profiles import LONG_ANSWERS_OF, load_long_answers

if TYPE_CHECKING:
    from collections.abc import Callable

    from qmpballoon.testing.model.qobject import Value
    from qmpballoon.testing.model.vm import Vm

__all__ = ["build_recorded_queries"]

_SCHEMAS: Final = {
    "query-machines": (Argument("compat-props", "boolean", optional=True),),
    "query-named-block-nodes": (Argument("flat", "boolean", optional=True),),
    "query-rx-filter": (Argument("name", "string", optional=True),),
}
_LONG: Final = {
    "query-qmp-schema": (),
    "query-cpu-definitions": (),
    "query-command-line-options": (Argument("option", "string", optional=True),),
}
_WITH_COMPAT_PROPS: Final = "acpi"  # these came to query-machines together


def build_recorded_queries(vm: Vm) -> dict[str, Command]:
    """Return the queries that are answered as they were recorded, by name."""
    depending: dict[str, Callable[[Value], Value]] = {
        "query-memdev": functools.partial(_list_memory, vm),
        "query-hotpluggable-cpus": functools.partial(_list_cpus, vm),
        "query-block": functools.partial(_list_disks, vm),
        "query-named-block-nodes": functools.partial(_list_nodes, vm),
    }
    commands: dict[str, Command] = {}
    for name, answer in vm.profile.answers.items():
        adapt = depending.get(name)
        commands[name] = Command(
            functools.partial(_answer, name, answer, adapt),
            _choose_schema(name, answer),
        )
    if vm.profile.version in LONG_ANSWERS_OF:
        for name, schema in _LONG.items():
            run = functools.partial(_answer_at_length, vm, name)
            commands[name] = Command(run, schema)
    return commands


def _answer_at_length(vm: Vm, name: str, arguments: dict[str, Value]) -> Value:
    value: list[Value] = load_long_answers(vm.profile.version)[name]["return"]
    if "option" not in arguments:
        return value
    wanted = arguments["option"]
    options = cast("list[dict[str, Value]]", value)
    found: list[Value] = [each for each in options if each["option"] == wanted]
    if not found:
        raise QmpError(f"invalid option name: {wanted}")
    return found


def _choose_schema(name: str, answer: dict[str, Any]) -> tuple[Argument, ...]:
    if name == "query-machines" and _WITH_COMPAT_PROPS not in answer["return"][0]:
        return ()
    return _SCHEMAS.get(name, ())


def _answer(
    name: str,
    answer: dict[str, Any],
    adapt: Callable[[Value], Value] | None,
    arguments: dict[str, Value],
) -> Value:
    if "error" in answer:
        raise QmpError(answer["error"]["desc"], answer["error"]["class"])
    if any(arguments.values()):
        raise make_simulated_refusal(f"{name} with these arguments")
    value: Value = answer["return"]
    return value if adapt is None else adapt(value)


def _list_memory(vm: Vm, recorded: Value) -> Value:
    (main,) = cast("list[dict[str, Value]]", recorded)
    sizes = {str(main["id"]): vm.config.memory, **vm.backends}
    return [{**main, "id": name, "size": size} for name, size in sizes.items()]


def _list_cpus(vm: Vm, recorded: Value) -> Value:
    (cpu,) = cast("list[dict[str, Any]]", recorded)
    # With room for DIMMs, QEMU makes a NUMA node.
    node: dict[str, Value] = {"node-id": 0} if vm.config.max_memory else {}
    return [{**cpu, "props": {**cpu["props"], **node}}]


def _list_disks(vm: Vm, recorded: Value) -> Value:
    return [_adapt_disk(vm, recorded, number) for number in range(vm.config.disks)]


def _list_nodes(vm: Vm, recorded: Value) -> Value:
    """Return the disks' nodes, the newest first as in QEMU."""
    numbers = reversed(range(vm.config.disks))
    return [_adapt_node(vm, recorded, number) for number in numbers]


def _adapt_disk(vm: Vm, recorded: Value, number: int) -> Value:
    (disk,) = cast("list[dict[str, Value]]", recorded)
    path = f"/machine/peripheral-anon/device[{number}]/virtio-backend"
    node = _adapt_node(vm, [disk["inserted"]], number)
    return {**disk, "inserted": node, "qdev": path}


def _adapt_node(vm: Vm, recorded: Value, number: int) -> Value:
    (node,) = cast("list[dict[str, Any]]", copy.deepcopy(recorded))
    size = vm.config.memory  # a simulated disk has no size of its own
    file = node["file"].replace(
        json.dumps(node["image"]["virtual-size"]), json.dumps(size)
    )
    node["image"] |= {"virtual-size": size, "filename": file}
    return {**node, "file": file, "node-name": f"disk{number}"}
