"""The objects of a machine with a balloon, and memory that is plugged into it."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Final

from attrs import define

from qmpballoon.testing.model.balloon import MAX_INTERVAL
from qmpballoon.testing.model.qom import Tree
from qmpballoon.testing.model.visit import QmpError, check_type

if TYPE_CHECKING:
    from qmpballoon.testing.machine import Machine
    from qmpballoon.testing.model.balloon import BalloonDevice
    from qmpballoon.testing.model.qobject import Value
    from qmpballoon.testing.model.qom import Node

__all__ = ["Dimm", "add_backend", "add_dimm", "balloon_path", "build_tree"]

_MEASURED_ON: Final = "balloon0"
_DIMM_BASE: Final = 4 << 30


@define
class Dimm:
    """A DIMM that was plugged in.

    Attributes:
        backend: The id of the memory behind it.
        size: In bytes.
        slot: Its slot's number.
        address: Where the guest sees it.
        leaves_at: When the guest lets it go, on the guest's clock, if it was asked.
    """

    backend: str
    size: int
    slot: int
    address: int
    leaves_at: int | None = None


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
    for path in ("/machine", "/machine/unattached", "/chardevs", "/objects"):
        entries = objects[path]
        type_ = next(e["value"] for e in entries if e["name"] == "type")
        own = [e for e in entries if e["name"] not in {"m1", "device-memory[0]"}]
        tree.add(path, str(type_), entries=own)
    _describe_memory(tree["/machine"], machine)
    _add_memory(tree, machine, "pc.ram", machine.config.memory)
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
    front = tree.add_child(path, type_, entries=objects[type_], rename=rename)
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


def _add_memory(tree: Tree, machine: Machine, name: str, size: int) -> None:
    kind = "memory-backend-ram"
    entries = [
        {**entry, "name": f"{name}[0]"} if entry["name"] == "m1[0]" else entry
        for entry in machine.profile.objects[kind]
    ]
    node = tree.add_child(f"/objects/{name}", kind, entries=entries)
    node.override("size", lambda: size)


def add_backend(machine: Machine, name: str, size: int) -> None:
    """Add memory that a DIMM can be made of."""
    if f"/objects/{name}" in machine.tree:
        raise QmpError(
            f"attempt to add duplicate property '{name}' to object (type 'container')"
        )
    machine.backends[name] = size
    _add_memory(machine.tree, machine, name, size)


def add_dimm(machine: Machine, name: str, backend: str) -> None:
    """Plug a DIMM in; the guest takes it into use at once."""
    config = machine.config
    if not config.max_memory:
        raise QmpError("no slots where allocated, please specify the 'slots' option")
    taken = {dimm.slot for dimm in machine.dimms.values()}
    free = [slot for slot in range(config.slots) if slot not in taken]
    if not free:
        raise QmpError("no free slots available")
    size = machine.backends[backend]
    plugged = sum(dimm.size for dimm in machine.dimms.values())
    dimm = Dimm(backend, size, free[0], _DIMM_BASE + plugged)
    machine.dimms[name] = dimm
    node = machine.tree.add_child(
        f"/machine/peripheral/{name}",
        "pc-dimm",
        entries=machine.profile.objects["pc-dimm"],
        rename=(("'d1'", f"'{name}'"), ("/objects/m1", f"/objects/{backend}")),
    )
    node.override("size", lambda: dimm.size)
    node.override("slot", lambda: dimm.slot)
    node.override("addr", lambda: dimm.address)
    machine.guest.plug(size)
