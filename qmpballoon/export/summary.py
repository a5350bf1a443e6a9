"""Results in words and figures: from reports and timelines, for all surfaces.

The command prints them, and charts and pages show them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from attrs import evolve, frozen

from qmpballoon.balloon.sampling import ANSWER_TIMEOUT
from qmpballoon.balloon.stats import GuestStats
from qmpballoon.sizes import format_size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qmpballoon.balloon import ReclaimReport
    from qmpballoon.balloon.sampling import Sample, Snapshot

__all__ = [
    "Change",
    "compare_samples",
    "compare_snapshots",
    "describe_gain",
    "describe_reclaim",
    "describe_rereads",
    "describe_timeline",
]

_SHORT: Final = 0.1  # seconds; the shortest time that is written with its figure


@frozen
class Change:
    """One of the figures of guest and host, before and after.

    Attributes:
        name: What it is of.
        before: Bytes; ``None`` if that is not known.
        after: Bytes; ``None`` if that is not known.
    """

    name: str
    before: int | None
    after: int | None

    def format(self) -> tuple[str, str, str]:
        """Return the cells of a table: before, after and the change."""
        change = _subtract(self.after, self.before)
        sign = "+" if change is not None and change > 0 else ""
        return (
            _format(self.before),
            _format(self.after),
            "" if change is None else f"{sign}{format_size(change)}",
        )


def compare_snapshots(before: Snapshot, after: Snapshot) -> list[Change]:
    """Return the figures of guest and host at two moments.

    If the guest did not answer the second time, its figures then are not known.
    """
    if _is_silent(before, after):
        after = evolve(after, stats=GuestStats())
    return _compare_figures(_list_of_snapshot(before), _list_of_snapshot(after))


def compare_samples(before: Sample, after: Sample) -> list[Change]:
    """Return the figures of guest and host at two moments, as far as samples go."""
    return _compare_figures(_list_of_sample(before), _list_of_sample(after))


def describe_reclaim(report: ReclaimReport) -> str:
    """Say what was requested, what was handed over, and whether it was given back."""
    if not report.held:
        end = "and given back"
    else:
        is_wanted = report.given_back_to is None
        end = "held" if is_wanted else "and not all of it given back"
    return (
        f"requested {format_size(report.requested)}, handed over"
        f" {format_size(report.handed_over)} in {report.seconds:.1f} s, {end}"
    )


def describe_timeline(samples: Sequence[Sample]) -> list[str]:
    """Return what was requested and what came of it, in parts for one line."""
    if not samples:
        return ["no samples"]
    first, last = samples[0], samples[-1]
    parts: list[str] = []
    targets = [sample.target for sample in samples if sample.target is not None]
    if targets:
        asked = max(first.actual - min(targets), 0)
        got = max(first.actual - min(sample.actual for sample in samples), 0)
        parts.append(
            f"requested {format_size(asked)}, handed over {format_size(got)},"
            f" {last.t - first.t:.1f} s"
        )
    for label, name in (("page cache", "disk_caches"), ("host resident", "resident")):
        before, after = getattr(first, name), getattr(last, name)
        if before is not None and after is not None:
            parts.append(f"{label} {format_size(before)} \u2192 {format_size(after)}")
    return parts


def describe_gain(report: ReclaimReport) -> str:
    """Say how much memory the host has gained for the cache that the guest lost."""
    before, after = report.before, report.after
    if _is_silent(before, after):
        return "The guest did not answer at the end: its figures are not known."
    cache = before.stats.disk_caches
    lost = _subtract(cache, after.stats.disk_caches)
    if not cache or not lost or lost < 0:
        return "The guest's page cache did not shrink."
    share = f"The guest's page cache fell by {lost / cache:.0%}"
    freed = _subtract(before.resident, after.resident)
    if freed is None:
        return f"{share}; what the host has got for it cannot be seen from here."
    if freed <= 0:
        return f"{share}, and QEMU's resident memory did not: the host has no more."
    return (
        f"{share}, and QEMU's resident memory by {freed / lost:.0%} of that: the host"
        f" has {format_size(freed)} more."
    )


def describe_rereads(report: ReclaimReport) -> str | None:
    """Say what the guest had to read again from its disks; ``None`` if not known."""
    if report.reread is None:
        return None
    if report.reread == 0:
        return "Until now the guest read nothing again from its disks."
    size = format_size(report.reread)
    return f"The guest had to read up to {size} again from its disks{_compare(report)}."


def _compare(report: ReclaimReport) -> str:
    """Compare what was read again with how fast the guest gave memory."""
    lowest = min((sample.actual for sample in report.timeline), default=0)
    times = [sample.t for sample in report.timeline if sample.actual == lowest]
    if not report.reread or not report.handed_over or not times or times[0] <= 0:
        return ""
    seconds = report.reread * times[0] / report.handed_over
    if seconds < _SHORT:
        return ": less than it gave in a tenth of a second"
    return f": as much as it gave in {seconds:.1f} s"


def _is_silent(before: Snapshot, after: Snapshot) -> bool:
    """Return whether the guest did not answer when the second snapshot was taken.

    It was waited for then. Ages are compared, as the host's clock need not be QEMU's.
    """
    old, new = before.stats.age, after.stats.age
    return old is not None and new is not None and new - old > ANSWER_TIMEOUT


def _list_of_snapshot(seen: Snapshot) -> dict[str, int | None]:
    stats = seen.stats
    return {
        "guest: page cache": stats.disk_caches,
        "guest: free": stats.free,
        "guest: available": stats.available,
        "guest: used": _count_used(stats.total, stats.available),
        "guest: size": seen.actual,
        "host: QEMU resident": seen.resident,
    }


def _list_of_sample(seen: Sample) -> dict[str, int | None]:
    return {
        "guest: page cache": seen.disk_caches,
        "guest: free": seen.free,
        "guest: available": seen.available,
        "guest: used": _count_used(seen.total, seen.available),
        "guest: size": seen.actual,
        "host: QEMU resident": seen.resident,
    }


def _compare_figures(
    before: dict[str, int | None], after: dict[str, int | None]
) -> list[Change]:
    return [Change(name, old, after[name]) for name, old in before.items()]


def _count_used(total: int | None, available: int | None) -> int | None:
    """Return what a guest uses; unknown if it says that it has more than it has."""
    used = _subtract(total, available)
    return None if used is None or used < 0 else used


def _subtract(first: int | None, second: int | None) -> int | None:
    return None if first is None or second is None else first - second


def _format(size: int | None) -> str:
    return "unknown" if size is None else format_size(size)
