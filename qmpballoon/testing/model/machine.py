"""A simulated QEMU with a guest in it: commands in, replies and events out.

Everything here is pure: no I/O, no event loop, no clock. Time is an integer count
of nanoseconds that the caller moves on::

    machine = Machine(MachineConfig(memory=4 << 30), profile("10.0"), Random(1))
    monitor = machine.connect()
    monitor.receive(b'{"execute": "qmp_capabilities"}')
    monitor.output()                      # the greeting and the reply
    machine.advance(machine.now + 5 * SECOND)
    machine.next_word_time()              # nothing is said by itself before then

The same machine, driven by the same calls at the same times, says the same bytes.
How often it is advanced in between makes no difference.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Final, NoReturn

from attrs import define, field, frozen
from attrs.validators import ge, gt

from qmpballoon.testing.model.balloon import BalloonDevice
from qmpballoon.testing.model.commands import build_commands
from qmpballoon.testing.model.guest import Guest
from qmpballoon.testing.model.guest_config import SECOND, GuestConfig
from qmpballoon.testing.model.memory import PAGE, Memory
from qmpballoon.testing.model.objects import build_tree
from qmpballoon.testing.model.session import Session
from qmpballoon.testing.model.throttle import Throttle
from qmpballoon.testing.model.visit import Aborted
from qmpballoon.testing.model.workload import WorkloadStep, ramp
from qmpballoon.testing.profiles import profile

if TYPE_CHECKING:
    from collections.abc import Mapping

    from qmpballoon.testing.model.dimms import Dimm
    from qmpballoon.testing.model.qobject import Value
    from qmpballoon.testing.model.qom import Tree
    from qmpballoon.testing.model.session import Command
    from qmpballoon.testing.profiles import Profile

__all__ = [
    "SECOND",
    "GuestConfig",
    "Machine",
    "MachineConfig",
    "Session",
    "WorkloadStep",
    "ramp",
]

_BALLOONS: Final = (
    "virtio-balloon-pci",
    "virtio-balloon-pci-transitional",
    "virtio-balloon-pci-non-transitional",
    "virtio-balloon-device",
)
_OWN_MEMORY: Final = 60 << 20
"""Bytes that QEMU itself keeps resident, whatever its guest does."""


def _is_balloon(_: object, __: object, value: str | None) -> None:
    if value is not None and value not in _BALLOONS:
        raise ValueError(f"balloon is {value!r}: there are {', '.join(_BALLOONS)}")


@frozen
class MachineConfig:
    """A VM's command line, as it were. Sizes in bytes, times in nanoseconds.

    Attributes:
        memory: RAM at the start.
        slots: For DIMMs that are plugged in later.
        max_memory: RAM with all of them; 0: none can be plugged.
        balloon: The device's type: virtio-balloon-device, as on a microvm, or
            virtio-balloon-pci, -pci-transitional or -pci-non-transitional. None: there
            is no balloon.
        balloon_id: The device's id; None: it is anonymous.
        deflate_on_oom: The device's property of that name.
        free_page_reporting: Likewise.
        page_poison: Likewise.
        paused: Started with ``-S``: the guest has not begun.
        name: The VM's name.
        uuid: The VM's UUID.
        pid: QEMU's process id; its first CPU's thread has the next number.
        epoch: The wall clock's time when the machine's is 0, since 1970.
        reply_delay: Between reading a request and answering it.
        guest: What runs in it.
    """

    memory: int = field(default=2 << 30, validator=gt(0))
    slots: int = field(default=0, validator=ge(0))
    max_memory: int = field(default=0, validator=ge(0))
    balloon: str | None = field(default="virtio-balloon-pci", validator=_is_balloon)
    balloon_id: str | None = "balloon0"
    deflate_on_oom: bool = False
    free_page_reporting: bool = False
    page_poison: bool = True
    paused: bool = False
    name: str | None = None
    uuid: str = "00000000-0000-0000-0000-000000000000"
    pid: int = field(default=4000, validator=gt(0))
    epoch: int = field(default=1_750_000_000 * SECOND, validator=ge(0))
    reply_delay: int = field(default=0, validator=ge(0))
    guest: GuestConfig = field(factory=GuestConfig)


@define(eq=False)
class Machine:
    """One QEMU and its guest.

    Attributes:
        config: What it was started with.
        profile: The version that it is.
        now: Nanoseconds since it was started.
        status: As ``query-status`` says it.
        ended: QEMU has quit.
        guest: The guest.
        device: The balloon device, if there is one.
        tree: QEMU's objects.
        dimms: What was plugged in, by path.
        anonymous: How many devices without an id there were.
        backends: The memory that DIMMs can be made of: sizes, by id.
        commands: What each command does.
        reply_delay: Between reading a request and answering it, in nanoseconds.
        event_delay: By how much events come late, in nanoseconds.
        event_copies: How often each event is sent.
    """

    config: MachineConfig = field(factory=MachineConfig)
    profile: Profile = field(factory=lambda: profile("10.0"))
    rng: random.Random = field(factory=lambda: random.Random(0))
    now: int = field(init=False, default=0)
    status: str = field(init=False, default="running")
    ended: bool = field(init=False, default=False)
    guest: Guest = field(init=False)
    device: BalloonDevice | None = field(init=False, default=None)
    tree: Tree = field(init=False)
    dimms: dict[str, Dimm] = field(init=False, factory=dict[str, "Dimm"])
    anonymous: int = field(init=False, default=0)
    backends: dict[str, int] = field(init=False, factory=dict[str, int])
    commands: Mapping[str, Command] = field(init=False)
    reply_delay: int = field(init=False)
    event_delay: int = field(init=False, default=0)
    event_copies: int = field(init=False, default=1)
    _sessions: list[Session] = field(init=False, factory=list[Session])
    _throttle: Throttle = field(init=False, factory=Throttle)
    _answer_at: int | None = field(init=False, default=None)
    _slept: int = field(init=False, default=0)
    _seen_driver: bool = field(init=False, default=False)
    _seen_change: int = field(init=False, default=0)

    def __attrs_post_init__(self) -> None:
        config = self.config
        self.reply_delay = config.reply_delay
        self.guest = Guest(
            config.guest,
            Memory(config.memory),
            config.deflate_on_oom,
            config.free_page_reporting,
            self.rng,
        )
        if config.balloon:
            self.device = BalloonDevice(
                self.profile.stat_names, self.profile.reset_clears_stats
            )
            self.anonymous += config.balloon_id is None
        self.tree = build_tree(self)
        self.commands = build_commands(self)
        if config.paused:
            self.status = "prelaunch"
        else:
            self.guest.start_booted()
            self._notice()

    # Clients

    def connect(self) -> Session:
        """Let a client connect; its output begins with the greeting.

        QEMU serves one client per monitor at a time. Several sessions are several
        monitors: each gets every event.
        """
        session = Session(self)
        self._sessions.append(session)
        return session

    def disconnect(self, session: Session) -> None:
        """Let a client go."""
        self._sessions.remove(session)

    def emit(
        self, name: str, data: dict[str, Value] | None = None, at: int | None = None
    ) -> None:
        """Send an event to all clients, now; ``at`` is when it came up."""
        self._broadcast(self._event(name, data, self.now if at is None else at))

    def _event(
        self, name: str, data: dict[str, Value] | None, at: int
    ) -> dict[str, Value]:
        stamp = (self.config.epoch + self._slept + at) // 1000
        seconds, microseconds = divmod(stamp, 1_000_000)
        event: dict[str, Value] = {
            "event": name,
            "timestamp": {"seconds": seconds, "microseconds": microseconds},
        }
        return event if data is None else {**event, "data": data}

    def _broadcast(self, event: dict[str, Value] | None) -> None:
        if event is not None:
            for session in self._sessions:
                session.send_event(event)

    # Time

    @property
    def running(self) -> bool:
        """Tell whether the guest's clock runs."""
        return self.status == "running" and not self.ended

    def next_event_time(self) -> int | None:
        """Return when something happens by itself next; None: never.

        Nothing is said to any client before then, and no statistic changes that
        the guest has told.
        """
        times = [self.guest.next_event_time(), self._answer_at]
        if self.device:
            times.append(self.device.poll_at)
        return self._earliest(times)

    def next_word_time(self) -> int | None:
        """Return until when nothing is said to any client by itself; None: for good.

        Much goes on in a guest without a word: of its balloon there is one a second at
        most, and its statistics have to be asked for. So this is looked up in a
        fraction of the time of :meth:`next_event_time`, and later.
        """
        return self._earliest([])

    def _earliest(self, guest_times: list[int | None]) -> int | None:
        """Return the first of the times of words and of others on the guest's clock."""
        if self.ended:
            return None
        times = [s.due for s in self._sessions]
        times.append(self._throttle.due)
        if self.running:
            guest, offset = self.guest, self.now - self.guest.now
            guest_times += [dimm.leaves_at for dimm in self.dimms.values()]
            if self._throttle.is_open:
                guest_times += [guest.next_event_time(), guest.next_step_time()]
            times += [t + offset for t in guest_times if t is not None]
        known = [t for t in times if t is not None]
        return max(self.now, min(known)) if known else None

    def advance(self, to: int) -> None:
        """Let time pass until ``to``, and everything happen that happens by then.

        Args:
            to: In nanoseconds since the machine was started.

        Raises:
            ValueError: That is in the past.
        """
        if to < self.now:
            raise ValueError(f"the machine is at {self.now} ns already, not {to}")
        while (event := self.next_event_time()) is not None and event <= to:
            self._pass(event)
            self.settle()
        self._pass(to)

    def _pass(self, to: int) -> None:
        if self.running:
            self.guest.advance(self.guest.now + to - self.now)
        self.now = to
        self._notice()

    def settle(self) -> None:
        """Let happen what is due now."""
        self._notice()
        if self.running:
            self._sample()
            self._unplug()
        self._broadcast(self._throttle.expire(self.now))
        for session in self._sessions:
            session.run()
            session.closed = session.closed or self.ended

    # The guest, as QEMU hears of it

    def _notice(self) -> None:
        """Hear what the driver has said since the last time."""
        device, guest = self.device, self.guest
        if device is None:
            return
        if guest.driver_ready and not self._seen_driver:
            self._seen_driver = True
            self._answer()
        if guest.changed_at == self._seen_change:
            return
        self._seen_change = guest.changed_at
        told = guest.memory.balloon // PAGE
        if told != device.told:
            device.told = told
            at = self.now - (guest.now - guest.changed_at)
            data: dict[str, Value] = {"actual": device.actual(guest.memory.ram)}
            event = self._event("BALLOON_CHANGE", data, at)
            self._broadcast(self._throttle.offer(event, self.now))

    def _sample(self) -> None:
        """Let the statistics' timer fire and the guest answer."""
        device, guest = self.device, self.guest
        if device is None:
            return
        due = device.poll_at is not None and device.poll_at <= guest.now
        if due and device.poll(guest.now):
            self._answer_at = guest.answer_time
        if self._answer_at is not None and self._answer_at <= guest.now:
            self._answer()

    def _answer(self) -> None:
        assert self.device is not None  # noqa: S101 -- who asks has one
        self._answer_at = None
        epoch = (self.config.epoch + self._slept + self.now) // SECOND
        self.device.take_sample(self.guest.statistics(), self.guest.now, epoch)

    def _unplug(self) -> None:
        for path, dimm in list(self.dimms.items()):
            if dimm.leaves_at is not None and dimm.leaves_at <= self.guest.now:
                self.remove_dimm(path)

    def remove_dimm(self, path: str) -> None:
        """Take a DIMM away that the guest has let go."""
        dimm = self.dimms.pop(path)
        self.guest.plug(-dimm.size)
        self.tree.remove_child(dimm.parent, dimm.name)
        about = {} if dimm.id is None else {"device": dimm.id}
        self.emit("DEVICE_DELETED", {"path": path, **about})

    # What is done to it

    def set_target(self, size: int) -> None:
        """Ask the guest for a size, in bytes."""
        if self.device:
            self.device.ask(size, self.guest.memory.ram)
            self.guest.set_target(self.device.asked * PAGE)

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
        """Reset the machine; the guest boots again once it runs."""
        reason = "guest-reset" if by_guest else "host-qmp-system-reset"
        self.emit("RESET", {"guest": by_guest, "reason": reason})
        self._answer_at = None
        self._seen_driver = False
        if self.device:
            self.device.reset()
        self.guest.boot()
        if not self.running:
            self.status = "prelaunch"

    def sleep(self, duration: int) -> None:
        """Let the world's clock go on without it, as for a process that is stopped."""
        self._slept += duration

    def quit(self) -> None:
        """End QEMU in good order."""
        self.emit("SHUTDOWN", {"guest": False, "reason": "host-qmp-quit"})
        self.ended = True

    def die(self) -> None:
        """End QEMU as a signal does: without a word."""
        self.ended = True

    def abort(self) -> NoReturn:
        """End QEMU as a failed assertion does: in the middle of a command."""
        self.die()
        raise Aborted

    @property
    def resident(self) -> int:
        """What QEMU has of the host's memory, in bytes."""
        return _OWN_MEMORY + self.guest.memory.backed
