"""``qmpballoon fleet``: many VMs on one host."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar, get_args

import click

from qmpballoon.cli import output
from qmpballoon.cli.options import SECONDS, json_option, positive_size, size
from qmpballoon.fleet.discovery import sources
from qmpballoon.fleet.gauge import Gauge
from qmpballoon.fleet.policy import PolicyName, Rules
from qmpballoon.sizes import format_size

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from qmpballoon.fleet.balance import Reclaimed
    from qmpballoon.fleet.discovery import Source
    from qmpballoon.fleet.policy import Host, Plan
    from qmpballoon.fleet.record import View
    from qmpballoon.fleet.supervisor import Supervisor

__all__ = ["fleet", "fleet_options", "source_of"]

_Command = TypeVar("_Command", bound="Callable[..., object]")

_QUICK: Final = 0.25  # seconds between two looks where one answer is all we want
_SORTS: Final = ("name", "state", "size", "available", "resident")


def source_of(vms: tuple[str, ...]) -> Source:
    """Return the source of VMs that the arguments mean."""
    try:
        return sources(vms)
    except ValueError as error:
        raise click.UsageError(str(error)) from error


vms_argument: Final = click.argument("vms", nargs=-1, metavar="[VMS]...")
_timeout_option = click.option(
    "--timeout",
    type=SECONDS,
    default=6.0,
    metavar="SECONDS",
    help="How long to wait for VMs that do not answer.",
)
_OPTIONS: Final = (
    click.option(
        "--reserve",
        type=size,
        metavar="SIZE",
        help="What the host keeps available.  [default: 5 % of its memory, and 256MiB]",
    ),
    click.option(
        "--limit",
        type=positive_size,
        metavar="SIZE",
        help="What all VMs together may hold of the host's memory.  [default: all]",
    ),
    click.option(
        "--cgroup",
        type=click.Path(exists=True, file_okay=False, path_type=Path),
        help="The folder of the control group (v2) that the VMs live in: its limit"
        " and pressure count, too.",
    ),
    click.option(
        "--policy",
        type=click.Choice(get_args(PolicyName)),
        default="available",
        help="What is levelled out among the guests.",
    ),
)


def fleet_options(command: _Command) -> _Command:
    """Add what is wanted of the host."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def _gauge(limit: int | None, cgroup: Path | None) -> Gauge:
    return Gauge(limit=limit, cgroup=cgroup)


def _rules(gauge: Gauge, reserve: int | None, policy: PolicyName) -> Rules:
    return Rules.for_host(gauge.read().total, reserve, policy)


@click.group(
    epilog="VMS are globs of monitor sockets (quoted: '/run/vms/*.qmp'), addresses like"
    " tcp:HOST:PORT, or files (*.toml) that say what is wanted of each VM. Without any,"
    " they are the QEMUs that run on this host. Their monitors are held meanwhile: give"
    " a VM that others talk to as well a second -qmp."
)
def fleet() -> None:
    """Look after all VMs of a host: memory goes where it is needed."""


def _run(
    vms: tuple[str, ...],
    period: float,
    main: Callable[[Supervisor], Awaitable[Any]],
) -> Any:  # noqa: ANN401 - what main returns
    """Supervise VMs while something is done with them."""
    source = source_of(vms)

    import random  # noqa: PLC0415 - loaded late

    from qmpballoon.cli.session import run  # noqa: PLC0415 - loads trio
    from qmpballoon.fleet.supervisor import Settings, open_fleet  # noqa: PLC0415

    async def supervise() -> Any:  # noqa: ANN401
        settings = Settings(period=period)
        # Looks are spread out: nothing secret about it.
        rng = random.Random()  # noqa: S311
        async with open_fleet(source, rng, settings=settings) as supervisor:
            return await main(supervisor)

    return run(supervise)


# status


@fleet.command()
@vms_argument
@click.option("--watch", is_flag=True, help="Show it again every second, until Ctrl-C.")
@click.option(
    "--sort", type=click.Choice(_SORTS), default="name", help="What to sort by."
)
@fleet_options
@_timeout_option
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
    gauge = _gauge(limit, cgroup)
    rules = _rules(gauge, reserve, policy)

    async def main(supervisor: Supervisor) -> None:
        await supervisor.known(timeout)
        if watch:
            await _watch(supervisor, gauge, rules, sort, as_json=as_json)
        else:
            _show(supervisor, gauge, rules, sort, as_json=as_json)

    with contextlib.suppress(output.Interrupted) if watch else contextlib.nullcontext():
        _run(vms, 1.0 if watch else _QUICK, main)


def _show(
    supervisor: Supervisor, gauge: Gauge, rules: Rules, sort: str, *, as_json: bool
) -> None:
    host = gauge.read(supervisor.held, supervisor.promised)
    if as_json:
        output.print_json(_status(host, rules, _sorted(supervisor.views(), sort)))
        return
    from qmpballoon.cli.fleet_table import print_table  # noqa: PLC0415 - loads rich

    print_table(host, rules, _sorted(supervisor.views(), sort))


async def _watch(
    supervisor: Supervisor, gauge: Gauge, rules: Rules, sort: str, *, as_json: bool
) -> None:
    import trio  # noqa: PLC0415 - loaded late

    from qmpballoon.cli.fleet_table import table_shown  # noqa: PLC0415 - loads rich

    with table_shown() if not as_json else contextlib.nullcontext() as show:
        while True:
            if show is None:
                _show(supervisor, gauge, rules, sort, as_json=True)
            else:
                host = gauge.read(supervisor.held, supervisor.promised)
                show(host, rules, _sorted(supervisor.views(), sort))
            await trio.sleep(1)


def _status(host: Host, rules: Rules, views: list[View]) -> dict[str, object]:
    return {"vms": [view.to_json() for view in views], "host": _host(host, rules)}


def _host(host: Host, rules: Rules) -> dict[str, object]:
    return {
        "total": host.total,
        "available": host.available,
        "reserve": rules.reserve,
        "buffer": rules.buffer,
        "promised": host.promised,
        "pressed": host.pressed,
    }


def _sorted(views: list[View], sort: str) -> list[View]:
    """Sort by name, by state, or by a size, the largest first."""
    if sort in ("name", "state"):
        return sorted(views, key=lambda view: (str(getattr(view, sort)), view.name))
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
@_timeout_option
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
    gauge = _gauge(limit, cgroup)
    rules = _rules(gauge, reserve, policy)

    async def main(supervisor: Supervisor) -> tuple[Host, Plan]:
        from qmpballoon.fleet.balance import decide  # noqa: PLC0415 - loads trio

        await supervisor.known(timeout)
        return decide(supervisor, gauge.read, rules)

    host, made = _run(vms, _QUICK, main)
    if as_json:
        output.print_json({**made.to_json(), "host": _host(host, rules)})
    else:
        output.say(_describe(host, rules, made))


def _describe(host: Host, rules: Rules, plan: Plan) -> str:
    about = (
        f"The host has {format_size(host.available)} available of"
        f" {format_size(host.total)}, and is to keep {format_size(rules.reserve)}."
    )
    moves = [
        f"{move.name}: {format_size(move.before)} -> {format_size(move.target)}"
        f" ({format_size(move.change)}): {move.reason}"
        for move in plan.moves
    ]
    lines = [about, *moves]
    if plan.lacking:
        lines.append(f"Nobody can free the {format_size(plan.lacking)} still lacking.")
    elif not plan.moves:
        lines.append("Nothing is to be moved.")
    return "\n".join(lines)


@fleet.command()
@vms_argument
@fleet_options
@click.option("--once", is_flag=True, help="Make one plan, carry it out, and end.")
@click.option(
    "--period",
    type=SECONDS,
    default=1.0,
    metavar="SECONDS",
    help="Between two looks at a VM, and between two plans.",
)
@_timeout_option
@json_option
def run(
    *,
    vms: tuple[str, ...],
    once: bool,
    period: float,
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
    gauge = _gauge(limit, cgroup)
    rules = _rules(gauge, reserve, policy)

    async def main(supervisor: Supervisor) -> int:
        from qmpballoon.fleet.balance import (  # noqa: PLC0415 - loads trio
            balance,
            carry_out,
            decide,
        )

        def tell(host: Host, plan: Plan) -> None:
            if plan.moves or once:
                _tell(host, rules, plan, as_json=as_json)

        await supervisor.known(timeout)
        if not once:
            await balance(supervisor, gauge.read, rules, period=period, on_plan=tell)
        host, plan = decide(supervisor, gauge.read, rules)
        tell(host, plan)
        await carry_out(supervisor, plan)
        return _outcome(plan, supervisor.views())

    # An interruption is how the loop is meant to end.
    with contextlib.nullcontext() if once else contextlib.suppress(output.Interrupted):
        outcome: int = _run(vms, period, main)
        return outcome
    return output.DONE


def _tell(host: Host, rules: Rules, plan: Plan, *, as_json: bool) -> None:
    if as_json:
        output.print_json({**plan.to_json(), "host": _host(host, rules)})
    else:
        output.say(_describe(host, rules, plan))


def _outcome(plan: Plan, views: list[View]) -> int:
    """Say who did not come to the size it was to have; return the exit status."""
    sizes = {view.name: view.actual for view in views}
    stuck = [move for move in plan.moves if sizes.get(move.name) != move.target]
    for move in stuck:
        size = sizes.get(move.name)
        at = "is gone" if size is None else f"stopped at {format_size(size)}"
        output.note(f"{move.name} {at}, not {format_size(move.target)}")
    return output.NOT_REACHED if stuck else output.DONE


# reclaim


@fleet.command()
@click.argument("amount", type=positive_size)
@vms_argument
@click.option("--hold", is_flag=True, help="Keep the memory, do not give it back.")
@click.option(
    "--policy",
    type=click.Choice(get_args(PolicyName)),
    default="available",
    help="What is levelled out among the guests.",
)
@_timeout_option
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
        from qmpballoon.fleet.balance import reclaim  # noqa: PLC0415 - loads trio

        await supervisor.known(timeout)
        show = _progress(amount, quiet=as_json)
        return await reclaim(supervisor, amount, rules, hold=hold, on_progress=show)

    before = gauge.read().available
    report: Reclaimed = _run(vms, _QUICK, main)
    after = gauge.read().available
    if as_json:
        output.print_json(
            {**report.to_json(), "host": {"before": before, "after": after}}
        )
    else:
        output.say(_report(report, before, after))
    if report.handed_over == 0:
        return output.REFUSED
    missing = amount - report.handed_over
    return output.NOT_REACHED if missing > amount // 100 else output.DONE


def _progress(amount: int, *, quiet: bool) -> Callable[[int], None]:
    shown = -1

    def show(taken: int) -> None:
        nonlocal shown
        percent = taken * 100 // amount
        if not quiet and percent // 10 > shown // 10:
            shown = percent
            output.say(f"{percent:3} %  {format_size(taken)} of {format_size(amount)}")

    return show


def _report(report: Reclaimed, before: int, after: int) -> str:
    lines = [
        f"{vm.name}: gave {format_size(vm.handed_over)} of"
        f" {format_size(vm.requested)} that were asked for"
        for vm in report.vms
    ]
    kept = "and keeps it from them" if report.held else "and gave the sizes back"
    lines.append(
        f"Took {format_size(report.handed_over)} of {format_size(report.requested)}"
        f" from {len(report.vms)} guests, {kept}; the host had {format_size(before)}"
        f" available, and has {format_size(after)}."
    )
    return "\n".join(lines)
