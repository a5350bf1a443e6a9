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
# A microvm has no timer that Linux could measure another by. Without KVM to tell it
# the rate, one boot in six hung; with a clock that counts instructions none of 30.
_STEADY: Final = ("-icount", "shift=auto")
_KERNEL: Final = (
    "console=ttyS0 quiet rdinit=/init"
    # A panic is to be seen on the console: no reboot on it.
    " panic=0"
    # Plugged memory is used at once.
    " memhp_default_state=online"
    # Boots, and faults pages in, faster.
    " mitigations=off random.trust_cpu=on"
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
    """The guest's files.

    Attributes:
        kernel: Its kernel.
        initramfs: Its root file system.
        console: What its kernel prints.
        errors: What QEMU prints.
        channel: The socket that its command channel comes in by.
        qmp: The socket of the first QMP monitor.
        second_qmp: That of the second.
    """

    kernel: Path
    initramfs: Path
    console: Path
    errors: Path
    channel: Path
    qmp: Path
    second_qmp: Path

    @classmethod
    def within(cls, folder: Path, kernel: Path) -> Files:
        """Name them all in the guest's own folder, but for the kernel."""
        return cls(
            kernel=kernel,
            initramfs=folder / "initramfs",
            console=folder / "console",
            errors=folder / "errors",
            channel=folder / "channel",
            qmp=folder / "qmp",
            second_qmp=folder / "qmp2",
        )


def arguments(wishes: Wishes, files: Files, accel: str) -> list[str]:
    """Write QEMU's arguments."""
    bus = "device" if wishes.machine == "microvm" else "pci"
    return [
        *("-nodefaults", "-no-user-config", "-display", "none"),
        *("-machine", wishes.machine, "-accel", accel, "-smp", str(wishes.cpus)),
        *(("-cpu", "host") if accel == "kvm" else ()),
        *(_STEADY if wishes.machine == "microvm" and accel == "tcg" else ()),
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
