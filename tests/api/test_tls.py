"""TLS on every front end, as QEMU 7.2 needs it.

It takes a whole TLS record from the socket for the first byte that its monitor reads,
and reads the others only when the socket is readable again. So each message is followed
by a record of one byte. What it does without is seen in tests/qemu.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from typing import TYPE_CHECKING

import pytest
import trio
import trustme
from scripted import GREETING, Session, serve

from qmpballoon import asyncio as aio
from qmpballoon import blocking
from qmpballoon import trio as client

if TYPE_CHECKING:
    from collections.abc import Callable

Place = tuple[str, int]


def on_trio(place: Place, tls: ssl.SSLContext) -> object:
    async def main() -> object:
        async with client.open_monitor(place, tls=tls) as monitor:
            return await monitor.execute("last", {"text": "x" * 100_000})

    return trio.run(main)


def on_asyncio(place: Place, tls: ssl.SSLContext) -> object:
    async def main() -> object:
        async with aio.open_monitor(place, tls=tls) as monitor:
            return await monitor.execute("last", {"text": "x" * 100_000})

    return asyncio.run(main())


def in_blocking_code(place: Place, tls: ssl.SSLContext) -> object:
    with blocking.open_monitor(place, tls=tls) as monitor:
        return monitor.execute("last", {"text": "x" * 100_000})


@pytest.mark.parametrize("execute", [on_trio, on_asyncio, in_blocking_code])
def test_a_record_of_one_byte_follows_each_message(
    execute: Callable[[Place, ssl.SSLContext], object],
) -> None:
    authority = trustme.CA()
    ours = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.configure_trust(ours)
    authority.issue_cert("127.0.0.1").configure_cert(theirs)
    following: list[bytes] = []

    def script(session: Session) -> None:
        with theirs.wrap_socket(session.sock, server_side=True) as session.sock:
            session.sock.sendall(session.qmp.send_greeting(GREETING))
            for _ in range(2):  # the negotiation, and the command
                request = session.request()
                following.append(session.sock.recv(100))  # one record
                session.answer(request, request.command)

    with serve(script, family=socket.AF_INET) as place:
        assert execute(place, ours) == "last"
    assert following == [b"\n"] * 2
