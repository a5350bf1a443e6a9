"""The objects that a machine with a balloon begins with."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Final

from qmpballoon.testing.model.balloon import MAX_INTERVAL
from qmpballoon.testing.model.dimms import add_memory
from qmpballoon.testing.model.qom import Tree
from qmpballoon.testing.model.visit import QmpError, check_type

if TYPE_CHECKING:
    from qmpballoon.testing.model.balloon import BalloonDevice
    from qmpballoon.testing.model.machine import Machine
    from qmpballoon.testing.model.qobject import Value
    from qmpballoon.testing.model.qom import Node

__all__ = ["balloon_path", "build_tree"]

_MEASURED_ON: Final = "balloon0"


def balloon_path(machine: Machine) -> str:
    """Return the path of the balloon, if there were one."""
    name = machine.config.balloon_id
    if name is None:
        return "/machine/peripheral-anon/device[0]"
    return f"/machine/peripheral/{name}"


def build_tree(machine: Machine) -> Tree:
    """Return the objects that the machine begins with."""
    objects = machine.profile.objects
    tree = Tree()
    tree.add("/", "container", entries=objects["/"])
    # What was there because something was plugged, or could be.
    absent = {"m1"} if machine.config.max_memory else {"m1", "device-memory[0]"}
    for path in ("/machine", "/machine/unattached", "/chardevs", "/objects"):
        entries = objects[path]
        type_ = next(e["value"] for e in entries if e["name"] == "type")
        own = [e for e in entries if e["name"] not in absent]
        tree.add(path, str(type_), entries=own)
    _describe_memory(tree["/machine"], machine)
    add_memory(tree, machine.profile, "pc.ram", machine.config.memory)
    if machine.config.balloon:
        _add_balloon(tree, machine, machine.config.balloon)
    return tree


def _describe_memory(node: Node, machine: Machine) -> None:
    config = machine.config
    memory: dict[str, Value] = {"size": config.memory}
    if config.max_memory:
        memory |= {"max-size": config.max_memory, "slots": config.slots}
    node.override("memory", lambda: memory)


def _add_balloon(tree: Tree, machine: Machine, type_: str) -> None:
    objects = machine.profile.objects
    path = balloon_path(machine)
    rename = ((f"/machine/peripheral/{_MEASURED_ON}", path), *_anonymous(machine))
    parent, _, name = path.rpartition("/")
    front = tree.add_child(parent, name, type_, entries=objects[type_], rename=rename)
    nodes = [front]
    if type_ != "virtio-balloon-device":
        backend, bus = "virtio-balloon-device", "virtio-pci-bus"
        tree.add(f"{path}/virtio-bus", bus, entries=objects[bus], rename=rename)
        place = f"{path}/virtio-backend"
        nodes.append(tree.add(place, backend, entries=objects[backend], rename=rename))
    if machine.device:
        for node in nodes:
            _bind(node, machine, machine.device)


def _anonymous(machine: Machine) -> tuple[tuple[str, str], ...]:
    """Return how words about the measured device become words about this one."""
    name = machine.config.balloon_id
    if name is None:
        return ((f"on device '{_MEASURED_ON}'", "on anonymous device"),)
    return ((f"'{_MEASURED_ON}'", f"'{name}'"),)


def _bind(node: Node, machine: Machine, device: BalloonDevice) -> None:
    """Connect a device object's properties with what they are about."""
    config = machine.config
    features = {
        "deflate-on-oom": config.deflate_on_oom,
        "free-page-reporting": config.free_page_reporting,
        "page-poison": config.page_poison,
    }
    for name, value in features.items():
        node.override(name, functools.partial(bool, value))
    node.override("guest-stats", device.guest_stats)

    def set_interval(value: Value) -> None:
        check_type("guest-stats-polling-interval", "integer", value)
        assert isinstance(value, int)  # noqa: S101 -- just checked
        if value < 0:
            raise QmpError("timer value must be greater than zero")
        if value > MAX_INTERVAL:
            raise QmpError("timer value is too big")
        device.set_interval(value, machine.guest.now)

    name = "guest-stats-polling-interval"
    node.override(name, lambda: device.interval, set_interval)
