"""Starting QEMU, and making sure that it ends.

QEMU must not outlive the lab, whatever happens to it: a test run that is killed
must leave no QEMU with gigabytes behind. So the kernel is asked to kill QEMU when
the thread that started it ends (``PR_SET_PDEATHSIG``), between fork and exec, by a
small Python program that then becomes QEMU. It is started from the thread that
runs trio, and not from one of trio's worker threads: those come and go.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import trio

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence
    from pathlib import Path

__all__ = ["running", "wait_ended"]

# arguments: the parent's pid, then the command. The parent may have ended before
# the kernel was asked; then nobody would ever send the signal.
_BECOME: Final = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 9)
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""
# Freeing 16 GiB of guest takes the kernel a second or two.
_LONGEST_END: Final = 60


@asynccontextmanager
async def running(
    command: Sequence[str], errors: Path
) -> AsyncGenerator[subprocess.Popen[bytes]]:
    """Run a program that is killed at the end of the block, or with this process.

    Args:
        command: The program's path and arguments.
        errors: A file for what it prints on either stream.
    """
    with errors.open("wb") as output:
        # Blocks for a few milliseconds; trio's own way would use a thread.
        process = subprocess.Popen(  # noqa: ASYNC220
            [sys.executable, "-I", "-S", "-c", _BECOME, str(os.getpid()), *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            # Ctrl-C in a terminal is for us; we then end QEMU in our own order.
            start_new_session=True,
            # Its sockets are for this user alone.
            umask=0o177,
        )
    try:
        yield process
    finally:
        # SIGKILL ends a stopped QEMU as well; nothing in it is worth saving.
        process.send_signal(signal.SIGKILL)
        with trio.CancelScope(shield=True), trio.move_on_after(_LONGEST_END):
            await wait_ended(process)


async def wait_ended(process: subprocess.Popen[bytes]) -> int:
    """Wait until a process has ended.

    Returns:
        Its exit status, or minus the number of the signal that ended it.
    """
    # Polled for only once it has ended: then it cannot be somebody else's pid.
    if process.poll() is None:
        descriptor = os.pidfd_open(process.pid)
        try:
            await trio.lowlevel.wait_readable(descriptor)
        finally:
            os.close(descriptor)
    return process.wait()
