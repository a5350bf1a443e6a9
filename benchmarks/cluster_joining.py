"""What it costs a host to be in a cluster: the same fleet, in one and in none, in turn.

One process supervises fake VMs, as in ``fleet_size.py``, with the control loop. In
every other round its agent says to a real server how the host is, and follows the
policy that is there. Of each round the processor time of the process is read, so that
others who keep the processors busy count little. What joining costs is the difference
of two rounds that follow each other: the median of them, and the middle half::

    python benchmarks/cluster_joining.py [--vms 100] [--rounds 20] [--seconds 5]
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import trio
from fleet_size import make_opener, serve_apart

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
from valkey_server import run_server

from qmpballoon.cluster import (
    Agent,
    FleetHost,
    Store,
    apply_policy,
    look,
    open_bus,
    prepare_policy,
)
from qmpballoon.fleet.control_loop import run_control_loop
from qmpballoon.fleet.host_memory import HostMemory
from qmpballoon.fleet.policy import Rules
from qmpballoon.fleet.sources import make_source
from qmpballoon.fleet.supervisor import open_fleet
from qmpballoon.fleet.vm_task import Settings
from qmpballoon.sizes import GiB, MiB

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from qmpballoon.cluster import Bus

CALM = 10.0  # seconds until all moves are made


@asynccontextmanager
async def join(make_agent: Callable[[], Agent], bus: Bus) -> AsyncGenerator[None]:
    """Have the host in the cluster within the block."""
    async with trio.open_nursery() as nursery:
        await nursery.start(make_agent().run)
        while not (await look(bus, time.time())).hosts:  # noqa: ASYNC110 - a server's
            await trio.sleep(0.1)
        yield
        nursery.cancel_scope.cancel()


async def measure_share(seconds: float) -> float:
    """Return the share of one core that this process takes for so long."""
    began, used = trio.current_time(), time.process_time()
    await trio.sleep(seconds)
    return (time.process_time() - used) / (trio.current_time() - began)


async def measure(
    url: str, folder: Path, pids: dict[str, int], rounds: int, seconds: float
) -> None:
    """Measure rounds in turn, and print what joining costs."""
    count = len(pids)
    memory = HostMemory(limit=2 * count * GiB)
    rules = Rules(reserve=256 * MiB, buffer=64 * MiB)
    source = make_source([str(Path(next(iter(pids))).parent / "*.qmp")])
    async with (
        open_bus(url) as bus,
        open_fleet(
            source,
            random.Random(0),  # noqa: S311 - spreads the polls
            settings=Settings(),
            opener=make_opener(pids, busy=True),
        ) as fleet,
        trio.open_nursery() as nursery,
    ):
        await fleet.wait_until_known(120)
        host = FleetHost(fleet, memory.read, rules)
        nursery.start_soon(partial(run_control_loop, fleet, host.read, host.get_rules))
        table = {"wish": [{"hosts": "*", "reserve": "512MiB"}]}
        await apply_policy(bus, await prepare_policy(bus, table, time.time()))
        await trio.sleep(CALM)

        def make_agent() -> Agent:
            return Agent("h1", bus, host, rules, Store(folder / "state"))

        alone: list[float] = []
        member: list[float] = []
        for _ in range(rounds):
            alone.append(await measure_share(seconds))
            async with join(make_agent, bus):
                member.append(await measure_share(seconds))
        nursery.cancel_scope.cancel()
    costs = [one - other for one, other in zip(member, alone, strict=True)]
    low, middle, high = quantiles(costs, n=4)
    print(
        f"{count} VMs: alone {median(alone):.2%} of a core, in a cluster"
        f" {median(member):.2%}; joining costs {middle:.2%} ({low:.2%} to {high:.2%},"
        f" {rounds} pairs of rounds)"
    )


def main() -> None:
    """Read the options, and measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vms", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=5.0)
    options = parser.parse_args()
    with (
        TemporaryDirectory() as name,
        run_server(Path(name)) as server,
        serve_apart(options.vms) as pids,
    ):
        trio.run(
            measure,
            f"unix://{server.path}",
            Path(name),
            pids,
            options.rounds,
            options.seconds,
        )


if __name__ == "__main__":
    main()
