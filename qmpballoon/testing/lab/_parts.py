"""What a guest is made of: a QEMU, a kernel, a busybox and an accelerator.

What is installed comes first. A version that is not installed, and a part that is
missing, comes from the cache folder, where :mod:`._packages` puts it.

KVM is used only where it has booted a guest. That ``/dev/kvm`` can be opened does not
prove that it works: inside some virtual machines it can be opened, and a guest hangs
before its first line of output. So the lab boots a small guest with KVM, against a
short deadline, once for each boot of the host, QEMU and kernel. The result is stored
in the cache folder.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Final

from attrs import frozen

from qmpballoon.testing.lab._cache import cache_folder, write_whole
from qmpballoon.testing.lab._packages import (
    BUSYBOX,
    KERNEL,
    QEMU,
    fetch,
    matches_version,
    qemu_command,
    version_numbers,
)
from qmpballoon.testing.lab._report import LabError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from qmpballoon.testing.lab._report import Report

__all__ = [
    "Kernel",
    "Qemu",
    "choose_accelerator",
    "find_busybox",
    "find_kernel",
    "find_qemu",
]

_INSTALLED: Final = ("qemu-system-x86_64", "/usr/libexec/qemu-kvm", "qemu-kvm")
_VERSION: Final = re.compile(r"version (\d+(?:\.\d+)+)")
_KVM: Final = Path("/dev/kvm")
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


@frozen
class Qemu:
    """A QEMU that can be run.

    Attributes:
        command: The beginning of its command line.
        version: Its version, for example ``"7.2.22"``.
    """

    command: tuple[str, ...]
    version: str


@frozen
class Kernel:
    """A kernel that can be booted.

    Attributes:
        image: The bzImage.
        modules: The folder with its modules, ``.../lib/modules/RELEASE``.
    """

    image: Path
    modules: Path

    @property
    def release(self) -> str:
        """The release, as ``uname -r`` prints it."""
        return self.modules.name


def find_qemu(wanted: str | os.PathLike[str] | None, report: Report) -> Qemu:
    """Find a QEMU for x86-64 guests, or fetch it.

    Args:
        wanted: A path, a version such as ``"10.0"``, or ``None`` for the installed
            one of any version.
        report: Called with the progress of fetching it.

    Raises:
        LabError: There is none, and it cannot be fetched. The message says what to
            install.
    """
    version = os.fspath(wanted) if wanted is not None else None
    if version and os.sep in version:
        return _qemu(version)
    for name in _INSTALLED:
        path = shutil.which(name)
        if path and matches_version((qemu := _qemu(path)).version, version):
            return qemu
    return _qemu(*qemu_command(fetch(QEMU, version, report)))


def _qemu(*command: str) -> Qemu:
    try:
        shown = subprocess.run(
            [*command, "--version"],
            check=True,
            capture_output=True,
            text=True,
            timeout=30,
            stdin=subprocess.DEVNULL,
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise LabError(f"{command[-1]} cannot be run as a QEMU: {error}") from error
    match = _VERSION.search(shown)
    if match is None:
        raise LabError(f"{command[-1]} is not a QEMU: it says {shown[:80]!r}")
    return Qemu(command, match[1])


def find_kernel(wanted: str | os.PathLike[str] | None, report: Report) -> Kernel:
    """Find a Linux kernel with its modules, or fetch it.

    Args:
        wanted: A path to an image, a version such as ``"6.12"``, or ``None`` for the
            newest installed one. The modules of an image are where its package or
            the distribution has them.
        report: Called with the progress of fetching it.

    Raises:
        LabError: There is none, and it cannot be fetched. The message says what to
            install.
    """
    version = os.fspath(wanted) if wanted is not None else None
    if version and os.sep in version:
        return _kernel_at(Path(version))
    for kernel in sorted(
        _kernels(Path("/")),
        key=lambda found: version_numbers(found.release),
        reverse=True,
    ):
        # In some distributions only root can read the kernel.
        if matches_version(kernel.release, version) and os.access(
            kernel.image, os.R_OK
        ):
            return kernel
    tree = fetch(KERNEL, version, report)
    return next(_kernels(tree))


def _kernels(root: Path) -> Iterator[Kernel]:
    """List the kernels below a root folder that have both image and modules."""
    for folder in ("lib/modules", "usr/lib/modules"):
        for modules in (root / folder).glob("*/"):
            boot = root / "boot" / f"vmlinuz-{modules.name}"
            for image in (boot, modules / "vmlinuz"):
                if image.exists() and (modules / "kernel").is_dir():
                    yield Kernel(image, modules)


def _kernel_at(image: Path) -> Kernel:
    root = image.resolve().parent.parent
    for kernel in (*_kernels(root), *_kernels(Path("/"))):
        if kernel.image.exists() and kernel.image.samefile(image):
            return kernel
    raise LabError(
        f"there are no modules for the kernel {image}: "
        f"they belong in {root}/lib/modules/RELEASE"
    )


def find_busybox(report: Report) -> Path:
    """Find a statically linked busybox, or fetch it.

    Raises:
        LabError: There is none, and it cannot be fetched. The message says what to
            install.
    """
    for name in ("busybox", "busybox.static"):
        path = shutil.which(name)
        if path and _is_static(Path(path)):
            return Path(path)
    tree = fetch(BUSYBOX, None, report)
    # The package has other files of that name, which are no programs.
    return next(path for path in tree.glob("**/bin/busybox") if path.is_file())


def _is_static(program: Path) -> bool:
    # A dynamically linked program has its loader's path right behind its headers.
    with program.open("rb") as file:
        return b"/ld-" not in file.read(4096)


async def choose_accelerator(
    qemu: str, kernel: str, boots_with_kvm: Callable[[], Awaitable[bool]]
) -> str:
    """Choose an accelerator.

    Args:
        qemu: Identifies the QEMU. The stored result is for this QEMU only.
        kernel: Identifies the kernel, likewise.
        boots_with_kvm: Boots a guest with KVM, against a deadline of its own.

    Returns:
        ``"kvm"`` or ``"tcg"``.
    """
    if not os.access(_KVM, os.R_OK | os.W_OK):
        return "tcg"
    case = f"{_BOOT_ID.read_text()}{qemu}\n{kernel}"
    name = hashlib.sha256(case.encode()).hexdigest()[:16]
    stored = cache_folder() / "accelerators" / name
    if not stored.exists():
        write_whole(stored, "kvm" if await boots_with_kvm() else "tcg")
    return stored.read_text()
