"""What a guest is made of: the right busybox, and KVM where it boots."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio

from qmpballoon.testing.lab import _parts as parts

if TYPE_CHECKING:
    from pathlib import Path

    from qmpballoon.testing import lab


def silent(_progress: lab.FetchProgress) -> None:
    """Take progress and show nothing."""


@pytest.mark.usefixtures("cache_folder")
async def test_kvm_is_tried_once_and_the_verdict_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = tmp_path / "kvm"
    monkeypatch.setattr(parts, "_KVM", device)
    tried: list[str] = []

    async def hangs() -> bool:
        await trio.lowlevel.checkpoint()
        tried.append("hangs")
        return False

    async def boots() -> bool:
        await trio.lowlevel.checkpoint()
        tried.append("boots")
        return True

    assert await parts.choose_accelerator("qemu", "6.1", boots) == "tcg"
    assert tried == []
    device.touch()
    assert await parts.choose_accelerator("qemu", "6.1", hangs) == "tcg"
    assert await parts.choose_accelerator("qemu", "6.1", boots) == "tcg"
    assert await parts.choose_accelerator("qemu", "6.12", boots) == "kvm"
    assert tried == ["hangs", "boots"]


def test_the_program_is_taken_and_not_another_file_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hook = tmp_path / "usr/share/initramfs-tools/conf-hooks.d/busybox"
    program = tmp_path / "usr/bin/busybox"
    for path in (hook, program):
        path.parent.mkdir(parents=True)
        path.touch()
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    monkeypatch.setattr(parts, "fetch", lambda *_: tmp_path)
    assert parts.find_busybox(silent) == program
