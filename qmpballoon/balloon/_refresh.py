"""Having a guest answer for its statistics now, and telling why it does not.

Source: QEMU asks the guest at once when the polling interval goes from 0 to
anything else (``balloon_stats_set_poll_interval`` in hw/virtio/virtio-balloon.c).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from attrs import frozen

from qmpballoon.balloon.runstate import why_stopped

if TYPE_CHECKING:
    from collections.abc import Callable

    from qmpballoon.balloon.balloon import Balloon
    from qmpballoon.balloon.stats import GuestStats

__all__ = ["refresh", "why_silent"]

_ANSWER_POLL: Final = 0.01  # seconds between two looks for the guest's answer
# A guest answers within milliseconds. After so many seconds without a change, a
# sample of the very second of asking is the new one: it just says the same.
_GRACE: Final = 0.1
# Where that second cannot be told, the guest is asked so often, in seconds, until
# an answer comes in another second than the last.
_ASK_AGAIN: Final = 0.5


async def refresh(
    balloon: Balloon,
    wall_clock: Callable[[], float | None],
    interval: int,
    timeout: float,
) -> GuestStats | None:
    """Have the guest answer now; ``None`` if it does not in so many seconds.

    See :meth:`Balloon.refresh_stats`.

    Args:
        balloon: Whose guest.
        wall_clock: Tells seconds since the epoch, where it can.
        interval: The one to ask it with.
        timeout: Seconds to wait for the guest.
    """
    monitor = balloon.monitor
    deadline = monitor.now() + timeout
    question = _Question(balloon, wall_clock, await balloon.stats(), wall_clock())
    while (now := monitor.now()) < deadline:
        await balloon.request_stats(interval)
        stats = await question.answer(now + _GRACE, min(now + _ASK_AGAIN, deadline))
        if stats is not None:
            return stats
    return None


async def why_silent(balloon: Balloon, timeout: float) -> str:
    """Say why a guest did not answer, as far as that can be told."""
    stopped = await why_stopped(balloon.monitor)
    if stopped is not None:
        why = stopped
    elif (await balloon.stats()).last_update is None:
        why = (
            "it never did: load virtio_balloon in the guest (on Windows install"
            " the Balloon Service too)"
        )
    else:
        why = "it did before: the guest hangs, or its balloon driver was unloaded"
    return f"the guest did not report its memory within {timeout:g} s; {why}"


@frozen
class _Question:
    """What is asked of a guest, and what was known before."""

    balloon: Balloon
    wall_clock: Callable[[], float | None]
    before: GuestStats
    asked_at: float | None

    async def answer(self, grace: float, patience: float) -> GuestStats | None:
        """Wait for a sample that is a new one; ``None`` if none comes in time."""
        monitor = self.balloon.monitor
        while monitor.now() < patience:
            await monitor.sleep(_ANSWER_POLL)
            stats = await self.balloon.stats()
            if stats.last_update is None:
                continue
            if not stats.same_sample(self.before):
                return stats
            is_new = _is_between(stats, self.asked_at, self.wall_clock())
            if monitor.now() >= grace and is_new:
                return stats
        return None


def _is_between(stats: GuestStats, start: float | None, end: float | None) -> bool:
    """Tell whether a sample is of the seconds between two moments.

    Both ends count: a clock that was set, or another host's, proves nothing.
    """
    if start is None or end is None or stats.last_update is None:
        return False
    return int(start) <= stats.last_update.timestamp() <= end
