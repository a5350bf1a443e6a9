"""KVM where it is proven to boot a guest; TCG everywhere else.

That ``/dev/kvm`` can be opened proves little: inside some virtual machines it is
there, and a guest hangs before its first line of output. So a small guest is booted
with it, once for each boot of the host, QEMU and kernel, against a short deadline;
the verdict is kept in the cache folder.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from qmpballoon.testing.lab.cache import cache_folder, write_whole

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

__all__ = ["choose"]

_DEVICE: Final = Path("/dev/kvm")
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


async def choose(
    qemu: str, kernel: str, boots_with_kvm: Callable[[], Awaitable[bool]]
) -> str:
    """Choose an accelerator.

    Args:
        qemu: What the verdict depends on: which QEMU ...
        kernel: ... and which kernel.
        boots_with_kvm: Tries it, against a deadline of its own.

    Returns:
        ``"kvm"`` or ``"tcg"``.
    """
    if not os.access(_DEVICE, os.R_OK | os.W_OK):
        return "tcg"
    case = f"{_BOOT_ID.read_text()}{qemu}\n{kernel}"
    name = hashlib.sha256(case.encode()).hexdigest()[:16]
    verdict = cache_folder() / "accelerators" / name
    if not verdict.exists():
        write_whole(verdict, "kvm" if await boots_with_kvm() else "tcg")
    return verdict.read_text()
