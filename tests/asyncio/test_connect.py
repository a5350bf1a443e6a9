"""Opening and closing a monitor on asyncio, TLS, and finding a client's QEMU."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import ssl
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest
import trustme
from asyncio_runs import run
from asyncio_world import connected, find_number
from qemu.qmp import QMPClient
from scripted import Session, attend, serve, standard_answer

from qmpballoon import (
    MiB,
    MonitorClosed,
    MonitorTimeout,
    MonitorUnreachable,
)
from qmpballoon import asyncio as aio

if TYPE_CHECKING:
    from qmpballoon._transport.sockets import Target
    from qmpballoon.testing import ThreadedFake


def test_a_peer_that_does_not_read_is_left_at_once() -> None:
    left = socket.socketpair()

    def script(session: Session) -> None:
        session.greet()
        left[0].recv(1)  # until the client has gone

    async def main(path: str) -> None:
        with pytest.raises(MonitorTimeout) as caught:
            async with aio.open_monitor(path) as monitor:
                await monitor.execute("x", {"text": "x" * 5_000_000}, timeout=0.1)
        assert caught.value.unknown_outcome == ("x",)

    with serve(script) as path:
        run(main(path))
        left[0].close()
        left[1].close()


def test_pretty_output_is_read() -> None:
    def script(session: Session) -> None:
        session.sock.sendall(b'{\r\n    "QMP": {\r\n    }\r\n}\r\n')
        ident = json.loads(session.sock.recv(100))["id"]
        answer = f'{{\r\n    "return": {{\r\n    }},\r\n    "id": {ident}\r\n}}\r\n'
        session.sock.sendall(answer.encode())
        session.sock.recv(100)

    async def main(path: str) -> None:
        async with aio.open_monitor(path) as monitor:
            assert monitor.greeting is not None

    with serve(script) as path:
        run(main(path))


def make_contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Return a client's context, and that of a server whom it trusts."""
    authority = trustme.CA()
    ours, theirs = (
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER),
    )
    authority.configure_trust(ours)
    authority.issue_cert("127.0.0.1").configure_cert(theirs)
    return ours, theirs


def test_tls() -> None:
    ours, theirs = make_contexts()

    def script(session: Session) -> None:
        with theirs.wrap_socket(session.sock, server_side=True) as session.sock:
            session.greet()
            while (request := session.request()).command != "large":
                session.answer(request, standard_answer(request))
            session.answer(request, request.arguments["text"])
            attend(session)

    async def main(place: tuple[str, int]) -> None:
        async with aio.open_balloon(place, tls=ours) as balloon:
            assert await balloon.actual() == 1 << 30
            text = "x" * 1_000_000
            execute = balloon.monitor.execute
            assert await execute("large", {"text": text}) == text
            assert await balloon.actual() == 1 << 30
        with pytest.raises(MonitorUnreachable, match="no TLS handshake"):
            async with aio.open_balloon(place, tls=ssl.create_default_context()):
                pytest.fail("an unknown authority was trusted")

    with serve(script, family=socket.AF_INET) as place:
        run(main(place))


@pytest.mark.parametrize("kind", ["plain", "tls", "given"])
def test_a_new_connection_may_have_the_number_that_another_one_has_lost(
    kind: str,
) -> None:
    """The kernel gives a new socket the lowest number that is free."""
    ours, theirs = (None, None) if kind == "plain" else make_contexts()

    def script(session: Session) -> None:
        if theirs is not None:
            session.sock = theirs.wrap_socket(session.sock, server_side=True)
        with session.sock:
            session.greet()
            attend(session)

    async def look_up(host: str, port: int, **_: object) -> object:
        return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", (host, port))]

    async def main(place: tuple[str, int]) -> None:
        async with connected() as (lost, _):
            number = find_number(lost)
            with ExitStack() as lower:
                while (other := os.dup(number)) < number:
                    lower.callback(os.close, other)
                os.close(other)
                # No thread may get the number while it looks the host up.
                loop: Any = asyncio.get_running_loop()
                loop.getaddrinfo = look_up
                if kind == "given":
                    with socket.create_connection(place) as sock:
                        os.dup2(sock.fileno(), number)
                    target: Target = socket.socket(fileno=number)
                    assert ours is not None
                    ours.check_hostname = False
                else:
                    os.close(number)
                    target = place
                async with aio.open_balloon(target, tls=ours) as balloon:
                    assert find_number(balloon.monitor) == number
                    assert await balloon.actual() == 1 << 30
            with pytest.raises(MonitorClosed, match="Bad file descriptor"):
                await lost.execute("x")

    with serve(script, family=socket.AF_INET) as place:
        run(main(place))


def test_the_process_is_found_or_taken_as_told(fake: ThreadedFake) -> None:
    async def main() -> None:
        client = QMPClient()
        await client.connect(fake.socket)
        assert (await aio.find_balloon(client)).resident() is None
        known = await aio.find_balloon(client, pid=os.getpid())
        assert (known.resident() or 0) > MiB
        assert (await aio.find_balloon(client, pid=0)).resident() is None
        await client.disconnect()

    run(main())
