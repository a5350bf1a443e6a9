"""Why a balloon does not move.

QEMU answers every ``balloon`` with success, whatever becomes of it. The reason
for a stall is somewhere between QEMU, the driver in the guest and the guest's
memory; :func:`gather` collects what can be seen from outside, and :func:`explain`
(pure) makes a :class:`Diagnosis` of it, the surest sign first.

Whether a driver has taken the device, ``x-query-virtio-status`` would tell; but it
is unstable, and QEMU 11.1.3 dies of it. A guest that answers no statistics and does
not move has none, as far as anybody outside is concerned.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Final, Literal, cast

from attrs import asdict, frozen

from qmpballoon.balloon.runstate import why_stopped
from qmpballoon.errors import StatsUnavailable
from qmpballoon.sizes import format_size

if TYPE_CHECKING:
    from qmpballoon.balloon._shrink import Squeezed
    from qmpballoon.balloon._tracker import Tracker
    from qmpballoon.balloon.balloon import Balloon
    from qmpballoon.balloon.stats import GuestStats

__all__ = [
    "OVERRIDDEN",
    "Diagnosis",
    "Evidence",
    "StallKind",
    "explain",
    "gather",
    "inhibited",
    "outdated",
]

StallKind = Literal[
    "no-driver",
    "paused",
    "guest-at-floor",
    "slow",
    "reset",
    "hot-plug",
    "inhibited",
    "overridden",
]
"""What can keep a balloon from its target."""

OVERRIDDEN: Final = (
    "another client sets targets, too; turn its ballooning off for this VM"
)
"""What is said of a balloon that goes elsewhere than it was sent."""

_MIB: Final = 1024 * 1024
_LITTLE: Final = 32 * _MIB  # bytes available, below which a guest has no more to give
_ANSWER_TIMEOUT: Final = 1.0  # seconds; a squeezed guest is slow, a hung one silent


@frozen
class Diagnosis:
    """Why a balloon stalled.

    Attributes:
        kind: The reason, for programs.
        detail: The reason and what to do about it, for people.
    """

    kind: StallKind
    detail: str

    def to_json(self) -> dict[str, object]:
        """Return it as the command prints it."""
        return asdict(self)


@frozen
class Evidence:
    """What could be seen from outside the guest.

    Attributes:
        total: Bytes of the VM's RAM, ``None`` if unknown.
        resident: Bytes of host memory QEMU holds, ``None`` if unknown.
        stats: What the guest last said of its memory.
        stopped: Why the VM does not run; ``None`` if it does.
        answers: Whether the guest answered when it was asked for statistics.
    """

    total: int | None
    resident: int | None
    stats: GuestStats
    stopped: str | None = None
    answers: bool = False


async def gather(balloon: Balloon) -> Evidence:
    """Look at everything that may tell why a balloon does not move.

    The guest is made to answer anew, which takes up to a second.
    """
    stopped, answers = await why_stopped(balloon.monitor), False
    stats = await balloon.stats()
    if stopped is None:
        with suppress(StatsUnavailable):
            stats = await balloon.refresh_stats(timeout=_ANSWER_TIMEOUT)
            answers = True
    return Evidence(
        total=(await balloon.query()).total,
        resident=balloon.resident(),
        stats=stats,
        stopped=stopped,
        answers=answers,
    )


def explain(
    tracker: Tracker, before: Evidence, after: Evidence, end: Squeezed
) -> Diagnosis:
    """Tell why the balloon stalled.

    Args:
        tracker: How it moved.
        before: What could be seen before the target was set.
        after: What could be seen when it had stalled.
        end: How the movement ended.
    """
    for suspect in (_paused, _reset, _no_driver, _hot_plug, outdated):
        diagnosis = suspect(tracker, before, after)
        if diagnosis is not None:
            return diagnosis
    if end.reason:
        return Diagnosis(
            "guest-at-floor",
            f"the guest has no more to give: {end.reason}; choose a larger target, or"
            " make the guest use less",
        )
    for suspect in (_at_floor, _fell_silent, inhibited, _overridden):
        diagnosis = suspect(tracker, before, after)
        if diagnosis is not None:
            return diagnosis
    return _slow(tracker, timed_out=end.ending == "timed-out")


def _paused(_: Tracker, __: Evidence, after: Evidence) -> Diagnosis | None:
    if after.stopped is None:
        return None
    return Diagnosis("paused", f"{after.stopped}, and try again")


def _no_driver(tracker: Tracker, before: Evidence, after: Evidence) -> Diagnosis | None:
    if tracker.moved or before.answers or after.answers:
        return None
    return Diagnosis(
        "no-driver",
        "no balloon driver answers in the guest: load virtio_balloon, or on Windows"
        " install the balloon driver from the virtio-win package",
    )


def _reset(tracker: Tracker, before: Evidence, after: Evidence) -> Diagnosis | None:
    # Counters start anew with a kernel, and only with it.
    older, newer = before.stats.minor_faults, after.stats.minor_faults
    restarted = None not in (older, newer) and cast("int", newer) < cast("int", older)
    # QEMU 10.0 and later forget the statistics; the driver is away until it is back.
    forgotten = before.stats.last_update and not after.stats.last_update
    gone = before.answers and not after.answers and tracker.jumps
    if not (restarted or forgotten or gone):
        return None
    return Diagnosis(
        "reset",
        "the guest was restarted, or its balloon driver unloaded, meanwhile: wait"
        " until it is up, and try again",
    )


def _hot_plug(_: Tracker, before: Evidence, after: Evidence) -> Diagnosis | None:
    if before.total == after.total or None in (before.total, after.total):
        return None
    return Diagnosis(
        "hot-plug",
        f"memory was plugged meanwhile: the VM had {format_size(before.total or 0)}"
        f" and has {format_size(after.total or 0)}; choose the target anew",
    )


def outdated(tracker: Tracker, _: Evidence, after: Evidence) -> Diagnosis | None:
    """Suspect that QEMU knows the guest's size of before a restart only.

    A driver that finds nothing to do when it comes up tells QEMU nothing. So where the
    balloon was called off before that, QEMU goes on with what the last driver said. A
    Windows guest, and a Linux one with deflate-on-oom, counts what is in its balloon:
    one that does not grow is suspected wrongly, which does it no harm.
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


def inhibited(tracker: Tracker, before: Evidence, after: Evidence) -> Diagnosis | None:
    """Suspect what makes QEMU keep the pages that the guest has given up.

    That can be so although the balloon has reached its target.
    """
    taken = tracker.before - tracker.actual
    if None in (before.resident, after.resident) or taken < _SURE:
        return None
    freed = cast("int", before.resident) - cast("int", after.resident)
    # Pages the guest never touched were not resident; those free no memory.
    untouched = _whole(tracker, before) - cast("int", before.resident)
    if freed > taken // 10 or untouched > taken // 2:
        return None
    return Diagnosis(
        "inhibited",
        f"the guest handed over {format_size(taken)} and the host got"
        f" {format_size(max(freed, 0))} of it: a VFIO device, memory locking or huge"
        " pages keep QEMU from freeing it",
    )


def _whole(tracker: Tracker, before: Evidence) -> int:
    """Return the guest's bytes of RAM, with what a virtio-mem device plugged in."""
    known = before.total or 0
    return max(known, (before.stats.total or 0) + known - tracker.before)


def _at_floor(tracker: Tracker, before: Evidence, after: Evidence) -> Diagnosis | None:
    if tracker.target > tracker.before:
        return None
    available = after.stats.reclaimable
    stalls = _risen(before.stats.alloc_stalls, after.stats.alloc_stalls)
    kills = _risen(before.stats.oom_kills, after.stats.oom_kills)
    squeezed = available is not None and available < max(_LITTLE, tracker.actual // 20)
    if not (squeezed or kills or (stalls and not after.answers)):
        return None
    left = "unknown" if available is None else format_size(available)
    return Diagnosis(
        "guest-at-floor",
        f"the guest has no more to give: available {left}, allocation stalls"
        f" +{stalls}, OOM kills +{kills}; choose a larger target",
    )


def _fell_silent(_: Tracker, before: Evidence, after: Evidence) -> Diagnosis | None:
    # QEMU before 10.0 keeps statistics and size of before a reset until the guest's
    # driver is back: this is all that shows of it.
    if after.answers or not before.answers:
        return None
    return Diagnosis(
        "reset",
        "the guest no longer answers: it was restarted, or hangs; wait until it is up,"
        " and try again",
    )


def _overridden(tracker: Tracker, _: Evidence, after: Evidence) -> Diagnosis | None:
    """Suspect another client: QEMU has one target, and the last to set it wins.

    A target cannot be asked for. But no guest that is given memory goes away from its
    target by itself, and none that is well stops. One that shrinks may have been given
    memory back by us.
    """
    stopped = after.answers and tracker.stopped
    if tracker.target <= tracker.before or not (tracker.strayed or stopped):
        return None
    return Diagnosis(
        "overridden",
        f"the guest was asked for {format_size(tracker.target)} and went elsewhere:"
        f" {OVERRIDDEN}",
    )


def _slow(tracker: Tracker, *, timed_out: bool) -> Diagnosis:
    pace = f"the balloon moves at {format_size(round(tracker.rate))}/s"
    left = tracker.time_left
    if not timed_out:
        why = f"{pace}: the guest swaps, or the host is overloaded"
    elif left is None:
        why = "time was up, and the balloon did not move yet"
    else:
        why = f"time was up: {pace}, and needs {max(left, 0.1):.1f} s more"
    return Diagnosis("slow", f"{why}; give it more time, or settle for less")


_SURE: Final = 64 * _MIB  # bytes taken, below which the host's figures prove nothing


def _risen(before: int | None, after: int | None) -> int:
    return 0 if before is None or after is None else max(0, after - before)
