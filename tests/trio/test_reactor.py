"""What all monitors of a trio run share: one task, one descriptor, and no failure."""

from __future__ import annotations

import socket
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import pytest
import trio
from qmp_peers import GREETING, stream_of
from trio.testing import wait_all_tasks_blocked

from qmpballoon.errors import MonitorClosed
from qmpballoon.qmp import Connection, Event, Request, Return, Role
from qmpballoon.trio import TrioMonitor, open_monitor

if TYPE_CHECKING:
    from qmpballoon.qmp import Message

pytestmark = pytest.mark.usefixtures("no_descriptor_leaks")

MANY = 100  # more than are served before other tasks have their turn


async def serve(theirs: socket.socket) -> None:
    """Send each command's arguments back, until the client leaves."""
    server = Connection(Role.SERVER)
    async with stream_of(theirs) as stream:
        await stream.send_all(server.send_greeting(GREETING))
        async for data in stream:
            server.receive_data(data)
            while isinstance(request := server.next_message(), Request):
                reply = Return(dict(request.arguments), request.id)
                await stream.send_all(server.send_reply(reply))


def make_served(nursery: trio.Nursery) -> socket.socket:
    """Return the client's end of a served connection."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)  # noqa: FBT003
    nursery.start_soon(serve, theirs)
    return ours


def count_tasks() -> int:
    """Return how many tasks there are in this run."""
    return trio.lowlevel.current_statistics().tasks_living


async def test_all_monitors_share_one_task_that_ends_with_the_last(
    nursery: trio.Nursery,
) -> None:
    ends = [make_served(nursery) for _ in range(MANY)]
    before = count_tasks()
    async with AsyncExitStack() as stack:
        monitors = [await stack.enter_async_context(open_monitor(end)) for end in ends]
        await wait_all_tasks_blocked()
        assert count_tasks() == before + 1
        async with trio.open_nursery() as callers:
            for number, monitor in enumerate(monitors):
                callers.start_soon(check_echo, monitor, number)
    await wait_all_tasks_blocked()
    assert count_tasks() == before - MANY  # those that served have ended, too


async def check_echo(monitor: TrioMonitor, number: int) -> None:
    """Check that a monitor's reply is its own."""
    assert await monitor.execute("echo", {"a": number}) == {"a": number}


async def test_monitors_can_be_opened_again_when_all_are_closed(
    nursery: trio.Nursery,
) -> None:
    for number in range(3):
        async with open_monitor(make_served(nursery)) as monitor:
            await check_echo(monitor, number)


async def test_a_bug_in_reading_one_monitor_ends_that_one_alone(
    nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with (
        open_monitor(make_served(nursery)) as sound,
        open_monitor(make_served(nursery)) as failing,
    ):

        def fail() -> Message:
            raise ZeroDivisionError("a bug")

        connection = failing._connection  # noqa: SLF001 - what has the bug
        monkeypatch.setattr(connection, "next_message", fail)
        with pytest.raises(MonitorClosed, match="ZeroDivisionError: a bug"):
            await failing.execute("echo", {"a": 1})
        await check_echo(sound, 2)


@pytest.mark.parametrize("failing", ["receive_some", "send_all"])
async def test_a_bug_of_a_stream_ends_its_monitor_alone(
    nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    ours, theirs = socket.socketpair()
    theirs.send(Connection(Role.SERVER).send_greeting(GREETING))
    stream = stream_of(ours)

    async def fail(*_: object) -> None:
        await trio.lowlevel.checkpoint()
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(stream, failing, fail)
    with theirs:
        async with open_monitor(make_served(nursery)) as sound:
            with pytest.raises(MonitorClosed, match="a bug"):
                async with open_monitor(stream):
                    pass
            await check_echo(sound, 2)


async def test_a_flood_on_one_monitor_delays_no_other(nursery: trio.Nursery) -> None:
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)  # noqa: FBT003
    flooding = trio.CancelScope()

    async def flood() -> None:
        """Send events without end."""
        server = Connection(Role.SERVER)
        async with stream_of(theirs) as stream:
            await stream.send_all(server.send_greeting(GREETING))
            server.receive_data(await stream.receive_some())
            request = server.next_message()
            assert isinstance(request, Request)
            events = server.send_reply(Return({}, request.id))
            with flooding:
                while True:
                    await stream.send_all(events)
                    events = server.send_event(Event("RTC_CHANGE", {}, 0.0)) * 100

    nursery.start_soon(flood)
    async with open_monitor(ours), open_monitor(make_served(nursery)) as other:
        with trio.fail_after(120):  # ends a hang
            for number in range(20):
                await check_echo(other, number)
        flooding.cancel()
