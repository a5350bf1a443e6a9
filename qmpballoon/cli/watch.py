"""``qmpballoon watch``: balloon, guest and host, sample after sample."""

from __future__ import annotations

import itertools
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Final

import click

from qmpballoon.cli import _output
from qmpballoon.cli._options import (
    Seconds,
    connect_timeout_option,
    json_option,
    record_file,
    socket_argument,
)
from qmpballoon.errors import StatsUnavailable
from qmpballoon.export.recording import recorder

if TYPE_CHECKING:
    from pathlib import Path

    from qmpballoon.address import Vm
    from qmpballoon.balloon.balloon import Balloon
    from qmpballoon.cli.render.live import Show

__all__ = ["watch"]

_SILENT: Final = 3.0  # seconds without an answer; then the guest counts as silent


@click.command()
@socket_argument
@click.option(
    "--interval",
    type=Seconds(min=0.04),
    default=1.0,
    metavar="SECONDS",
    help="How long to wait between two samples.",
)
@click.option(
    "--count",
    type=click.IntRange(min=1),
    metavar="N",
    help="End after so many samples.  [default: on Ctrl-C]",
)
@click.option(
    "--record",
    type=record_file,
    metavar="FILE",
    help="Keep each sample as a line of JSON; `plot` draws it.",
)
@connect_timeout_option
@json_option
def watch(
    *,
    socket: Vm,
    interval: float,
    count: int | None,
    record: Path | None,
    connect_timeout: float,
    as_json: bool,
) -> None:
    """Show what the guest has, says, and takes of the host, until Ctrl-C."""
    from qmpballoon.cli._connect import open_balloon  # noqa: PLC0415 - loads trio
    from qmpballoon.cli._session import run, vm_name  # noqa: PLC0415 - loads trio
    from qmpballoon.cli.render.live import timeline_shown  # noqa: PLC0415 - loaded late

    async def main() -> None:
        async with open_balloon(socket, timeout=connect_timeout) as balloon:
            title = f"Watching {await vm_name(balloon.monitor, socket)}"
            with ExitStack() as stack:
                shows: list[Show] = []
                if record:
                    keep = stack.enter_context(recorder(record))
                    shows.append(lambda sample, _="": keep(sample))
                if as_json:
                    shows.append(
                        lambda sample, _="": _output.print_json(sample.to_json())
                    )
                else:
                    shows.append(stack.enter_context(timeline_shown(title)))
                await _watch(balloon, interval, count, shows)

    run(main)


async def _watch(
    balloon: Balloon, interval: float, count: int | None, shows: list[Show]
) -> None:
    # The first sample is to be of now; without an answer it is of the last one.
    with suppress(StatsUnavailable):
        await balloon.refresh_stats()
    async with balloon.sampler() as sampler:
        for number in itertools.count(1):
            sample = await sampler.take()
            silent = max(sampler.silence - interval, 0)
            note = f"the guest is silent for {silent:.0f} s" if silent > _SILENT else ""
            for show in shows:
                show(sample, note)
            if number == count:
                return
            await balloon.monitor.sleep(interval)
