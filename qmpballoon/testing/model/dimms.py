"""Memory that is plugged into a machine: backends, and the DIMMs made of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from attrs import define

from qmpballoon.sizes import GiB, MiB
from qmpballoon.testing.model.visit import QmpError

if TYPE_CHECKING:
    from qmpballoon.testing.model.machine import Machine
    from qmpballoon.testing.model.qom import Tree
    from qmpballoon.testing.profiles import Profile

__all__ = [
    "ALIGNMENT",
    "PERIPHERAL",
    "Dimm",
    "add_backend",
    "add_dimm",
    "add_memory",
    "is_busy",
]

PERIPHERAL: Final = "/machine/peripheral"
"""The path of the object that devices with an id belong to."""

ALIGNMENT: Final = 2 * MiB
"""Bytes of which a DIMM's size and address are multiples."""

_KIND: Final = "memory-backend-ram"
_BASE: Final = 4 * GiB  # where the guest sees what is plugged
_SLOT_ROOM: Final = GiB  # of addresses for each slot, so that DIMMs can be aligned
_ANY_SLOT: Final = -1
_ADDRESS_SPACE: Final = 1 << 46  # bytes; a host gives no more
# Sizes that are rounded up to 0, of which QEMU dies.
_WRAPS: Final = (1 << 64) - 2 * MiB
_NO_SLOTS: Final = "no slots where allocated, please specify the 'slots' option"


@define
class Dimm:
    """A DIMM that was plugged in.

    Attributes:
        parent: The path of the object it belongs to.
        name: What it is called there.
        backend: The id of the memory behind it.
        size: In bytes.
        slot: Its slot's number.
        address: Where the guest sees it.
        leaves_at: When the guest lets it go, on the guest's clock, if it was asked.
    """

    parent: str
    name: str
    backend: str
    size: int
    slot: int
    address: int
    leaves_at: int | None = None

    @property
    def id(self) -> str | None:
        """Return the id it was given, if it was."""
        return self.name if self.parent == PERIPHERAL else None

    @property
    def path(self) -> str:
        """Return where it is in the tree."""
        return f"{self.parent}/{self.name}"


def add_backend(machine: Machine, name: str, size: int) -> None:
    """Add memory that a DIMM can be made of.

    Raises:
        QmpError: It cannot be.
        Aborted: QEMU dies of it.
    """
    if machine.tree.has_child("/objects", name):
        raise QmpError(
            f"attempt to add duplicate property '{name}' to object (type 'container')"
        )
    if size >= _WRAPS:
        machine.abort()
    if size >= _ADDRESS_SPACE:
        raise QmpError(f"cannot set up guest memory '{name}': Cannot allocate memory")
    machine.backends[name] = size
    add_memory(machine.tree, machine.profile, name, size)


def add_memory(tree: Tree, profile: Profile, name: str, size: int) -> None:
    """Show memory in a tree."""
    entries = [
        {**entry, "name": f"{name}[0]"} if entry["name"] == "m1[0]" else entry
        for entry in profile.objects[_KIND]
    ]
    node = tree.add_child("/objects", name, _KIND, entries=entries)
    node.override("size", lambda: size)


def is_busy(machine: Machine, backend: str) -> bool:
    """Tell whether memory is in use: the machine's own always is."""
    in_use = {dimm.backend for dimm in machine.dimms.values()}
    return backend not in machine.backends or backend in in_use


def add_dimm(
    machine: Machine,
    parent: str,
    name: str,
    backend: str | None,
    *,
    type_: str = "pc-dimm",
    slot: int = _ANY_SLOT,
    address: int = 0,
    node: int = 0,
) -> None:
    """Plug a DIMM in; the guest takes it into use at once.

    Args:
        machine: Where.
        parent: The path of the object it belongs to.
        name: What it is called there.
        backend: The id of the memory behind it.
        type_: Its type.
        slot: Which slot it is to have; by default any.
        address: Where the guest is to see it; 0: anywhere.
        node: Its NUMA node.

    Raises:
        QmpError: It cannot be, in QEMU's words.
    """
    if type_ == "nvdimm":
        raise QmpError("nvdimm is not enabled: missing 'nvdimm' in '-M'")
    slot = _free_slot(machine, slot)
    if backend is None:
        raise QmpError("'memdev' property must be set")
    # The machine's own memory is no backend to plug, but one it can be tried with.
    size = machine.backends.get(backend, machine.config.memory)
    address = _free_address(machine, address, size)
    if is_busy(machine, backend):
        raise QmpError(f"can't use already busy memdev: {backend}")
    if node:
        raise QmpError(
            f"'DIMM property node has value {node}' which exceeds the number of numa"
            " nodes: 1"
        )
    dimm = Dimm(parent, name, backend, size, slot, address)
    machine.dimms[dimm.path] = dimm
    about = (
        ("on device 'd1'", f"on device '{name}'" if dimm.id else "on anonymous device"),
        ("/objects/m1", f"/objects/{backend}"),
    )
    entries = machine.profile.objects["pc-dimm"]
    shown = machine.tree.add_child(
        parent, name, "pc-dimm", entries=entries, rename=about
    )
    shown.override("size", lambda: dimm.size)
    shown.override("slot", lambda: dimm.slot)
    shown.override("addr", lambda: dimm.address)
    machine.guest.plug(size)


def _free_slot(machine: Machine, wanted: int) -> int:
    slots = machine.config.slots
    if wanted != _ANY_SLOT and not 0 <= wanted < slots:
        last = (slots - 1) % (1 << 64)
        raise QmpError(f"invalid slot number {wanted}, valid range is [0-{last}]")
    if not machine.config.max_memory:
        raise QmpError(_NO_SLOTS)
    taken = {dimm.slot for dimm in machine.dimms.values()}
    if wanted in taken:
        raise QmpError(f"slot {wanted} is busy")
    if wanted != _ANY_SLOT:
        return wanted
    free = [slot for slot in range(slots) if slot not in taken]
    if not free:
        raise QmpError("no free slots available")
    return free[0]


def _free_address(machine: Machine, wanted: int, size: int) -> int:
    config = machine.config
    used = sum(dimm.size for dimm in machine.dimms.values())
    room = config.max_memory - config.memory
    if used + size > room:
        raise QmpError(
            f"not enough space, currently {used:#x} in use of total space for memory"
            f" devices {room:#x}"
        )
    if wanted % ALIGNMENT:
        raise QmpError(f"address must be aligned to {ALIGNMENT:#x} bytes")
    if size % ALIGNMENT:
        raise QmpError(f"backend memory size must be multiple of {ALIGNMENT:#x}")
    room += config.slots * _SLOT_ROOM
    if wanted:
        _check_address(machine, wanted, size, room)
        return wanted
    address = _BASE
    for dimm in sorted(machine.dimms.values(), key=lambda dimm: dimm.address):
        if address + size <= dimm.address:
            break
        address = dimm.address + dimm.size
    if address + size > _BASE + room:
        raise QmpError(
            "could not find position in guest address space for memory device - memory"
            " fragmented due to alignments"
        )
    return address


def _check_address(machine: Machine, address: int, size: int, room: int) -> None:
    if not _BASE <= address <= _BASE + room - size:
        raise QmpError(
            f"can't add memory device [{address:#x}:{size:#x}], usable range for memory"
            f" devices [{_BASE:#x}:{room:#x}]"
        )
    for dimm in machine.dimms.values():
        if dimm.address < address + size and address < dimm.address + dimm.size:
            raise QmpError(
                f"address range conflicts with memory device id='{dimm.id or ''}'"
            )
