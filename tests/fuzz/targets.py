"""What is fuzzed: the decoder, and the connection in both of its roles.

A target is given any bytes. The first chooses how the others are cut, and they are
what a peer sends. It raises nothing, or there is a bug: what the peer may not send is
a :exc:`ProtocolError` and no other exception, what is held stays within the limits,
and how the stream was cut changes nothing.
"""

from __future__ import annotations

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


def decoder(data: bytes) -> None:
    """Decode a stream, whole and in pieces."""
    stream = data[1:]
    whole, cut = values([stream]), values(cuts(data))
    # Where there is an error it depends on the cuts when it is seen.
    for one, other in zip(whole, cut, strict=False):
        if one is None or other is None:
            return
        assert one == other
    assert len(whole) == len(cut) or None in [*whole, *cut]


def values(pieces: list[bytes]) -> list[object]:
    """Return all values of a stream, and ``None`` for each error."""
    decoder, seen = Decoder(LIMITS), list[object]()
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
            seen.append(value)
        else:
            raise AssertionError("it goes round in circles")
        assert decoder.pending <= LIMITS.size
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
