"""The objects of a machine with a balloon, as its profile shows them.

An object's properties are those that were measured on a QEMU of its version. Those that
depend on the machine's state are read from it, and set on it.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Final

from qmpballoon.testing.model.arguments import QmpError, check_type
from qmpballoon.testing.model.balloon import MAX_INTERVAL
from qmpballoon.testing.model.qom import Tree

if TYPE_CHECKING:
    from qmpballoon.testing.model.balloon import BalloonDevice
    from qmpballoon.testing.model.config import MachineConfig
    from qmpballoon.testing.model.guest import Guest
    from qmpballoon.testing.model.profiles import Profile
    from qmpballoon.testing.model.qobject import Value
    from qmpballoon.testing.model.qom import Node

__all__ = ["add_memory", "build_tree", "find_balloon_path"]

_MEMORY: Final = "memory-backend-ram"
_MEASURED_ON: Final = "balloon0"
"""The id of the balloon device whose properties were measured."""


def find_balloon_path(config: MachineConfig) -> str:
    """Return the path of the balloon device, whether there is one or not."""
    name = config.balloon_id
    if name is None:
        return "/machine/peripheral-anon/device[0]"
    return f"/machine/peripheral/{name}"


def build_tree(
    config: MachineConfig, profile: Profile, device: BalloonDevice | None, guest: Guest
) -> Tree:
    """Return the objects that a machine begins with.

    Args:
        config: The machine's command line.
        profile: Its version.
        device: Its balloon device, if it has one.
        guest: Its guest, whose clock the device's timer runs on.
    """
    objects = profile.objects
    tree = Tree()
    tree.add("/", "container", entries=objects["/"])
    # The measured machine had a memory backend, and room to plug memory in.
    absent = {"m1"} if config.max_memory else {"m1", "device-memory[0]"}
    for path in ("/machine", "/machine/unattached", "/chardevs", "/objects"):
        entries = objects[path]
        type_ = next(e["value"] for e in entries if e["name"] == "type")
        own = [e for e in entries if e["name"] not in absent]
        tree.add(path, str(type_), entries=own)
    _describe_memory(tree["/machine"], config)
    add_memory(tree, profile, "pc.ram", config.memory)
    if config.balloon and device:
        for node in _add_balloon(tree, config, profile, config.balloon):
            _bind(node, config, device, guest)
    return tree


def add_memory(tree: Tree, profile: Profile, name: str, size: int) -> None:
    """Add the object of memory that a machine or a DIMM is made of."""
    # The memory that was measured was called m1.
    entries = [
        {**entry, "name": f"{name}[0]"} if entry["name"] == "m1[0]" else entry
        for entry in profile.objects[_MEMORY]
    ]
    node = tree.add_child("/objects", name, _MEMORY, entries=entries)
    node.override("size", lambda: size)


def _describe_memory(node: Node, config: MachineConfig) -> None:
    memory: dict[str, Value] = {"size": config.memory}
    if config.max_memory:
        memory |= {"max-size": config.max_memory, "slots": config.slots}
    node.override("memory", lambda: memory)


def _add_balloon(
    tree: Tree, config: MachineConfig, profile: Profile, type_: str
) -> list[Node]:
    """Add the balloon device; return the objects that have its properties."""
    objects = profile.objects
    path = find_balloon_path(config)
    rename = (
        (f"/machine/peripheral/{_MEASURED_ON}", path),
        _rename_device(config.balloon_id),
    )
    parent, _, name = path.rpartition("/")
    front = tree.add_child(parent, name, type_, entries=objects[type_], rename=rename)
    if type_ == "virtio-balloon-device":
        return [front]
    backend, bus = "virtio-balloon-device", "virtio-pci-bus"
    tree.add(f"{path}/virtio-bus", bus, entries=objects[bus], rename=rename)
    place = f"{path}/virtio-backend"
    return [front, tree.add(place, backend, entries=objects[backend], rename=rename)]


def _rename_device(name: str | None) -> tuple[str, str]:
    """Return the replacement that makes measured errors name this device."""
    if name is None:
        return f"on device '{_MEASURED_ON}'", "on anonymous device"
    return f"'{_MEASURED_ON}'", f"'{name}'"


def _bind(
    node: Node, config: MachineConfig, device: BalloonDevice, guest: Guest
) -> None:
    """Have an object show the device's state, and set it."""
    features = {
        "deflate-on-oom": config.deflate_on_oom,
        "free-page-reporting": config.free_page_reporting,
        "page-poison": config.page_poison,
    }
    for name, value in features.items():
        node.override(name, functools.partial(bool, value))
    node.override("guest-stats", device.read_stats)

    def set_interval(value: Value) -> None:
        check_type("guest-stats-polling-interval", "integer", value)
        assert isinstance(value, int)  # noqa: S101 -- checked above
        if value < 0:
            raise QmpError("timer value must be greater than zero")
        if value > MAX_INTERVAL:
            raise QmpError("timer value is too big")
        device.set_interval(value, guest.now)

    name = "guest-stats-polling-interval"
    node.override(name, lambda: device.interval, set_interval)
