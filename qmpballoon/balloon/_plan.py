"""What a reclaim would take from a guest: examine the guest, and plan; take nothing.

A plan rests on what the guest reports now, at the size that it has now. So a guest that
is still on its way to an earlier target is waited for.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from attrs import evolve

from qmpballoon._checks import require_kind, require_size
from qmpballoon.balloon.device import LARGEST_PAGE, PAGE
from qmpballoon.balloon.guard import Guard
from qmpballoon.balloon.results import Plan
from qmpballoon.balloon.sampling import Snapshot, refresh_stats
from qmpballoon.errors import StatsUnavailable
from qmpballoon.monitor import make_error
from qmpballoon.sizes import GiB

if TYPE_CHECKING:
    from qmpballoon.balloon.device import Device
    from qmpballoon.balloon.guard import GuestLimits
    from qmpballoon.balloon.results import Binding
    from qmpballoon.balloon.stats import GuestStats

__all__ = ["check_request", "make_plan", "plan", "prepare"]

# Bytes a second, with 4 KiB pages on a large server with KVM, from the literature.
_INFLATE_RATE: Final = 0.95 * GiB
_DEFLATE_RATE: Final = 2.3 * GiB
# Seconds between two looks at a guest whose size changes although nobody here moves it,
# and seconds until it is no longer waited for. At 10 MiB a second, the slowest
# deflation that counts as one, a guest gets back 300 MiB in that time.
_REST_EVERY: Final = 0.25
_REST_WITHIN: Final = 30.0


async def plan(device: Device, amount: int | None, guard: Guard | None) -> Plan:
    """Return what a reclaim would take; see :meth:`Balloon.plan_reclaim`."""
    check_request(amount, guard)
    _, _, planned = await prepare(device, amount, guard)
    owed = device.read_owed()
    if owed is not None and owed - planned.actual < LARGEST_PAGE:
        owed = None  # it has it
    return evolve(planned, owed=owed, holder=device.read_holder())


def check_request(amount: int | None, guard: Guard | None) -> None:
    """Refuse an amount, or a guard, that is none."""
    if amount is not None:
        require_size(amount, "amount", minimum=1)
    require_kind(guard, Guard, "guard")


async def prepare(
    device: Device, amount: int | None, guard: Guard | None
) -> tuple[Snapshot, GuestLimits, Plan]:
    """Examine the guest, and make a plan from what it reports now.

    Returns:
        Guest and host as they are, what the guest must keep, and the plan.

    Raises:
        StatsUnavailable: The guest does not answer, or does not report enough.
    """
    info = await device.query()
    if info.actual < (info.total or 0) and await _come_to_rest(device, info.actual):
        info = await device.query()
    stats = await refresh_stats(device)
    limits = (guard or Guard()).compute_limits(info.total or info.actual)
    planned = make_plan(limits, info.actual, stats, amount)
    if planned is None:
        why = (
            "the guest's driver does not report free or available memory: nothing"
            " can be taken safely; use resize with a target of your own"
        )
        raise make_error(StatsUnavailable, device.monitor, why)
    return Snapshot(stats, info.actual, device.resident()), limits, planned


async def _come_to_rest(device: Device, actual: int) -> bool:
    """Wait until a guest whose size changes has come to rest.

    Its balloon may still be on the way to a target that an earlier client set.

    Args:
        device: The balloon.
        actual: Bytes that the guest had a moment ago.

    Returns:
        Whether its size has changed.
    """
    monitor, began, before = device.monitor, device.monitor.now(), actual
    while monitor.now() - began < _REST_WITHIN:
        await monitor.sleep(_REST_EVERY)
        if (now := await device.actual()) == actual:
            break
        if actual == before:
            device.log(logging.INFO, "the guest's size changes by itself: waiting")
        actual = now
    return actual != before


def make_plan(
    limits: GuestLimits, actual: int, stats: GuestStats, amount: int | None = None
) -> Plan | None:
    """Return what can be taken from a guest; ``None`` if it does not report enough.

    Pure.

    Args:
        limits: What the guest must keep.
        actual: Bytes it has.
        stats: What it reports.
        amount: The most bytes to take; ``None``: all that the guest can spare.
    """
    available = stats.reclaimable
    if available is None:
        return None
    goals: dict[Binding, int] = {
        "headroom": actual - (available - limits.headroom),
        "floor": limits.floor,
        "amount": -1 if amount is None else actual - amount,
    }
    binding = max(goals, key=lambda name: goals[name])
    target = min(-(-goals[binding] // PAGE) * PAGE, actual)
    taken = actual - target
    free = min(taken, stats.free or 0)
    pace = min(limits.max_rate, _INFLATE_RATE)
    inflating = max(taken / pace, limits.gentle if taken > free else 0.0)
    return Plan(
        actual=actual,
        target=target,
        amount=taken,
        from_free=free,
        from_cache=taken - free,
        available=available,
        headroom=limits.headroom,
        floor=limits.floor,
        binding=binding,
        seconds=inflating + taken / _DEFLATE_RATE,
    )
