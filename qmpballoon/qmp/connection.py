"""The state machine of one QMP connection, for either end of it.

What the states are for
-----------------------
A QMP server speaks first. A client may send nothing before the greeting, then only
``qmp_capabilities``, and commands only after the reply to that. QEMU answers a client
that breaks this order with "Expecting capabilities negotiation", far from the place of
the mistake. Here it is a :exc:`RuntimeError` at once, and nothing is sent.

::

    client:  GREETING -> NEGOTIATING -> READY -> CLOSED
    server:  GREETING ----------------> READY -> CLOSED

The server's end has no negotiating state, because its users do not want one: a fake
QEMU has to give QEMU's own answers before the negotiation, and only it knows them.

Who owns a command
------------------
The call that encodes a command also registers it, so no reply can come for an unknown
command. Only its reply removes it. A caller that no longer wants the reply calls
:meth:`Connection.abandon`. The reply is then dropped when it comes. Until then the
command still counts as in flight, because it is still in QEMU's queue.

QEMU holds eight commands of a client that negotiated out-of-band execution, then stops
reading its socket. Of other clients it holds one; the others wait in the socket.
:data:`MAX_IN_FLIGHT` keeps a client from filling either.

What an earlier client left
---------------------------
If a client leaves while QEMU carries out its command, the reply goes to the next
client, before or after its greeting. QEMU 7.2, 10.0 and 11.1 do so. Such a reply can
have any id, even one that this module uses. So the negotiation has an id that no
command has, and replies with other ids are dropped until the negotiation is answered.
QEMU answers in order, so all replies to earlier clients come before that.

The reply may be to the negotiation of an earlier client that used this module. That
serves as well, and then the reply to our own negotiation is dropped. QEMU may also
carry out an earlier client's negotiation after we have connected. Then it refuses ours:
there is no such command any more. There can be few replies to earlier clients, because
of a client's queue QEMU carries out only one command. A peer that sends many is broken.

Source: "QEMU Machine Protocol Specification", docs/interop/qmp-spec in QEMU.
"""

from __future__ import annotations

import enum
import json
from typing import TYPE_CHECKING, Final

from qmpballoon._checks import require_command
from qmpballoon.errors import ProtocolError
from qmpballoon.qmp.decoder import Decoder, Limits
from qmpballoon.qmp.messages import (
    Event,
    Failure,
    Greeting,
    Id,
    Message,
    Return,
    parse,
    parse_request,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["MAX_IN_FLIGHT", "Connection", "Role", "State", "encode"]

MAX_IN_FLIGHT: Final = 8
"""How many commands QEMU takes from one client before it stops reading.

Source: ``QMP_REQ_QUEUE_LEN_MAX`` in QEMU.
"""

# QEMU reads its input byte by byte, each in a turn of its main loop. Measured: one more
# byte delays the reply by 3 µs, while the shortest command takes some 120 µs.
_MOST_SHORT_IDS: Final = 9  # of one digit, from 1
_NEGOTIATION_ID: Final = int.from_bytes(b"qmp")  # far from where other clients count
# Replies to earlier clients that are dropped. One was seen at a time; this allows for
# all that QEMU may hold of two clients.
_MOST_LEFT: Final = 2 * MAX_IN_FLIGHT + 1


class Role(enum.Enum):
    """Which end of the connection this is."""

    CLIENT = "client"
    SERVER = "server"


class State(enum.Enum):
    """How far the connection has come."""

    GREETING = "greeting"
    NEGOTIATING = "negotiating"
    READY = "ready"
    CLOSED = "closed"


class Connection:
    """One end of a QMP connection, without its socket.

    The methods ``send_...`` return bytes to write: whole messages, to be written in the
    order of the calls. Give the bytes that were read to :meth:`receive_data`, then call
    :meth:`next_message` until it returns ``None``.

    Misuse by the caller raises :exc:`RuntimeError`. A peer that breaks the protocol
    raises :exc:`~qmpballoon.errors.ProtocolError`. Any other exception is a bug.

    Args:
        role: Which end this is.
        limits: What the peer may send in one message.
    """

    def __init__(self, role: Role, limits: Limits | None = None) -> None:
        self.role = role
        self.state: State = State.GREETING
        self.greeting: Greeting | None = None
        self.oob: bool = False
        self._decoder = Decoder(limits)
        self._last_id = 0
        self._pending: dict[int, str] = {}  # names of commands
        # Lists: they are short, and an empty set takes four times the memory.
        self._out_of_band: list[Id] = []  # those that run out of band
        self._abandoned: list[Id] = []
        self._negotiating = False
        self._passed_over = 0  # replies to earlier clients

    # The client's end.

    @property
    def can_send(self) -> bool:
        """Whether a command may be sent: ready, and fewer than eight in flight."""
        return self.has_room_for(1)

    def has_room_for(self, count: int) -> bool:
        """Tell whether this many commands may be sent now."""
        held = len(self._pending) - len(self._out_of_band)
        return held + count <= MAX_IN_FLIGHT and self.state is State.READY

    @property
    def in_flight(self) -> int:
        """How many commands QEMU holds; those that run out of band do not count."""
        return len(self._pending) - len(self._out_of_band)

    @property
    def outstanding(self) -> tuple[str, ...]:
        """The names of the commands that were sent and not answered."""
        return tuple(self._pending.values())

    @property
    def passed_over(self) -> int:
        """How many replies to earlier clients were dropped."""
        return self._passed_over

    def send_negotiation(self, *, oob: bool = False) -> bytes:
        """Answer the greeting.

        Args:
            oob: Ask for out-of-band execution, if the server offers it.
        """
        self._expect(Role.CLIENT, State.NEGOTIATING)
        if self._negotiating:
            raise RuntimeError("capabilities are being negotiated already")
        self.oob = oob and self.greeting is not None and self._offers_oob()
        arguments = {"enable": ["oob"]} if self.oob else {}
        data = self._register(_NEGOTIATION_ID, "qmp_capabilities", arguments)
        self._negotiating = True
        return data

    def send_command(
        self,
        command: str,
        arguments: Mapping[str, object] | None = None,
        *,
        oob: bool = False,
    ) -> tuple[Id, bytes]:
        """Register a command; return its id and the bytes to write.

        Args:
            command: The command's name.
            arguments: Its arguments, of JSON types only.
            oob: Run it out of band; this must have been negotiated.

        Raises:
            RuntimeError: The connection is not ready, or eight commands are in flight.
            TypeError: The command is not text, or the arguments are not JSON.
            ValueError: The arguments have values that JSON does not know: NaN, a lone
                surrogate, a reference to themselves.
        """
        require_command(command, arguments)
        self._expect(Role.CLIENT, State.READY)
        if oob and not self.oob:
            raise RuntimeError("out-of-band execution was not negotiated")
        if not oob and not self.can_send:
            raise RuntimeError(f"{MAX_IN_FLIGHT} commands are in flight already")
        ident = self._choose_ident()
        return ident, self._register(ident, command, arguments or {}, oob=oob)

    def abandon(self, ident: Id) -> None:
        """Drop the reply to a command when it comes, if it has not come yet."""
        if ident in self._pending and ident not in self._abandoned:
            self._abandoned.append(ident)

    def withdraw(self, ident: Id) -> None:
        """Forget a command whose bytes were not written and never will be.

        Args:
            ident: As :meth:`send_command` returned it; not of an out-of-band command.
        """
        if isinstance(ident, int):
            self._pending.pop(ident, None)

    # The server's end.

    def send_greeting(self, greeting: Greeting) -> bytes:
        """Return the greeting to write."""
        self._expect(Role.SERVER, State.GREETING)
        self.state, self.greeting = State.READY, greeting
        version = greeting.version
        numbers = (
            {"micro": version.micro, "minor": version.minor, "major": version.major}
            if version
            else {}
        )
        package = version.package if version else ""
        return encode(
            {
                "QMP": {
                    "version": {"qemu": numbers, "package": package},
                    "capabilities": list(greeting.capabilities),
                }
            }
        )

    def send_reply(self, reply: Return | Failure) -> bytes:
        """Return the reply to write."""
        self._expect(Role.SERVER, State.READY)
        message: dict[str, object]
        if isinstance(reply, Return):
            message = {"return": reply.value}
        else:
            message = {"error": {"class": reply.error_class, "desc": reply.desc}}
        if reply.id is not None:
            message["id"] = reply.id
        return encode(message)

    def send_event(self, event: Event) -> bytes:
        """Return the event to write."""
        self._expect(Role.SERVER, State.READY)
        seconds, micros = -1, -1
        if event.timestamp is not None:
            seconds, micros = divmod(round(event.timestamp * 1_000_000), 1_000_000)
        message: dict[str, object] = {
            "timestamp": {"seconds": seconds, "microseconds": micros},
            "event": event.name,
        }
        if event.data:
            message["data"] = dict(event.data)
        return encode(message)

    # Both ends.

    def receive_data(self, data: bytes | bytearray | memoryview) -> None:
        """Take bytes in that were read from the peer."""
        if self.state is not State.CLOSED:
            self._decoder.feed(data)

    @property
    def pending(self) -> int:
        """How many bytes of an unfinished message the peer has sent."""
        return self._decoder.pending

    def close(self) -> tuple[str, ...]:
        """Record that either side has closed the connection.

        Returns:
            The names of the commands whose outcome stays unknown.
        """
        unknown = self.outstanding
        self.state = State.CLOSED
        self._pending.clear()
        self._out_of_band.clear()
        self._abandoned.clear()
        self._decoder.clear()
        return unknown

    def next_message(self) -> Message | None:
        """Return the next complete message; ``None`` if more has to be read.

        Replies to abandoned commands, to the negotiation and to an earlier client are
        not returned.

        Raises:
            ProtocolError: The peer broke the protocol. A client should close the
                connection; a server may go on.
        """
        # A closed connection's decoder has nothing.
        while (value := self._decoder.next()) is not None:
            if self.role is Role.SERVER:
                return parse_request(value)
            message = parse(value)
            if self._accept(message):
                return message
        return None

    def _accept(self, message: Greeting | Return | Failure | Event) -> bool:
        """Update the client's state; tell whether to return the message."""
        if isinstance(message, (Return, Failure)):  # building a union is slow
            return self._accept_reply(message)
        if isinstance(message, Greeting):
            if self.state is State.NEGOTIATING:
                # It was meant for an earlier client, which left without reading it.
                return False
            if self.state is not State.GREETING:
                raise ProtocolError("the peer greeted again in the middle")
            self.state, self.greeting = State.NEGOTIATING, message
        return True

    def _accept_reply(self, reply: Return | Failure) -> bool:
        ident = reply.id
        # By exact type: True is an int too, and equal to 1. All of ours are integers.
        if type(ident) is not int or self._pending.pop(ident, None) is None:
            is_left = self.state is not State.READY or ident == _NEGOTIATION_ID
            if is_left and self._passed_over < _MOST_LEFT:
                self._passed_over += 1
                return False
            what = reply.desc if isinstance(reply, Failure) else f"id {ident!r:.40}"
            raise ProtocolError(f"the peer answered what was not asked: {what}")
        if ident == _NEGOTIATION_ID:
            if isinstance(reply, Failure) and not self._is_done_already(reply):
                raise ProtocolError(f"negotiation failed: {reply.desc}")
            self.state, self._negotiating = State.READY, False
            return False
        if ident in self._out_of_band:
            self._out_of_band.remove(ident)
        if ident in self._abandoned:
            self._abandoned.remove(ident)
            return False
        return True

    def _is_done_already(self, reply: Failure) -> bool:
        """Tell whether an earlier client's negotiation serves for this one, too."""
        # It is not known what that client enabled, which matters only for oob.
        return reply.error_class == "CommandNotFound" and not self.oob

    def _register(
        self,
        ident: int,
        command: str,
        arguments: Mapping[str, object],
        *,
        oob: bool = False,
    ) -> bytes:
        data = _encode_command(ident, command, arguments, oob=oob)  # it may raise
        self._pending[ident] = command
        if oob:
            self._out_of_band.append(ident)
        return data

    def _choose_ident(self) -> int:
        """Return an id that no command in flight has, and none had recently."""
        for _ in range(_MOST_SHORT_IDS):
            self._last_id = self._last_id % _MOST_SHORT_IDS + 1
            if self._last_id not in self._pending:
                return self._last_id
        return max(self._pending) + 1  # only with commands that run out of band

    def _offers_oob(self) -> bool:
        return self.greeting is not None and "oob" in self.greeting.capabilities

    def _expect(self, role: Role, state: State) -> None:
        if self.role is not role:
            raise RuntimeError(f"this is the {self.role.value}'s end of the connection")
        if self.state is not state:
            raise RuntimeError(
                f"the connection is {self.state.value}, it would have to be"
                f" {state.value}"
            )


# Without spaces: QEMU reads its input byte by byte, which takes 2 µs a byte.
_JSON: Final = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, separators=(",", ":")
)


def _encode_command(
    ident: int, command: str, arguments: Mapping[str, object], *, oob: bool
) -> bytes:
    """Encode a command. Most have no arguments; these take a quarter of the time."""
    key = "exec-oob" if oob else "execute"
    if arguments:
        message = {key: command, "arguments": dict(arguments), "id": ident}
        return encode(message)
    return f'{{"{key}":{_JSON.encode(command)},"id":{ident}}}\n'.encode()


def encode(message: Mapping[str, object]) -> bytes:
    """Encode a message as QEMU expects it.

    Raises:
        TypeError: It is not JSON.
        ValueError: It has values that JSON does not know.
    """
    try:
        text = _JSON.encode(message)
    except RecursionError:
        raise ValueError("the arguments are nested too deep for JSON") from None
    return text.encode() + b"\n"
