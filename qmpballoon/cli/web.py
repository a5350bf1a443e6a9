"""``qmpballoon web``: pages of a host's VMs, or of a cluster, for a browser, live."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
from click.core import ParameterSource

from qmpballoon.cli import _output
from qmpballoon.cli._cluster_options import cluster_option
from qmpballoon.cli._fleet_options import (
    VMS,
    add_host_options,
    allow_host_option,
    users_option,
    vms_argument,
)
from qmpballoon.cli._fleet_session import (
    note_found,
    serve_and_note_changes,
    supervise,
)
from qmpballoon.cli._options import PERIOD
from qmpballoon.cli._pages import (
    open_cluster_pages,
    open_pages,
    read_page_address,
    read_prefix,
)

if TYPE_CHECKING:
    from qmpballoon.cli._pages import PageAddress
    from qmpballoon.cluster.valkey import BusAddress
    from qmpballoon.fleet.host_memory import HostMemory
    from qmpballoon.fleet.policy import Rules
    from qmpballoon.fleet.supervisor import Supervisor

__all__ = ["web"]

_OF_BOTH: Final = frozenset(
    {"cluster", "listen", "prefix", "token_file", "allowed_hosts", "period"}
)
"""The options that are for pages of a cluster, too."""


@click.command(epilog=VMS)
@vms_argument
@users_option
@click.option(
    "--listen",
    type=read_page_address,
    default="127.0.0.1:9730",
    metavar="ADDRESS",
    help="Where to serve: [HOST:]PORT, where port 0 is any free one; or unix:PATH, for"
    " its owner alone.",
)
@click.option(
    "--allow-changes",
    is_flag=True,
    help="Let those who have the link reclaim, resize and give back. By default they"
    " can only look.",
)
@click.option(
    "--prefix",
    type=read_prefix,
    default="",
    metavar="PATH",
    help="The path below which a reverse proxy has the pages, like /vms.",
)
@click.option(
    "--token-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Keep the link's secret in this file, which is created if it does not exist."
    " Pages that are open then continue when the server is restarted.  [default: a new"
    " secret each time]",
)
@allow_host_option
@add_host_options
@click.option(
    "--period",
    type=PERIOD,
    default=1.0,
    metavar="SECONDS",
    help="How long to wait between two polls of a VM, or of a cluster.",
)
@cluster_option(
    required=False,
    text="Show the hosts of the cluster of this server, in place of this host's VMs.",
    reads_environment=False,
)
@click.pass_context
def web(
    context: click.Context,
    /,
    *,
    vms: tuple[str, ...],
    users: tuple[str, ...],
    listen: PageAddress,
    allow_changes: bool,
    prefix: str,
    token_file: Path | None,
    allowed_hosts: tuple[str, ...],
    period: float,
    cluster: BusAddress | None,
    memory: HostMemory,
    rules: Rules,
) -> None:
    """Serve pages of all VMs for a browser, live, until interrupted.

    It prints a link that contains a secret. Everyone who has the link can look. By
    default only this machine can connect. No balloon is moved, unless --allow-changes
    is given and somebody asks for it on a page. Where `fleet run` manages the same VMs,
    use its option --web instead: a monitor serves one client at a time.

    With --cluster it shows all hosts of a cluster, as `cluster status` does. Nothing
    can be changed there.
    """
    if cluster is not None:
        _refuse_others(context)
        _serve_cluster(
            cluster,
            listen,
            names=allowed_hosts,
            token_file=token_file,
            prefix=prefix,
            period=period,
        )
        return

    async def main(supervisor: Supervisor) -> None:
        note_found(supervisor)
        async with open_pages(
            supervisor,
            memory,
            lambda: rules,
            listen,
            names=allowed_hosts,
            token_file=token_file,
            prefix=prefix,
            allow_changes=allow_changes,
        ):
            await serve_and_note_changes(supervisor, memory, period)

    with _output.end_normally():
        supervise(
            vms,
            users,
            period,
            main,
            outlives_reader=True,
            leaves_sizes=allow_changes,
        )


def _refuse_others(context: click.Context) -> None:
    """Refuse what is for a host's VMs only."""
    for parameter in context.command.params:
        name = parameter.name or ""
        given = context.get_parameter_source(name) is ParameterSource.COMMANDLINE
        if given and name not in _OF_BOTH:
            raise click.UsageError(
                f"{_name(parameter)} is for this host's VMs: leave it out, or leave"
                " --cluster out"
            )


def _name(parameter: click.Parameter) -> str:
    return parameter.opts[0] if isinstance(parameter, click.Option) else "VMS"


def _serve_cluster(
    cluster: BusAddress,
    listen: PageAddress,
    *,
    names: tuple[str, ...],
    token_file: Path | None,
    prefix: str,
    period: float,
) -> None:
    """Serve the page of a cluster's hosts until interrupted."""
    from qmpballoon.cli._session import run, serve  # noqa: PLC0415 - loads trio
    from qmpballoon.cluster.valkey import open_bus  # noqa: PLC0415 - loads trio

    async def main() -> None:
        import trio  # noqa: PLC0415 - loaded late

        async with (
            open_bus(cluster) as bus,
            open_cluster_pages(
                bus,
                listen,
                names=names,
                token_file=token_file,
                prefix=prefix,
                period=period,
            ),
            serve(lambda: True),
        ):
            await trio.sleep_forever()

    with _output.end_normally():
        run(main, outlives_reader=True)
