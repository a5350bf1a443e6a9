"""The command in a process of its own, and simulated VMs for it to talk to."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import documents
import trio
from attrs import frozen

from qmpballoon.sizes import GiB
from qmpballoon.testing import (
    FakeQemu,
    GuestConfig,
    Machine,
    MachineConfig,
    open_fake,
    profile,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable
    from pathlib import Path

__all__ = [
    "FAST",
    "PROGRAM",
    "Running",
    "actual",
    "line_of",
    "object_of",
    "run",
    "serve",
    "start",
    "until",
]

PROGRAM = (sys.executable, "-c", "from qmpballoon.cli import main; main()")


# A faster guest than any: people wait for a guest, tests need not.
FAST = GuestConfig(inflate_rate=20 * GiB, reclaim_rate=20 * GiB, deflate_rate=20 * GiB)


async def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the command to its end; the JSON that it prints is as the schema says."""
    words = [str(argument) for argument in arguments]
    done = await trio.run_process(
        [*PROGRAM, *words], check=False, capture_stdout=True, capture_stderr=True
    )
    documents.check_output(words, done.stdout.decode())
    return subprocess.CompletedProcess(
        done.args, done.returncode, done.stdout.decode(), done.stderr.decode()
    )


@frozen
class Running:
    """The command while it runs, and what it writes."""

    process: trio.Process
    stdout: trio.abc.ReceiveStream
    stderr: trio.abc.ReceiveStream

    async def said(self) -> str:
        """Return all that it has said on standard error when it has ended."""
        return b"".join([chunk async for chunk in self.stderr]).decode()


@asynccontextmanager
async def start(*arguments: object) -> AsyncGenerator[Running]:
    """Start the command; it is killed at the end of the block if it still runs."""
    process = await trio.lowlevel.open_process(
        [*PROGRAM, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # As a shell does: the kernel stops no process of an orphaned group.
        process_group=0,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    async with process.stdout, process.stderr:
        try:
            yield Running(process, process.stdout, process.stderr)
        finally:
            process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()


@asynccontextmanager
async def serve(
    path: Path,
    guest: GuestConfig = FAST,
    *,
    version: str = "10.0",
    **config: Any,  # noqa: ANN401 - whatever MachineConfig takes
) -> AsyncGenerator[FakeQemu]:
    """Serve a simulated VM on a socket; by default a fast one, with plenty of cache."""
    machine = Machine(MachineConfig(guest=guest, **config), profile(version))
    async with open_fake(machine) as fake, trio.open_nursery() as nursery:
        await nursery.start(fake.listen, path)
        yield fake
        nursery.cancel_scope.cancel()


def line_of(result: subprocess.CompletedProcess[str]) -> str:
    """Return the one line on standard error."""
    (line,) = result.stderr.splitlines()
    assert line.startswith("qmpballoon: ")
    return line


def object_of(result: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """Return the one object on standard output."""
    (line,) = result.stdout.splitlines()
    value = json.loads(line)
    assert isinstance(value, dict)
    return value


def actual(fake: FakeQemu) -> int:
    """Return the bytes that the simulated guest has."""
    memory = fake.machine.guest.memory
    return memory.ram - memory.balloon


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something to become true of the simulated machine."""
    with trio.fail_after(300):
        while not condition():  # noqa: ASYNC110 - the machine tells nobody
            await trio.sleep(0.02)
