"""Simulated worlds can be replayed: under hypothesis, trio's scheduling repeats.

trio hooks itself into hypothesis through an entry point. Where that hook is lost, a
failing schedule could not be found again, and no other test would say so.
"""

from __future__ import annotations

import hypothesis
import trio
from hypothesis import strategies as st


def schedule() -> tuple[int, ...]:
    """Run some tasks that trio may order as it likes, and return the order."""
    order: list[int] = []

    async def task(number: int) -> None:
        for _ in range(10):
            await trio.lowlevel.checkpoint()
            order.append(number)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            for number in range(5):
                nursery.start_soon(task, number)

    trio.run(main)
    return tuple(order)


def explore() -> list[tuple[int, ...]]:
    """Return the schedules that one hypothesis run sees; its seed is fixed."""
    seen: list[tuple[int, ...]] = []

    @hypothesis.seed(1)
    @hypothesis.settings(database=None, max_examples=10)
    @hypothesis.given(st.random_module())
    def run(_: object) -> None:
        seen.append(schedule())

    run()
    return seen


def test_same_seed_gives_the_same_schedules() -> None:
    assert explore() == explore()


def test_drawing_the_random_module_explores_schedules() -> None:
    assert len(set(explore())) > 1
