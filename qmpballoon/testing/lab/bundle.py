"""A QEMU that runs from a folder its packages were only unpacked to."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Final

from qmpballoon.testing.lab.errors import LabError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["command", "prepare"]

_BINARY: Final = "usr/bin/qemu-system-x86_64"
_LOADER: Final = "usr/bin/qemu-loader"
_LIBRARIES: Final = ("lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu")


def prepare(tree: Path) -> None:
    """Make QEMU find its own.

    It is started through its own dynamic loader, with its own libraries, so that
    nothing of the machine's is needed or gets in its way. QEMU looks for its
    firmware and its modules in ``qemu-bundle``, in the folder of the running
    program, before anywhere else. The running program being the loader, both go to
    the same folder. Without that QEMU would load the modules of another version
    that is installed, and abort.

    Raises:
        LabError: The tree holds no QEMU or no loader.
    """
    for folder in _LIBRARIES:
        loader = tree / folder / "ld-linux-x86-64.so.2"
        if loader.exists() and not loader.is_symlink():
            shutil.copy2(loader, tree / _LOADER)
            break
    else:
        raise LabError(f"there is no dynamic loader for QEMU in {tree}")
    (tree / _LOADER).with_name("qemu-bundle").symlink_to("../..")


def command(tree: Path) -> tuple[str, ...]:
    """Say how that QEMU's command line begins."""
    libraries = ":".join(str(tree / folder) for folder in _LIBRARIES)
    return (str(tree / _LOADER), "--library-path", libraries, str(tree / _BINARY))
