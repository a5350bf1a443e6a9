"""A balloon is found in QEMU's object tree, whatever it is called there."""

from __future__ import annotations

import pytest
from simulation import SimulatedMonitor, make_machine, run

from qmpballoon.balloon.balloon import find_balloon
from qmpballoon.errors import (
    MonitorClosed,
    NoBalloonDevice,
    ProtocolError,
)

TYPES = [
    "virtio-balloon-pci",
    "virtio-balloon-pci-transitional",
    "virtio-balloon-pci-non-transitional",
    "virtio-balloon-ccw",
    "virtio-balloon-device",
]


class Tree:
    """A QOM tree; everything else of a monitor is never used."""

    def __init__(self, **children: object) -> None:
        self._children = children

    async def execute(self, command: str, arguments: dict[str, str]) -> object:
        assert command == "qom-list"
        return self._children.get(arguments["path"].rpartition("/")[2], [])


@pytest.mark.parametrize("identifier", ["balloon0", None])
@pytest.mark.parametrize("version", ["7.2", "11.1"])
def test_it_is_found_named_and_anonymous(version: str, identifier: str | None) -> None:
    machine = make_machine(version=version, balloon_id=identifier)
    balloon = run(find_balloon(SimulatedMonitor(machine)))
    where = "peripheral/balloon0" if identifier else "peripheral-anon/device[0]"
    assert balloon.path == f"/machine/{where}"
    assert balloon.device_type == "virtio-balloon-pci"
    assert run(balloon.get_stats_interval()) == 0  # the path is one


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("container", ["peripheral", "peripheral-anon", "unattached"])
def test_every_type_is_found_in_every_place(kind: str, container: str) -> None:
    children = [
        {"name": "type", "type": "string"},
        {"name": "device[0]", "type": "child<virtio-blk-pci>"},
        {"name": "device[1]", "type": f"child<{kind}>"},
        {"name": "link", "type": f"link<{kind}>"},
    ]
    balloon = run(find_balloon(Tree(**{container: children})))  # type: ignore[type-var]
    assert balloon.path == f"/machine/{container}/device[1]"
    assert balloon.device_type == kind


def test_a_vm_without_one_is_told_what_to_do() -> None:
    machine = make_machine(balloon=None)
    with pytest.raises(NoBalloonDevice, match="-device virtio-balloon-pci"):
        run(find_balloon(SimulatedMonitor(machine)))


def test_nonsense_is_no_tree() -> None:
    with pytest.raises(ProtocolError, match="qom-list"):
        run(find_balloon(Tree(peripheral={"return": 1})))  # type: ignore[type-var]
    tree = Tree(peripheral=[1, None, {"name": 7, "type": "child<virtio-balloon-pci>"}])
    with pytest.raises(NoBalloonDevice):
        run(find_balloon(tree))  # type: ignore[type-var]


def test_the_end_of_qemu_is_not_the_lack_of_a_device() -> None:
    machine = make_machine()
    monitor = SimulatedMonitor(machine)
    machine.quit()
    with pytest.raises(MonitorClosed):
        run(find_balloon(monitor))
