"""Guests that cannot be booted are refused; what a saved guest's name depends on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from qmpballoon.sizes import GiB, MiB
from qmpballoon.testing import lab
from qmpballoon.testing.lab._boot import Parts, identify_boot
from qmpballoon.testing.lab._parts import Kernel, Qemu
from qmpballoon.testing.lab._qemu import GuestOptions


@pytest.mark.parametrize(
    "options",
    [
        {"memory": MiB},
        {"machine": "z80"},
        {"cpus": 0},
        {"memory": GiB, "cache": GiB - MiB, "hog": MiB},
    ],
)
async def test_options_that_cannot_be_had(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="must be"):
        async with lab.boot(**options):  # type: ignore[arg-type]
            pass


async def test_a_paused_guest_cannot_work() -> None:
    for work in ({"cache": MiB}, {"hog": MiB}, {"setup": "true"}):
        with pytest.raises(ValueError, match="call fill_cache, hog and run once it is"):
            async with lab.boot(paused=True, **work):
                pytest.fail("it was started")


async def test_a_paused_guest_cannot_be_saved() -> None:
    with pytest.raises(ValueError, match="it cannot be saved"):
        async with lab.boot(paused=True, saved=True):
            pass


@pytest.fixture
def parts(tmp_path: Path) -> Parts:
    for name in ("qemu", "vmlinuz", "busybox"):
        (tmp_path / name).write_bytes(name.encode())
    modules = tmp_path / "6.1.0-test"
    modules.mkdir()
    return Parts(
        Qemu((str(tmp_path / "qemu"),), "7.2.22"),
        Kernel(tmp_path / "vmlinuz", modules),
        tmp_path / "busybox",
    )


@pytest.mark.parametrize(
    "changed",
    [
        {"memory": 2 * GiB},
        {"device": None},
        {"device": "virtio-balloon-pci,id=balloon0,deflate-on-oom=on"},
        {"driver": False},
        {"machine": "q35"},
        {"cpus": 2},
        {"extra": ("-m", "slots=2,maxmem=8G")},
        {"cache": MiB},
        {"hog": MiB},
        {"setup": "true"},
    ],
    ids=str,
)
def test_a_changed_command_line_is_another_saved_guest(
    parts: Parts, changed: dict[str, Any]
) -> None:
    options = GuestOptions()
    name = identify_boot(options, parts, "tcg")
    assert identify_boot(GuestOptions(), parts, "tcg") == name
    assert identify_boot(evolve(options, **changed), parts, "tcg") != name


def test_every_part_is_in_a_saved_guests_name(parts: Parts) -> None:
    def name(accel: str = "tcg") -> str:
        return identify_boot(GuestOptions(), parts, accel)

    seen = [name(), name("kvm")]
    for part in (parts.kernel.image, parts.busybox, Path(parts.qemu.command[0])):
        part.write_bytes(b"another version")
        seen.append(name())
    parts = evolve(parts, qemu=evolve(parts.qemu, version="7.2.23"))
    seen.append(name())
    module = parts.kernel.modules / "kernel/virtio_balloon.ko"
    module.parent.mkdir()
    module.write_bytes(b"a module")
    seen.append(name())
    assert len({*seen}) == len(seen)
