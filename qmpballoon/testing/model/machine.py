"""A simulated QEMU with a guest in it: requests in, replies and events out.

Everything here is pure: no I/O, no event loop, no clock. Time is an integer count of
nanoseconds that the caller advances::

    machine = Machine(MachineConfig(memory=4 << 30), profile("10.0"), Random(1))
    monitor = machine.connect()
    monitor.receive(b'{"execute": "qmp_capabilities"}')
    monitor.take_output()                      # the greeting and the reply
    machine.advance(machine.now + 5 * SECOND)
    machine.find_next_output()            # no client gets anything before then

The output depends on the machine and on the calls and their times only. How often the
machine is advanced in between makes no difference.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from attrs import define, field

from qmpballoon.testing.model.chardev_commands import (
    add_shared_monitor,
    note_client_left,
)
from qmpballoon.testing.model.chardevs import SHARED, HmpMonitor, QmpMonitor
from qmpballoon.testing.model.commands import build_commands
from qmpballoon.testing.model.config import SECOND
from qmpballoon.testing.model.dimms import remove_dimm
from qmpballoon.testing.model.hmp_session import HmpSession
from qmpballoon.testing.model.memory import PAGE
from qmpballoon.testing.model.monitor import Session, Throttle
from qmpballoon.testing.model.vm import Vm

if TYPE_CHECKING:
    from collections.abc import Mapping

    from qmpballoon.testing.model.balloon import BalloonDevice
    from qmpballoon.testing.model.chardevs import Descriptor, Monitor
    from qmpballoon.testing.model.monitor import Command
    from qmpballoon.testing.model.qobject import Value

__all__ = ["AnySession", "Machine"]

AnySession: TypeAlias = "Session | HmpSession"
"""A client's connection to a monitor of either kind."""


@define(eq=False)
class Machine(Vm):
    """One QEMU and its guest.

    Args:
        config: What it is started with; by default a VM of 2 GiB, of which 1 GiB is
            page cache.
        profile: The version that it is; by default 10.0.
        rng: Source of what differs from one guest to the next.

    Attributes:
        now: Nanoseconds since it was started.
        commands: Its version's commands, by name.
        reply_delay: How long QEMU takes to answer a request, in nanoseconds.
        event_delay: By how much events are late, in nanoseconds.
        event_copies: How often each event is sent.
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

    now: int = field(init=False, default=0)
    commands: Mapping[str, Command] = field(init=False)
    reply_delay: int = field(init=False)
    event_delay: int = field(init=False, default=0)
    event_copies: int = field(init=False, default=1)
    _sessions: list[AnySession] = field(init=False, factory=list[AnySession])
    _opened: list[tuple[AnySession, Descriptor]] = field(
        init=False, factory=list[tuple[AnySession, "Descriptor"]]
    )
    _throttle: Throttle = field(init=False, factory=Throttle)
    _slept: int = field(init=False, default=0)

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        self.reply_delay = self.config.reply_delay
        self.commands = build_commands(self)
        add_shared_monitor(self)
        if self.running:
            self._notice()

    # Clients

    def connect(self) -> Session:
        """Connect a client. Its output begins with the greeting.

        A monitor of QEMU serves one client at a time. Several sessions are several
        monitors, each of which sends every event.
        """
        monitor = self.monitors[SHARED]
        assert isinstance(monitor, QmpMonitor)  # noqa: S101 -- made so
        session = Session(self, monitor)
        self._sessions.append(session)
        return session

    def disconnect(self, session: AnySession) -> None:
        """Disconnect a client."""
        if session in self._sessions:
            self._sessions.remove(session)
            note_client_left(self, session.monitor)

    @property
    def has_shared_client(self) -> bool:
        """Whether the shared monitor has a client."""
        return any(each.monitor.name == SHARED for each in self._sessions)

    def begin_serving(self, monitor: Monitor, descriptor: Descriptor) -> None:
        """Serve a client on a descriptor that was handed over."""
        session = self._open_session(monitor)
        self._sessions.append(session)
        self._opened.append((session, descriptor))

    def _open_session(self, monitor: Monitor) -> AnySession:
        if isinstance(monitor, HmpMonitor):
            return HmpSession(monitor, self.profile)
        assert isinstance(monitor, QmpMonitor)  # noqa: S101 -- there are two kinds
        return Session(self, monitor)

    def take_opened(self) -> list[tuple[AnySession, Descriptor]]:
        """Return the sessions on descriptors that have begun since the last call.

        Whoever calls this passes bytes between each session and its descriptor.
        """
        opened, self._opened = self._opened, []
        return opened

    def miss_client(self, session: AnySession) -> None:
        """Never notice that a client left, as QEMU does before it has greeted."""
        if session in self._sessions:
            self._sessions.remove(session)
            self.chardevs[session.monitor.chardev].is_served = False

    def end_serving(self, monitor: Monitor) -> None:
        """Serve a monitor's client no more. Its descriptor stays open."""
        for session in [each for each in self._sessions if each.monitor is monitor]:
            self._sessions.remove(session)
            session.closed = True

    def emit(self, name: str, data: dict[str, Value] | None = None) -> None:
        """Send an event to all clients."""
        self._broadcast(self._make_event(name, data, self.now))

    def _make_event(
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

    def sleep(self, duration: int) -> None:
        """Let only the wall clock go on, as for a process that was stopped."""
        self._slept += duration

    def find_next_event(self) -> int | None:
        """Return when something next happens without a request; ``None`` for never.

        Before then there is no output for any client, and QEMU gets no statistics.
        """
        return self._find_earliest(only_output=False)

    def find_next_output(self) -> int | None:
        """Return a time before which no client gets output; ``None``: none ever does.

        Much happens in a guest without output: there is one event a second at most for
        the balloon, and statistics have to be asked for. So this time is later than
        that of :meth:`find_next_event`, and takes a fraction of the work to find.
        """
        return self._find_earliest(only_output=True)

    def _find_earliest(self, *, only_output: bool) -> int | None:
        """Return the first time of output, and of what happens without any."""
        if self.ended:
            return None
        times = [s.due for s in self._sessions]
        times.append(self._throttle.due)
        if self.running:
            guest, offset = self.guest, self.now - self.guest.now
            guest_times = [dimm.leaves_at for dimm in self.dimms.values()]
            if self._throttle.is_open:
                guest_times.append(guest.find_next_step())
            if self._throttle.is_open or not only_output:
                guest_times.append(guest.find_next_event())
            if self.device and not only_output:
                guest_times += [self.device.answer_at, self.device.poll_at]
            times += [t + offset for t in guest_times if t is not None]
        known = [t for t in times if t is not None]
        return max(self.now, min(known)) if known else None

    def advance(self, to: int) -> None:
        """Let time pass until ``to``, and do everything that is due by then.

        Args:
            to: In nanoseconds since the machine was started.

        Raises:
            ValueError: ``to`` is in the past.
        """
        if to < self.now:
            raise ValueError(f"the machine is at {self.now} ns already, not {to}")
        while (event := self.find_next_event()) is not None and event <= to:
            self._pass(event)
            self.settle()
        self._pass(to)

    def _pass(self, to: int) -> None:
        if self.running:
            self.guest.advance(self.guest.now + to - self.now)
        self.now = to
        self._notice()

    def settle(self) -> None:
        """Do what is due now."""
        self._notice()
        if self.running:
            self._poll()
            self._unplug()
        self._broadcast(self._throttle.expire(self.now))
        for session in list(self._sessions):
            session.run()
            session.closed = session.closed or self.ended

    # What QEMU learns of the guest

    def _notice(self) -> None:
        """Take what the driver has told since the last call."""
        device, guest = self.device, self.guest
        if device is None:
            return
        if guest.driver_ready and not device.driver_seen:
            device.driver_seen = True
            self._take_sample(device)
        if guest.changed_at == device.change_seen:
            return
        device.change_seen = guest.changed_at
        told = guest.memory.balloon // PAGE
        if told != device.told:
            device.told = told
            at = self.now - (guest.now - guest.changed_at)
            data: dict[str, Value] = {"actual": device.compute_actual(guest.memory.ram)}
            event = self._make_event("BALLOON_CHANGE", data, at)
            self._broadcast(self._throttle.offer(event, self.now))

    def _poll(self) -> None:
        """Handle the statistics' timer, and the guest's answer."""
        device, guest = self.device, self.guest
        if device is None:
            return
        due = device.poll_at is not None and device.poll_at <= guest.now
        if due and device.poll(guest.now):
            device.answer_at = guest.answer_time
        if device.answer_at is not None and device.answer_at <= guest.now:
            self._take_sample(device)

    def _take_sample(self, device: BalloonDevice) -> None:
        epoch = (self.config.epoch + self._slept + self.now) // SECOND
        device.take_sample(self.guest.tell_statistics(), self.guest.now, epoch)

    def _unplug(self) -> None:
        for path, dimm in list(self.dimms.items()):
            if dimm.leaves_at is not None and dimm.leaves_at <= self.guest.now:
                remove_dimm(self, path)
