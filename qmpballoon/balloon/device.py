"""The handle of a VM's balloon device: what can be asked of it and set on it.

A VM has at most one balloon. ``balloon`` and ``query-balloon`` mean that one, without
naming it. Statistics and features are properties of the device object, whose path
:func:`~qmpballoon.balloon.qom.find_device` finds.

Source: QAPI reference, ``balloon``, ``query-balloon``, ``qom-get``, ``qom-set``,
``query-memory-size-summary``, ``query-memory-devices``, ``query-name``,
``query-status`` and ``RunState``, ``query-version``, ``query-blockstats``.
"""

from __future__ import annotations

import logging
import os
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import TYPE_CHECKING, Final, Generic, NoReturn, cast

from qmpballoon._checks import is_interval, is_size, require_interval, require_size
from qmpballoon.balloon.results import (
    BalloonInfo,
    DiskReads,
    VmInfo,
    describe_holder,
)
from qmpballoon.balloon.stats import GuestStats
from qmpballoon.errors import (
    BalloonBusy,
    BalloonError,
    BalloonUnavailable,
    CommandError,
    CommandNotFound,
    DeviceNotFound,
    NoBalloonDevice,
    ProtocolError,
    QmpBalloonError,
)
from qmpballoon.monitor import (
    UNNOTED,
    execute_all,
    find_owed_size,
    make_error,
    prefix_name,
    read_resident,
    read_wall_clock,
)
from qmpballoon.sizes import format_size

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator, Mapping
    from contextlib import AbstractAsyncContextManager

    # For type checkers only: 3.13 is the first Python whose own has defaults.
    from typing_extensions import TypeVar

    from qmpballoon.monitor import Monitor

    M_co = TypeVar("M_co", bound=Monitor, default=Monitor, covariant=True)
else:
    from typing import TypeVar

    M_co = TypeVar("M_co", covariant=True)

__all__ = [
    "CLEANUP_TIMEOUT",
    "LARGEST_PAGE",
    "PAGE",
    "Device",
    "describe_small",
    "explain_status",
    "lacks_ram",
    "read_disks",
]

_log: Final = logging.getLogger("qmpballoon.balloon")

PAGE: Final = 4096
"""Bytes of a balloon page. QEMU rounds targets up to it; the guest's own pages may be
larger."""

LARGEST_PAGE: Final = 65536
"""Bytes of the largest page that a guest may have. Its driver moves whole pages, so a
balloon may end this far from its target."""

CLEANUP_TIMEOUT: Final = 5.0
"""Seconds for restoring targets and intervals when a call ends by an exception.

A restore takes a handful of commands, and a QEMU that is well answers each within
milliseconds. A cancelled caller waits for no more than this."""

_FEATURES: Final = (
    "deflate-on-oom",
    "free-page-reporting",
    "free-page-hint",
    "page-poison",
)
_PAUSED: Final = "the VM is paused: resume it (cont)"
_BUSY: Final = "the VM is being saved, restored or migrated: wait until that is done"
_ENDED: Final = "reset it (system_reset), and resume it (cont)"
_STATUSES: Final = {
    "paused": _PAUSED,
    "prelaunch": "the VM has not been started yet: start it (cont)",
    "debug": _PAUSED,
    "watchdog": f"the VM's watchdog stopped it; {_PAUSED}",
    "io-error": "the VM was stopped by a disk error: repair the disk, and resume the"
    " VM (cont)",
    "inmigrate": "the VM is not here yet: wait until its migration has come in",
    # If it were resumed here while it runs there, two VMs would write to its disks.
    "postmigrate": "the VM was migrated, and its target with it: set the target anew"
    " where it runs now; resume it here (cont) only if it runs nowhere else",
    "finish-migrate": _BUSY,
    "save-vm": _BUSY,
    "restore-vm": _BUSY,
    "colo": _BUSY,
    "guest-panicked": f"the guest has panicked: {_ENDED}",
    "internal-error": f"QEMU cannot run the guest any further: {_ENDED}",
    "shutdown": f"the guest has shut down: {_ENDED}",
    "suspended": "the guest is suspended: wake it (system_wakeup)",
}


class Device(Generic[M_co]):
    """A handle of one VM's virtio-balloon: it asks and sets, and decides nothing.

    :class:`~qmpballoon.balloon.Balloon` adds the calls that watch the guest.

    Args:
        monitor: The monitor of the VM.
        path: The device's path in QOM.
        device_type: Its QOM type.

    Attributes:
        path: The device's path in QOM.
        device_type: Its QOM type, such as ``"virtio-balloon-pci"``.
    """

    def __init__(self, monitor: M_co, path: str, device_type: str) -> None:
        self._monitor = monitor
        self.path = path
        self.device_type = device_type
        self._target: int | None = None
        self._is_target_in_doubt = False
        # The statistics interval before any block set it, and then the interval that
        # each open block has set.
        self._intervals: list[list[int]] = []
        # A lock: the call that moves the balloon pops the one element. List pops and
        # appends are atomic across threads, too. Then the name of that call.
        self._turn: list[None] = [None]
        self._movement = ""
        self._owes = False  # a call in progress will give memory back
        self._held: int | None = None  # the size that was noted as held by this process

    def __repr__(self) -> str:
        """Return which balloon of which VM this is."""
        monitor = prefix_name(self.monitor, self.path)
        return f"<{type(self).__name__} {monitor}>"

    @property
    def monitor(self) -> M_co:
        """The monitor of the VM."""
        return self._monitor

    @property
    def target(self) -> int | None:
        """The last target that this object set, in bytes; ``None`` if none is known.

        It is also ``None`` after a ``balloon`` command whose outcome is not known.
        """
        return self._target

    @property
    def is_target_in_doubt(self) -> bool:
        """Whether the outcome of the last target that was sent is unknown.

        For internal use.

        :meta private:
        """
        return self._is_target_in_doubt

    def resident(self) -> int | None:
        """Return QEMU's resident memory on this host in bytes, if it is known."""
        return read_resident(self.monitor)

    def wall_time(self) -> float | None:
        """Return seconds since the epoch by the host's clock, if they are known."""
        return read_wall_clock(self.monitor)

    def read_owed(self) -> int | None:
        """Return the size in bytes that an interrupted run owes the guest, if any.

        A run notes this size before it takes memory. The note remains if the run is
        killed, or if it ends before the guest has taken all of the memory back. Also
        ``None`` while a call in progress holds the memory (:meth:`read_holder`), and if
        such notes cannot be kept: over TCP, through libvirt, or if the host does not
        tell which process is QEMU.
        """
        owed = find_owed_size(self.monitor)
        return None if owed is None else owed.read()

    def read_holder(self) -> int | None:
        """Return the id of the process that holds memory of the guest, if any.

        It runs a ``reclaim``, a ``keep`` or a ``fleet reclaim`` on this VM, by another
        balloon than this one, and gives the memory back when that ends. Until then a
        reclaim by this balloon is refused. It can be this process, if that has opened
        the VM twice. ``None`` as for :meth:`read_owed` if notes cannot be kept.
        """
        owed = find_owed_size(self.monitor)
        holder = None if owed is None else owed.read_holder()
        return None if holder == self._own_hold else holder

    @property
    def _own_hold(self) -> int | None:
        """This process' id, while a call of this balloon holds memory of the guest."""
        return None if self._held is None else os.getpid()

    def require_unheld(self) -> None:
        """Make sure that nobody else holds memory of the guest.

        For internal use.

        Raises:
            BalloonBusy: One does.

        :meta private:
        """
        if (holder := self.read_holder()) is not None:
            raise self._make_held(holder)

    def _make_held(self, holder: int) -> BalloonBusy:
        why = f"nothing was taken: memory of the guest is {describe_holder(holder)}"
        return make_error(BalloonBusy, self.monitor, why)

    def note_owed(
        self, size: int, *, is_returning: bool = False, is_held: bool = False
    ) -> None:
        """Note the size that the guest must get back if this process is killed.

        The note of somebody else who holds memory of the guest stands.

        For internal use.

        Args:
            size: Bytes.
            is_returning: Whether QEMU has already been asked to give it back.
            is_held: Whether a call in progress holds the memory, and gives it back.

        Raises:
            BalloonBusy: Somebody else holds memory of the guest; only with ``is_held``.

        :meta private:
        """
        owed, holder = find_owed_size(self.monitor), None
        own, before = self._own_hold, self._held
        if is_held:
            self._held = size  # already: Ctrl-C may come as soon as it is noted
        if owed is not None:
            try:
                holder = owed.note(
                    size,
                    is_returning=is_returning,
                    is_held=is_held,
                    own=own,
                )
            except OSError as error:
                self._warn_unnoted(error)
        if is_held and holder is not None:
            self._held = before
            raise self._make_held(holder)
        self._owes, self._held = True, size if is_held else None

    def _warn_unnoted(self, error: OSError) -> None:
        what = (
            f"what the guest is to get back cannot be noted: {error}; nobody gives it"
            " back if this process is killed: let it write there, or name another"
            " folder (QMPBALLOON_RUNTIME_DIR)"
        )
        _log.warning("%s", prefix_name(self.monitor, what), extra={UNNOTED: str(error)})

    def release_owed(self) -> None:
        """Note that this process does not hold memory of the guest any more.

        The call that took it has ended, and the guest may still lack some of it: that
        is owed to it now, although this process runs on. For internal use.

        :meta private:
        """
        if self._held is not None:
            self.note_owed(self._held)
        self._owes = False

    def settle_owed(self) -> None:
        """Forget the owed size: the guest has it, or will not get it.

        The note of somebody else who holds memory of the guest stands.

        For internal use.

        :meta private:
        """
        self._forget_owed(self._own_hold)

    def supersede_owed(self, holder: int | None) -> None:
        """Forget what an earlier run owed the guest, because it got a new size.

        What a call in progress owes is kept. For internal use.

        Args:
            holder: The process that held memory of the guest when the new size was
                chosen. The note of one that has begun since then stands.

        :meta private:
        """
        if not self._owes:
            self._forget_owed(holder)

    def _forget_owed(self, holder: int | None) -> None:
        """Remove the note, unless it is of another process than that holder."""
        self._owes, self._held = False, None
        owed = find_owed_size(self.monitor)
        if owed is not None:
            with suppress(OSError):
                owed.clear(holder)

    async def query(self) -> BalloonInfo:
        """Ask for the size of the guest.

        Returns:
            The size, in bytes.

        Raises:
            NoBalloonDevice: The VM has no balloon, or it was unplugged.
            BalloonUnavailable: The host's KVM cannot drive it.

        Cancellation: takes effect at once and changes nothing.
        """
        actual, extra = await self._query_balloon()
        total, capacity = await self._query_ram()
        return BalloonInfo(actual, total, self._target, extra, capacity)

    async def actual(self) -> int:
        """Ask only for the bytes that the guest has now; one command.

        Raises the same as :meth:`query`, and is cancelled like it.
        """
        return (await self._query_balloon())[0]

    async def set_target(self, target: int) -> None:
        """Ask the guest for a size, and return without waiting for it.

        QEMU rounds the target up to 4 KiB, and treats one above the VM's RAM as all of
        the RAM. It reports success at once, whatever the guest then does. If QEMU
        refuses the target, the previous target stays in force.

        Warning:
            Nothing here protects the guest: with a target that is too small it kills
            processes or panics.

        Args:
            target: Bytes, 1 or more.

        Raises:
            BalloonBusy: ``resize``, ``reclaim`` or ``keep`` is moving this balloon;
                nothing was sent.
            NoBalloonDevice: The VM has no balloon, or it was unplugged.
            BalloonUnavailable: The host's KVM cannot drive it.

        Cancellation: the target may or may not have been set.
        """
        require_size(target, "target", minimum=1)
        with self.claim_movement("set_target"):
            holder = self.read_holder()
            await self.send_target(target)
            self.supersede_owed(holder)

    def log(self, level: int, message: str) -> None:
        """Log what the library does with this balloon, with the VM's name before it.

        For internal use.

        Args:
            level: One of ``logging``'s levels.
            message: What was done.

        :meta private:
        """
        _log.log(level, "%s", prefix_name(self.monitor, message))

    @contextmanager
    def claim_movement(self, name: str) -> Generator[None]:
        """Let no other call move this balloon within a ``with`` block.

        For internal use.

        Args:
            name: The name of the call that moves it, for error messages.

        Raises:
            BalloonBusy: Another call is moving it.

        :meta private:
        """
        try:
            self._turn.pop()
        except IndexError:
            why = (
                f"{name}: {self._movement or 'another call'} moves this balloon now;"
                " nothing was sent: wait for it to end, or cancel it before"
            )
            raise make_error(BalloonBusy, self.monitor, why) from None
        self._movement = name
        try:
            yield
        finally:
            self._movement = ""
            self._turn.append(None)

    async def send_target(self, target: int) -> None:
        """Set the target, from the call that has claimed the movement.

        For internal use.

        Args:
            target: Bytes, 1 or more.

        :meta private:
        """
        before, self._target = self._target, None  # unknown until QEMU has answered
        self._is_target_in_doubt = True
        try:
            await self._execute("balloon", {"value": target})
        except (BalloonError, CommandError):
            self._target = before  # QEMU refused the new one
            self._is_target_in_doubt = False
            raise
        self._target = -(-target // PAGE) * PAGE
        self._is_target_in_doubt = False
        self.log(logging.DEBUG, f"the target is {format_size(target)}")

    async def stats(self) -> GuestStats:
        """Read the guest's last answer, which may be old: see its ``age``.

        Raises:
            NoBalloonDevice: The VM has no balloon, or it was unplugged.

        Cancellation: takes effect at once and changes nothing.
        """
        return GuestStats.from_wire(await self._get("guest-stats"), self.wall_time())

    async def request_stats(self, interval: int) -> None:
        """Have QEMU ask the guest for statistics now, and every interval from then on.

        Args:
            interval: Seconds, an integer from 0 to 4294967295; 0 counts as 1.

        Raises:
            NoBalloonDevice: The VM has no balloon, or it was unplugged.

        Cancellation: the interval may be left at 0, at ``interval``, or unchanged.
        """
        require_interval(interval, "interval")
        # QEMU asks at once when the interval goes from 0 to anything else.
        await self.set_stats_interval(0)
        await self.set_stats_interval(max(interval, 1))

    async def get_stats_interval(self) -> int:
        """Return how often QEMU asks the guest for statistics, in seconds; 0: never.

        Raises the same as :meth:`stats`, and is cancelled like it.
        """
        value = await self._get("guest-stats-polling-interval")
        if not is_interval(value):
            what = f"the statistics interval of {self.path} is {value!r:.80}"
            raise make_error(ProtocolError, self.monitor, what)
        return value

    async def set_stats_interval(self, seconds: int) -> None:
        """Set how often QEMU asks the guest for statistics.

        Args:
            seconds: An integer from 0 to 4294967295; 0 stops it.

        Raises:
            NoBalloonDevice: The VM has no balloon, or it was unplugged.

        Cancellation: the interval may or may not have been set.
        """
        require_interval(seconds, "seconds")
        await self._set("guest-stats-polling-interval", seconds)

    def stats_interval(self, seconds: int) -> AbstractAsyncContextManager[object]:
        """Have QEMU ask for statistics at an interval within an ``async with`` block.

        The end of the block restores the interval, also after an exception or a
        cancellation.

        Args:
            seconds: An integer from 0 to 4294967295; 0 stops it.

        Raises:
            NoBalloonDevice: The VM has no balloon, or it was unplugged.
        """
        require_interval(seconds, "seconds")
        return self.restore_stats_interval(seconds)

    @asynccontextmanager
    async def restore_stats_interval(
        self, seconds: int | None = None
    ) -> AsyncGenerator[int, None]:
        """Restore the statistics interval at the end of an ``async with`` block.

        Blocks in several tasks may overlap, and end in any order. While any is open,
        the interval is that of the block that began last. When all have ended, the
        interval is what it was before the first.

        Args:
            seconds: The interval to set for the block. With ``None`` it stays as it is,
                and the block itself undoes each change that it makes.

        Yields:
            The interval in seconds, as it was before the block.

        Raises:
            NoBalloonDevice: The VM has no balloon, or it was unplugged.
        """
        if not self._intervals:
            # Only the first block reads the interval: a sampler, which has a block of
            # its own, sets it to 0 for a moment at each sample.
            found = await self.get_stats_interval()
            if not self._intervals:
                self._intervals.append([found])
        interval = self._intervals[-1][0]
        # A list for each block, so that equal intervals can be told apart by identity.
        mine = [interval if seconds is None else seconds]
        self._intervals.append(mine)
        try:
            if seconds is not None:
                await self.set_stats_interval(seconds)
            yield interval
        finally:
            is_last = self._intervals[-1] is mine
            self._intervals[:] = [each for each in self._intervals if each is not mine]
            # If the monitor or the device is gone there is nothing to restore, and an
            # error raised here would hide how the block ended.
            try:
                if is_last:
                    with (
                        self.monitor.shield(CLEANUP_TIMEOUT),
                        suppress(QmpBalloonError),
                    ):
                        await self.set_stats_interval(self._intervals[-1][0])
            finally:
                # Not cleared before: a block that began during the restore would have
                # read our interval, and taken it for the original one.
                if len(self._intervals) == 1:
                    self._intervals.clear()

    async def disk_reads(self) -> DiskReads | None:
        """Ask how much the VM has read from its disks; one command.

        If the balloon took page cache that the guest needs, the guest reads it again.
        These reads are counted here, and in none of the guest's statistics.

        Returns:
            The sums over all disks that have a medium; ``None`` if there are none, or
            if this QEMU does not report them.

        Raises:
            MonitorError: QEMU cannot be asked.

        Cancellation: takes effect at once and changes nothing.
        """
        return _sum_reads(await read_disks(self))

    async def look(self) -> tuple[GuestStats, int, DiskReads | None]:
        """Read what changes: :meth:`stats`, :meth:`actual` and :meth:`disk_reads`.

        This takes three commands. On trio they are sent together.

        Raises:
            NoBalloonDevice: The VM has no balloon, or it was unplugged.
            ProtocolError: QEMU's answer has no size.
            MonitorError: QEMU cannot be asked.

        Cancellation: takes effect at once and changes nothing.
        """
        stats, size, disks = await execute_all(
            self.monitor,
            ("qom-get", {"path": self.path, "property": "guest-stats"}),
            ("query-balloon", None),
            ("query-blockstats", None),
        )
        for answer in (stats, size):
            if isinstance(answer, CommandError):
                self._raise_refusal(answer)
        return (
            GuestStats.from_wire(stats, self.wall_time()),
            self._parse_balloon(size)[0],
            _sum_reads(_parse_disks(disks)),
        )

    async def features(self) -> dict[str, bool]:
        """Return which of the device's optional features are on.

        A feature that this QEMU does not know is left out.

        Raises:
            NoBalloonDevice: The VM has no balloon, or it was unplugged.

        Cancellation: takes effect at once and changes nothing.
        """
        features: dict[str, bool] = {}
        for name in _FEATURES:
            try:
                features[name] = bool(await self._get(name))
            except CommandError:
                continue
        return features

    async def query_vm(self) -> VmInfo:
        """Ask for the VM's name and state, and for QEMU's version.

        Raises:
            ProtocolError: QEMU's answer has no state.

        Cancellation: takes effect at once and changes nothing.
        """
        return VmInfo(
            name=await self._query_name(),
            status=await self._query_status(),
            qemu_version=await self._query_version(),
        )

    async def is_running(self) -> bool:
        """Return whether the VM runs. The balloon of a paused one does not move.

        Cancellation: takes effect at once and changes nothing.
        """
        return await self.why_stopped() is None

    async def why_stopped(self) -> str | None:
        """Return why the VM does not run and what to do; ``None`` if it runs.

        Cancellation: takes effect at once and changes nothing.
        """
        match await self.monitor.execute("query-status"):
            case {"running": False, "status": str(status)}:
                return explain_status(status)
            case {"running": False}:
                return _PAUSED
            case _:
                return None

    async def _query_name(self) -> str | None:
        match await self.monitor.execute("query-name"):
            case {"name": str(name)} if name:
                return name
            case _:
                return None

    async def _query_status(self) -> str:
        answer = await self.monitor.execute("query-status")
        match answer:
            case {"status": str(status)}:
                return status
            case _:
                what = f"query-status returned {answer!r:.80}"
                raise make_error(ProtocolError, self.monitor, what)

    async def _query_version(self) -> str | None:
        """Return QEMU's version. A libvirt monitor has no greeting to read it from."""
        match await self.monitor.execute("query-version"):
            case {
                "qemu": {"major": int(major), "minor": int(minor), "micro": int(micro)}
            }:
                return f"{major}.{minor}.{micro}"
            case _:
                return None

    async def _query_balloon(self) -> tuple[int, dict[str, object]]:
        """Return the bytes the guest has, and the other members of QEMU's answer."""
        return self._parse_balloon(await self._execute("query-balloon"))

    def _parse_balloon(self, answer: object) -> tuple[int, dict[str, object]]:
        match answer:
            case {"actual": int(actual)} if is_size(actual):
                extra = dict(cast("Mapping[str, object]", answer))
                del extra["actual"]
                return actual, extra
            case _:
                what = f"query-balloon returned {answer!r:.80}"
                raise make_error(ProtocolError, self.monitor, what)

    async def _query_ram(self) -> tuple[int | None, int | None]:
        """Return the bytes that the balloon can take from, and all of the memory.

        The balloon can take from the base memory and from DIMMs.
        """
        try:
            summary = await self._execute("query-memory-size-summary")
            match summary:
                case {"base-memory": int(base), "plugged-memory": 0} if is_size(base):
                    return base, base
                case {"base-memory": int(base)} if is_size(base):
                    # Virtio-mem and NVDIMMs count as plugged, but cannot be
                    # ballooned: look which devices there are.
                    devices = await self._execute("query-memory-devices")
                    total, plugged = base + _sum_dimms(devices), 0
                    told = cast("dict[str, object]", summary).get("plugged-memory")
                    if is_size(told):
                        plugged = told
                    return total, max(total, base + plugged)
                case _:
                    return None, None
        except CommandNotFound:
            return None, None

    async def _get(self, name: str) -> object:
        """Read a property of the device."""
        return await self._execute("qom-get", {"path": self.path, "property": name})

    async def _set(self, name: str, value: object) -> None:
        """Write a property of the device."""
        arguments = {"path": self.path, "property": name, "value": value}
        await self._execute("qom-set", arguments)

    async def _execute(
        self, command: str, arguments: Mapping[str, object] | None = None
    ) -> object:
        """Run a command, and raise its errors as those of a balloon."""
        try:
            return await self.monitor.execute(command, arguments)
        except CommandError as error:
            self._raise_refusal(error)

    def _raise_refusal(self, error: CommandError) -> NoReturn:
        """Raise what a refused command means for a balloon."""
        if isinstance(error, DeviceNotFound) or error.error_class == "DeviceNotActive":
            raise self._make_lost() from error
        if error.error_class == "KVMMissingCap":
            why = f"this host cannot drive a balloon: {error.desc}"
            raise make_error(BalloonUnavailable, self.monitor, why) from error
        raise error

    def _make_lost(self) -> NoBalloonDevice:
        """Make the error for a device that was found and is no longer there."""
        loss = (
            f"the balloon {self.path} is gone: it was unplugged; open the VM anew once"
            " it has one again"
        )
        return make_error(NoBalloonDevice, self.monitor, loss)


def explain_status(status: str) -> str:
    """Say why a VM does not run, and what to do about it.

    Args:
        status: The state of the VM, as ``query-status`` names it.
    """
    return _STATUSES.get(status, f"the VM is in the state {status!r} and does not run")


def lacks_ram(size: int, ram: int | None) -> bool:
    """Tell whether a guest of a size has less than all its RAM.

    Args:
        size: Bytes that it has.
        ram: Bytes of the VM's RAM, if that is known.
    """
    return ram is not None and ram - size >= LARGEST_PAGE


def describe_small(size: int, ram: int, why: str) -> str:
    """Say that a guest is left with less than all its RAM, why, and what to do.

    Args:
        size: Bytes that it has.
        ram: Bytes of the VM's RAM.
        why: Why it has no more.
    """
    return (
        f"is left with {format_size(size)}, {why}, and not all of its"
        f" {format_size(ram)}: `resize 100%` gives it all"
    )


def _sum_dimms(devices: object) -> int:
    """Return the bytes of all DIMMs in an answer of ``query-memory-devices``."""
    total = 0
    for device in cast("list[object]", devices) if isinstance(devices, list) else []:
        match device:
            case {"type": "dimm", "data": {"size": int(size)}} if is_size(size):
                total += size
            case _:
                pass
    return total


async def read_disks(device: Device) -> dict[str, DiskReads]:
    """Ask what was read from each disk that has a medium.

    Returns:
        The reads, by the names of the disk's device and of its block node.
    """
    try:
        disks = await device.monitor.execute("query-blockstats")
    except CommandError:
        return {}
    return _parse_disks(disks)


def _parse_disks(disks: object) -> dict[str, DiskReads]:
    found: dict[str, DiskReads] = {}
    for disk in cast("list[object]", disks) if isinstance(disks, list) else []:
        match disk:
            # A drive without a medium has no node.
            case {
                "node-name": str(node),
                "stats": {"rd_bytes": int(size), "rd_operations": int(operations)},
            } if is_size(size) and is_size(operations):
                # Two devices can share a node, and each has counters of its own.
                device_name = cast("dict[str, object]", disk).get("qdev")
                found[f"{device_name} {node}"] = DiskReads(size, operations)
            case _:
                pass
    return found


def _sum_reads(found: Mapping[str, DiskReads]) -> DiskReads | None:
    """Return the sums over all disks; ``None`` if there are none."""
    if not found:
        return None
    disks = found.values()
    return DiskReads(
        sum(disk.bytes for disk in disks), sum(disk.operations for disk in disks)
    )
