"""Sockets that cannot be connected to, seen from the front end on trio."""

from __future__ import annotations

import os
import socket
import ssl
import stat
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio
from descriptor_limit import no_descriptors
from permissions import as_somebody_else
from qmp_peers import (
    serve,
    serving,
    speaks_qmp,
    stream_of,
    trio_listener,
    unix_listener,
)

from qmpballoon.address import UnixAddress
from qmpballoon.errors import MonitorBusy, MonitorUnreachable, UntrustedMonitor
from qmpballoon.trio import open_monitor

if TYPE_CHECKING:
    from collections.abc import Generator

    from trio.testing import MockClock


pytestmark = pytest.mark.usefixtures("no_descriptor_leaks")


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
        with pytest.raises(MonitorUnreachable, match="is no stream socket: give"):
            await speaks_qmp(path)


@contextmanager
def long_folder(tmp_path: Path) -> Generator[Path]:
    """Make a folder with a path that no socket address can hold, and go there."""
    folder = tmp_path / ("x" * 110) / ("y" * 200)
    folder.mkdir(parents=True)
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield folder
    finally:
        os.chdir(before)


@pytest.mark.parametrize("name", ["qemu.monitor", "z" * 100])
async def test_a_path_that_is_longer_than_a_socket_address(
    tmp_path: Path, name: str
) -> None:
    with long_folder(tmp_path) as folder, unix_listener(Path(name)) as sock:
        async with serving(trio_listener(sock)):
            await speaks_qmp(folder / name)


async def test_a_longer_path_that_is_wrong(tmp_path: Path) -> None:
    with long_folder(tmp_path) as folder, open("file", "x"):  # noqa: PTH123, ASYNC230
        pass
    with pytest.raises(MonitorUnreachable, match=r"no socket at .*nope"):
        await speaks_qmp(folder / "nope")
    with pytest.raises(MonitorUnreachable, match="file is no socket"):
        await speaks_qmp(folder / "file")
    with pytest.raises(ValueError, match="too long"):
        await speaks_qmp(tmp_path / ("x" * 4096))


async def test_a_path_that_is_no_utf_8(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9")
    with pytest.raises(MonitorUnreachable, match=r"no socket at .*caf\\xe9"):
        await speaks_qmp(path)
    with unix_listener(path) as sock:
        async with serving(trio_listener(sock)):
            await speaks_qmp(path)


async def test_an_abstract_socket() -> None:
    name = f"qmpballoon-test-{os.getpid()}"
    with pytest.raises(MonitorUnreachable, match=f"nobody listens at .*{name}: does"):
        await speaks_qmp(f"unix-abstract:{name}")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(f"\0{name}")
        sock.listen()
        sock.setblocking(False)  # noqa: FBT003
        async with serving(trio_listener(sock)):
            await speaks_qmp(f"unix-abstract:{name}")


async def test_only_who_is_trusted_may_listen(tmp_path: Path) -> None:
    path, mine, pid = str(tmp_path / "vm.qmp"), os.geteuid(), os.getpid()
    with unix_listener(tmp_path / "vm.qmp") as sock:
        async with serving(trio_listener(sock)):
            await speaks_qmp(UnixAddress(path, pid=pid, users={mine}))
            await speaks_qmp(UnixAddress(path, users={mine}))
            with pytest.raises(UntrustedMonitor, match=f"process {pid} listens at"):
                await speaks_qmp(UnixAddress(path, pid=1))
            with pytest.raises(UntrustedMonitor, match="belongs to user"):
                await speaks_qmp(UnixAddress(path, users={4242}))
            # QEMU may have begun to listen as root, before it became another user.
            ours = UnixAddress(path, pid=pid, users={4242})
            if mine == 0:
                await speaks_qmp(ours)


@pytest.mark.parametrize("host", ["db..example", "x" * 64, ".", "a\udce9", "\ud800"])
async def test_a_host_name_that_cannot_be_looked_up(host: str) -> None:
    with pytest.raises(MonitorUnreachable, match="cannot connect to tcp:"):
        await speaks_qmp((host, 4444))


async def test_no_descriptor_is_left(tmp_path: Path) -> None:
    with unix_listener(tmp_path / "vm.qmp"), no_descriptors():
        with pytest.raises(MonitorUnreachable, match="no file descriptor left"):
            await speaks_qmp(tmp_path / "vm.qmp")
        with pytest.raises(MonitorUnreachable, match="no file descriptor left"):
            await speaks_qmp(tmp_path / ("x" * 200))
        with pytest.raises(MonitorUnreachable, match="no file descriptor left"):
            await speaks_qmp("tcp:127.0.0.1:4444")


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


async def test_a_socket_that_is_wrapped_in_tls_is_left_alone() -> None:
    ours, theirs = socket.socketpair()
    context = ssl.create_default_context()
    context.check_hostname = False
    with (
        theirs,
        context.wrap_socket(ours, do_handshake_on_connect=False) as wrapped,
        pytest.raises(ValueError, match="wrapped in TLS: give the plain socket"),
    ):
        await speaks_qmp(wrapped)


async def test_a_socket_that_was_given_is_the_monitors_alone(
    nursery: trio.Nursery,
) -> None:
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)  # noqa: FBT003
    nursery.start_soon(serve, stream_of(theirs))
    number = ours.fileno()
    async with open_monitor(ours) as monitor:
        ours.close()
        with pytest.raises(ValueError, match="is closed"):
            await speaks_qmp(ours)
        with pytest.raises(ValueError, match="is that of another monitor"):
            await speaks_qmp(number)
        assert await monitor.execute("echo", {"a": 1}) == {"a": 1}


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
