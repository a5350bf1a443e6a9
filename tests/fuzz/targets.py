"""What is fuzzed: the decoder, and the connection in both of its roles.

A target is given any bytes. The first chooses how the others are cut, and they are
what a peer sends. It raises nothing, or there is a bug: what the peer may not send is
a :exc:`ProtocolError` and no other exception, what is held stays within the limits,
and how the stream was cut changes nothing.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

from qmpballoon.errors import ProtocolError
from qmpballoon.qmp import Connection, Failure, Greeting, Request, Return, Role
from qmpballoon.qmp.connection import State
from qmpballoon.qmp.decoder import Decoder, Limits

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["TARGETS"]

# Small, so that short inputs get at them too.
LIMITS: Final = Limits(size=2000, depth=12, tokens=400)
WIDE: Final = Limits(size=1 << 20, depth=400, tokens=1 << 20)  # nothing here is beyond


def decoder(data: bytes) -> None:
    """Decode a stream, whole and in pieces."""
    stream = data[1:]
    whole, cut = values([stream], WIDE), values(cuts(data), WIDE)
    assert whole == cut
    # What goes beyond a limit may be seen later, and where one goes on behind it the
    # cuts decide; but not what came before.
    whole, cut = values([stream], LIMITS), values(cuts(data), LIMITS)
    assert before_error(whole) == before_error(cut)


def before_error(seen: list[object]) -> list[object]:
    """Return what was seen before the first error."""
    return seen[: seen.index(None)] if None in seen else seen


def values(pieces: list[bytes], limits: Limits) -> list[object]:
    """Return all values of a stream, and ``None`` for each error."""
    decoder, seen = Decoder(limits), list[object]()
    for piece in pieces:
        decoder.feed(piece)
        for _ in range(2 * len(piece) + decoder.pending + 2):
            try:
                value = decoder.next()
            except ProtocolError:
                seen.append(None)
                continue
            if value is None:
                break
            # It is JSON, and UTF-8, all through.
            json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
            seen.append(value)
        else:
            raise AssertionError("it goes round in circles")
        assert decoder.pending <= limits.size
    return seen


def client(data: bytes) -> None:
    """Be a client, which sends a command whenever it may."""
    connection = Connection(Role.CLIENT, LIMITS)
    sent, answered = set[object](), set[object]()
    for piece in cuts(data):
        connection.receive_data(piece)
        try:
            while (message := connection.next_message()) is not None:
                if isinstance(message, Greeting):
                    connection.send_negotiation(oob=True)
                if isinstance(message, Return | Failure):
                    assert message.id in sent - answered
                    answered.add(message.id)
        except ProtocolError:
            connection.close()
            break
        while connection.can_send and len(sent) < len(data):
            sent.add(connection.send_command("query-balloon")[0])
        assert connection.in_flight <= 8
    if connection.state is State.CLOSED:
        assert connection.next_message() is None


def server(data: bytes) -> None:
    """Be a server, which goes on after nonsense."""
    connection = Connection(Role.SERVER, LIMITS)
    connection.send_greeting(Greeting(None))
    for piece in cuts(data):
        connection.receive_data(piece)
        for _ in range(2 * len(data) + 2):
            try:
                message = connection.next_message()
            except ProtocolError:
                continue
            if message is None:
                break
            assert isinstance(message, Request)
            connection.send_reply(Return({}, message.id))
        else:
            raise AssertionError("it goes round in circles")


def cuts(data: bytes) -> list[bytes]:
    """Cut what follows the first byte as that says; it may also be left whole."""
    return list(_cuts(data[1:], data[0] if data else 0))


def _cuts(stream: bytes, size: int) -> Iterator[bytes]:
    size = size or len(stream) or 1
    for start in range(0, len(stream), size):
        yield stream[start : start + size]


TARGETS: Final[dict[str, Callable[[bytes], None]]] = {
    "decoder": decoder,
    "client": client,
    "server": server,
}
