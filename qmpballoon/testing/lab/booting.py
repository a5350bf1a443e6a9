"""Booting a guest and taking it away again."""

from __future__ import annotations

import tempfile
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio
import trio.socket
from attrs import frozen

from qmpballoon.sizes import GiB, MiB, format_size
from qmpballoon.testing.lab import accelerator, initramfs, parts
from qmpballoon.testing.lab.channel import Channel
from qmpballoon.testing.lab.command import BALLOON, Files, Wishes, arguments
from qmpballoon.testing.lab.errors import LabError
from qmpballoon.testing.lab.guest import Guest
from qmpballoon.testing.lab.process import running, wait_ended
from qmpballoon.testing.lab.progress import Progress, ProgressBar, Report

if TYPE_CHECKING:
    import os
    import subprocess
    from collections.abc import AsyncGenerator, Generator, Sequence

__all__ = ["boot"]

# QEMU is to have opened all its files and connected to us after this many seconds.
_START: Final = 60
# With KVM that works a guest is ready in a second; a busy machine is given more.
_PROBE: Final = 10
_PROBE_MEMORY: Final = 256 * MiB
# A unix socket's path must fit into 108 bytes, and ends with the socket's name.
_LONGEST_FOLDER: Final = 60


@frozen
class Parts:
    """All that a guest is made of."""

    qemu: parts.Qemu
    kernel: parts.Kernel
    busybox: Path


@asynccontextmanager
async def boot(
    *,
    memory: int = 2 * GiB,
    cache: int = 0,
    hog: int = 0,
    device: str | None = BALLOON,
    driver: bool = True,
    machine: str = "pc",
    cpus: int = 1,
    qemu: str | os.PathLike[str] | None = None,
    kernel: str | os.PathLike[str] | None = None,
    accel: str | None = None,
    extra: Sequence[str] = (),
    paused: bool = False,
    timeout: float = 120,
    progress: Report | None = None,
) -> AsyncGenerator[Guest]:
    """Boot a throwaway Linux guest in a QEMU of its own, as a trio context manager.

    At the end of the block, also on an exception or when cancelled, QEMU is killed
    and its files are removed. Should this process be killed, the kernel kills QEMU.

    Args:
        memory: The guest's memory in bytes, at least 64 MiB.
        cache: Bytes of page cache that the guest fills before the block starts.
        hog: Bytes of anonymous memory that it holds then; see :meth:`Guest.hog`.
        device: The balloon, as for QEMU's ``-device`` (properties such as
            ``deflate-on-oom=on`` included), or ``None`` for no balloon.
        driver: Whether the guest drives its balloon from the start.
        machine: ``"pc"``, ``"q35"``, or ``"microvm"``; the latter has no PCI bus
            and wants ``virtio-balloon-device``.
        cpus: The guest's processors.
        qemu: A path, or a version such as ``"10.0"``; ``None`` for the installed
            one. What is not installed is fetched.
        kernel: Likewise: a path, a version such as ``"6.12"``, or ``None``.
        accel: ``"kvm"`` or ``"tcg"``; ``None`` for KVM where it is proven to boot.
        extra: More arguments for QEMU. They come last, and so
            ``("-m", "slots=2,maxmem=8G")`` adds to the memory's options.
        paused: Whether QEMU waits for a ``cont``. The guest has not booted then
            when the block starts, as with ``-incoming`` in ``extra``: see
            :meth:`Guest.ready`.
        timeout: Seconds in which it must have booted. Fetching does not count.
        progress: Told what is being fetched; by default a bar on standard error.

    Yields:
        The guest, ready to take commands.

    Raises:
        LabError: Something is missing and cannot be fetched, or the guest did not
            boot; the message says what to install, or ends with what QEMU and the
            guest's console said last.
        ValueError: A paused guest cannot fill its cache or hold memory, and none can
            fill or hold all that it has.
    """
    wishes = Wishes(
        memory=memory,
        device=device,
        driver=driver,
        machine=machine,
        cpus=cpus,
        extra=tuple(extra),
        paused=paused,
    )
    if wishes.waits and (cache or hog):
        raise ValueError(
            "a paused guest runs nothing: call fill_cache and hog once it is ready"
        )
    if cache + hog >= memory:
        raise ValueError(
            f"what a guest of {format_size(memory)} caches and holds must be less than"
            f" that, and not {format_size(cache + hog)}: give it more memory"
        )
    gathered = await gather(qemu, kernel, progress or ProgressBar())
    if accel is None:
        accel = await accelerator.choose(
            f"{gathered.qemu.command} {gathered.qemu.version}",
            str(gathered.kernel.image),
            partial(_boots_with_kvm, gathered),
        )
    async with _machine(wishes, gathered, accel) as guest:
        if not wishes.waits:
            await guest.ready(timeout=timeout)
            await guest.fill_cache(cache)
            await guest.hog(hog)
        yield guest


async def gather(
    qemu: str | os.PathLike[str] | None,
    kernel: str | os.PathLike[str] | None,
    report: Report,
) -> Parts:
    """Find what a guest is made of, or fetch it; see :func:`boot`."""

    def find() -> Parts:
        return Parts(
            parts.find_qemu(qemu, cancellable),
            parts.find_kernel(kernel, cancellable),
            parts.find_busybox(cancellable),
        )

    def cancellable(progress: Progress) -> None:
        trio.from_thread.check_cancelled()
        report(progress)

    return await trio.to_thread.run_sync(find)


@asynccontextmanager
async def _machine(
    wishes: Wishes, gathered: Parts, accel: str
) -> AsyncGenerator[Guest]:
    """Start QEMU; the guest has not booted yet when the block starts."""
    with _folder() as folder:
        files = Files.within(folder, gathered.kernel.image)
        files.initramfs.write_bytes(
            initramfs.build(
                gathered.busybox, gathered.kernel.modules, driver=wishes.driver
            )
        )
        command = [*gathered.qemu.command, *arguments(wishes, files, accel)]
        with trio.socket.socket(trio.socket.AF_UNIX) as listener:
            await listener.bind(str(files.channel))
            listener.listen(1)
            async with running(command, files.errors) as process:
                with await _connected(listener, process, files.errors) as channel:
                    yield Guest(
                        socket=files.qmp,
                        second_socket=files.second_qmp,
                        process=process,
                        accel=accel,
                        qemu_version=gathered.qemu.version,
                        console_file=files.console,
                        errors_file=files.errors,
                        channel=Channel(channel),
                    )


@contextmanager
def _folder() -> Generator[Path]:
    """Make a folder, for this user alone, whose path leaves room for sockets."""
    base = tempfile.gettempdir()
    with tempfile.TemporaryDirectory(
        prefix="qmpballoon-",
        dir=base if len(base) < _LONGEST_FOLDER else "/tmp",  # noqa: S108
        ignore_cleanup_errors=True,
    ) as folder:
        yield Path(folder)


async def _connected(
    listener: trio.socket.SocketType, process: subprocess.Popen[bytes], errors: Path
) -> trio.socket.SocketType:
    """Wait for QEMU to connect; by then its monitors are there as well."""
    connected: list[trio.socket.SocketType] = []

    async def accept() -> None:
        connected.append((await listener.accept())[0])
        nursery.cancel_scope.cancel()

    async def watch() -> None:
        await wait_ended(process)
        nursery.cancel_scope.cancel()

    with trio.move_on_after(_START):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(accept)
            nursery.start_soon(watch)
    if connected:
        return connected[0]
    said = _read(errors).strip() or "it said nothing"
    raise LabError(f"QEMU did not start: {said}")


def _read(path: Path) -> str:
    return path.read_text(errors="replace")


async def _boots_with_kvm(gathered: Parts) -> bool:
    wishes = Wishes(memory=_PROBE_MEMORY, device=None)
    try:
        async with _machine(wishes, gathered, "kvm") as guest:
            await guest.ready(timeout=_PROBE)
    except LabError:
        return False
    return True
