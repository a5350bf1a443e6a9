"""``qmpballoon watch``: show samples of balloon, guest and host as they are taken."""

from __future__ import annotations

import itertools
from contextlib import ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING, Final

import click

from qmpballoon.balloon.sampling import ANSWER_TIMEOUT
from qmpballoon.cli import _output
from qmpballoon.cli._completion import complete_file
from qmpballoon.cli._display import show_timeline
from qmpballoon.cli._options import (
    Seconds,
    check_record_file,
    connect_timeout_option,
    json_option,
    own_monitor_option,
    socket_argument,
)
from qmpballoon.cli._writer import open_writer
from qmpballoon.errors import StatsUnavailable
from qmpballoon.export.recording import open_recording

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

    from qmpballoon.address import Vm
    from qmpballoon.balloon.balloon import Balloon
    from qmpballoon.balloon.sampling import Sample
    from qmpballoon.cli._display import ShowSample

__all__ = ["watch", "watch_balloon"]

_SAMPLE_SIZE: Final = 512  # bytes; a line of a recording has fewer


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
    help="End after N samples.  [default: on Ctrl-C]",
)
@click.option(
    "--record",
    type=check_record_file,
    shell_complete=complete_file,
    metavar="FILE",
    help="Write each sample to FILE as a line of JSON. `plot` draws such a file.",
)
@connect_timeout_option
@own_monitor_option
@json_option
def watch(
    *,
    socket: Vm,
    interval: float,
    count: int | None,
    record: Path | None,
    connect_timeout: float,
    own_monitor: bool,
    as_json: bool,
) -> None:
    """Show the guest's size and memory and QEMU's resident memory, until Ctrl-C.

    The balloon is not moved. On a terminal the samples are drawn as a moving chart. A
    guest that does not answer is shown with its last figures, and their age.
    """
    from qmpballoon.cli._connect import open_balloon  # noqa: PLC0415 - loads trio
    from qmpballoon.cli._session import run  # noqa: PLC0415 - loads trio

    async def main() -> None:
        async with open_balloon(
            socket, timeout=connect_timeout, own=own_monitor
        ) as balloon:
            name = (await balloon.query_vm()).name or str(socket)
            with ExitStack() as stack:
                shows: list[ShowSample] = []
                if record:
                    shows.append(stack.enter_context(_open_recorder(record)))
                if as_json:
                    shows.append(
                        lambda sample, _="": _output.print_json(sample.to_json())
                    )
                else:
                    shows.append(stack.enter_context(show_timeline(f"Watching {name}")))
                await watch_balloon(balloon, interval, count, shows)

    with nullcontext() if count else _output.end_normally():
        run(main)


@contextmanager
def _open_recorder(path: Path) -> Generator[ShowSample]:
    """Record samples within the block, on a thread: a disk may hang.

    Raises:
        OSError: The file cannot be written; from the function, too.
    """
    with (
        open_recording(path) as write,
        open_writer(str(path), write) as writer,
    ):

        def record(sample: Sample, _: str = "") -> None:
            if writer.failure:
                raise writer.failure
            writer.submit(sample, _SAMPLE_SIZE)

        yield record


async def watch_balloon(
    balloon: Balloon, interval: float, count: int | None, shows: list[ShowSample]
) -> None:
    """Take samples and show each, with a word on a guest that is silent.

    Args:
        balloon: The guest's balloon.
        interval: Seconds between two samples.
        count: How many samples to take; ``None``: until this is cancelled.
        shows: Called with each sample, and with what is said of it.
    """
    # So that the first sample is up to date. A guest that does not answer is shown with
    # its last statistics, and their age.
    answers = True
    try:
        await balloon.refresh_stats()
    except StatsUnavailable:
        answers = False
    async with balloon.sampler() as sampler:
        last = 0.0
        for number in itertools.count(1):
            sample = await sampler.take()
            answers = answers or sampler.silence == 0
            # An answer that came after the last sample may be old by now. It is not
            # older than that sample: if its age says so, the host's clock was set.
            age = min(sample.age or 0.0, sample.t - last)
            last = sample.t
            is_silent = not answers or max(sampler.silence, age) > ANSWER_TIMEOUT
            note = _describe_silence(sample) if is_silent else ""
            for show in shows:
                show(sample, note)
            if number == count:
                return
            await balloon.monitor.sleep(interval)


def _describe_silence(sample: Sample) -> str:
    if sample.age is None:
        return "the guest is silent"
    return f"the guest is silent, its figures are {sample.age:.0f} s old"
