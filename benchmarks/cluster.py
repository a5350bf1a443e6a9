"""A cluster of simulated hosts: what it costs the server, and how soon all know.

1,000 hosts with 50 VMs each, whose agents are real and whose guests are figures, on a
bus in memory and a mock clock. They report the server's load, how old the view of all
hosts is, how soon a policy has reached all of them, and a reclaim of 10 TiB. Meanwhile
a tenth of the hosts is cut off, and the server is emptied. Times of the processor are
shown, too::

    python benchmarks/cluster.py [--hosts 1000] [--vms 50]

With ``--command`` they are on a real server instead, and it reports what ``qmpballoon
cluster status`` takes of a processor, with the start of Python.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from random import Random
from statistics import median
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final

import trio
import trio.testing

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
from clusters import MemoryStore, SimulatedHost, make_agent, make_guest, now
from valkey_server import run_server

from qmpballoon.cluster import (
    HostState,
    HostVms,
    MemoryServer,
    apply_policy,
    follow_job,
    look,
    open_bus,
    plan_job,
    prepare_policy,
    start_job,
)
from qmpballoon.cluster.bus import make_state_key, make_vms_key
from qmpballoon.sizes import GiB, MiB, TiB, format_size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qmpballoon.cluster import Agent, Bus

SETTLED: Final = 5  # seconds until all have said how they are
MEASURED: Final = 10  # seconds of load
ROUNDS: Final = 7  # of the command
CUT_OFF: Final = 10  # one in so many hosts is cut off


def make_hosts(hosts: int, vms: int) -> list[SimulatedHost]:
    """Return hosts whose guests have different amounts of idle and cold memory."""
    rng = Random(1)  # noqa: S311 - figures
    return [
        SimulatedHost(
            {
                f"vm{number}": make_guest(
                    f"vm{number}",
                    available=rng.randrange(GiB // 4, 3 * GiB, MiB),
                    free=rng.randrange(0, GiB // 4, MiB),
                )
                for number in range(vms)
            },
            total=vms * 5 * GiB,
        )
        for _ in range(hosts)
    ]


async def measure_load(server: MemoryServer, hosts: int) -> None:
    """Print what the server has to do while nothing happens."""
    before = dict(server.operations), server.received, server.sent
    began = time.process_time()
    await trio.sleep(MEASURED)
    used = time.process_time() - began
    operations = sum(server.operations.values()) - sum(before[0].values())
    received, sent = server.received - before[1], server.sent - before[2]
    print(
        f"load: {operations / MEASURED:,.0f} operations a second;"
        f" {format_size(received // MEASURED)} a second to the server,"
        f" {format_size(sent // MEASURED)} from it"
    )
    share = used / MEASURED / hosts
    print(f"an agent's exchange takes {share * 1000:.2f} ms of a processor each second")


async def measure_view(bus: Bus) -> None:
    """Print how long it takes to look at all hosts, and how old what they say is."""
    began = time.process_time()
    view = await look(bus, now())
    used = time.process_time() - began
    ages = [host.age or 0.0 for host in view.hosts]
    print(
        f"view: {len(ages):,} hosts and {sum(len(host.vms) for host in view.hosts):,}"
        f" VMs in {used:.2f} s; {median(ages):.1f} s old in the median,"
        f" {max(ages):.1f} s at most"
    )


async def wait_for_revision(agents: Sequence[Agent], revision: int) -> None:
    """Wait until all hosts live by a revision of the policy."""
    while any(agent.status.policy_revision != revision for agent in agents):  # noqa: ASYNC110 - simulated
        await trio.sleep(0.1)


async def measure_policy(bus: Bus, agents: Sequence[Agent], reserve: str) -> None:
    """Print how long it takes until all hosts live by a new policy."""
    wish = {"hosts": "*", "reserve": reserve}
    change = await prepare_policy(bus, {"wish": [wish]}, now())
    began = trio.current_time()
    await apply_policy(bus, change)
    await wait_for_revision(agents, change.after.revision)
    print(f"policy: all hosts live by it after {trio.current_time() - began:.1f} s")


async def measure_reclaim(
    server: MemoryServer, simulated: Sequence[SimulatedHost], amount: int
) -> None:
    """Take an amount, while some hosts are cut off and the server is emptied."""
    bus = server.connect("operator")
    view = await look(bus, now(), with_vms=False)
    began = time.process_time()
    plan = plan_job(view, amount, now(), seconds=300)
    used = time.process_time() - began
    size = len(plan.job.to_bytes())
    print(
        f"reclaim: {format_size(amount)} are spread over {len(plan.job.quotas):,} hosts"
        f" in {used * 1000:.0f} ms; the job has {format_size(size)}"
    )
    began = trio.current_time()
    cut_off = {f"h{number:04}" for number in range(0, len(simulated), CUT_OFF)}
    server.cut_off = set(cut_off)
    await start_job(bus, plan.job, now())

    async def disturb() -> None:
        await trio.sleep(3)
        server.empty()
        await trio.sleep(7)
        server.cut_off = set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(disturb)
        report = await follow_job(bus, plan.job, now)
    most = max(host.taken - host.quota for host in report.hosts)
    twice = sum(len(host.takings) > 1 for host in simulated)
    print(
        f"reclaim: {format_size(report.taken)} were taken within"
        f" {trio.current_time() - began:.1f} s, of which {len(cut_off)} hosts were cut"
        f" off for 10 s and the server was emptied; {twice} hosts took twice, the most"
        f" beyond a quota is {max(0, most)} bytes"
    )


def measure_command(hosts: int, vms: int) -> None:
    """Print what the command takes that shows all hosts, which a real server has."""
    simulated = make_hosts(hosts, vms)
    with TemporaryDirectory() as folder, run_server(Path(folder)) as server:
        url = f"unix://{server.path}"

        async def fill() -> None:
            async with open_bus(url) as bus:
                for number, host in enumerate(simulated):
                    name, seen = f"h{number:04}", host.look()
                    state = HostState(
                        *(name, time.time(), host.total, host.total - host.held, GiB),
                        vms=vms,
                    )
                    values = {
                        make_state_key(name): state.to_bytes(),
                        make_vms_key(name): HostVms(name, tuple(seen.vms)).to_bytes(),
                    }
                    await bus.publish(values, expires=3600)

        trio.run(fill)
        for options in ([], ["--json"]):
            command = ["-m", "qmpballoon", "cluster", "status", "--cluster", url]
            used: list[float] = []
            for _ in range(ROUNDS):
                before = resource.getrusage(resource.RUSAGE_CHILDREN)
                subprocess.run(
                    [sys.executable, *command, *options],
                    check=True,
                    stdout=subprocess.DEVNULL,
                )
                after = resource.getrusage(resource.RUSAGE_CHILDREN)
                used.append(after.ru_utime - before.ru_utime)
                used[-1] += after.ru_stime - before.ru_stime
            print(
                f"cluster status {' '.join(options)}: {median(used):.2f} s of a"
                f" processor ({min(used):.2f} to {max(used):.2f})"
            )


async def run(hosts: int, vms: int) -> None:
    """Have a cluster, and measure one thing after the other."""
    server = MemoryServer()
    simulated = make_hosts(hosts, vms)
    agents = [
        make_agent(server, f"h{number:04}", host, MemoryStore())
        for number, host in enumerate(simulated)
    ]
    bus = server.connect("operator")
    async with trio.open_nursery() as nursery:
        rng = Random(2)  # noqa: S311 - moments

        async def start(agent: Agent) -> None:
            await trio.sleep(rng.random())  # hosts start at different moments
            await agent.run()

        for agent in agents:
            nursery.start_soon(start, agent)
        await trio.sleep(SETTLED)
        await measure_policy(bus, agents, "20GiB")
        await measure_load(server, hosts)
        await measure_view(bus)
        await measure_reclaim(server, simulated, hosts * TiB // 100)
        # The server has lost the policy, and hosts live on by it.
        if {host.rules.reserve for host in simulated} != {20 * GiB}:
            raise RuntimeError("a host has forgotten its policy")
        await measure_policy(bus, agents, "21GiB")
        await measure_view(bus)
        nursery.cancel_scope.cancel()


def main() -> None:
    """Read the options, and measure on a mock clock."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hosts", type=int, default=1000)
    parser.add_argument("--vms", type=int, default=50)
    parser.add_argument("--command", action="store_true")
    options = parser.parse_args()
    if options.command:
        measure_command(options.hosts, options.vms)
        return
    clock = trio.testing.MockClock(autojump_threshold=0)
    trio.run(partial(run, options.hosts, options.vms), clock=clock)


if __name__ == "__main__":
    main()
