"""The asyncio monitor against a scripted peer, on a virtual clock."""

from __future__ import annotations

import asyncio
import functools
import itertools
import logging
import math
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import attrs
import pytest
from asyncio_world import (
    CHANGE,
    GREETING,
    Peer,
    connected,
    run_virtual,
    settle,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from qmpballoon.asyncio import AsyncioMonitor, open_monitor
from qmpballoon.errors import (
    CommandError,
    CommandNotFound,
    MonitorBusy,
    MonitorClosed,
    MonitorError,
    MonitorTimeout,
    ProtocolError,
)
from qmpballoon.monitor import Monitor
from qmpballoon.qmp import MAX_IN_FLIGHT, Event, Failure, Return
from qmpballoon.testing.asyncio_world import JumpingLoop

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping

pytestmark = pytest.mark.usefixtures("no_descriptor_leaks")


def on_asyncio(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a test on a virtual clock."""

    @functools.wraps(test)
    def run(**arguments: object) -> None:
        run_virtual(test(**arguments))

    return run


@attrs.define(eq=False)
class Call:
    """A call of ``execute`` in a task of its own, and how it ended."""

    monitor: AsyncioMonitor
    command: str
    arguments: Mapping[str, object] | None = None
    timeout: float | None = None
    result: object = None
    task: asyncio.Task[None] | None = None

    def start(self) -> Call:
        self.task = asyncio.create_task(self.run())
        return self

    def cancel(self) -> None:
        assert self.task is not None
        self.task.cancel()

    async def run(self) -> None:
        try:
            self.result = await self.monitor.execute(
                self.command, self.arguments, timeout=self.timeout
            )
        except (MonitorError, CommandError, TypeError) as error:
            self.result = error


async def call(
    monitor: AsyncioMonitor, command: str, *, timeout: float | None = None
) -> Call:
    """Start a call, and return it when it waits for its turn or its answer."""
    started = Call(monitor, command, timeout=timeout).start()
    await settle()
    return started


def time() -> float:
    return asyncio.get_running_loop().time()


def socket_pair() -> tuple[socket.socket, socket.socket]:
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)  # noqa: FBT003
    return ours, theirs


# Connecting.


@on_asyncio
async def test_a_monitor_is_what_balloon_code_wants() -> None:
    async with connected() as (monitor, _):
        assert isinstance(monitor, Monitor)
        assert monitor.greeting == GREETING
        assert monitor.oob is False
        assert monitor.pid is None


@on_asyncio
async def test_its_clock_is_the_event_loops() -> None:
    async with connected() as (monitor, _):
        start = monitor.now()
        await monitor.sleep(2.5)
        await monitor.sleep(-1)
        assert monitor.now() - start == 2.5
        assert monitor.now() == time()


@pytest.mark.parametrize("greeting", [b"", b'{"QMP": {'])
@on_asyncio
async def test_no_greeting_means_that_somebody_else_is_served(greeting: bytes) -> None:
    ours, theirs = socket_pair()
    with theirs:
        theirs.send(greeting)
        with pytest.raises(MonitorBusy, match="did not greet in time"):
            async with open_monitor(ours, timeout=3):
                pytest.fail("nobody greeted")
        assert time() == 3


@on_asyncio
async def test_a_late_greeting_is_waited_for() -> None:
    ours, theirs = socket_pair()
    peer = Peer(theirs)

    async def greet_late() -> None:
        await asyncio.sleep(2.9)
        await peer.negotiate()

    with theirs:
        late = asyncio.create_task(greet_late())
        async with open_monitor(ours, timeout=3) as monitor:
            assert monitor.greeting == GREETING
            assert time() == 2.9
        await late


@on_asyncio
async def test_no_answer_to_the_negotiation_is_a_timeout() -> None:
    ours, theirs = socket_pair()
    with theirs:
        await Peer(theirs).greet()
        with pytest.raises(MonitorTimeout, match="greeted, and did not answer"):
            async with open_monitor(ours, timeout=3):
                pytest.fail("nobody negotiated")
        assert time() == 3


@on_asyncio
async def test_events_may_come_before_the_negotiation_is_over() -> None:
    ours, theirs = socket_pair()
    peer = Peer(theirs)

    async def chatter() -> None:
        await peer.greet()
        await peer.tell(CHANGE)
        request = await peer.request()
        await peer.tell(CHANGE)
        await peer.answer(request, {})
        await peer.echo()

    with theirs:
        chattering = asyncio.create_task(chatter())
        async with open_monitor(ours) as monitor:
            assert await monitor.execute("stop") == "stop"
        await chattering


@pytest.mark.parametrize("oob", [True, False])
@on_asyncio
async def test_oob_is_negotiated_when_asked_for(*, oob: bool) -> None:
    async with connected(oob=oob) as (monitor, _):
        assert monitor.oob is oob


@pytest.mark.parametrize("timeout", [-1, float("nan"), "5", None, True])
@on_asyncio
async def test_a_bad_timeout_is_refused(timeout: object) -> None:
    for options in ({"timeout": timeout}, {"command_timeout": timeout}):
        ours, theirs = socket_pair()
        with ours, theirs, pytest.raises((TypeError, ValueError), match="timeout"):
            async with open_monitor(ours, **options):  # type: ignore[arg-type]
                pytest.fail("a bad argument")


@on_asyncio
async def test_the_connection_is_closed_with_its_block() -> None:
    async with connected() as (_, peer):
        sock = peer.sock.dup()
    with sock:
        assert sock.recv(1) == b""  # at once: nothing has run since


# Commands.


@on_asyncio
async def test_a_command_gets_its_answer() -> None:
    async with connected() as (monitor, peer):
        started = Call(monitor, "qom-get", {"path": "/machine"}).start()
        request = await peer.request()
        assert request.command == "qom-get"
        assert request.arguments == {"path": "/machine"}
        await peer.answer(request, {"a": 1})
        await settle()
        assert started.result == {"a": 1}


@on_asyncio
async def test_a_refusal_is_a_command_error() -> None:
    async with connected() as (monitor, peer):
        for error_class, error in (
            ("GenericError", CommandError),
            ("CommandNotFound", CommandNotFound),
        ):
            started = await call(monitor, "nope")
            request = await peer.request()
            await peer.reply(Failure(error_class, "why", request.id))
            await settle()
            assert type(started.result) is error
            assert isinstance(started.result, CommandError)
            assert started.result.command == "nope"
            assert started.result.desc == "why"


@on_asyncio
async def test_callers_at_once_each_get_their_own_answer() -> None:
    async with connected() as (monitor, peer):
        calls = [Call(monitor, f"command-{number}").start() for number in range(20)]
        for answered in range(len(calls)):
            await settle()
            while len(peer.received) < min(MAX_IN_FLIGHT, len(calls) - answered):
                await peer.request()
            with suppress(TimeoutError):  # no more than these have been sent
                async with asyncio.timeout(0.01):
                    await peer.request()
            assert len(peer.received) <= MAX_IN_FLIGHT
            request = peer.received[0]
            await peer.answer(request, f"answer to {request.command}")
        await settle()
        for started in calls:
            assert started.result == f"answer to {started.command}"


@on_asyncio
async def test_who_waits_longer_has_its_turn_before_who_comes_later() -> None:
    async with connected() as (monitor, peer):

        async def greedy() -> None:
            await monitor.execute("first")
            await monitor.execute("third")

        callers = [asyncio.create_task(greedy()) for _ in range(MAX_IN_FLIGHT)]
        await settle()
        for _ in range(MAX_IN_FLIGHT):
            await call(monitor, "second")
        first = [await peer.request() for _ in range(MAX_IN_FLIGHT)]
        replies = [Return({}, request.id) for request in first]
        await peer.send(b"".join(map(peer.connection.send_reply, replies)))
        await settle()
        second = [await peer.request() for _ in range(MAX_IN_FLIGHT)]
        assert {request.command for request in second} == {"second"}
        for request in second:
            await peer.answer(request)
        peer.start_echo()
        await asyncio.gather(*callers)


@on_asyncio
async def test_out_of_band_commands_do_not_wait_for_a_turn() -> None:
    async with connected(oob=True) as (monitor, peer):
        for _ in range(MAX_IN_FLIGHT + 1):
            await call(monitor, "slow")
        peer.start_echo()
        assert await monitor.execute("migrate-pause", oob=True) == "migrate-pause"


@on_asyncio
async def test_oob_that_was_not_negotiated_is_misuse() -> None:
    async with connected() as (monitor, _):
        with pytest.raises(RuntimeError, match="not negotiated"):
            await monitor.execute("migrate-pause", oob=True)


@on_asyncio
async def test_no_answer_in_time_is_a_timeout_and_the_late_one_is_swallowed() -> None:
    async with connected() as (monitor, peer):
        with pytest.raises(MonitorTimeout, match=r"'balloon' within 2\.5 s") as caught:
            await monitor.execute("balloon", {"value": 1}, timeout=2.5)
        assert time() == 2.5
        assert caught.value.unknown_outcome == ("balloon",)
        assert "not known what became of balloon" in str(caught.value)
        peer.start_echo()
        assert await monitor.execute("query-balloon") == "query-balloon"


@on_asyncio
async def test_a_late_command_is_late_although_the_connection_ends_with_it() -> None:
    async with connected(command_timeout=5) as (monitor, peer):
        started = Call(monitor, "balloon").start()
        await peer.request()
        await peer.send(b'{"return"')  # of which the rest is late at the same moment
        await asyncio.sleep(6)
        assert isinstance(started.result, MonitorTimeout)
        with pytest.raises(ProtocolError):
            await monitor.execute("query-status")


@on_asyncio
async def test_each_command_has_its_own_deadline() -> None:
    async with connected(command_timeout=4) as (monitor, _):
        ends: dict[str, float] = {}

        async def run(name: str, seconds: float | None) -> None:
            with pytest.raises(MonitorTimeout):
                await monitor.execute(name, timeout=seconds)
            ends[name] = time()

        async with asyncio.TaskGroup() as callers:
            for name, seconds in {"a": 3.0, "b": 1.0, "c": None, "d": 2.0}.items():
                callers.create_task(run(name, seconds))
        assert ends == {"a": 3, "b": 1, "c": 4, "d": 2}


@on_asyncio
async def test_without_end_is_without_end() -> None:
    async with connected() as (monitor, peer):
        started = await call(monitor, "migrate", timeout=math.inf)
        await asyncio.sleep(10**6)
        assert started.result is None
        peer.start_echo()
        await settle()
        assert started.result == "migrate"


@on_asyncio
async def test_a_turn_that_does_not_come_is_a_timeout_and_nothing_was_sent() -> None:
    async with connected() as (monitor, peer):
        calls = [
            Call(monitor, "slow", timeout=100).start() for _ in range(MAX_IN_FLIGHT)
        ]
        await asyncio.sleep(0)
        with pytest.raises(MonitorTimeout) as caught:
            await monitor.execute("balloon", timeout=1)
        assert time() == 1
        assert caught.value.unknown_outcome == ()
        for _ in calls:
            request = await peer.request()
            assert request.command == "slow"
            await peer.answer(request)
        peer.start_echo()
        assert await monitor.execute("query-balloon") == "query-balloon"
        assert peer.received == []


@on_asyncio
async def test_late_answers_make_room_for_those_who_wait() -> None:
    async with connected() as (monitor, peer):
        for _ in range(MAX_IN_FLIGHT):
            await call(monitor, "slow", timeout=1)
        waiting = await call(monitor, "patient", timeout=100)
        await asyncio.sleep(5)  # the eight have given up
        peer.start_echo()
        await settle()
        assert waiting.result == "patient"


@on_asyncio
async def test_who_is_refused_when_its_turn_comes_passes_it_on() -> None:
    async with connected() as (monitor, peer):
        for _ in range(MAX_IN_FLIGHT):
            await call(monitor, "slow")
        bad = [Call(monitor, "bad", {"value": object()}).start() for _ in range(9)]
        await settle()
        last = await call(monitor, "good")
        peer.start_echo()
        await settle()
        assert all(isinstance(started.result, TypeError) for started in bad)
        assert last.result == "good"


@pytest.mark.parametrize("who", range(MAX_IN_FLIGHT + 3))
@pytest.mark.parametrize("late", [False, True])
@on_asyncio
async def test_cancelling_anybody_holds_up_nobody(who: int, *, late: bool) -> None:
    """Late: in the same turn of the event loop as its answer, or its turn, comes."""
    async with connected() as (monitor, peer):
        calls = [
            await call(monitor, f"command-{number}")
            for number in range(MAX_IN_FLIGHT + 3)
        ]
        if late:
            first = [await peer.request() for _ in range(MAX_IN_FLIGHT)]
            replies = [Return(request.command, request.id) for request in first]
            await peer.send(b"".join(map(peer.connection.send_reply, replies)))
            peer.received.clear()
        calls[who].cancel()
        await settle()
        peer.start_echo()
        await settle()
        for started in calls:
            expected = None if started is calls[who] else started.command
            assert started.result == expected


@pytest.mark.parametrize("turns", range(5))
@on_asyncio
async def test_a_turn_that_comes_to_a_cancelled_command_is_passed_on(
    turns: int,
) -> None:
    """With two turns of the event loop, it is cancelled when it has been given it."""
    async with connected() as (monitor, peer):
        for _ in range(MAX_IN_FLIGHT):
            await call(monitor, "slow")
        first, second = await call(monitor, "first"), await call(monitor, "second")
        requests = [await peer.request() for _ in range(MAX_IN_FLIGHT)]
        await peer.answer(requests[0])
        for _ in range(turns):
            await asyncio.sleep(0)
        first.cancel()
        request = await peer.request()
        if request.command == "first":  # it was sent before it was cancelled
            await peer.answer(request)
            request = await peer.request()
        assert request.command == "second"
        await peer.answer(request, "done")
        await settle()
        assert second.result == "done"


@pytest.mark.parametrize("turns", range(12))
@pytest.mark.parametrize("narrow", [False, True])
@on_asyncio
async def test_a_command_cancelled_anywhere_leaves_the_monitor_usable(
    turns: int, *, narrow: bool
) -> None:
    async with connected(narrow=narrow) as (monitor, peer):
        peer.start_echo()
        for _ in range(3):
            text = {"text": "x" * 100_000} if narrow else None
            started = Call(monitor, "cancelled", text).start()
            for _ in range(turns):
                await asyncio.sleep(0)
            started.cancel()
        assert await monitor.execute("next") == "next"


@on_asyncio
async def test_commands_cancelled_while_the_peer_does_not_read_are_sent_whole() -> None:
    async with connected(narrow=True) as (monitor, peer):
        for _ in range(3):
            started = Call(monitor, "cancelled", {"text": "x" * 1_000_000}).start()
            await settle()
            started.cancel()
        last = await call(monitor, "last")
        assert last.result is None
        peer.start_echo()
        await settle()
        assert last.result == "last"


# The end.


@on_asyncio
async def test_a_peer_that_hangs_up_in_mid_message_is_closed() -> None:
    async with connected() as (monitor, peer):
        started = await call(monitor, "balloon")
        other = await call(monitor, "query-status")
        for _ in range(2):
            await peer.request()  # what is unread would break the connection
        await peer.send(b'{"return": {"act')
        peer.sock.close()
        await settle()
        assert isinstance(started.result, MonitorClosed)
        assert isinstance(other.result, MonitorClosed)
        assert started.result is not other.result
        assert started.result.unknown_outcome == ("balloon",)
        assert other.result.unknown_outcome == ("query-status",)
        assert "not known what became of balloon" in str(started.result)


@on_asyncio
async def test_a_broken_connection_is_closed_and_says_why() -> None:
    async with connected() as (monitor, peer):
        started = await call(monitor, "balloon")
        peer.sock.close()  # with the command unread
        await settle()
        assert isinstance(started.result, MonitorClosed)
        assert "Connection reset by peer" in str(started.result)


@on_asyncio
async def test_those_who_wait_for_a_turn_learn_of_the_end() -> None:
    async with connected() as (monitor, peer):
        for _ in range(MAX_IN_FLIGHT):
            await call(monitor, "slow")
        waiting = [await call(monitor, "balloon") for _ in range(3)]
        peer.sock.close()
        await settle()
        for started in waiting:
            assert isinstance(started.result, MonitorClosed)
            assert started.result.unknown_outcome == ()


@on_asyncio
async def test_after_the_end_every_command_says_so() -> None:
    async with connected() as (monitor, peer):
        peer.sock.close()
        for _ in range(2):
            with pytest.raises(MonitorClosed, match="by QEMU"):
                await monitor.execute("query-status")
    with pytest.raises(MonitorClosed, match="by QEMU"):
        await monitor.execute("query-status")


@on_asyncio
async def test_after_its_block_a_monitor_is_closed() -> None:
    async with connected() as (monitor, _):
        started = await call(monitor, "slow")
        queued = [await call(monitor, "slow") for _ in range(MAX_IN_FLIGHT)][-1]
    await settle()
    for ended, unknown in ((started, ("slow",)), (queued, ())):
        assert isinstance(ended.result, MonitorClosed)
        assert ended.result.unknown_outcome == unknown
    with pytest.raises(MonitorClosed, match="closed by us"):
        await monitor.execute("query-status")


@on_asyncio
async def test_nonsense_ends_the_connection_and_what_came_before_it_counts() -> None:
    async with connected() as (monitor, peer):
        started = await call(monitor, "query-status")
        lost = await call(monitor, "balloon")
        request = await peer.request()
        data = peer.connection.send_reply(Return("yes", request.id))
        await peer.send(data + peer.connection.send_reply(Return("to nobody", 99)))
        await settle()
        assert started.result == "yes"
        assert isinstance(lost.result, ProtocolError)
        assert lost.result.unknown_outcome == ("balloon",)
        with pytest.raises(ProtocolError):
            await monitor.execute("query-status")
        peer.sock.setblocking(True)  # noqa: FBT003
        assert peer.sock.recv(1) == b""  # closed, although the block goes on


@on_asyncio
async def test_exceptions_of_the_block_come_out_as_they_are() -> None:
    with pytest.raises(KeyError, match="mine"):
        async with connected():
            raise KeyError("mine")


def test_the_end_of_the_loop_closes_what_is_open() -> None:
    ours, theirs = socket_pair()
    peer = Peer(theirs)
    seen: list[object] = []

    async def main() -> None:
        negotiation = asyncio.create_task(peer.negotiate())

        async def stay() -> None:
            async with open_monitor(ours) as monitor:
                try:
                    await monitor.execute("slow", timeout=math.inf)
                finally:
                    seen.append(monitor)

        staying = asyncio.create_task(stay())
        await negotiation
        await settle()
        assert not staying.done()

    with theirs:
        with asyncio.Runner(loop_factory=JumpingLoop) as runner:
            runner.run(main())
        assert len(seen) == 1
        assert ours.fileno() == -1


# Events.


@on_asyncio
async def test_a_subscriber_gets_what_it_asked_for_in_order() -> None:
    async with connected() as (monitor, peer):
        stop, resume = Event("STOP"), Event("RESUME")
        some = monitor.subscribe("STOP", "BALLOON_CHANGE")
        everything = monitor.subscribe()
        with some, everything:
            await peer.tell(stop, resume, CHANGE)
            assert [await some.receive() for _ in range(2)] == [stop, CHANGE]
            received = [await everything.receive() for _ in range(3)]
            assert received == [stop, resume, CHANGE]


@on_asyncio
async def test_two_readers_share_one_subscription() -> None:
    async with connected() as (monitor, peer):
        received: list[Event] = []
        with monitor.subscribe() as events:

            async def read() -> None:
                received.append(await events.receive())

            async with asyncio.TaskGroup() as readers:
                readers.create_task(read())
                readers.create_task(read())
                await settle()
                await peer.tell(CHANGE)
                await settle()
                assert received == [CHANGE]
                await peer.tell(Event("STOP"))
        assert received == [CHANGE, Event("STOP")]


@on_asyncio
async def test_a_cancelled_reader_loses_nothing() -> None:
    async with connected() as (monitor, peer):
        with monitor.subscribe() as events:
            await peer.tell(CHANGE)
            await settle()
            for turns in (0, 1):
                reading = asyncio.create_task(events.receive())
                for _ in range(turns):
                    await asyncio.sleep(0)
                reading.cancel()
                await asyncio.wait({reading})
                assert reading.cancelled()
            assert await events.receive() == CHANGE


@on_asyncio
async def test_who_does_not_read_holds_up_nobody_and_knows_its_losses() -> None:
    async with connected() as (monitor, peer):
        with monitor.subscribe(capacity=4) as events:
            for number in range(100):
                await peer.tell(Event("BALLOON_CHANGE", {"actual": number}))
            await peer.tell(Event("SHUTDOWN"))
            peer.start_echo()
            assert await monitor.execute("query-status") == "query-status"
            received = [await events.receive() for _ in range(4)]
            assert [event.data.get("actual") for event in received] == [
                *(97, 98, 99),
                None,
            ]
            assert events.lost == {"BALLOON_CHANGE": 97}


@on_asyncio
async def test_at_the_end_what_came_is_read_first() -> None:
    async with connected() as (monitor, peer):
        with monitor.subscribe() as events:
            waiting = asyncio.create_task(anext(events))
            shutdown = Event("SHUTDOWN", {"guest": False})
            await peer.tell(shutdown, shutdown)
            peer.sock.close()
            await settle()
            assert await waiting == shutdown
            assert await events.receive() == shutdown
            with pytest.raises(MonitorClosed):
                await events.receive()


@on_asyncio
async def test_iterating_ends_when_we_close_and_raises_when_it_breaks() -> None:
    async def read(monitor: AsyncioMonitor) -> list[Event]:
        with monitor.subscribe() as events:
            return [event async for event in events]

    async with connected() as (monitor, peer):
        reading = asyncio.create_task(read(monitor))
        await settle()
        await peer.tell(CHANGE)
        await settle()
    assert await reading == [CHANGE]
    async with connected() as (monitor, peer):
        reading = asyncio.create_task(read(monitor))
        await settle()
        peer.sock.close()
        with pytest.raises(MonitorClosed, match="by QEMU"):
            await reading


@on_asyncio
async def test_a_bad_capacity_is_refused() -> None:
    async with connected() as (monitor, _):
        with pytest.raises(ValueError, match="capacity"):
            monitor.subscribe(capacity=0)


# What is never shown.


@pytest.mark.parametrize("command", ["set_password", "object-add"])
@on_asyncio
async def test_secrets_are_neither_logged_nor_raised(
    caplog: pytest.LogCaptureFixture, command: str
) -> None:
    caplog.set_level(logging.DEBUG)
    secret = {"protocol": "vnc", "password": "swordfish", "data": "swordfish"}
    async with connected() as (monitor, peer):
        with pytest.raises(MonitorTimeout) as timed_out:
            await monitor.execute(command, secret, timeout=1)
        started = Call(monitor, command, secret).start()
        await peer.request()
        request = await peer.request()
        await peer.reply(Failure("GenericError", "no VNC here", request.id))
        await settle()
        with pytest.raises(TypeError) as refused:
            await monitor.execute(command, {**secret, "x": object()})
    assert command in caplog.text
    for text in (caplog.text, timed_out.value, started.result, refused.value):
        assert "swordfish" not in str(text)
        assert "swordfish" not in repr(text)


# Anything at once.

moments = st.integers(min_value=0, max_value=20)


async def slow_peer(peer: Peer, delays: list[int]) -> None:
    """Answer in order, with events in between, each so many seconds later."""

    async def take_in() -> None:
        while True:
            await peer.request()
            assert len(peer.received) <= MAX_IN_FLIGHT

    async with asyncio.TaskGroup() as group:
        group.create_task(take_in())
        for delay in itertools.chain(delays, itertools.repeat(0.25)):
            await asyncio.sleep(delay)
            await peer.tell(CHANGE)
            if peer.received:
                await peer.answer(peer.received[0], peer.received[0].command)


@settings(max_examples=50)
@given(
    # When each caller starts, after what it is cancelled, and its timeout.
    plan=st.lists(
        st.tuples(moments, st.none() | moments, st.integers(1, 30)), max_size=24
    ),
    delays=st.lists(moments, max_size=24),
)
def test_whatever_happens_each_gets_its_own_answer_or_none(
    plan: list[tuple[int, int | None, int]], delays: list[int]
) -> None:
    async def run(caller: Call, start: int, cancel: int | None) -> None:
        await asyncio.sleep(start)
        with suppress(TimeoutError):
            async with asyncio.timeout(cancel):
                await caller.run()
                return
        caller.result = "cancelled"

    async def main() -> None:
        calls: list[Call] = []
        async with connected() as (monitor, peer):
            answering = asyncio.create_task(slow_peer(peer, delays))
            async with asyncio.TaskGroup() as callers:
                for start, cancel, timeout in plan:
                    calls.append(Call(monitor, f"c{len(calls)}", timeout=timeout))
                    callers.create_task(run(calls[-1], start, cancel))
            assert await monitor.execute("last", timeout=1000) == "last"
            answering.cancel()
            await asyncio.wait({answering})
        for caller in calls:
            if isinstance(caller.result, MonitorTimeout):
                assert caller.result.unknown_outcome in {(), (caller.command,)}
            else:
                assert caller.result in {caller.command, "cancelled"}

    run_virtual(main())


@on_asyncio
async def test_a_message_that_is_not_ended_ends_the_connection() -> None:
    async with connected(command_timeout=5.0) as (monitor, peer):
        loop = asyncio.get_running_loop()
        begun = loop.time()
        await peer.send(b'{"return": "')
        await settle()
        with monitor.subscribe() as events, pytest.raises(ProtocolError):
            await events.receive()
        assert loop.time() - begun == pytest.approx(5.0)
        with pytest.raises(ProtocolError, match="not ended it within 5 s"):
            await monitor.execute("query-status")
