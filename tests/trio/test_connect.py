"""Reaching a monitor over real sockets, and leaving nothing open."""

from __future__ import annotations

import os
import socket
import ssl
import stat
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING

import pytest
import trio
import trustme
from permissions import as_somebody_else
from trio.testing import MockClock, memory_stream_pair

from qmpballoon.address import TcpAddress, UnixAddress
from qmpballoon.errors import MonitorBusy, MonitorUnreachable
from qmpballoon.qmp import Connection, Greeting, Request, Return, Role, Version
from qmpballoon.trio import open_monitor
from qmpballoon.trio.connect import describe_target

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator
    from pathlib import Path

    from qmpballoon.trio import Target

GREETING = Greeting(Version(10, 0, 2), ("oob",))


async def serve(stream: trio.abc.Stream) -> None:
    """Speak QMP: each command's answer is its arguments."""
    server = Connection(Role.SERVER)
    async with stream:
        try:
            await stream.send_all(server.send_greeting(GREETING))
            while data := await stream.receive_some():
                server.receive_data(data)
                while (request := server.next_message()) is not None:
                    assert isinstance(request, Request)
                    reply = Return(dict(request.arguments), request.id)
                    await stream.send_all(server.send_reply(reply))
        except trio.BrokenResourceError:
            pass  # the client has left


async def speaks_qmp(target: Target, *, tls: ssl.SSLContext | None = None) -> None:
    """Fail unless a monitor can be opened there."""
    async with open_monitor(target, tls=tls) as monitor:
        assert monitor.greeting == GREETING
        assert await monitor.execute("echo", {"a": "é"}) == {"a": "é"}


@asynccontextmanager
async def serving(
    listener: trio.SocketListener | trio.SSLListener[trio.SocketStream],
) -> AsyncGenerator[None, None]:
    """Serve whoever connects, until the block ends."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, serve, [listener])
        yield
        nursery.cancel_scope.cancel()


@contextmanager
def unix_listener(path: Path, backlog: int = 8) -> Generator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(os.fspath(path))
        sock.listen(backlog)
        sock.setblocking(False)  # noqa: FBT003
        yield sock


def trio_listener(sock: socket.socket) -> trio.SocketListener:
    return trio.SocketListener(trio.socket.from_stdlib_socket(sock.dup()))


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


def stream_of(sock: socket.socket) -> trio.SocketStream:
    return trio.SocketStream(trio.socket.from_stdlib_socket(sock))


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


# What cannot be connected to.


async def test_no_socket(tmp_path: Path) -> None:
    with pytest.raises(MonitorUnreachable, match=r"no socket at .*nope\.qmp"):
        await speaks_qmp(tmp_path / "nope.qmp")


async def test_a_regular_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("hello")
    with pytest.raises(MonitorUnreachable, match="file is no socket"):
        await speaks_qmp(path)


async def test_a_directory(tmp_path: Path) -> None:
    with pytest.raises(MonitorUnreachable, match="is no socket"):
        await speaks_qmp(tmp_path)


async def test_a_socket_that_nobody_listens_on(tmp_path: Path) -> None:
    path = tmp_path / "vm.qmp"
    with unix_listener(path):
        pass
    assert stat.S_ISSOCK(path.stat().st_mode)
    with pytest.raises(MonitorUnreachable, match="nobody listens"):
        await speaks_qmp(path)


async def test_a_datagram_socket(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(os.fspath(path))
        with pytest.raises(MonitorUnreachable, match="wrong type"):
            await speaks_qmp(path)


async def test_a_path_that_is_too_long(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="too long"):
        await speaks_qmp(tmp_path / ("x" * 108))


async def test_no_permission(tmp_path: Path) -> None:
    path = tmp_path / "vm.qmp"
    refused = pytest.raises(MonitorUnreachable, match="no permission")
    with unix_listener(path), as_somebody_else(path), refused:
        await speaks_qmp(path)


async def test_a_tcp_port_that_nobody_listens_on() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))  # not listened on, and nobody else's
        port = sock.getsockname()[1]
        with pytest.raises(MonitorUnreachable, match=f"tcp:127.0.0.1:{port}"):
            await speaks_qmp(("127.0.0.1", port))


async def test_a_host_that_does_not_exist() -> None:
    with pytest.raises(MonitorUnreachable, match=r"cannot connect to tcp:no\.invalid"):
        await speaks_qmp("tcp:no.invalid:4444")


async def test_a_datagram_socket_is_left_alone() -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        with pytest.raises(ValueError, match="no stream socket"):
            await speaks_qmp(sock)
        with pytest.raises(ValueError, match="no stream socket"):
            await speaks_qmp(sock.fileno())
        os.fstat(sock.fileno())


async def test_a_descriptor_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w") as file:
        with pytest.raises(ValueError, match="is no socket"):
            await speaks_qmp(file.fileno())
        file.write("still open")
    with pytest.raises(ValueError, match="descriptor"):
        await speaks_qmp(-1)


@pytest.mark.parametrize("family", [socket.AF_UNIX, socket.AF_INET])
async def test_a_socket_that_is_not_connected(family: socket.AddressFamily) -> None:
    sock = socket.socket(family)
    with pytest.raises(MonitorUnreachable, match="not connected"):
        await speaks_qmp(sock)
    assert sock.fileno() == -1


@pytest.mark.parametrize("target", [None, 1.5, b"/run/vm.qmp", ["tcp"]])
async def test_what_is_no_address(target: object) -> None:
    with pytest.raises(TypeError, match="no monitor's address"):
        await speaks_qmp(target)  # type: ignore[arg-type]


# A full backlog.


@contextmanager
def crowd(path: Path) -> Generator[list[socket.socket]]:
    """Fill the queue of those who wait to be accepted."""
    waiting: list[socket.socket] = []
    try:
        while True:
            sock = socket.socket(socket.AF_UNIX)
            waiting.append(sock)
            sock.setblocking(False)  # noqa: FBT003
            if sock.connect_ex(os.fspath(path)):
                break
        assert len(waiting) > 1
        yield waiting
    finally:
        for sock in waiting:
            sock.close()


async def test_a_full_backlog_means_busy(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    path = tmp_path / "vm.qmp"
    with unix_listener(path, backlog=1), crowd(path):
        with pytest.raises(MonitorBusy, match="too many clients"):
            async with open_monitor(path, timeout=3):
                pytest.fail("there is no room")
        assert 3 <= autojump_clock.current_time() < 3.1


async def test_room_in_the_backlog_is_taken(
    tmp_path: Path, autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    path = tmp_path / "vm.qmp"
    with unix_listener(path, backlog=1) as sock, crowd(path) as waiting:

        async def leave_and_serve() -> None:
            await trio.sleep(2.5)
            for client in waiting:
                client.close()
            for _ in waiting[:-1]:
                sock.accept()[0].close()
            # Threads and descriptors are not on the mock clock: poll.
            while True:
                try:
                    accepted = sock.accept()[0]
                except BlockingIOError:
                    await trio.sleep(0.01)
                else:
                    break
            await serve(stream_of(accepted))

        nursery.start_soon(leave_and_serve)
        await speaks_qmp(path)
        assert 2.5 <= autojump_clock.current_time() < 3


async def test_waiting_for_room_can_be_cancelled(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    path = tmp_path / "vm.qmp"
    with unix_listener(path, backlog=1), crowd(path):
        with trio.move_on_after(1) as scope:
            await speaks_qmp(path)
        assert scope.cancelled_caught
        assert autojump_clock.current_time() == 1


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
