"""What a page says besides its charts, from reports and results."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from attrs import field, frozen

from qmpballoon.export.summary import (
    Change,
    compare_samples,
    compare_snapshots,
    describe_gain,
    describe_reclaim,
    describe_rereads,
    describe_timeline,
)
from qmpballoon.sizes import format_size

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from qmpballoon.balloon import Guard, ReclaimReport, ResizeResult
    from qmpballoon.balloon.sampling import Timeline

__all__ = ["Facts", "list_settings"]


def _freeze_changes(changes: Sequence[Change]) -> tuple[Change, ...]:
    return tuple(changes)


def _freeze_texts(texts: Sequence[str]) -> tuple[str, ...]:
    return tuple(texts)


@frozen(kw_only=True)
class Facts:
    """What a page says besides its charts.

    Attributes:
        sentence: What happened, below the heading.
        changes: The table of before and after.
        remarks: What it brought, and what it cost; sentences.
        settings: Under which limits it was done: names and values.
    """

    sentence: str
    changes: Sequence[Change] = field(default=(), converter=_freeze_changes)
    remarks: Sequence[str] = field(default=(), converter=_freeze_texts)
    settings: Mapping[str, str] = field(factory=dict[str, str], hash=False)

    @classmethod
    def of_reclaim(
        cls, report: ReclaimReport, settings: Mapping[str, str] | None = None
    ) -> Facts:
        """Say what came of a reclaim.

        Args:
            report: The reclaim's.
            settings: Such as :func:`list_settings` returns.
        """
        reason = f"{report.outcome}: {report.reason}"
        if report.outcome == "refused":
            return cls(sentence=reason, settings=settings or {})
        rereads = describe_rereads(report)
        return cls(
            sentence=_make_sentence(f"{describe_reclaim(report)}; {reason}"),
            changes=compare_snapshots(report.before, report.after),
            remarks=[
                describe_gain(report),
                *([] if rereads is None else [rereads]),
                *_describe_rates(report),
            ],
            settings=settings or {},
        )

    @classmethod
    def of_resize(
        cls,
        result: ResizeResult,
        timeline: Timeline,
        settings: Mapping[str, str] | None = None,
    ) -> Facts:
        """Say what came of a resize.

        Args:
            result: The resize's.
            timeline: The samples that its ``on_progress`` was given.
            settings: Such as :func:`list_settings` returns.
        """
        sentence = (
            f"requested {format_size(result.requested)}, {result.outcome}:"
            f" {format_size(result.before)} \u2192 {format_size(result.actual)} in"
            f" {result.seconds:.1f} s"
        )
        about = cls.of_timeline(timeline)
        return cls(
            sentence=_make_sentence(sentence),
            changes=about.changes
            or [Change("guest: size", result.before, result.actual)],
            remarks=[] if result.diagnosis is None else [result.diagnosis.detail],
            settings=settings or {},
        )

    @classmethod
    def of_timeline(cls, timeline: Timeline) -> Facts:
        """Say what a recording shows.

        Args:
            timeline: The samples.
        """
        samples = list(timeline)
        return cls(
            sentence=_make_sentence("; ".join(describe_timeline(samples))),
            changes=compare_samples(samples[0], samples[-1]) if samples else [],
        )


def list_settings(guard: Guard | None, total: int) -> dict[str, str]:
    """Return what a guest was to keep, as names and values for people.

    Args:
        guard: The guard; ``None`` if there was none.
        total: Bytes of the VM's RAM.
    """
    if guard is None:
        return {"guard": "none: the guest was not watched"}
    limits = guard.compute_limits(total)
    within = guard.reread_within
    rate = limits.max_rate
    return {
        "headroom": format_size(limits.headroom),
        "floor": format_size(limits.floor),
        "step": "no limit"
        if math.isinf(limits.step)
        else format_size(round(limits.step)),
        "rate": "no limit" if math.isinf(rate) else f"{format_size(round(rate))}/s",
        "page cache that is read again": f"left if within {within:g} s"
        if within
        else "taken like other",
        **_describe_gentle(guard),
        "silent": f"after {limits.stale_after:g} s without an answer",
    }


def _describe_gentle(guard: Guard) -> dict[str, str]:
    if not guard.gentle:
        return {}
    return {"gentle": f"page cache is taken over {guard.gentle:g} s"}


def _make_sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def _describe_rates(report: ReclaimReport) -> list[str]:
    """Say how fast the VM read from its disks."""
    if report.reads is None:
        return []
    named = {
        "before": report.reads.before,
        "while cache was taken": report.reads.during,
        "afterwards": report.reads.after,
    }
    known = [
        f"{format_size(round(rate))}/s {when}"
        for when, rate in named.items()
        if rate is not None
    ]
    return [f"The VM read from its disks: {', '.join(known)}."] if known else []
