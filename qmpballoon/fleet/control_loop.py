"""Moving memory about: plans from what is known now, carried out and seen through."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

import trio
from attrs import asdict, define, evolve, field, frozen

from qmpballoon._checks import require_size
from qmpballoon.balloon.device import LARGEST_PAGE
from qmpballoon.fleet.policy import FleetPlan, Move, make_plan, take

if TYPE_CHECKING:
    from collections.abc import Callable

    from qmpballoon.fleet.members import Host
    from qmpballoon.fleet.policy import Rules
    from qmpballoon.fleet.supervisor import Supervisor

__all__ = ["Reclaimed", "ReclaimedFrom", "balance", "carry_out", "decide", "reclaim"]

_ROUNDS: Final = 3
_ANSWER: Final = 5.0  # seconds for guests to say what they have left
_TICK: Final = 0.25  # seconds between two reports of progress
_CLEANUP: Final = 10.0  # seconds for giving memory back on the way out


def decide(
    supervisor: Supervisor, read: Callable[[int, int], Host], rules: Rules
) -> tuple[Host, FleetPlan]:
    """Return the host as it is, and what is to be moved now.

    Args:
        supervisor: Knows the VMs.
        read: Reads the host, such as :meth:`Gauge.read`; told what the VMs hold and
            what was promised to them.
        rules: What to keep to.

    Raises:
        OSError: The host cannot be read.
    """
    host = read(supervisor.held, supervisor.promised)
    return host, make_plan(host, supervisor.members(), rules)


async def carry_out(supervisor: Supervisor, plan: FleetPlan) -> None:
    """Make the moves of a plan, all at once, and wait until they have ended.

    Cancellation: at once; the moves go on for as long as the fleet is supervised.
    """
    for move in plan.moves:
        supervisor.order(move)
    await supervisor.still()


async def balance(
    supervisor: Supervisor,
    read: Callable[[int, int], Host],
    rules: Rules,
    *,
    period: float = 1.0,
    on_plan: Callable[[Host, FleetPlan], None] = lambda _, __: None,
) -> None:
    """Keep the host in balance for ever.

    A plan does not wait for the moves of the one before: who is still on its way is
    left to it.

    Args:
        supervisor: Knows the VMs, and moves them.
        read: As for :func:`decide`.
        rules: What to keep to.
        period: Seconds between two plans; the supervisor's own is to be the same.
        on_plan: Told of each plan, empty ones included.

    Cancellation: at once; moves go on for as long as the fleet is supervised.
    """
    while True:
        host, plan = decide(supervisor, read, rules)
        on_plan(host, plan)
        for move in plan.moves:
            supervisor.order(move)
        await trio.sleep(period)


@frozen
class ReclaimedFrom:
    """What one VM gave, in bytes.

    Attributes:
        name: The VM's.
        before: What it had.
        requested: What it was to give.
        handed_over: What it gave.
        owed: What it was to get back, and has not taken yet.
    """

    name: str
    before: int
    requested: int
    handed_over: int
    owed: int = 0


@frozen
class Reclaimed:
    """What a reclaim from a fleet came to, in bytes.

    Attributes:
        requested: What was to be taken.
        handed_over: What was taken.
        held: Whether the guests are to be without it.
        vms: Who gave what.
    """

    requested: int
    handed_over: int
    held: bool
    vms: tuple[ReclaimedFrom, ...] = field(default=())

    def to_json(self) -> dict[str, object]:
        """Return it as the command prints it: bytes."""
        return asdict(self)


async def reclaim(
    supervisor: Supervisor,
    amount: int,
    rules: Rules,
    *,
    hold: bool = False,
    on_progress: Callable[[int], None] = lambda _: None,
) -> Reclaimed:
    """Take an amount from the guests now, wherever it hurts least.

    What one does not give is asked of the others. Every guest is watched meanwhile,
    and left with its headroom.

    Args:
        supervisor: Knows the VMs, and moves them.
        amount: Bytes, 1 or more.
        rules: Whose policy decides who gives.
        hold: Keep the memory. By default the guests get their sizes back in the end,
            and the host keeps what they do not touch again.
        on_progress: Told a few times a second how many bytes were taken so far.

    Raises:
        TypeError: The amount is no whole number of bytes.
        ValueError: It is out of range.

    Cancellation: the guests get their sizes back.
    """
    require_size(amount, "amount", minimum=1)
    run = _Reclaim(supervisor)
    kept = False
    try:
        for _ in range(_ROUNDS):
            plan = take(amount - run.handed_over(), supervisor.members(), rules)
            if not plan.moves:
                break
            await run.take(plan, on_progress)
        report = run.report(amount, held=hold)
        kept = hold
    finally:
        if not kept:
            with trio.move_on_after(_CLEANUP, shield=True):
                await run.give_back()
    return report if hold else evolve(report, vms=run.owed(report.vms))


@define
class _Reclaim:
    """One reclaim: who was asked for what, and what came of it."""

    supervisor: Supervisor
    before: dict[str, int] = field(factory=dict[str, int])
    requested: Counter[str] = field(factory=Counter[str])

    async def take(self, plan: FleetPlan, on_progress: Callable[[int], None]) -> None:
        for move in plan.moves:
            self.before.setdefault(move.name, move.before)
            self.requested[move.name] -= move.change
            self.supervisor.order(move)
        while not await self.supervisor.still(_TICK):
            on_progress(self.handed_over())
        on_progress(self.handed_over())
        # Who gave can give more once it has said what it has left.
        await self.supervisor.known(_ANSWER)

    async def give_back(self) -> None:
        """Let everybody have the size it had, once nobody shrinks any more."""
        await self.supervisor.still()
        for name, size in self._sizes().items():
            if size < self.before.get(name, 0):
                move = Move(name, size, self.before[name], "it was borrowed")
                self.supervisor.order(move)
        await self.supervisor.still()

    def owed(self, vms: tuple[ReclaimedFrom, ...]) -> tuple[ReclaimedFrom, ...]:
        """Tell who has not got back what it gave."""
        sizes = self._sizes()
        lacking = [max(0, vm.before - sizes.get(vm.name, vm.before)) for vm in vms]
        return tuple(
            evolve(vm, owed=lacks if lacks >= LARGEST_PAGE else 0)
            for vm, lacks in zip(vms, lacking, strict=True)
        )

    def handed_over(self) -> int:
        return sum(vm.handed_over for vm in self.vms())

    def report(self, amount: int, *, held: bool) -> Reclaimed:
        return Reclaimed(amount, self.handed_over(), held, tuple(self.vms()))

    def vms(self) -> list[ReclaimedFrom]:
        sizes = self._sizes()
        return [
            ReclaimedFrom(
                name=name,
                before=before,
                requested=self.requested[name],
                handed_over=max(0, before - sizes.get(name, before)),
            )
            for name, before in self.before.items()
        ]

    def _sizes(self) -> dict[str, int]:
        views = self.supervisor.views()
        return {view.name: view.actual for view in views if view.actual is not None}
