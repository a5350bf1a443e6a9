"""Reading guest, balloon and host several times a second.

QEMU's polling interval counts in whole seconds, but it asks the guest at once
when the interval goes from 0 to anything else. So a sampler stops the interval
and sets it again after every sample, and by the next one the guest's answer is
there. On an idle guest this costs next to nothing up to 25 times a second.

QEMU notes the time of an answer in whole seconds too. That the guest has
answered anew therefore shows in its figures: in any that has changed, or in the
next second.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qmpballoon.balloon.sampling import Sample
from qmpballoon.balloon.stats import GuestStats

if TYPE_CHECKING:
    from qmpballoon.balloon.balloon import Balloon

__all__ = ["Sampler"]


class Sampler:
    """Takes samples of one balloon; made by :meth:`Balloon.sampler`.

    ::

        async with balloon.sampler() as sampler:
            while True:
                await balloon.monitor.sleep(0.5)
                print(await sampler.take())

    Attributes:
        stats: The guest's last answer.
        basis: Bytes the guest had when it was asked for that answer. While the
            balloon moves it has less by now, and available less by as much.
        start: What the monitor's clock showed at the beginning.
        silence: Seconds for which the guest has given no answer that was seen to
            be a new one; 0 if the last sample was new.
    """

    def __init__(self, balloon: Balloon, interval: int) -> None:
        self.stats: GuestStats = GuestStats()
        self.basis: int = 0
        self.start: float = balloon.monitor.now()
        self.silence: float = 0.0
        self._asked_with = 0
        self._balloon = balloon
        self._interval = interval
        self._answered_at = self.start
        self._asked_at_size = 0

    async def begin(self) -> None:
        """Ask the guest for the first time."""
        self.stats = await self._balloon.stats()
        self.basis = self._asked_at_size = await self._balloon.actual()
        await self._balloon.request_stats(self._interval)

    async def take(self, mark: str | None = None) -> Sample:
        """Read what the guest last answered and what it has, and ask it anew.

        Args:
            mark: A word on what happens now, for the sample.

        Cancellation: at once; the guest may or may not have been asked.
        """
        balloon = self._balloon
        stats = await balloon.stats()
        actual = await balloon.actual()
        self._note(stats, actual, balloon.monitor.now())
        sample = Sample.of(
            balloon.monitor.now() - self.start,
            stats,
            target=balloon.target,
            actual=actual,
            resident=balloon.resident(),
            mark=mark,
        )
        await balloon.request_stats(self._interval)
        return sample

    def _note(self, stats: GuestStats, actual: int, now: float) -> None:
        # Statistics that a reset has wiped out are no answer.
        if stats.last_update is not None and not stats.same_sample(self.stats):
            self._answered_at = now
            # A late answer may be to any question since the last answer. The size
            # at the first of them is the one that cannot make the guest look rich.
            self.basis, self._asked_at_size = self._asked_at_size, actual
        self.silence = now - self._answered_at
        self.stats = stats
