"""The simulated machine keeps its books, whatever is done to it, and when."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)
from talk import UNSET, Client, make

from qmpballoon.sizes import GiB, MiB
from qmpballoon.testing import (
    PROFILES,
    SECOND,
    GuestConfig,
    Machine,
    MachineConfig,
    WorkloadStep,
    profile,
)
from qmpballoon.testing.model.memory import PAGE, STEP
from qmpballoon.testing.strategies import workloads

# Left to itself, hypothesis draws next to nothing but small numbers: no balloon would
# ever get far, and no second ever pass.
SIZES = st.integers(1, 3 * GiB) | st.integers(1, 3072).map(lambda size: size * MiB)
TIMES = st.integers(0, 10 * SECOND) | st.integers(1, 10).map(lambda n: n * SECOND)
WORKLOADS = workloads()
GUESTS = st.builds(
    GuestConfig,
    used=st.integers(0, GiB),
    cache=st.integers(0, 4 * GiB),
    swap=st.just(0) | st.integers(0, 2 * GiB),
    refaults=st.just(0) | st.integers(1, 99),
    workload=WORKLOADS,
    panic_after=st.none() | st.integers(0, 5 * SECOND),
)


class Machines(RuleBasedStateMachine):
    """Any commands at any times."""

    @initialize(
        version=st.sampled_from(PROFILES),
        memory=st.sampled_from([64 * MiB, 512 * MiB, 2 * GiB, 4 * GiB]),
        features=st.fixed_dictionaries(
            {"deflate_on_oom": st.booleans(), "free_page_reporting": st.booleans()}
        ),
        guest=GUESTS,
        seed=st.integers(0, 100),
    )
    def start(
        self,
        version: str,
        memory: int,
        features: dict[str, Any],
        guest: GuestConfig,
        seed: int,
    ) -> None:
        config = MachineConfig(
            memory=memory,
            slots=2,
            max_memory=memory + 4 * GiB,
            guest=guest,
            **features,
        )
        machine = Machine(config, profile(version), random.Random(seed))
        self.client = Client(machine)
        self.machine = machine
        self.plugged = 0

    @rule(size=SIZES, duration=TIMES)
    def set_target(self, size: int, duration: int) -> None:
        assert self.client.execute("balloon", value=size) == {}
        self.client.advance(duration)

    @rule(duration=TIMES)
    def wait(self, duration: int) -> None:
        self.client.advance(duration)

    @rule(duration=st.integers(0, 3 * SECOND))
    def stall(self, duration: int) -> None:
        self.machine.guest.stall(duration)

    @rule(seconds=st.integers(0, 3))
    def set_interval(self, seconds: int) -> None:
        self.client.execute(
            "qom-set",
            path="balloon0",
            property="guest-stats-polling-interval",
            value=seconds,
        )

    @precondition(lambda self: self.machine.running)
    @rule()
    def stop(self) -> None:
        self.client.execute("stop")

    @precondition(lambda self: not self.machine.running)
    @rule()
    def resume(self) -> None:
        self.client.execute("cont")

    @precondition(lambda self: self.machine.guest.driver_ready)
    @rule(duration=TIMES)
    def reset(self, duration: int) -> None:
        self.client.execute("system_reset")
        self.client.advance(duration)

    @precondition(lambda self: self.plugged < 2)
    @rule(size=st.integers(1, 8).map(lambda n: n * 128 * MiB))
    def plug(self, size: int) -> None:
        self.plugged += 1
        name = str(self.plugged)
        backend = {"qom-type": "memory-backend-ram", "id": f"m{name}", "size": size}
        self.client.execute("object-add", **backend)
        dimm = {"driver": "pc-dimm", "id": f"d{name}", "memdev": f"m{name}"}
        assert self.client.execute("device_add", **dimm) == {}

    @invariant()
    def the_books_balance(self) -> None:
        memory = self.machine.guest.memory
        parts = (memory.used, memory.cache, memory.free, memory.balloon)
        assert min(parts) >= 0
        assert sum(parts) + memory.reserve == memory.ram
        assert memory.balloon % PAGE == 0
        assert 0 <= memory.warm <= memory.free
        assert memory.allocated <= memory.used + memory.swapped
        assert 0 <= memory.swapped <= memory.swap
        assert self.machine.resident >= 0

    @invariant()
    def actual_is_within_ram(self) -> None:
        ram = self.machine.guest.memory.ram
        assert 0 < self.client.execute("query-balloon")["actual"] <= ram

    @invariant()
    def events_are_a_second_apart(self) -> None:
        times = [at for at, _ in self.client.named("BALLOON_CHANGE")]
        assert all(b - a >= SECOND for a, b in pairwise(times))

    @invariant()
    def statistics_fit_together(self) -> None:
        stats = self.client.stats()
        total = stats["stat-total-memory"]
        if total != UNSET:
            assert stats["stat-free-memory"] + stats["stat-disk-caches"] <= total
            assert stats["stat-available-memory"] <= total
        assert total < self.machine.guest.memory.ram or total == UNSET


Machines.TestCase.settings = settings(max_examples=250)
TestMachines = Machines.TestCase


@given(
    target=st.integers(1, 2 * GiB),
    looks=st.lists(st.integers(0, 4 * SECOND), max_size=20),
)
def test_inflation_is_monotone_and_ends_at_the_target_rounded_up(
    target: int, looks: list[int]
) -> None:
    client = make(memory=2 * GiB, guest=GuestConfig(used=64 * MiB, cache=GiB))
    client.execute("balloon", value=target)
    seen = [client.execute("query-balloon")["actual"]]
    for look in looks:
        client.advance(look)
        seen.append(client.execute("query-balloon")["actual"])
    client.advance(600 * SECOND)
    seen.append(client.execute("query-balloon")["actual"])

    floor = 2 * GiB - client.machine.guest.memory.balloon
    assert seen == sorted(seen, reverse=True)
    assert all((2 * GiB - actual) % STEP == 0 for actual in seen[:-1] if actual > floor)
    rounded = -(-target // PAGE) * PAGE
    if client.machine.guest.at_floor:
        assert seen[-1] > rounded
        assert client.machine.guest.memory.reclaimable < PAGE
    else:
        assert seen[-1] == rounded


@given(
    moments=st.lists(st.integers(1, 20 * SECOND), max_size=10),
    targets=st.lists(SIZES.filter(bool), min_size=1, max_size=4),
    workload=WORKLOADS,
)
def test_looking_makes_no_difference(
    moments: list[int], targets: list[int], workload: tuple[WorkloadStep, ...]
) -> None:
    guest = GuestConfig(used=64 * MiB, cache=GiB, workload=workload)
    transcripts = []
    for extra in ([], moments):
        client = make(guest=guest, memory=2 * GiB)
        for i, target in enumerate(targets):
            client.execute("balloon", value=target)
            for moment in sorted({*extra, 20 * SECOND}):
                client.machine.advance(i * 20 * SECOND + moment)
            client.execute("query-balloon")
        transcripts.append(client.raw)
    assert transcripts[0] == transcripts[1]


@pytest.mark.parametrize("target", [1, PAGE - 1, PAGE, PAGE + 1, GiB - 1])
def test_a_target_is_rounded_up_to_a_whole_page(target: int) -> None:
    client = make(memory=2 * GiB)
    client.execute("balloon", value=GiB + target)
    client.advance(60 * SECOND)
    actual = client.execute("query-balloon")["actual"]
    assert actual == GiB + -(-target // PAGE) * PAGE


@pytest.mark.parametrize("pause", [SECOND // 7, SECOND // 1000 + 1])
def test_looking_often_makes_no_difference(pause: int) -> None:
    watched, left_alone = (make(memory=2 * GiB) for _ in range(2))
    for client in (watched, left_alone):
        client.execute("balloon", value=GiB)
    for _ in range(100):
        watched.machine.advance(watched.machine.now + pause)
        watched.read()
    left_alone.machine.advance(watched.machine.now)
    left_alone.read()
    assert watched.raw == left_alone.raw
    watched.execute("query-balloon")
    left_alone.execute("query-balloon")
    assert watched.raw == left_alone.raw


def test_the_newest_value_wins() -> None:
    client = make(memory=2 * GiB, guest=GuestConfig(cache=GiB))
    client.execute("balloon", value=GiB)
    values = []
    for _ in range(40):
        before = len(client.events)
        client.advance(SECOND // 10)
        if len(client.events) > before:
            (at, event), *rest = client.events[before:]
            assert not rest
            values.append((at, event["data"]["actual"]))
    assert values[0][1] == 2 * GiB - STEP
    assert values[-1][1] == GiB
    for (earlier, first), (later, second) in pairwise(values):
        assert later - earlier >= SECOND
        assert second < first


def test_an_event_carries_the_time_of_the_change_not_of_its_delivery() -> None:
    client = make(memory=2 * GiB, guest=GuestConfig(cache=0))
    client.execute("balloon", value=2 * GiB - 300 * MiB)
    client.advance(5 * SECOND)
    _, (delivered, event) = client.named("BALLOON_CHANGE")
    stamp = event["timestamp"]
    made = stamp["seconds"] * 10**6 + stamp["microseconds"]
    epoch = client.machine.config.epoch
    assert made < (epoch + delivered) // 1000 - 500_000
    assert event["data"]["actual"] == 2 * GiB - 300 * MiB


def test_cache_is_dropped_after_free_pages_and_before_anything_else() -> None:
    client = make(memory=4 * GiB, guest=GuestConfig(used=128 * MiB, cache=2 * GiB))
    memory = client.machine.guest.memory
    free, cache = memory.spare, memory.cache
    client.execute("balloon", value=4 * GiB - free // 2)
    client.advance(60 * SECOND)
    assert memory.cache == cache
    client.execute("balloon", value=4 * GiB - free - GiB)
    client.advance(60 * SECOND)
    assert cache - memory.cache == pytest.approx(GiB, abs=2 * STEP)
    assert memory.used == 128 * MiB


def test_a_guest_whose_memory_is_cache_says_that_it_is_available() -> None:
    client = make(memory=4 * GiB, guest=GuestConfig(used=128 * MiB, cache=3 * GiB))
    stats = client.stats()
    assert stats["stat-available-memory"] > stats["stat-disk-caches"] > 2 * GiB
    assert stats["stat-free-memory"] < GiB


def test_the_host_has_it_back() -> None:
    client = make(memory=4 * GiB, guest=GuestConfig(cache=3 * GiB))
    before = client.machine.resident
    client.execute("balloon", value=GiB)
    client.advance(60 * SECOND)
    squeezed = client.machine.resident
    client.execute("balloon", value=4 * GiB)
    client.advance(60 * SECOND)
    assert before - squeezed > 2 * GiB
    assert client.machine.resident == squeezed


def test_a_guest_at_its_floor_stalls_and_says_so() -> None:
    client = make(memory=4 * GiB, guest=GuestConfig(used=250 * MiB, cache=GiB))
    client.execute("balloon", value=64 * MiB)
    client.advance(120 * SECOND)
    actual = client.execute("query-balloon")["actual"]
    stalls = client.machine.guest.alloc_stalls
    client.advance(8 * SECOND)
    assert client.execute("query-balloon")["actual"] == actual > 64 * MiB
    assert client.machine.guest.alloc_stalls - stalls == 80
    assert client.machine.guest.memory.available == 0
    assert client.machine.guest.oom_kills == 0


def test_without_deflation_on_oom_an_old_kernel_panics_at_its_floor() -> None:
    for deflate in (False, True):
        guest = GuestConfig(panic_after=SECOND)
        client = make(memory=GiB, guest=guest, deflate_on_oom=deflate)
        client.execute("balloon", value=1)
        client.advance(60 * SECOND)
        assert client.machine.guest.panicked is not deflate


def test_a_dead_guest_does_not_move_and_a_reset_revives_it() -> None:
    client = make(memory=GiB, guest=GuestConfig(panic_after=0))
    client.execute("balloon", value=1)
    client.advance(60 * SECOND)
    dead = client.execute("query-balloon")["actual"]
    client.execute("balloon", value=GiB)
    client.advance(60 * SECOND)
    assert client.execute("query-balloon")["actual"] == dead
    client.execute("system_reset")
    client.execute("balloon", value=GiB // 2)
    client.advance(60 * SECOND)
    assert client.execute("query-balloon")["actual"] == GiB // 2


@pytest.mark.parametrize("deflate", [False, True])
def test_a_burst_is_paid_by_the_balloon_or_by_a_process(deflate: bool) -> None:
    burst = WorkloadStep(30 * SECOND, 300 * MiB)
    guest = GuestConfig(used=64 * MiB, cache=GiB, workload=(burst,))
    client = make(memory=2 * GiB, guest=guest, deflate_on_oom=deflate)
    client.execute("balloon", value=256 * MiB)
    client.advance(29 * SECOND)
    small = client.machine.guest.memory.balloon
    client.advance(2 * SECOND)
    assert client.machine.guest.oom_kills == (0 if deflate else 1)
    assert (client.machine.guest.memory.balloon < small) is deflate


def test_reported_pages_leave_the_host_by_themselves() -> None:
    workload = (WorkloadStep(0, GiB), WorkloadStep(SECOND, -GiB))
    residents = []
    for reporting in (False, True):
        guest = GuestConfig(workload=workload, cache=0)
        client = make(guest=guest, memory=4 * GiB, free_page_reporting=reporting)
        client.advance(10 * SECOND)
        residents.append(client.machine.resident)
    assert residents[0] - residents[1] == GiB


def test_a_paused_vm_takes_commands_and_does_not_move() -> None:
    client = make(memory=GiB)
    client.execute("stop")
    client.execute("balloon", value=GiB // 2)
    client.advance(60 * SECOND)
    assert client.execute("query-balloon")["actual"] == GiB
    client.execute("cont")
    client.advance(60 * SECOND)
    assert client.execute("query-balloon")["actual"] == GiB // 2


def test_a_vm_that_waits_for_cont_boots_then() -> None:
    client = make(paused=True, memory=GiB)
    client.execute("balloon", value=GiB // 2)
    assert client.machine.guest.memory.used == 0
    client.execute("cont")
    client.advance(SECOND)
    assert client.execute("query-balloon")["actual"] == GiB
    client.advance(60 * SECOND)
    assert client.execute("query-balloon")["actual"] == GiB // 2


def test_a_dimm_raises_actual_without_an_event() -> None:
    client = make(memory=GiB, slots=1, max_memory=4 * GiB)
    backend = {"qom-type": "memory-backend-ram", "id": "m", "size": GiB}
    client.execute("object-add", **backend)
    client.execute("device_add", driver="pc-dimm", id="d", memdev="m")
    client.advance(10 * SECOND)
    assert client.execute("query-balloon")["actual"] == 2 * GiB
    assert client.events == []
    client.execute("device_del", id="d")
    client.advance(SECOND)
    assert client.execute("query-balloon")["actual"] == GiB
    assert [event["event"] for _, event in client.events] == ["DEVICE_DELETED"]


def test_time_does_not_go_back() -> None:
    machine = Machine()
    machine.advance(SECOND)
    with pytest.raises(ValueError, match="already"):
        machine.advance(SECOND - 1)


# Speed and repeatability

# Without `site`, which takes half of the time of a start.
PATHS = {"PYTHONPATH": os.pathsep.join(sys.path)}
RECLAIM = """
import random, sys
from qmpballoon.testing import SECOND, GuestConfig, Machine, MachineConfig
guest = GuestConfig(used=123 << 20, cache=15 << 30)
machine = Machine(MachineConfig(memory=16 << 30, guest=guest), rng=random.Random(7))
session = machine.connect()
session.receive(b'{"execute": "qmp_capabilities"}')
session.receive(b'{"execute": "balloon", "arguments": {"value": 754974720}}')
for i in range(300):
    machine.advance(i * SECOND // 5)
    session.receive(b'{"execute": "query-balloon", "id": %d}' % i)
sys.stdout.buffer.write(session.take_output())
"""


def test_a_reclaim_of_16_gib_is_simulated_in_no_time() -> None:
    guest = GuestConfig(used=123 * MiB, cache=15 * GiB)
    client = make(guest=guest, memory=16 * GiB)
    began = time.process_time()
    client.execute("balloon", value=720 * MiB)
    for _ in range(300):
        client.advance(SECOND // 5)
        client.execute("query-balloon")
    assert time.process_time() - began < 0.2
    assert client.execute("query-balloon")["actual"] == 720 * MiB


def test_the_same_seed_says_the_same_in_other_processes(processes: int) -> None:
    def run(_: int) -> bytes:
        # Each with its own seed for hashes, as Python has it by default.
        command = [sys.executable, "-S", "-c", RECLAIM]
        return subprocess.run(
            command, check=True, stdout=subprocess.PIPE, env=PATHS
        ).stdout

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        (transcript,) = set(pool.map(run, range(processes)))
    assert transcript.count(b"BALLOON_CHANGE") > 10


def test_a_stall_that_outlasts_a_reboot_is_waited_for() -> None:
    client = make(guest=GuestConfig(used=0, cache=0), memory=64 * MiB)
    boot = client.machine.config.guest.boot_time
    client.machine.guest.stall(boot + 1)
    client.execute("balloon", value=1)
    client.execute("system_reset")
    client.advance(boot)
    word = client.machine.find_next_output()
    assert word is not None
    # Nothing is said before then: this is what advancing holds.
    client.advance(word - 1 - client.machine.now)
    assert client.named("BALLOON_CHANGE") == []
    client.advance(1)
    assert len(client.named("BALLOON_CHANGE")) == 1
