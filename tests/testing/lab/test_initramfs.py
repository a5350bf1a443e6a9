"""The guest's root file system: the archive's format, and which modules go in."""

from __future__ import annotations

import lzma
import stat
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from qmpballoon.testing.lab._initramfs import (
    build_initramfs,
    load_modules,
    write_cpio,
)
from qmpballoon.testing.lab._qemu import GuestOptions

if TYPE_CHECKING:
    from pathlib import Path

NAMES = st.from_regex(r"[a-z]{1,9}", fullmatch=True)
FILES = st.dictionaries(
    st.lists(NAMES, min_size=1, max_size=3).map("/".join), st.binary(max_size=50)
).filter(
    lambda files: not any(f"{a}/" in f"{b}/" for a in files for b in {*files} - {a})
)


def unpacked(archive: bytes) -> dict[str, tuple[int, bytes]]:
    """Read a newc archive, by the book and apart from what writes it."""
    found: dict[str, tuple[int, bytes]] = {}
    at = 0
    while True:
        assert archive[at : at + 6] == b"070701"
        fields = [int(archive[at + 6 + 8 * n : at + 14 + 8 * n], 16) for n in range(13)]
        mode, size, length = fields[1], fields[6], fields[11]
        name = archive[at + 110 : at + 109 + length].decode()
        start = -(-(at + 110 + length) // 4) * 4
        if name == "TRAILER!!!":
            return found
        found[name] = (mode, archive[start : start + size])
        at = -(-(start + size) // 4) * 4


@given(FILES)
def test_files_come_out_as_they_went_in_after_their_folders(
    files: dict[str, bytes],
) -> None:
    found = unpacked(write_cpio(files))
    contents = {
        name: data for name, (mode, data) in found.items() if stat.S_ISREG(mode)
    }
    assert contents == files
    names = list(found)
    for name in names:
        folder = name.rpartition("/")[0]
        assert not folder or names.index(folder) < names.index(name)


def test_links_and_empty_folders() -> None:
    archive = write_cpio({}, links={"bin/sh": "busybox"}, folders=("proc",))
    found = unpacked(archive)
    assert stat.S_ISLNK(found["bin/sh"][0])
    assert found["bin/sh"][1] == b"busybox"
    assert stat.S_ISDIR(found["proc"][0])
    assert stat.S_ISDIR(found["bin"][0])


def module(folder: Path, name: str, *depends: str, packed: bool = False) -> bytes:
    content = b"\x7fELF\0license=GPL\0depends=" + ",".join(depends).encode() + b"\0"
    path = folder / "kernel/drivers" / f"{name}.ko{'.xz' if packed else ''}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(lzma.compress(content) if packed else content)
    return content


def test_modules_come_after_what_they_need(tmp_path: Path) -> None:
    module(tmp_path, "top", "left", "right")
    module(tmp_path, "left", "bottom", "right")
    module(tmp_path, "right", "bottom")
    module(tmp_path, "bottom")
    module(tmp_path, "unwanted")
    loaded = list(load_modules(tmp_path, ["top"]))
    assert loaded == ["bottom", "right", "left", "top"]


def test_packed_modules_and_dashes(tmp_path: Path) -> None:
    content = module(tmp_path, "virtio-rng", packed=True)
    assert load_modules(tmp_path, ["virtio_rng"]) == {"virtio_rng": content}


def test_a_module_that_is_built_in_is_left_out(tmp_path: Path) -> None:
    assert load_modules(tmp_path, ["virtio_balloon"]) == {}


def test_the_guest_gets_its_modules_and_scripts(tmp_path: Path) -> None:
    modules = tmp_path / "6.1.0-test"
    module(modules, "virtio_pci", "virtio")
    module(modules, "virtio")
    balloon = module(modules, "virtio_balloon", "virtio")
    busybox = tmp_path / "busybox"
    busybox.write_bytes(b"a program")
    found = unpacked(build_initramfs(busybox, modules, driver=True))
    assert found["bin/busybox"][1] == b"a program"
    assert found["init"][1].startswith(b"#!/bin/busybox sh")
    # The balloon's driver is there, but for its own script to load.
    assert found["lab/modules"][1] == b"virtio_pci"
    assert found["lib/modules/6.1.0-test/virtio_balloon.ko"][1] == balloon
    dependencies = found["lib/modules/6.1.0-test/modules.dep"][1].decode()
    assert "virtio_balloon.ko: virtio.ko\n" in dependencies
    assert "lab/driver" in found
    without = unpacked(build_initramfs(busybox, modules, driver=False))
    assert "lab/driver" not in without


def test_only_a_guest_with_scsi_disks_loads_their_drivers(tmp_path: Path) -> None:
    modules, busybox = tmp_path / "6.1.0-test", tmp_path / "busybox"
    busybox.write_bytes(b"a program")
    for name in ("virtio_pci", "virtio_scsi", "sd_mod", "virtio_balloon"):
        module(modules, name)
    for scsi, loaded in (
        (False, b"virtio_pci"),
        (True, b"virtio_pci virtio_scsi sd_mod"),
    ):
        found = unpacked(build_initramfs(busybox, modules, driver=True, scsi=scsi))
        assert found["lab/modules"][1] == loaded
    assert GuestOptions(extra=("-device", "virtio-scsi-pci")).has_scsi
    assert not GuestOptions(extra=("-device", "virtio-rng-pci")).has_scsi
