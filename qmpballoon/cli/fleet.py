"""``qmpballoon fleet``: show and move the memory of all VMs of a host."""

from __future__ import annotations

import contextlib
import math
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Final

import click

from qmpballoon.cli import _output
from qmpballoon.cli._cluster_options import add_membership_options
from qmpballoon.cli._display import print_fleet, show_fleet
from qmpballoon.cli._fleet_options import (
    VMS,
    add_host_options,
    allow_host_option,
    policy_option,
    read_listen_address,
    timeout_option,
    users_option,
    vms_argument,
)
from qmpballoon.cli._fleet_session import (
    Alone,
    choose_status,
    make_change_notes,
    note_found,
    open_metrics,
    supervise,
)
from qmpballoon.cli._options import PERIOD, Duration, json_option, read_positive_size
from qmpballoon.cli._pages import open_pages, read_page_address
from qmpballoon.cli.render.fleet import (
    describe_absent,
    describe_plan,
    describe_refused,
    describe_report,
    describe_small,
    describe_uncertain,
    host_to_json,
)
from qmpballoon.fleet.host_memory import HostMemory
from qmpballoon.fleet.policy import Rules, describe_unreachable
from qmpballoon.sizes import format_size

if TYPE_CHECKING:
    from collections.abc import Callable

    from qmpballoon.cli._cluster_options import Membership
    from qmpballoon.cli._cluster_session import Member
    from qmpballoon.cli._pages import PageAddress
    from qmpballoon.fleet.control_loop import FleetReclaimReport
    from qmpballoon.fleet.guests import Host
    from qmpballoon.fleet.policy import FleetPlan, PolicyName
    from qmpballoon.fleet.supervisor import Supervisor
    from qmpballoon.fleet.vm_view import VmView
    from qmpballoon.web.board import Board

__all__ = ["fleet"]

_QUICK: Final = 0.25  # seconds between two polls where one poll of each VM is enough
_SORTS: Final = (
    "name",
    "state",
    "need",
    "spare",
    "size",
    "available",
    "cache",
    "resident",
)


@click.group(epilog=VMS)
def fleet() -> None:
    """Show all VMs of a host, and move memory to those that need it."""


# status


@fleet.command()
@vms_argument
@users_option
@click.option(
    "--watch", is_flag=True, help="Show them again every second, until Ctrl-C."
)
@click.option(
    "--sort",
    type=click.Choice(_SORTS),
    default="name",
    help="What to sort by. `need` puts first the VMs that are nearest to their"
    " headroom, `spare` those that are farthest above it.",
)
@add_host_options
@timeout_option
@json_option
def status(
    *,
    vms: tuple[str, ...],
    users: tuple[str, ...],
    watch: bool,
    sort: str,
    memory: HostMemory,
    rules: Rules,
    timeout: float,
    as_json: bool,
) -> int:
    """Show the host, and the state and memory of each VM."""

    async def main(supervisor: Supervisor) -> int:
        if watch:
            await _watch(supervisor, memory, rules, sort, as_json=as_json)
        else:
            await supervisor.wait_until_known(timeout)
            _show(supervisor, memory, rules, sort, as_json=as_json)
            host = memory.read(supervisor.held, supervisor.promised)
            _note_uncertain(host, memory, supervisor)
        return choose_status(supervisor.list_views())

    with _output.end_normally() if watch else contextlib.nullcontext():
        seen: int = supervise(vms, users, 1.0 if watch else _QUICK, main)
        return seen
    return _output.DONE


def _show(
    supervisor: Supervisor,
    memory: HostMemory,
    rules: Rules,
    sort: str,
    *,
    as_json: bool,
) -> None:
    host = memory.read(supervisor.held, supervisor.promised)
    if as_json:
        _output.print_json(_to_json(host, rules, supervisor, sort))
        return
    print_fleet(host, rules, _sort(supervisor.list_views(), sort))
    for line in describe_refused(supervisor.list_refused()):
        _output.say(line)


async def _watch(
    supervisor: Supervisor,
    memory: HostMemory,
    rules: Rules,
    sort: str,
    *,
    as_json: bool,
) -> None:
    import trio  # noqa: PLC0415 - loaded late

    # In a file or a pipe one table follows the other.
    is_live = sys.stdout.isatty() and not as_json
    with show_fleet() if is_live else contextlib.nullcontext() as show:
        while True:
            if show is None:
                _show(supervisor, memory, rules, sort, as_json=as_json)
            else:
                host = memory.read(supervisor.held, supervisor.promised)
                show(host, rules, _sort(supervisor.list_views(), sort))
            await trio.sleep(1)


def _to_json(
    host: Host, rules: Rules, supervisor: Supervisor, sort: str
) -> dict[str, object]:
    return {
        "vms": [view.to_json() for view in _sort(supervisor.list_views(), sort)],
        "refused": _list_refused(supervisor),
        "host": host_to_json(host, rules),
    }


def _list_refused(supervisor: Supervisor) -> list[dict[str, object]]:
    return [refused.to_json() for refused in supervisor.list_refused()]


def _sort(views: list[VmView], sort: str) -> list[VmView]:
    """Sort by name, by state, by need, or by a size with the largest first."""
    if sort in ("name", "state"):
        return sorted(views, key=lambda view: (str(getattr(view, sort)), view.name))
    if sort == "need":
        return sorted(
            views,
            key=lambda view: (view.above_headroom is None, view.above_headroom or 0),
        )
    sizes: dict[str, Callable[[VmView], int | None]] = {
        "size": lambda view: view.actual,
        "spare": lambda view: view.above_headroom,
        "available": lambda view: view.stats.reclaimable,
        "cache": lambda view: view.stats.disk_caches,
        "resident": lambda view: view.resident,
    }
    return sorted(views, key=lambda view: _last(sizes[sort](view)), reverse=True)


def _last(size: int | None) -> float:
    """Return what sorts a size that is not known behind all others."""
    return -math.inf if size is None else size


# plan and run


@fleet.command()
@vms_argument
@users_option
@add_host_options
@timeout_option
@json_option
def plan(
    *,
    vms: tuple[str, ...],
    users: tuple[str, ...],
    memory: HostMemory,
    rules: Rules,
    timeout: float,
    as_json: bool,
) -> int:
    """Say what `run` would move now, and why. Nothing is moved."""

    async def main(supervisor: Supervisor) -> int:
        from qmpballoon.fleet.control_loop import decide  # noqa: PLC0415 - loads trio

        note_found(supervisor)
        await supervisor.wait_until_known(timeout)
        _output.note(*describe_absent(supervisor.list_views()))
        host, made = decide(supervisor, memory.read, rules)
        _note_uncertain(host, memory, supervisor)
        _note_unreachable(made, rules)
        _print_plan(host, rules, made, supervisor, as_json=as_json)
        return choose_status(supervisor.list_views())

    seen: int = supervise(vms, users, _QUICK, main)
    return seen


@fleet.command()
@vms_argument
@users_option
@add_host_options
@click.option("--once", is_flag=True, help="Make one plan, carry it out, and end.")
@click.option(
    "--period",
    type=PERIOD,
    default=1.0,
    metavar="SECONDS",
    help="How long to wait between two polls of a VM, and between two plans.",
)
@click.option(
    "--metrics",
    type=read_listen_address,
    metavar="[HOST:]PORT",
    help="Serve Prometheus metrics on this address meanwhile.",
)
@click.option(
    "--web",
    "pages",
    type=read_page_address,
    metavar="ADDRESS",
    help="Serve pages for a browser meanwhile, as `qmpballoon web` does: on [HOST:]PORT"
    " or unix:PATH. Nothing can be changed there.",
)
@allow_host_option
@add_membership_options
@timeout_option
@json_option
@_output.never_stopped()
def run(
    *,
    vms: tuple[str, ...],
    users: tuple[str, ...],
    once: bool,
    period: float,
    metrics: tuple[str, int] | None,
    pages: PageAddress | None,
    allowed_hosts: tuple[str, ...],
    membership: Membership | None,
    memory: HostMemory,
    rules: Rules,
    timeout: float,
    as_json: bool,
) -> int:
    """Move memory to the guests that need it, until Ctrl-C.

    The host keeps its reserve, and each guest its headroom. Guests are watched while
    they shrink. At the end they stay at the sizes they have reached.
    """
    if once and (metrics or pages):
        option = "--metrics" if metrics else "--web"
        raise click.UsageError(
            f"--once ends before anybody asks for what it serves: leave {option} out"
        )
    if once and membership:
        raise click.UsageError(
            "--once ends before a cluster asks for anything: leave --cluster out"
        )
    if membership:
        # Fails here, before anything, if the extra is not installed.
        import_module("qmpballoon.cli._cluster_session")

    async def main(supervisor: Supervisor) -> int:
        from qmpballoon.fleet.control_loop import (  # noqa: PLC0415 - loads trio
            carry_out,
            decide,
        )

        note_found(supervisor)
        await supervisor.wait_until_known(timeout)
        if not once:
            async with (
                _join(membership, supervisor, memory, rules) as member,
                contextlib.AsyncExitStack() as stack,
            ):
                board = None
                if metrics:
                    served = open_metrics(
                        supervisor, memory, member, metrics, names=allowed_hosts
                    )
                    _output.note(f"metrics at {stack.enter_context(served)}")
                if pages:
                    board = await stack.enter_async_context(
                        open_pages(
                            supervisor,
                            memory,
                            member.get_rules,
                            pages,
                            names=allowed_hosts,
                            say=_output.note,
                        )
                    )
                shown = _Shown(supervisor, memory, member, board, as_json=as_json)
                await _manage(supervisor, member, period, shown)
        _output.note(*describe_absent(supervisor.list_views()))
        host, plan = decide(supervisor, memory.read, rules)
        _note_uncertain(host, memory, supervisor)
        _note_unreachable(plan, rules)
        _print_plan(host, rules, plan, supervisor, as_json=as_json)
        await carry_out(supervisor, plan)
        return _conclude(plan, supervisor.list_views())

    with contextlib.nullcontext() if once else _output.end_normally():
        outcome: int = supervise(
            vms, users, period, main, outlives_reader=not once, leaves_sizes=True
        )
        return outcome
    return _output.DONE


def _join(
    membership: Membership | None,
    supervisor: Supervisor,
    memory: HostMemory,
    rules: Rules,
) -> contextlib.AbstractAsyncContextManager[Alone | Member]:
    """Join a cluster within the block, if the host is to be in one."""
    if membership is None:
        return contextlib.nullcontext(Alone(memory.read, lambda: rules))
    from qmpballoon.cli._cluster_session import (  # noqa: PLC0415 - loads trio
        join_cluster,
    )

    return join_cluster(membership, supervisor, memory, rules)


class _Shown:
    """Shows each plan, and what has changed since the one before."""

    def __init__(
        self,
        supervisor: Supervisor,
        memory: HostMemory,
        member: Alone | Member,
        board: Board | None,
        *,
        as_json: bool,
    ) -> None:
        self._supervisor = supervisor
        self._member = member
        self._board = board
        self._as_json = as_json
        self._note_changes = make_change_notes(supervisor, memory)
        self._is_wish_noted = False

    def show(self, host: Host, plan: FleetPlan) -> None:
        """Show a plan, if it has moves."""
        self._note_changes(host)
        for line in self._member.describe_changes():
            _output.note(line)
            if self._board:
                self._board.log(None, line)
        rules = self._member.get_rules()
        if not self._is_wish_noted:
            self._is_wish_noted = _note_unreachable(plan, rules)
        if plan.moves:
            _print_plan(host, rules, plan, self._supervisor, as_json=self._as_json)
        _log_moves(self._board, plan)


async def _manage(
    supervisor: Supervisor, member: Alone | Member, period: float, shown: _Shown
) -> None:
    """Make plans and carry them out, until it is cancelled."""
    import trio  # noqa: PLC0415 - loaded late

    from qmpballoon.cli._session import serve  # noqa: PLC0415 - loads trio
    from qmpballoon.fleet.control_loop import (  # noqa: PLC0415 - loads trio
        run_control_loop,
    )

    planned_at = trio.current_time()

    def show(host: Host, plan: FleetPlan) -> None:
        nonlocal planned_at
        planned_at = trio.current_time()
        shown.show(host, plan)

    # A plan may come late, on a busy host; but not by a whole period.
    due = 2 * period
    async with serve(lambda: trio.current_time() - planned_at <= due):
        await run_control_loop(
            supervisor, member.read, member.get_rules, period=period, on_plan=show
        )


def _log_moves(board: Board | None, plan: FleetPlan) -> None:
    """Show the moves of a plan, and why they are made, on the pages, if there are."""
    if board is None:
        return
    for move in plan.moves:
        sizes = f"{format_size(move.before)} \u2192 {format_size(move.target)}"
        board.log(move.name, f"is moved {sizes}: {move.reason}")


def _print_plan(
    host: Host, rules: Rules, plan: FleetPlan, supervisor: Supervisor, *, as_json: bool
) -> None:
    if as_json:
        _output.print_json(
            {
                **plan.to_json(),
                "host": host_to_json(host, rules),
                "refused": _list_refused(supervisor),
            }
        )
    else:
        _output.say(describe_plan(host, rules, plan))


def _note_unreachable(plan: FleetPlan, rules: Rules) -> bool:
    """Note that the host's reserve cannot be reached, if so; return whether it is."""
    if plan.unreachable:
        _output.note(describe_unreachable(plan, rules))
    return plan.unreachable > 0


def _note_uncertain(host: Host, memory: HostMemory, supervisor: Supervisor) -> None:
    """Note what of the host's figures could not be read."""
    limited = memory.limit is not None
    views = supervisor.list_views()
    _output.note(*describe_uncertain(host, views, limited=limited))


def _conclude(plan: FleetPlan, views: list[VmView]) -> int:
    """Name the VMs that did not reach their target; return the exit status."""
    sizes = {view.name: view.actual for view in views}
    stuck = [move for move in plan.moves if sizes.get(move.name) != move.target]
    for move in stuck:
        size = sizes.get(move.name)
        at = "is gone" if size is None else f"stopped at {format_size(size)}"
        _output.note(f"{move.name} {at}, not {format_size(move.target)}")
    return choose_status(views, _output.NOT_REACHED if stuck else _output.DONE)


# reclaim


@fleet.command()
@click.argument("amount", type=read_positive_size)
@vms_argument
@users_option
@click.option(
    "--hold",
    is_flag=True,
    help="Leave the guests at the smaller sizes, and do not give the memory back.",
)
@click.option(
    "--gentle",
    type=Duration(),
    metavar="DURATION",
    help="Take the memory evenly over this time, like 10m. A guest gets back the page"
    " cache that it reads again within a tenth of this time.  [default: as fast as the"
    " guests give it]",
)
@policy_option
@timeout_option
@json_option
@_output.never_stopped()
def reclaim(
    *,
    amount: int,
    vms: tuple[str, ...],
    users: tuple[str, ...],
    hold: bool,
    gentle: float | None,
    policy: PolicyName,
    timeout: float,
    as_json: bool,
) -> int:
    """Take AMOUNT from the guests now, first from those that can spare most.

    Every guest keeps its headroom, and is watched while it shrinks. What one guest
    does not give is taken from the others. At the end the guests get their sizes
    back, and the host keeps the memory that they do not touch again.
    """
    memory = HostMemory()
    rules = Rules.for_host(memory.read().total, policy=policy)

    async def main(supervisor: Supervisor) -> tuple[FleetReclaimReport, list[VmView]]:
        from qmpballoon.fleet.control_loop import reclaim  # noqa: PLC0415 - loads trio

        note_found(supervisor)
        await supervisor.wait_until_known(timeout)
        _output.note(*describe_absent(supervisor.list_views()))
        show = _make_progress(amount, quiet=as_json)
        try:
            report = await reclaim(
                supervisor,
                amount,
                rules,
                hold=hold,
                gentle=gentle or 0.0,
                on_progress=show,
            )
        except BaseException:
            # There will be no report that tells which guests lack memory.
            _output.note(*describe_small(supervisor.list_small()))
            raise
        return report, supervisor.list_views()

    before = memory.read().available
    report: FleetReclaimReport
    views: list[VmView]
    report, views = supervise(vms, users, _QUICK, main)
    after = memory.read().available
    if as_json:
        _output.print_json(
            {**report.to_json(), "host": {"before": before, "after": after}}
        )
    else:
        addresses = {view.name: view.address for view in views}
        _output.say(describe_report(report, before, after, addresses))
    if report.handed_over == 0:
        return _conclude_refused(views)
    missing = amount - report.handed_over
    is_done = missing <= amount // 100 and not any(vm.owed for vm in report.vms)
    return _output.DONE if is_done else _output.NOT_REACHED


def _conclude_refused(views: list[VmView]) -> int:
    """Say why no guest gave anything, if that was not said; return the exit status."""
    status = choose_status(views, _output.REFUSED)
    if status == _output.REFUSED and any(view.takes_part for view in views):
        _output.note(
            "no guest had memory to spare: `qmpballoon fleet status` says how they are,"
            " `--sort need` sorts them by what is above their headroom"
        )
    return status


def _make_progress(amount: int, *, quiet: bool) -> Callable[[int], None]:
    """Return what prints a line each time that another tenth has been taken."""
    shown = -1

    def show(taken: int) -> None:
        nonlocal shown
        percent = taken * 100 // amount
        if not quiet and percent // 10 > shown // 10:
            shown = percent
            _output.say(f"{percent:3} %  {format_size(taken)} of {format_size(amount)}")

    return show
