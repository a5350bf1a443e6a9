"""The lab: a real QEMU with a throwaway Linux guest, for tests and experiments.

::

    from qmpballoon.testing import lab

    async with lab.boot(memory=2 * lab.GiB, cache=lab.GiB) as guest:
        ...                               # guest.socket is its QMP monitor
        await guest.hog(200 * lab.MiB)
        (await guest.meminfo())["MemAvailable"]

``python -m qmpballoon.testing.lab`` boots a guest and keeps it until Ctrl-C. With
``--fetch`` it only fetches what later tests need.

The lab needs Linux on x86-64, a QEMU (``qemu-system-x86_64``), a Linux kernel with
its modules, and a static busybox. It uses what is installed. It fetches what is
missing, or installed in another version than asked for, from the package archive
that the machine's apt uses, without root, into ``~/.cache/qmpballoon``
(``$QMPBALLOON_CACHE``, ``$XDG_CACHE_HOME``). A QEMU is a download of about 40 MB,
which becomes 200 MB on disk, and a kernel one of 35 MB. After that the lab needs no
network. A Debian machine can fetch the QEMUs and kernels of all of Debian's
releases, other machines those of their own release.

The guest consists of a kernel and an initramfs with busybox and the virtio drivers.
It has no disk but the one that :meth:`Guest.fill_cache` reads. It boots in some 4
seconds without KVM; KVM is used only where it has booted a guest. A guest that was
saved (``saved=True``) starts in 0.3 seconds. Commands go over a
serial line of their own. The console is written to a file. A panic is seen on the
console, and QEMU stays. A reboot reboots. Plugged memory comes online by itself.

Nothing is left behind. At the end of the block QEMU is killed and its folder is
removed. If this process is killed, the kernel kills QEMU; its folder then stays in
the temporary folder.
"""

from __future__ import annotations

from qmpballoon.sizes import GiB, MiB
from qmpballoon.testing.lab._boot import boot
from qmpballoon.testing.lab._guest import Guest
from qmpballoon.testing.lab._report import (
    FetchProgress,
    GuestCommandError,
    LabError,
    ProgressBar,
)

__all__ = [
    "FetchProgress",
    "GiB",
    "Guest",
    "GuestCommandError",
    "LabError",
    "MiB",
    "ProgressBar",
    "boot",
]
