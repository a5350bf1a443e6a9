"""Fresh statistics, samples taken many times a second, and what they add up to.

QEMU's polling interval is a whole number of seconds, but QEMU asks the guest at once
when the interval goes from 0 to anything else. So :func:`refresh_stats` and
:class:`Sampler` set the interval to 0 and back for each answer they want. On an idle
guest this costs next to nothing up to 25 times a second.

QEMU records the time of an answer in whole seconds, too. So an answer counts as new if
any of its figures has changed, or if it was given in another second. A guest at rest
that has answered in this second is therefore asked again in the next one: until then
nothing tells its new answer from none.

Source: ``balloon_stats_set_poll_interval`` in QEMU's hw/virtio/virtio-balloon.c; QAPI
reference, ``qom-set``.
"""

from __future__ import annotations

import math
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

from attrs import asdict, frozen

from qmpballoon._checks import require_count, require_seconds
from qmpballoon.balloon.device import read_disks
from qmpballoon.balloon.stats import GuestStats
from qmpballoon.errors import StatsTimeout
from qmpballoon.monitor import make_error

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Iterator
    from typing import Self

    from qmpballoon.balloon.device import Device
    from qmpballoon.balloon.results import Phase, Stage

__all__ = [
    "ANSWER_TIMEOUT",
    "KEPT",
    "Progress",
    "Sample",
    "Sampler",
    "Snapshot",
    "Timeline",
    "find_recent_stats",
    "open_sampler",
    "refresh_stats",
    "watch",
]

ANSWER_TIMEOUT: Final = 3.0
"""Seconds to wait for a guest's answer. A guest that is well takes milliseconds; one
that is short of memory can take a second or two."""

KEPT: Final = "kept"
"""The mark of the first sample after ``keep`` has taken the memory."""

_ANSWER_POLL: Final = 0.01  # seconds between two polls for the guest's answer
# How long to pause between two polls, as a share of how long the guest has been silent.
_PATIENCE: Final = 0.5
# Seconds after which a guest is asked again, if its answer cannot be told from its last
# one by the host's clock: until its answer is of another second.
_ASK_AGAIN: Final = 0.5
# Seconds. A healthy guest has answered after this time.
_GRACE: Final = 0.1
_SMALLEST: Final = 2  # samples: the first and the last
# Seconds after which an answer about the disks counts as slow; a thousand disks take
# 0.03. After a slow answer the disks are left alone for a multiple of the time that it
# took, and for a limited number of seconds.
_SLOW_READS: Final = 0.01
_READS_PAUSE: Final = 4.0
_LONGEST_READS_PAUSE: Final = 1.0


@frozen
class Sample:
    """Guest, balloon and host at one moment; what is not known is ``None``.

    Attributes:
        t: Seconds since the beginning.
        target: Bytes of the target that we set.
        actual: Bytes the guest has.
        total: Bytes of memory that the guest's kernel manages.
        free: Bytes that nothing in the guest uses.
        available: Bytes the guest could have without swapping.
        disk_caches: Bytes of the guest's page cache.
        resident: Bytes of the host's memory that QEMU holds.
        disk_reads: Bytes that the VM has read from its disks since the beginning.
        age: Seconds since the guest reported ``total``, ``free``, ``available`` and
            ``disk_caches``; QEMU tells that time to the second. It grows from sample to
            sample while the guest does not answer.
        mark: A word on what happened then, such as ``"stalled"``; usually ``None``.
    """

    t: float
    target: int | None
    actual: int
    total: int | None = None
    free: int | None = None
    available: int | None = None
    disk_caches: int | None = None
    resident: int | None = None
    disk_reads: int | None = None
    age: float | None = None
    mark: str | None = None

    @classmethod
    def of(
        cls,
        t: float,
        stats: GuestStats,
        *,
        target: int | None,
        actual: int,
        resident: int | None,
        disk_reads: int | None,
        mark: str | None = None,
    ) -> Sample:
        """Make a sample of a guest's statistics and the sizes of that moment."""
        return cls(
            t=t,
            target=target,
            actual=actual,
            total=stats.total,
            free=stats.free,
            available=stats.reclaimable,
            disk_caches=stats.disk_caches,
            resident=resident,
            disk_reads=disk_reads,
            age=stats.age,
            mark=mark,
        )

    def to_json(self) -> dict[str, object]:
        """Return it as the command prints it: bytes and seconds."""
        return asdict(self)


@frozen
class Progress:
    """The progress of a call that moves a balloon, for its ``on_progress`` callback.

    ``resize``, ``reclaim`` and ``keep`` call the callback with it several times a
    second. If the callback raises an exception, the call ends as if it were cancelled,
    and passes the exception on.

    Attributes:
        seconds: Seconds since the guest began to be moved.
        stage: What the call does: ``"inflating"``, ``"keeping"`` or ``"deflating"``.
        phase: The state of the balloon on its way to ``target``.
        before: Bytes the guest had when the stage began.
        target: Bytes it should have when the stage ends. For ``reclaim`` this is the
            planned size; the guest may turn out to be able to spare less.
        actual: Bytes it has.
        rate: Bytes a second by which it approaches its target.
        time_left: Seconds until the target is reached at that rate. While memory is
            kept: seconds until it is given back at the latest. ``None`` if that is not
            known.
        sample: Guest, balloon and host at this moment. While the guest is not watched,
            for example while ``resize`` enlarges it, its own figures are ``None``.
    """

    seconds: float
    stage: Stage
    phase: Phase
    before: int
    target: int
    actual: int
    rate: float
    time_left: float | None
    sample: Sample


class Timeline:  # noqa: PLW1641 - it changes, so it is no key of a dictionary
    """Samples in the order of time, in bounded memory.

    When there are more than ``capacity``, every second sample is dropped. The first and
    the last are kept. So are the marked ones, unless they make up half of the capacity
    or more. So the timeline of a long run is coarser, but still covers all of it.

    Args:
        capacity: The largest number of samples to hold, 2 or more.
    """

    def __init__(self, capacity: int = 10_000) -> None:
        require_count(capacity, "capacity", "samples", minimum=_SMALLEST)
        self._capacity = capacity
        self._samples: list[Sample] = []

    def __repr__(self) -> str:
        """Return how many samples there are, and over which time."""
        seconds = self._samples[-1].t - self._samples[0].t if self._samples else 0.0
        return f"<Timeline of {len(self._samples)} samples in {seconds:.1f} s>"

    def __eq__(self, other: object) -> bool:
        """Return whether both have the same samples."""
        if not isinstance(other, Timeline):
            return NotImplemented
        return self._samples == other._samples

    def __len__(self) -> int:
        """Return how many samples there are."""
        return len(self._samples)

    def __iter__(self) -> Iterator[Sample]:
        """Iterate over the samples in the order of time."""
        return iter(self._samples)

    def __getitem__(self, index: int) -> Sample:
        """Return one sample; negative indexes count from the end."""
        return self._samples[index]

    def add(self, sample: Sample) -> None:
        """Append a sample.

        Raises:
            ValueError: The sample is older than the last one.
        """
        if self._samples and sample.t < self._samples[-1].t:
            raise ValueError(f"a sample of {sample.t} s is older than the last one")
        self._samples.append(sample)
        if len(self._samples) > self._capacity:
            self._thin()

    def _thin(self) -> None:
        """Drop every second sample that need not stay."""
        samples = self._samples
        marked = sum(sample.mark is not None for sample in samples)
        few = marked < self._capacity // 2  # they fit in, beside half of the others
        kept = [
            sample
            for index, sample in enumerate(samples[:-1])
            if index % 2 == 0 or (few and sample.mark is not None)
        ]
        self._samples = [*kept, samples[-1]]

    def to_json(self) -> list[dict[str, object]]:
        """Return the samples as the command prints them."""
        return [sample.to_json() for sample in self._samples]


@frozen
class Snapshot:
    """Guest and host at one moment, with all statistics.

    Attributes:
        stats: The guest's statistics.
        actual: Bytes the guest had.
        resident: Bytes of host memory that QEMU held; ``None`` if that is not known.
    """

    stats: GuestStats
    actual: int
    resident: int | None

    def to_json(self) -> dict[str, object]:
        """Return it as the command prints it."""
        return {
            "stats": self.stats.to_json(),
            "actual": self.actual,
            "resident": self.resident,
        }


class _ReadCounter:
    """Adds up what a VM reads from its disks, while disks come and go.

    The sum never falls: not when a disk is unplugged, loses its medium, or resets its
    counter. A disk that is new, or has a new medium, counts from then on. With
    thousands of disks QEMU's answer takes a while, during which the guest is not
    sampled. So the longer an answer takes, the less often it is asked for.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._due = -math.inf
        self._last: dict[str, int] = {}
        self._total: int | None = None

    async def read(self) -> int | None:
        """Return bytes since the first call; ``None`` if there was no disk so far."""
        monitor = self._device.monitor
        asked = monitor.now()
        if asked < self._due:
            return self._total
        disks = await read_disks(self._device)
        if (took := monitor.now() - asked) > _SLOW_READS:
            pause = min(took * _READS_PAUSE, _LONGEST_READS_PAUSE)
            self._due = monitor.now() + pause
        now = {name: reads.bytes for name, reads in disks.items()}
        if now:
            # What was read before a disk was first seen does not count.
            more = (size - self._last.get(name, size) for name, size in now.items())
            self._total = (self._total or 0) + sum(max(0, size) for size in more)
        self._last = now
        return self._total


class Sampler:
    """Takes samples of guest, balloon and host.

    Get one from :meth:`~qmpballoon.balloon.Balloon.sampler`::

        async with balloon.sampler() as sampler:
            while True:
                await balloon.monitor.sleep(0.5)
                print(await sampler.take())

    Args:
        device: The balloon to sample.
        interval: The statistics interval in seconds to set while sampling.

    Attributes:
        stats: The guest's last answer.
        basis: The largest size in bytes that the guest had between being asked for
            that answer and giving it. If the balloon has grown since then, both the
            guest's size and what it has available are smaller by as much.
        start: The time of the monitor's clock at the beginning, in seconds.
        silence: Seconds since the last answer that is known to be new; 0 if the last
            sample had one.
    """

    def __init__(self, device: Device, interval: int) -> None:
        self.stats: GuestStats = GuestStats()
        self.basis: int = 0
        self.start: float = device.monitor.now()
        self.silence: float = 0.0
        self._device = device
        self._interval = interval
        self._answered_at = self.start
        self._largest_since_asked = 0
        self._reads = _ReadCounter(device)

    async def begin(self) -> None:
        """Ask the guest for the first time."""
        self.stats = await self._device.stats()
        self.basis = self._largest_since_asked = await self._device.actual()
        await self.count_reads()
        await self._device.request_stats(self._interval)

    async def take(self, mark: str | None = None) -> Sample:
        """Read the guest's last answer and its size, and ask it again.

        Args:
            mark: A word on what happens now, for the sample.

        Raises:
            NoBalloonDevice: The VM has no balloon, or it was unplugged.

        Cancellation: takes effect at once; the guest may or may not have been asked.
        """
        device = self._device
        stats = await device.stats()
        actual = await device.actual()
        self._note_answer(stats, actual, device.monitor.now())
        sample = Sample.of(
            device.monitor.now() - self.start,
            stats,
            target=device.target,
            actual=actual,
            resident=device.resident(),
            disk_reads=await self.count_reads(),
            mark=mark,
        )
        await device.request_stats(self._interval)
        return sample

    async def count_reads(self) -> int | None:
        """Return the bytes that the VM has read from its disks since the beginning.

        Returns:
            The bytes; ``None`` if the VM has had no disk with a medium.

        Cancellation: takes effect at once and changes nothing.
        """
        return await self._reads.read()

    def _note_answer(self, stats: GuestStats, actual: int, now: float) -> None:
        """Note whether the guest has answered, and for which size its answer holds."""
        # A reset erases the statistics, which is not an answer.
        if stats.last_update is not None and not stats.is_same_sample(self.stats):
            self._answered_at = now
            # A late answer can belong to any request since the last answer, and the
            # guest may have grown before it answered. The largest size since the first
            # of these requests is the cautious choice: with it the guest appears to use
            # the most memory.
            self.basis = max(self._largest_since_asked, actual)
            self._largest_since_asked = actual
        self._largest_since_asked = max(self._largest_since_asked, actual)
        self.silence = now - self._answered_at
        self.stats = stats


@asynccontextmanager
async def open_sampler(device: Device) -> AsyncGenerator[Sampler, None]:
    """Yield a sampler; see :meth:`~qmpballoon.balloon.Balloon.sampler`."""
    async with device.restore_stats_interval() as interval:
        sampler = Sampler(device, interval)
        await sampler.begin()
        yield sampler


async def refresh_stats(
    device: Device, *, timeout: float = ANSWER_TIMEOUT
) -> GuestStats:
    """Ask for new statistics; see :meth:`~qmpballoon.balloon.Balloon.refresh_stats`."""
    require_seconds(timeout, "timeout")
    async with device.restore_stats_interval() as interval:
        stats = await _ask(device, interval, timeout)
    if stats is None:
        why = await _explain_silence(device, timeout)
        raise make_error(StatsTimeout, device.monitor, why)
    return stats


async def find_recent_stats(device: Device, timeout: float) -> GuestStats | None:
    """Ask for new statistics; those of less than a second ago serve as well.

    So this does not wait, as :func:`refresh_stats` does, until the answer of a guest at
    rest can be told from its last one.

    Args:
        device: The balloon.
        timeout: Seconds to wait for a guest that has not answered recently.

    Returns:
        The statistics; ``None`` if the guest does not answer.

    Cancellation: the interval is restored.
    """
    last = await device.stats()
    is_recent = last.age is not None and last.age < 1
    if is_recent:
        timeout = min(timeout, _GRACE)
    async with device.restore_stats_interval() as interval:
        stats = await _ask(device, interval, timeout)
    return stats or (last if is_recent else None)


def watch(device: Device, interval: float) -> AsyncIterator[Sample]:
    """Iterate over samples; see :meth:`~qmpballoon.balloon.Balloon.watch`."""
    return _Watch(device, require_seconds(interval, "interval"))


class _Watch:
    """An iterator over samples that leaves nothing behind between two of them."""

    def __init__(self, device: Device, interval: float) -> None:
        if not interval > 0:
            raise ValueError(f"interval is {interval}: it must be above 0 seconds")
        self._device = device
        self._interval = interval
        self._start: float | None = None
        self._due = 0.0
        self._reads = _ReadCounter(device)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Sample:
        device, monitor = self._device, self._device.monitor
        if self._start is None:
            self._start = self._due = monitor.now()
        await monitor.sleep(self._due - monitor.now())
        timeout = min(self._interval, ANSWER_TIMEOUT)
        await find_recent_stats(device, timeout)
        sample = Sample.of(
            monitor.now() - self._start,
            await device.stats(),
            target=device.target,
            actual=await device.actual(),
            resident=device.resident(),
            disk_reads=await self._reads.read(),
        )
        self._due = max(self._due + self._interval, monitor.now())
        return sample


async def _ask(device: Device, interval: int, timeout: float) -> GuestStats | None:
    """Ask the guest until it gives a new answer; ``None`` if it does not in time."""
    monitor = device.monitor
    deadline = monitor.now() + timeout
    before = await device.stats()
    while (now := monitor.now()) < deadline:
        await device.request_stats(interval)
        end = min(now + _choose_patience(device.wall_time()), deadline)
        stats = await _await_answer(device, before, end)
        if stats is not None:
            return stats
    return None


def _choose_patience(wall_time: float | None) -> float:
    """Return how many seconds to wait for an answer, before the guest is asked again.

    An answer with the figures of the last one can only be told from it in another
    second. So the guest is asked again as soon as the second is over.
    """
    if wall_time is None:
        return _ASK_AGAIN
    return min(_ASK_AGAIN, 1 - wall_time % 1 + _ANSWER_POLL)


async def _await_answer(
    device: Device, before: GuestStats, end: float
) -> GuestStats | None:
    """Wait until the guest's answer is not the one of before; ``None``: not by then."""
    monitor = device.monitor
    began = monitor.now()
    while (now := monitor.now()) < end:
        # A guest that has not answered at once is looked at less often.
        pause = max(_ANSWER_POLL, (now - began) * _PATIENCE)
        await monitor.sleep(min(pause, end - now))
        stats = await device.stats()
        if stats.last_update is not None and not stats.is_same_sample(before):
            return stats
    return None


async def _explain_silence(device: Device, timeout: float) -> str:
    """Say why a guest did not answer, as far as that is visible from outside."""
    stopped = await device.why_stopped()
    if stopped is not None:
        why = stopped
    elif (await device.stats()).last_update is not None:
        why = "it did before: the guest hangs, or its balloon driver was unloaded"
    elif (await device.query()).ballooned:
        why = (
            "its balloon works, but its driver reports no statistics: on Windows start"
            " the Balloon Service"
        )
    else:
        why = (
            "it never did: load virtio_balloon in the guest (on Windows install"
            " the Balloon Service too)"
        )
    return f"the guest did not report its memory within {timeout:g} s; {why}"
