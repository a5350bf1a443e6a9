"""``qmpballoon resize``: bring a guest to a size, and show the progress."""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import TYPE_CHECKING, get_args

import click
from attrs import define, field

from qmpballoon.balloon.balloon import find_balloon
from qmpballoon.balloon.device import PAGE
from qmpballoon.balloon.guard import RESIZE_GUARD
from qmpballoon.balloon.results import OnStall
from qmpballoon.balloon.sampling import Timeline
from qmpballoon.cli import _output
from qmpballoon.cli._display import show_progress
from qmpballoon.cli._one_vm import (
    UNANSWERED,
    explain_interruption,
    run_with_monitor,
)
from qmpballoon.cli._options import (
    SECONDS,
    RelativeGuard,
    RelativeSize,
    connect_timeout_option,
    floor_option,
    gentle_option,
    headroom_option,
    json_option,
    max_rate_option,
    own_monitor_option,
    read_positive_share,
    report_option,
    reread_within_option,
    socket_argument,
)
from qmpballoon.errors import BalloonStalled
from qmpballoon.sizes import format_size

if TYPE_CHECKING:
    from pathlib import Path

    from qmpballoon.address import Vm
    from qmpballoon.balloon.guard import Guard
    from qmpballoon.balloon.results import ResizeResult
    from qmpballoon.balloon.sampling import Progress
    from qmpballoon.cli._one_vm import VmMonitor

__all__ = ["resize"]


@click.command()
@socket_argument
@click.argument("target", type=read_positive_share)
@click.option(
    "--timeout",
    type=SECONDS,
    metavar="SECONDS",
    help="How long it may take.  [default: no limit, while the balloon moves]",
)
@click.option(
    "--on-stall",
    type=click.Choice(get_args(OnStall)),
    default="raise",
    help="What to do when the balloon stops before its target: `raise` stays at the"
    " size reached and reports an error, `settle` stays there and reports the size,"
    " `rollback` goes back to the size before.",
)
@headroom_option("32MiB")
@floor_option("32MiB")
@max_rate_option
@gentle_option
@reread_within_option("0")
@click.option(
    "--unguarded",
    is_flag=True,
    help="Set the target at once and do not watch the guest. It may have to kill"
    " processes, or panic.",
)
@report_option
@connect_timeout_option
@own_monitor_option
@json_option
@_output.never_stopped()
def resize(
    *,
    socket: Vm,
    target: RelativeSize,
    timeout: float | None,
    on_stall: OnStall,
    headroom: RelativeSize | None,
    floor: RelativeSize | None,
    max_rate: int | None,
    gentle: float | None,
    reread_within: float | None,
    unguarded: bool,
    report: Path | None,
    connect_timeout: float,
    own_monitor: bool,
    as_json: bool,
) -> int:
    """Bring the guest to the size TARGET, like 2G, or 50% of the VM's memory.

    More than the VM's memory, like 150%, is all of it.

    The balloon takes the rest of the VM's memory, or gives it back. A guest that
    shrinks is watched. If it needs the memory, it gets back what it had.
    """
    guard = RelativeGuard(
        headroom=headroom,
        floor=floor,
        max_rate=max_rate,
        gentle=gentle,
        reread_within=reread_within,
    )
    if unguarded and guard.is_given:
        raise click.UsageError(
            "--unguarded has no headroom, floor, rate or time: leave it out, or leave"
            " their options out"
        )

    record = _Record()

    async def main(monitor: VmMonitor) -> ResizeResult:
        balloon = await find_balloon(monitor)
        total = (await balloon.query()).total
        if report:
            record.title = f"Resizing {(await balloon.query_vm()).name or socket}"
            record.total = total or await balloon.actual()
        if not unguarded:
            record.guard = guard.resolve(total, RESIZE_GUARD)
        async with explain_interruption(balloon, _describe_interrupted):
            with nullcontext() if as_json else show_progress() as show:

                def on_progress(progress: Progress) -> None:
                    record.timeline.add(progress.sample)
                    if show is not None:
                        show(progress)

                return await balloon.resize(
                    target.resolve(total),
                    timeout=math.inf if timeout is None else timeout,
                    on_stall=on_stall,
                    guard=record.guard,
                    unguarded=unguarded,
                    on_progress=on_progress,
                )

    try:
        result = run_with_monitor(
            socket, main, connect_timeout=connect_timeout, own=own_monitor
        )
    except BalloonStalled as error:
        _conclude(error.result, record, report, as_json=as_json, is_error=True)
        raise
    _conclude(result, record, report, as_json=as_json)
    return _output.DONE if result.outcome == "reached" else _output.NOT_REACHED


@define
class _Record:
    """What is known of a resize besides its result.

    Attributes:
        title: The heading of a page or a chart.
        total: Bytes of the VM's RAM.
        guard: What the guest is to keep; ``None``: it is not watched.
        timeline: The samples.
    """

    title: str = ""
    total: int = 0
    guard: Guard | None = None
    timeline: Timeline = field(factory=Timeline)


def _conclude(
    result: ResizeResult,
    record: _Record,
    report: Path | None,
    *,
    as_json: bool,
    is_error: bool = False,
) -> None:
    """Write the report, and print the result unless an error says the same.

    The file comes first: the terminal may be closed already.
    """
    try:
        if report:
            from qmpballoon import export  # noqa: PLC0415 - only for reports

            settings = export.list_settings(record.guard, record.total)
            export.save(
                report,
                record.timeline,
                title=record.title,
                facts=export.Facts.of_resize(result, record.timeline, settings),
                document={**result.to_json(), "timeline": record.timeline.to_json()},
            )
    finally:
        if as_json:
            _output.print_json(result.to_json())
        elif not is_error:
            _output.say(_describe(result))


def _describe(result: ResizeResult) -> str:
    sizes = f"{format_size(result.before)} -> {format_size(result.actual)}"
    line = f"{result.outcome}: {sizes} in {result.seconds:.1f} s"
    if result.diagnosis is None:
        if result.requested - result.actual >= PAGE and result.outcome == "reached":
            line += f"; {format_size(result.requested)} is more than the VM's memory"
        return line
    return f"{line}; {result.diagnosis.detail}"


def _describe_interrupted(target: int | None, actual: int | None) -> str:
    if actual is None:
        if target is None:
            return "nothing was changed"
        return f"the guest is asked to have {format_size(target)}, {UNANSWERED}"
    if target is None:
        return f"nothing was changed, the guest has {format_size(actual)}"
    if target > actual:
        return (
            f"the guest has {format_size(actual)} and is still growing to"
            f" {format_size(target)}"
        )
    return f"the guest stays at the size reached, {format_size(actual)}"
