"""Every coroutine of a balloon, to be cancelled at each place where it waits."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

from attrs import evolve

from qmpballoon import GiB, MiB
from qmpballoon.testing import GuestConfig, MachineConfig

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from qmpballoon.balloon.balloon import Balloon
    from qmpballoon.testing import Machine

RAM: Final = 512 * MiB
CONFIG: Final = MachineConfig(
    memory=RAM, guest=GuestConfig(used=40 * MiB, cache=200 * MiB)
)
# The same for real time: what it is asked it does at once.
QUICK: Final = evolve(
    CONFIG,
    guest=evolve(
        CONFIG.guest,
        inflate_rate=64 * GiB,
        reclaim_rate=64 * GiB,
        deflate_rate=64 * GiB,
        stats_delay=100_000,
    ),
)

_ALL_OF_THE_FIRST: Final = 30  # places of one operation
_OF_THE_REST: Final = 20


async def _in_interval(balloon: Balloon) -> None:
    async with balloon.stats_interval(3):
        await balloon.monitor.sleep(0.01)


async def _sample(balloon: Balloon) -> None:
    async with balloon.sampler() as sampler:
        await sampler.take()


async def _an_event(balloon: Balloon) -> None:
    monitor: Any = balloon.monitor
    with monitor.subscribe("STOP") as events:
        await monitor.execute("stop")
        await events.receive()


OPERATIONS: Final[dict[str, Callable[[Balloon], Awaitable[object]]]] = {
    "execute": lambda balloon: balloon.monitor.execute("query-status"),
    "sleep": lambda balloon: balloon.monitor.sleep(0.01),
    "receive": _an_event,
    "query": lambda balloon: balloon.query(),
    "actual": lambda balloon: balloon.actual(),
    "set_target": lambda balloon: balloon.set_target(500 * MiB),
    "stats": lambda balloon: balloon.stats(),
    "refresh_stats": lambda balloon: balloon.refresh_stats(),
    "request_stats": lambda balloon: balloon.request_stats(2),
    "get_stats_interval": lambda balloon: balloon.get_stats_interval(),
    "set_stats_interval": lambda balloon: balloon.set_stats_interval(0),
    "stats_interval": _in_interval,
    "sampler": _sample,
    "features": lambda balloon: balloon.features(),
    "is_running": lambda balloon: balloon.is_running(),
    "resize": lambda balloon: balloon.resize(480 * MiB),
    "plan_reclaim": lambda balloon: balloon.plan_reclaim(32 * MiB),
    "reclaim": lambda balloon: balloon.reclaim(32 * MiB),
    "keep": lambda balloon: balloon.keep(32 * MiB, seconds=0.1),
    "watch": lambda balloon: anext(balloon.watch(0.1)),
}
# What these leave behind is what they were to set, or what was there before.
_SETS_THE_INTERVAL: Final = {"request_stats": {0, 2}, "set_stats_interval": {0, 2}}
INTERVAL: Final = 2  # seconds, before each


def places(count: int) -> Iterable[int]:
    """Return at which of so many places to cancel: the first ones, some of the rest."""
    step = max(1, (count - _ALL_OF_THE_FIRST) // _OF_THE_REST)
    first = min(count, _ALL_OF_THE_FIRST)
    return sorted({*range(1, first + 1), *range(first, count, step), count})


def target_of(machine: Machine) -> int:
    """Return the bytes that the guest is told to have."""
    assert machine.device is not None
    return RAM - machine.device.asked * 4096


async def check_left_behind(name: str, balloon: Balloon, target: int) -> None:
    """See what a cancelled operation has left of the balloon."""
    actual = await balloon.actual()
    if name == "resize":  # a shrinking guest stays where it is
        assert actual <= target
    elif name != "set_target":
        assert target == RAM
    interval = await balloon.get_stats_interval()
    assert interval in _SETS_THE_INTERVAL.get(name, {INTERVAL})


def descriptors() -> set[str]:
    """Return the descriptors that this process has open."""
    return set(os.listdir("/proc/self/fd"))  # noqa: PTH208 (only their numbers)
