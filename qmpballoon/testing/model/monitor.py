"""The monitor: a session with each client, and the events that it throttles.

Requests are carried out in order. QEMU queues eight of them for a client that
negotiated out-of-band execution, one for any other. Then it stops reading, so the bytes
of the next request wait in the socket. Out-of-band requests are carried out as soon as
they are read, and overtake the queue.

Some kinds of event are sent once a second at most. The first is sent at once. Within
the second after it, a newer event replaces the one that waits; the newest is sent when
the second is over, and another second begins. An event's timestamp is the time at which
it was made, not that at which it is sent.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final, Protocol, cast

from attrs import define, field, frozen

from qmpballoon.testing.model.arguments import (
    Aborted,
    Argument,
    QmpError,
    check_arguments,
)
from qmpballoon.testing.model.config import SECOND
from qmpballoon.testing.model.qobject import order_members, to_json
from qmpballoon.testing.model.reader import Malformed, Reader

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from qmpballoon.testing.model.chardevs import Descriptor, QmpMonitor
    from qmpballoon.testing.model.profiles import Profile
    from qmpballoon.testing.model.qobject import Value
    from qmpballoon.testing.model.reader import Parsed

__all__ = ["QUEUE_LENGTH", "Command", "Host", "Session", "Throttle"]

QUEUE_LENGTH: Final = 8
"""Requests that QEMU queues for a client with out-of-band execution: its
``QMP_REQ_QUEUE_LEN_MAX``."""

_THROTTLE_PERIOD: Final = SECOND
"""Nanoseconds between two events of a throttled kind, as in QEMU's
``monitor_qapi_event_conf``."""


class Host(Protocol):
    """What a session needs of its machine."""

    profile: Profile
    now: int
    reply_delay: int
    event_delay: int
    event_copies: int
    ended: bool
    current_monitor: QmpMonitor

    @property
    def commands(self) -> Mapping[str, Command]:
        """The commands of this QEMU, by name."""
        ...

    def settle(self) -> None:
        """Do what is due now."""
        ...


@frozen
class Command:
    """A command of the monitor.

    Attributes:
        run: Carries the command out with its arguments, and returns its result.
        schema: The arguments to check first; ``None``: ``run`` checks them itself.
        oob: The command may be executed out of band.
    """

    run: Callable[[dict[str, Value]], Value]
    schema: tuple[Argument, ...] | None = ()
    oob: bool = False


@frozen
class _Queued:
    message: Parsed | Malformed
    due: int


@define(eq=False)
class Session:
    """A client's connection, as QEMU sees it.

    Attributes:
        monitor: The monitor that it is on.
        negotiated: ``qmp_capabilities`` has been answered, so events are sent.
        oob: Out-of-band execution was negotiated.
        closed: QEMU has closed the connection. The output may still be read.
    """

    _host: Host
    monitor: QmpMonitor
    negotiated: bool = field(init=False, default=False)
    oob: bool = field(init=False, default=False)
    closed: bool = field(init=False, default=False)
    _reader: Reader = field(init=False)
    _queue: deque[_Queued] = field(init=False, factory=deque[_Queued])
    _late: deque[tuple[int, dict[str, Value]]] = field(
        init=False, factory=deque[tuple[int, "dict[str, Value]"]]
    )
    _output: bytearray = field(init=False, factory=bytearray)

    def __attrs_post_init__(self) -> None:
        self._reader = Reader(self._host.profile.grammar)
        self.send({"QMP": self._host.profile.greeting})

    # To and from the client

    def receive(self, data: bytes, descriptors: Sequence[Descriptor] = ()) -> None:
        """Take bytes from the client, and do what they ask for.

        Args:
            data: The bytes.
            descriptors: The file descriptors that came with them.
        """
        if descriptors:
            self.monitor.receive(descriptors)
        self._reader.feed(data)
        self.run()
        self._host.settle()

    @property
    def reading(self) -> bool:
        """Whether QEMU reads on, or lets further bytes wait in the socket."""
        return len(self._queue) < (QUEUE_LENGTH if self.oob else 1)

    def take_output(self) -> bytes:
        """Return the bytes for the client since the last call."""
        data = bytes(self._output)
        self._output.clear()
        return data

    def send(self, message: dict[str, Value]) -> None:
        """Write a message to the client."""
        if not self.closed:
            self._output += to_json(message).encode("ascii") + b"\r\n"

    def send_event(self, event: dict[str, Value]) -> None:
        """Write an event to the client. Before negotiation the event is lost."""
        if self.negotiated:
            due = self._host.now + self._host.event_delay
            self._late.extend([(due, event)] * self._host.event_copies)
            self._send_late()

    def _send_late(self) -> None:
        while self._late and self._late[0][0] <= self._host.now:
            self.send(self._late.popleft()[1])

    # Requests

    @property
    def due(self) -> int | None:
        """When it next has output, as far as is known now; ``None``: not known."""
        times = [self._queue[0].due] if self._queue else []
        times += [self._late[0][0]] if self._late else []
        return min(times, default=None)

    def run(self) -> None:
        """Answer requests that are due, and read on while the queue has room."""
        self._send_late()
        while not self._host.ended:
            if self._queue and self._queue[0].due <= self._host.now:
                self._answer(self._queue.popleft().message)
            elif self.reading and (message := self._reader.next_message()):
                self._accept(message)
            else:
                return

    def _accept(self, message: Parsed | Malformed) -> None:
        if _is_oob(message):
            self._answer(message)
        else:
            due = self._host.now + self._host.reply_delay
            self._queue.append(_Queued(message, due))

    def _answer(self, message: Parsed | Malformed) -> None:
        if isinstance(message, Malformed):
            self.send(_failure(QmpError(message.desc)))
            return
        request = message.value
        if not isinstance(request, dict):
            self.send(_failure(QmpError("QMP input must be a JSON object")))
            return
        try:
            reply: dict[str, Value] = {"return": self._execute(request)}
        except QmpError as error:
            reply = _failure(error)
        except Aborted:
            return
        if "id" in request:
            reply["id"] = request["id"]
        self.send(reply)

    def _execute(self, request: dict[str, Value]) -> Value:
        name = self._check(request)
        command = self._find(name)
        if "exec-oob" in request and not command.oob:
            raise QmpError(f"The command {name} does not support OOB")
        arguments = request.get("arguments", {})
        assert isinstance(arguments, dict)  # noqa: S101 -- _check holds it
        if command.schema is not None:
            check_arguments(command.schema, arguments)
        self._host.current_monitor = self.monitor
        return command.run(arguments)

    def _check(self, request: dict[str, Value]) -> str:
        """Check a request's members, and return the command's name."""
        command: str | None = None
        key: str | None = None
        for name, value in order_members(request):
            if name == "execute" or (name == "exec-oob" and self.oob):
                if not isinstance(value, str):
                    raise QmpError(f"QMP input member '{name}' must be a string")
                if key:
                    raise QmpError(f"QMP input member '{name}' clashes with '{key}'")
                key, command = name, value
            elif name == "arguments":
                if not isinstance(value, dict):
                    raise QmpError("QMP input member 'arguments' must be an object")
            elif name != "id":
                raise QmpError(f"QMP input member '{name}' is unexpected")
        if command is None:
            raise QmpError("QMP input lacks member 'execute'")
        return command

    def _find(self, name: str) -> Command:
        if name == "qmp_capabilities":
            schema = (Argument("enable", "strings", optional=True),)
            return Command(self._negotiate, schema)
        if not self.negotiated:
            raise QmpError(
                "Expecting capabilities negotiation with 'qmp_capabilities'",
                "CommandNotFound",
            )
        if name not in self._host.commands:
            raise QmpError(f"The command {name} has not been found", "CommandNotFound")
        return self._host.commands[name]

    def _negotiate(self, arguments: dict[str, Value]) -> Value:
        wanted = cast("list[str]", arguments.get("enable", []))
        for i, name in enumerate(wanted):
            if name != "oob":
                where = self._host.profile.element_name.format(i)
                raise QmpError(f"Parameter '{where}' does not accept value '{name}'")
        if self.negotiated:
            raise QmpError(
                "Capabilities negotiation is already complete, command ignored",
                "CommandNotFound",
            )
        self.negotiated = True
        self.oob = "oob" in wanted
        return {}


def _is_oob(message: Parsed | Malformed) -> bool:
    if isinstance(message, Malformed) or not isinstance(message.value, dict):
        return False
    return "exec-oob" in message.value and "execute" not in message.value


def _failure(error: QmpError) -> dict[str, Value]:
    return {"error": {"class": error.error_class, "desc": error.desc}}


@define
class Throttle:
    """Passes events of one kind on, one in each period.

    Attributes:
        due: When the current period ends; ``None``: none has begun.
    """

    due: int | None = field(init=False, default=None)
    _newest: dict[str, Value] | None = field(init=False, default=None)

    @property
    def is_open(self) -> bool:
        """Whether an event would be sent at once."""
        return self.due is None

    def offer(self, event: dict[str, Value], now: int) -> dict[str, Value] | None:
        """Take an event, and return it if it is to be sent at once."""
        if self.due is not None:
            self._newest = event
            return None
        self.due = now + _THROTTLE_PERIOD
        return event

    def expire(self, now: int) -> dict[str, Value] | None:
        """End a period that is over, and return the event to send now, if any."""
        if self.due is None or now < self.due:
            return None
        event, self._newest = self._newest, None
        self.due = None if event is None else now + _THROTTLE_PERIOD
        return event
