"""Simulated worlds can be replayed, in this process and in any other.

Under hypothesis, trio's scheduling repeats:
trio hooks itself into hypothesis through an entry point. Where that hook is lost, a
failing schedule could not be found again, and no other test would say so.
"""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

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


# Without `site`, which takes half of the time of a start.
PATHS = {"PYTHONPATH": os.pathsep.join(sys.path)}
WORLD = """
import random, sys
import trio
from qmpballoon import GiB, MiB
from qmpballoon.trio import open_balloon
from qmpballoon.testing import SECOND, FaultPlan, GuestConfig, Machine, MachineConfig
from qmpballoon.testing import ramp, run_world

class Tap(trio.abc.Stream):
    # Writes all that goes through it to the standard output, with its time.
    def __init__(self, inner):
        self.inner = inner
    def note(self, way, data):
        sys.stdout.write(f"{trio.current_time()!r} {way} {bytes(data)!r}\\n")
    async def send_all(self, data):
        self.note(">", data)
        await self.inner.send_all(data)
    async def wait_send_all_might_not_block(self):
        await self.inner.wait_send_all_might_not_block()
    async def receive_some(self, max_bytes=None):
        data = await self.inner.receive_some(max_bytes)
        self.note("<", data)
        return data
    async def aclose(self):
        await self.inner.aclose()

async def main(fake):
    stream = Tap(fake.connect())
    async with open_balloon(stream, wall_clock=fake.wall_clock) as balloon:
        report = await balloon.reclaim()
    print(report.to_json())

burst = ramp(start=SECOND // 2, stop=SECOND, size=256 * MiB)
guest = GuestConfig(cache=GiB, workload=burst)
machine = Machine(MachineConfig(memory=2 * GiB, guest=guest), rng=random.Random(7))
run_world(main, machine, FaultPlan(chunk=700, event_delay=SECOND // 10))
"""


def test_a_world_is_the_same_in_all_processes(processes: int) -> None:
    """Client, guard and fake: every byte on the wire and its time, and the report."""

    def live(seed: int) -> bytes:
        # The order of sets and the like must decide nothing.
        env = {**PATHS, "PYTHONHASHSEED": str(seed)}
        command = [sys.executable, "-S", "-c", WORLD]
        return subprocess.run(
            command, check=True, stdout=subprocess.PIPE, env=env
        ).stdout

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        (transcript,) = set(pool.map(live, range(processes)))
    assert transcript.count(b"BALLOON_CHANGE") > 1
    assert b"'outcome': 'done'" in transcript or b"'outcome': 'stopped'" in transcript
