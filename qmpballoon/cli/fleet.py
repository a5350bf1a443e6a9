"""``qmpballoon fleet``: many VMs on one host."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Final

import click

from qmpballoon.cli import _output
from qmpballoon.cli._fleet_options import (
    VMS,
    fleet_options,
    listen_address,
    metrics_served,
    note_nobody,
    policy_option,
    rules_for,
    supervise,
    timeout_option,
    vms_argument,
)
from qmpballoon.cli._options import PERIOD, json_option, positive_size
from qmpballoon.cli.render.fleet_news import News, note_absent
from qmpballoon.cli.render.fleet_text import host_json, print_plan, report_text
from qmpballoon.fleet.host_memory import Gauge
from qmpballoon.fleet.policy import Rules
from qmpballoon.sizes import format_size

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from qmpballoon.fleet.control_loop import Reclaimed
    from qmpballoon.fleet.members import Host
    from qmpballoon.fleet.policy import FleetPlan, PolicyName
    from qmpballoon.fleet.supervisor import Supervisor
    from qmpballoon.fleet.vm import View

__all__ = ["fleet"]

_QUICK: Final = 0.25  # seconds between two looks where one answer is all we want
_SORTS: Final = ("name", "state", "need", "size", "available", "resident")


@click.group(epilog=VMS)
def fleet() -> None:
    """Look after all VMs of a host: memory goes where it is needed."""


# status


@fleet.command()
@vms_argument
@click.option("--watch", is_flag=True, help="Show it again every second, until Ctrl-C.")
@click.option(
    "--sort",
    type=click.Choice(_SORTS),
    default="name",
    help="What to sort by; `need` puts those first that are nearest to their headroom.",
)
@fleet_options
@timeout_option
@json_option
def status(
    *,
    vms: tuple[str, ...],
    watch: bool,
    sort: str,
    reserve: int | None,
    limit: int | None,
    cgroup: Path | None,
    policy: PolicyName,
    timeout: float,
    as_json: bool,
) -> None:
    """Show VMs, how they are, and what they have."""
    gauge = Gauge(limit=limit, cgroup=cgroup)
    rules = rules_for(gauge, reserve, policy)

    async def main(supervisor: Supervisor) -> None:
        if watch:
            await _watch(supervisor, gauge, rules, sort, as_json=as_json)
        else:
            await supervisor.known(timeout)
            _show(supervisor, gauge, rules, sort, as_json=as_json)

    with (
        contextlib.suppress(_output.Interrupted) if watch else contextlib.nullcontext()
    ):
        supervise(vms, 1.0 if watch else _QUICK, main)


def _show(
    supervisor: Supervisor, gauge: Gauge, rules: Rules, sort: str, *, as_json: bool
) -> None:
    host = gauge.read(supervisor.held, supervisor.promised)
    if as_json:
        _output.print_json(_status(host, rules, _sorted(supervisor.views(), sort)))
        return
    from qmpballoon.cli.render.table import print_table  # noqa: PLC0415 - loads rich

    print_table(host, rules, _sorted(supervisor.views(), sort))


async def _watch(
    supervisor: Supervisor, gauge: Gauge, rules: Rules, sort: str, *, as_json: bool
) -> None:
    import trio  # noqa: PLC0415 - loaded late

    from qmpballoon.cli.render.table import table_shown  # noqa: PLC0415 - loads rich

    # In a file or a pipe there is no place to show it in again: one follows the other.
    moves = sys.stdout.isatty() and not as_json
    with table_shown() if moves else contextlib.nullcontext() as show:
        while True:
            if show is None:
                _show(supervisor, gauge, rules, sort, as_json=as_json)
            else:
                host = gauge.read(supervisor.held, supervisor.promised)
                show(host, rules, _sorted(supervisor.views(), sort))
            await trio.sleep(1)


def _status(host: Host, rules: Rules, views: list[View]) -> dict[str, object]:
    return {"vms": [view.to_json() for view in views], "host": host_json(host, rules)}


def _sorted(views: list[View], sort: str) -> list[View]:
    """Sort by name, by state, by need, or by a size, the largest first."""
    if sort in ("name", "state"):
        return sorted(views, key=lambda view: (str(getattr(view, sort)), view.name))
    if sort == "need":
        return sorted(
            views,
            key=lambda view: (view.above_headroom is None, view.above_headroom or 0),
        )
    sizes: dict[str, Callable[[View], int | None]] = {
        "size": lambda view: view.actual,
        "available": lambda view: view.stats.reclaimable,
        "resident": lambda view: view.resident,
    }
    return sorted(views, key=lambda view: sizes[sort](view) or 0, reverse=True)


# plan and run


@fleet.command()
@vms_argument
@fleet_options
@timeout_option
@json_option
def plan(
    *,
    vms: tuple[str, ...],
    reserve: int | None,
    limit: int | None,
    cgroup: Path | None,
    policy: PolicyName,
    timeout: float,
    as_json: bool,
) -> None:
    """Say what `run` would move now, and why; move nothing."""
    gauge = Gauge(limit=limit, cgroup=cgroup)
    rules = rules_for(gauge, reserve, policy)

    async def main(supervisor: Supervisor) -> None:
        from qmpballoon.fleet.control_loop import decide  # noqa: PLC0415 - loads trio

        note_nobody(supervisor)
        await supervisor.known(timeout)
        note_absent(supervisor.views())
        host, made = decide(supervisor, gauge.read, rules)
        print_plan(host, rules, made, as_json=as_json)

    supervise(vms, _QUICK, main)


@fleet.command()
@vms_argument
@fleet_options
@click.option("--once", is_flag=True, help="Make one plan, carry it out, and end.")
@click.option(
    "--period",
    type=PERIOD,
    default=1.0,
    metavar="SECONDS",
    help="Between two looks at a VM, and between two plans.",
)
@click.option(
    "--metrics",
    type=listen_address,
    metavar="[HOST:]PORT",
    help="Serve Prometheus metrics there meanwhile.",
)
@timeout_option
@json_option
def run(
    *,
    vms: tuple[str, ...],
    once: bool,
    period: float,
    metrics: tuple[str, int] | None,
    reserve: int | None,
    limit: int | None,
    cgroup: Path | None,
    policy: PolicyName,
    timeout: float,
    as_json: bool,
) -> int:
    """Move memory to where it is needed, until Ctrl-C.

    The host keeps its reserve, and each guest its headroom. Guests are watched while
    they give. When it ends, guests stay at the sizes they have come to.
    """
    if once and metrics:
        raise click.UsageError("--once ends before anybody asks: leave --metrics out")
    gauge = Gauge(limit=limit, cgroup=cgroup)
    rules = rules_for(gauge, reserve, policy)

    async def main(supervisor: Supervisor) -> int:
        from qmpballoon.fleet.control_loop import (  # noqa: PLC0415 - loads trio
            balance,
            carry_out,
            decide,
        )

        news = News()

        def tell(host: Host, plan: FleetPlan) -> None:
            news.tell(supervisor.views())
            if plan.moves:
                print_plan(host, rules, plan, as_json=as_json)

        note_nobody(supervisor)
        await supervisor.known(timeout)
        if not once:
            with contextlib.ExitStack() as stack:
                if metrics:
                    served = metrics_served(supervisor, gauge, rules, metrics)
                    _output.note(f"metrics at {stack.enter_context(served)}")
                await balance(
                    supervisor, gauge.read, rules, period=period, on_plan=tell
                )
        note_absent(supervisor.views())
        host, plan = decide(supervisor, gauge.read, rules)
        print_plan(host, rules, plan, as_json=as_json)
        await carry_out(supervisor, plan)
        return _outcome(plan, supervisor.views())

    # An interruption is how the loop is meant to end.
    with contextlib.nullcontext() if once else contextlib.suppress(_output.Interrupted):
        outcome: int = supervise(vms, period, main)
        return outcome
    return _output.DONE


def _outcome(plan: FleetPlan, views: list[View]) -> int:
    """Say who did not come to the size it was to have; return the exit status."""
    sizes = {view.name: view.actual for view in views}
    stuck = [move for move in plan.moves if sizes.get(move.name) != move.target]
    for move in stuck:
        size = sizes.get(move.name)
        at = "is gone" if size is None else f"stopped at {format_size(size)}"
        _output.note(f"{move.name} {at}, not {format_size(move.target)}")
    return _output.NOT_REACHED if stuck else _output.DONE


# reclaim


@fleet.command()
@click.argument("amount", type=positive_size)
@vms_argument
@click.option("--hold", is_flag=True, help="Keep the memory, do not give it back.")
@policy_option
@timeout_option
@json_option
def reclaim(
    *,
    amount: int,
    vms: tuple[str, ...],
    hold: bool,
    policy: PolicyName,
    timeout: float,
    as_json: bool,
) -> int:
    """Take AMOUNT from the guests now, wherever it hurts least.

    Every guest keeps its headroom, and is watched while it gives. What one does not
    give is asked of the others. In the end the guests get their sizes back, and the
    host keeps what they do not touch again.
    """
    gauge = Gauge()
    rules = Rules.for_host(gauge.read().total, policy=policy)

    async def main(supervisor: Supervisor) -> Reclaimed:
        from qmpballoon.fleet.control_loop import reclaim  # noqa: PLC0415 - loads trio

        note_nobody(supervisor)
        await supervisor.known(timeout)
        note_absent(supervisor.views())
        show = _progress(amount, quiet=as_json)
        report = await reclaim(supervisor, amount, rules, hold=hold, on_progress=show)
        if supervisor.views() and not report.handed_over:
            _output.note(
                "no guest had anything to give: `qmpballoon fleet status` says how"
                " they are, `--sort need` what they have above their headroom"
            )
        return report

    before = gauge.read().available
    report: Reclaimed = supervise(vms, _QUICK, main)
    after = gauge.read().available
    if as_json:
        _output.print_json(
            {**report.to_json(), "host": {"before": before, "after": after}}
        )
    else:
        _output.say(report_text(report, before, after))
    if report.handed_over == 0:
        return _output.REFUSED
    missing = amount - report.handed_over
    is_done = missing <= amount // 100 and not any(vm.owed for vm in report.vms)
    return _output.DONE if is_done else _output.NOT_REACHED


def _progress(amount: int, *, quiet: bool) -> Callable[[int], None]:
    shown = -1

    def show(taken: int) -> None:
        nonlocal shown
        percent = taken * 100 // amount
        if not quiet and percent // 10 > shown // 10:
            shown = percent
            _output.say(f"{percent:3} %  {format_size(taken)} of {format_size(amount)}")

    return show
