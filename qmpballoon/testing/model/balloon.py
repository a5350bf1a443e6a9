"""The balloon device: what QEMU knows, as against what the guest does.

QEMU keeps the size that it asks for and the size that the driver last told it.
The two are strangers: nothing moves unless the guest moves it, and after a reset
the driver's last word stands until a new driver says otherwise.

Statistics are a buffer that goes to and fro. The guest hands it over full; QEMU
keeps it until its timer fires, hands it back, and the guest fills it again. So a
guest that does not answer is asked once, and the timer is armed again by the
answer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from attrs import define, field

from qmpballoon.testing.model.memory import PAGE
from qmpballoon.testing.model.qobject import UINT64_MAX

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from qmpballoon.testing.model.qobject import Value

__all__ = ["MAX_INTERVAL", "BalloonDevice"]

MAX_INTERVAL: Final = (1 << 32) - 1
_SECOND: Final = 1_000_000_000


@define
class BalloonDevice:
    """One virtio-balloon device. Its timer runs on the guest's clock.

    Attributes:
        stat_names: The statistics that this QEMU knows, without ``stat-``.
        reset_clears_stats: A machine reset forgets the sample, as from 10.0 on.
        asked: Pages that QEMU asks the guest for.
        told: Pages that the guest said it has given.
        interval: Seconds between two samples; 0: none are taken.
        last_update: When the last sample came, in seconds since the epoch; 0: never.
        poll_at: When the timer fires next, in nanoseconds of the guest's clock.
        has_buffer: The guest has handed the buffer over and waits to be asked.
    """

    stat_names: Sequence[str]
    reset_clears_stats: bool
    asked: int = field(init=False, default=0)
    told: int = field(init=False, default=0)
    interval: int = field(init=False, default=0)
    last_update: int = field(init=False, default=0)
    poll_at: int | None = field(init=False, default=None)
    has_buffer: bool = field(init=False, default=False)
    _stats: dict[str, int] = field(init=False, factory=dict[str, int])

    def ask(self, target: int, ram: int) -> None:
        """Ask the guest for a size in bytes; QEMU rounds it up to whole pages."""
        self.asked = (ram - min(target, ram)) // PAGE

    def actual(self, ram: int) -> int:
        """Return the guest's size in bytes, by its driver's last word."""
        return ram - self.told * PAGE

    def set_interval(self, seconds: int, now: int) -> None:
        """Change the timer: at once from nothing, else a whole interval from now."""
        if seconds == self.interval:
            return
        if seconds == 0:
            self.poll_at = None
        elif self.interval == 0:
            self.poll_at = now
        else:
            self.poll_at = now + seconds * _SECOND
        self.interval = seconds

    def poll(self, now: int) -> bool:
        """Let the timer fire; return whether the guest is asked for a sample."""
        if not self.has_buffer:
            self.poll_at = now + self.interval * _SECOND
            return False
        self.poll_at = None
        self.has_buffer = False
        return True

    def take_sample(self, sample: Mapping[str, int], now: int, epoch: int) -> None:
        """Take the guest's answer at guest time ``now``, ``epoch`` seconds."""
        self._stats = {n: sample[n] for n in self.stat_names if n in sample}
        self.has_buffer = True
        self.last_update = epoch
        if self.interval:
            self.poll_at = now + self.interval * _SECOND

    def reset(self) -> None:
        """Forget what a machine reset makes it forget."""
        self.has_buffer = False
        if self.reset_clears_stats:
            self._stats = {}
            self.last_update = 0

    def guest_stats(self) -> Value:
        """Return what ``qom-get`` says of ``guest-stats``."""
        stats: dict[str, Value] = {
            f"stat-{name}": self._stats.get(name, UINT64_MAX)
            for name in self.stat_names
        }
        return {"stats": stats, "last-update": self.last_update}
