"""A lab: a real QEMU with a throwaway Linux guest, for tests and for trying out.

::

    from qmpballoon.testing import lab

    async with lab.boot(memory=2 * lab.GiB, cache=lab.GiB) as guest:
        ...                               # guest.socket is its QMP monitor
        await guest.hog(200 * lab.MiB)
        (await guest.meminfo())["MemAvailable"]

``python -m qmpballoon.testing.lab`` boots one until Ctrl-C, and with ``--fetch``
only fetches what tests will need later.

What it needs: Linux on x86-64, and a QEMU (``qemu-system-x86_64``), a Linux kernel
with its modules and a static busybox. It uses what is installed. What is missing,
or wanted in another version, it fetches from the package archive that the machine's
own apt uses, without root, into ``~/.cache/qmpballoon`` (``$QMPBALLOON_CACHE``,
``$XDG_CACHE_HOME``): about 40 MB for a QEMU, which become 200, and 35 for a kernel.
After that it needs no network. Debian machines can have the QEMUs and kernels of
all of Debian's releases; elsewhere they are those of the machine's own release.

The guest runs from memory: a kernel and an initramfs with busybox and the virtio
drivers. It is ready in about 2.5 seconds without KVM, which is used only where it
is proven to boot. Its commands come over a serial line of their own, its console is
kept in a file. A panic stays on the console and QEMU stays up; a reboot reboots.
Memory that is plugged in comes online by itself.

Nothing is left behind: at the end of the block QEMU is killed and its folder is
removed, and if this process is killed itself, the kernel kills QEMU (its folder
then remains, in the temporary folder).
"""

from __future__ import annotations

from qmpballoon.sizes import GiB, MiB
from qmpballoon.testing.lab.booting import boot
from qmpballoon.testing.lab.errors import GuestCommandError, LabError
from qmpballoon.testing.lab.guest import Guest
from qmpballoon.testing.lab.progress import Progress, ProgressBar

__all__ = [
    "GiB",
    "Guest",
    "GuestCommandError",
    "LabError",
    "MiB",
    "Progress",
    "ProgressBar",
    "boot",
]
