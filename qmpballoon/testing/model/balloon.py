"""The balloon device: what QEMU knows of the balloon.

QEMU keeps the size that it asks for and the size that the driver last told it. The two
are independent: only the guest moves memory. After a reset QEMU still shows the size
that the driver told last, until a new driver tells another.

Statistics travel in one buffer. The guest fills it and hands it to QEMU. QEMU keeps it
until its timer fires and hands it back, and the guest fills it again. So a guest that
does not answer is asked once only, and the answer is what arms the timer again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, cast

from attrs import define, field

from qmpballoon.testing.model.config import SECOND
from qmpballoon.testing.model.memory import PAGE
from qmpballoon.testing.model.qobject import UINT64_MAX

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from qmpballoon.testing.model.qobject import Value

__all__ = ["MAX_INTERVAL", "BalloonDevice"]

MAX_INTERVAL: Final = (1 << 32) - 1
"""Longest polling interval, in seconds: QEMU keeps it in 32 bits."""


@define
class BalloonDevice:
    """One virtio-balloon device. Its timer runs on the guest's clock.

    Attributes:
        stat_names: The statistics that this QEMU knows, without ``stat-``.
        reset_clears_stats: A machine reset clears the sample, as from 10.0 on.
        shows: Statistics that are shown instead of the sample's, without ``stat-``, for
            samples of odd seconds.
        asked: Pages that QEMU asks the guest for.
        told: Pages that the guest said it has given.
        interval: Seconds between two samples; 0: none are taken.
        last_update: When the last sample came, in seconds since the epoch; 0: never.
        poll_at: When the timer fires next, in nanoseconds of the guest's clock.
        answer_at: When the guest answers a request that is under way, likewise.
        has_buffer: QEMU has the buffer: the guest has answered.
        driver_seen: The driver has said since the last reset that it is ready.
        change_seen: Time of the guest's last balloon step that the device knows of.
    """

    stat_names: Sequence[str]
    reset_clears_stats: bool
    shows: Mapping[str, object] = field(factory=dict[str, object])
    asked: int = field(init=False, default=0)
    told: int = field(init=False, default=0)
    interval: int = field(init=False, default=0)
    last_update: int = field(init=False, default=0)
    poll_at: int | None = field(init=False, default=None)
    answer_at: int | None = field(init=False, default=None)
    has_buffer: bool = field(init=False, default=False)
    driver_seen: bool = field(init=False, default=False)
    change_seen: int = field(init=False, default=0)
    _stats: dict[str, int] = field(init=False, factory=dict[str, int])

    def ask(self, target: int, ram: int) -> None:
        """Ask the guest for a size in bytes, which QEMU rounds up to whole pages."""
        self.asked = (ram - min(target, ram)) // PAGE

    def compute_actual(self, ram: int) -> int:
        """Return the guest's size in bytes, as its driver told last."""
        return ram - self.told * PAGE

    def set_interval(self, seconds: int, now: int) -> None:
        """Set the polling interval.

        The timer fires at once if there was no interval before, else after the new one.
        """
        if seconds == self.interval:
            return
        if seconds == 0:
            self.poll_at = None
        elif self.interval == 0:
            self.poll_at = now
        else:
            self.poll_at = now + seconds * SECOND
        self.interval = seconds

    def poll(self, now: int) -> bool:
        """Handle the timer; return whether the guest is asked for a sample."""
        if not self.has_buffer:
            self.poll_at = now + self.interval * SECOND
            return False
        self.poll_at = None
        self.has_buffer = False
        return True

    def take_sample(self, sample: Mapping[str, int], now: int, epoch: int) -> None:
        """Take a sample from the guest.

        Args:
            sample: Statistics by their names, without ``stat-``.
            now: The guest's time, in nanoseconds.
            epoch: The wall clock's time, in seconds since 1970.
        """
        self.answer_at = None
        self._stats = {n: sample[n] for n in self.stat_names if n in sample}
        self.has_buffer = True
        self.last_update = epoch
        if self.interval:
            self.poll_at = now + self.interval * SECOND

    def reset(self) -> None:
        """Clear what a machine reset clears."""
        self.answer_at = None
        self.has_buffer = False
        self.driver_seen = False
        if self.reset_clears_stats:
            self._stats = {}
            self.last_update = 0

    def read_stats(self) -> Value:
        """Return the property ``guest-stats``, as ``qom-get`` does."""
        stats: dict[str, Value] = {
            f"stat-{name}": self._stats.get(name, UINT64_MAX)
            for name in self.stat_names
        }
        if self.last_update % 2:
            stats |= {f"stat-{n}": cast("Value", v) for n, v in self.shows.items()}
        return {"stats": stats, "last-update": self.last_update}
