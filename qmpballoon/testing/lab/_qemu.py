"""QEMU's command line and its process.

QEMU must not outlive the lab, whatever happens to the lab: a test run that is killed
must not leave a QEMU with gigabytes behind. So the kernel is asked to kill QEMU when
the thread that started it ends (``PR_SET_PDEATHSIG``). A small Python program asks for
that between fork and exec, and then becomes QEMU. QEMU is started from the thread
that runs trio. trio's worker threads end while QEMU still runs, so they cannot be
used.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import trio
from attrs import field, frozen
from attrs.validators import ge, in_

from qmpballoon.sizes import GiB, MiB, TiB

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence
    from pathlib import Path

__all__ = [
    "BALLOON",
    "Files",
    "GuestOptions",
    "run_process",
    "wait_ended",
    "write_arguments",
    "write_kernel_line",
]

BALLOON: Final = "virtio-balloon-pci,id=balloon0"

# null-co needs no storage, so the disk can have any size. QEMU writes the zeroes that
# the guest reads; pages that nobody writes would not become resident in the host.
_DISK: Final = f"driver=null-co,node-name=cache,size={TiB},read-zeroes=on"
# A microvm has no timer to calibrate another one with. Under TCG, without KVM's
# clock, one boot in six hung. With a clock that counts instructions 0 of 30 hung.
_STEADY: Final = ("-icount", "shift=auto")
_KERNEL: Final = (
    "console=ttyS0 quiet rdinit=/init"
    # The console must show a panic, so the guest does not reboot on it.
    " panic=0"
    # Linux waits some milliseconds for the timer to tick. On a host so busy that QEMU
    # does not run meanwhile it would panic ("IO-APIC + timer doesn't work").
    " no_timer_check"
    # Plugged memory comes online at once.
    " memhp_default_state=online"
    # These make booting faster; the first makes page faults faster too.
    " mitigations=off random.trust_cpu=on"
    # The kernel tests its own cryptography at boot, which is two fifths of all that it
    # computes until then.
    " cryptomgr.notests"
)

# On a busy host Linux gets the rate of the processor's counter wrong, for example by a
# factor of six. By that clock it gives up ACPI's interrupt routing after 30 seconds,
# and the balloon's driver has none. A microvm has no other clock, but it is steady.
_NO_COUNTER: Final = " tsc=unstable"

# Its arguments are the parent's pid and the command. If the parent ended before the
# call of prctl, the kernel would never send the signal, so the program ends then.
_BECOME: Final = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 9)
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""
# Seconds to wait for a killed QEMU. The kernel frees a guest of 16 GiB in one or two.
_LONGEST_END: Final = 60


@frozen(kw_only=True)
class GuestOptions:
    """What the caller of :func:`boot` asks for; see there."""

    memory: int = field(default=GiB, validator=ge(64 * MiB))
    device: str | None = BALLOON
    driver: bool = True
    machine: str = field(default="pc", validator=in_(("pc", "q35", "microvm")))
    cpus: int = field(default=1, validator=ge(1))
    extra: Sequence[str] = ()
    paused: bool = False
    cache: int = 0
    hog: int = 0
    setup: str = ""

    @property
    def waits(self) -> bool:
        """Whether QEMU does not boot the guest when it starts."""
        return self.paused or "-S" in self.extra or "-incoming" in self.extra

    @property
    def has_scsi(self) -> bool:
        """Whether the guest has SCSI disks."""
        return any(argument.startswith("virtio-scsi") for argument in self.extra)


@frozen(kw_only=True)
class Files:
    """The files of a guest.

    Attributes:
        kernel: The kernel's image.
        initramfs: The root file system.
        console: What the guest's kernel prints.
        errors: What QEMU prints.
        channel: The socket that QEMU connects the guest's command channel to.
        qmp: The socket of the first QMP monitor.
        second_qmp: The socket of the second QMP monitor.
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
        """Return paths in the guest's own folder for all but the kernel."""
        return cls(
            kernel=kernel,
            initramfs=folder / "initramfs",
            console=folder / "console",
            errors=folder / "errors",
            channel=folder / "channel",
            qmp=folder / "qmp",
            second_qmp=folder / "qmp2",
        )


def write_arguments(options: GuestOptions, files: Files, accel: str) -> list[str]:
    """Return QEMU's arguments for a guest."""
    bus = "device" if options.machine == "microvm" else "pci"
    return [
        *("-nodefaults", "-no-user-config", "-display", "none"),
        *("-machine", options.machine, "-accel", accel, "-smp", str(options.cpus)),
        *(("-cpu", "host") if accel == "kvm" else ()),
        *(_STEADY if options.machine == "microvm" and accel == "tcg" else ()),
        *("-m", f"size={options.memory}B"),
        *("-kernel", str(files.kernel), "-initrd", str(files.initramfs)),
        *("-append", write_kernel_line(options.machine)),
        *_monitor("qmp", files.qmp),
        *_monitor("qmp2", files.second_qmp),
        *("-chardev", f"file,id=console,path={files.console},append=on"),
        *("-serial", "chardev:console"),
        # QEMU makes its character devices in this order. When it connects to the
        # channel, its monitors exist.
        *("-chardev", f"socket,id=channel,path={files.channel}"),
        *("-device", "isa-serial,chardev=channel,index=1"),
        *("-blockdev", _DISK, "-device", f"virtio-blk-{bus},drive=cache"),
        *(("-device", options.device) if options.device is not None else ()),
        *(("-S",) if options.paused else ()),
        *options.extra,
    ]


def write_kernel_line(machine: str) -> str:
    """Return the kernel's command line for a guest of a kind of machine."""
    return _KERNEL if machine == "microvm" else _KERNEL + _NO_COUNTER


def _monitor(name: str, path: Path) -> tuple[str, ...]:
    chardev = f"socket,id={name},path={path},server=on,wait=off"
    return ("-chardev", chardev, "-mon", f"chardev={name},mode=control")


@asynccontextmanager
async def run_process(
    command: Sequence[str], errors: Path
) -> AsyncGenerator[subprocess.Popen[bytes]]:
    """Run a program; kill it at the end of the block, or when this process ends.

    Args:
        command: The program's path and arguments.
        errors: The file for its standard output and standard error.

    Yields:
        The running program.
    """
    with errors.open("wb") as output:
        # This blocks for some milliseconds; trio's function would use a thread.
        process = subprocess.Popen(  # noqa: ASYNC220
            [sys.executable, "-I", "-S", "-c", _BECOME, str(os.getpid()), *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            # Ctrl-C in a terminal must reach only this process, which then ends QEMU.
            start_new_session=True,
            # Only this user can connect to its sockets.
            umask=0o177,
        )
    try:
        yield process
    finally:
        # SIGKILL ends a stopped QEMU too, and QEMU has nothing to save.
        process.send_signal(signal.SIGKILL)
        with trio.CancelScope(shield=True), trio.move_on_after(_LONGEST_END):
            await wait_ended(process)


async def wait_ended(process: subprocess.Popen[bytes]) -> int:
    """Wait until a process has ended.

    Returns:
        Its exit status, or minus the number of the signal that ended it.
    """
    # Until poll() reaps the process, its pid cannot belong to another process.
    if process.poll() is None:
        descriptor = os.pidfd_open(process.pid)
        try:
            await trio.lowlevel.wait_readable(descriptor)
        finally:
            os.close(descriptor)
    return process.wait()
