"""``qmpballoon demo``: the whole of it, on a guest of its own."""

from __future__ import annotations

import time
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Final

import click
from attrs import asdict, frozen

from qmpballoon.cli import _output
from qmpballoon.cli._options import json_option, positive_size, report_file, size
from qmpballoon.cli.reclaim import conclude, reclaim_shown
from qmpballoon.sizes import MiB, format_size

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from qmpballoon.balloon._reclaim import ReclaimReport
    from qmpballoon.balloon.balloon import Balloon

__all__ = ["demo"]

_SMALLEST: Final = 256 * MiB
_MOST_CACHE: Final = 0.75  # of the memory; the guest's system needs some too


@frozen(kw_only=True)
class _Cast:
    """Who plays the guest.

    Attributes:
        simulated: Whether it is no real one.
        qemu: QEMU's version.
        kernel: Its kernel's release, where it has a kernel.
    """

    simulated: bool
    qemu: str
    kernel: str | None = None

    def __str__(self) -> str:
        """Say it for people."""
        if self.simulated:
            return f"a simulated guest in a simulated QEMU {self.qemu}"
        return f"Linux {self.kernel} in QEMU {self.qemu}"


@click.command()
@click.option(
    "--memory",
    type=positive_size,
    default="2GiB",
    metavar="SIZE",
    help="The guest's memory.",
)
@click.option(
    "--cache",
    type=size,
    default="1.3GiB",
    metavar="SIZE",
    help="How much page cache it fills.",
)
@click.option(
    "--simulated", is_flag=True, help="Take a simulated guest; nothing is fetched."
)
@click.option(
    "--report",
    type=report_file,
    metavar="FILE",
    help="Write a chart or the figures, as with `reclaim`.",
)
@json_option
def demo(
    *, memory: int, cache: int, simulated: bool, report: Path | None, as_json: bool
) -> int:
    """Boot a Linux guest, fill its page cache, and take that memory back.

    QEMU and a kernel are fetched from the distribution's packages where they are not
    installed, without root. Where that cannot be done, the guest is a simulated one.
    """
    from qmpballoon.cli._session import run  # noqa: PLC0415 - loads trio

    if memory < _SMALLEST or cache > memory * _MOST_CACHE:
        raise click.UsageError(
            f"{format_size(cache)} of cache do not fit into {format_size(memory)}: give"
            f" at least {format_size(_SMALLEST)} of memory, and {_MOST_CACHE:.0%} of it"
            " for the cache at most"
        )

    async def main() -> tuple[_Cast, str, ReclaimReport]:
        async with _guest(memory, cache, simulated=simulated) as (balloon, cast):
            title = f"{format_size(memory)}, {cast}"
            return cast, title, await reclaim_shown(balloon, title, quiet=as_json)

    cast, title, seen = run(main)
    if as_json:
        _output.print_json({**seen.to_json(), "guest": asdict(cast)})
    return conclude(seen, title, report, quiet=as_json)


@asynccontextmanager
async def _guest(
    memory: int, cache: int, *, simulated: bool
) -> AsyncGenerator[tuple[Balloon, _Cast]]:
    """Yield a guest's balloon: a real one's if that can be had."""
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
async def _real_guest(memory: int, cache: int) -> AsyncGenerator[tuple[Balloon, _Cast]]:
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
            _Cast(
                simulated=False, qemu=guest.qemu_version, kernel=guest.kernel_release
            ),
        )


@asynccontextmanager
async def _simulated_guest(
    memory: int, cache: int
) -> AsyncGenerator[tuple[Balloon, _Cast]]:
    from qmpballoon.balloon.find import find_balloon  # noqa: PLC0415 - rarely used
    from qmpballoon.testing import (  # noqa: PLC0415 - rarely used, loads trio
        GuestConfig,
        Machine,
        MachineConfig,
        open_fake,
    )
    from qmpballoon.trio import open_monitor  # noqa: PLC0415 - loads trio

    machine = Machine(
        MachineConfig(
            memory=memory, epoch=time.time_ns(), guest=GuestConfig(cache=cache)
        )
    )
    async with open_fake(machine) as fake, open_monitor(fake.connect()) as monitor:
        balloon = await find_balloon(
            monitor, resident=lambda: machine.resident, wall_clock=time.time
        )
        version = monitor.greeting.version if monitor.greeting else None
        yield balloon, _Cast(simulated=True, qemu=str(version))
