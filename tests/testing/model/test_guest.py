"""A simulated guest under pressure, and one that does not tell the truth."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from talk import UNSET, Client, make

from qmpballoon.sizes import GiB, MiB
from qmpballoon.testing import SECOND, GuestConfig, Machine, MachineConfig, WorkloadStep
from qmpballoon.testing.model.memory import PAGE


def ask(client: Client) -> dict[str, int]:
    """Have the guest answer now, if it does; return the last answer."""
    where = {"path": "balloon0", "property": "guest-stats-polling-interval"}
    for seconds in (0, 1):
        client.execute("qom-set", **where, value=seconds)
    client.advance(SECOND // 100)
    return {name.removeprefix("stat-"): value for name, value in client.stats().items()}


def squeezed(
    target: int, swap: int = 0, refaults: int = 0
) -> tuple[Client, dict[str, int]]:
    """Return a guest of 1 GiB, half of it cache, at a size, and its counters."""
    config = GuestConfig(used=400 * MiB, cache=200 * MiB, swap=swap, refaults=refaults)
    client = make(guest=config, memory=GiB)
    before = ask(client)
    client.execute("balloon", value=target)
    client.advance(60 * SECOND)
    after = ask(client)
    return client, {name: after[name] - before[name] for name in after}


def test_dropping_cache_is_nobodys_wait() -> None:
    _, risen = squeezed(500 * MiB)
    assert risen["disk-caches"] < -100 * MiB
    assert risen["async-scans"] == risen["async-reclaims"] == -risen["disk-caches"]
    waits = ("direct-scans", "direct-reclaims", "alloc-stalls", "major-faults")
    assert [risen[name] for name in waits] == [0] * 4
    assert risen["swap-out"] == 0


def test_it_gives_slower_when_little_is_left() -> None:
    client = make(guest=GuestConfig(used=400 * MiB, cache=400 * MiB), memory=GiB)
    client.execute("balloon", value=300 * MiB)
    memory = client.machine.guest.memory
    while memory.spare:
        client.advance(SECOND // 100)
    began, times = client.machine.now, []
    for left in (100 * MiB, 20 * MiB, 0):
        size = memory.reclaimable - left
        while memory.reclaimable >= left + PAGE:
            client.advance(SECOND // 1000)
        times.append((client.machine.now - began) / size)
        began = client.machine.now
    assert times[0] == pytest.approx(times[1], rel=0.1)
    assert times[2] > 2 * times[1]


def test_without_swap_a_guest_ends_at_its_floor() -> None:
    client, risen = squeezed(300 * MiB)
    assert client.machine.guest.at_floor
    assert risen["alloc-stalls"] > 100
    assert risen["swap-out"] == risen["direct-reclaims"] == 0


def test_with_swap_it_gives_on_slower_and_suffers() -> None:
    client, risen = squeezed(300 * MiB, swap=512 * MiB)
    assert client.execute("query-balloon")["actual"] == 300 * MiB
    out = risen["swap-out"]
    assert out == client.machine.guest.memory.swapped > 150 * MiB
    assert risen["swap-in"] == risen["major-faults"] == 0
    assert risen["alloc-stalls"] >= out // MiB
    assert risen["direct-scans"] > risen["direct-reclaims"] > out // 4
    assert risen["async-scans"] > risen["async-reclaims"] > out // 4


def test_swap_is_as_fast_as_it_is_said_to_be() -> None:
    guest = GuestConfig(used=600 * MiB, cache=0, swap=GiB, swap_rate=50 * MiB)
    client = make(guest=guest, memory=GiB)
    client.execute("balloon", value=400 * MiB)
    while client.machine.guest.memory.swapped_out == 0:
        client.advance(SECOND // 100)
    sizes = []
    for _ in range(5):
        client.advance(SECOND // 5)
        sizes.append(client.execute("query-balloon")["actual"])
    steps = [earlier - later for earlier, later in pairwise(sizes)]
    assert all(step == pytest.approx(10 * MiB, abs=2 * MiB) for step in steps)


def test_busy_processes_read_back_what_was_swapped_out() -> None:
    idle, quiet = squeezed(400 * MiB, swap=512 * MiB)
    busy, risen = squeezed(400 * MiB, swap=512 * MiB, refaults=25)
    assert risen["swap-in"] > 0
    assert risen["swap-out"] == quiet["swap-out"] + risen["swap-in"]
    assert risen["major-faults"] > 100

    for client in (idle, busy):
        client.execute("balloon", value=GiB)
        client.advance(60 * SECOND)
    assert idle.machine.guest.memory.swapped == quiet["swap-out"]
    assert busy.machine.guest.memory.swapped == 0
    assert ask(busy)["swap-in"] == ask(busy)["swap-out"]


def test_a_burst_is_swapped_for_before_a_process_is_killed() -> None:
    burst = WorkloadStep(SECOND, 600 * MiB)
    killed = []
    for swap in (0, 512 * MiB):
        guest = GuestConfig(used=400 * MiB, cache=0, swap=swap, workload=(burst,))
        client = make(guest=guest, memory=GiB)
        client.advance(2 * SECOND)
        killed.append(client.machine.guest.oom_kills)
    assert killed == [1, 0]


@given(looks=st.lists(st.integers(1, 30 * SECOND), max_size=20))
def test_looking_at_a_guest_that_swaps_makes_no_difference(looks: list[int]) -> None:
    ends = []
    for moments in ([], sorted({*looks})):
        guest = GuestConfig(
            used=400 * MiB, cache=100 * MiB, swap=GiB, swap_rate=30 * MiB, refaults=30
        )
        client = make(guest=guest, memory=GiB)
        client.execute("balloon", value=350 * MiB)
        for moment in moments:
            client.machine.advance(moment)
        client.machine.advance(30 * SECOND)
        client.execute("balloon", value=GiB)
        client.machine.advance(32 * SECOND)
        ends.append((ask(client), client.machine.guest.memory))
    assert ends[0] == ends[1]


def test_counters_begin_anew_with_a_reboot() -> None:
    client, risen = squeezed(300 * MiB, swap=512 * MiB)
    assert risen["alloc-stalls"] > 0
    client.execute("balloon", value=GiB)
    client.execute("system_reset")
    client.advance(10 * SECOND)
    stats = ask(client)
    assert stats["alloc-stalls"] == stats["swap-out"] == stats["oom-kills"] == 0


# What it says


def test_a_guest_that_falls_silent_keeps_its_last_answer() -> None:
    client = make(guest=GuestConfig(silent_after=10 * SECOND))
    client.advance(9 * SECOND)
    ask(client)
    client.advance(2 * SECOND)
    answer = client.execute("qom-get", path="balloon0", property="guest-stats")
    client.advance(10 * SECOND)
    ask(client)
    later = client.execute("qom-get", path="balloon0", property="guest-stats")
    assert later == answer


def test_a_frozen_guest_answers_with_what_it_said_once() -> None:
    client = make(memory=2 * GiB, guest=GuestConfig(frozen_after=10 * SECOND))
    client.advance(11 * SECOND)
    frozen = ask(client)
    client.execute("balloon", value=GiB)
    client.advance(20 * SECOND)
    assert ask(client) == frozen
    answer = client.execute("qom-get", path="balloon0", property="guest-stats")
    epoch = client.machine.config.epoch // SECOND
    assert answer["last-update"] == epoch + 31


def test_a_lying_guest_says_what_it_was_told_to() -> None:
    claims = {"available-memory": 15 * GiB, "disk-caches": None}
    client = make(memory=2 * GiB, guest=GuestConfig(claims=claims))
    stats = ask(client)
    assert stats["available-memory"] == 15 * GiB
    assert stats["disk-caches"] == UNSET
    assert 0 < stats["free-memory"] < 2 * GiB


def test_no_cache_is_so_large_that_the_kernel_has_nothing_in_reserve() -> None:
    machine = Machine(MachineConfig(memory=GiB, guest=GuestConfig(cache=2 * GiB)))
    memory = machine.guest.memory
    assert memory.cache > GiB // 2
    assert memory.free >= memory.watermark
