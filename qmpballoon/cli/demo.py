"""``qmpballoon demo``: boot a guest, and reclaim its page cache."""

from __future__ import annotations

import time
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Final

import click
from attrs import asdict, frozen

from qmpballoon.balloon.guard import Guard
from qmpballoon.cli import _output
from qmpballoon.cli._options import (
    json_option,
    read_positive_size,
    read_size,
    report_option,
)
from qmpballoon.cli.reclaim import conclude, reclaim_and_show
from qmpballoon.sizes import MiB, format_size

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from qmpballoon.balloon import ReclaimReport
    from qmpballoon.balloon.balloon import Balloon

__all__ = ["demo"]

_SMALLEST: Final = 256 * MiB
_MOST_CACHE: Final = 0.75  # of the memory; the guest's system needs the rest


@frozen(kw_only=True)
class _GuestKind:
    """What kind of guest it is.

    Attributes:
        simulated: Whether the guest and its QEMU are simulated.
        qemu: QEMU's version.
        kernel: The kernel's release; a simulated guest has none.
    """

    simulated: bool
    qemu: str
    kernel: str | None = None

    def __str__(self) -> str:
        """Name it for people."""
        if self.simulated:
            return f"a simulated guest in a simulated QEMU {self.qemu}"
        return f"Linux {self.kernel} in QEMU {self.qemu}"


@click.command()
@click.option(
    "--memory",
    type=read_positive_size,
    default="2GiB",
    metavar="SIZE",
    help="The guest's memory.",
)
@click.option(
    "--cache",
    type=read_size,
    default="1.3GiB",
    metavar="SIZE",
    help="How much page cache the guest fills.",
)
@click.option(
    "--simulated", is_flag=True, help="Use a simulated guest; nothing is fetched."
)
@report_option
@json_option
@_output.never_stopped()
def demo(
    *, memory: int, cache: int, simulated: bool, report: Path | None, as_json: bool
) -> int:
    """Boot a Linux guest, fill its page cache, and reclaim that memory.

    If QEMU or a kernel is not installed, it is fetched from the distribution's
    packages, without root. Where that fails, the guest is a simulated one.
    """
    from qmpballoon.cli._session import run  # noqa: PLC0415 - loads trio

    if memory < _SMALLEST or cache > memory * _MOST_CACHE:
        raise click.UsageError(
            f"{format_size(cache)} of cache do not fit into {format_size(memory)}: give"
            f" at least {format_size(_SMALLEST)} of memory, and {_MOST_CACHE:.0%} of it"
            " for the cache at most"
        )

    async def main() -> tuple[_GuestKind, str, ReclaimReport]:
        async with _guest(memory, cache, simulated=simulated) as (balloon, kind):
            title = f"{format_size(memory)}, {kind}"
            return kind, title, await reclaim_and_show(balloon, title, quiet=as_json)

    kind, title, seen = run(main)
    document = {**seen.to_json(), "guest": asdict(kind)} if as_json else None
    return conclude(seen, title, report, Guard(), document=document)


@asynccontextmanager
async def _guest(
    memory: int, cache: int, *, simulated: bool
) -> AsyncGenerator[tuple[Balloon, _GuestKind]]:
    """Yield a guest's balloon, of a real guest if one can be booted."""
    from qmpballoon.testing.lab import LabError  # noqa: PLC0415 - loads trio

    async with AsyncExitStack() as stack:
        found = None
        if not simulated:
            try:
                found = await stack.enter_async_context(_real_guest(memory, cache))
            except LabError as error:
                _output.note(f"no real guest, so a simulated one: {error}")
        if found is None:
            found = await stack.enter_async_context(_simulated_guest(memory, cache))
        yield found


@asynccontextmanager
async def _real_guest(
    memory: int, cache: int
) -> AsyncGenerator[tuple[Balloon, _GuestKind]]:
    from qmpballoon.testing import lab  # noqa: PLC0415 - loads trio
    from qmpballoon.trio import open_balloon  # noqa: PLC0415 - loads trio

    _output.note(
        f"booting a guest of {format_size(memory)}, and filling {format_size(cache)} of"
        " its page cache"
    )
    async with (
        lab.boot(memory=memory, cache=cache) as guest,
        open_balloon(guest.socket) as balloon,
    ):
        yield (
            balloon,
            _GuestKind(
                simulated=False, qemu=guest.qemu_version, kernel=guest.kernel_release
            ),
        )


@asynccontextmanager
async def _simulated_guest(
    memory: int, cache: int
) -> AsyncGenerator[tuple[Balloon, _GuestKind]]:
    from qmpballoon.balloon.balloon import Balloon  # noqa: PLC0415 - rarely used
    from qmpballoon.balloon.qom import find_device  # noqa: PLC0415 - rarely used
    from qmpballoon.testing import (  # noqa: PLC0415 - rarely used, loads trio
        GuestConfig,
        Machine,
        MachineConfig,
        open_fake,
    )
    from qmpballoon.trio import open_monitor  # noqa: PLC0415 - loads trio

    class SimulatedBalloon(Balloon):
        """A balloon without a process behind it."""

        def resident(self) -> int | None:
            """Return the resident memory that the simulated QEMU has."""
            return machine.resident

    machine = Machine(
        MachineConfig(
            memory=memory, epoch=time.time_ns(), guest=GuestConfig(cache=cache)
        )
    )
    async with open_fake(machine) as fake, open_monitor(fake.connect()) as monitor:
        balloon = SimulatedBalloon(monitor, *await find_device(monitor))
        version = monitor.greeting.version if monitor.greeting else None
        yield balloon, _GuestKind(simulated=True, qemu=str(version))
