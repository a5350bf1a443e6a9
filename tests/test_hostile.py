"""Peers that lie, flood, dawdle or babble, over real sockets, on every front end.

Whatever they do: the caller gets one of our exceptions, in time, for little memory,
and nothing stays open. What the decoder refuses is a :exc:`ProtocolError`, and so
named.
"""

from __future__ import annotations

import json
import socket
import threading
import time
import tracemalloc
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

import pytest
from frontends import CONNECTING, FrontEnd, on_each
from scripted import GREETING, Session, serve

from qmpballoon.errors import MonitorTimeout, ProtocolError, QmpBalloonError
from qmpballoon.qmp import Connection, Role
from qmpballoon.sizes import MiB

if TYPE_CHECKING:
    from collections.abc import Callable

Attack: TypeAlias = "Callable[[Session, bytes], None]"

IN_TIME: Final = 30.0  # seconds; the slowest takes one on an idle machine
LITTLE: Final = 56 * MiB  # the longest message that is taken is 16 MiB, in a buffer
SHORT: Final = 0.5  # seconds a command may take


def say(text: str) -> Attack:
    """Answer with this; ``ID`` stands for the command's id."""

    def attack(session: Session, ident: bytes) -> None:
        session.sock.sendall(text.encode().replace(b"ID", ident) + b"\r\n")

    return attack


def flood(session: Session, ident: bytes) -> None:
    """Answer with 64 MiB."""
    session.sock.sendall(b'{"id": ' + ident + b', "return": "')
    for _ in range(64):
        session.sock.sendall(b"x" * MiB)
    session.sock.sendall(b'"}\r\n')


def trickle(session: Session, ident: bytes) -> None:
    """Answer byte by byte, for far longer than the caller has time."""
    pause = threading.Event()
    for byte in b'{"id": ' + ident + b', "return": "' + b"x" * 5000:
        session.sock.sendall(bytes([byte]))
        pause.wait(0.02)


def greet_again(session: Session, _ident: bytes) -> None:
    """Answer with a greeting."""
    session.sock.sendall(Connection(Role.SERVER).send_greeting(GREETING))


def keep_silent(_session: Session, _ident: bytes) -> None:
    """Never answer."""


ATTACKS: Final[dict[str, tuple[Attack, type[QmpBalloonError]]]] = {
    "wrong-id": (say('{"return": [], "id": 999}'), ProtocolError),
    "id-of-another-type": (say('{"return": [], "id": "ID"}'), ProtocolError),
    "no-id": (say('{"return": []}'), ProtocolError),
    "twice": (say('{"return": [], "id": ID}\r\n' * 2), ProtocolError),
    "never": (keep_silent, MonitorTimeout),
    "64-mib": (flood, ProtocolError),
    "nested-arrays": (say("[" * 100_000), ProtocolError),
    "nested-objects": (say('{"a":' * 100_000), ProtocolError),
    "nan": (say('{"return": NaN, "id": ID}'), ProtocolError),
    "too-large": (say('{"return": 1e999, "id": ID}'), ProtocolError),
    "too-many-digits": (say(f'{{"return": {"9" * 9000}, "id": ID}}'), ProtocolError),
    "surrogate": (say('{"return": "\\ud800", "id": ID}'), ProtocolError),
    "same-key": (say('{"return": [], "return": [], "id": ID}'), ProtocolError),
    "no-object": (say('"return"'), ProtocolError),
    "trickle": (trickle, MonitorTimeout),
    "greeted-twice": (greet_again, ProtocolError),
}


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def attacked(
    front: FrontEnd, script: Callable[[Session], object], patience: float = SHORT
) -> BaseException:
    """Open the balloon of such a peer; return what came of it."""

    async def main(path: str) -> BaseException:
        with pytest.raises(QmpBalloonError) as caught:
            async with front.open_balloon(
                path, timeout=5, command_timeout=patience
            ) as balloon:
                await balloon.query()
        return caught.value

    before, start = descriptors(), time.monotonic()
    with serve(script) as path:
        error = front.run(main(path))
        took = time.monotonic() - start
    assert took < IN_TIME
    assert descriptors() == before
    return error


def until_left(session: Session) -> None:
    """Wait until the client has left."""
    while session.sock.recv(65536):
        pass


@on_each(*CONNECTING)
@pytest.mark.parametrize("name", ATTACKS)
def test_an_answer_that_is_none(front: FrontEnd, name: str) -> None:
    attack, expected = ATTACKS[name]

    def script(session: Session) -> None:
        session.greet()
        ident = json.dumps(session.request().id).strip('"').encode()
        attack(session, ident)
        until_left(session)

    # A flood may take a while before it is too much.
    error = attacked(front, script, IN_TIME if attack is flood else SHORT)
    # An answer that was begun has some ms longer than its command: a busy machine may
    # notice at once that both times are over.
    allowed = {expected, ProtocolError} if attack is trickle else {expected}
    assert type(error) in allowed


@on_each(*CONNECTING)
@pytest.mark.parametrize("banner", [b"220 mail ready\r\n", b"\x00\xff\r\n", b"{}\r\n"])
def test_garbage_before_the_greeting(front: FrontEnd, banner: bytes) -> None:
    def script(session: Session) -> None:
        session.sock.sendall(banner + session.qmp.send_greeting(GREETING))
        until_left(session)

    assert type(attacked(front, script)) is ProtocolError


@on_each(*CONNECTING)
def test_a_flood_takes_little_memory(front: FrontEnd) -> None:
    def script(session: Session) -> None:
        session.greet()
        flood(session, json.dumps(session.request().id).encode())
        until_left(session)

    tracemalloc.start()
    try:
        attacked(front, script, IN_TIME)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < LITTLE


@on_each(*CONNECTING)
def test_a_greeting_that_never_ends(front: FrontEnd) -> None:
    """Not even one that keeps coming is waited for longer than was said."""

    def script(session: Session) -> None:
        pause = threading.Event()
        for byte in b'{"QMP": {"version": "' + b"x" * 5000:
            session.sock.sendall(bytes([byte]))
            pause.wait(0.02)

    async def main(path: str) -> None:
        with pytest.raises(QmpBalloonError, match="another client"):
            async with front.open_balloon(path, timeout=SHORT):
                pass

    before, start = descriptors(), time.monotonic()
    with serve(script) as path:
        front.run(main(path))
        assert time.monotonic() - start < IN_TIME
    assert descriptors() == before


@on_each(*CONNECTING)
def test_a_socket_that_is_reset(front: FrontEnd) -> None:
    """Hanging up with data unread is an error of its own, and also ours."""

    def script(session: Session) -> None:
        session.greet()
        session.request()
        session.sock.shutdown(socket.SHUT_RD)

    attacked(front, script)
