"""Booting a guest, and removing it."""

from __future__ import annotations

import hashlib
import tempfile
from contextlib import (
    AsyncExitStack,
    ExitStack,
    asynccontextmanager,
    contextmanager,
    suppress,
)
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio
import trio.socket
from attrs import frozen

from qmpballoon.sizes import GiB, MiB, format_size
from qmpballoon.testing.lab._channel import Channel
from qmpballoon.testing.lab._guest import Guest
from qmpballoon.testing.lab._initramfs import build_initramfs
from qmpballoon.testing.lab._parts import (
    Kernel,
    Qemu,
    choose_accelerator,
    find_busybox,
    find_kernel,
    find_qemu,
)
from qmpballoon.testing.lab._qemu import (
    BALLOON,
    Files,
    GuestOptions,
    run_process,
    wait_ended,
    write_arguments,
)
from qmpballoon.testing.lab._report import FetchProgress, LabError, ProgressBar
from qmpballoon.testing.lab._saved import (
    continue_guest,
    find_saved,
    identify_guest,
    incoming_arguments,
    lock_guest,
    save_guest,
)

if TYPE_CHECKING:
    import os
    import subprocess
    from collections.abc import AsyncGenerator, Callable, Generator, Sequence

    from qmpballoon.testing.lab._report import Report
    from qmpballoon.testing.lab._saved import SavedGuest

__all__ = ["boot", "find_parts", "identify_boot"]

_CPUINFO: Final = Path("/proc/cpuinfo")
# Seconds in which QEMU must have opened its files and connected to the lab. It takes
# less than one; a busy machine may need many.
_START: Final = 60
# Seconds for the guest that proves KVM. With KVM that works it is ready in one; a busy
# machine may need some more.
_PROBE: Final = 10
_PROBE_MEMORY: Final = 256 * MiB
# A unix socket's path has at most 107 bytes. This leaves room for the name of the
# guest's folder and of the socket.
_LONGEST_FOLDER: Final = 60


@frozen
class Parts:
    """What a guest is made of."""

    qemu: Qemu
    kernel: Kernel
    busybox: Path


@asynccontextmanager
async def boot(
    *,
    memory: int = 2 * GiB,
    cache: int = 0,
    hog: int = 0,
    setup: str = "",
    device: str | None = BALLOON,
    driver: bool = True,
    machine: str = "pc",
    cpus: int = 1,
    qemu: str | os.PathLike[str] | None = None,
    kernel: str | os.PathLike[str] | None = None,
    accel: str | None = None,
    extra: Sequence[str] = (),
    paused: bool = False,
    saved: bool = False,
    timeout: float = 120,
    progress: Callable[[FetchProgress], None] | None = None,
) -> AsyncGenerator[Guest]:
    """Boot a throwaway Linux guest in a QEMU of its own, as a trio context manager.

    At the end of the block, also on an exception or when cancelled, QEMU is killed
    and its files are removed. If this process is killed, the kernel kills QEMU.

    Args:
        memory: The guest's memory in bytes, at least 64 MiB.
        cache: Bytes of page cache that the guest fills before the block starts.
        hog: Bytes of anonymous memory that the guest allocates before the block
            starts; see :meth:`Guest.hog`.
        setup: Shell commands that the guest runs last before the block starts; see
            :meth:`Guest.run`. What they start in the background goes on.
        device: The balloon device, as in QEMU's ``-device`` argument, with properties
            such as ``deflate-on-oom=on``; ``None`` for no balloon.
        driver: Whether the guest loads the balloon's driver at boot.
        machine: ``"pc"``, ``"q35"`` or ``"microvm"``. A microvm has no PCI bus and
            needs ``virtio-balloon-device``.
        cpus: The number of the guest's processors.
        qemu: A path, a version such as ``"10.0"``, or ``None`` for the installed
            QEMU. A version that is not installed is fetched.
        kernel: A path, a version such as ``"6.12"``, or ``None`` for the newest
            installed kernel. A version that is not installed is fetched.
        accel: ``"kvm"`` or ``"tcg"``; ``None`` for KVM where it has booted a guest,
            and TCG elsewhere.
        extra: More arguments for QEMU. They come last, so
            ``("-m", "slots=2,maxmem=8G")`` adds to the memory's options. With a
            ``virtio-scsi-pci`` among them the guest loads the drivers of SCSI disks.
        paused: Whether QEMU waits for the command ``cont``. When the block starts,
            the guest has then not booted. The same holds for ``-incoming`` in
            ``extra``. See :meth:`Guest.ready`.
        saved: Whether to start a guest that was saved after it had booted; see
            below. If there is none with these arguments, the guest is booted and
            saved first.
        timeout: Seconds in which the guest must have booted, without the time for
            fetching.
        progress: Called with the progress of fetching; ``None`` for a bar on
            standard error. An exception that it raises stops the download.

    Yields:
        The guest, ready to take commands.

    Raises:
        LabError: Something is missing and cannot be fetched, or the guest did not
            boot. The message says what to install, or ends with the last output of
            QEMU and of the guest's console.
        GuestCommandError: ``setup`` ended with a status other than 0.
        ValueError: A paused guest was to fill its cache, to allocate memory, to run
            commands or to be saved, or a guest was to fill or allocate all of its
            memory.

    A saved guest starts in 0.3 seconds where booting takes 4. It is saved once for
    each QEMU, kernel, and set of arguments, after ``setup``, in ``guests`` in the cache
    folder, where a guest needs some 90 MB. A damaged file is made anew. All saved
    guests together need at most 4 GiB: those that were not used for the longest time
    are removed.
    Files that ``extra`` names are not saved with the guest. A saved guest differs
    from one that has just booted:

    - Pages of zeroes are not resident in QEMU. These are the pages that ``cache`` and
      ``hog`` fill. A test of resident memory boots, or fills the cache in the block.
    - The guest's clocks go on from the moment at which it was saved.
    - QEMU saves the balloon's target, but not the interval of its statistics. As
      after a boot, the interval is 0 and the statistics are those that the driver
      sent when it was loaded.
    """
    options = GuestOptions(
        memory=memory,
        device=device,
        driver=driver,
        machine=machine,
        cpus=cpus,
        extra=tuple(extra),
        paused=paused,
        cache=cache,
        hog=hog,
        setup=setup,
    )
    if options.waits and (cache or hog or setup):
        raise ValueError(
            "a paused guest runs nothing: call fill_cache, hog and run once it is ready"
        )
    if options.waits and saved:
        raise ValueError("a paused guest has not booted: it cannot be saved")
    if cache + hog >= memory:
        raise ValueError(
            f"what a guest of {format_size(memory)} caches and holds must be less than"
            f" that, and not {format_size(cache + hog)}: give it more memory"
        )
    parts = await find_parts(qemu, kernel, progress or ProgressBar())
    if accel is None:
        accel = await choose_accelerator(
            f"{parts.qemu.command} {parts.qemu.version}",
            str(parts.kernel.image),
            partial(_boots_with_kvm, parts),
        )
    start = _start_saved if saved else _start_booted
    async with start(options, parts, accel, timeout) as guest:
        yield guest


@asynccontextmanager
async def _start_booted(
    options: GuestOptions, parts: Parts, accel: str, timeout: float
) -> AsyncGenerator[Guest]:
    """Boot a guest; let it fill its cache and allocate memory."""
    async with _start_qemu(options, parts, accel) as guest:
        if not options.waits:
            await guest.ready(timeout=timeout)
            await guest.fill_cache(options.cache)
            await guest.hog(options.hog)
            if options.setup:
                await guest.run(options.setup)
        yield guest


@asynccontextmanager
async def _start_saved(
    options: GuestOptions, parts: Parts, accel: str, timeout: float
) -> AsyncGenerator[Guest]:
    """Start a saved guest; boot and save one if there is none."""
    key = await trio.to_thread.run_sync(identify_boot, options, parts, accel)
    async with AsyncExitStack() as stack:

        async def start() -> Guest | None:
            saved = await trio.to_thread.run_sync(find_saved, key)
            if saved is None:
                return None
            async with AsyncExitStack() as attempt:
                starting = _start_qemu(options, parts, accel, saved)
                # What was whole, and QEMU cannot read, is made anew as well.
                with suppress(LabError), _limit(timeout):
                    guest = await attempt.enter_async_context(starting)
                    await continue_guest(guest.second_socket)
                    stack.push_async_exit(attempt.pop_all())
                    return guest
            return None

        guest = await start()
        if guest is None:
            with ExitStack() as locks:
                await trio.to_thread.run_sync(locks.enter_context, lock_guest(key))
                # The process that held the lock may have saved this guest.
                guest = await start()
                if guest is None:
                    async with _start_booted(options, parts, accel, timeout) as booted:
                        await save_guest(
                            key,
                            booted.second_socket,
                            release=booted.kernel_release,
                            console=booted.console,
                        )
                    guest = await start()
        if guest is None:
            raise LabError("QEMU cannot read the guest that it has saved")
        yield guest


@contextmanager
def _limit(seconds: float) -> Generator[None]:
    try:
        with trio.fail_after(seconds):
            yield
    except trio.TooSlowError as error:
        raise LabError(f"QEMU did not read a guest in {seconds:g} s") from error


def identify_boot(options: GuestOptions, parts: Parts, accel: str) -> str:
    """Return the digest of a guest, from all that it is made of."""
    kernel = parts.kernel.image
    # The same for all guests: the paths of their own folders say nothing of them.
    files = Files.within(Path("/"), kernel)
    depends = {
        "qemu": [parts.qemu.version, *parts.qemu.command],
        "arguments": write_arguments(options, files, accel),
        "kernel": hashlib.sha256(kernel.read_bytes()).hexdigest(),
        "initramfs": hashlib.sha256(_initramfs(options, parts)).hexdigest(),
        "cache": options.cache,
        "hog": options.hog,
        "setup": options.setup,
        # A guest of KVM's has the host's own processor.
        "processor": _CPUINFO.read_text().partition("\n\n")[0]
        if accel == "kvm"
        else "",
    }
    return identify_guest(depends, Path(parts.qemu.command[-1]))


def _initramfs(options: GuestOptions, parts: Parts) -> bytes:
    modules = parts.kernel.modules
    return build_initramfs(
        parts.busybox, modules, driver=options.driver, scsi=options.has_scsi
    )


async def find_parts(
    qemu: str | os.PathLike[str] | None,
    kernel: str | os.PathLike[str] | None,
    report: Report,
) -> Parts:
    """Find what a guest is made of, and fetch what is missing; see :func:`boot`."""

    def find() -> Parts:
        return Parts(
            find_qemu(qemu, cancellable),
            find_kernel(kernel, cancellable),
            find_busybox(cancellable),
        )

    def cancellable(progress: FetchProgress) -> None:
        trio.from_thread.check_cancelled()
        report(progress)

    return await trio.to_thread.run_sync(find)


@asynccontextmanager
async def _start_qemu(
    options: GuestOptions, parts: Parts, accel: str, saved: SavedGuest | None = None
) -> AsyncGenerator[Guest]:
    """Start QEMU; when the block starts, the guest has not booted or been read yet."""
    with _make_folder() as folder:
        files = Files.within(folder, parts.kernel.image)
        files.initramfs.write_bytes(_initramfs(options, parts))
        command = [*parts.qemu.command, *write_arguments(options, files, accel)]
        if saved is not None:
            files.console.write_text(saved.console)
            command += incoming_arguments(saved)
        with trio.socket.socket(trio.socket.AF_UNIX) as listener:
            await listener.bind(str(files.channel))
            listener.listen(1)
            async with run_process(command, files.errors) as process:
                with await _accept_channel(listener, process, files.errors) as channel:
                    yield Guest(
                        socket=files.qmp,
                        second_socket=files.second_qmp,
                        process=process,
                        accel=accel,
                        qemu_version=parts.qemu.version,
                        console_file=files.console,
                        errors_file=files.errors,
                        channel=Channel(
                            channel,
                            boots=0 if saved is None else 1,
                            release="" if saved is None else saved.release,
                        ),
                        filled=0 if saved is None else -(-options.cache // MiB),
                    )


@contextmanager
def _make_folder() -> Generator[Path]:
    """Make a folder for this user only, with a path short enough for sockets."""
    base = tempfile.gettempdir()
    with tempfile.TemporaryDirectory(
        prefix="qmpballoon-",
        dir=base if len(base) < _LONGEST_FOLDER else "/tmp",  # noqa: S108
        ignore_cleanup_errors=True,
    ) as folder:
        yield Path(folder)


async def _accept_channel(
    listener: trio.socket.SocketType, process: subprocess.Popen[bytes], errors: Path
) -> trio.socket.SocketType:
    """Wait until QEMU connects to the channel; its monitors exist by then."""
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
    printed = _read(errors).strip() or "it printed nothing"
    raise LabError(f"QEMU did not start: {printed}")


def _read(path: Path) -> str:
    return path.read_text(errors="replace")


async def _boots_with_kvm(parts: Parts) -> bool:
    options = GuestOptions(memory=_PROBE_MEMORY, device=None)
    try:
        async with _start_qemu(options, parts, "kvm") as guest:
            await guest.ready(timeout=_PROBE)
    except LabError:
        return False
    return True
