"""QEMU's command line, and programs that end with the lab."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import trio

from qmpballoon.sizes import GiB
from qmpballoon.testing.lab._qemu import (
    Files,
    GuestOptions,
    run_process,
    wait_ended,
    write_arguments,
)

if TYPE_CHECKING:
    from pathlib import Path


def test_arguments(tmp_path: Path) -> None:
    files = Files.within(tmp_path, tmp_path / "vmlinuz")
    plain = write_arguments(GuestOptions(memory=GiB), files, "tcg")
    assert f"size={GiB}B" in plain
    assert "virtio-balloon-pci,id=balloon0" in plain
    assert "-cpu" not in plain
    assert "tsc=unstable" in plain[plain.index("-append") + 1]
    options = GuestOptions(machine="microvm", device=None, extra=("-m", "slots=2"))
    other = write_arguments(options, files, "kvm")
    assert other[-2:] == ["-m", "slots=2"]
    assert "virtio-blk-device,drive=cache" in other
    assert "tsc=unstable" not in other[other.index("-append") + 1]
    assert not any("balloon" in argument for argument in other)


async def test_a_program_ends_with_its_block(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import signal; signal.pause()"]
    async with run_process(command, tmp_path / "errors") as process:
        assert process.poll() is None
        # One that is stopped ends as well.
        process.send_signal(signal.SIGSTOP)
    assert process.returncode == -signal.SIGKILL


_PARENT = """
import sys, trio
from pathlib import Path
from qmpballoon.testing.lab._qemu import run_process
async def main():
    pause = [sys.executable, "-c", "print(flush=True); import signal; signal.pause()"]
    async with run_process(pause, Path(sys.argv[1])) as process:
        print(process.pid, flush=True)
        await trio.sleep_forever()
trio.run(main)
"""


async def test_a_program_ends_with_a_killed_parent(tmp_path: Path) -> None:
    errors = tmp_path / "errors"
    with subprocess.Popen(  # noqa: ASYNC220 - trio's own would end it for us
        [sys.executable, "-c", _PARENT, str(errors)], stdout=subprocess.PIPE
    ) as parent:
        assert parent.stdout is not None
        descriptor = os.pidfd_open(int(parent.stdout.readline()))
        with trio.fail_after(300):
            while not errors.stat().st_size:  # noqa: ASYNC110 - a file's growth
                await trio.sleep(0.01)
            parent.kill()
            await trio.lowlevel.wait_readable(descriptor)
        os.close(descriptor)


async def test_the_end_of_a_program_can_be_waited_for(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "raise SystemExit(7)"]
    async with run_process(command, tmp_path / "errors") as process:
        with trio.fail_after(300):
            assert await wait_ended(process) == 7
