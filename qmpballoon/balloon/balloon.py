"""A VM's balloon as users hold it: the device, and the calls that watch its guest."""

from __future__ import annotations

import math
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, TypeVar

from qmpballoon.balloon import _plan, _reclaim, _resize, sampling
from qmpballoon.balloon.device import Device, M_co
from qmpballoon.balloon.qom import find_device

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable

    from qmpballoon.balloon._reclaim import ReclaimReport
    from qmpballoon.balloon._tracker import StallLimits
    from qmpballoon.balloon.guard import Guard
    from qmpballoon.balloon.results import OnStall, Plan, ResizeResult
    from qmpballoon.balloon.sampling import Progress, Sample, Sampler
    from qmpballoon.balloon.stats import GuestStats
    from qmpballoon.monitor import Monitor

__all__ = ["Balloon", "find_balloon"]

M = TypeVar("M", bound="Monitor")


class Balloon(Device[M_co]):
    """A VM's virtio-balloon.

    Get one from ``open_balloon`` or ``find_balloon`` of a front end. Several tasks may
    use it at the same time to ask for sizes and statistics. Only one call at a time may
    move it; a second one raises :exc:`~qmpballoon.errors.BalloonBusy`.

    It has the arguments and attributes of :class:`Device`. Type checkers know the type
    of its :attr:`monitor`: ``qmpballoon.open_balloon``, for example, gives a
    ``Balloon[TrioMonitor]``.
    """

    async def refresh_stats(
        self, *, timeout: float = sampling.ANSWER_TIMEOUT
    ) -> GuestStats:
        """Ask the guest for new statistics now, and return its answer.

        This sets the statistics interval to 0 and back, which makes QEMU ask the guest
        at once. The interval is restored at the end.

        QEMU tells the time of an answer in whole seconds. If the guest has already
        answered in this second, and its figures stay the same, only its answer in the
        next second can be told from its last one: so this can take up to a second.

        Args:
            timeout: Seconds to wait for the guest.

        Returns:
            The guest's new answer.

        Raises:
            StatsUnavailable: The guest does not answer; the message has the likely
                reason.
            NoBalloonDevice: The VM has no balloon, or it was unplugged.

        Cancellation: the interval is restored.
        """
        return await sampling.refresh_stats(self, timeout=timeout)

    @asynccontextmanager
    async def sampler(self) -> AsyncGenerator[Sampler, None]:
        """Sample guest, balloon and host within an ``async with`` block.

        The end of the block restores the statistics interval, also after an exception
        or a cancellation.

        Yields:
            The sampler.

        Raises:
            NoBalloonDevice: The VM has no balloon, or it was unplugged.
        """
        async with sampling.open_sampler(self) as sampler:
            yield sampler

    def watch(self, interval: float = 1.0) -> AsyncIterator[Sample]:
        """Iterate over samples of guest, balloon and host, one each interval.

        The guest is asked for new statistics for each sample. If it does not answer
        within the interval, and within 3 seconds, the sample has its last answer, and
        its ``age`` says how old that is.
        Between two samples the statistics interval is what it was before. So the loop
        can be left at any moment, and nothing has to be closed.

        While ``resize``, ``reclaim`` or ``keep`` runs, use its ``on_progress`` instead:
        the call takes samples itself, and both would set the statistics interval.

        Args:
            interval: Seconds from one sample to the next, above 0. If a sample takes
                longer, the next one follows at once.

        Returns:
            An iterator that never ends on its own.

        Raises:
            TypeError: The interval is not a number.
            ValueError: The interval is out of range.
            NoBalloonDevice: From the iterator: the VM has no balloon, or it was
                unplugged.
            MonitorError: From the iterator: QEMU can no longer be asked.

        Cancellation: the statistics interval is restored.
        """
        return sampling.watch(self, interval)

    async def resize(
        self,
        target: int,
        *,
        timeout: float = math.inf,
        on_stall: OnStall = "raise",
        guard: Guard | None = None,
        unguarded: bool = False,
        on_progress: Callable[[Progress], None] | None = None,
        limits: StallLimits | None = None,
    ) -> ResizeResult:
        """Bring the guest to a size, and wait until it is there.

        A shrinking guest is watched as in :meth:`reclaim`, with the same alarms. In
        trouble it gets back all that it had. When it is well it is asked again; if that
        achieves nothing, the balloon has stalled.

        The target of a stalled balloon does not stay set. It is changed to the size
        that was reached, or to the size before the call. A guest in trouble always gets
        the size before the call.

        Args:
            target: Bytes, 1 or more; more than the VM's RAM means all of it.
            timeout: Seconds for the whole call; ``math.inf``: no limit.
            on_stall: What to do when the balloon does not reach the target.
                ``"raise"`` settles at the size reached and raises, ``"settle"``
                settles and returns, ``"rollback"`` goes back to the size before and
                returns.
            guard: What a shrinking guest must keep, and what counts as trouble; by
                default :data:`RESIZE_GUARD`. A target that would take more than that
                is not reached.
            unguarded: Set the target at once, whatever the guest reports. This can kill
                processes in the guest, or the guest.
            on_progress: Called several times a second with the progress. If it raises
                an exception, the call ends as if it were cancelled, and passes the
                exception on.
            limits: What counts as a stall. By default, less than 1 MiB a second over 5
                seconds, or less than a quarter of the guard's ``max_rate``.

        Returns:
            What was reached; its ``outcome`` says how it ended.

        Raises:
            UnsafeTarget: The target is below the guard's floor; no target was sent.
            BalloonBusy: Another call is moving this balloon; nothing was sent.
            BalloonStalled: The target was not reached; with a diagnosis. Only with
                ``on_stall="raise"``.
            BalloonTimeout: The same, because the time was over.
            TypeError: An argument is of the wrong type; nothing was sent.
            ValueError: An argument is out of range, or both ``guard`` and ``unguarded``
                are given; nothing was sent.
            NoBalloonDevice: The VM has no balloon, or it was unplugged.
            BalloonUnavailable: The host's KVM cannot drive it.
            MonitorError: QEMU can no longer be asked. If it is only stopped, it leaves
                the guest at the size reached once it is resumed; otherwise the last
                target stays set.

        Cancellation: a guest that was shrinking stays at the size it has reached; one
        that was growing continues to grow.
        """
        with self.claim_movement("resize"):
            holder = self.read_holder()
            result = await _resize.resize(
                self,
                target,
                timeout=timeout,
                on_stall=on_stall,
                guard=guard,
                unguarded=unguarded,
                on_progress=on_progress,
                limits=limits,
            )
            self.supersede_owed(holder)
            return result

    async def plan_reclaim(
        self, amount: int | None = None, *, guard: Guard | None = None
    ) -> Plan:
        """Return what :meth:`reclaim` would take, without taking it.

        Args:
            amount: As for :meth:`reclaim`.
            guard: As for :meth:`reclaim`.

        Returns:
            The plan.

        Raises:
            StatsUnavailable: The guest reports nothing to plan by.
            NoBalloonDevice: The VM has no balloon, or it was unplugged.
            BalloonUnavailable: The host's KVM cannot drive it.

        Cancellation: takes effect at once; the statistics interval is restored.
        """
        return await _plan.plan(self, amount, guard)

    async def reclaim(
        self,
        amount: int | None = None,
        *,
        guard: Guard | None = None,
        hold: bool = False,
        give_back_to: int | None = None,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> ReclaimReport:
        """Take from the guest what it can spare, page cache included.

        The guest is sampled several times a second. If it begins to need memory, it
        gets memory back at once, and the report says so.

        Args:
            amount: The most bytes to take; by default all that the guest can spare.
            guard: What the guest must keep, and what counts as trouble.
            hold: Keep the memory in the balloon. By default the guest gets it back at
                the end, nearly all of it as free memory; the host keeps what the guest
                does not touch again.
            give_back_to: Bytes that the guest should have at the end, not less than it
                has now; more than the VM's RAM means all of it. By default what an
                interrupted run owes it (:meth:`read_owed`), or else what it has now.
            on_progress: As for :meth:`resize`.

        Returns:
            Guest and host before and after, with the timeline.

        Raises:
            StatsUnavailable: The guest reports nothing to decide by; nothing was taken.
            BalloonBusy: Another call is moving this balloon, or another process holds
                memory of the guest (:meth:`read_holder`); nothing was taken.
            UnsafeTarget: ``give_back_to`` is less than the guest has; nothing was
                taken.
            ValueError: ``give_back_to`` is out of range, or given with ``hold``;
                nothing was sent.
            NoBalloonDevice: The VM has no balloon, or it was unplugged.
            BalloonUnavailable: The host's KVM cannot drive it.
            MonitorError: QEMU can no longer be asked. If it is only stopped, and is
                resumed while the connection is open, it gives the guest its memory
                back. Otherwise the last target stays set, and a note on the exception
                says which one.

        Cancellation: the guest gets its memory back. If that cannot be done within a
        few seconds, the last target stays set.
        """
        with self.claim_movement("reclaim"):
            return await _reclaim.reclaim(
                self,
                amount,
                guard,
                hold=hold,
                give_back_to=give_back_to,
                on_progress=on_progress,
            )

    async def keep(
        self,
        amount: int | None = None,
        *,
        guard: Guard | None = None,
        seconds: float = math.inf,
        until: Callable[[], bool] | None = None,
        give_back_to: int | None = None,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> ReclaimReport:
        """Reclaim, and keep the memory until the guest needs it.

        After a reclaim the guest continues to be watched, from once a second to 50
        times a second, depending on how much it has available. If it falls below three
        quarters of its headroom, it gets what it lacks. It gets everything, and this
        returns, if it falls below half of the headroom, has a process killed, or falls
        silent, when the time is over, or when ``until`` returns true. Cancelling it
        gives the memory back, too, but waits for nothing and returns no report.

        Args:
            amount: As for :meth:`reclaim`.
            guard: As for :meth:`reclaim`. The larger the headroom, the less often the
                guest has to be watched.
            seconds: The longest time to keep the memory.
            until: A plain function, which is called several times a second from the
                beginning. When it returns true, nothing more is taken and the memory is
                given back. The ``is_set`` method of an event will do.
            give_back_to: As for :meth:`reclaim`.
            on_progress: As for :meth:`resize`.

        Returns:
            As :meth:`reclaim`; its ``reason`` says what ended the keeping.

        Raises:
            StatsUnavailable: As :meth:`reclaim`.
            BalloonBusy: As :meth:`reclaim`.
            NoBalloonDevice: As :meth:`reclaim`.
            BalloonUnavailable: As :meth:`reclaim`.
            MonitorError: As :meth:`reclaim`.

        Cancellation: as :meth:`reclaim`.
        """
        with self.claim_movement("keep"):
            return await _reclaim.reclaim(
                self,
                amount,
                guard,
                hold=False,
                keep_for=seconds,
                until=until,
                give_back_to=give_back_to,
                on_progress=on_progress,
            )


async def find_balloon(monitor: M) -> Balloon[M]:
    """Find the balloon device of the VM behind a monitor.

    Args:
        monitor: The monitor of the VM.

    Returns:
        The balloon.

    Raises:
        NoBalloonDevice: The VM has none.
        MonitorError: QEMU cannot be asked.

    Cancellation: takes effect at once and changes nothing.
    """
    path, device_type = await find_device(monitor)
    return Balloon(monitor, path, device_type)
