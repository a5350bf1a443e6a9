"""The fake QEMU on streams and sockets: one client at a time, as QEMU does it."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import socket
import stat
import threading
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, cast

import pytest
import trio
import trio.testing
from qemu.qmp import QMPClient

from qmpballoon.errors import MonitorBusy, MonitorClosed, NoBalloonDevice
from qmpballoon.sizes import GiB, MiB
from qmpballoon.testing import (
    FakeQemu,
    GuestConfig,
    Machine,
    MachineConfig,
    open_fake,
    profile,
    run_world,
)
from qmpballoon.trio import open_balloon, open_monitor

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

NEGOTIATE = b'{"execute": "qmp_capabilities"}'


async def read_lines(stream: trio.abc.Stream, count: int) -> list[dict[str, Any]]:
    data = b""
    while data.count(b"\n") < count:
        chunk = await stream.receive_some()
        assert chunk, data
        data += chunk
    return [json.loads(line) for line in data.splitlines()]


@asynccontextmanager
async def listening(path: Path, machine: Machine) -> AsyncIterator[FakeQemu]:
    async with open_fake(machine) as fake, trio.open_nursery() as nursery:
        await nursery.start(fake.listen, path)
        yield fake
        nursery.cancel_scope.cancel()


def test_the_next_client_is_greeted_when_the_first_has_left() -> None:
    async def main(fake: FakeQemu) -> None:
        first, second = fake.connect(), fake.connect()
        await read_lines(first, 1)
        with trio.move_on_after(60) as waited:
            await second.receive_some()
        assert waited.cancelled_caught
        await first.aclose()
        (greeting,) = await read_lines(second, 1)
        assert "QMP" in greeting
        await second.send_all(b'{"execute": "query-status"}')
        (answer,) = await read_lines(second, 1)
        assert "Expecting capabilities" in answer["error"]["desc"]

    run_world(main)


def test_our_client_is_told_that_the_monitor_is_busy() -> None:
    async def main(fake: FakeQemu) -> None:
        async with open_monitor(fake.connect()):
            with pytest.raises(MonitorBusy):
                async with open_monitor(fake.connect()):
                    pass

    run_world(main)


def test_our_client_resizes_the_simulated_guest() -> None:
    machine = Machine(MachineConfig(memory=4 * GiB, guest=GuestConfig(cache=2 * GiB)))

    async def main(fake: FakeQemu) -> int:
        async with open_balloon(fake.connect()) as balloon:
            await balloon.resize(GiB)
            return (await balloon.query()).actual

    assert run_world(main, machine) == GiB
    assert machine.guest.memory.balloon == 3 * GiB


def test_our_client_finds_no_balloon_where_there_is_none() -> None:
    async def main(fake: FakeQemu) -> None:
        with pytest.raises(NoBalloonDevice):
            async with open_balloon(fake.connect()):
                pass

    run_world(main, Machine(MachineConfig(balloon=None)))


def test_quit_ends_everything() -> None:
    async def main(fake: FakeQemu) -> None:
        first, second = fake.connect(), fake.connect()
        await first.send_all(NEGOTIATE + b'{"execute": "quit"}')
        messages = await read_lines(first, 4)
        assert messages[2]["event"] == "SHUTDOWN"
        assert await first.receive_some() == b""
        assert await second.receive_some() == b""
        await fake.ended.wait()

    run_world(main)


def test_what_is_done_to_the_machine_is_noticed() -> None:
    async def main(fake: FakeQemu) -> None:
        stream = fake.connect()
        await stream.send_all(NEGOTIATE)
        await read_lines(stream, 2)
        await trio.sleep(5)
        fake.machine.reset(by_guest=True)
        fake.touch()
        (event,) = await read_lines(stream, 1)
        assert event["data"] == {"guest": True, "reason": "guest-reset"}

    run_world(main)


def test_a_hanging_world_is_ended() -> None:
    async def main(fake: FakeQemu) -> None:
        stream = fake.connect()
        await read_lines(stream, 1)
        await stream.receive_some()

    with pytest.raises(trio.TooSlowError):
        run_world(main, limit=10)


# What real QEMU survives


def test_a_megabyte_of_garbage() -> None:
    async def main(fake: FakeQemu) -> None:
        stream = fake.connect()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.send_all, b"garbage \xff{" * (1 << 17))
            seen = b""
            while seen.count(b"\n") < 1 + 2:
                seen += await stream.receive_some()
            nursery.cancel_scope.cancel()

    run_world(main)


def test_a_client_that_never_reads_does_not_stop_the_guest() -> None:
    guest = GuestConfig(cache=GiB)
    machine = Machine(MachineConfig(memory=2 * GiB, guest=guest))

    async def main(fake: FakeQemu) -> None:
        stream = fake.connect()
        request = b'{"execute": "balloon", "arguments": {"value": 1073741824}}'
        await stream.send_all(NEGOTIATE + request + b'{"execute": "query-commands"}')
        await trio.sleep(600)

    run_world(main, machine)
    assert machine.guest.memory.balloon == GiB


# On a real socket and a real clock


async def test_a_socket_serves_its_owner_one_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "qmp"
    async with listening(path, Machine()):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        first = await trio.open_unix_socket(path)
        second = await trio.open_unix_socket(path)
        assert "QMP" in (await read_lines(first, 1))[0]
        await first.aclose()
        assert "QMP" in (await read_lines(second, 1))[0]
        await second.aclose()
    assert not path.exists()


async def test_all_ways_in_lead_to_one_monitor(tmp_path: Path) -> None:
    path = tmp_path / "qmp"
    async with listening(path, Machine()) as fake:
        first = fake.connect()
        await read_lines(first, 1)
        second = await trio.open_unix_socket(path)
        async with second, trio.open_nursery() as nursery:
            nursery.start_soon(read_lines, second, 1)
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert len(nursery.child_tasks) == 1
            await first.aclose()


async def test_a_path_that_is_no_utf8_is_told_as_qemu_tells_it(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"a\xff\xe2\x82b")
    async with listening(path, Machine()), open_monitor(str(path)) as monitor:
        told: Any = await monitor.execute("query-chardev")
    assert told[0]["filename"] == f"unix:{tmp_path}/a\ufffd\ufffdb,server=on"


async def test_a_full_backlog_says_try_again(tmp_path: Path) -> None:
    path = tmp_path / "qmp"
    async with listening(path, Machine()):
        first = await trio.open_unix_socket(path)
        await read_lines(first, 1)
        waiting = [socket.socket(socket.AF_UNIX) for _ in range(10)]
        results = []
        for sock in waiting:
            sock.setblocking(False)  # noqa: FBT003 -- its own signature
            results.append(sock.connect_ex(str(path)))
            # They stay open: each has its place in the queue.
        assert results[0] == 0
        assert results[-1] == errno.EAGAIN
        for sock in waiting:
            sock.close()
        await first.aclose()


async def test_a_left_over_socket_is_replaced_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "qmp"
    with socket.socket(socket.AF_UNIX) as left_over:
        left_over.bind(str(path))
    async with listening(path, Machine()), open_monitor(str(path)) as monitor:
        await monitor.execute("query-status")
    path.write_text("something")
    async with open_fake() as fake:
        with pytest.raises(OSError, match="in use"):
            await fake.listen(path)
    assert path.read_text() == "something"


async def test_listening_ends_when_qemu_quits(tmp_path: Path) -> None:
    path = tmp_path / "qmp"
    async with open_fake() as fake, trio.open_nursery() as nursery:
        await nursery.start(fake.listen, path)
        async with open_monitor(str(path)) as monitor:
            await monitor.execute("quit")
    assert not path.exists()


@pytest.mark.parametrize("turns", range(12))
async def test_a_client_that_comes_as_it_ends_is_not_left_open(
    tmp_path: Path, turns: int
) -> None:
    path = tmp_path / "qmp"
    async with open_fake() as fake, trio.open_nursery() as nursery:
        await nursery.start(fake.listen, path)
        async with await trio.open_unix_socket(path) as client:
            for _ in range(turns):
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
            with (
                trio.fail_after(5, shield=True),
                suppress(trio.BrokenResourceError),
            ):
                while await client.receive_some():
                    pass


@pytest.fixture
def serving(tmp_path: Path) -> Iterator[Path]:
    """Serve a machine from another thread, for clients with loops of their own."""
    path = tmp_path / "qmp"
    ready = threading.Event()
    machine = Machine(MachineConfig(memory=256 * MiB, guest=GuestConfig(cache=0)))
    stop: list[Any] = []

    async def serve() -> None:
        async with listening(path, machine) as fake:
            stop.append((trio.lowlevel.current_trio_token(), fake.machine.die))
            stop.append(fake)
            ready.set()
            await fake.ended.wait()

    def end() -> None:
        machine.die()
        stop[1].touch()

    thread = threading.Thread(target=trio.run, args=(serve,))
    thread.start()
    assert ready.wait(10)
    yield path
    token, _ = stop[0]
    token.run_sync_soon(end)
    thread.join(10)
    assert not thread.is_alive()


def test_the_client_of_qemu_itself_works(serving: Path) -> None:
    async def main() -> tuple[Any, Any]:
        client = QMPClient("fake")
        await client.connect(str(serving))
        with client.listener("BALLOON_CHANGE") as events:
            await client.execute("balloon", {"value": 200 * MiB})
            event = await events.get()
        status = await client.execute("query-status")
        await client.disconnect()
        return status, event

    status, event = asyncio.run(main())
    assert status["status"] == "running"
    assert event["data"]["actual"] == 255 * MiB


async def test_a_killed_qemu_is_seen_as_gone(tmp_path: Path) -> None:
    path = tmp_path / "qmp"
    async with (
        listening(path, Machine()) as fake,
        open_monitor(str(path)) as monitor,
    ):
        fake.machine.die()
        fake.touch()
        with pytest.raises(MonitorClosed):
            await monitor.execute("query-status")


# A monitor that is added on a descriptor


def request(command: str, **arguments: object) -> bytes:
    return json.dumps({"execute": command, "arguments": arguments}).encode()


ADDITION = (
    request(
        "chardev-add",
        id="own",
        backend={
            "type": "socket",
            "data": {"addr": {"type": "fd", "data": {"str": "own"}}, "server": False},
        },
    ),
    request(
        "object-add",
        **{"qom-type": "monitor-qmp", "close-action": "delete"},
        id="own",
        chardev="own",
    ),
)
"""What adds a monitor on the descriptor that was named ``own``."""


async def add_monitor(fake: FakeQemu, client: trio.abc.Stream) -> trio.SocketStream:
    """Add a monitor through a client in memory; return its client's end."""
    ours, theirs = socket.socketpair()
    with theirs:
        cast("Any", client).send_descriptors([theirs.fileno()])
    await client.send_all(NEGOTIATE + request("getfd", fdname="own"))
    for each in ADDITION:
        await client.send_all(each)
    answers = await read_lines(client, 5)
    assert [each.get("return") for each in answers[1:]] == [{}] * 4
    assert len(fake.machine.monitors) == 2
    return trio.SocketStream(trio.socket.from_stdlib_socket(ours))


def test_a_client_in_memory_adds_a_monitor_that_vanishes_with_it() -> None:
    async def main(fake: FakeQemu) -> None:
        client = fake.connect()
        async with await add_monitor(fake, client) as added:
            await added.send_all(NEGOTIATE)
            assert "QMP" in (await read_lines(added, 2))[0]
            fake.do(Machine.stop)
            for stream in (client, added):
                assert (await read_lines(stream, 1))[0]["event"] == "STOP"
        await trio.sleep(1)
        assert list(fake.machine.monitors) == list(fake.machine.chardevs)
        assert len(fake.machine.monitors) == 1

    run_world(main, Machine(profile=profile("11.1")))


@pytest.mark.parametrize("end", [Machine.quit, Machine.die])
def test_added_monitors_end_with_qemu(end: Callable[[Machine], None]) -> None:
    async def main(fake: FakeQemu) -> None:
        async with await add_monitor(fake, fake.connect()) as added:
            fake.do(end)
            await read_all(added)

    run_world(main, Machine(profile=profile("11.1")))


def test_added_monitors_end_with_the_fake() -> None:
    async def main() -> bytes:
        async with open_fake(Machine(profile=profile("11.1"))) as fake:
            added = await add_monitor(fake, fake.connect())
            assert "QMP" in (await read_lines(added, 1))[0]
        async with added:
            return await read_all(added)

    assert trio.run(main) == b""


def test_a_monitor_that_is_added_and_deleted_at_once_is_not_served() -> None:
    async def main(fake: FakeQemu) -> None:
        client = fake.connect()
        ours, theirs = socket.socketpair()
        with ours, theirs:
            cast("Any", client).send_descriptors([theirs.fileno()])
            deletion = request("object-del", id="own") + request(
                "chardev-remove", id="own"
            )
            getfd = request("getfd", fdname="own")
            await client.send_all(b"".join([NEGOTIATE, getfd, *ADDITION, deletion]))
            answers = await read_lines(client, 7)
        assert [each.get("return") for each in answers[1:]] == [{}] * 6

    run_world(main, Machine(profile=profile("11.1")))


async def read_all(stream: trio.abc.Stream) -> bytes:
    """Return what comes until the stream is closed."""
    data = b""
    with trio.fail_after(10):
        while chunk := await stream.receive_some():
            data += chunk
    return data
