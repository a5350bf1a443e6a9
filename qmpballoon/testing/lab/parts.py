"""What a guest is made of: a QEMU, a kernel and a busybox, installed or fetched.

What is installed is preferred; a version that is not installed, or a part that is
missing, comes out of the cache folder, where :mod:`.packages` puts it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Final

from attrs import frozen

from qmpballoon.testing.lab import bundle, packages
from qmpballoon.testing.lab.errors import LabError
from qmpballoon.testing.lab.versions import matches, numbers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from qmpballoon.testing.lab.progress import Report

__all__ = ["Kernel", "Qemu", "find_busybox", "find_kernel", "find_qemu"]

_INSTALLED: Final = ("qemu-system-x86_64", "/usr/libexec/qemu-kvm", "qemu-kvm")
_VERSION: Final = re.compile(r"version (\d+(?:\.\d+)+)")


@frozen
class Qemu:
    """A QEMU that can be run.

    Attributes:
        command: How its command line begins.
        version: As in ``"7.2.22"``.
    """

    command: tuple[str, ...]
    version: str


@frozen
class Kernel:
    """A kernel that can be booted.

    Attributes:
        image: The bzImage.
        modules: Its module folder.
    """

    image: Path
    modules: Path

    @property
    def release(self) -> str:
        """As in ``uname -r``."""
        return self.modules.name


def find_qemu(wanted: str | os.PathLike[str] | None, report: Report) -> Qemu:
    """Find a QEMU for x86-64 guests, or fetch it.

    Args:
        wanted: A path to one, a version such as ``"10.0"``, or ``None`` for the
            installed one, whatever its version.
        report: Told what is being fetched.

    Raises:
        LabError: There is none, and it cannot be fetched; says what to install.
    """
    version = os.fspath(wanted) if wanted is not None else None
    if version and os.sep in version:
        return _qemu(version)
    for name in _INSTALLED:
        path = shutil.which(name)
        if path and matches((qemu := _qemu(path)).version, version):
            return qemu
    return _qemu(*bundle.command(packages.fetch(packages.qemu, version, report)))


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
        wanted: A path to an image, whose modules are where the distribution or
            its package puts them, a version such as ``"6.12"``, or ``None`` for
            the newest installed one.
        report: Told what is being fetched.

    Raises:
        LabError: There is none, and it cannot be fetched; says what to install.
    """
    version = os.fspath(wanted) if wanted is not None else None
    if version and os.sep in version:
        return _kernel_at(Path(version))
    for kernel in sorted(
        _kernels(Path("/")), key=lambda found: numbers(found.release), reverse=True
    ):
        # Some distributions let nobody but root read the kernel.
        if matches(kernel.release, version) and os.access(kernel.image, os.R_OK):
            return kernel
    tree = packages.fetch(packages.kernel, version, report)
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
        LabError: There is none, and it cannot be fetched; says what to install.
    """
    for name in ("busybox", "busybox.static"):
        path = shutil.which(name)
        if path and _is_static(Path(path)):
            return Path(path)
    tree = packages.fetch(packages.busybox, None, report)
    # Other files of the package go by that name too.
    return next(path for path in tree.glob("**/bin/busybox") if path.is_file())


def _is_static(program: Path) -> bool:
    # A dynamically linked program names its loader right behind its headers.
    with program.open("rb") as file:
        return b"/ld-" not in file.read(4096)
