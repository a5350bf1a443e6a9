"""What is shown of one VM: its state, its figures, and what it is left with.

Values alone, for whoever prints, draws, counts or sends them. They are made from what
is known of a VM: see :mod:`qmpballoon.fleet.vm`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, get_args

from attrs import asdict, field, frozen

from qmpballoon.balloon.device import LARGEST_PAGE, describe_small
from qmpballoon.sizes import format_size

if TYPE_CHECKING:
    from qmpballoon.balloon.results import DiskReads
    from qmpballoon.balloon.stats import GuestStats
    from qmpballoon.fleet.vm_spec import Bounds

__all__ = [
    "NO_STATISTICS",
    "VM_STATES",
    "LeftGuest",
    "SmallGuest",
    "VmCounters",
    "VmState",
    "VmView",
]

VmState = Literal[
    "connecting",
    "healthy",
    "stalled",
    "held",
    "nonsense",
    "stale",
    "no-driver",
    "no-balloon",
    "busy",
    "no-permission",
    "refused",
    "gone",
    "failed",
]
"""The state of a VM:

* ``connecting``: nothing is known yet.
* ``healthy``: the guest answers, and its balloon can be moved.
* ``stalled``: the guest answers, but recently gave less than half of what it said it
  could, or somebody else moves its balloon. It is not asked again for a while.
* ``held``: the guest answers, and another process holds memory of it: a reclaim that
  reached it by another monitor. It is left alone until that process gives the memory
  back.
* ``nonsense``: the guest reports figures that cannot be true, such as more memory than
  it has. It is left alone.
* ``stale``: the guest does not answer: it is paused, is being migrated, hangs, has lost
  its driver, or has one that works and reports no statistics.
* ``no-driver``: the guest runs, never answered, and its balloon never moved. No
  virtio_balloon is loaded in it.
* ``no-balloon``: the VM has no balloon device.
* ``busy``: another client holds the monitor.
* ``no-permission``: this process may not connect to the monitor's socket.
* ``refused``: a user or process that is not trusted listens at its monitor's socket.
* ``gone``: the monitor cannot be reached, or does not speak QMP.
* ``failed``: handling the VM raised an error that is a bug in this library. The VM is
  connected to again, as if it were gone.
"""
VM_STATES: Final[tuple[VmState, ...]] = get_args(VmState)
"""All states."""

_OUT_OF_REACH: Final[frozenset[VmState]] = frozenset(
    {"busy", "no-permission", "refused", "gone", "failed"}
)
NO_STATISTICS: Final = (
    "its balloon works, but the guest reports no statistics: start the Balloon Service"
    " (Windows), or use a driver that reports them"
)
"""What messages say of a guest whose balloon moves and that reports no statistics."""


@frozen
class VmCounters:
    """What has happened to one VM since it was first seen.

    Attributes:
        given: Bytes that the guest was given.
        taken: Bytes that were taken from it.
        moves: Moves of the balloon that ended, at their target or not.
        stalls: Moves that did not reach their target.
        losses: How often the connection was lost.
    """

    given: int = 0
    taken: int = 0
    moves: int = 0
    stalls: int = 0
    losses: int = 0


@frozen
class VmView:
    """One VM at one moment. Sizes in bytes; ``None`` for what is not known.

    Attributes:
        name: Its name in the fleet.
        address: Where its monitor is.
        state: Its state.
        detail: What is wrong and what to do, for people; empty if nothing is wrong.
        actual: How much memory the guest has.
        total: The VM's RAM.
        target: The size that it is moving to; ``None`` if it does not move.
        resident: How much of the host's memory QEMU holds.
        bounds: Floor, ceiling and headroom.
        stats: The guest's latest statistics.
        counters: What has happened to the VM.
        disk_reads: What the VM has read from its disks; ``None`` if that is not known.
        hot: The page cache beyond its headroom that the guest reads again and again,
            whether it still has it or it was taken from it. ``None`` if not known: the
            VM has no disk, or has been watched for less than ten seconds.
        owed: The size that an interrupted run owes the guest; ``None`` if none.
        holder: The id of another process that holds memory of the guest, and gives it
            back itself; ``None`` if there is none.
    """

    name: str
    address: str
    state: VmState
    detail: str
    actual: int | None
    total: int | None
    target: int | None
    resident: int | None
    bounds: Bounds | None
    stats: GuestStats = field(repr=False)
    counters: VmCounters = field(repr=False)
    disk_reads: DiskReads | None = None
    hot: int | None = None
    owed: int | None = None
    holder: int | None = None

    @property
    def is_fresh(self) -> bool:
        """Whether the guest's statistics are recent enough to be used."""
        return self.takes_part or self.state == "held"

    @property
    def takes_part(self) -> bool:
        """Whether plans can move its balloon, now or after a while."""
        return self.state in ("healthy", "stalled")

    @property
    def is_reached(self) -> bool:
        """Whether the VM's monitor answers."""
        if self.state == "connecting":
            return self.actual is not None
        return self.state not in _OUT_OF_REACH

    @property
    def holds_unknown_memory(self) -> bool:
        """Whether it is unknown what QEMU holds, so that all the guest has counts."""
        return self.actual is not None and self.resident is None

    @property
    def above_headroom(self) -> int | None:
        """Bytes available above the headroom; below 0 if the guest is in need."""
        available, bounds = self.stats.reclaimable, self.bounds
        if not self.is_fresh or available is None or bounds is None:
            return None
        return available - bounds.headroom

    def to_json(self) -> dict[str, object]:
        """Return it as the command prints it: bytes and seconds."""
        balloon = {
            "actual": self.actual,
            "total": self.total,
            "target": self.target,
            "owed": self.owed,
            "holder": self.holder,
        }
        return {
            "name": self.name,
            "address": self.address,
            "state": self.state,
            "detail": self.detail,
            "balloon": None if self.actual is None else balloon,
            "limits": self.bounds and asdict(self.bounds),
            "stats": None
            if self.stats.last_update is None
            else {**self.stats.to_json(), "fresh": self.is_fresh},
            "host": {"resident": self.resident},
            "disk_reads": self.disk_reads and asdict(self.disk_reads),
            "hot": self.hot,
        }


@frozen
class SmallGuest:
    """A guest that has less than all its RAM; sizes in bytes.

    Attributes:
        name: Its VM's name.
        actual: The size that it has, or the target of a move that did not end.
        ram: The VM's RAM.
        found: The size that it was found with; ``None`` if it had all its RAM then, or
            at some time since then.
    """

    name: str
    actual: int
    ram: int
    found: int | None

    def describe(self) -> str:
        """Return a clause that says what it is left with, and why."""
        if self.found is None:
            why = "to which it was moved"
        elif abs(self.found - self.actual) < LARGEST_PAGE:
            why = "as it was found"
        else:
            why = f"after it was found with {format_size(self.found)}"
        return describe_small(self.actual, self.ram, why)


@frozen
class LeftGuest:
    """A guest that was left on its way, because its QEMU did not answer.

    Attributes:
        name: Its VM's name.
        target: The size in bytes that it was to reach.
        actual: The size in bytes that it had when QEMU last told; ``None``: not known.
    """

    name: str
    target: int
    actual: int | None
