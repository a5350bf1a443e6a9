"""Opening and closing a client on asyncio, and finding its QEMU."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import pytest
from asyncio_runs import run
from qemu.qmp import QMPClient
from scripted import Session, serve

from qmpballoon import (
    MiB,
    MonitorTimeout,
    ProtocolError,
)
from qmpballoon import asyncio as aio

if TYPE_CHECKING:
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


def test_pretty_output_is_said_to_be_the_matter() -> None:
    def script(session: Session) -> None:
        session.sock.sendall(b'{\r\n    "QMP": {\r\n    }\r\n}\r\n')
        session.sock.recv(100)

    async def main(path: str) -> None:
        async with aio.open_monitor(path):
            pytest.fail("it opened")

    with serve(script) as path, pytest.raises(ProtocolError, match="pretty=on"):
        run(main(path))


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
