"""What each command does."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Final

from qmpballoon.testing.model.hmp import run_hmp
from qmpballoon.testing.model.object_commands import object_commands
from qmpballoon.testing.model.plug_commands import plug_commands
from qmpballoon.testing.model.session import Command
from qmpballoon.testing.model.virtio import virtio_list, virtio_status
from qmpballoon.testing.model.visit import Argument, QmpError

if TYPE_CHECKING:
    from qmpballoon.testing.model.machine import Machine
    from qmpballoon.testing.model.qobject import Value

__all__ = ["build_commands"]

_NO_BALLOON: Final = QmpError("No balloon device has been activated", "DeviceNotActive")


def build_commands(machine: Machine) -> dict[str, Command]:
    """Return the commands of a machine's version, by name.

    Those that have nothing to do with ballooning are known, and refuse.
    """
    simulated = {
        **_status_commands(machine),
        **_balloon_commands(machine),
        **_query_commands(machine),
        **object_commands(machine),
        **plug_commands(machine),
    }
    return {
        name: simulated.get(name) or _not_simulated(name)
        for name in machine.profile.commands
    }


@functools.cache
def _not_simulated(name: str) -> Command:
    def run(_: dict[str, Value]) -> Value:
        raise QmpError(f"The simulated QEMU does not carry out {name}")

    return Command(run, schema=None)


def _status_commands(machine: Machine) -> dict[str, Command]:
    def query_status(_: dict[str, Value]) -> Value:
        status: dict[str, Value] = {"running": machine.running}
        if machine.profile.singlestep:
            status["singlestep"] = False
        return {**status, "status": machine.status}

    def stop(_: dict[str, Value]) -> Value:
        machine.stop()
        return {}

    def cont(_: dict[str, Value]) -> Value:
        machine.resume()
        return {}

    def system_reset(_: dict[str, Value]) -> Value:
        machine.reset(by_guest=False)
        return {}

    def quit_(_: dict[str, Value]) -> Value:
        machine.quit()
        return {}

    return {
        "query-status": Command(query_status),
        "stop": Command(stop),
        "cont": Command(cont),
        "system_reset": Command(system_reset),
        "quit": Command(quit_),
    }


def _balloon_commands(machine: Machine) -> dict[str, Command]:
    def balloon(arguments: dict[str, Any]) -> Value:
        if machine.device is None:
            raise _NO_BALLOON
        if arguments["value"] <= 0:
            name = machine.profile.size_parameter
            raise QmpError(f"Parameter '{name}' expects a size")
        machine.set_target(arguments["value"])
        return {}

    def query_balloon(_: dict[str, Value]) -> Value:
        if machine.device is None:
            raise _NO_BALLOON
        return {"actual": machine.device.actual(machine.guest.memory.ram)}

    def human(arguments: dict[str, Any]) -> Value:
        if arguments.get("cpu-index", 0) != 0:
            raise QmpError("Parameter 'cpu-index' expects a CPU number")
        return run_hmp(machine, arguments["command-line"])

    line = (
        Argument("command-line", "string"),
        Argument("cpu-index", "integer", optional=True),
    )
    return {
        "balloon": Command(balloon, (Argument("value", "integer"),)),
        "query-balloon": Command(query_balloon),
        "human-monitor-command": Command(human, line),
        "x-query-virtio": Command(lambda _: virtio_list(machine)),
        "x-query-virtio-status": Command(
            lambda arguments: virtio_status(machine, str(arguments["path"])),
            (Argument("path", "string"),),
        ),
    }


def _query_commands(machine: Machine) -> dict[str, Command]:
    config = machine.config

    def cpus(_: dict[str, Value]) -> Value:
        props: dict[str, Value] = {"core-id": 0, "thread-id": 0, "socket-id": 0}
        cpu: dict[str, Value] = {
            "thread-id": config.pid + 1,
            "props": props,
            "qom-path": "/machine/unattached/device[0]",
            "cpu-index": 0,
            "target": "x86_64",
        }
        if machine.profile.cpu_type_shown:
            cpu["qom-type"] = "qemu64-x86_64-cpu"
        if config.max_memory:
            props["node-id"] = 0
        return [cpu]

    def sizes(_: dict[str, Value]) -> Value:
        plugged = sum(dimm.size for dimm in machine.dimms.values())
        return {"base-memory": config.memory, "plugged-memory": plugged}

    def name(_: dict[str, Value]) -> Value:
        return {} if config.name is None else {"name": config.name}

    commands: list[Value] = [{"name": each} for each in machine.profile.commands]
    return {
        "query-commands": Command(lambda _: commands),
        "query-version": Command(lambda _: machine.profile.greeting["version"]),
        "query-name": Command(name),
        "query-uuid": Command(lambda _: {"UUID": config.uuid}),
        "query-cpus-fast": Command(cpus),
        "query-memory-size-summary": Command(sizes),
    }
