"""Sharing a client that somebody else holds, which stays as it was."""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import threading
import tracemalloc
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, cast

import pytest
from asyncio_runs import run
from frontends import elsewhere
from qemu.qmp import QMPClient, Runstate
from scripted import Session, attend, serve, standard_answer

from qmpballoon import MonitorClosed, MonitorTimeout, NoBalloonDevice, testing
from qmpballoon import asyncio as aio
from qmpballoon.asyncio import held_client
from qmpballoon.qmp import MAX_IN_FLIGHT, Event
from qmpballoon.testing import MachineConfig

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from qemu.qmp import Message

    from qmpballoon.qmp import Request
    from qmpballoon.testing import ThreadedFake


@asynccontextmanager
async def held(path: str) -> AsyncGenerator[aio.HeldClientMonitor]:
    """Yield a monitor over a client of its own."""
    client = QMPClient()
    await client.connect(path)
    try:
        yield aio.HeldClientMonitor(client)
    finally:
        with suppress(EOFError):
            await client.disconnect()


def state_of(client: QMPClient) -> list[object]:
    """Return all of a client that this package could change."""
    return [
        *(client.events.event_filter, client.events.names, client.logger, client.name),
        *(client.runstate, client.greeting, list(client._listeners)),  # noqa: SLF001 - it has no other way
    ]


def test_the_client_is_left_as_it_was_found(fake: ThreadedFake) -> None:
    async def main() -> None:
        client = QMPClient("orchestrator")
        client.events.event_filter = lambda _: True
        await client.connect(fake.socket)
        before = state_of(client)
        balloon = await aio.find_balloon(client)
        await balloon.resize(1 << 30)
        assert state_of(client) == before
        with aio.limit_unread_events(client, 10), balloon.monitor.subscribe() as events:
            await client.execute("stop")
            assert (await events.receive()).name in {"BALLOON_CHANGE", "STOP"}
            assert state_of(client) != before
        assert state_of(client) == before
        with suppress(ZeroDivisionError), aio.limit_unread_events(client):
            raise ZeroDivisionError
        assert state_of(client) == before
        await client.disconnect()

    run(main())


def test_a_filter_that_its_owner_sets_meanwhile_stays(fake: ThreadedFake) -> None:
    async def main() -> None:
        client = QMPClient()
        await client.connect(fake.socket)
        theirs = state_of  # any function
        with aio.limit_unread_events(client):
            client.events.event_filter = cast("Any", theirs)
        assert client.events.event_filter is cast("Any", theirs)
        await client.disconnect()

    run(main())


def event(number: int) -> Event:
    """Return an event as large as QEMU's usually are."""
    return Event("BLOCK_IO_ERROR", {"reason": "x" * 200, "number": number}, 1.0)


def number_of(message: Message) -> int:
    """Return the number of such an event, as qemu.qmp has it."""
    data = cast("dict[str, int]", message["data"])
    return data["number"]


def chatter(session: Session) -> None:
    """Send ten thousand events, a hundred with each answer to ``talk``."""
    session.greet()
    while True:
        request = session.request()
        if request.command == "talk":
            for number in range(100):
                session.sock.sendall(session.qmp.send_event(event(number)))
        session.answer(request, standard_answer(request))


def test_a_busy_client_and_events_nobody_reads() -> None:
    """A thousand commands of others, and 10,000 events: memory does not grow."""

    async def main(path: str) -> None:
        client = QMPClient("orchestrator")
        await client.connect(path)
        balloon = await aio.find_balloon(client)

        async def others(count: int) -> None:
            for _ in range(count):
                await client.execute("query-status")

        async def ours(count: int) -> None:
            for _ in range(count):
                assert await balloon.actual() == 1 << 30

        async def talk(count: int) -> None:
            for _ in range(count):
                await client.execute("talk")

        with (
            aio.limit_unread_events(client, 100),
            balloon.monitor.subscribe("BLOCK_IO_ERROR", capacity=10) as unread,
        ):
            await talk(2)  # until all that is bounded is full
            gc.collect()
            tracemalloc.start()
            try:
                before = tracemalloc.get_traced_memory()[0]
                async with asyncio.TaskGroup() as group:
                    for task in (others(1000), ours(200), talk(100)):
                        group.create_task(task)
                gc.collect()
                grown = tracemalloc.get_traced_memory()[0] - before
            finally:
                tracemalloc.stop()
            assert grown < 200_000  # bytes; the events alone would be millions
            assert len(client.events.clear()) == 100
            assert len(client.events.history) == 100
            assert unread.lost["BLOCK_IO_ERROR"] == 10_200 - 10
            assert (await unread.receive()).data["number"] == 90
        await client.disconnect()

    with serve(chatter) as path:
        run(main(path))


def test_without_a_bound_the_events_are_all_there() -> None:
    async def main(path: str) -> None:
        client = QMPClient()
        await client.connect(path)
        await aio.find_balloon(client)
        await client.execute("talk")
        assert len(client.events.clear()) == 100
        with (
            pytest.raises(ValueError, match="limit is -1"),
            aio.limit_unread_events(client, -1),
        ):
            pytest.fail("a bad limit")
        await client.disconnect()

    with serve(chatter) as path:
        run(main(path))


def test_events_flow_again_once_somebody_reads(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main(path: str) -> None:
        client = QMPClient()
        client.events.event_filter = lambda event: number_of(event) % 2 == 0
        await client.connect(path)
        with (
            aio.limit_unread_events(client, 10),
            aio.limit_unread_events(client, 5),  # the first bound stays
        ):
            await client.execute("talk")
            assert [number_of(message) for message in client.events.clear()] == [
                *range(0, 20, 2)
            ]
            assert caplog.text.count("are unread in client.events") == 1
            await client.execute("talk")
            assert number_of(await client.events.get()) == 0
        client.events.clear()
        await client.execute("talk")
        assert len(client.events.clear()) == 50
        await client.disconnect()

    with serve(chatter) as path:
        run(main(path))


def test_events_reach_our_subscribers_and_the_orchestrators(
    fake: ThreadedFake,
) -> None:
    async def main() -> None:
        client = QMPClient()
        await client.connect(fake.socket)
        monitor = aio.HeldClientMonitor(client)
        with (
            monitor.subscribe("STOP", "RESUME") as events,
            client.listener("STOP") as listener,
        ):
            waiting = asyncio.create_task(events.receive())
            await asyncio.sleep(0)
            await client.execute("stop")
            assert (await waiting).name == "STOP"
            await client.execute("cont")
            assert (await anext(aiter(events))).name == "RESUME"
            assert (await listener.get())["event"] == "STOP"
            assert events.lost == {}
            end = asyncio.create_task(events.receive())
            await asyncio.sleep(0)
            elsewhere(fake.kill)
            with pytest.raises(MonitorClosed):
                await end
        with suppress(EOFError):
            await client.disconnect()
        with pytest.raises(MonitorClosed):
            await events.receive()

    run(main())


def test_events_come_in_a_block(fake: ThreadedFake) -> None:
    async def main() -> None:
        async with held(fake.socket) as monitor:
            subscription = monitor.subscribe("STOP")
            with pytest.raises(RuntimeError, match="with block"):
                await subscription.receive()
            with subscription as events:
                waiting = asyncio.create_task(events.receive())
                await asyncio.sleep(0)
                await monitor.execute("stop")
                assert (await waiting).name == "STOP"
                waiting = asyncio.create_task(events.receive())
                await asyncio.sleep(0)
                await asyncio.sleep(0)
            with pytest.raises(RuntimeError, match="with block"):
                await waiting

    run(main())


def test_an_event_that_is_none_harms_nobody() -> None:
    def script(session: Session) -> None:
        session.greet()
        session.request()
        session.sock.sendall(b'{"event": "X", "data": 5}\r\n')
        session.sock.sendall(session.qmp.send_event(event(1)))
        attend(session)

    async def main(path: str) -> None:
        async with held(path) as monitor:
            with monitor.subscribe() as events:
                with suppress(MonitorTimeout):
                    await monitor.execute("unanswered", timeout=0.01)
                assert (await events.receive()).name == "BLOCK_IO_ERROR"
            assert await monitor.execute("query-status") == {}

    with serve(script) as path:
        run(main(path))


def test_each_command_has_its_own_deadline() -> None:
    def script(session: Session) -> None:
        session.greet()
        while True:
            session.request()

    async def main(path: str) -> None:
        async with held(path) as monitor:
            began = asyncio.get_running_loop().time()
            long = asyncio.create_task(monitor.execute("long", timeout=0.1))
            await asyncio.sleep(0)  # it begins first
            with pytest.raises(MonitorTimeout, match="short"):
                await monitor.execute("short", timeout=0.01)
            # A timer that is not set anew would be noticed by nothing that comes.
            timer = monitor._timer  # noqa: SLF001
            assert long.done() or (timer and timer.when() >= began + 0.1)
            with pytest.raises(MonitorTimeout, match="long"):
                await asyncio.wait_for(long, 300)
            assert monitor._timer is None  # noqa: SLF001
            with pytest.raises(MonitorTimeout, match="next"):
                await monitor.execute("next", timeout=0.01)

    with serve(script) as path:
        run(main(path))


def test_no_more_than_eight_of_ours_are_with_qemu() -> None:
    most = 0

    def script(session: Session) -> None:
        nonlocal most
        session.greet()
        held: list[Request] = []
        while True:
            held.append(session.request())
            most = max(most, len(held))
            if len(held) == MAX_IN_FLIGHT:
                # One more comes for each that is answered, and none before.
                session.sock.settimeout(0.05)
                with suppress(TimeoutError):
                    held.append(session.request())
                session.sock.settimeout(None)
                most = max(most, len(held))
                if most > MAX_IN_FLIGHT:
                    return
                session.answer(held.pop(0), {})

    async def main(path: str) -> None:
        async with held(path) as monitor:
            calls = [
                asyncio.create_task(monitor.execute("x", timeout=math.inf))
                for _ in range(20)
            ]
            await asyncio.wait(calls[:13])  # the last seven are kept waiting
            for call in calls:
                call.cancel()
            await asyncio.wait(calls)

    with serve(script) as path:
        asyncio.run(asyncio.wait_for(main(path), 300))
    assert most == MAX_IN_FLIGHT


def test_a_command_cancelled_before_its_turn_is_not_sent() -> None:
    came: list[str] = []

    def script(session: Session) -> None:
        session.greet()
        held = [session.request() for _ in range(MAX_IN_FLIGHT)]
        released.wait(10)
        for request in held:
            session.answer(request, {})
        while not came or came[-1] != "last":
            request = session.request()
            came.append(request.command)
            session.answer(request, {})

    async def main(path: str) -> None:
        async with held(path) as monitor:
            execute = monitor.execute
            calls = [asyncio.create_task(execute("x")) for _ in range(MAX_IN_FLIGHT)]
            late = asyncio.create_task(execute("given-up"))
            await asyncio.sleep(0)  # it is in the queue by now
            await asyncio.sleep(0)
            late.cancel()
            await asyncio.wait({late})
            released.set()
            await asyncio.gather(*calls)
            await execute("last")

    released = threading.Event()
    with serve(script) as path:
        asyncio.run(asyncio.wait_for(main(path), 300))
    assert came == ["last"]


def test_a_cancelled_command_keeps_the_connection(fake: ThreadedFake) -> None:
    async def main() -> None:
        async with held(fake.socket) as monitor:
            balloon = await aio.find_balloon(monitor)
            task = asyncio.create_task(balloon.set_target(1 << 30))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await asyncio.wait_for(balloon.query(), 300)

    run(main())


# A client that is adopted


async def connect(path: str) -> QMPClient:
    """Return a connected client."""
    client = QMPClient("vm1")
    await client.connect(path)
    return client


def test_an_adopted_client_is_disconnected_however_the_block_ends(
    fake: ThreadedFake,
) -> None:
    async def main() -> None:
        client = await connect(fake.socket)
        async with aio.adopt_client(client, pid=0) as balloon:
            assert balloon.monitor.client is client
            assert await client.execute("query-name") == {}
        assert client.runstate is Runstate.IDLE
        client = await connect(fake.socket)
        with pytest.raises(ZeroDivisionError):
            async with aio.adopt_client(client):
                raise ZeroDivisionError
        assert client.runstate is Runstate.IDLE
        client = await connect(fake.socket)
        async with aio.adopt_client(client):
            await client.disconnect()
        assert client.runstate is Runstate.IDLE

    run(main())


def test_a_client_whose_vm_has_no_balloon_is_disconnected() -> None:
    async def main(path: str) -> None:
        client = await connect(path)
        with pytest.raises(NoBalloonDevice, match="vm1"):
            async with aio.adopt_client(client):
                pytest.fail("there is no balloon")
        assert client.runstate is Runstate.IDLE
        with pytest.raises(MonitorClosed, match="or was not made"):
            async with aio.adopt_client(client):
                pytest.fail("it is not connected")

    with testing.serve(MachineConfig(balloon=None)) as fake:
        run(main(fake.socket))


def test_a_qemu_that_dies_is_told_as_that(
    fake: ThreadedFake, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        client = await connect(fake.socket)
        with pytest.raises(MonitorClosed, match=r"of vm1: .* closed by QEMU"):
            async with aio.adopt_client(client) as balloon:
                await balloon.reclaim(on_progress=lambda _: fake.kill())
        assert client.runstate is Runstate.IDLE
        assert "vm1: the connection had ended: QEMU closed it" in caplog.messages

    with caplog.at_level(logging.WARNING, "qmpballoon.asyncio"):
        run(main())


def test_a_cancelled_block_disconnects_whatever_cancels_it_again(
    fake: ThreadedFake,
) -> None:
    async def hold(client: QMPClient, held: asyncio.Event) -> None:
        async with aio.adopt_client(client):
            held.set()
            await asyncio.sleep(3600)

    async def main() -> None:
        client, held = await connect(fake.socket), asyncio.Event()
        task = asyncio.create_task(hold(client, held))
        await held.wait()
        for _ in range(3):
            task.cancel()
            await asyncio.sleep(0)
        with pytest.raises(asyncio.CancelledError):
            await task
        assert client.runstate is Runstate.IDLE

    run(main())


def test_a_client_that_does_not_disconnect_does_not_hang(
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    fake: ThreadedFake,
) -> None:
    async def main() -> None:
        client = await connect(fake.socket)
        async with aio.adopt_client(client):
            with monkeypatch.context() as patched:
                patched.setattr(held_client, "_HANG_UP_TIMEOUT", 0.0)
                with suppress(ZeroDivisionError):
                    async with aio.adopt_client(client):
                        patched.setattr(client, "disconnect", asyncio.Event().wait)
                        raise ZeroDivisionError
        assert client.runstate is Runstate.IDLE

    with caplog.at_level(logging.WARNING, "qmpballoon.asyncio"):
        run(main())
    assert "vm1: QEMU does not let the client disconnect in order" in caplog.messages
