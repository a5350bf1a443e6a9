"""What a simulated guest reads again has the shape that was measured on real guests."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qmpballoon.sizes import GiB, MiB
from qmpballoon.testing import SECOND, FileReads, GuestConfig, Machine, MachineConfig
from qmpballoon.testing.strategies import file_reads, workloads

if TYPE_CHECKING:
    from qmpballoon.testing import WorkloadStep

LOOP = FileReads("loop", 400 * MiB, rate=400 * MiB)
"""A loop over files, as on the guest of 2 GiB that was measured."""


def make_guest(*files: FileReads, cache: int = 1202 * MiB) -> Machine:
    guest = GuestConfig(cache=cache, files=files)
    return Machine(MachineConfig(memory=2 * GiB, disks=1, guest=guest))


def read_at(machine: Machine, size: int) -> tuple[int, float]:
    """Bring a guest to a size; return its cache, and bytes a second that it reads."""
    machine.set_target(size)
    machine.advance(machine.now + 4 * SECOND)
    assert machine.actual == size
    before = machine.guest.read
    machine.advance(machine.now + 2 * SECOND)
    return machine.guest.memory.cache, (machine.guest.read - before) / 2


def sweep(machine: Machine, sizes: range) -> list[tuple[int, float]]:
    return [read_at(machine, size * MiB) for size in sizes]


def test_a_loop_has_an_edge_where_real_guests_have_it() -> None:
    seen = sweep(make_guest(LOOP), range(1216, 320, -64))
    quiet = min(cache for cache, rate in seen if rate == 0)
    reading = max(cache for cache, rate in seen if rate > 0)
    # Measured: no reads with 402 MiB of cache, and reads at once below.
    assert 400 * MiB <= quiet <= 402 * MiB + 64 * MiB
    assert reading < quiet
    assert all(rate >= 170 * MiB for cache, rate in seen if cache < quiet)


def test_small_steps_back_change_nothing_until_all_of_a_loop_fits() -> None:
    machine = make_guest(LOOP)
    read_at(machine, 420 * MiB)
    seen = sweep(machine, range(484, 804, 64))
    fits = min(cache for cache, rate in seen if rate == 0)
    assert 400 * MiB <= fits <= 412 * MiB * 11 // 10
    rates = [rate for _, rate in seen if rate > 0]
    assert len(rates) >= 2
    assert max(rates) <= 1.1 * min(rates)


def test_a_loop_that_fits_again_is_read_once_from_the_disk() -> None:
    machine = make_guest(LOOP)
    read_at(machine, 420 * MiB)
    before = machine.guest.read
    _, rate = read_at(machine, 2 * GiB)
    assert rate == 0
    assert machine.guest.read - before <= LOOP.size


def test_random_reads_fall_off_gradually() -> None:
    machine = make_guest(FileReads("zipf", 400 * MiB, rate=100 * MiB))
    rates = [rate for _, rate in sweep(machine, range(768, 320, -64))]
    assert rates[0] == 0
    assert rates == sorted(rates)
    assert all(later < 30 * MiB + rate for rate, later in pairwise(rates))


@pytest.mark.parametrize("size", [2 * GiB, 640 * MiB])
def test_a_stream_reads_at_its_rate_whatever_the_cache(size: int) -> None:
    machine = make_guest(FileReads("stream", MiB, rate=50 * MiB))
    _, rate = read_at(machine, size)
    assert rate == 50 * MiB


def test_a_stream_drops_nothing_that_is_read() -> None:
    machine = make_guest(LOOP, FileReads("stream", MiB, rate=50 * MiB))
    assert read_at(machine, 2 * GiB)[1] == 50 * MiB
    assert read_at(machine, 900 * MiB)[1] == 50 * MiB


def test_nothing_is_read_faster_than_the_disk_is() -> None:
    machine = make_guest(FileReads("loop", 400 * MiB, rate=4 * GiB))
    assert read_at(machine, 420 * MiB)[1] == GuestConfig().disk_rate


def test_files_are_read_between_their_beginning_and_their_end() -> None:
    late = FileReads("loop", 200 * MiB, 5 * MiB, begin=10 * SECOND, end=30 * SECOND)
    machine = make_guest(late)
    machine.advance(9 * SECOND)
    assert machine.guest.read == 0
    machine.advance(100 * SECOND)
    assert machine.guest.read == 100 * MiB


def test_a_guest_that_was_reset_reads_anew() -> None:
    machine = make_guest(LOOP)
    machine.advance(10 * SECOND)
    assert machine.guest.read == 0
    machine.reset(by_guest=True)
    machine.advance(30 * SECOND)
    assert machine.guest.read == LOOP.size


@settings(max_examples=40)
@given(
    files=file_reads(), workload=workloads(), targets=st.lists(st.integers(64, 2048))
)
def test_files_keep_the_sums_right(
    files: tuple[FileReads, ...], workload: tuple[WorkloadStep, ...], targets: list[int]
) -> None:
    guest = GuestConfig(cache=GiB, files=files, workload=workload)
    machine = Machine(MachineConfig(memory=2 * GiB, guest=guest))
    for target in targets:
        machine.set_target(target * MiB)
        before = machine.guest.read
        machine.advance(machine.now + 3 * SECOND)
        memory = machine.guest.memory
        assert memory.pinned <= memory.cache
        assert memory.used + memory.cache + memory.free <= memory.total
        # Reads that are due now are of the time to come.
        added = sum(step.delta for step in workload if step.delta > 0)
        most = guest.disk_rate * 31 // 10 + added + 8 * len(workload) * MiB
        assert 0 <= machine.guest.read - before <= most
