"""Joins a host that ``fleet run`` manages to a cluster."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from attrs import define

from qmpballoon._transport.trio_tasks import BackgroundTasks
from qmpballoon.cluster.agent import Agent
from qmpballoon.cluster.fleet_host import FleetHost
from qmpballoon.cluster.store import Store
from qmpballoon.cluster.valkey import open_bus
from qmpballoon.cluster.wishes import Permits
from qmpballoon.sizes import format_size

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from qmpballoon.cli._cluster_options import Membership
    from qmpballoon.cluster.agent import AgentStatus
    from qmpballoon.fleet.guests import Host
    from qmpballoon.fleet.host_memory import HostMemory
    from qmpballoon.fleet.policy import Rules
    from qmpballoon.fleet.supervisor import Supervisor

__all__ = ["Member", "join_cluster"]


@asynccontextmanager
async def join_cluster(
    membership: Membership, supervisor: Supervisor, memory: HostMemory, rules: Rules
) -> AsyncGenerator[Member]:
    """Let a host be in a cluster within the block.

    Args:
        membership: As what it joins.
        supervisor: Knows the VMs.
        memory: Reads the host's memory.
        rules: What the host keeps by its own options.
    """
    host = FleetHost(supervisor, memory.read, rules)
    permits = Permits(
        lower_reserve="reserve" in membership.lowers,
        lower_floors="floors" in membership.lowers,
    )
    async with (
        open_bus(membership.address) as bus,
        BackgroundTasks(shield=False) as tasks,
    ):
        store = Store(membership.folder)
        agent = Agent(membership.host, bus, host, rules, store, permits=permits)
        await tasks.start(agent.run)
        # What it did before it was stopped is not news.
        yield Member(host, agent, _describe_job(agent.status))


@define
class Member:
    """A host that has joined a cluster."""

    _host: FleetHost
    _agent: Agent
    _job: str
    _notes: tuple[str, ...] = ()

    def read(self, held: int, promised: int) -> Host:
        """Read the host's memory, for the control loop."""
        return self._host.read(held, promised)

    def get_rules(self) -> Rules:
        """Return what the host keeps now, for the control loop."""
        return self._host.get_rules()

    @property
    def status(self) -> AgentStatus:
        """How it is in its cluster."""
        return self._agent.status

    def describe_changes(self) -> list[str]:
        """Say what has changed since the last call, one line a change."""
        status = self.status
        lines = [note for note in status.notes if note not in self._notes]
        if self._notes and not status.notes:
            lines.append(f"{status.host} is well in its cluster again")
        self._notes = status.notes
        job = _describe_job(status)
        if job and job != self._job:
            lines.append(job)
        self._job = job
        return lines


def _describe_job(status: AgentStatus) -> str:
    """Say how far the host is with a job; the same while it only takes more."""
    progress = status.progress
    if progress is None:
        return ""
    asked = f"{format_size(progress.quota)} for the cluster's job {progress.job}"
    if progress.phase == "taking":
        return f"takes {asked}"
    detail = f": {progress.detail}" if progress.detail else ""
    return f"gave {format_size(progress.taken)} of {asked} ({progress.phase}){detail}"
