"""What all monitors of a trio run share: one task, one descriptor, and no failure."""

from __future__ import annotations

import math
import os
import socket
import threading
from contextlib import AsyncExitStack, ExitStack, suppress
from functools import partial
from typing import TYPE_CHECKING

import pytest
import trio
from descriptor_limit import no_descriptors
from qmp_peers import GREETING, negotiated, serve, stream_of
from trio.testing import wait_all_tasks_blocked

from qmpballoon.errors import (
    MonitorClosed,
    MonitorError,
    MonitorTimeout,
    MonitorUnreachable,
)
from qmpballoon.qmp import Connection, Event, Request, Return, Role
from qmpballoon.trio import TrioMonitor, open_monitor
from qmpballoon.trio._reactor import get_reactor

if TYPE_CHECKING:
    from trio.testing import MockClock

    from qmpballoon.qmp import Message

pytestmark = pytest.mark.usefixtures("no_descriptor_leaks")

MANY = 100  # more than are served before other tasks have their turn


def make_served(nursery: trio.Nursery) -> socket.socket:
    """Return the client's end of a served connection."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)  # noqa: FBT003
    nursery.start_soon(serve, stream_of(theirs))
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


class Deadlines:
    """A member without deadlines."""

    def wake_late(self, now: float) -> float:
        """Return that there are none."""
        del now
        return math.inf

    def note_end(self, error: BaseException | None) -> None:
        """Do nothing."""


async def test_only_sockets_that_are_ready_are_read() -> None:
    reactor, member, called = get_reactor(), Deadlines(), list[str]()
    with ExitStack() as stack:
        ends = [
            [stack.enter_context(end) for end in socket.socketpair()] for _ in range(3)
        ]
        reactor.join(member)
        stack.callback(reactor.leave, member)
        for name, (ours, theirs) in zip("abc", ends, strict=True):
            ours.setblocking(False)  # noqa: FBT003
            handler = partial(read, ours, name, called)
            reactor.watch(ours, handler, handler)
            stack.callback(reactor.unwatch, ours, handler)
            theirs.send(name.encode())
            await wait_all_tasks_blocked()
    assert called == ["a", "b", "c"]


def read(sock: socket.socket, name: str, called: list[str]) -> None:
    called.append(name)
    with suppress(BlockingIOError):  # there was nothing to read
        sock.recv(1)


async def test_each_command_has_a_deadline_of_its_own(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    async def time_out(monitor: TrioMonitor, seconds: float) -> None:
        begun = autojump_clock.current_time()
        with pytest.raises(MonitorTimeout):
            await monitor.execute("echo", timeout=seconds)
        assert autojump_clock.current_time() == begun + seconds

    ends = [socket.socketpair() for _ in range(2)]
    with ends[0][1], ends[1][1]:
        for _, theirs in ends:
            theirs.setblocking(False)  # noqa: FBT003
            nursery.start_soon(negotiated, stream_of(theirs))
        async with open_monitor(ends[0][0]) as one, open_monitor(ends[1][0]) as other:
            for _ in range(2):
                async with trio.open_nursery() as callers:
                    # Ends a hang, on the mock clock.
                    callers.cancel_scope.deadline = autojump_clock.current_time() + 100
                    for monitor, seconds in ((one, 5), (other, 2), (one, 3)):
                        callers.start_soon(time_out, monitor, seconds)
                assert not callers.cancel_scope.cancelled_caught


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


async def test_no_descriptor_is_left_to_wait_with(nursery: trio.Nursery) -> None:
    end = make_served(nursery)
    refused = pytest.raises(MonitorUnreachable, match="Too many open files: raise")
    with no_descriptors(), refused:
        async with open_monitor(end):
            pass
    async with open_monitor(make_served(nursery)) as monitor:
        await check_echo(monitor, 1)


@pytest.mark.parametrize("seen_by", ["sending", "reading"])
async def test_a_descriptor_that_somebody_closes_ends_its_monitor_alone(
    nursery: trio.Nursery, seen_by: str
) -> None:
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)  # noqa: FBT003
    nursery.start_soon(serve, stream_of(theirs))
    with socket.socket(fileno=os.dup(ours.fileno())):  # as a child process has one
        async with open_monitor(make_served(nursery)) as other:
            async with open_monitor(ours.fileno()) as monitor:
                ours.close()
                if seen_by == "reading":
                    theirs.send(b"\n")
                    await wait_all_tasks_blocked()
                with pytest.raises(MonitorClosed, match="Bad file descriptor"):
                    await monitor.execute("echo", timeout=120)
                theirs.send(b"\n")
                # The kernel calls nothing ready that nobody reads from.
                with trio.fail_after(120):
                    await wait_all_tasks_blocked()
                await check_echo(other, 1)
            await check_echo(other, 2)


@pytest.mark.parametrize("has_monitor", [True, False])
async def test_a_number_that_was_taken_from_a_monitor_is_left_to_who_has_it(
    nursery: trio.Nursery, *, has_monitor: bool
) -> None:
    first, second = make_served(nursery), make_served(nursery)
    number = first.detach()
    async with (
        AsyncExitStack() as stack,
        open_monitor(make_served(nursery)) as other,
    ):
        async with open_monitor(number):
            os.dup2(second.fileno(), number)
            second.close()
            theirs = stack.enter_context(socket.socket(fileno=number))
            if has_monitor:
                opening = open_monitor(theirs)
                theirs_too = await stack.enter_async_context(opening)
        if has_monitor:
            await check_echo(theirs_too, 1)
        else:
            theirs.getpeername()
        await check_echo(other, 2)


async def test_a_monitor_whose_number_another_one_has_ends_and_sends_it_nothing(
    nursery: trio.Nursery,
) -> None:
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)  # noqa: FBT003
    nursery.start_soon(serve, stream_of(theirs))
    second = make_served(nursery)
    number = ours.detach()
    with socket.socket(fileno=os.dup(number)):  # as a child process has one
        async with (
            open_monitor(make_served(nursery)) as other,
            open_monitor(number) as lost,
        ):
            os.dup2(second.fileno(), number)
            second.close()
            async with open_monitor(socket.socket(fileno=number)) as monitor:
                with pytest.raises(MonitorClosed, match="Bad file descriptor"):
                    await lost.execute("echo", timeout=120)
                theirs.send(b"\n")  # what nobody reads is ready for nobody
                with trio.fail_after(120):
                    await wait_all_tasks_blocked()
                await check_echo(monitor, 1)
            # The number is somebody else's again when the first one is closed.
            os.dup2(theirs.fileno(), number)
            await check_echo(other, 2)
        os.close(number)


async def test_a_socket_that_others_make_a_blocking_one_stops_nobody(
    nursery: trio.Nursery,
) -> None:
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    theirs.setblocking(False)  # noqa: FBT003
    nursery.start_soon(serve, stream_of(theirs))
    # Stopped, this thread cannot end the test; the other end's hanging up can.
    hang_up = threading.Timer(120, theirs.shutdown, [socket.SHUT_RDWR])
    with ours.dup() as shared:
        async with open_monitor(ours) as monitor:
            shared.setblocking(True)  # noqa: FBT003
            hang_up.start()
            big = {"a": "x" * 200_000}  # more than the kernel takes at once
            assert await monitor.execute("echo", big) == big
            hang_up.cancel()


def test_monitors_that_outlive_their_run_are_ended() -> None:
    ended: list[MonitorError] = []

    async def outlive(is_open: trio.Event, end: socket.socket) -> None:
        async with open_monitor(end) as monitor:
            try:
                is_open.set()
                await trio.sleep_forever()
            finally:
                with (
                    trio.fail_after(120, shield=True),
                    pytest.raises(MonitorClosed) as e,
                ):
                    await monitor.execute("echo", timeout=120)
                ended.append(e.value)

    async def main() -> None:
        is_open = trio.Event()
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)  # noqa: FBT003
        trio.lowlevel.spawn_system_task(serve, stream_of(theirs))
        trio.lowlevel.spawn_system_task(outlive, is_open, ours)
        await is_open.wait()

    trio.run(main)
    assert "the trio run is at its end" in str(ended[0])


async def test_a_stream_that_fails_to_close_is_forgotten(
    nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = count_tasks()
    end = make_served(nursery)
    end.setblocking(False)  # noqa: FBT003
    stream = stream_of(end)

    async def fail() -> None:
        end.close()
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(stream, "aclose", fail)
    with pytest.raises(ZeroDivisionError):
        async with open_monitor(stream):
            pass
    await wait_all_tasks_blocked()
    assert count_tasks() == tasks
