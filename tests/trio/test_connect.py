"""Reaching a monitor over real sockets, and leaving nothing open."""

from __future__ import annotations

import os
import socket
import ssl
from typing import TYPE_CHECKING

import pytest
import trio
import trustme
from qmp_peers import (
    serve,
    serving,
    speaks_qmp,
    stream_of,
    trio_listener,
    unix_listener,
)
from trio.testing import MockClock, memory_stream_pair

from qmpballoon.address import TcpAddress, UnixAddress
from qmpballoon.errors import MonitorBusy, MonitorUnreachable
from qmpballoon.trio import open_monitor
from qmpballoon.trio.connect import describe_target

if TYPE_CHECKING:
    from pathlib import Path


pytestmark = pytest.mark.usefixtures("no_descriptor_leaks")


# What can be connected to.


@pytest.mark.parametrize("form", ["{}", "unix:{}"])
async def test_a_unix_socket(tmp_path: Path, form: str) -> None:
    path = tmp_path / "vm.qmp"
    with unix_listener(path) as sock:
        async with serving(trio_listener(sock)):
            await speaks_qmp(form.format(path))
            await speaks_qmp(path)
            await speaks_qmp(UnixAddress(str(path)))


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_tcp(host: str) -> None:
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    assert isinstance(listener, trio.SocketListener)
    port = listener.socket.getsockname()[1]
    async with serving(listener):
        await speaks_qmp(f"tcp:{host}:{port}")
        await speaks_qmp((host, port))
        await speaks_qmp(TcpAddress(host, port))


async def test_a_connected_socket_is_taken_over(nursery: trio.Nursery) -> None:
    ours, theirs = socket.socketpair()
    nursery.start_soon(serve, stream_of(theirs))
    await speaks_qmp(ours)
    assert ours.fileno() == -1


async def test_a_descriptor_is_taken_over(nursery: trio.Nursery) -> None:
    ours, theirs = socket.socketpair()
    nursery.start_soon(serve, stream_of(theirs))
    descriptor = ours.detach()
    await speaks_qmp(descriptor)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


async def test_a_stream_is_taken_over(nursery: trio.Nursery) -> None:
    ours, theirs = memory_stream_pair()
    nursery.start_soon(serve, theirs)
    await speaks_qmp(ours)
    with pytest.raises(trio.ClosedResourceError):
        await ours.send_all(b"x")


def test_a_monitor_is_called_what_its_user_calls_it(tmp_path: Path) -> None:
    path = str(tmp_path / "vm.qmp")
    assert (
        describe_target(path)
        == describe_target(f"unix:{path}")
        == f"the monitor on {path}"
    )
    assert describe_target(("::1", 4444)) == "the monitor on tcp:[::1]:4444"
    assert describe_target(7) == "the monitor on descriptor 7"
    assert describe_target(memory_stream_pair()[0]) == "the connected monitor"


# TLS.


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def server_side(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(context)  # pyright: ignore[reportUnknownMemberType]
    return context


@pytest.fixture
def client_side(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)  # pyright: ignore[reportUnknownMemberType]
    return context


async def test_tls_over_tcp(
    server_side: ssl.SSLContext, client_side: ssl.SSLContext
) -> None:
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener.socket.getsockname()[1]
    async with serving(trio.SSLListener(listener, server_side, https_compatible=True)):
        await speaks_qmp(("localhost", port), tls=client_side)
        # The certificate is for another name.
        with pytest.raises(MonitorUnreachable, match="certificate"):
            await speaks_qmp(("127.0.0.1", port), tls=client_side)
        # Nobody whom we trust has signed it.
        with pytest.raises(MonitorUnreachable, match="certificate"):
            await speaks_qmp(("localhost", port), tls=ssl.create_default_context())


async def test_tls_over_a_stream(
    nursery: trio.Nursery, server_side: ssl.SSLContext, client_side: ssl.SSLContext
) -> None:
    client_side.check_hostname = False
    ours, theirs = memory_stream_pair()
    secure = trio.SSLStream(
        theirs, server_side, server_side=True, https_compatible=True
    )
    nursery.start_soon(serve, secure)
    await speaks_qmp(ours, tls=client_side)


async def test_tls_needs_a_name_to_check(client_side: ssl.SSLContext) -> None:
    ours, theirs = socket.socketpair()
    with theirs, pytest.raises(ValueError, match="hostname"):
        await speaks_qmp(ours, tls=client_side)
    assert ours.fileno() == -1


async def test_a_monitor_without_tls_is_told_of(
    nursery: trio.Nursery, client_side: ssl.SSLContext
) -> None:
    client_side.check_hostname = False
    ours, theirs = socket.socketpair()
    nursery.start_soon(stream_of(theirs).send_all, b'{"QMP": {}}\r\n')
    with theirs, pytest.raises(MonitorUnreachable, match="tls-creds"):
        await speaks_qmp(ours, tls=client_side)


async def test_no_handshake_in_time_means_busy(
    client_side: ssl.SSLContext, autojump_clock: MockClock
) -> None:
    client_side.check_hostname = False
    ours, theirs = memory_stream_pair()
    with pytest.raises(MonitorBusy, match="handshake"):
        async with open_monitor(ours, tls=client_side, timeout=3):
            pytest.fail("nobody shook hands")
    assert autojump_clock.current_time() == 3
    await theirs.aclose()


# Descriptors, whatever happens: see the fixture that watches over each test.


@pytest.mark.parametrize("steps", range(8))
async def test_cancelling_an_opening_leaves_nothing_open(
    tmp_path: Path, steps: int
) -> None:
    path = tmp_path / "vm.qmp"
    with unix_listener(path) as sock:
        async with serving(trio_listener(sock)):
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(speaks_qmp, path)
                    for _ in range(steps):
                        await trio.lowlevel.checkpoint()
                    scope.cancel()
