"""A day of a VM's life, with all that goes wrong in it: nothing of ours grows.

``benchmarks/soak.py`` is the same on real guests, in real time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest
import trio
from hypothesis import given, settings
from readings import Reading, check

from qmpballoon.errors import QmpBalloonError
from qmpballoon.sizes import GiB
from qmpballoon.testing import (
    NO_FAULTS,
    SECOND,
    FakeQemu,
    FaultPlan,
    MachineConfig,
    simulate,
)
from qmpballoon.testing.strategies import fault_plans
from qmpballoon.trio import open_balloon

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qmpballoon import Balloon

HOUR: Final = 3600
DAY: Final = 24 * HOUR
PAUSE: Final = HOUR // 2


async def work(balloon: Balloon, turn: int) -> None:
    """Do what is done to a VM, one thing after the other."""
    match turn % 4:
        case 0:
            await balloon.resize(GiB, timeout=60, on_stall="settle")
        case 1:
            async with balloon.sampler() as sampler:
                for _ in range(10):
                    await balloon.monitor.sleep(0.5)
                    await sampler.take()
        case 2:
            await balloon.reclaim()
        case _:
            await balloon.resize(2 * GiB, timeout=60, on_stall="settle")


async def live(vm: FakeQemu) -> tuple[int, list[Reading]]:
    """Live through a day; return how often all went well, and what was held."""
    done, readings = 0, list[Reading]()
    while trio.current_time() < DAY:
        try:
            async with open_balloon(vm.connect(), wall_clock=vm.wall_clock) as balloon:
                await work(balloon, len(readings))
            done += 1
        except QmpBalloonError:
            pass  # the next one finds out how things are
        await trio.sleep(PAUSE)
        readings.append(Reading.take())
    return done, readings


def day(plan: FaultPlan) -> tuple[int, Sequence[Reading]]:
    return simulate(live, MachineConfig(memory=2 * GiB), faults=plan, limit=2 * DAY)


def test_a_quiet_day() -> None:
    done, readings = day(NO_FAULTS)
    assert done == len(readings) > DAY // PAUSE - 10
    check(readings)


@given(plan=fault_plans(until=DAY * SECOND))
@settings(max_examples=3)
def test_a_day_of_faults(plan: FaultPlan) -> None:
    done, readings = day(plan)
    assert done <= len(readings) > 10
    check(readings)


@pytest.mark.parametrize("leaking", ["tasks", "descriptors", "objects"])
def test_a_leak_would_be_seen(leaking: str) -> None:
    def reading(turn: int) -> Reading:
        held = {"tasks": 5, "descriptors": 5, "objects": 50_000}
        held[leaking] *= 1 + turn
        return Reading(**held)

    with pytest.raises(AssertionError):
        check([reading(turn) for turn in range(40)])
