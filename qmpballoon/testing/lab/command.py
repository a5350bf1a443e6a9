"""How QEMU is told to make the guest: a pure function from wishes to arguments."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from attrs import field, frozen
from attrs.validators import ge, in_

from qmpballoon.sizes import GiB, MiB, TiB

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["BALLOON", "Files", "Wishes", "arguments"]

BALLOON: Final = "virtio-balloon-pci,id=balloon0"

# null-co costs nothing, and so the disk never ends; read as zeroes, because pages
# that nobody writes would not become resident in the host.
_DISK: Final = f"driver=null-co,node-name=cache,size={TiB},read-zeroes=on"
_KERNEL: Final = (
    "console=ttyS0 quiet rdinit=/init"
    # A panic is to be seen on the console: no reboot on it.
    " panic=0"
    # Plugged memory is used at once.
    " memhp_default_state=online"
    # Boots, and faults pages in, faster.
    " mitigations=off no_timer_check random.trust_cpu=on"
)


@frozen(kw_only=True)
class Wishes:
    """What the guest shall be like; see :func:`.boot`."""

    memory: int = field(default=GiB, validator=ge(64 * MiB))
    device: str | None = BALLOON
    driver: bool = True
    machine: str = field(default="pc", validator=in_(("pc", "q35", "microvm")))
    cpus: int = field(default=1, validator=ge(1))
    extra: Sequence[str] = ()
    paused: bool = False

    @property
    def waits(self) -> bool:
        """Whether the guest starts only when somebody tells QEMU so."""
        return self.paused or "-S" in self.extra or "-incoming" in self.extra


@frozen(kw_only=True)
class Files:
    """The guest's files, all in its own folder but for the kernel."""

    folder: Path
    kernel: Path

    @property
    def initramfs(self) -> Path:
        return self.folder / "initramfs"

    @property
    def console(self) -> Path:
        return self.folder / "console"

    @property
    def errors(self) -> Path:
        return self.folder / "errors"

    @property
    def channel(self) -> Path:
        return self.folder / "channel"

    @property
    def qmp(self) -> Path:
        return self.folder / "qmp"

    @property
    def second_qmp(self) -> Path:
        return self.folder / "qmp2"


def arguments(wishes: Wishes, files: Files, accel: str) -> list[str]:
    """Write QEMU's arguments."""
    bus = "device" if wishes.machine == "microvm" else "pci"
    return [
        *("-nodefaults", "-no-user-config", "-display", "none"),
        *("-machine", wishes.machine, "-accel", accel, "-smp", str(wishes.cpus)),
        *(("-cpu", "host") if accel == "kvm" else ()),
        *("-m", f"size={wishes.memory}B"),
        *("-kernel", str(files.kernel), "-initrd", str(files.initramfs)),
        *("-append", _KERNEL),
        *_monitor("qmp", files.qmp),
        *_monitor("qmp2", files.second_qmp),
        *("-chardev", f"file,id=console,path={files.console}"),
        *("-serial", "chardev:console"),
        # QEMU makes its character devices in this order: once it has connected to
        # the channel, its monitors are there as well.
        *("-chardev", f"socket,id=channel,path={files.channel}"),
        *("-device", "isa-serial,chardev=channel,index=1"),
        *("-blockdev", _DISK, "-device", f"virtio-blk-{bus},drive=cache"),
        *(("-device", wishes.device) if wishes.device is not None else ()),
        *(("-S",) if wishes.paused else ()),
        *wishes.extra,
    ]


def _monitor(name: str, path: Path) -> tuple[str, ...]:
    chardev = f"socket,id={name},path={path},server=on,wait=off"
    return ("-chardev", chardev, "-mon", f"chardev={name},mode=control")
