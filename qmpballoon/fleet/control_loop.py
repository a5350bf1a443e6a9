"""Move memory within a fleet: make plans from the state of the VMs, and carry them out.

``run_control_loop`` keeps the host's reserve, plan by plan. ``reclaim`` takes an amount
once. Both ask :mod:`qmpballoon.fleet.policy` what to move, and the supervisor to move
it.
"""

from __future__ import annotations

import logging
import math
import sys
from collections import Counter
from typing import TYPE_CHECKING, Final

import trio
from attrs import asdict, define, evolve, field, frozen

from qmpballoon._checks import require_finite_seconds, require_size
from qmpballoon.balloon.device import LARGEST_PAGE
from qmpballoon.errors import BalloonBusy
from qmpballoon.fleet.policy import (
    FleetPlan,
    Move,
    describe_unreachable,
    make_plan,
    take,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from qmpballoon.fleet.guests import Guest, Host
    from qmpballoon.fleet.policy import Rules
    from qmpballoon.fleet.supervisor import Supervisor
    from qmpballoon.fleet.vm_view import SmallGuest, VmView

__all__ = [
    "FleetReclaimReport",
    "VmReclaimReport",
    "carry_out",
    "decide",
    "reclaim",
    "run_control_loop",
]

# Plans of one reclaim at most. The second asks others for what some did not give; the
# third asks for the rest of that.
_ROUNDS: Final = 3
# Seconds between two steps of a gentle reclaim; and for how long guests are watched
# after the last step, as a part of the time of the reclaim.
_STEP: Final = 1.0
_WATCH_PART: Final = 1 / 10
_MAKES_UP: Final = 5.0  # seconds at most for which it makes up at once
_ANSWER_TIMEOUT: Final = 5.0  # seconds for guests to answer at their new sizes
_PROGRESS_EVERY: Final = 0.25  # seconds
_CLEANUP_TIMEOUT: Final = 10.0  # seconds for giving memory back when cancelled
_LOG: Final = logging.getLogger("qmpballoon.fleet")


def decide(
    supervisor: Supervisor, read: Callable[[int, int], Host], rules: Rules
) -> tuple[Host, FleetPlan]:
    """Read the host's memory, and decide what to move now. Nothing is moved.

    A guest to which an interrupted run owes memory gets it, as far as the host has room
    and the plan does not move the guest anyway.

    Args:
        supervisor: Knows the VMs.
        read: Reads the host's memory, such as :meth:`HostMemory.read`. It is called
            with the bytes that the VMs hold, and the bytes that guests were promised.
        rules: What the host keeps.

    Returns:
        The host's memory, and the plan.

    Raises:
        OSError: The host's memory cannot be read.
    """
    supervisor.measure_resident()
    host = read(supervisor.held, supervisor.promised)
    if supervisor.is_complete:
        host = evolve(host, above_floors=supervisor.above_floors)
    else:
        host = evolve(host, is_complete=False)
    guests = supervisor.list_guests()
    try:
        plan = make_plan(host, guests, rules)
    except Exception:  # noqa: BLE001 - whatever one guest's figures cause
        sound = [guest for guest in guests if _is_sound(supervisor, host, guest, rules)]
        plan = make_plan(host, sound, rules)
    room = host.available - rules.reserve - host.promised
    moving = {move.name for move in plan.moves}
    owed = [
        move
        for move in make_owed_moves(supervisor.list_owed(), room)
        if move.name not in moving
    ]
    return host, evolve(plan, moves=(*plan.moves, *owed))


def _is_sound(supervisor: Supervisor, host: Host, guest: Guest, rules: Rules) -> bool:
    """Tell whether a plan can be made with a guest. If not, its VM fails."""
    try:
        make_plan(host, [guest], rules)
    except Exception as error:  # noqa: BLE001 - whatever its figures cause
        supervisor.fail(guest.name, error)
        return False
    return True


async def carry_out(supervisor: Supervisor, plan: FleetPlan) -> None:
    """Start all moves of a plan at once, and wait until they have ended.

    Args:
        supervisor: Moves the VMs.
        plan: The plan.

    Note:
        It can be cancelled at any moment. The moves continue while the fleet is
        supervised.
    """
    for move in plan.moves:
        supervisor.start_move(move)
    await supervisor.wait_for_moves()


async def run_control_loop(
    supervisor: Supervisor,
    read: Callable[[int, int], Host],
    rules: Rules | Callable[[], Rules],
    *,
    period: float = 1.0,
    on_plan: Callable[[Host, FleetPlan], None] = lambda _, __: None,
) -> None:
    """Make a plan each period and carry it out, until cancelled.

    A plan does not wait for the moves of the one before. It leaves guests that are
    still moving alone.

    Args:
        supervisor: Knows the VMs, and moves them.
        read: As for :func:`decide`.
        rules: What the host keeps, or a function that returns it for each plan.
        period: Seconds between two plans. Give the supervisor's settings the same.
        on_plan: Called with each plan, even if it has no moves.

    Raises:
        OSError: The host's memory cannot be read.

    Note:
        It can be cancelled at any moment. Moves continue while the fleet is
        supervised.
    """
    is_said = False
    while True:
        kept = rules() if callable(rules) else rules
        host, plan = decide(supervisor, read, kept)
        if plan.unreachable and not is_said:
            _LOG.warning("%s", describe_unreachable(plan, kept))
            is_said = True
        on_plan(host, plan)
        for move in plan.moves:
            supervisor.start_move(move)
        await trio.sleep(period)


def make_owed_moves(views: Iterable[VmView], room: int) -> list[Move]:
    """Make the moves that give guests back what an interrupted run owes them.

    Pure.

    Args:
        views: The VMs.
        room: Bytes that the host has for them.
    """
    moves: list[Move] = []
    for view in views:
        if view.owed is None or view.actual is None or view.target is not None:
            continue
        target = min(view.owed, view.total or view.owed)
        if target - view.actual <= room:
            why = "a run that was interrupted owes it that"
            moves.append(Move(view.name, view.actual, target, why))
            room -= target - view.actual
    return moves


@frozen
class VmReclaimReport:
    """What one VM gave, in bytes.

    Attributes:
        name: The VM's name.
        before: The size it had.
        requested: How much it was asked for.
        handed_over: How much it gave.
        owed: How much it was given back and has not taken yet.
    """

    name: str
    before: int
    requested: int
    handed_over: int
    owed: int = 0


@frozen
class FleetReclaimReport:
    """The result of a reclaim from a fleet, in bytes.

    Attributes:
        requested: How much was asked for.
        handed_over: How much the guests gave.
        held: Whether the guests stay at their smaller sizes.
        vms: How much each VM gave.
        small: The guests that were found with less than all their RAM, were not owed
            the rest, and are still smaller.
    """

    requested: int
    handed_over: int
    held: bool
    vms: tuple[VmReclaimReport, ...] = field(default=())
    small: tuple[SmallGuest, ...] = field(default=())

    def to_json(self) -> dict[str, object]:
        """Return it as the command prints it: bytes."""
        return asdict(self)


async def reclaim(
    supervisor: Supervisor,
    amount: int,
    rules: Rules,
    *,
    hold: bool = False,
    gentle: float = 0.0,
    takes_hot: bool = True,
    on_progress: Callable[[int], None] = lambda _: None,
) -> FleetReclaimReport:
    """Take an amount of memory now, from the guests that have most to spare.

    What one guest does not give, the others are asked for. Each guest is watched while
    it gives, and keeps its headroom. With ``gentle`` it also keeps its hot cache: a
    guest gets back what it reads again, and others give that instead.

    Args:
        supervisor: Knows the VMs, and moves them.
        amount: Bytes, 1 or more.
        rules: Its policy says which guests give first.
        hold: Leave the guests at their smaller sizes. By default they get their sizes
            back in the end, and the host keeps the memory until they touch it again.
        gentle: Seconds over which the memory is taken, evenly. After that, guests are
            watched for another tenth of the time. By default 0: as fast as the guests
            give it.
        takes_hot: Whether hot cache may be taken if there is nothing else. It never is
            with ``gentle``.
        on_progress: Called a few times a second with the bytes that the host has gained
            so far. The host gains nothing from memory that a guest has never touched.

    Returns:
        How much each VM gave.

    Raises:
        TypeError: The amount is not a whole number, or the time is not a number.
        ValueError: The amount or the time is out of range.

    Note:
        If it is cancelled, the guests get their sizes back.
    """
    require_size(amount, "amount", minimum=1)
    require_finite_seconds(gentle, "gentle")
    run = _Reclaim(supervisor)
    await run.give_owed()
    try:
        if gentle:
            await run.take_gently(amount, rules, gentle, on_progress)
        for _ in range(_ROUNDS):
            missing = amount - run.count_gained()
            guests = supervisor.list_guests()
            plan = take(missing, guests, rules, takes_hot=takes_hot and not gentle)
            if missing <= 0 or not plan.moves:
                break
            await run.carry_out(plan.moves, on_progress)
        report = run.make_report(amount, held=hold)
        if hold:
            run.is_held = True
            run.settle()
    finally:
        if not run.is_held:
            with trio.move_on_after(_CLEANUP_TIMEOUT, shield=True):
                await run.give_back()
            run.settle()
            run.release()
    small = tuple(each for each in supervisor.list_small() if each.found is not None)
    vms = report.vms if hold else run.add_owed(report.vms)
    return evolve(report, vms=vms, small=small)


@define
class _Reclaim:
    """One reclaim: which VMs were asked, for how much, and their state before."""

    supervisor: Supervisor
    before: dict[str, int] = field(factory=dict[str, int])
    guests: dict[str, Guest] = field(factory=dict[str, "Guest"])
    requested: Counter[str] = field(factory=Counter[str])
    is_held: bool = False

    async def give_owed(self) -> None:
        """Give guests back what an interrupted run owes them."""
        for move in make_owed_moves(self.supervisor.list_owed(), sys.maxsize):
            self.supervisor.start_move(move, insists=True)
        await self.supervisor.wait_for_moves()
        await self.supervisor.wait_until_known(_ANSWER_TIMEOUT)

    async def take_gently(
        self,
        amount: int,
        rules: Rules,
        seconds: float,
        on_progress: Callable[[int], None],
    ) -> None:
        """Take an amount evenly over a time, and give back what is read again.

        Time in which this process was stopped does not count.
        """
        spent, now = 0.0, trio.current_time()
        while spent < seconds * (1 + _WATCH_PART):
            guests = self.supervisor.list_guests()
            moves = self._list_rereads(guests)
            due = int(amount * min(1.0, spent / seconds)) - self.count_gained()
            if not moves and due >= rules.dead_band:
                moves = take(due, guests, rules, takes_hot=False).moves
            await self.carry_out(moves, on_progress)
            await trio.sleep(_STEP)
            before, now = now, trio.current_time()
            spent += min(now - before, _MAKES_UP)

    def _list_rereads(self, guests: list[Guest]) -> tuple[Move, ...]:
        """Return the moves that give guests back what they read again."""
        moves: list[Move] = []
        for guest in guests:
            taken = self.before.get(guest.name, guest.actual) - guest.actual
            back = min(guest.hot_need, taken)
            if back > 0 and not guest.is_moving:
                target, why = guest.actual + back, "it reads that again"
                moves.append(Move(guest.name, guest.actual, target, why))
        return tuple(moves)

    async def carry_out(
        self, moves: Iterable[Move], on_progress: Callable[[int], None]
    ) -> None:
        found = {guest.name: guest for guest in self.supervisor.list_guests()}
        for move in moves:
            before = self.before.get(move.name, move.before)
            try:
                self.supervisor.note_owed(move.name, before, is_held=True)
            except BalloonBusy:
                continue  # another process has begun to take memory from it
            self.before[move.name] = before
            if move.name in found:
                self.guests.setdefault(move.name, found[move.name])
            self.requested[move.name] -= move.change
            self.supervisor.start_move(move)
        while not await self.supervisor.wait_for_moves(_PROGRESS_EVERY):
            on_progress(self.count_gained())
        on_progress(self.count_gained())
        # A guest can be asked again once it has answered at its new size.
        await self.supervisor.wait_until_known(_ANSWER_TIMEOUT)

    async def give_back(self) -> None:
        """Give all guests their sizes back, each once its move under way has ended.

        A QEMU that does not answer ends its move late. The others do not wait for it.
        """
        waiting = set(self.before)
        while waiting:
            views = {view.name: view for view in self.supervisor.list_views()}
            for name in sorted(waiting):
                view = views.get(name)
                if view is None or view.target is None:
                    waiting.remove(name)
                    self._give_one_back(name, None if view is None else view.actual)
            await self.supervisor.wait_for_moves(
                _PROGRESS_EVERY if waiting else math.inf
            )

    def _give_one_back(self, name: str, size: int | None) -> None:
        # Also one that has its size: if its driver was unloaded or restarted meanwhile,
        # it would go to the last target when it is back.
        if size is not None and size <= self.before[name]:
            self.supervisor.note_owed(name, self.before[name], is_returning=True)
            move = Move(name, size, self.before[name], "it gets its size back")
            self.supervisor.start_move(move, insists=True)

    def settle(self) -> None:
        """Forget what guests are owed, if they have it or will not get it."""
        sizes = self._read_sizes()
        for name, before in self.before.items():
            lacks = before - sizes.get(name, 0)  # what is not known, it may lack
            if self.is_held or lacks < LARGEST_PAGE:
                self.supervisor.settle_owed(name)

    def release(self) -> None:
        """Leave what guests have not got back to whichever process comes next."""
        for name in self.before:
            self.supervisor.release_owed(name)

    def add_owed(self, vms: tuple[VmReclaimReport, ...]) -> tuple[VmReclaimReport, ...]:
        """Add what each VM has not taken back."""
        sizes = self._read_sizes()
        lacking = [max(0, vm.before - sizes.get(vm.name, vm.before)) for vm in vms]
        return tuple(
            evolve(vm, owed=lacks if lacks >= LARGEST_PAGE else 0)
            for vm, lacks in zip(vms, lacking, strict=True)
        )

    def count_gained(self) -> int:
        """Return the bytes that the host has gained: those that guests had touched."""
        return sum(
            self.guests[vm.name].compute_gain(vm.handed_over)
            if vm.name in self.guests
            else vm.handed_over
            for vm in self.list_vms()
        )

    def make_report(self, amount: int, *, held: bool) -> FleetReclaimReport:
        vms = tuple(self.list_vms())
        handed_over = sum(vm.handed_over for vm in vms)
        return FleetReclaimReport(amount, handed_over, held, vms)

    def list_vms(self) -> list[VmReclaimReport]:
        sizes = self._read_sizes()
        return [
            VmReclaimReport(
                name=name,
                before=before,
                requested=self.requested[name],
                handed_over=max(0, before - sizes.get(name, before)),
            )
            for name, before in self.before.items()
        ]

    def _read_sizes(self) -> dict[str, int]:
        views = self.supervisor.list_views()
        return {view.name: view.actual for view in views if view.actual is not None}
