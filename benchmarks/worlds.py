"""How many simulated worlds run in a second: what property-based tests can afford.

::

    python benchmarks/worlds.py [SECONDS]
"""

from __future__ import annotations

import random
import sys
import time
from statistics import quantiles
from typing import TYPE_CHECKING

from qmpballoon.sizes import GiB, MiB
from qmpballoon.testing import SECOND, GuestConfig, Machine, MachineConfig, run_world
from qmpballoon.trio import open_balloon

if TYPE_CHECKING:
    from collections.abc import Callable

    from qmpballoon.testing import FakeQemu

GUEST = GuestConfig(used=123 * MiB, cache=15 * GiB)
CONFIG = MachineConfig(memory=16 * GiB, guest=GUEST)
TARGET = 2 * GiB
ROUNDS = 5


async def resize(fake: FakeQemu) -> None:
    """Resize by 14 GiB, with all the polling that the client does."""
    async with open_balloon(fake.connect()) as balloon:
        await balloon.resize(TARGET)


def simulate_resize() -> None:
    """Simulate one resize with client, streams and clock."""
    run_world(resize, Machine(CONFIG, rng=random.Random(0)))  # noqa: S311 -- a seed


def simulate_machine() -> None:
    """Simulate the same without a client: the model alone."""
    model = Machine(CONFIG, rng=random.Random(0))  # noqa: S311 -- a seed
    model.set_target(TARGET)
    model.advance(60 * SECOND)


async def reclaim(fake: FakeQemu) -> None:
    """Reclaim what the guard allows, and give it back."""
    async with open_balloon(fake.connect(), wall_clock=fake.wall_clock) as balloon:
        await balloon.reclaim()


def simulate_reclaim() -> None:
    """Simulate one reclaim with client, streams and clock."""
    run_world(reclaim, Machine(CONFIG, rng=random.Random(0)))  # noqa: S311 -- a seed


def measure_rate(what: Callable[[], None], seconds: float) -> float:
    """Return how often a function can be called in a second of CPU time."""
    # CPU time: a world never waits, and other processes do not count.
    count, began = 0, time.process_time()
    while time.process_time() - began < seconds:
        what()
        count += 1
    return count / (time.process_time() - began)


if __name__ == "__main__":
    duration = float(sys.argv[1]) if len(sys.argv) > 1 else 10.0
    for name, what in (
        ("machines that are resized", simulate_machine),
        ("worlds with a resize", simulate_resize),
        ("worlds with a reclaim", simulate_reclaim),
    ):
        rates = [measure_rate(what, duration / ROUNDS) for _ in range(ROUNDS)]
        low, middle, high = (1000 / rate for rate in quantiles(rates, n=4))
        print(
            f"{name}: {1000 / middle:.1f} a second of CPU, {middle:.1f} ms each"
            f" ({high:.1f} to {low:.1f})"
        )
