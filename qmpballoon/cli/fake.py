"""``qmpballoon fake``: serve a simulated VM on a socket, to clients in any language."""

from __future__ import annotations

import mmap
import os
import random
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from qmpballoon import testing
from qmpballoon.cli import _output
from qmpballoon.cli._options import read_positive_size, read_size
from qmpballoon.sizes import GiB

if TYPE_CHECKING:
    from qmpballoon.testing import FakeQemu, Machine

__all__ = ["fake"]

_HOLD_EVERY: Final = 0.1  # seconds; `fleet` polls ten times as seldom
_DIMMS: Final = 4  # slots for memory to be plugged into
_IDENTIFIER: Final = re.compile(r"[A-Za-z][A-Za-z0-9._-]*")
_GRANULE: Final = 8192  # bytes; QEMU rounds a VM's RAM up to whole ones


def _check_id(_: click.Context, __: click.Parameter, value: str) -> str:
    """Refuse what QEMU refuses as an id."""
    if not _IDENTIFIER.fullmatch(value):
        raise click.BadParameter(
            f"{value!r} is not an id: begin with a letter, then use letters,"
            " digits, '-', '.' and '_'"
        )
    return value


@click.command()
@click.argument("socket", type=click.Path(dir_okay=False))
@click.option(
    "--profile",
    type=click.Choice(testing.PROFILES),
    default=testing.PROFILES[-1],
    help="The QEMU version that it behaves like.",
)
@click.option(
    "--memory",
    type=read_positive_size,
    default="2GiB",
    metavar="SIZE",
    help="The VM's RAM.",
)
@click.option(
    "--used",
    type=read_size,
    default="123MiB",
    metavar="SIZE",
    help="How much memory the guest's processes use.",
)
@click.option(
    "--cache",
    type=read_size,
    default="1GiB",
    metavar="SIZE",
    help="The size of the guest's page cache at the start.",
)
@click.option(
    "--paused", is_flag=True, help="Start paused, and boot on the command `cont`."
)
@click.option("--no-driver", is_flag=True, help="Leave out the guest's balloon driver.")
@click.option("--no-balloon", is_flag=True, help="Leave out the balloon device.")
@click.option(
    "--id",
    "name",
    callback=_check_id,
    default="balloon0",
    metavar="ID",
    help="The balloon's id in QEMU.",
)
@click.option(
    "--hold-memory",
    is_flag=True,
    help="Hold as much of the host's memory as QEMU would, in a process that is named"
    " like QEMU. Its resident memory can then be seen, and `fleet --limit` tried.",
)
@click.option(
    "--seed", type=int, default=0, help="Chooses the simulation's random numbers."
)
def fake(socket: str, **options: Any) -> None:  # noqa: ANN401 - one each, from above
    """Serve a simulated VM on the unix socket SOCKET until interrupted.

    It answers as QEMU does, word for word. Its guest's memory behaves as that of a
    Linux guest. Up to 4 DIMMs can be plugged in.
    """
    from qmpballoon.cli._session import run  # noqa: PLC0415 - loads trio

    with _output.end_normally():
        run(lambda: _serve(socket, **options))


async def _serve(
    socket: str,
    *,
    hold_memory: bool,
    **options: Any,  # noqa: ANN401 - likewise
) -> None:
    # Loaded here, because both load trio.
    from qmpballoon._transport.trio_tasks import BackgroundTasks  # noqa: PLC0415
    from qmpballoon.testing import open_fake  # noqa: PLC0415

    if hold_memory:
        # Clients ask the kernel for the peer's memory if the peer has QEMU's name.
        _take_name("qemu-system-fak")
    async with (
        open_fake(_make_machine(**options)) as qemu,
        BackgroundTasks(shield=False) as tasks,
    ):
        try:
            await tasks.start(qemu.listen, socket)
        except OSError as error:
            raise click.UsageError(
                f"cannot listen on {socket}: {error.strerror or error}; give a new"
                " path, in a folder that is there"
            ) from None
        if hold_memory:
            tasks.start_soon(_hold_memory, qemu)
        _output.say(f"A simulated QEMU {options['profile']} listens on {socket}")
        await tasks.wait()


def _take_name(name: str) -> None:
    """Have the kernel call this process by another name."""
    Path("/proc/self/comm").write_text(name, encoding="ascii")


async def _hold_memory(qemu: FakeQemu) -> None:
    """Hold as much memory as the simulated QEMU does, within a page and a moment."""
    import trio  # noqa: PLC0415 - loaded late

    from qmpballoon._transport.qemu_process import read_resident  # noqa: PLC0415

    own = read_resident(os.getpid()) or 0
    most = qemu.machine.config.memory
    # Private: of shared memory, no page is given back.
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    with mmap.mmap(-1, most, flags=flags) as memory:
        held, page = 0, mmap.PAGESIZE
        while True:
            # Plugged memory is left out.
            wanted = min(max(0, qemu.machine.resident - own), most) // page * page
            if wanted > held:
                memory[held:wanted:page] = b"1" * ((wanted - held) // page)
            elif wanted < held:
                memory.madvise(mmap.MADV_DONTNEED, wanted, held - wanted)
            held = wanted
            await trio.sleep(_HOLD_EVERY)


def _make_machine(
    *,
    profile: str,
    memory: int,
    used: int,
    cache: int,
    paused: bool,
    no_driver: bool,
    no_balloon: bool,
    name: str,
    seed: int,
) -> Machine:
    from qmpballoon.testing import (  # noqa: PLC0415 - likewise
        GuestConfig,
        Machine,
        MachineConfig,
    )

    memory = -(-memory // _GRANULE) * _GRANULE
    config = MachineConfig(
        memory=memory,
        slots=_DIMMS,
        max_memory=memory + 64 * GiB,
        balloon=None if no_balloon else "virtio-balloon-pci",
        balloon_id=name,
        paused=paused,
        pid=os.getpid(),
        epoch=time.time_ns(),
        guest=GuestConfig(used=used, cache=cache, driver=not no_driver),
    )
    return Machine(config, testing.profile(profile), random.Random(seed))  # noqa: S311 - a simulation
