"""The trio monitor over streams in memory, against a scripted peer, on a mock clock."""

from __future__ import annotations

import itertools
import logging
import math
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

import attrs
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import (
    MockClock,
    lockstep_stream_pair,
    memory_stream_pair,
    wait_all_tasks_blocked,
)

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
from qmpballoon.qmp import (
    MAX_IN_FLIGHT,
    Connection,
    Event,
    Failure,
    Greeting,
    Request,
    Return,
    Role,
    Version,
)
from qmpballoon.trio import TrioMonitor, open_monitor

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Mapping
    from typing import TypeAlias

    Pair: TypeAlias = Callable[[], tuple[trio.abc.Stream, trio.abc.Stream]]
    # When each caller starts, after what it is cancelled, and its timeout.
    Plan: TypeAlias = list[tuple[int, int | None, int]]

GREETING = Greeting(Version(10, 0, 2), ("oob",))
CHANGE = Event("BALLOON_CHANGE", {"actual": 1}, 1.5)


class Peer:
    """QEMU's end of the connection, doing what a test tells it to."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self.connection = Connection(Role.SERVER)
        self.received: list[Request] = []  # and not answered
        self._sending = trio.StrictFIFOLock()

    async def send(self, data: bytes) -> None:
        async with self._sending:
            await self.stream.send_all(data)

    async def greet(self) -> None:
        await self.send(self.connection.send_greeting(GREETING))

    async def request(self) -> Request:
        """Return the next command; what was answered by :meth:`answer` is gone."""
        while (message := self.connection.next_message()) is None:
            data = await self.stream.receive_some(4096)
            if not data:
                raise EOFError
            self.connection.receive_data(data)
        assert isinstance(message, Request)
        self.received.append(message)
        return message

    async def answer(self, request: Request, value: object = "yes") -> None:
        self.received.remove(request)
        await self.reply(Return(value, request.id))

    async def reply(self, reply: Return | Failure) -> None:
        await self.send(self.connection.send_reply(reply))

    async def tell(self, *events: Event) -> None:
        for event in events:
            await self.send(self.connection.send_event(event))

    async def negotiate(self) -> None:
        await self.greet()
        request = await self.request()
        assert request.command == "qmp_capabilities"
        await self.answer(request, {})

    async def echo(self) -> None:
        """Answer each command with its own name, until the client leaves."""
        try:
            while True:
                request = await self.request()
                await self.answer(request, request.command)
        except (EOFError, trio.BrokenResourceError):
            pass


@asynccontextmanager
async def connected(
    nursery: trio.Nursery,
    pair: Pair = memory_stream_pair,
    *,
    command_timeout: float = 10.0,
    oob: bool = False,
) -> AsyncGenerator[tuple[TrioMonitor, Peer], None]:
    """Yield a monitor, negotiated, and its peer."""
    ours, theirs = pair()
    peer = Peer(theirs)
    nursery.start_soon(peer.negotiate)
    async with open_monitor(ours, command_timeout=command_timeout, oob=oob) as monitor:
        yield monitor, peer


@attrs.define
class Call:
    """A call of ``execute`` in a task of its own, and how it ended."""

    monitor: TrioMonitor
    command: str
    arguments: Mapping[str, object] | None = None
    timeout: float | None = None
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    result: object = None

    async def run(self) -> None:
        with self.scope:
            try:
                self.result = await self.monitor.execute(
                    self.command, self.arguments, timeout=self.timeout
                )
            except (MonitorError, CommandError, TypeError) as error:
                self.result = error


async def call(
    nursery: trio.Nursery,
    monitor: TrioMonitor,
    command: str,
    *,
    timeout: float | None = None,
) -> Call:
    """Start a call, and return it when it waits for its turn or its answer."""
    started = Call(monitor, command, timeout=timeout)
    nursery.start_soon(started.run)
    await wait_all_tasks_blocked()
    return started


# Connecting.


async def test_a_monitor_is_what_balloon_code_wants(nursery: trio.Nursery) -> None:
    async with connected(nursery) as (monitor, _):
        assert isinstance(monitor, Monitor)
        assert monitor.greeting == GREETING
        assert monitor.oob is False
        assert monitor.pid is None


async def test_its_clock_is_trios(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    async with connected(nursery) as (monitor, _):
        start = monitor.now()
        await monitor.sleep(2.5)
        await monitor.sleep(-1)
        assert monitor.now() - start == 2.5
        assert monitor.now() == autojump_clock.current_time()


async def test_no_greeting_means_that_somebody_else_is_served(
    autojump_clock: MockClock,
) -> None:
    ours, _theirs = memory_stream_pair()
    with pytest.raises(MonitorBusy, match="did not greet in time"):
        async with open_monitor(ours, timeout=3):
            pytest.fail("nobody greeted")
    assert autojump_clock.current_time() == 3


async def test_half_a_greeting_is_none(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    ours, theirs = memory_stream_pair()
    nursery.start_soon(theirs.send_all, b'{"QMP": {')
    with pytest.raises(MonitorBusy):
        async with open_monitor(ours, timeout=3):
            pytest.fail("nobody greeted")
    assert autojump_clock.current_time() == 3


async def test_a_late_greeting_is_waited_for(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    ours, theirs = memory_stream_pair()
    peer = Peer(theirs)

    async def greet_late() -> None:
        await trio.sleep(2.9)
        await peer.negotiate()

    nursery.start_soon(greet_late)
    async with open_monitor(ours, timeout=3) as monitor:
        assert monitor.greeting == GREETING
        assert autojump_clock.current_time() == 2.9


async def test_no_answer_to_the_negotiation_is_a_timeout(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    ours, theirs = memory_stream_pair()
    nursery.start_soon(Peer(theirs).greet)
    with pytest.raises(MonitorTimeout, match="greeted, and did not answer"):
        async with open_monitor(ours, timeout=3):
            pytest.fail("nobody negotiated")
    assert autojump_clock.current_time() == 3


async def test_events_may_come_before_the_negotiation_is_over(
    nursery: trio.Nursery,
) -> None:
    ours, theirs = memory_stream_pair()
    peer = Peer(theirs)

    async def chatter() -> None:
        await peer.greet()
        await peer.tell(CHANGE)
        request = await peer.request()
        await peer.tell(CHANGE)
        await peer.answer(request, {})

    nursery.start_soon(chatter)
    async with open_monitor(ours) as monitor:
        nursery.start_soon(peer.echo)
        assert await monitor.execute("stop") == "stop"


@pytest.mark.parametrize("oob", [True, False])
async def test_oob_is_negotiated_when_asked_for(
    nursery: trio.Nursery, *, oob: bool
) -> None:
    async with connected(nursery, oob=oob) as (monitor, _):
        assert monitor.oob is oob


@pytest.mark.parametrize(
    ("banner", "hint"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "HTTP"),
        (b"QEMU 7.2.22 monitor - type 'help' for more information\r\n", "HMP"),
    ],
)
async def test_another_service_is_named(
    nursery: trio.Nursery, banner: bytes, hint: str
) -> None:
    ours, theirs = memory_stream_pair()
    nursery.start_soon(theirs.send_all, banner)
    with pytest.raises(ProtocolError, match=hint):
        async with open_monitor(ours):
            pytest.fail("that was no QMP")


async def test_a_peer_that_hangs_up_at_once_is_closed() -> None:
    ours, theirs = memory_stream_pair()
    await theirs.aclose()
    with pytest.raises(MonitorClosed, match="closed by QEMU"):
        async with open_monitor(ours):
            pytest.fail("nobody there")


@pytest.mark.parametrize("timeout", [-1, float("nan"), "5", None, True])
async def test_a_bad_timeout_is_refused(timeout: object) -> None:
    ours, _theirs = memory_stream_pair()
    for options in ({"timeout": timeout}, {"command_timeout": timeout}):
        with pytest.raises((TypeError, ValueError), match="timeout"):
            async with open_monitor(ours, **options):  # type: ignore[arg-type]
                pytest.fail("a bad argument")


async def test_the_connection_is_closed_with_its_block(nursery: trio.Nursery) -> None:
    async with connected(nursery) as (_, peer):
        pass
    assert await peer.stream.receive_some(1) == b""


# Commands.


async def test_a_command_gets_its_answer(nursery: trio.Nursery) -> None:
    async with connected(nursery) as (monitor, peer):
        started = Call(monitor, "qom-get", {"path": "/machine"})
        nursery.start_soon(started.run)
        request = await peer.request()
        assert request.command == "qom-get"
        assert request.arguments == {"path": "/machine"}
        await peer.answer(request, {"a": 1})
        await wait_all_tasks_blocked()
        assert started.result == {"a": 1}


async def test_a_refusal_is_a_command_error(nursery: trio.Nursery) -> None:
    async with connected(nursery) as (monitor, peer):
        for error_class, error in (
            ("GenericError", CommandError),
            ("CommandNotFound", CommandNotFound),
        ):
            started = await call(nursery, monitor, "nope")
            request = await peer.request()
            await peer.reply(Failure(error_class, "why", request.id))
            await wait_all_tasks_blocked()
            assert type(started.result) is error
            assert isinstance(started.result, CommandError)
            assert started.result.command == "nope"
            assert started.result.error_class == error_class
            assert started.result.desc == "why"


async def test_callers_at_once_each_get_their_own_answer(
    nursery: trio.Nursery,
) -> None:
    async with connected(nursery) as (monitor, peer):
        calls = [Call(monitor, f"command-{number}") for number in range(20)]
        for started in calls:
            nursery.start_soon(started.run)
        answered = 0
        while answered < len(calls):
            await wait_all_tasks_blocked()
            while len(peer.received) < min(MAX_IN_FLIGHT, len(calls) - answered):
                await peer.request()
            with trio.move_on_after(0):  # no more than these have been sent
                await peer.request()
            assert len(peer.received) <= MAX_IN_FLIGHT
            request = peer.received[0]
            await peer.answer(request, f"answer to {request.command}")
            answered += 1
        await wait_all_tasks_blocked()
        for started in calls:
            assert started.result == f"answer to {started.command}"


async def test_who_waits_longer_has_its_turn_before_who_comes_later(
    nursery: trio.Nursery,
) -> None:
    async with connected(nursery) as (monitor, peer):

        async def greedy() -> None:
            await monitor.execute("first")
            await monitor.execute("third")

        for _ in range(MAX_IN_FLIGHT):
            nursery.start_soon(greedy)
        await wait_all_tasks_blocked()
        for _ in range(MAX_IN_FLIGHT):
            await call(nursery, monitor, "second")
        first = [await peer.request() for _ in range(MAX_IN_FLIGHT)]
        replies = [Return({}, request.id) for request in first]
        await peer.send(b"".join(map(peer.connection.send_reply, replies)))
        await wait_all_tasks_blocked()
        second = [await peer.request() for _ in range(MAX_IN_FLIGHT)]
        assert {request.command for request in second} == {"second"}
        for request in [*peer.received]:
            if request in second:
                await peer.answer(request)
        nursery.start_soon(peer.echo)
        await wait_all_tasks_blocked()


async def test_out_of_band_commands_do_not_wait_for_a_turn(
    nursery: trio.Nursery,
) -> None:
    async with connected(nursery, oob=True) as (monitor, peer):
        for _ in range(MAX_IN_FLIGHT + 1):
            await call(nursery, monitor, "slow")
        nursery.start_soon(peer.echo)
        assert await monitor.execute("migrate-pause", oob=True) == "migrate-pause"


async def test_oob_that_was_not_negotiated_is_misuse(nursery: trio.Nursery) -> None:
    async with connected(nursery) as (monitor, _):
        with pytest.raises(RuntimeError, match="not negotiated"):
            await monitor.execute("migrate-pause", oob=True)


async def test_no_answer_in_time_is_a_timeout_and_the_late_one_is_swallowed(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    async with connected(nursery) as (monitor, peer):
        with pytest.raises(MonitorTimeout, match=r"'balloon' within 2\.5 s") as caught:
            await monitor.execute("balloon", {"value": 1}, timeout=2.5)
        assert autojump_clock.current_time() == 2.5
        assert caught.value.unknown_outcome == ("balloon",)
        assert "not known what became of balloon" in str(caught.value)
        nursery.start_soon(peer.echo)
        assert await monitor.execute("query-balloon") == "query-balloon"


async def test_each_command_has_its_own_deadline(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    async with connected(nursery, command_timeout=4) as (monitor, _):
        ends: dict[str, float] = {}

        async def run(name: str, seconds: float | None) -> None:
            with pytest.raises(MonitorTimeout):
                await monitor.execute(name, timeout=seconds)
            ends[name] = autojump_clock.current_time()

        async with trio.open_nursery() as callers:
            for name, seconds in {"a": 3.0, "b": 1.0, "c": None, "d": 2.0}.items():
                callers.start_soon(run, name, seconds)
        assert ends == {"a": 3, "b": 1, "c": 4, "d": 2}


async def test_without_end_is_without_end(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    async with connected(nursery) as (monitor, peer):
        started = await call(nursery, monitor, "migrate", timeout=float("inf"))
        autojump_clock.jump(10**6)
        await wait_all_tasks_blocked()
        assert started.result is None
        nursery.start_soon(peer.echo)
        await wait_all_tasks_blocked()
        assert started.result == "migrate"


async def test_a_turn_that_does_not_come_is_a_timeout_and_nothing_was_sent(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    async with connected(nursery) as (monitor, peer):
        for _ in range(MAX_IN_FLIGHT):
            await call(nursery, monitor, "slow", timeout=100)
        with pytest.raises(MonitorTimeout) as caught:
            await monitor.execute("balloon", timeout=1)
        assert autojump_clock.current_time() == 1
        assert caught.value.unknown_outcome == ()
        for _ in range(MAX_IN_FLIGHT):
            request = await peer.request()
            assert request.command == "slow"
            await peer.answer(request)
        nursery.start_soon(peer.echo)
        assert await monitor.execute("query-balloon") == "query-balloon"
        assert peer.received == []


async def test_late_answers_make_room_for_those_who_wait(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    async with connected(nursery) as (monitor, peer):
        for _ in range(MAX_IN_FLIGHT):
            await call(nursery, monitor, "slow", timeout=1)
        waiting = await call(nursery, monitor, "patient", timeout=100)
        await trio.sleep(5)  # the eight have given up
        assert autojump_clock.current_time() == 5
        nursery.start_soon(peer.echo)
        await wait_all_tasks_blocked()
        assert waiting.result == "patient"


async def test_who_is_refused_when_its_turn_comes_passes_it_on(
    nursery: trio.Nursery,
) -> None:
    async with connected(nursery) as (monitor, peer):
        for _ in range(MAX_IN_FLIGHT):
            await call(nursery, monitor, "slow")
        bad = [Call(monitor, "bad", {"value": object()}) for _ in range(9)]
        for started in bad:
            nursery.start_soon(started.run)
            await wait_all_tasks_blocked()
        last = await call(nursery, monitor, "good")
        nursery.start_soon(peer.echo)
        await wait_all_tasks_blocked()
        assert all(isinstance(started.result, TypeError) for started in bad)
        assert last.result == "good"


@pytest.mark.parametrize("who", range(MAX_IN_FLIGHT + 3))
async def test_cancelling_anybody_holds_up_nobody(
    nursery: trio.Nursery, who: int
) -> None:
    async with connected(nursery) as (monitor, peer):
        calls = [
            await call(nursery, monitor, f"command-{number}")
            for number in range(MAX_IN_FLIGHT + 3)
        ]
        calls[who].scope.cancel()
        await wait_all_tasks_blocked()
        nursery.start_soon(peer.echo)
        await wait_all_tasks_blocked()
        for started in calls:
            expected = None if started is calls[who] else started.command
            assert started.result == expected


async def test_a_cancelled_caller_sends_nothing(nursery: trio.Nursery) -> None:
    async with connected(nursery) as (monitor, peer):
        with trio.CancelScope() as scope:
            scope.cancel()
            await monitor.execute("balloon")
        assert scope.cancelled_caught
        started = await call(nursery, monitor, "query-balloon")
        request = await peer.request()
        assert request.command == "query-balloon"
        await peer.answer(request)
        await wait_all_tasks_blocked()
        assert started.result == "yes"


@attrs.define(slots=False)
class Trickle(trio.abc.Stream):
    """A stream that takes, and gives, one byte at a time."""

    inner: trio.abc.Stream

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        for byte in bytes(data):
            await self.inner.send_all(bytes([byte]))

    async def wait_send_all_might_not_block(self) -> None:
        await self.inner.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        del max_bytes
        return bytes(await self.inner.receive_some(1))

    async def aclose(self) -> None:
        await self.inner.aclose()


def trickling_pair() -> tuple[trio.abc.Stream, trio.abc.Stream]:
    """Return two ends with no room in between: who writes waits for who reads."""
    ours, theirs = lockstep_stream_pair()
    return Trickle(ours), Trickle(theirs)


@pytest.mark.parametrize("pair", [memory_stream_pair, trickling_pair])
@pytest.mark.parametrize("steps", [*range(12), 20, 40, 60, 80, 100, 120])
async def test_a_command_cancelled_anywhere_leaves_the_monitor_usable(
    nursery: trio.Nursery,
    pair: Pair,
    steps: int,
) -> None:
    async with connected(nursery, pair) as (monitor, peer):
        nursery.start_soon(peer.echo)
        for _ in range(3):
            started = Call(monitor, "cancelled")
            nursery.start_soon(started.run)
            for _ in range(steps):
                await trio.lowlevel.checkpoint()
            started.scope.cancel()
        assert await monitor.execute("next") == "next"


# Commands that are sent at once.

LOOK = [("first", None), ("second", {"path": "x"}), ("third", None)]


async def test_commands_at_once_are_all_with_the_peer_before_it_answers(
    nursery: trio.Nursery,
) -> None:
    async with connected(nursery) as (monitor, peer):

        async def answer() -> None:
            requests = [await peer.request() for _ in LOOK]
            assert [(r.command, r.arguments or None) for r in requests] == LOOK
            await peer.answer(requests[0], 1)
            await peer.reply(Failure("GenericError", "no", requests[1].id))
            await peer.answer(requests[2], 3)

        nursery.start_soon(answer)
        first, second, third = await monitor.execute_all(LOOK)
        assert (first, third) == (1, 3)
        assert isinstance(second, CommandError)
        assert second.desc == "no"


async def test_commands_at_once_keep_to_eight_in_flight(nursery: trio.Nursery) -> None:
    async with connected(nursery) as (monitor, peer):
        held = [await call(nursery, monitor, f"held {n}") for n in range(6)]
        results: list[list[object]] = []

        async def look() -> None:
            results.append(await monitor.execute_all(LOOK))

        nursery.start_soon(look)
        await wait_all_tasks_blocked()
        requests = [await peer.request() for _ in range(7)]
        for request in requests:
            await peer.answer(request, request.command)
        nursery.start_soon(peer.echo)
        await wait_all_tasks_blocked()
        assert results == [["first", "second", "third"]]
        assert [each.result for each in held] == [f"held {n}" for n in range(6)]


@pytest.mark.parametrize(
    ("value", "error"), [(object(), TypeError), (math.nan, ValueError)]
)
async def test_if_one_of_several_is_no_json_none_is_sent(
    nursery: trio.Nursery, value: object, error: type[Exception]
) -> None:
    async with connected(nursery) as (monitor, peer):
        for _ in range(8):  # as many as can be in flight
            with pytest.raises(error):
                await monitor.execute_all([*LOOK, ("bad", {"value": value})])

        async def answer() -> None:
            requests = [await peer.request() for _ in LOOK]
            for request in requests:
                await peer.answer(request, request.command)

        nursery.start_soon(answer)
        assert await monitor.execute_all(LOOK) == ["first", "second", "third"]


async def test_one_of_several_that_is_not_answered_is_a_timeout(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    async with connected(nursery, command_timeout=4) as (monitor, peer):

        async def answer() -> None:
            requests = [await peer.request() for _ in LOOK]
            await peer.answer(requests[0])
            await peer.answer(requests[2])

        nursery.start_soon(answer)
        with pytest.raises(MonitorTimeout, match="'second'") as caught:
            await monitor.execute_all(LOOK)
        assert caught.value.unknown_outcome == ("second",)
        assert autojump_clock.current_time() == 4
        nursery.start_soon(peer.echo)
        assert await monitor.execute("next") == "next"


@pytest.mark.parametrize("answered", range(3))
async def test_commands_at_once_that_are_cancelled_leave_the_monitor_usable(
    nursery: trio.Nursery, answered: int
) -> None:
    async with connected(nursery) as (monitor, peer):
        with trio.CancelScope() as scope:

            async def answer() -> None:
                for _ in LOOK:
                    await peer.request()
                for request in peer.received[:answered]:
                    await peer.answer(request)
                await wait_all_tasks_blocked()
                scope.cancel()

            nursery.start_soon(answer)
            await monitor.execute_all(LOOK)
        assert scope.cancelled_caught
        for request in list(peer.received):
            await peer.answer(request, "late")
        nursery.start_soon(peer.echo)
        assert await monitor.execute_all(LOOK) == ["first", "second", "third"]


async def test_commands_at_once_end_with_the_connection(nursery: trio.Nursery) -> None:
    async with connected(nursery) as (monitor, peer):

        async def leave() -> None:
            requests = [await peer.request() for _ in LOOK]
            await peer.answer(requests[0])
            await peer.stream.aclose()

        nursery.start_soon(leave)
        with pytest.raises(MonitorClosed):
            await monitor.execute_all(LOOK)
        with pytest.raises(MonitorClosed):
            await monitor.execute_all(LOOK)


async def test_commands_cancelled_while_the_peer_does_not_read_are_sent_whole(
    nursery: trio.Nursery,
) -> None:
    async with connected(nursery, trickling_pair) as (monitor, peer):
        for _ in range(3):
            started = await call(nursery, monitor, "cancelled")
            started.scope.cancel()
        last = await call(nursery, monitor, "last")
        nursery.start_soon(peer.echo)
        await wait_all_tasks_blocked()
        assert last.result == "last"


# The end.


async def test_a_peer_that_hangs_up_in_mid_message_is_closed(
    nursery: trio.Nursery,
) -> None:
    async with connected(nursery) as (monitor, peer):
        started = await call(nursery, monitor, "balloon")
        other = await call(nursery, monitor, "query-status")
        await peer.stream.send_all(b'{"return": {"act')
        await peer.stream.aclose()
        await wait_all_tasks_blocked()
        assert isinstance(started.result, MonitorClosed)
        assert isinstance(other.result, MonitorClosed)
        assert started.result is not other.result
        assert started.result.unknown_outcome == ("balloon",)
        assert other.result.unknown_outcome == ("query-status",)
        assert "not known what became of balloon" in str(started.result)


async def test_those_who_wait_for_a_turn_learn_of_the_end(
    nursery: trio.Nursery,
) -> None:
    async with connected(nursery) as (monitor, peer):
        for _ in range(MAX_IN_FLIGHT):
            await call(nursery, monitor, "slow")
        waiting = [await call(nursery, monitor, "balloon") for _ in range(3)]
        await peer.stream.aclose()
        await wait_all_tasks_blocked()
        for started in waiting:
            assert isinstance(started.result, MonitorClosed)
            assert started.result.unknown_outcome == ()


async def test_after_the_end_every_command_says_so(nursery: trio.Nursery) -> None:
    async with connected(nursery) as (monitor, peer):
        await peer.stream.aclose()
        for _ in range(2):
            with pytest.raises(MonitorClosed, match="by QEMU"):
                await monitor.execute("query-status")
    with pytest.raises(MonitorClosed, match="by QEMU"):
        await monitor.execute("query-status")


async def test_after_its_block_a_monitor_is_closed(nursery: trio.Nursery) -> None:
    async with connected(nursery) as (monitor, _):
        started = await call(nursery, monitor, "slow")
    await wait_all_tasks_blocked()
    assert isinstance(started.result, MonitorClosed)
    assert started.result.unknown_outcome == ("slow",)
    with pytest.raises(MonitorClosed, match="closed by us"):
        await monitor.execute("query-status")


async def test_a_command_while_its_block_ends_holds_up_nothing(
    nursery: trio.Nursery,
) -> None:
    leaving, told = trio.Event(), trio.Event()
    async with connected(nursery, trickling_pair) as (monitor, _):

        async def come_late() -> None:
            await leaving.wait()
            with pytest.raises(MonitorClosed, match="by us") as caught:
                await monitor.execute("balloon")
            assert caught.value.unknown_outcome == ()
            told.set()

        nursery.start_soon(come_late)
        await wait_all_tasks_blocked()
        leaving.set()
    await told.wait()


async def test_nonsense_ends_the_connection(nursery: trio.Nursery) -> None:
    async with connected(nursery) as (monitor, peer):
        started = await call(nursery, monitor, "balloon")
        await peer.reply(Return("to nobody", 99))
        await wait_all_tasks_blocked()
        assert isinstance(started.result, ProtocolError)
        assert started.result.unknown_outcome == ("balloon",)
        with pytest.raises(ProtocolError):
            await monitor.execute("query-status")


async def test_what_came_before_nonsense_counts(nursery: trio.Nursery) -> None:
    async with connected(nursery) as (monitor, peer):
        started = await call(nursery, monitor, "balloon")
        request = await peer.request()
        data = peer.connection.send_reply(Return("yes", request.id))
        await peer.stream.send_all(data + b"hello\n")
        await wait_all_tasks_blocked()
        assert started.result == "yes"


class Broken(Trickle):
    """A stream whose connection breaks under it."""

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        data = bytes(await self.inner.receive_some(max_bytes))
        if b"break" in data:
            raise trio.BrokenResourceError from OSError("connection reset by peer")
        return data


async def test_a_broken_connection_is_closed_and_says_why(
    nursery: trio.Nursery,
) -> None:
    def pair() -> tuple[trio.abc.Stream, trio.abc.Stream]:
        ours, theirs = memory_stream_pair()
        return Broken(ours), theirs

    async with connected(nursery, pair) as (monitor, peer):
        started = await call(nursery, monitor, "balloon")
        await peer.stream.send_all(b"break")
        await wait_all_tasks_blocked()
        assert isinstance(started.result, MonitorClosed)
        assert "connection reset by peer" in str(started.result)


async def test_writing_to_who_has_left_is_found_out_by_reading(
    nursery: trio.Nursery,
) -> None:
    async with connected(nursery) as (monitor, peer):
        await peer.stream.aclose()
        started = Call(monitor, "balloon")
        nursery.start_soon(started.run)
        await wait_all_tasks_blocked()
        assert isinstance(started.result, MonitorClosed)


# Exceptions leave the block as they are.


class SlowToClose(Trickle):
    """A stream that has to say farewell."""

    async def aclose(self) -> None:
        try:
            await trio.lowlevel.checkpoint()
        finally:
            await self.inner.aclose()


@pytest.mark.parametrize("wrap", [Trickle, SlowToClose])
@pytest.mark.parametrize("cancelled", [True, False])
async def test_exceptions_of_the_block_come_out_unwrapped(
    nursery: trio.Nursery, wrap: type[Trickle], *, cancelled: bool
) -> None:
    def pair() -> tuple[trio.abc.Stream, trio.abc.Stream]:
        ours, theirs = memory_stream_pair()
        return wrap(ours), theirs

    async def fail(scope: trio.CancelScope) -> None:
        async with connected(nursery, pair):
            if cancelled:
                scope.cancel()
            raise KeyError("mine")

    with trio.CancelScope() as scope, pytest.raises(KeyError, match="mine"):
        await fail(scope)
    assert not scope.cancelled_caught


async def test_a_cancelled_block_can_put_things_in_order_under_a_shield(
    nursery: trio.Nursery,
) -> None:
    answers: list[object] = []
    with trio.CancelScope() as outside:
        async with connected(nursery) as (monitor, peer):
            nursery.start_soon(peer.echo)
            outside.cancel()
            try:
                await trio.sleep_forever()
            finally:
                with monitor.shield(5):
                    answers.append(await monitor.execute("balloon"))
    assert answers == ["balloon"]


async def test_a_cancelled_block_ends_and_nothing_else(nursery: trio.Nursery) -> None:
    ours, theirs = memory_stream_pair()
    nursery.start_soon(Peer(theirs).negotiate)
    with trio.CancelScope() as scope:
        async with open_monitor(ours) as monitor:
            scope.cancel()
            await monitor.execute("slow")
    assert scope.cancelled_caught
    assert await theirs.receive_some() == b""


async def test_errors_of_the_monitor_come_out_unwrapped(
    nursery: trio.Nursery,
) -> None:
    async def run() -> None:
        async with connected(nursery) as (monitor, peer):
            await peer.stream.aclose()
            await monitor.execute("query-status")

    with pytest.raises(MonitorClosed):
        await run()


# Events.


async def test_a_subscriber_gets_what_it_asked_for_in_order(
    nursery: trio.Nursery,
) -> None:
    async with connected(nursery) as (monitor, peer):
        stop, resume = Event("STOP"), Event("RESUME")
        some = monitor.subscribe("STOP", "BALLOON_CHANGE")
        everything = monitor.subscribe()
        with some, everything:
            await peer.tell(stop, resume, CHANGE)
            assert [await some.receive() for _ in range(2)] == [stop, CHANGE]
            received = [await everything.receive() for _ in range(3)]
            assert received == [stop, resume, CHANGE]


async def test_a_subscriber_that_waits_is_woken(nursery: trio.Nursery) -> None:
    async with connected(nursery) as (monitor, peer):
        received: list[Event] = []

        async def read() -> None:
            with monitor.subscribe("BALLOON_CHANGE") as events:
                async for event in events:
                    received.append(event)
                    if len(received) == 2:
                        break

        async with trio.open_nursery() as readers:
            readers.start_soon(read)
            await wait_all_tasks_blocked()
            await peer.tell(Event("STOP"))
            await wait_all_tasks_blocked()
            assert received == []
            await peer.tell(CHANGE)
            await wait_all_tasks_blocked()
            assert received == [CHANGE]
            await peer.tell(CHANGE)


async def test_two_readers_share_one_subscription(nursery: trio.Nursery) -> None:
    async with connected(nursery) as (monitor, peer):
        received: list[Event] = []
        with monitor.subscribe() as events:

            async def read() -> None:
                received.append(await events.receive())

            async with trio.open_nursery() as readers:
                readers.start_soon(read)
                readers.start_soon(read)
                await wait_all_tasks_blocked()
                await peer.tell(CHANGE)
                await wait_all_tasks_blocked()
                assert received == [CHANGE]
                await peer.tell(Event("STOP"))
        assert received == [CHANGE, Event("STOP")]


async def test_a_cancelled_reader_loses_nothing(nursery: trio.Nursery) -> None:
    async with connected(nursery) as (monitor, peer):
        with monitor.subscribe() as events:
            await peer.tell(CHANGE)
            await wait_all_tasks_blocked()
            with trio.CancelScope() as scope:
                scope.cancel()
                await events.receive()
            assert scope.cancelled_caught
            assert await events.receive() == CHANGE


async def test_who_does_not_read_holds_up_nobody_and_knows_its_losses(
    nursery: trio.Nursery,
) -> None:
    async with connected(nursery) as (monitor, peer):
        with monitor.subscribe(capacity=4) as events:
            for number in range(100):
                await peer.tell(Event("BALLOON_CHANGE", {"actual": number}))
            await peer.tell(Event("SHUTDOWN"))
            nursery.start_soon(peer.echo)
            assert await monitor.execute("query-status") == "query-status"
            received = [await events.receive() for _ in range(4)]
            assert [event.data.get("actual") for event in received] == [
                *(97, 98, 99),
                None,
            ]
            assert events.lost == {"BALLOON_CHANGE": 97}


async def test_at_the_end_what_came_is_read_first(nursery: trio.Nursery) -> None:
    async with connected(nursery) as (monitor, peer):
        with monitor.subscribe() as events:
            shutdown = Event("SHUTDOWN", {"guest": False})
            await peer.tell(shutdown)
            await peer.stream.aclose()
            await wait_all_tasks_blocked()
            assert await events.receive() == shutdown
            with pytest.raises(MonitorClosed):
                await events.receive()


async def test_who_waits_for_an_event_learns_of_the_end(nursery: trio.Nursery) -> None:
    async with connected(nursery) as (monitor, peer):
        ended = trio.Event()

        async def read() -> None:
            with monitor.subscribe() as events, pytest.raises(MonitorClosed):
                await events.receive()
            ended.set()

        nursery.start_soon(read)
        await wait_all_tasks_blocked()
        await peer.stream.aclose()
        await ended.wait()


async def test_after_its_block_a_subscription_gives_what_it_has(
    nursery: trio.Nursery,
) -> None:
    async with connected(nursery) as (monitor, peer):
        with monitor.subscribe() as events:
            await peer.tell(CHANGE)
            await wait_all_tasks_blocked()
        await peer.tell(Event("STOP"))
        await wait_all_tasks_blocked()
        assert await events.receive() == CHANGE
        # Waiting would be for ever: no more is taken in.
        with pytest.raises(RuntimeError, match="with block"):
            await events.receive()


async def test_iterating_ends_when_we_close_and_raises_when_it_breaks(
    nursery: trio.Nursery,
) -> None:
    async def read(monitor: TrioMonitor) -> list[Event]:
        with monitor.subscribe() as events:
            return [event async for event in events]

    async with trio.open_nursery() as readers, connected(nursery) as (monitor, _):
        readers.start_soon(read, monitor)
        await wait_all_tasks_blocked()
    async with connected(nursery) as (monitor, peer):
        await peer.stream.aclose()
        with pytest.raises(MonitorClosed, match="by QEMU"):
            await read(monitor)


async def test_a_bad_capacity_is_refused(nursery: trio.Nursery) -> None:
    async with connected(nursery) as (monitor, _):
        with pytest.raises(ValueError, match="capacity"):
            monitor.subscribe(capacity=0)


# What is never shown.


@pytest.mark.parametrize("command", ["set_password", "object-add"])
async def test_secrets_are_neither_logged_nor_raised(
    nursery: trio.Nursery,
    caplog: pytest.LogCaptureFixture,
    command: str,
    autojump_clock: MockClock,
) -> None:
    caplog.set_level(logging.DEBUG)
    secret = {"protocol": "vnc", "password": "swordfish", "data": "swordfish"}
    async with connected(nursery) as (monitor, peer):
        with pytest.raises(MonitorTimeout) as timed_out:
            await monitor.execute(command, secret, timeout=1)
        assert autojump_clock.current_time() == 1
        started = Call(monitor, command, secret)
        nursery.start_soon(started.run)
        await peer.request()
        request = await peer.request()
        await peer.reply(Failure("GenericError", "no VNC here", request.id))
        await wait_all_tasks_blocked()
        with pytest.raises(TypeError) as refused:
            await monitor.execute(command, {**secret, "x": object()})
    assert command in caplog.text
    for text in (caplog.text, timed_out.value, started.result, refused.value):
        assert "swordfish" not in str(text)
        assert "swordfish" not in repr(text)


# Anything at once.

moments = st.integers(min_value=0, max_value=20)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Draw what a crowd of callers is to do."""
    cancelled = st.none() | moments
    timeouts = st.integers(min_value=1, max_value=30)
    return draw(st.lists(st.tuples(moments, cancelled, timeouts), max_size=24))


async def slow_peer(peer: Peer, delays: list[int]) -> None:
    """Answer in order, with events in between, each so many seconds later."""

    async def take_in() -> None:
        while True:
            await peer.request()
            assert len(peer.received) <= MAX_IN_FLIGHT

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take_in)
        for delay in itertools.chain(delays, itertools.repeat(0.25)):
            await trio.sleep(delay)
            await peer.tell(CHANGE)
            if peer.received:
                await peer.answer(peer.received[0], peer.received[0].command)


async def world(plan: Plan, delays: list[int], pair: Pair) -> None:
    """Let the callers of a plan loose on a slow peer."""

    async def run(caller: Call, start: int, cancel: int | None) -> None:
        await trio.sleep(start)
        if cancel is not None:
            caller.scope.deadline = trio.current_time() + cancel
        await caller.run()

    calls: list[Call] = []
    async with trio.open_nursery() as nursery, connected(nursery, pair) as ends:
        monitor, peer = ends
        nursery.start_soon(slow_peer, peer, delays)
        async with trio.open_nursery() as callers:
            for start, cancel, timeout in plan:
                calls.append(Call(monitor, f"c{len(calls)}", timeout=timeout))
                callers.start_soon(run, calls[-1], start, cancel)
        assert await monitor.execute("last", timeout=1000) == "last"
        nursery.cancel_scope.cancel()
    for caller in calls:
        if isinstance(caller.result, MonitorTimeout):
            assert caller.result.unknown_outcome in {(), (caller.command,)}
        elif not caller.scope.cancelled_caught:
            assert caller.result == caller.command


@settings(max_examples=50)
@given(
    plan=plans(),
    delays=st.lists(moments, max_size=24),
    schedule=st.random_module(),
    pair=st.sampled_from([memory_stream_pair, trickling_pair]),
)
def test_whatever_happens_each_gets_its_own_answer_or_none(
    plan: Plan, delays: list[int], schedule: object, pair: Pair
) -> None:
    del schedule  # drawn for its effect: trio's order of tasks hangs on it

    async def main() -> None:
        with trio.fail_after(3600):
            await world(plan, delays, pair)

    trio.run(main, clock=MockClock(autojump_threshold=0))


async def test_a_message_that_is_not_ended_ends_the_connection(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    del autojump_clock
    async with connected(nursery, command_timeout=5.0) as (monitor, peer):
        begun = trio.current_time()
        await peer.send(b'{"return": "')
        # However it trickles in, and whoever waits.
        with trio.move_on_after(4.5):
            while True:
                await peer.send(b"x")
                await trio.sleep(0.1)
        with monitor.subscribe() as events, suppress(MonitorError):
            await events.receive()
        assert trio.current_time() - begun == pytest.approx(5.0)
        with pytest.raises(ProtocolError, match="not ended it within 5 s"):
            await monitor.execute("query-status")


async def test_a_message_that_ends_in_time_costs_nothing(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    del autojump_clock
    async with connected(nursery, command_timeout=5.0) as (monitor, peer):
        for _ in range(10):
            message = peer.connection.send_event(Event("RESET", {}, 1.0))
            await peer.send(message[:10])
            await trio.sleep(4)
            # The next one begins at once.
            await peer.send(message[10:] + message[:10])
            await trio.sleep(4)
            await peer.send(message[10:])
            await trio.sleep(60)
        nursery.start_soon(peer.echo)
        assert await monitor.execute("still-there") == "still-there"
