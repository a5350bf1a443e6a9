"""``qmpballoon web``: pages of a host's VMs for a browser, live."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from qmpballoon.cli import _output
from qmpballoon.cli._fleet_options import (
    VMS,
    add_host_options,
    allow_host_option,
    users_option,
    vms_argument,
)
from qmpballoon.cli._fleet_session import make_change_notes, note_found, supervise
from qmpballoon.cli._options import PERIOD
from qmpballoon.cli._pages import open_pages, read_page_address, read_prefix

if TYPE_CHECKING:
    from qmpballoon.cli._pages import PageAddress
    from qmpballoon.fleet.host_memory import HostMemory
    from qmpballoon.fleet.policy import Rules
    from qmpballoon.fleet.supervisor import Supervisor

__all__ = ["web"]


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
    help="Keep the link's secret in this file, made if it is not there: so pages that"
    " are open go on when the server is started again.  [default: a new one each time]",
)
@allow_host_option
@add_host_options
@click.option(
    "--period",
    type=PERIOD,
    default=1.0,
    metavar="SECONDS",
    help="How long to wait between two polls of a VM.",
)
def web(
    *,
    vms: tuple[str, ...],
    users: tuple[str, ...],
    listen: PageAddress,
    allow_changes: bool,
    prefix: str,
    token_file: Path | None,
    allowed_hosts: tuple[str, ...],
    period: float,
    memory: HostMemory,
    rules: Rules,
) -> None:
    """Serve pages of all VMs for a browser, live, until interrupted.

    It prints a link with a secret: who has it may look. By default only this machine
    can connect. No balloon is moved, unless somebody asks for that on a page and
    --allow-changes is given. Where `fleet run` manages the same VMs, use its option
    --web instead: a monitor serves one client at a time.
    """

    async def main(supervisor: Supervisor) -> None:
        import trio  # noqa: PLC0415 - loaded late

        from qmpballoon.cli._session import serve  # noqa: PLC0415 - loads trio

        note_found(supervisor)
        async with open_pages(
            supervisor,
            memory,
            rules,
            listen,
            names=allowed_hosts,
            token_file=token_file,
            prefix=prefix,
            allow_changes=allow_changes,
        ):
            note_changes = make_change_notes(supervisor, memory)
            async with serve(lambda: True):
                while True:
                    note_changes(memory.read(supervisor.held, supervisor.promised))
                    await trio.sleep(period)

    with _output.end_normally():
        supervise(
            vms,
            users,
            period,
            main,
            outlives_reader=True,
            leaves_sizes=allow_changes,
        )
