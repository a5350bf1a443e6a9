"""The commands about file descriptors, character devices, and monitors on them.

Character devices can be made of sockets that clients hand over, and of nothing
(``null``). Others are refused.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Final

from qmpballoon.testing.model.arguments import (
    Argument,
    QmpError,
    check_arguments,
    check_type,
)
from qmpballoon.testing.model.chardevs import (
    SHARED,
    Chardev,
    HmpMonitor,
    Monitor,
    QmpMonitor,
)
from qmpballoon.testing.model.monitor import Command

if TYPE_CHECKING:
    from collections.abc import Mapping

    from qmpballoon.testing.model.arguments import Kind
    from qmpballoon.testing.model.qobject import Value
    from qmpballoon.testing.model.vm import Vm

__all__ = [
    "MONITORS",
    "add_monitor",
    "add_shared_monitor",
    "build_chardev_commands",
    "delete_monitor",
    "note_client_left",
]

_CHARDEVS: Final = "/chardevs"
_OBJECTS: Final = "/objects"
_SOCKET: Final = "chardev-socket"

_QMP: Final = "monitor-qmp"
_HMP: Final = "monitor-hmp"

# QEMU's other kinds. All three lists are those of QEMU 7.2 to 11.1.
_OTHER_BACKENDS: Final = frozenset(
    {
        *("file", "serial", "parallel", "pipe", "udp", "pty", "mux", "msmouse"),
        *("wctablet", "braille", "testdev", "stdio", "console", "spicevmc"),
        *("spiceport", "qemu-vdagent", "dbus", "vc", "ringbuf", "memory", "hub"),
    }
)
_OTHER_ADDRESSES: Final = frozenset({"inet", "unix", "vsock"})
_OTHER_OPTIONS: Final = frozenset(
    {
        *("logfile", "logappend", "tls-creds", "tls-authz", "wait", "telnet"),
        *("tn3270", "websocket", "reconnect", "reconnect-ms"),
    }
)


def _check_close_action(action: Value) -> None:
    if action not in {"none", "delete"}:
        raise QmpError(f"Parameter 'close-action' does not accept value '{action}'")


def _check_pretty(pretty: Value) -> None:
    if pretty:
        raise QmpError("The simulated QEMU does not print pretty JSON")


_MONITOR: Final = (
    Argument("qom-type", "string"),
    Argument("id", "string"),
    Argument("chardev", "string"),
)

MONITORS: Final[Mapping[str, tuple[Argument, ...]]] = {
    _QMP: (
        *_MONITOR,
        Argument("pretty", "boolean", optional=True, check=_check_pretty),
        Argument("close-action", "string", optional=True, check=_check_close_action),
    ),
    _HMP: (*_MONITOR, Argument("readline", "boolean", optional=True)),
}
"""The arguments of ``object-add`` for monitors, by their objects' type."""


def build_chardev_commands(vm: Vm) -> dict[str, Command]:
    """Return the commands about a VM's descriptors and character devices."""
    file = (Argument("fdname", "string"),)
    identity = (Argument("id", "string"),)
    return {
        "getfd": Command(lambda a: _get_file(vm, str(a["fdname"])), file),
        "closefd": Command(lambda a: _close_file(vm, str(a["fdname"])), file),
        "chardev-add": Command(
            lambda a: _add_chardev(vm, a), (*identity, Argument("backend", "object"))
        ),
        "chardev-remove": Command(lambda a: _remove(vm, str(a["id"])), identity),
        "query-chardev": Command(lambda _: _list_chardevs(vm)),
    }


# Descriptors


def _get_file(vm: Vm, name: str) -> Value:
    descriptor = vm.current_monitor.take_received()
    if descriptor is None:
        raise QmpError("No file descriptor supplied via SCM_RIGHTS")
    if name[:1].isdigit():
        descriptor.close()
        raise QmpError("Parameter 'fdname' expects a name not starting with a digit")
    vm.current_monitor.name_file(name, descriptor)
    return {}


def _close_file(vm: Vm, name: str) -> Value:
    if not vm.current_monitor.close_file(name):
        raise QmpError(f"File descriptor named '{name}' not found")
    return {}


# Character devices


def _add_chardev(vm: Vm, given: dict[str, Any]) -> Value:
    name, backend = given["id"], given["backend"]
    file = _read_backend(backend)
    if name in vm.chardevs:
        raise QmpError(f"Chardev with id '{name}' already exists")
    if file is None:
        _put_chardev(vm, Chardev(name, "chardev-null"))
        return {}
    problem = _find_problem(vm, backend, file)
    if problem:
        vm.current_monitor.close_file(file)
        raise QmpError(f"Failed to add chardev '{name}': {problem}")
    descriptor = vm.current_monitor.files.pop(file)
    _put_chardev(vm, Chardev(name, _SOCKET, file, descriptor))
    return {}


def _find_problem(vm: Vm, backend: dict[str, Any], file: str) -> str:
    """Return why a socket cannot be made of a named descriptor; empty: it can."""
    found = vm.current_monitor.files.get(file)
    if found is None:
        return f"File descriptor named '{file}' has not been found"
    if not found.is_socket:
        return f"File descriptor '{file}' is not a socket"
    if backend["data"].get("server", True):
        return "Failed to listen on fd socket: Invalid argument"
    return ""


def _read_backend(backend: dict[str, Any]) -> str | None:
    """Return the name of the descriptor that a backend is made of, if of any."""
    kind = _read(backend, "backend.type", "string")
    if kind in _OTHER_BACKENDS:
        raise QmpError(f"The simulated QEMU has no character devices of type {kind}")
    if kind not in {"null", "socket"}:
        raise QmpError(f"Parameter 'type' does not accept value '{kind}'")
    data = _read(backend, "backend.data", "object")
    file = None
    if kind == "socket":
        address = _read(data, "backend.data.addr", "object")
        file = _read_address(address)
        for name in ("server", "nodelay"):
            _read(data, f"backend.data.{name}", "boolean", optional=True)
        if other := sorted(_OTHER_OPTIONS & data.keys()):
            raise QmpError(f"The simulated QEMU does not know the option {other[0]}")
        _refuse_others(data, "backend.data", "addr", "server", "nodelay")
    else:
        _refuse_others(data, "backend.data")
    _refuse_others(backend, "backend", "type", "data")
    return file


def _read_address(address: dict[str, Any]) -> str:
    """Return the name of the descriptor that a socket's address is."""
    place = "backend.data.addr"
    kind = _read(address, f"{place}.type", "string")
    if kind in _OTHER_ADDRESSES:
        raise QmpError(f"The simulated QEMU has no sockets of type {kind}")
    if kind != "fd":
        raise QmpError(f"Parameter 'type' does not accept value '{kind}'")
    data = _read(address, f"{place}.data", "object")
    name = str(_read(data, f"{place}.data.str", "string"))
    _refuse_others(data, f"{place}.data", "str")
    _refuse_others(address, place, "type", "data")
    return name


def _read(
    members: dict[str, Any], place: str, kind: Kind, *, optional: bool = False
) -> Any:  # noqa: ANN401 - a value of that kind
    """Return the member at a place, whose last part is its name."""
    name = place.rpartition(".")[2]
    given = {place: members[name]} if name in members else {}
    check_arguments((Argument(place, kind, optional=optional),), given)
    return members.get(name)


def _refuse_others(members: dict[str, Any], place: str, *names: str) -> None:
    for name in members:
        if name not in names:
            raise QmpError(f"Parameter '{place}.{name}' is unexpected")


def _put_chardev(vm: Vm, chardev: Chardev) -> None:
    """Add a character device, and its object."""
    vm.chardevs[chardev.name] = chardev
    entries: list[dict[str, Any]] = []
    if chardev.type == _SOCKET:
        entries = [
            {"name": "connected", "type": "bool"},
            {"name": "addr", "type": "SocketAddress"},
        ]
    node = vm.tree.add_child(_CHARDEVS, chardev.name, chardev.type, entries=entries)
    node.override("connected", lambda: _is_connected(vm, chardev))
    node.override("addr", lambda: _read_own_address(vm, chardev))


def _is_connected(vm: Vm, chardev: Chardev) -> bool:
    if chardev.name == SHARED:
        return vm.has_shared_client
    if chardev.is_served or chardev.descriptor is None:
        return chardev.is_served
    return chardev.descriptor.is_connected


def _read_own_address(vm: Vm, chardev: Chardev) -> Value:
    if chardev.name == SHARED:
        return {"path": vm.monitor_path, "type": "unix"}
    return {"str": chardev.file, "type": "fd"}


def _remove(vm: Vm, name: str) -> Value:
    if name not in vm.chardevs:
        raise QmpError(f"Chardev '{name}' not found")
    if vm.chardevs[name].is_busy:
        raise QmpError(f"Chardev '{name}' is busy")
    _remove_chardev(vm, name)
    return {}


def _remove_chardev(vm: Vm, name: str) -> None:
    vm.chardevs.pop(name).close()
    vm.tree.remove_child(_CHARDEVS, name)


def _list_chardevs(vm: Vm) -> Value:
    return [
        {
            "frontend-open": each.is_busy,
            "filename": _describe(vm, each),
            "label": each.name,
        }
        for each in vm.chardevs.values()
    ]


def _describe(vm: Vm, chardev: Chardev) -> str:
    """Return what QEMU calls a character device's other end."""
    connected = _is_connected(vm, chardev)
    if chardev.name == SHARED:
        left = "" if connected else "disconnected:"
        return f"{left}unix:{vm.monitor_path},server=on"
    if chardev.type != _SOCKET:
        return "null"
    return "unix:" if connected else f"disconnected:fd:{chardev.file}"


# Monitors


def add_shared_monitor(vm: Vm) -> None:
    """Add the monitor that QEMU is started with."""
    _put_chardev(vm, Chardev(SHARED, _SOCKET, is_busy=True))
    vm.monitors[SHARED] = vm.current_monitor
    if vm.profile.has_monitor_objects:
        _show_qmp_monitor(vm, vm.current_monitor)


def add_monitor(vm: Vm, given: dict[str, Any]) -> None:
    """Put a monitor on a character device.

    Args:
        vm: The VM.
        given: The arguments of ``object-add``, checked.

    Raises:
        QmpError: QEMU refuses it.
    """
    name, wanted = given["id"], given["chardev"]
    if vm.tree.has_child(_OBJECTS, name):
        raise QmpError(
            f"attempt to add duplicate property '{name}' to object (type 'container')"
        )
    chardev = vm.chardevs.get(wanted)
    if chardev is None:
        raise QmpError(f'chardev "{wanted}" not found')
    if chardev.is_busy:
        raise QmpError(f"chardev '{wanted}' is already in use")
    chardev.is_busy = True
    monitor = vm.monitors[name] = _make_monitor(vm, given)
    # QEMU notices a client that leaves, and none that has left before.
    if chardev.descriptor is not None and _is_connected(vm, chardev):
        chardev.is_served = True
        vm.begin_serving(monitor, chardev.descriptor)


def _make_monitor(vm: Vm, given: dict[str, Any]) -> Monitor:
    """Return a new monitor, whose object is added."""
    name, chardev = given["id"], given["chardev"]
    if given["qom-type"] == _HMP:
        human = HmpMonitor(name, chardev, given.get("readline", True))
        _show_hmp_monitor(vm, human)
        return human
    monitor = QmpMonitor(name, chardev, given.get("close-action", "none"))
    _show_qmp_monitor(vm, monitor)
    return monitor


def _show_qmp_monitor(vm: Vm, monitor: QmpMonitor) -> None:
    entries: list[dict[str, Any]] = [
        {"name": "chardev", "type": "string", "value": monitor.chardev},
        {"name": "pretty", "type": "bool", "value": False},
        {"name": "close-action", "type": "MonitorQMPCloseAction"},
    ]

    def set_close_action(action: Value) -> None:
        check_type("close-action", "string", action)
        _check_close_action(action)
        monitor.close_action = str(action)

    node = vm.tree.add_child(_OBJECTS, monitor.name, _QMP, entries=entries)
    node.override("chardev", set_=_refuse_change)
    node.override("pretty", set_=_refuse_change)
    node.override("close-action", lambda: monitor.close_action, set_close_action)


def _show_hmp_monitor(vm: Vm, monitor: HmpMonitor) -> None:
    entries: list[dict[str, Any]] = [
        {"name": "chardev", "type": "string"},
        {"name": "readline", "type": "bool"},
    ]
    # QEMU shows what these are set to, and goes on as before.
    shown: dict[str, Value] = {
        "chardev": monitor.chardev,
        "readline": monitor.readline,
    }
    kinds: dict[str, Kind] = {"chardev": "string", "readline": "boolean"}

    def change(name: str, value: Value) -> None:
        check_type(name, kinds[name], value)
        shown[name] = value

    node = vm.tree.add_child(_OBJECTS, monitor.name, _HMP, entries=entries)
    for name in kinds:
        node.override(
            name,
            functools.partial(shown.__getitem__, name),
            functools.partial(change, name),
        )


def _refuse_change(_: Value) -> None:
    raise QmpError("The simulated QEMU does not change this of a monitor")


def delete_monitor(vm: Vm, name: str) -> None:
    """Take a monitor off its character device, which stays.

    Raises:
        QmpError: It is the one that the command came on, or a human one.
    """
    monitor = vm.monitors[name]
    if isinstance(monitor, HmpMonitor):
        raise QmpError("Deleting HMP monitors is not supported")
    if monitor is vm.current_monitor:
        raise QmpError("Cannot delete the current QMP monitor")
    vm.end_serving(monitor)
    _remove_monitor(vm, monitor)


def note_client_left(vm: Vm, monitor: Monitor) -> None:
    """Do what a monitor does when its client leaves."""
    monitor.drop_received()
    vm.chardevs[monitor.chardev].is_served = False
    vanishes = isinstance(monitor, QmpMonitor) and monitor.close_action == "delete"
    if vanishes and monitor.name != SHARED:
        _remove_monitor(vm, monitor)
        _remove_chardev(vm, monitor.chardev)


def _remove_monitor(vm: Vm, monitor: Monitor) -> None:
    monitor.close()
    del vm.monitors[monitor.name]
    chardev = vm.chardevs[monitor.chardev]
    chardev.is_busy = chardev.is_served = False
    vm.tree.remove_child(_OBJECTS, monitor.name)
