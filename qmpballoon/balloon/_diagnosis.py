"""Why a balloon does not move.

QEMU reports success for every ``balloon``, whatever the guest then does. The reason for
a stall is somewhere between QEMU, the driver in the guest and the guest's memory.
:func:`gather` collects the evidence that is visible from outside the guest.
:func:`explain` (pure) derives a :class:`~qmpballoon.balloon.results.Diagnosis` from it;
it looks for the most reliable signs first.

``x-query-virtio-status`` would tell whether a driver has taken the device. But it is
unstable, and makes QEMU 11.1.3 crash. So a guest that neither reports statistics nor
moves counts as one without a driver.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, cast

from attrs import frozen

from qmpballoon.balloon.guard import RESIZE_HEADROOM
from qmpballoon.balloon.results import OVERRIDDEN, Diagnosis
from qmpballoon.balloon.sampling import find_recent_stats
from qmpballoon.sizes import MiB, format_size

if TYPE_CHECKING:
    from qmpballoon.balloon._tracker import Tracker
    from qmpballoon.balloon.device import Device
    from qmpballoon.balloon.results import Ending
    from qmpballoon.balloon.stats import GuestStats

__all__ = ["Evidence", "explain", "gather", "suspect_inhibition", "suspect_old_size"]

# Seconds. A guest short of memory is slow, and one that hangs is silent.
_ANSWER_TIMEOUT: Final = 1.0
# Bytes. If less was taken, QEMU's resident memory proves nothing: meanwhile the guest
# goes on touching pages that it had not touched before.
_CONCLUSIVE: Final = 64 * MiB


@frozen
class Evidence:
    """What is visible of a VM from outside the guest.

    Attributes:
        total: Bytes of the VM's RAM, ``None`` if unknown.
        resident: Bytes of host memory that QEMU holds, ``None`` if unknown.
        stats: What the guest last reported.
        stopped: Why the VM does not run; ``None`` if it does.
        answers: Whether the guest answered when it was asked for statistics.
    """

    total: int | None
    resident: int | None
    stats: GuestStats
    stopped: str | None = None
    answers: bool = False


async def gather(device: Device) -> Evidence:
    """Collect the evidence on why a balloon does not move.

    The guest is asked for new statistics, which takes up to a second.
    """
    stopped, recent = await device.why_stopped(), None
    if stopped is None:
        recent = await find_recent_stats(device, _ANSWER_TIMEOUT)
    return Evidence(
        total=(await device.query()).total,
        resident=device.resident(),
        stats=recent or await device.stats(),
        stopped=stopped,
        answers=recent is not None,
    )


def explain(
    tracker: Tracker, before: Evidence, after: Evidence, end: Ending
) -> Diagnosis:
    """Return why the balloon stalled.

    Args:
        tracker: How it moved.
        before: The evidence from before the target was set.
        after: The evidence from after the stall.
        end: How the movement ended.
    """
    for suspect in (
        _suspect_pause,
        _suspect_reset,
        _suspect_missing_driver,
        _suspect_hot_plug,
        suspect_old_size,
    ):
        diagnosis = suspect(tracker, before, after)
        if diagnosis is not None:
            return diagnosis
    silent = _suspect_silent_reset(tracker, before, after)
    if silent is not None and end.alarm == "silence":
        return silent
    if end.reason:
        return Diagnosis(
            "guest-at-floor",
            f"the guest has no more to give: {end.reason}; choose a larger target, or"
            " make the guest use less",
        )
    for suspect in (
        _suspect_floor,
        _suspect_silent_reset,
        suspect_inhibition,
        _suspect_other_client,
    ):
        diagnosis = suspect(tracker, before, after)
        if diagnosis is not None:
            return diagnosis
    return _explain_slowness(tracker, timed_out=end.kind == "timed-out")


def _suspect_pause(_: Tracker, __: Evidence, after: Evidence) -> Diagnosis | None:
    if after.stopped is None:
        return None
    return Diagnosis("paused", f"{after.stopped}, and try again")


def _suspect_missing_driver(
    tracker: Tracker, before: Evidence, after: Evidence
) -> Diagnosis | None:
    if tracker.moved or before.answers or after.answers:
        return None
    return Diagnosis(
        "no-driver",
        "no balloon driver answers in the guest: load virtio_balloon, or on Windows"
        " install the balloon driver from the virtio-win package",
    )


def _suspect_reset(
    tracker: Tracker, before: Evidence, after: Evidence
) -> Diagnosis | None:
    # Only a new kernel starts the counters again.
    older, newer = before.stats.minor_faults, after.stats.minor_faults
    restarted = None not in (older, newer) and cast("int", newer) < cast("int", older)
    # QEMU 10.0 and later clear the statistics on a reset.
    cleared = before.stats.last_update and not after.stats.last_update
    gone = before.answers and not after.answers and tracker.jumps
    if not (restarted or cleared or gone):
        return None
    return Diagnosis(
        "reset",
        "the guest was restarted, or its balloon driver unloaded, meanwhile: wait"
        " until it is up, and try again",
    )


def _suspect_hot_plug(
    _: Tracker, before: Evidence, after: Evidence
) -> Diagnosis | None:
    if before.total == after.total or None in (before.total, after.total):
        return None
    return Diagnosis(
        "hot-plug",
        f"memory was plugged meanwhile: the VM had {format_size(before.total or 0)}"
        f" and has {format_size(after.total or 0)}; choose the target anew",
    )


def suspect_old_size(
    tracker: Tracker, _: Evidence, after: Evidence
) -> Diagnosis | None:
    """Suspect that the size QEMU reports is from before a restart of the guest.

    A driver that has nothing to do when it starts reports no size to QEMU. So if the
    target was raised before that, QEMU still shows what the previous driver reported.

    A guest that does not grow is suspected wrongly if its own total includes what is in
    the balloon, as on Windows, and on Linux with deflate-on-oom. This does no harm.
    """
    has = after.stats.total or 0
    grows = tracker.target > tracker.before == tracker.actual
    if not after.answers or not grows or has <= tracker.actual:
        return None
    return Diagnosis(
        "reset",
        f"the guest says it has {format_size(has)}, and QEMU does not know of it: it"
        " was restarted meanwhile; the target was left for it, try again",
    )


def suspect_inhibition(
    tracker: Tracker, before: Evidence, after: Evidence
) -> Diagnosis | None:
    """Suspect that something makes QEMU keep the pages that the guest has given up.

    This can happen although the balloon has reached its target.
    """
    taken = tracker.before - tracker.actual
    if None in (before.resident, after.resident) or taken < _CONCLUSIVE:
        return None
    freed = cast("int", before.resident) - cast("int", after.resident)
    # Pages that the guest never touched were not resident: they free no memory.
    untouched = _compute_ram(tracker, before) - cast("int", before.resident)
    if freed > taken // 10 or untouched > taken // 2:
        return None
    return Diagnosis(
        "inhibited",
        f"the guest handed over {format_size(taken)} and the host got"
        f" {format_size(max(freed, 0))} of it: a VFIO device, memory locking or huge"
        " pages keep QEMU from freeing it",
    )


def _compute_ram(tracker: Tracker, before: Evidence) -> int:
    """Return the guest's bytes of RAM, with what a virtio-mem device plugged in."""
    known = before.total or 0
    return max(known, (before.stats.total or 0) + known - tracker.before)


def _suspect_floor(
    tracker: Tracker, before: Evidence, after: Evidence
) -> Diagnosis | None:
    if tracker.target > tracker.before:
        return None
    available = after.stats.reclaimable
    stalls = _count_new(before.stats.alloc_stalls, after.stats.alloc_stalls)
    kills = _count_new(before.stats.oom_kills, after.stats.oom_kills)
    enough = max(RESIZE_HEADROOM, tracker.actual // 20)
    is_short = available is not None and available < enough
    if not (is_short or kills or (stalls and not after.answers)):
        return None
    left = "unknown" if available is None else format_size(available)
    return Diagnosis(
        "guest-at-floor",
        f"the guest has no more to give: available {left}, allocation stalls"
        f" +{stalls}, OOM kills +{kills}; choose a larger target",
    )


def _suspect_silent_reset(
    _: Tracker, before: Evidence, after: Evidence
) -> Diagnosis | None:
    # After a reset, QEMU before 10.0 keeps the old statistics and the old size until
    # the guest's driver is back. So silence is the only sign.
    if after.answers or not before.answers:
        return None
    return Diagnosis(
        "reset",
        "the guest no longer answers: it was restarted, or hangs; wait until it is up,"
        " and try again",
    )


def _suspect_other_client(
    tracker: Tracker, _: Evidence, after: Evidence
) -> Diagnosis | None:
    """Suspect that another client sets targets: QEMU keeps only the last one.

    QEMU has no command that returns the target. But a growing guest never moves away
    from its target on its own, and a healthy one does not stop. A shrinking guest
    proves nothing: we may have given memory back to it.
    """
    stopped = after.answers and tracker.stopped
    if tracker.target <= tracker.before or not (tracker.strayed or stopped):
        return None
    return Diagnosis(
        "overridden",
        f"the guest was asked for {format_size(tracker.target)} and went elsewhere:"
        f" {OVERRIDDEN}",
    )


def _explain_slowness(tracker: Tracker, *, timed_out: bool) -> Diagnosis:
    pace = f"the balloon moves at {format_size(round(tracker.rate))}/s"
    left = tracker.time_left
    if not timed_out:
        why = f"{pace}: the guest swaps, or the host is overloaded"
    elif left is None:
        why = "time was up, and the balloon did not move yet"
    else:
        why = f"time was up: {pace}, and needs {max(left, 0.1):.1f} s more"
    return Diagnosis("slow", f"{why}; give it more time, or settle for less")


def _count_new(before: int | None, after: int | None) -> int:
    """Return by how much a counter has risen; 0 if that is not known."""
    return 0 if before is None or after is None else max(0, after - before)
