"""A reclaim says what the guest reads again, and what it reads anyway is not that."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulation import make_balloon, run

from qmpballoon.balloon._pressure import BASELINE_PERIOD
from qmpballoon.balloon._rereads import RereadMeter
from qmpballoon.balloon.guard import Guard
from qmpballoon.balloon.results import ReadRates
from qmpballoon.balloon.sampling import Sample
from qmpballoon.sizes import GiB, MiB
from qmpballoon.testing import FileReads, GuestConfig, Machine, MachineConfig
from qmpballoon.testing.strategies import file_reads

if TYPE_CHECKING:
    from qmpballoon.balloon import ReclaimReport


def reclaim(*files: FileReads, disks: int = 1, hold: bool = True) -> ReclaimReport:
    guest = GuestConfig(cache=1200 * MiB, files=files)
    config = MachineConfig(memory=2 * GiB, disks=disks, guest=guest)
    return run(make_balloon(Machine(config)).reclaim(hold=hold))


@pytest.mark.parametrize("hold", [True, False])
def test_a_cold_guest_pays_nothing(*, hold: bool) -> None:
    report = reclaim(hold=hold)
    assert report.reread == 0
    assert report.reads is not None
    reads = (report.reads.before, report.reads.during, report.reads.after)
    assert reads == (0, 0, 0)


@pytest.mark.parametrize("hold", [True, False])
def test_a_loop_that_is_cut_is_read_again(*, hold: bool) -> None:
    rate = 400 * MiB
    report = reclaim(FileReads("loop", 400 * MiB, rate), hold=hold)
    assert report.reads is not None
    assert report.reads.before == 0
    assert 0 < (report.reads.during or 0) <= 1.5 * rate
    assert (report.reread or 0) > 10 * MiB
    cache = [sample.disk_caches or 0 for sample in report.timeline]
    assert (report.reread or 0) <= cache[0] - min(cache)
    document = report.to_json()
    assert document["reread"] == report.reread
    assert document["reads"] == {
        "before": report.reads.before,
        "during": report.reads.during,
        "after": report.reads.after,
    }


def test_a_vm_without_disks_pays_what_nobody_knows() -> None:
    report = reclaim(disks=0)
    assert (report.reads, report.reread) == (None, None)
    assert report.to_json()["reads"] is None


def measure(*figures: tuple[float, int | None, int, bool]) -> RereadMeter:
    """Return a meter that has seen samples: seconds, MiB read, MiB cached, taking."""
    meter = RereadMeter()
    for seconds, read, cache, taking in figures:
        read_bytes = None if read is None else read * MiB
        sample = Sample(
            # It has lost more than cache, which is no reason to read anything.
            *(seconds, None, 2 * cache * MiB + GiB),
            disk_caches=cache * MiB,
            disk_reads=read_bytes,
        )
        meter.observe(sample, taking=taking)
    return meter


def test_a_stream_that_was_there_before_is_not_ours() -> None:
    meter = measure(
        *((0.0, 0, 900, True), (0.25, 25, 900, True), (1.25, 125, 400, True)),
        (3.25, 325, 400, False),
    )
    rate = 100 * MiB
    assert meter.rates == ReadRates(before=rate, during=rate, after=rate)
    assert meter.reread == 0


@pytest.mark.parametrize(
    ("kind", "is_short"), [(None, True), ("stream", False), ("loop", True)]
)
def test_a_guest_that_reads_nothing_is_not_watched_for_long(
    kind: Literal["loop", "stream"] | None, *, is_short: bool
) -> None:
    files = () if kind is None else (FileReads(kind, 100 * MiB, 200 * MiB),)
    guest = GuestConfig(cache=1730 * MiB, files=files)
    config = MachineConfig(memory=2 * GiB, disks=1, guest=guest)
    samples = run(make_balloon(Machine(config)).reclaim(hold=True)).timeline
    unused = (samples[0].free or 0) - Guard().compute_limits(2 * GiB).headroom
    cached = 2 * GiB - unused - 4 * MiB
    asked_for_cache = next(x for x in samples if x.target and x.target < cached)
    assert (asked_for_cache.t < BASELINE_PERIOD) is is_short


def test_what_a_guest_reads_as_soon_as_cache_is_taken_is_not_its_own() -> None:
    meter = measure((0.0, 0, 900, True), (0.1, 0, 900, True))
    meter.end_baseline()
    for t, read, cache in ((0.2, 40, 400), (1.1, 400, 400)):
        sample = Sample(t, None, GiB, disk_caches=cache * MiB, disk_reads=read * MiB)
        meter.observe(sample, taking=True)
    assert meter.rates == ReadRates(before=0, during=400 * MiB, after=None)
    assert meter.reread == 400 * MiB


def test_what_is_read_beyond_that_is_up_to_what_was_lost() -> None:
    begin = ((0.0, 0, 900, True), (0.25, 25, 900, True))
    assert measure(*begin, (1.25, 155, 400, True)).reread == 30 * MiB
    assert measure(*begin, (1.25, 9000, 400, True)).reread == 500 * MiB
    # What was lost stays lost when the cache grows again.
    last = ((1.25, 125, 400, True), (2.25, 9000, 900, False))
    assert measure(*begin, *last).reread == 500 * MiB


def test_without_statistics_the_size_says_what_was_lost() -> None:
    meter = RereadMeter()
    for t, size, read in ((0.0, 2 * GiB, 0), (1.0, GiB, 3 * GiB)):
        meter.observe(Sample(t, None, size, disk_reads=read), taking=True)
    assert meter.reread == GiB


def test_rates_without_time_are_not_known() -> None:
    assert measure((0.0, None, 9, True)).rates is None
    assert measure((0.0, 0, 9, True)).rates == ReadRates(None, None, None)
    assert measure((0.0, 0, 9, True), (0.0, 1, 9, False)).reread == 0


@settings(max_examples=30)
@given(files=file_reads(), hold=st.booleans())
def test_the_price_is_within_what_was_read_and_lost(
    files: tuple[FileReads, ...], *, hold: bool
) -> None:
    report = reclaim(*files, hold=hold)
    if report.outcome == "refused":
        return
    last = report.timeline[-1].disk_reads
    assert last is not None
    assert report.reread is not None
    assert 0 <= report.reread <= last
    cache = [sample.disk_caches or 0 for sample in report.timeline]
    assert report.reread <= cache[0] - min(cache)
    assert report.reads is not None
    for rate in (report.reads.before, report.reads.during, report.reads.after):
        assert rate is None or 0 <= rate < math.inf
