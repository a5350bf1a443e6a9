"""Memory that is plugged into a VM: backends, and the DIMMs that are made of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from qmpballoon.sizes import GiB, MiB
from qmpballoon.testing.model.arguments import QmpError
from qmpballoon.testing.model.objects import add_memory
from qmpballoon.testing.model.vm import Dimm

if TYPE_CHECKING:
    from qmpballoon.testing.model.vm import Vm

__all__ = ["ALIGNMENT", "add_backend", "add_dimm", "is_busy", "remove_dimm"]

ALIGNMENT: Final = 2 * MiB
"""Bytes of which a DIMM's size and address are multiples."""

_BASE: Final = 4 * GiB
"""Address at which the guest sees memory that is plugged in."""

_SLOT_ROOM: Final = GiB
"""Bytes of address space that QEMU adds for each slot, to have room for alignment."""

_ANY_SLOT: Final = -1

_ADDRESS_SPACE: Final = 1 << 46
"""Bytes that the host can map at most; a backend of this size is refused."""

_WRAPS: Final = (1 << 64) - 2 * MiB
"""Sizes from here on are rounded up to 0, of which QEMU dies."""

_NO_SLOTS: Final = "no slots where allocated, please specify the 'slots' option"


def add_backend(vm: Vm, name: str, size: int) -> None:
    """Add memory that a DIMM can be made of.

    Raises:
        QmpError: QEMU refuses it.
        Aborted: QEMU dies of it.
    """
    if vm.tree.has_child("/objects", name):
        raise QmpError(
            f"attempt to add duplicate property '{name}' to object (type 'container')"
        )
    if size >= _WRAPS:
        vm.abort()
    if size >= _ADDRESS_SPACE:
        raise QmpError(f"cannot set up guest memory '{name}': Cannot allocate memory")
    vm.backends[name] = size
    add_memory(vm.tree, vm.profile, name, size)


def is_busy(vm: Vm, backend: str) -> bool:
    """Whether memory is in use. The VM's own memory always is."""
    in_use = {dimm.backend for dimm in vm.dimms.values()}
    return backend not in vm.backends or backend in in_use


def add_dimm(
    vm: Vm,
    parent: str,
    name: str,
    backend: str | None,
    *,
    type_: str = "pc-dimm",
    slot: int = _ANY_SLOT,
    address: int = 0,
    node: int = 0,
) -> None:
    """Plug a DIMM in. The guest takes it into use at once.

    Args:
        vm: The VM.
        parent: The path of the object that it belongs to.
        name: Its name there.
        backend: The id of the memory that it is made of.
        type_: Its type.
        slot: Its slot; by default the first that is free.
        address: Where the guest sees it; 0: where there is room.
        node: Its NUMA node.

    Raises:
        QmpError: QEMU refuses it, in QEMU's words.
    """
    if type_ == "nvdimm":
        raise QmpError("nvdimm is not enabled: missing 'nvdimm' in '-M'")
    slot = _choose_slot(vm, slot)
    if backend is None:
        raise QmpError("'memdev' property must be set")
    # The VM's own memory is refused last, after its size was checked.
    size = vm.backends.get(backend, vm.config.memory)
    address = _choose_address(vm, address, size)
    if is_busy(vm, backend):
        raise QmpError(f"can't use already busy memdev: {backend}")
    if node:
        raise QmpError(
            f"'DIMM property node has value {node}' which exceeds the number of numa"
            " nodes: 1"
        )
    dimm = Dimm(parent, name, backend, size, slot, address)
    vm.dimms[dimm.path] = dimm
    about = (
        ("on device 'd1'", f"on device '{name}'" if dimm.id else "on anonymous device"),
        ("/objects/m1", f"/objects/{backend}"),
    )
    entries = vm.profile.objects["pc-dimm"]
    shown = vm.tree.add_child(parent, name, "pc-dimm", entries=entries, rename=about)
    shown.override("size", lambda: dimm.size)
    shown.override("slot", lambda: dimm.slot)
    shown.override("addr", lambda: dimm.address)
    vm.guest.plug(size)


def remove_dimm(vm: Vm, path: str) -> None:
    """Remove a DIMM that the guest has released."""
    dimm = vm.dimms.pop(path)
    vm.guest.plug(-dimm.size)
    vm.tree.remove_child(dimm.parent, dimm.name)
    about = {} if dimm.id is None else {"device": dimm.id}
    vm.emit("DEVICE_DELETED", {"path": path, **about})


def _choose_slot(vm: Vm, wanted: int) -> int:
    slots = vm.config.slots
    if wanted != _ANY_SLOT and not 0 <= wanted < slots:
        last = (slots - 1) % (1 << 64)
        raise QmpError(f"invalid slot number {wanted}, valid range is [0-{last}]")
    if not vm.config.max_memory:
        raise QmpError(_NO_SLOTS)
    taken = {dimm.slot for dimm in vm.dimms.values()}
    if wanted in taken:
        raise QmpError(f"slot {wanted} is busy")
    if wanted != _ANY_SLOT:
        return wanted
    free = [slot for slot in range(slots) if slot not in taken]
    if not free:
        raise QmpError("no free slots available")
    return free[0]


def _choose_address(vm: Vm, wanted: int, size: int) -> int:
    config = vm.config
    used = sum(dimm.size for dimm in vm.dimms.values())
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
        _check_address(vm, wanted, size, room)
        return wanted
    address = _BASE
    for dimm in sorted(vm.dimms.values(), key=lambda dimm: dimm.address):
        if address + size <= dimm.address:
            break
        address = dimm.address + dimm.size
    if address + size > _BASE + room:
        raise QmpError(
            "could not find position in guest address space for memory device - memory"
            " fragmented due to alignments"
        )
    return address


def _check_address(vm: Vm, address: int, size: int, room: int) -> None:
    if not _BASE <= address <= _BASE + room - size:
        raise QmpError(
            f"can't add memory device [{address:#x}:{size:#x}], usable range for memory"
            f" devices [{_BASE:#x}:{room:#x}]"
        )
    for dimm in vm.dimms.values():
        if dimm.address < address + size and address < dimm.address + dimm.size:
            raise QmpError(
                f"address range conflicts with memory device id='{dimm.id or ''}'"
            )
