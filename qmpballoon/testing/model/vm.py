"""A VM's state, and what can be done to it.

This is what the monitor's commands work on: memory, devices, objects and run state.
:class:`~qmpballoon.testing.Machine` adds what happens by itself: time and clients.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Final, NoReturn

from attrs import define, field

from qmpballoon.testing.model.arguments import Aborted
from qmpballoon.testing.model.balloon import BalloonDevice
from qmpballoon.testing.model.chardevs import SHARED, Chardev, QmpMonitor
from qmpballoon.testing.model.config import MachineConfig
from qmpballoon.testing.model.guest import Guest
from qmpballoon.testing.model.memory import PAGE, Memory
from qmpballoon.testing.model.objects import build_tree
from qmpballoon.testing.model.profiles import profile

if TYPE_CHECKING:
    from qmpballoon.testing.model.chardevs import Descriptor, Monitor
    from qmpballoon.testing.model.profiles import Profile
    from qmpballoon.testing.model.qobject import Value
    from qmpballoon.testing.model.qom import Tree

__all__ = ["PERIPHERAL", "Dimm", "Vm"]

PERIPHERAL: Final = "/machine/peripheral"
"""The path of the object that devices with an id belong to."""

_OWN_MEMORY: Final = 60 << 20
"""Bytes that QEMU itself keeps resident beside its guest's memory. QEMU 7.2 without
other devices takes 37 to 44 MiB; the devices of an ordinary VM add to that."""


@define
class Dimm:
    """A DIMM that was plugged in.

    Attributes:
        parent: The path of the object that it belongs to.
        name: Its name there.
        backend: The id of the memory that it is made of.
        size: In bytes.
        slot: Its slot's number.
        address: Where the guest sees it.
        leaves_at: When the guest releases it, on the guest's clock, if it was asked to.
    """

    parent: str
    name: str
    backend: str
    size: int
    slot: int
    address: int
    leaves_at: int | None = None

    @property
    def id(self) -> str | None:
        """Its id, if it was given one."""
        return self.name if self.parent == PERIPHERAL else None

    @property
    def path(self) -> str:
        """Its path in the tree of objects."""
        return f"{self.parent}/{self.name}"


@define(eq=False)
class Vm(ABC):
    """One QEMU's state, and its guest's.

    Attributes:
        config: What it was started with.
        profile: The version that it is.
        rng: Source of what differs from one guest to the next.
        status: The run state, as ``query-status`` shows it.
        ended: QEMU has quit.
        guest: The guest.
        device: The balloon device, if there is one.
        tree: QEMU's objects.
        dimms: DIMMs that are plugged in, by path.
        anonymous: Number of devices without an id that there have been.
        backends: Memory that DIMMs can be made of: sizes in bytes, by id.
        monitor_path: The path of the shared monitor's socket.
        chardevs: Character devices, by id.
        monitors: Monitors, by their objects' names.
        current_monitor: The monitor that the present command came on.
    """

    config: MachineConfig = field(factory=MachineConfig)
    profile: Profile = field(factory=lambda: profile("10.0"))
    rng: random.Random = field(factory=lambda: random.Random(0))
    status: str = field(init=False, default="running")
    ended: bool = field(init=False, default=False)
    guest: Guest = field(init=False)
    device: BalloonDevice | None = field(init=False, default=None)
    tree: Tree = field(init=False)
    dimms: dict[str, Dimm] = field(init=False, factory=dict[str, Dimm])
    anonymous: int = field(init=False, default=0)
    backends: dict[str, int] = field(init=False, factory=dict[str, int])
    monitor_path: str = field(init=False, default="/run/vm.qmp")
    chardevs: dict[str, Chardev] = field(init=False, factory=dict[str, Chardev])
    monitors: dict[str, Monitor] = field(init=False, factory=dict[str, "Monitor"])
    current_monitor: QmpMonitor = field(
        init=False, factory=lambda: QmpMonitor(SHARED, SHARED)
    )

    def __attrs_post_init__(self) -> None:
        config = self.config
        self.guest = Guest(
            config.guest,
            Memory(config.memory),
            config.deflate_on_oom,
            config.free_page_reporting,
            self.rng,
        )
        if config.balloon:
            self.device = BalloonDevice(
                self.profile.stat_names, self.profile.reset_clears_stats, config.shows
            )
            self.anonymous += config.balloon_id is None
        self.tree = build_tree(config, self.profile, self.device, self.guest)
        if config.paused:
            self.status = "prelaunch"
        else:
            self.guest.start_booted()

    @abstractmethod
    def emit(self, name: str, data: dict[str, Value] | None = None) -> None:
        """Send an event to all clients."""

    # Monitors

    @property
    @abstractmethod
    def has_shared_client(self) -> bool:
        """Whether the shared monitor has a client."""

    @abstractmethod
    def begin_serving(self, monitor: Monitor, descriptor: Descriptor) -> None:
        """Serve a client on a descriptor that was handed over."""

    @abstractmethod
    def end_serving(self, monitor: Monitor) -> None:
        """Serve a monitor's client no more. Its descriptor stays open."""

    def close_files(self) -> None:
        """Close all descriptors that were handed over, as when QEMU has ended."""
        for monitor in self.monitors.values():
            monitor.close()
        for chardev in self.chardevs.values():
            chardev.close()

    # Memory

    @property
    def actual(self) -> int | None:
        """The guest's size in bytes, as its driver told last; ``None``: no balloon."""
        if self.device is None:
            return None
        return self.device.compute_actual(self.guest.memory.ram)

    @property
    def target(self) -> int | None:
        """The size in bytes that the guest was last asked for; ``None``: no balloon."""
        if self.device is None:
            return None
        return self.guest.memory.ram - self.device.asked * PAGE

    @property
    def resident(self) -> int:
        """Memory of the host that QEMU holds, in bytes."""
        return _OWN_MEMORY + self.guest.memory.backed

    def set_target(self, size: int) -> None:
        """Ask the guest for a size, in bytes."""
        if self.device:
            self.device.ask(size, self.guest.memory.ram)
            self.guest.set_target(self.device.asked * PAGE)

    # Run state

    @property
    def running(self) -> bool:
        """Whether the guest's clock runs."""
        return self.status == "running" and not self.ended

    def stop(self) -> None:
        """Stop the guest's clock."""
        if self.running:
            self.status = "paused"
            self.emit("STOP")

    def resume(self) -> None:
        """Let the guest's clock run."""
        if self.running:
            return
        self.status = "running"
        if not self.guest.begun:
            self.guest.boot()
        self.emit("RESUME")

    def reset(self, *, by_guest: bool) -> None:
        """Reset the machine. The guest boots again once its clock runs."""
        reason = "guest-reset" if by_guest else "host-qmp-system-reset"
        self.emit("RESET", {"guest": by_guest, "reason": reason})
        if self.device:
            self.device.reset()
        self.guest.boot()
        if not self.running:
            self.status = "prelaunch"

    def quit(self) -> None:
        """End QEMU in good order, as the command ``quit`` does."""
        self.emit("SHUTDOWN", {"guest": False, "reason": "host-qmp-quit"})
        self.ended = True

    def die(self) -> None:
        """End QEMU as SIGKILL does: no event is sent."""
        self.ended = True

    def abort(self) -> NoReturn:
        """End QEMU as a failed assertion does, while it carries a command out.

        Raises:
            Aborted: Always.
        """
        self.die()
        raise Aborted
