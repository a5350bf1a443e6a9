"""A real libvirtd with a guest, for a test, which leaves nothing behind.

It takes root, as the daemon does, and ``unshare``. The daemon runs in a mount
namespace where it finds the configuration and the users it wants; the machine's own
libvirt, if there is one, is neither used nor disturbed.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import time
from contextlib import contextmanager, suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import parse_qs, urlsplit

from qmpballoon.testing.lab import ProgressBar
from qmpballoon.testing.lab._initramfs import build_initramfs
from qmpballoon.testing.lab._parts import find_busybox, find_kernel
from qmpballoon.testing.lab._qemu import write_kernel_line

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence
    from types import ModuleType

# libvirt-python has no types.
Connection: TypeAlias = Any
Domain: TypeAlias = Any

SCRIPT = Path(__file__).with_suffix(".sh")
START = 30  # seconds
POLL = 0.05


def missing() -> str | None:
    """Say why there can be no libvirtd here; ``None`` if there can."""
    if find_spec("libvirt") is None:
        return "there is no libvirt-python: install the extra libvirt"
    if os.geteuid() != 0:
        return "libvirtd has to be started as root"
    for command in ("libvirtd", "unshare", "qemu-system-x86_64"):
        if shutil.which(command) is None:
            return f"there is no {command}: install libvirt-daemon and its QEMU driver"
    return None


@contextmanager
def running() -> Generator[Connection]:
    """Run a libvirtd; yield a connection to it."""
    libvirt = _binding()
    # What goes wrong is raised; it need not be printed as well.
    libvirt.registerErrorHandler(lambda *_: None, None)
    with TemporaryDirectory(prefix="lv-") as folder:
        with Path(folder, "log").open("wb") as log:
            daemon = subprocess.Popen(
                ["unshare", "-m", "sh", SCRIPT, folder], stderr=log, stdout=log
            )
        try:
            connection = _connected(folder, daemon)
            try:
                yield connection
            finally:
                connection.close()
        finally:
            daemon.terminate()
            daemon.wait(START)


def pid(connection: Connection) -> int:
    """Return the process id of the daemon behind a connection."""
    folder = Path(parse_qs(urlsplit(connection.getURI()).query)["socket"][0]).parent
    return int((folder / "pid").read_text())


def _connected(folder: str, daemon: subprocess.Popen[bytes]) -> Connection:
    libvirt = _binding()
    address = f"qemu+unix:///system?socket={folder}/libvirt-sock"
    deadline = time.monotonic() + START
    while True:
        try:
            return libvirt.open(address)
        except libvirt.libvirtError:
            if daemon.poll() is not None or time.monotonic() > deadline:
                log = Path(folder, "log").read_text(errors="replace")
                raise AssertionError(f"libvirtd did not start: {log}") from None
        time.sleep(POLL)


@contextmanager
def domain(
    connection: Connection,
    *,
    memory: int,
    balloon: bool = True,
    qemu: Sequence[str] = ("qemu-system-x86_64",),
) -> Generator[Domain]:
    """Boot a guest; yield its domain.

    Args:
        connection: To the libvirtd.
        memory: Its RAM, in bytes.
        balloon: Whether it has one.
        qemu: Starts its QEMU.
    """
    bar = ProgressBar()
    kernel, busybox = find_kernel(None, bar), find_busybox(bar)
    with TemporaryDirectory(prefix="lv-") as folder:
        initrd = Path(folder, "initrd")
        initrd.write_bytes(build_initramfs(busybox, kernel.modules, driver=True))
        emulator = Path(folder, "qemu")
        emulator.write_text(f'#!/bin/sh\nexec {shlex.join(qemu)} "$@"\n')
        emulator.chmod(0o700)
        created = connection.createXML(
            f"""
            <domain type="qemu">
              <name>{Path(folder).name}</name>
              <memory unit="b">{memory}</memory>
              <vcpu>1</vcpu>
              <os>
                <type arch="x86_64" machine="pc">hvm</type>
                <kernel>{kernel.image}</kernel>
                <initrd>{initrd}</initrd>
                <cmdline>{write_kernel_line("pc")}</cmdline>
              </os>
              <features><acpi/></features>
              <devices>
                <emulator>{emulator}</emulator>
                <serial type="null"/>
                <serial type="null"/>
                <memballoon model="{"virtio" if balloon else "none"}"/>
              </devices>
            </domain>
            """
        )
        try:
            yield created
        finally:
            with suppress(_binding().libvirtError):  # it has ended by itself
                created.destroy()


def _binding() -> ModuleType:
    return import_module("libvirt")
