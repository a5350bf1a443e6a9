"""The state machine of one QMP connection, for either end of it.

What the states are for
-----------------------
A QMP server speaks first. Until its greeting has come nothing may be sent;
after it, nothing but ``qmp_capabilities`` makes sense; only when that has been
answered do commands work. A client that gets this wrong is told "Expecting
capabilities negotiation" by QEMU, far from the place of the mistake; here it is
a :exc:`RuntimeError` at once, with nothing sent.

::

    client:  GREETING -> NEGOTIATING -> READY -> CLOSED
    server:  GREETING ----------------> READY -> CLOSED

The server's end is looser, as its users want it: a fake must be able to answer
what QEMU answers before negotiation, and it is the fake that knows those words.

Who owns a command
------------------
A command is registered by the call that encodes it, so that no reply can come
for an unknown one, and it is dropped by its reply and by nothing else. A caller
who no longer wants an answer says :meth:`Connection.abandon`: the reply is
swallowed when it comes, and until then the command keeps its place in the
window, because it keeps its place in QEMU's queue as well.

QEMU holds eight commands for a client that negotiated out-of-band execution,
and then stops reading its socket; for other clients everything but one waits in
the socket. :data:`MAX_IN_FLIGHT` keeps a client from filling either.

Source: "QEMU Machine Protocol Specification", docs/interop/qmp-spec in QEMU.
"""

from __future__ import annotations

import enum
import itertools
import json
from typing import TYPE_CHECKING, Final, cast

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
"""How many commands QEMU takes from one client before it stops reading."""


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

    Methods named ``send_…`` return the bytes to write, whole messages in the
    order of the calls. :meth:`receive_data` takes in what was read, after which
    :meth:`next_message` is called until it returns ``None``.

    Misuse by the caller is a :exc:`RuntimeError`; a peer that misbehaves is a
    :exc:`~qmpballoon.errors.ProtocolError`. Any other exception is a bug.

    Args:
        role: Which end this is.
        limits: What the peer may send.
    """

    def __init__(self, role: Role, limits: Limits | None = None) -> None:
        self.role = role
        self.state: State = State.GREETING
        self.greeting: Greeting | None = None
        self.oob: bool = False
        self._decoder = Decoder(limits)
        self._ids = itertools.count(1)
        self._pending: dict[Id, str] = {}  # names of commands
        self._out_of_band: set[Id] = set()  # which of them are
        self._abandoned: set[Id] = set()
        self._negotiation: Id | None = None

    # The client's end.

    @property
    def can_send(self) -> bool:
        """Whether a command may be sent now: ready, and fewer than eight wait."""
        return self.state is State.READY and self.in_flight < MAX_IN_FLIGHT

    @property
    def in_flight(self) -> int:
        """How many commands QEMU holds; those run out of band do not queue."""
        return len(self._pending) - len(self._out_of_band)

    @property
    def outstanding(self) -> tuple[str, ...]:
        """The names of the commands that were sent and not answered."""
        return tuple(self._pending.values())

    def send_negotiation(self, *, oob: bool = False) -> bytes:
        """Answer the greeting; out-of-band execution is asked for if offered."""
        self._expect(Role.CLIENT, State.NEGOTIATING)
        if self._negotiation is not None:
            raise RuntimeError("capabilities are being negotiated already")
        self.oob = oob and self.greeting is not None and self._offers_oob()
        arguments = {"enable": ["oob"]} if self.oob else {}
        self._negotiation, data = self._register("qmp_capabilities", arguments)
        return data

    def send_command(
        self,
        command: str,
        arguments: Mapping[str, object] | None = None,
        *,
        oob: bool = False,
    ) -> tuple[Id, bytes]:
        """Register a command; return its id and what to write.

        Args:
            command: The command's name.
            arguments: Its arguments, JSON types only.
            oob: Run it out of band, which must have been negotiated.

        Raises:
            RuntimeError: Not ready, or eight commands wait already.
            TypeError: The command is no name, or the arguments are nothing that JSON
                knows.
            ValueError: Likewise, by their values: NaN, a lone surrogate, a
                reference to themselves.
        """
        require_command(command, arguments)
        self._expect(Role.CLIENT, State.READY)
        if oob and not self.oob:
            raise RuntimeError("out-of-band execution was not negotiated")
        if not oob and not self.can_send:
            raise RuntimeError(f"{MAX_IN_FLIGHT} commands are in flight already")
        return self._register(command, arguments or {}, oob=oob)

    def abandon(self, ident: Id) -> None:
        """Have the reply to that command swallowed; one that has come is no error."""
        if ident in self._pending:
            self._abandoned.add(ident)

    # The server's end.

    def send_greeting(self, greeting: Greeting) -> bytes:
        """Greet the client."""
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
        """Answer a command."""
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
        """Tell the client of an event."""
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

    # Both.

    def receive_data(self, data: bytes | bytearray | memoryview) -> None:
        """Take in what was read from the peer."""
        if self.state is not State.CLOSED:
            self._decoder.feed(data)

    def close(self) -> tuple[str, ...]:
        """Note that the connection is gone, from either side.

        Returns:
            The commands whose outcome nobody will ever know.
        """
        unknown = self.outstanding
        self.state = State.CLOSED
        self._pending.clear()
        self._out_of_band.clear()
        self._abandoned.clear()
        return unknown

    def next_message(self) -> Message | None:
        """Return the next complete message, or ``None`` if more is to be read.

        Replies to abandoned commands and to the negotiation are dealt with here
        and not returned.

        Raises:
            ProtocolError: The peer sent what it may not. A client should close
                the connection; a server may go on.
        """
        while self.state is not State.CLOSED:
            value = self._decoder.next()
            if value is None:
                return None
            if self.role is Role.SERVER:
                return parse_request(value)
            message = parse(value)
            if self._accept(message):
                return message
        return None

    def _accept(self, message: Greeting | Return | Failure | Event) -> bool:
        """Move the client's state on; tell whether the caller is to see this."""
        if isinstance(message, Event):
            return True
        if isinstance(message, Greeting):
            if self.state is not State.GREETING:
                raise ProtocolError("the peer greeted twice")
            self.state, self.greeting = State.NEGOTIATING, message
            return True
        return self._accept_reply(message)

    def _accept_reply(self, reply: Return | Failure) -> bool:
        # By exact type: True is an int, too, and equal to 1; a list has no hash.
        ident = cast("Id", reply.id) if type(reply.id) in {int, str} else None
        if ident is None or self._pending.pop(ident, None) is None:
            what = reply.desc if isinstance(reply, Failure) else f"id {reply.id!r:.40}"
            raise ProtocolError(f"the peer answered what was not asked: {what}")
        if ident == self._negotiation:
            if isinstance(reply, Failure):
                raise ProtocolError(f"negotiation failed: {reply.desc}")
            self.state, self._negotiation = State.READY, None
            return False
        self._out_of_band.discard(ident)
        if ident in self._abandoned:
            self._abandoned.remove(ident)
            return False
        return True

    def _register(
        self, command: str, arguments: Mapping[str, object], *, oob: bool = False
    ) -> tuple[Id, bytes]:
        ident = next(self._ids)
        message: dict[str, object] = {"exec-oob" if oob else "execute": command}
        if arguments:
            message["arguments"] = dict(arguments)
        message["id"] = ident
        data = encode(message)  # before it is registered: it may raise
        self._pending[ident] = command
        if oob:
            self._out_of_band.add(ident)
        return ident, data

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


# Without spaces: QEMU reads its input byte by byte, 2 µs for each.
_JSON: Final = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, separators=(",", ":")
)


def encode(message: Mapping[str, object]) -> bytes:
    """Write a message out as QEMU wants it.

    Raises:
        TypeError: It is nothing that JSON knows.
        ValueError: Likewise, by its values.
    """
    try:
        text = _JSON.encode(message)
    except RecursionError:
        raise ValueError("the arguments are nested too deep for JSON") from None
    return text.encode() + b"\n"
