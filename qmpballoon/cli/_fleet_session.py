"""Runs a subcommand on a fleet: supervises its VMs, and serves their metrics."""

from __future__ import annotations

import functools
import os
from contextlib import ExitStack, contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any

import click
from attrs import frozen

from qmpballoon.address import LibvirtVm
from qmpballoon.cli import _output
from qmpballoon.cli.render.fleet import (
    Changes,
    describe_left,
    describe_refused,
    describe_small,
    describe_uncertain,
)
from qmpballoon.fleet.processes import choose_users, describe_users
from qmpballoon.fleet.sources import make_source
from qmpballoon.fleet.vm_spec import VmSpec

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator, Iterable

    from qmpballoon.cli._cluster_session import Member
    from qmpballoon.fleet.guests import Host
    from qmpballoon.fleet.host_memory import HostMemory
    from qmpballoon.fleet.policy import Rules
    from qmpballoon.fleet.sources import Source
    from qmpballoon.fleet.supervisor import Supervisor
    from qmpballoon.fleet.vm_view import VmView

__all__ = [
    "Alone",
    "choose_status",
    "find_source",
    "make_change_notes",
    "note_found",
    "open_metrics",
    "serve_and_note_changes",
    "supervise",
]


def supervise(
    vms: tuple[str, ...],
    users: tuple[str, ...],
    period: float,
    main: Callable[[Supervisor], Awaitable[Any]],
    *,
    outlives_reader: bool = False,
    leaves_sizes: bool = False,
) -> Any:  # noqa: ANN401 - what main returns
    """Supervise VMs while a coroutine function works with them.

    Args:
        vms: The command line's VMs.
        users: Whose QEMUs and sockets are trusted.
        period: Seconds between two polls of a VM.
        main: Is given the supervisor.
        outlives_reader: As for :func:`qmpballoon.cli._session.run`.
        leaves_sizes: Whether guests stay at the sizes that they have reached; then
            those that have less than all their RAM are named at the end.

    Returns:
        What ``main`` returns.
    """
    source = find_source(vms, users)
    specs = [each for each in source() if isinstance(each, VmSpec)]
    if any(isinstance(spec.address, LibvirtVm) for spec in specs):
        import_module("libvirt")  # fails here, before anything, if not installed

    import random  # noqa: PLC0415 - loaded late

    from qmpballoon.cli._connect import open_monitor  # noqa: PLC0415 - loads trio
    from qmpballoon.cli._session import run  # noqa: PLC0415 - loads trio
    from qmpballoon.fleet import (  # noqa: PLC0415 - loads trio
        Settings,
        open_fleet,
        raise_descriptor_limit,
    )

    raise_descriptor_limit()

    async def main_supervised() -> Any:  # noqa: ANN401
        settings = Settings(period=period, stale_after=max(5.0, 3 * period))
        # It spreads the polls of the VMs over the period.
        rng = random.Random()  # noqa: S311 - nothing secret
        opener = functools.partial(open_monitor, own="auto")
        supervisor: Supervisor | None = None
        try:
            async with open_fleet(
                source, rng, settings=settings, opener=opener
            ) as supervisor:
                return await main(supervisor)
        finally:
            if supervisor:
                _output.note(*describe_left(supervisor.list_left()))
                if leaves_sizes:
                    _output.note(*describe_small(supervisor.list_small()))

    return run(main_supervised, outlives_reader=outlives_reader)


def find_source(vms: tuple[str, ...], users: tuple[str, ...]) -> Source:
    """Return the source of the VMs that the arguments name.

    Args:
        vms: The command line's VMs; if there are none, all of this host.
        users: Whose QEMUs and sockets are trusted.

    Raises:
        click.UsageError: An argument is malformed, or there is no such user.
        OSError: A file or a folder cannot be read.
    """
    try:
        source = make_source(vms, users=users)
        trusted = describe_users(choose_users(users))
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    if not vms and os.geteuid() == 0:
        _output.note(f"VMs are the QEMUs of these users: {trusted} (see --user)")
    return source


def note_found(supervisor: Supervisor) -> None:
    """Say on standard error what was refused, and if there are no VMs."""
    _output.note(*describe_refused(supervisor.list_refused()))
    if not supervisor.list_views():
        _output.note("there are no VMs: name their sockets, like '/run/vms/*.qmp'")


def choose_status(views: Iterable[VmView], otherwise: int = _output.DONE) -> int:
    """Return the exit status: there may be VMs, and none of them be reached.

    Args:
        views: All VMs.
        otherwise: The status if some VM is reached, or if there is none at all.
    """
    reached = [view.is_reached for view in views]
    return _output.NO_MONITOR if reached and not any(reached) else otherwise


def make_change_notes(
    supervisor: Supervisor, memory: HostMemory
) -> Callable[[Host], None]:
    """Return a function that notes what has changed since its last call."""
    changes = Changes(refused=frozenset(supervisor.list_refused()))

    def note(host: Host) -> None:
        views = supervisor.list_views()
        limited = memory.limit is not None
        _output.note(
            *changes.describe(views, supervisor.list_refused()),
            *changes.describe_new(describe_uncertain(host, views, limited=limited)),
        )

    return note


async def serve_and_note_changes(
    supervisor: Supervisor, memory: HostMemory, period: float
) -> None:
    """Serve until cancelled, and note what changes in the fleet meanwhile.

    Args:
        supervisor: Knows the VMs.
        memory: Reads the host's memory.
        period: Seconds between two looks.
    """
    import trio  # noqa: PLC0415 - loaded late

    from qmpballoon.cli._session import serve  # noqa: PLC0415 - loads trio

    note_changes = make_change_notes(supervisor, memory)
    async with serve(lambda: True):
        while True:
            note_changes(memory.read(supervisor.held, supervisor.promised))
            await trio.sleep(period)


@frozen
class Alone:
    """A host that is in no cluster, in the place of a :class:`Member` of one.

    Attributes:
        read: Reads the host's memory.
        get_rules: Returns what it keeps.
    """

    read: Callable[[int, int], Host]
    get_rules: Callable[[], Rules]
    status: None = None

    def describe_changes(self) -> list[str]:
        """Say nothing."""
        return []


@contextmanager
def open_metrics(
    supervisor: Supervisor,
    memory: HostMemory,
    member: Alone | Member,
    listen: tuple[str, int],
    *,
    names: tuple[str, ...],
) -> Generator[str]:
    """Serve Prometheus metrics within the block; yield their URL.

    Args:
        supervisor: Knows the VMs.
        memory: Reads the host's memory.
        member: What the host keeps, and how it is in its cluster.
        listen: The address and the port.
        names: Other names under which the server can be reached.

    Raises:
        click.UsageError: The address cannot be listened on.
    """
    import trio  # noqa: PLC0415 - loaded late

    from qmpballoon.fleet.metrics import (  # noqa: PLC0415 - an extra
        ClusterLink,
        FleetSnapshot,
        serve_metrics,
    )

    def snapshot() -> FleetSnapshot:
        host = memory.read(supervisor.held, supervisor.promised)
        refused = len(supervisor.list_refused())
        status = member.status
        link = None
        if status is not None:
            link = ClusterLink(
                is_connected=status.is_connected,
                policy_revision=status.policy_revision,
                notes=len(status.notes),
            )
        rules = member.get_rules()
        return FleetSnapshot(host, rules, supervisor.list_views(), refused, link)

    def scrape() -> FleetSnapshot:
        return trio.from_thread.run_sync(snapshot, trio_token=token)

    token = trio.lowlevel.current_trio_token()
    with ExitStack() as stack:
        try:
            host, port = stack.enter_context(serve_metrics(scrape, *listen, names))
        except OSError as error:
            raise click.UsageError(
                f"cannot listen on {listen[0]}:{listen[1]}: {error.strerror or error};"
                " give another HOST:PORT, or port 0 for one that is free"
            ) from error
        at = f"[{host}]" if ":" in host else host
        yield f"http://{at}:{port}/metrics"
