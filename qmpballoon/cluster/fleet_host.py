"""The host of a supervised fleet, as an agent sees it.

Give its ``read`` and ``get_rules`` to the control loop, so that the policy of the
cluster applies there::

    host = FleetHost(supervisor, memory.read, rules)
    agent = Agent("h1", bus, host, rules, Store(folder))
    async with trio.open_nursery() as nursery:
        await nursery.start(agent.run)
        await run_control_loop(supervisor, host.read, host.get_rules)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import define, evolve, field

from qmpballoon._printable import make_printable
from qmpballoon.cluster._fields import LONGEST_NAME, LONGEST_TEXT
from qmpballoon.cluster.agent import LocalView
from qmpballoon.cluster.documents import VmSummary
from qmpballoon.cluster.room import SMALLEST_GIFT
from qmpballoon.fleet.control_loop import reclaim

if TYPE_CHECKING:
    from collections.abc import Callable

    from qmpballoon.cluster.documents import Quota
    from qmpballoon.fleet.guests import Host
    from qmpballoon.fleet.policy import Rules
    from qmpballoon.fleet.supervisor import Supervisor
    from qmpballoon.fleet.vm_spec import Limit
    from qmpballoon.fleet.vm_view import VmView

__all__ = ["FleetHost"]


@define
class FleetHost:
    """The host of a supervised fleet.

    Attributes:
        supervisor: Knows the VMs, and moves them.
        read_memory: Reads the host's memory, such as
            :meth:`qmpballoon.fleet.HostMemory.read`.
        rules: What the host keeps now.
    """

    supervisor: Supervisor = field(repr=False)
    read_memory: Callable[[int, int], Host] = field(repr=False)
    rules: Rules
    _is_kept_back: bool = False

    # For the control loop

    def read(self, held: int, promised: int) -> Host:
        """Return the host's memory, for :func:`qmpballoon.fleet.run_control_loop`.

        While memory is taken for a job, or kept back, what is left over is not shared
        out to guests. Those in need get some as usual.

        Args:
            held: Bytes of it that the VMs hold.
            promised: Bytes that guests were given and have not touched yet.

        Raises:
            OSError: The host's figures cannot be read.
        """
        host = self.read_memory(held, promised)
        # While a host is not known completely, it shares nothing out either.
        return evolve(host, is_complete=False) if self._is_kept_back else host

    def get_rules(self) -> Rules:
        """Return what the host keeps now, for the control loop."""
        return self.rules

    # For the agent; see LocalHost

    def look(self) -> LocalView:
        """See :class:`~qmpballoon.cluster.LocalHost`."""
        supervisor = self.supervisor
        views = supervisor.list_views()
        held = supervisor.held
        return LocalView(
            host=self.read_memory(held, supervisor.promised),
            guests=supervisor.list_guests(),
            vms=[_summarize(view) for view in views],
            held=held,
            unknown_vms=sum(not view.is_fresh for view in views),
        )

    def follow(self, rules: Rules, limit: Limit) -> None:
        """See :class:`~qmpballoon.cluster.LocalHost`."""
        self.rules = rules
        self.supervisor.set_limit(limit)

    def keep_back(self, *, is_kept: bool) -> None:
        """See :class:`~qmpballoon.cluster.LocalHost`."""
        self._is_kept_back = is_kept

    async def take(
        self, quota: Quota, rules: Rules, on_progress: Callable[[int], None]
    ) -> int:
        """See :class:`~qmpballoon.cluster.LocalHost`."""
        taken = 0

        def note(gained: int) -> None:
            nonlocal taken
            taken = gained
            on_progress(gained)

        await reclaim(
            self.supervisor,
            quota.amount,
            evolve(rules, dead_band=min(rules.dead_band, SMALLEST_GIFT)),
            hold=quota.hold,
            takes_hot=quota.takes_hot,
            on_progress=note,
        )
        return taken


def _summarize(view: VmView) -> VmSummary:
    return VmSummary(
        name=make_printable(view.name, LONGEST_NAME),
        state=view.state,
        detail=make_printable(view.detail, LONGEST_TEXT),
        actual=view.actual,
        total=view.total,
        target=view.target,
        available=view.stats.available if view.is_fresh else None,
        resident=view.resident,
    )
