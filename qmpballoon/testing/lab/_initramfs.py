"""The guest's root file system: busybox, a few scripts, a few kernel modules.

A Linux kernel unpacks a cpio archive into memory and runs ``/init`` from it. This
module writes the archive itself, because the cpio command may not be installed. It
takes milliseconds, so each boot gets an archive of its own and none is cached.
"""

from __future__ import annotations

import lzma
import re
import shutil
import stat
import subprocess
from importlib import resources
from typing import TYPE_CHECKING, Final

from qmpballoon.testing.lab._report import LabError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

__all__ = ["build_initramfs", "load_modules", "write_cpio"]

# Both transports: a microvm's devices are on virtio_mmio, others' on virtio_pci.
_TRANSPORTS: Final = ("virtio_pci", "virtio_mmio", "virtio_blk")
_SCSI: Final = ("virtio_scsi", "sd_mod")
_BALLOON: Final = "virtio_balloon"
_SCRIPTS: Final = ("hog", "release", "load-driver", "unload-driver")

_DIRECTORY: Final = stat.S_IFDIR | 0o755
_PROGRAM: Final = stat.S_IFREG | 0o755
_LINK: Final = stat.S_IFLNK | 0o777
_END: Final = "TRAILER!!!"

# Every module names the modules that it needs in its .modinfo section. modules.dep has
# them too, but it is made when a kernel is installed. A package that was only unpacked
# has none.
_DEPENDS: Final = re.compile(rb"\0depends=([^\0]*)\0")


def build_initramfs(
    busybox: Path, modules: Path, *, driver: bool, scsi: bool = False
) -> bytes:
    """Make the guest's initramfs.

    Args:
        busybox: A statically linked busybox.
        modules: The kernel's module folder, ``.../lib/modules/RELEASE``.
        driver: Whether the balloon's driver is loaded at boot.
        scsi: Whether the drivers of SCSI disks are.

    Returns:
        An uncompressed "newc" cpio archive.

    Raises:
        LabError: A module cannot be read.
    """
    scripts = resources.files("qmpballoon.testing.lab")
    disks = (*_TRANSPORTS, *(_SCSI if scsi else ()))
    loaded = load_modules(modules, (*disks, _BALLOON))
    files = {
        "bin/busybox": busybox.read_bytes(),
        "init": scripts.joinpath("init.sh").read_bytes(),
        "lab/modules": " ".join(n for n in disks if n in loaded).encode(),
        **{
            f"lab/{name}": scripts.joinpath(f"{name}.sh").read_bytes()
            for name in _SCRIPTS
        },
        **_module_tree(loaded, modules.name),
    }
    if driver:
        files["lab/driver"] = b""
    return write_cpio(
        files, links={"bin/sh": "busybox"}, folders=("proc", "sys", "dev")
    )


def write_cpio(
    files: Mapping[str, bytes],
    *,
    links: Mapping[str, str] | None = None,
    folders: Iterable[str] = (),
) -> bytes:
    """Write a "newc" cpio archive.

    The kernel's documentation describes the format (initramfs buffer format).

    Args:
        files: Contents by path, relative to the root. All are executable.
        links: Targets of symbolic links by path.
        folders: Empty folders. The folders of files and links need not be named.

    Returns:
        The archive.
    """
    links = links or {}
    parents = {folder for path in (*files, *links) for folder in _parents(path)}
    entries = [
        *((path, _DIRECTORY, b"") for path in sorted({*parents, *folders})),
        *((path, _PROGRAM, content) for path, content in files.items()),
        *((path, _LINK, target.encode()) for path, target in links.items()),
        (_END, 0, b""),
    ]
    return b"".join(
        _entry(number, path, mode, content)
        for number, (path, mode, content) in enumerate(entries, 1)
    )


def _parents(path: str) -> Iterator[str]:
    parts = path.split("/")[:-1]
    return ("/".join(parts[:n]) for n in range(1, len(parts) + 1))


def _entry(number: int, path: str, mode: int, content: bytes) -> bytes:
    name = path.encode() + b"\0"
    # inode, mode, uid, gid, links, mtime, size, 4 device numbers, name size, check
    fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name), 0)
    header = b"070701" + b"".join(b"%08X" % field for field in fields)
    return _padded(header + name) + _padded(content)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def load_modules(modules: Path, wanted: Iterable[str]) -> dict[str, bytes]:
    """Read kernel modules and all modules that they depend on.

    Args:
        modules: The kernel's module folder.
        wanted: Module names. A module that is built into the kernel, or that the
            kernel does not have, is left out.

    Returns:
        Uncompressed contents by module name, dependencies before dependents.

    Raises:
        LabError: A module is compressed, and this machine has no program for it.
    """
    paths = {_module_name(path): path for path in (modules / "kernel").rglob("*.ko*")}
    loaded: dict[str, bytes] = {}

    def load(name: str) -> None:
        if name in loaded or name not in paths:
            return
        content = _uncompressed(paths[name])
        for dependency in _dependencies(content):
            load(dependency)
        loaded[name] = content

    for name in wanted:
        load(name)
    return loaded


def _module_name(path: Path) -> str:
    return path.name.partition(".")[0].replace("-", "_")


def _dependencies(module: bytes) -> list[str]:
    match = _DEPENDS.search(module)
    names = match[1].decode().replace("-", "_") if match else ""
    return [name for name in names.split(",") if name]


def _uncompressed(path: Path) -> bytes:
    if path.suffix == ".ko":
        return path.read_bytes()
    if path.suffix == ".xz":
        return lzma.decompress(path.read_bytes())
    # Python has no zstd before 3.14.
    tool = shutil.which({".zst": "zstd", ".gz": "gzip"}.get(path.suffix, ""))
    if tool is None:
        raise LabError(f"cannot unpack the kernel module {path}: install zstd")
    return subprocess.run([tool, "-dc", path], check=True, capture_output=True).stdout


def _module_tree(loaded: dict[str, bytes], release: str) -> dict[str, bytes]:
    folder = f"lib/modules/{release}"
    lines = (
        f"{name}.ko: {' '.join(f'{other}.ko' for other in _closure(loaded, name))}"
        for name in loaded
    )
    return {
        f"{folder}/modules.dep": "\n".join((*lines, "")).encode(),
        **{f"{folder}/{name}.ko": content for name, content in loaded.items()},
    }


def _closure(loaded: dict[str, bytes], name: str) -> list[str]:
    """List all modules that a module needs, the first to load last, as depmod does."""
    needed: set[str] = set()
    queue = [name]
    while queue:
        fresh = {*_dependencies(loaded[queue.pop()])} & {*loaded} - needed
        needed |= fresh
        queue += fresh
    return [other for other in reversed(loaded) if other in needed]
