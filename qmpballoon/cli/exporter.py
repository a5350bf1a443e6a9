"""``qmpballoon exporter``: a host's VMs as Prometheus sees them."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import click

from qmpballoon.cli import _output
from qmpballoon.cli._fleet_options import (
    VMS,
    fleet_options,
    listen_address,
    metrics_served,
    note_nobody,
    rules_for,
    supervise,
    vms_argument,
)
from qmpballoon.cli._options import PERIOD
from qmpballoon.fleet.host_memory import Gauge

if TYPE_CHECKING:
    from pathlib import Path

    from qmpballoon.fleet.policy import PolicyName
    from qmpballoon.fleet.supervisor import Supervisor

__all__ = ["exporter"]


@click.command(epilog=VMS)
@vms_argument
@click.option(
    "--listen",
    type=listen_address,
    default="127.0.0.1:9729",
    metavar="[HOST:]PORT",
    help="Where; 0.0.0.0:PORT for everybody, port 0 for one that is free.",
)
@fleet_options
@click.option(
    "--period",
    type=PERIOD,
    default=5.0,
    metavar="SECONDS",
    help="Between two looks at a VM.",
)
def exporter(
    *,
    vms: tuple[str, ...],
    listen: tuple[str, int],
    period: float,
    reserve: int | None,
    limit: int | None,
    cgroup: Path | None,
    policy: PolicyName,
) -> None:
    """Serve metrics of all VMs and the host to Prometheus, until interrupted.

    It moves nothing. Where `fleet run` looks after the same VMs, let that serve them
    (--metrics): a monitor has one client at a time.
    """
    gauge = Gauge(limit=limit, cgroup=cgroup)
    rules = rules_for(gauge, reserve, policy)

    async def main(supervisor: Supervisor) -> None:
        import trio  # noqa: PLC0415 - loaded late

        note_nobody(supervisor)
        with metrics_served(supervisor, gauge, rules, listen) as url:
            _output.say(f"metrics at {url}")
            await trio.sleep_forever()

    # An interruption is how it is meant to end.
    with contextlib.suppress(_output.Interrupted):
        supervise(vms, period, main)
