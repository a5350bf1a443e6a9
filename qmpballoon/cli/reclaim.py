"""``qmpballoon reclaim``: take what a guest can spare, and show how that goes."""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import TYPE_CHECKING, Final

import click
from attrs import asdict, define, frozen

from qmpballoon.address import UnixAddress
from qmpballoon.balloon.balloon import find_balloon
from qmpballoon.balloon.guard import Guard
from qmpballoon.cli import _output
from qmpballoon.cli._display import make_console, show_timeline
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
from qmpballoon.sizes import format_size

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from qmpballoon.address import Vm
    from qmpballoon.balloon import ReclaimReport
    from qmpballoon.balloon.balloon import Balloon
    from qmpballoon.balloon.results import Plan, ReclaimOutcome
    from qmpballoon.balloon.sampling import Progress
    from qmpballoon.cli._one_vm import VmMonitor

__all__ = ["conclude", "reclaim", "reclaim_and_show"]

# Lines that _print_summary prints: 8 for the table, and 5 for what is below it.
_SUMMARY_HEIGHT: Final = 13
_STATUS: Final[dict[ReclaimOutcome, int]] = {
    "done": _output.DONE,
    "stopped": _output.NOT_REACHED,
    "refused": _output.REFUSED,
}


@frozen(kw_only=True)
class _Request:
    """What the options ask for; sizes may be shares of the VM's memory."""

    amount: RelativeSize | None
    guard: RelativeGuard
    to: RelativeSize | None = None

    def resolve(self, total: int | None) -> tuple[int | None, Guard]:
        """Return amount and guard for a VM with so many bytes of memory."""
        amount = None if self.amount is None else self.amount.resolve(total)
        return amount, self.guard.resolve(total, Guard())

    def resolve_end(self, total: int | None) -> int | None:
        """Return the bytes that the guest is to have at the end, if they are given."""
        return None if self.to is None else self.to.resolve(total)


@define
class _Keeping:
    """How long what was taken is kept.

    Attributes:
        seconds: The longest time.
        has_begun: Whether there is something to give back.
        end_wanted: Whether a signal has asked for the end.
    """

    seconds: float
    has_begun: bool = False
    end_wanted: bool = False

    def ask_to_end(self) -> bool:
        """Have what was taken given back; return whether that will be done."""
        self.end_wanted = True
        return self.has_begun

    def is_to_end(self) -> bool:
        """Tell whether what was taken is to be given back."""
        return self.end_wanted


@click.command()
@socket_argument
@click.argument("amount", type=read_positive_share, required=False)
@click.option(
    "--amount",
    "amount_option",
    type=read_positive_share,
    metavar="SIZE",
    help="The same as AMOUNT.",
)
@headroom_option("64MiB and 2 % of its memory")
@floor_option("1/32 of its memory, and at least 64MiB")
@max_rate_option
@gentle_option
@reread_within_option("30")
@click.option(
    "--hold",
    is_flag=True,
    help="Leave the guest at the smaller size, and do not give the memory back. The"
    " output ends with the command that does.",
)
@click.option(
    "--keep",
    is_flag=True,
    help="Keep the memory and watch the guest, until it needs the memory or Ctrl-C is"
    " pressed; then give it back.",
)
@click.option(
    "--for",
    "seconds",
    type=SECONDS,
    metavar="SECONDS",
    help="With --keep: give the memory back after this time at the latest.",
)
@click.option(
    "--to",
    type=read_positive_share,
    metavar="SIZE",
    help="The size that the guest is to have at the end. By default what it has now, or"
    " had before a run that was interrupted.",
)
@click.option("--dry-run", is_flag=True, help="Only say what would be taken.")
@report_option
@connect_timeout_option
@own_monitor_option
@json_option
@_output.never_stopped()
def reclaim(
    *,
    socket: Vm,
    amount: RelativeSize | None,
    amount_option: RelativeSize | None,
    headroom: RelativeSize | None,
    floor: RelativeSize | None,
    max_rate: int | None,
    gentle: float | None,
    reread_within: float | None,
    hold: bool,
    keep: bool,
    seconds: float | None,
    to: RelativeSize | None,
    dry_run: bool,
    report: Path | None,
    connect_timeout: float,
    own_monitor: bool,
    as_json: bool,
) -> int:
    """Take from the guest the memory that it does not need, at most AMOUNT.

    The balloon is inflated, the guest's page cache shrinks, and the host gets the
    memory. At the end the guest gets its size back, nearly all of it free. The host
    keeps what the guest does not touch again. The guest is watched all the time, and
    gets memory back at once if it needs it.
    """
    if amount and amount_option:
        raise click.UsageError("AMOUNT is given twice: leave --amount out")
    if hold and keep:
        raise click.UsageError("--hold and --keep: choose one of them")
    if hold and to:
        raise click.UsageError("--hold leaves the guest small: leave --to out")
    if seconds is not None and not keep:
        raise click.UsageError(
            "--for limits how long --keep keeps the memory: add --keep"
        )
    if dry_run and report:
        raise click.UsageError("a dry run has nothing to report: leave --report out")
    keeping = _Keeping(math.inf if seconds is None else seconds) if keep else None
    request = _Request(
        amount=amount or amount_option,
        guard=RelativeGuard(
            headroom=headroom,
            floor=floor,
            max_rate=max_rate,
            gentle=gentle,
            reread_within=reread_within,
        ),
        to=to,
    )
    if dry_run:
        plan = run_with_monitor(
            socket,
            lambda monitor: _plan(monitor, request),
            connect_timeout=connect_timeout,
            own=own_monitor,
        )
        _print_plan(plan, as_json=as_json)
        return _output.DONE
    title, guard, seen = run_with_monitor(
        socket,
        lambda monitor: _reclaim(
            monitor, socket, request, hold=hold, keeping=keeping, quiet=as_json
        ),
        connect_timeout=connect_timeout,
        # Nobody is to be kept out for as long as memory is kept.
        own=own_monitor or ("auto" if keep else False),
        ask_to_end=keeping.ask_to_end if keeping else lambda: False,
    )
    document = seen.to_json() if as_json else None
    return conclude(seen, title, report, guard, hold=hold, vm=socket, document=document)


# A dry run


async def _plan(monitor: VmMonitor, request: _Request) -> Plan:
    balloon = await find_balloon(monitor)
    amount, guard = request.resolve((await balloon.query()).total)
    return await balloon.plan_reclaim(amount, guard=guard)


def _print_plan(plan: Plan, *, as_json: bool) -> None:
    if as_json:
        _output.print_json(asdict(plan))
    else:
        _output.say(plan.describe())


# A reclaim


async def _reclaim(
    monitor: VmMonitor,
    vm: Vm,
    request: _Request,
    *,
    hold: bool,
    keeping: _Keeping | None,
    quiet: bool,
) -> tuple[str, Guard, ReclaimReport]:
    """Reclaim; return a title, what the guest was to keep, and the report."""
    balloon = await find_balloon(monitor)
    name = (await balloon.query_vm()).name or str(vm)
    title = f"Reclaiming memory from {name}"
    total = (await balloon.query()).total
    amount, guard = request.resolve(total)
    seen = await reclaim_and_show(
        balloon,
        title,
        amount,
        guard,
        hold=hold,
        keeping=keeping,
        give_back_to=request.resolve_end(total),
        quiet=quiet,
    )
    return title, guard, seen


async def reclaim_and_show(
    balloon: Balloon,
    title: str,
    amount: int | None = None,
    guard: Guard | None = None,
    *,
    hold: bool = False,
    keeping: _Keeping | None = None,
    give_back_to: int | None = None,
    quiet: bool,
) -> ReclaimReport:
    """Reclaim and show it; if it is interrupted, say what has become of the guest.

    Args:
        balloon: The guest's balloon.
        title: The heading of what is shown.
        amount: Bytes to take at most.
        guard: What the guest must keep.
        hold: Leave the guest at the smaller size.
        keeping: For how long to keep the memory and watch the guest; ``None``: do not.
        give_back_to: Bytes that the guest is to have at the end.
        quiet: Show nothing.
    """
    async with explain_interruption(balloon, _describe_interrupted):
        with (
            nullcontext()
            if quiet
            else show_timeline(title, _SUMMARY_HEIGHT) as show_sample
        ):

            def show(progress: Progress) -> None:
                if keeping is not None:
                    keeping.has_begun = True
                if show_sample is not None:
                    show_sample(progress.sample)

            if keeping is not None:
                return await balloon.keep(
                    amount,
                    guard=guard,
                    seconds=keeping.seconds,
                    until=keeping.is_to_end,
                    give_back_to=give_back_to,
                    on_progress=show,
                )
            return await balloon.reclaim(
                amount,
                guard=guard,
                hold=hold,
                give_back_to=give_back_to,
                on_progress=show,
            )


def _describe_interrupted(target: int | None, actual: int | None) -> str:
    """Say what has become of a guest whose reclaim was interrupted."""
    if actual is None:
        if target is None:
            return "nothing was taken"
        return (
            f"the guest is given its memory back: it is asked to have"
            f" {format_size(target)}, {UNANSWERED}"
        )
    if target is None:
        return f"nothing was taken, the guest has {format_size(actual)}"
    if target > actual:
        return (
            f"the guest is given its memory back: it has {format_size(actual)}, and is"
            f" still growing to {format_size(target)}"
        )
    return f"the guest has its memory back, {format_size(actual)}"


def conclude(
    seen: ReclaimReport,
    title: str,
    report: Path | None,
    guard: Guard,
    *,
    hold: bool = False,
    vm: Vm | None = None,
    document: Mapping[str, object] | None,
) -> int:
    """Write a reclaim's report, print its summary, and return the exit status.

    The file comes first: the terminal may be closed already. A file that cannot be
    written does not cost the summary.

    Args:
        seen: The reclaim's report.
        title: The heading of a page or a chart.
        report: The file to write.
        guard: What the guest was to keep.
        hold: Whether the memory was to be held.
        vm: The VM, if there is one that can be resized afterwards.
        document: Printed as JSON in place of the summary.
    """
    try:
        if report:
            from qmpballoon import export  # noqa: PLC0415 - only for reports

            settings = export.list_settings(guard, seen.ram or seen.before.actual)
            export.save(
                report,
                seen.timeline,
                title=title,
                facts=export.Facts.of_reclaim(seen, settings),
                document=seen.to_json(),
            )
    finally:
        if document is not None:
            _output.print_json(document)
        elif seen.outcome != "refused":
            _print_summary(seen, vm)
    if seen.outcome != "done" or seen.leaves_small:
        _output.note(f"{seen.outcome}: {seen.reason}")
    elif seen.held and not hold:
        _output.note(f"not all of it was given back: {seen.reason}")
        return _output.NOT_REACHED
    return _STATUS[seen.outcome]


def _print_summary(seen: ReclaimReport, vm: Vm | None) -> None:
    from qmpballoon.cli.render.summary import draw_summary  # noqa: PLC0415 - rich

    address = None if vm is None else str(vm)
    if isinstance(vm, UnixAddress) and ":" in vm.path:
        address = f"unix:{vm}"  # otherwise it may be read as another kind of address
    console = make_console()
    _output.draw(console, *draw_summary(seen, console.width, address=address))
