"""The monitor's commands: run state, balloon and queries, and the table of all.

Commands that have nothing to do with ballooning are known, and refuse.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Final

from qmpballoon.testing.model.arguments import (
    Argument,
    QmpError,
    make_simulated_refusal,
)
from qmpballoon.testing.model.chardev_commands import build_chardev_commands
from qmpballoon.testing.model.hmp import run_hmp
from qmpballoon.testing.model.monitor import Command
from qmpballoon.testing.model.object_commands import build_object_commands
from qmpballoon.testing.model.plug_commands import build_plug_commands
from qmpballoon.testing.model.recorded_queries import build_recorded_queries

if TYPE_CHECKING:
    from qmpballoon.testing.model.qobject import Value
    from qmpballoon.testing.model.vm import Vm

__all__ = ["build_commands"]

_READ_SIZE: Final = 128 << 10
"""Bytes of one read: Linux reads ahead so much by default (``VM_READAHEAD_PAGES``)."""

_OPERATIONS: Final = ("rd", "wr", "flush", "unmap")
_ZONE_APPEND: Final = "zone_append"

_NO_BALLOON: Final = QmpError("No balloon device has been activated", "DeviceNotActive")


def build_commands(vm: Vm) -> dict[str, Command]:
    """Return the commands of a VM's version, by name."""
    simulated = {
        **build_recorded_queries(vm),
        **_build_status_commands(vm),
        **_build_balloon_commands(vm),
        **_build_query_commands(vm),
        "query-blockstats": _build_block_statistics(vm),
        **build_object_commands(vm),
        **build_plug_commands(vm),
        **build_chardev_commands(vm),
    }
    return {
        name: simulated.get(name) or _make_refusal(name) for name in vm.profile.commands
    }


@functools.cache
def _make_refusal(name: str) -> Command:
    def run(_: dict[str, Value]) -> Value:
        raise make_simulated_refusal(name)

    return Command(run, schema=None)


def _build_status_commands(vm: Vm) -> dict[str, Command]:
    def query_status(_: dict[str, Value]) -> Value:
        status: dict[str, Value] = {"running": vm.running}
        if vm.profile.singlestep:
            status["singlestep"] = False
        return {**status, "status": vm.status}

    def stop(_: dict[str, Value]) -> Value:
        vm.stop()
        return {}

    def cont(_: dict[str, Value]) -> Value:
        vm.resume()
        return {}

    def system_reset(_: dict[str, Value]) -> Value:
        vm.reset(by_guest=False)
        return {}

    def quit_(_: dict[str, Value]) -> Value:
        vm.quit()
        return {}

    return {
        "query-status": Command(query_status),
        "stop": Command(stop),
        "cont": Command(cont),
        "system_reset": Command(system_reset),
        "quit": Command(quit_),
    }


def _build_balloon_commands(vm: Vm) -> dict[str, Command]:
    def balloon(arguments: dict[str, Any]) -> Value:
        if vm.device is None:
            raise _NO_BALLOON
        if arguments["value"] <= 0:
            name = vm.profile.size_parameter
            raise QmpError(f"Parameter '{name}' expects a size")
        vm.set_target(arguments["value"])
        return {}

    def query_balloon(_: dict[str, Value]) -> Value:
        if vm.actual is None:
            raise _NO_BALLOON
        return {"actual": vm.actual}

    def human(arguments: dict[str, Any]) -> Value:
        if arguments.get("cpu-index", 0) != 0:
            raise QmpError("Parameter 'cpu-index' expects a CPU number")
        return run_hmp(vm, arguments["command-line"])

    line = (
        Argument("command-line", "string"),
        Argument("cpu-index", "integer", optional=True),
    )
    return {
        "balloon": Command(balloon, (Argument("value", "integer"),)),
        "query-balloon": Command(query_balloon),
        "human-monitor-command": Command(human, line),
    }


def _build_query_commands(vm: Vm) -> dict[str, Command]:
    config = vm.config

    def cpus(_: dict[str, Value]) -> Value:
        props: dict[str, Value] = {"core-id": 0, "thread-id": 0, "socket-id": 0}
        cpu: dict[str, Value] = {
            "thread-id": config.pid + 1,
            "props": props,
            "qom-path": "/machine/unattached/device[0]",
            "cpu-index": 0,
            "target": "x86_64",
        }
        if vm.profile.cpu_type_shown:
            cpu["qom-type"] = "qemu64-x86_64-cpu"
        if config.max_memory:
            props["node-id"] = 0
        return [cpu]

    def sizes(_: dict[str, Value]) -> Value:
        plugged = sum(dimm.size for dimm in vm.dimms.values())
        return {"base-memory": config.memory, "plugged-memory": plugged}

    def name(_: dict[str, Value]) -> Value:
        return {} if config.name is None else {"name": config.name}

    commands: list[Value] = [{"name": each} for each in vm.profile.commands]
    return {
        "query-commands": Command(lambda _: commands),
        "query-version": Command(lambda _: vm.profile.greeting["version"]),
        "query-name": Command(name),
        # A simulated VM is never migrated.
        "query-migrate": Command(lambda _: {}),
        "query-uuid": Command(lambda _: {"UUID": config.uuid}),
        "query-cpus-fast": Command(cpus),
        "query-memory-size-summary": Command(sizes),
    }


def _build_block_statistics(vm: Vm) -> Command:
    def block_statistics(_: dict[str, Value]) -> Value:
        # A simulated VM has no nodes below its disks to list.
        return [_describe_disk(vm, number) for number in range(vm.config.disks)]

    schema = (Argument("query-nodes", "boolean", optional=True),)
    return Command(block_statistics, schema)


def _describe_disk(vm: Vm, number: int) -> dict[str, Value]:
    """Return what QEMU tells of a virtio-blk device."""
    kinds = (*_OPERATIONS, _ZONE_APPEND) if vm.profile.zones else _OPERATIONS
    stats: dict[str, Value] = {}
    for kind in kinds:
        stats[f"{kind}_operations"] = stats[f"{kind}_total_time_ns"] = 0
        stats[f"failed_{kind}_operations"] = stats[f"invalid_{kind}_operations"] = 0
        if kind != "flush":
            stats[f"{kind}_bytes"] = stats[f"{kind}_merged"] = 0
    stats |= {"wr_highest_offset": 0, "timed_stats": []}
    stats |= {"account_invalid": True, "account_failed": True}
    if number == 0:
        read = vm.guest.read
        stats |= {"rd_bytes": read, "rd_operations": -(-read // _READ_SIZE)}
    return {
        "device": "",
        "stats": stats,
        "node-name": f"disk{number}",
        "qdev": f"/machine/peripheral-anon/device[{number}]/virtio-backend",
    }
