"""One VM's balloon: asking it, setting it.

QMP names the balloon in two ways. ``balloon`` and ``query-balloon`` mean the one
device a VM can have, without naming it. Statistics are properties of the device
object, which :mod:`~qmpballoon.balloon.find` looks for in QEMU's object tree.

Source: QAPI reference, ``balloon``; the others are beside, in ``commands.py``.
"""

from __future__ import annotations

from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

from qmpballoon._checks import (
    is_interval,
    require_interval,
    require_seconds,
    require_size,
)
from qmpballoon.balloon import _reclaim, _resize
from qmpballoon.balloon._refresh import refresh, why_silent
from qmpballoon.balloon._shrink import CLEANUP
from qmpballoon.balloon._tracker import PAGE
from qmpballoon.balloon.device import NO_DEVICE, BalloonInfo, Commands
from qmpballoon.balloon.runstate import why_stopped
from qmpballoon.balloon.sampler import Sampler
from qmpballoon.balloon.stats import GuestStats
from qmpballoon.errors import ProtocolError, QmpBalloonError, StatsUnavailable
from qmpballoon.monitor import said_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from qmpballoon.balloon._reclaim import ReclaimReport
    from qmpballoon.balloon._resize import OnStall, Progress, ResizeResult
    from qmpballoon.balloon._tracker import StallLimits
    from qmpballoon.balloon.guard import Guard
    from qmpballoon.balloon.plan import Plan
    from qmpballoon.balloon.sampling import Sample
    from qmpballoon.monitor import Monitor

__all__ = ["NO_DEVICE", "Balloon", "BalloonInfo"]


class Balloon:
    """A VM's virtio-balloon.

    Get one from ``open_balloon`` or ``find_balloon`` of a front end. Tasks may
    share it for asking; only one at a time should resize.

    Args:
        monitor: The way to QEMU.
        path: The device's path in QOM.
        device_type: Its QOM type.
        resident: Tells QEMU's resident memory in bytes, where the host can.
        wall_clock: Tells seconds since the epoch, for the age of statistics.

    Attributes:
        monitor: The way to QEMU.
        path: The device's path in QOM.
        device_type: Its QOM type, such as ``"virtio-balloon-pci"``.
    """

    def __init__(
        self,
        monitor: Monitor,
        path: str,
        device_type: str,
        *,
        resident: Callable[[], int | None] = lambda: None,
        wall_clock: Callable[[], float | None] = lambda: None,
    ) -> None:
        self.monitor = monitor
        self.path = path
        self.device_type = device_type
        self._commands = Commands(monitor, path)
        self._resident = resident
        self._wall_clock = wall_clock
        self._target: int | None = None

    @property
    def target(self) -> int | None:
        """The last target set by this object, in bytes; ``None`` if none was."""
        return self._target

    def resident(self) -> int | None:
        """Return QEMU's resident memory on this host in bytes, if it can be known."""
        return self._resident()

    async def query(self) -> BalloonInfo:
        """Ask how large the guest is now.

        Raises:
            NoBalloonDevice: The VM has no balloon (any more).
            BalloonUnavailable: The host's KVM cannot drive it.

        Cancellation: at once, with no effect.
        """
        return await self._commands.query(self._target)

    async def actual(self) -> int:
        """Ask only for the bytes the guest has now; one command.

        Raises and cancellation: as :meth:`query`.
        """
        return (await self._commands.query_balloon())[0]

    async def set_target(self, target: int) -> None:
        """Ask the guest to come to a size, and do not wait for it.

        QEMU rounds up to 4 KiB, and takes more than the RAM as all of it. It
        answers at once, whatever becomes of it; :meth:`resize` waits, watches and
        tells. Nothing here keeps a guest from being squeezed to death.

        Args:
            target: Bytes, 1 or more.

        Raises:
            NoBalloonDevice: The VM has no balloon.
            BalloonUnavailable: The host's KVM cannot drive it.

        Cancellation: the target may or may not have been set.
        """
        require_size(target, "target", minimum=1)
        self._target = None  # until QEMU has taken the new one, nobody knows
        await self._commands.execute("balloon", {"value": target})
        self._target = -(-target // PAGE) * PAGE

    async def stats(self) -> GuestStats:
        """Read the guest's last answer; it may be old, see ``age``.

        Raises:
            NoBalloonDevice: The VM has no balloon (any more).

        Cancellation: at once, with no effect.
        """
        value = await self._commands.get("guest-stats")
        return GuestStats.from_wire(value, self._wall_clock())

    async def refresh_stats(self, *, timeout: float = 3.0) -> GuestStats:
        """Have the guest answer now, and return what it says.

        The polling interval is stopped and set again, which makes QEMU ask at
        once. It is afterwards what it was before.

        Args:
            timeout: Seconds to wait for the guest.

        Raises:
            StatsUnavailable: The guest does not answer; with the likely reason.

        Cancellation: the interval is put back.
        """
        require_seconds(timeout, "timeout")
        async with self._interval_kept() as interval:
            stats = await refresh(self, self._wall_clock, interval, timeout)
        if stats is None:
            why = await why_silent(self, timeout)
            raise StatsUnavailable(said_of(self.monitor, why))
        return stats

    async def request_stats(self, interval: int) -> None:
        """Make QEMU ask the guest for statistics at once, and every interval on.

        Args:
            interval: Seconds, 0 to 4294967295, whole; 0 counts as 1.

        Raises: as :meth:`stats`.

        Cancellation: the interval may be left at 0, at ``interval``, or as it was.
        """
        require_interval(interval, "interval")
        await self.set_stats_interval(0)
        await self.set_stats_interval(max(interval, 1))

    async def get_stats_interval(self) -> int:
        """Return how often QEMU asks the guest, in seconds; 0 is never.

        Raises and cancellation: as :meth:`stats`.
        """
        value = await self._commands.get("guest-stats-polling-interval")
        if not is_interval(value):
            what = f"the statistics interval of {self.path} is {value!r:.80}"
            raise ProtocolError(said_of(self.monitor, what))
        return value

    async def set_stats_interval(self, seconds: int) -> None:
        """Set how often QEMU asks the guest for statistics.

        Args:
            seconds: 0 to 4294967295, whole; 0 stops it.

        Raises: as :meth:`stats`.

        Cancellation: the interval may or may not have been set.
        """
        require_interval(seconds, "seconds")
        await self._commands.set("guest-stats-polling-interval", seconds)

    @asynccontextmanager
    async def stats_interval(self, seconds: int) -> AsyncGenerator[None, None]:
        """Have the guest asked every so many seconds within an ``async with`` block.

        The interval is afterwards what it was before, also after an exception or
        a cancellation. Args and raises: as :meth:`set_stats_interval`.
        """
        require_interval(seconds, "seconds")
        async with self._interval_kept():
            await self.set_stats_interval(seconds)
            yield

    async def features(self) -> dict[str, bool]:
        """Return which of the device's optional features are on.

        A feature that this QEMU does not know is left out.

        Cancellation: at once, with no effect.
        """
        return await self._commands.features()

    async def resize(
        self,
        target: int,
        *,
        timeout: float = float("inf"),
        on_stall: OnStall = "raise",
        floor: int = _resize.FLOOR,
        headroom: int | None = _resize.HEADROOM,
        on_progress: Callable[[Progress], None] | None = None,
        limits: StallLimits | None = None,
    ) -> ResizeResult:
        """Bring the guest to a size, and watch until it is there.

        A balloon that no longer moves is never left pulling: the target is set to
        the size that was reached, or back to the size before.

        Args:
            target: Bytes; more than the VM's RAM means all of it.
            timeout: Seconds for all of it.
            on_stall: What to do when it does not get there: ``"raise"`` settles at
                the size reached and raises, ``"settle"`` settles and returns,
                ``"rollback"`` goes back to the size before and returns.
            floor: Bytes below which no target is taken.
            headroom: Bytes a shrinking guest keeps available, by its own word; the
                target is not reached where that would take them. ``None`` asks for
                the target whatever the guest says, which can kill it.
            on_progress: Called some times a second with how far it is.
            limits: What counts as a stall.

        Returns:
            What was reached; its ``outcome`` tells how it ended.

        Raises:
            UnsafeTarget: The target is below the floor; nothing was sent.
            BalloonStalled: It did not get there, with a diagnosis.
            NoBalloonDevice: The VM has no balloon.
            BalloonUnavailable: The host's KVM cannot drive it.
            MonitorError: QEMU can no longer be asked. A stopped one leaves the guest
                at the size it has come to when it goes on; otherwise the last
                target stands.

        Cancellation: a guest that was shrinking stays at the size it has come to;
        one that was growing goes on growing.
        """
        return await _resize.resize(
            self,
            target,
            timeout=timeout,
            on_stall=on_stall,
            floor=floor,
            headroom=headroom,
            on_progress=on_progress,
            limits=limits,
        )

    async def plan_reclaim(
        self, amount: int | None = None, *, guard: Guard | None = None
    ) -> Plan:
        """Tell what :meth:`reclaim` would take, and take nothing.

        Args and raises: as :meth:`reclaim`.

        Cancellation: at once; the statistics interval is put back.
        """
        return await _reclaim.plan(self, amount, guard)

    async def reclaim(
        self,
        amount: int | None = None,
        *,
        guard: Guard | None = None,
        hold: bool = False,
        on_progress: Callable[[Sample], None] | None = None,
    ) -> ReclaimReport:
        """Take from the guest what it can spare, page cache included.

        The guest is watched several times a second. If it comes to need memory, it
        is given back at once, and the report says so.

        Args:
            amount: Bytes to take at most; by default all that can be spared.
            guard: What the guest must keep, and what counts as trouble.
            hold: Keep the memory. By default the guest gets it back in the end,
                nearly all of it free, and the host keeps what the guest does not
                touch again.
            on_progress: Called with each sample.

        Returns:
            Guest and host before and after, with the timeline.

        Raises:
            StatsUnavailable: The guest reports nothing to go by; nothing was taken.
            NoBalloonDevice: The VM has no balloon.
            BalloonUnavailable: The host's KVM cannot drive it.
            MonitorError: QEMU can no longer be asked. A stopped one gives the guest
                its memory back when it goes on while the connection stands; otherwise
                the last target does, and a note of the exception tells it.

        Cancellation: the guest gets its memory back, or keeps what it has come to
        if even that cannot be done in a few seconds.
        """
        return await _reclaim.reclaim(
            self, amount, guard, hold=hold, on_progress=on_progress
        )

    async def keep(
        self,
        amount: int | None = None,
        *,
        guard: Guard | None = None,
        seconds: float = float("inf"),
        on_progress: Callable[[Sample], None] | None = None,
    ) -> ReclaimReport:
        """Reclaim, and keep the memory until the guest comes to need it.

        As :meth:`reclaim`, and then the guest is looked at as often as what it has
        available demands: from once a second to 50 times. If it falls well under its
        headroom it gets what it lacks. If it falls under half of that, has a process
        killed, or falls silent, or when the time is over, it gets everything, and
        this returns. Run it in a task of its own and cancel it to have the memory
        given back.

        Args:
            amount: As for :meth:`reclaim`.
            guard: As for :meth:`reclaim`. The larger the headroom, the less often
                the guest has to be looked at.
            seconds: For how long to keep it at most.
            on_progress: Called with each sample.

        Returns:
            As :meth:`reclaim`; its ``reason`` says what ended the keeping.

        Raises and cancellation: as :meth:`reclaim`.
        """
        return await _reclaim.reclaim(
            self,
            amount,
            guard,
            hold=False,
            keep_for=seconds,
            on_progress=on_progress,
        )

    async def is_running(self) -> bool:
        """Tell whether the VM runs; a paused one's balloon does not move.

        Cancellation: at once, with no effect.
        """
        return await why_stopped(self.monitor) is None

    @asynccontextmanager
    async def sampler(self) -> AsyncGenerator[Sampler, None]:
        """Yield a sampler, which reads guest, balloon and host time and again.

        The statistics interval is afterwards what it was before, also after an
        exception or a cancellation.
        """
        async with self._interval_kept() as interval:
            sampler = Sampler(self, interval)
            await sampler.begin()
            yield sampler

    @asynccontextmanager
    async def _interval_kept(self) -> AsyncGenerator[int, None]:
        """Put the statistics interval back at the end, however that comes."""
        interval = await self.get_stats_interval()
        try:
            yield interval
        finally:
            # Nothing more can be done if a monitor or a device is gone; and it would
            # hide how the block came to its end, a cancellation most of all.
            with self.monitor.shield(CLEANUP), suppress(QmpBalloonError):
                await self.set_stats_interval(interval)
