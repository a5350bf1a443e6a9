"""``qmpballoon exporter``: serve metrics of a host's VMs to Prometheus."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from qmpballoon.cli import _output
from qmpballoon.cli._fleet_options import (
    VMS,
    add_host_options,
    allow_host_option,
    read_listen_address,
    users_option,
    vms_argument,
)
from qmpballoon.cli._fleet_session import (
    Alone,
    note_found,
    open_metrics,
    serve_and_note_changes,
    supervise,
)
from qmpballoon.cli._options import PERIOD

if TYPE_CHECKING:
    from qmpballoon.fleet.host_memory import HostMemory
    from qmpballoon.fleet.policy import Rules
    from qmpballoon.fleet.supervisor import Supervisor

__all__ = ["exporter"]


@click.command(epilog=VMS)
@vms_argument
@users_option
@click.option(
    "--listen",
    type=read_listen_address,
    default="127.0.0.1:9729",
    metavar="[HOST:]PORT",
    help="The address to serve on. 0.0.0.0:PORT can be reached from other hosts; port 0"
    " is any free one.",
)
@allow_host_option
@add_host_options
@click.option(
    "--period",
    type=PERIOD,
    default=5.0,
    metavar="SECONDS",
    help="How long to wait between two polls of a VM.",
)
def exporter(
    *,
    vms: tuple[str, ...],
    users: tuple[str, ...],
    listen: tuple[str, int],
    allowed_hosts: tuple[str, ...],
    period: float,
    memory: HostMemory,
    rules: Rules,
) -> None:
    """Serve metrics of all VMs and the host to Prometheus, until interrupted.

    No balloon is moved. Where `fleet run` manages the same VMs, use its option
    --metrics instead: a monitor serves one client at a time.
    """

    async def main(supervisor: Supervisor) -> None:
        note_found(supervisor)
        alone = Alone(memory.read, lambda: rules)
        with open_metrics(
            supervisor, memory, alone, listen, names=allowed_hosts
        ) as url:
            _output.say(f"metrics at {url}")
            await serve_and_note_changes(supervisor, memory, period)

    with _output.end_normally():
        supervise(vms, users, period, main, outlives_reader=True)
