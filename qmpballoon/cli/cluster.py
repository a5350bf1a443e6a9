"""``qmpballoon cluster``: look at many hosts, and ask them for memory."""

from __future__ import annotations

import contextlib
import sys
import time
import tomllib
from typing import TYPE_CHECKING, Any, Final

import click
from attrs import asdict

from qmpballoon.balloon.device import PAGE
from qmpballoon.cli import _output
from qmpballoon.cli._cluster_options import SERVER, cluster_option
from qmpballoon.cli._completion import complete_file
from qmpballoon.cli._display import draw_once, show_again
from qmpballoon.cli._options import Duration, json_option, read_positive_size
from qmpballoon.cluster.bus import LONGEST_JOB
from qmpballoon.errors import BusError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from qmpballoon.cluster.bus import Bus
    from qmpballoon.cluster.documents import Job
    from qmpballoon.cluster.job_report import JobReport
    from qmpballoon.cluster.valkey import BusAddress
    from qmpballoon.cluster.view import ClusterView

__all__ = ["cluster"]

_LARGEST_FILE: Final = 1 << 20  # bytes, as of a policy

# Seconds for which a server is asked whether a job has begun: restarting takes less.
_PATIENCE: Final = 60.0

_server_option: Final = cluster_option(required=True, text="The server of the cluster.")
_file_argument: Final = click.argument(
    "file", type=click.File("rb"), shell_complete=complete_file
)


@click.group(epilog=SERVER)
def cluster() -> None:
    """Show many hosts, set what they keep, and take memory where it hurts least."""


def _ask(address: BusAddress, main: Callable[[Bus], Awaitable[Any]]) -> Any:  # noqa: ANN401 - what main returns
    """Work with a cluster's server."""
    from qmpballoon.cli._session import run  # noqa: PLC0415 - loads trio
    from qmpballoon.cluster.valkey import open_bus  # noqa: PLC0415 - loads trio

    async def main_on_bus() -> Any:  # noqa: ANN401
        async with open_bus(address) as bus:
            return await main(bus)

    return run(main_on_bus)


# status


@cluster.command()
@_server_option
@click.option(
    "--watch", is_flag=True, help="Show them again every second, until Ctrl-C."
)
@json_option
def status(*, cluster: BusAddress, watch: bool, as_json: bool) -> None:
    """Show how all hosts are, what they have room for, and what they could give."""

    async def main(bus: Bus) -> None:
        from qmpballoon.cluster import look  # noqa: PLC0415 - loads trio

        if watch:
            await _watch(bus, as_json=as_json)
        else:
            # A person is shown hosts, not VMs.
            _show(await look(bus, time.time(), with_vms=as_json), as_json=as_json)

    with _output.end_normally() if watch else contextlib.nullcontext():
        _ask(cluster, main)


def _show(view: ClusterView, *, as_json: bool) -> None:
    from qmpballoon.cli.render.cluster import draw_cluster  # noqa: PLC0415 - loads rich

    if as_json:
        _output.print_json(view.to_json())
    else:
        draw_once(lambda _: draw_cluster(view))


async def _watch(bus: Bus, *, as_json: bool) -> None:
    import trio  # noqa: PLC0415 - loaded late

    from qmpballoon.cli.render.cluster import draw_cluster  # noqa: PLC0415 - loads rich
    from qmpballoon.cluster import look  # noqa: PLC0415 - loads trio

    is_live = sys.stdout.isatty() and not as_json
    problem = ""
    with show_again() if is_live else contextlib.nullcontext() as show:
        while True:
            try:
                view = await look(bus, time.time(), with_vms=as_json)
            except BusError as error:
                # It is asked again; the same is said once.
                if str(error) != problem:
                    _output.note(problem := str(error))
            else:
                problem = ""
                if show is None:
                    _show(view, as_json=as_json)
                else:
                    show(draw_cluster(view))
            await trio.sleep(1)


# policy


@cluster.group()
def policy() -> None:
    """Show or set the policy: what hosts are asked to keep."""


@policy.command(name="show")
@_server_option
@json_option
def show_policy(*, cluster: BusAddress, as_json: bool) -> None:
    """Show the policy that the server has, as a file for `apply`."""

    async def main(bus: Bus) -> None:
        from qmpballoon.cluster import format_policy, look  # noqa: PLC0415 - loads trio

        view = await look(bus, time.time(), with_vms=False)
        _output.note(*view.notes)
        if as_json:
            _output.print_json({"policy": view.policy and asdict(view.policy)})
        elif view.policy is None:
            _output.note("the server has no policy: hosts go on by their last, or own")
        else:
            _output.say(f"# revision {view.policy.revision}")
            _output.say(format_policy(view.policy).rstrip("\n"))

    _ask(cluster, main)


@policy.command(name="check")
@_file_argument
@_server_option
@json_option
def check_policy(*, file: Any, cluster: BusAddress, as_json: bool) -> None:  # noqa: ANN401 - a binary file
    """Say what applying FILE would change. Nothing is changed."""
    _change_policy(file, cluster, is_applied=False, as_json=as_json)


@policy.command(name="apply")
@_file_argument
@_server_option
@json_option
def apply_policy(*, file: Any, cluster: BusAddress, as_json: bool) -> None:  # noqa: ANN401 - a binary file
    """Make FILE the policy of all hosts, and show what that changes.

    FILE is TOML. Each [[wish]] has `hosts`, a glob of their names, and `reserve` or
    `floors`. A wish raises what a host keeps, within its own limits.
    """
    _change_policy(file, cluster, is_applied=True, as_json=as_json)


def _change_policy(
    file: Any,  # noqa: ANN401 - a binary file
    address: BusAddress,
    *,
    is_applied: bool,
    as_json: bool,
) -> None:
    table = _read_toml(file)

    async def main(bus: Bus) -> None:
        from qmpballoon.cluster import (  # noqa: PLC0415 - loads trio
            Malformed,
            apply_policy,
            prepare_policy,
        )

        try:
            change = await prepare_policy(bus, table, time.time())
        except Malformed as error:
            raise click.UsageError(f"{file.name}: {error}") from error
        lines = change.describe()
        if not as_json:
            _output.say("\n".join(lines) or "Nothing changes but the revision.")
        if is_applied:
            await apply_policy(bus, change)
        if as_json:
            _output.print_json(
                {
                    "before": change.before and asdict(change.before),
                    "after": asdict(change.after),
                    "diff": lines,
                    "applied": is_applied,
                }
            )
        elif is_applied:
            _output.say(f"Revision {change.after.revision} is applied.")

    _ask(address, main)


def _read_toml(file: Any) -> dict[str, Any]:  # noqa: ANN401 - a binary file
    data: bytes = file.read(_LARGEST_FILE + 1)
    if len(data) > _LARGEST_FILE:
        raise click.UsageError(f"{file.name} has more than {_LARGEST_FILE} bytes")
    try:
        return tomllib.loads(data.decode().removeprefix("\ufeff"))
    except ValueError as error:
        raise click.UsageError(f"{file.name} is no TOML: {error}") from error
    except RecursionError as error:
        raise click.UsageError(f"{file.name} is nested too deep") from error


# room


@cluster.command()
@click.argument("size", type=read_positive_size)
@_server_option
@json_option
def room(*, size: int, cluster: BusAddress, as_json: bool) -> int:
    """Say which hosts have room for a VM of SIZE, and what that would take.

    Each VM that is there counts with all the memory that it may touch without being
    asked.
    """

    async def main(bus: Bus) -> int:
        from qmpballoon.cli.render.cluster import draw_room  # noqa: PLC0415 - loads rich
        from qmpballoon.cluster import find_room, look  # noqa: PLC0415 - loads trio

        view = await look(bus, time.time(), with_vms=False)
        found = find_room(view, size)
        if as_json:
            hosts = [
                {"name": name, "level": level, **asdict(room)}
                for name, level, room in found
            ]
            _output.print_json({"size": size, "hosts": hosts})
        else:
            draw_once(lambda _: draw_room(size, found))
        fits = any(level != "none" for _, level, _ in found)
        return _output.DONE if fits else _output.NOT_REACHED

    outcome: int = _ask(cluster, main)
    return outcome


# reclaim


@cluster.command()
@click.argument("size", type=read_positive_size, required=False)
@_server_option
@click.option(
    "--dry-run", is_flag=True, help="Only show what hosts would be asked for."
)
@click.option(
    "--hold",
    is_flag=True,
    help="Leave the guests at the smaller sizes until the time of --within has passed.",
)
@click.option(
    "--hosts",
    default="*",
    metavar="GLOB",
    help="Ask only hosts with such names, like 'rack1*'.",
)
@click.option(
    "--cold-only",
    is_flag=True,
    help="Take no page cache that guests read again.",
)
@click.option(
    "--within",
    type=Duration(),
    default=600.0,
    show_default="10m",
    metavar="DURATION",
    help="Each host ends its part after this time, like 1h, even if this command has"
    " ended.",
)
@click.option(
    "--follow",
    is_flag=True,
    help="Start nothing: show the progress of the running job until it has taken what"
    " it can.",
)
@click.option(
    "--end",
    is_flag=True,
    help="Start nothing: end the running job, so that the guests get their sizes back.",
)
@json_option
def reclaim(
    *,
    size: int | None,
    cluster: BusAddress,
    dry_run: bool,
    hold: bool,
    hosts: str,
    cold_only: bool,
    within: float,
    follow: bool,
    end: bool,
    as_json: bool,
) -> int:
    """Take SIZE from the guests of all hosts, where it hurts least.

    Idle memory of all hosts comes first, then cold page cache, then cache in use. Each
    host takes its part by itself, once, and by the rules of `fleet reclaim`; guests
    keep their headroom. If this command ends, the hosts continue.
    """
    _require_job(size, within, follow=follow, end=end)
    if end and dry_run:
        raise click.UsageError("--end has no --dry-run: --follow shows the job")

    async def main(bus: Bus) -> int:
        from qmpballoon.cluster import JobReport, find_job, look, plan_job  # noqa: PLC0415 - loads trio

        if size is None:
            job = await find_job(bus, time.time())
            if job is None:
                await _note_no_job(bus)
                return _output.REFUSED
            show = _end if end else _follow
            return await show(bus, job, as_json=as_json)
        view = await look(bus, time.time(), with_vms=False)
        plan = plan_job(
            view,
            size,
            time.time(),
            hosts=hosts,
            hold=hold,
            takes_hot=not cold_only,
            seconds=within,
        )
        if not as_json:
            from qmpballoon.cli.render.cluster import draw_plan  # noqa: PLC0415 - rich

            draw_once(lambda _: draw_plan(plan))
        elif dry_run:
            _output.print_json(plan.to_json())
        if not plan.job.quotas:
            _output.note("no host offers anything: see `qmpballoon cluster status`")
            if as_json and not dry_run:
                _output.print_json(JobReport(plan.job, ()).to_json())
            return _output.REFUSED
        if dry_run:
            return _judge(size - plan.spread.lacking, size)
        await _start(bus, plan.job)
        return await _follow(bus, plan.job, as_json=as_json)

    outcome: int = _ask(cluster, main)
    return outcome


def _require_job(size: int | None, within: float, *, follow: bool, end: bool) -> None:
    """Refuse what is no job before anything is asked."""
    if [size is not None, follow, end].count(True) != 1:
        raise click.UsageError(
            "give SIZE to take memory, or --follow or --end for the running job"
        )
    if size is not None and size < PAGE:
        raise click.UsageError(f"{size} bytes are less than a page: give 4K or more")
    if within > LONGEST_JOB:
        raise click.UsageError(
            f"--within is {within:g} s: it can be a week at most; for longer, set a"
            " policy (qmpballoon cluster policy)"
        )


async def _start(bus: Bus, job: Job) -> None:
    """Start a job; where the server fails meanwhile, make sure whether it began."""
    from qmpballoon.cluster import start_job  # noqa: PLC0415 - loads trio

    try:
        await start_job(bus, job, time.time())
    except BusError as error:
        _output.note(f"{error}; the job may have begun: the server is asked again")
        if not await _has_begun(bus, job):
            raise


async def _has_begun(bus: Bus, job: Job) -> bool:
    """Ask for a while whether a job has begun."""
    import trio  # noqa: PLC0415 - loaded late

    from qmpballoon.cluster import find_job  # noqa: PLC0415 - loads trio

    with trio.move_on_after(_PATIENCE):
        while True:
            try:
                found = await find_job(bus, time.time())
            except BusError:
                await trio.sleep(1)
            else:
                return found is not None and found.id == job.id
    return False


async def _follow(bus: Bus, job: Job, *, as_json: bool) -> int:
    """Show how far a job is until it is done; return the exit status."""
    from qmpballoon.cli.render import cluster as render  # noqa: PLC0415 - loads rich
    from qmpballoon.cluster import follow_job  # noqa: PLC0415 - loads trio

    said = ("", "")

    def show(report: JobReport, problem: str) -> None:
        nonlocal said
        line = render.describe_progress(report)
        if line != said[0] and not as_json:
            _output.say(line)
        if problem and problem != said[1]:
            _output.note(f"{problem}; the hosts go on")
        said = line, problem

    try:
        report = await follow_job(bus, job, time.time, on_progress=show)
    except BaseException:
        _output.note(
            f"job {job.id} continues without this command: `qmpballoon cluster reclaim"
            " --follow` shows how far it is"
        )
        raise
    if as_json:
        _output.print_json(report.to_json())
    else:
        until = time.strftime("%H:%M:%S", time.localtime(job.until))
        _output.say(render.describe_job(report, until))
    return _judge(report.taken, job.amount)


async def _note_no_job(bus: Bus) -> None:
    """Say that no job is running; name hosts whose job the server has lost."""
    from qmpballoon.cluster import look  # noqa: PLC0415 - loads trio
    from qmpballoon.cluster.documents import ENDED  # noqa: PLC0415

    view = await look(bus, time.time(), with_vms=False)
    busy = [
        host.name
        for host in view.hosts
        if host.state and host.state.progress and host.state.progress.phase not in ENDED
    ]
    if busy:
        _output.note(
            f"the server has lost the job of {', '.join(busy)}, which ends at its"
            " deadline; to end it now, take a little more from each: `cluster reclaim"
            " 4K --hosts NAME`"
        )
    else:
        _output.note("no job is running")


async def _end(bus: Bus, job: Job, *, as_json: bool) -> int:
    """End a job, and say how far that is; return the exit status."""
    from qmpballoon.cluster import end_job  # noqa: PLC0415 - loads trio

    report = await end_job(bus, job, time.time)
    if as_json:
        _output.print_json(report.to_json())
    elif report.has_ended:
        _output.say(f"job {job.id} has ended: the guests get their sizes back")
    late = [host.name for host in report.hosts if not host.has_ended]
    if late:
        _output.note(
            f"not heard of {', '.join(late)}: they end their parts when they can be"
            " reached, and at the job's first deadline at the latest"
        )
    return _output.NOT_REACHED if late else _output.DONE


def _judge(taken: int, amount: int) -> int:
    """Return the exit status for what was taken."""
    if not taken:
        return _output.REFUSED
    return _output.DONE if amount - taken <= amount // 100 else _output.NOT_REACHED
