"""How many simulated worlds a second: what property-based tests can afford.

::

    python benchmarks/worlds.py [SECONDS]
"""

from __future__ import annotations

import random
import sys
import time
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


async def resize(fake: FakeQemu) -> None:
    """Let the client take 14 GiB, with all the polling that it does."""
    async with open_balloon(fake.connect()) as balloon:
        await balloon.resize(TARGET)


def world() -> None:
    """Live through one resize with client, streams and clock."""
    run_world(resize, Machine(CONFIG, rng=random.Random(0)))  # noqa: S311 -- a seed


def machine() -> None:
    """Live through the same without a client: the model alone."""
    model = Machine(CONFIG, rng=random.Random(0))  # noqa: S311 -- a seed
    model.set_target(TARGET)
    model.advance(60 * SECOND)


async def reclaim(fake: FakeQemu) -> None:
    """Let the guard take what it can and give it back, looking all the time."""
    async with open_balloon(fake.connect(), wall_clock=fake.wall_clock) as balloon:
        await balloon.reclaim()


def guarded() -> None:
    """Live through one reclaim with client, streams and clock."""
    run_world(reclaim, Machine(CONFIG, rng=random.Random(0)))  # noqa: S311 -- a seed


def rate(what: Callable[[], None], seconds: float) -> float:
    """Return how often something can be done in a second of processor time."""
    # The process's own time: worlds wait for nothing, and other processes count for
    # nothing.
    count, began = 0, time.process_time()
    while time.process_time() - began < seconds:
        what()
        count += 1
    return count / (time.process_time() - began)


if __name__ == "__main__":
    duration = float(sys.argv[1]) if len(sys.argv) > 1 else 5.0
    for name, what in (
        ("machines that are resized", machine),
        ("worlds with a resize", world),
        ("worlds with a reclaim", guarded),
    ):
        found = rate(what, duration)
        print(f"{name}: {found:.1f} a second of CPU, {1000 / found:.1f} ms each")
