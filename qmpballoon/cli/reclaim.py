"""``qmpballoon reclaim``: taking what a guest can spare, before the user's eyes."""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import TYPE_CHECKING, Final

import click
from attrs import asdict, frozen

from qmpballoon import export
from qmpballoon.balloon.guard import Guard
from qmpballoon.cli import _output
from qmpballoon.cli._options import (
    SECONDS,
    RelativeSize,
    connect_timeout_option,
    json_option,
    positive_share,
    positive_size,
    report_file,
    share,
    socket_argument,
)
from qmpballoon.sizes import format_size

if TYPE_CHECKING:
    from pathlib import Path

    from qmpballoon.address import Vm
    from qmpballoon.balloon._reclaim import ReclaimOutcome, ReclaimReport
    from qmpballoon.balloon.balloon import Balloon
    from qmpballoon.balloon.plan import Plan

__all__ = ["conclude", "reclaim", "reclaim_shown"]

_STATUS: Final[dict[ReclaimOutcome, int]] = {
    "done": _output.DONE,
    "stopped": _output.NOT_REACHED,
    "refused": _output.REFUSED,
}


@frozen(kw_only=True)
class _Wishes:
    """What was asked for; the sizes may be shares of the VM's memory."""

    amount: RelativeSize | None
    headroom: RelativeSize | None
    floor: RelativeSize | None
    max_rate: int | None

    def given(self, total: int | None) -> tuple[int | None, Guard]:
        """Return amount and guard for a VM with so many bytes of memory."""

        def of_total(size: RelativeSize | None) -> int | None:
            return None if size is None else size.of(total)

        return of_total(self.amount), Guard(
            headroom=of_total(self.headroom),
            floor=of_total(self.floor),
            max_rate=math.inf if self.max_rate is None else self.max_rate,
        )


@click.command()
@socket_argument
@click.argument("amount", type=positive_share, required=False)
@click.option(
    "--amount",
    "amount_option",
    type=positive_share,
    metavar="SIZE",
    help="The same as AMOUNT.",
)
@click.option(
    "--headroom",
    type=share,
    metavar="SIZE",
    help="What the guest keeps available.  [default: 64MiB and 2 % of its memory]",
)
@click.option(
    "--floor",
    type=share,
    metavar="SIZE",
    help="What the guest never goes below.  [default: 1/32 of its memory, and 64MiB"
    " at least]",
)
@click.option(
    "--max-rate",
    type=positive_size,
    metavar="SIZE",
    help="How much to take a second at most.",
)
@click.option("--hold", is_flag=True, help="Keep the memory, do not give it back.")
@click.option(
    "--keep",
    is_flag=True,
    help="Keep it until the guest comes to need it, or Ctrl-C; then give it back.",
)
@click.option(
    "--for",
    "seconds",
    type=SECONDS,
    metavar="SECONDS",
    help="Keep it for so long at most; with --keep.",
)
@click.option("--dry-run", is_flag=True, help="Only say what would be taken.")
@click.option(
    "--report",
    type=report_file,
    metavar="FILE",
    help=f"Write a chart or the figures, by the name's end: {export.CHOICE}.",
)
@connect_timeout_option
@json_option
def reclaim(
    *,
    socket: Vm,
    amount: RelativeSize | None,
    amount_option: RelativeSize | None,
    headroom: RelativeSize | None,
    floor: RelativeSize | None,
    max_rate: int | None,
    hold: bool,
    keep: bool,
    seconds: float | None,
    dry_run: bool,
    report: Path | None,
    connect_timeout: float,
    as_json: bool,
) -> int:
    """Take from the guest what it does not need, at most AMOUNT.

    Its page cache goes, its balloon fills, and the host has the memory. In the end
    the guest gets its size back, nearly all of it free: the host keeps what the guest
    does not touch again. It is watched all the time, and has its memory back at once
    if it comes to need it.
    """
    from qmpballoon.cli._session import run  # noqa: PLC0415 - loads trio

    if amount and amount_option:
        raise click.UsageError("AMOUNT is given twice: leave --amount out")
    if hold and keep:
        raise click.UsageError("--hold and --keep: choose one of them")
    if seconds is not None and not keep:
        raise click.UsageError("--for says how long to keep it: add --keep")
    if dry_run and report:
        raise click.UsageError("a dry run has nothing to report: leave --report out")
    keep_for = (math.inf if seconds is None else seconds) if keep else None
    wishes = _Wishes(
        amount=amount or amount_option,
        headroom=headroom,
        floor=floor,
        max_rate=max_rate,
    )
    if dry_run:
        _print_plan(
            run(lambda: _plan(socket, connect_timeout, wishes)), as_json=as_json
        )
        return _output.DONE
    title, seen = run(
        lambda: _reclaim(
            socket,
            connect_timeout,
            wishes,
            hold=hold,
            keep_for=keep_for,
            quiet=as_json,
        )
    )
    if as_json:
        _output.print_json(seen.to_json())
    return conclude(seen, title, report, hold=hold, quiet=as_json)


def conclude(
    seen: ReclaimReport,
    title: str,
    report: Path | None,
    *,
    hold: bool = False,
    quiet: bool,
) -> int:
    """Say what came of a reclaim, write its report, and return the exit status."""
    if not quiet and seen.outcome != "refused":
        from qmpballoon.cli.render.summary import print_summary  # noqa: PLC0415 - loads rich

        print_summary(seen, hold=hold)
    if report:
        export.save(report, seen.timeline, title=title, document=seen.to_json())
    if seen.outcome != "done":
        _output.note(f"{seen.outcome}: {seen.reason}")
    elif seen.held and not hold:
        _output.note(f"not all of it was given back: {seen.reason}")
        return _output.NOT_REACHED
    return _STATUS[seen.outcome]


async def _plan(socket: Vm, connect_timeout: float, wishes: _Wishes) -> Plan:
    from qmpballoon.cli._connect import open_balloon  # noqa: PLC0415 - loads trio

    async with open_balloon(socket, timeout=connect_timeout) as balloon:
        amount, guard = wishes.given((await balloon.query()).total)
        return await balloon.plan_reclaim(amount, guard=guard)


def _print_plan(plan: Plan, *, as_json: bool) -> None:
    if as_json:
        _output.print_json(asdict(plan))
    else:
        _output.say(plan.describe())


async def _reclaim(
    socket: Vm,
    connect_timeout: float,
    wishes: _Wishes,
    *,
    hold: bool,
    keep_for: float | None,
    quiet: bool,
) -> tuple[str, ReclaimReport]:
    from qmpballoon.cli._connect import open_balloon  # noqa: PLC0415 - loads trio
    from qmpballoon.cli._session import vm_name  # noqa: PLC0415 - loads trio

    async with open_balloon(socket, timeout=connect_timeout) as balloon:
        title = f"Reclaiming memory from {await vm_name(balloon.monitor, socket)}"
        amount, guard = wishes.given((await balloon.query()).total)
        return title, await reclaim_shown(
            balloon, title, amount, guard, hold=hold, keep_for=keep_for, quiet=quiet
        )


async def reclaim_shown(
    balloon: Balloon,
    title: str,
    amount: int | None = None,
    guard: Guard | None = None,
    *,
    hold: bool = False,
    keep_for: float | None = None,
    quiet: bool,
) -> ReclaimReport:
    """Reclaim, show it, and say what became of the guest if that is interrupted."""
    from qmpballoon.cli._session import last_word  # noqa: PLC0415 - loads trio
    from qmpballoon.cli.render.live import timeline_shown  # noqa: PLC0415 - loaded late

    async with last_word(balloon, _became):
        with nullcontext() if quiet else timeline_shown(title) as show:
            if keep_for is not None:
                return await balloon.keep(
                    amount, guard=guard, seconds=keep_for, on_progress=show
                )
            return await balloon.reclaim(
                amount, guard=guard, hold=hold, on_progress=show
            )


def _became(target: int | None, actual: int) -> str:
    """Say what has become of a guest whose reclaim was interrupted."""
    if target is None:
        return f"nothing was taken, the guest has {format_size(actual)}"
    if target > actual:
        return (
            f"the guest is given its memory back: it has {format_size(actual)}, the"
            f" rest of its {format_size(target)} is on its way"
        )
    return f"the guest has its memory back, {format_size(actual)}"
