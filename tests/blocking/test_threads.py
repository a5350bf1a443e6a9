"""Threads that share a monitor while QEMU sends a storm of events.

Threads change over after each microsecond, so that what they do mixes in many ways.
Each test does a fixed number of things.
"""

from __future__ import annotations

import math
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

import pytest
from scripted import Session, attend, serve, standard_answer

from qmpballoon import MonitorClosed, blocking
from qmpballoon.qmp import Event

if TYPE_CHECKING:
    from collections.abc import Iterator

    from qmpballoon.blocking import BlockingMonitor
    from qmpballoon.testing import ThreadedFake

EVENTS = 1000  # with each answer to "talk"
THREADS = 6
# If events are read without the lock, that shows in the first of each thread's turns.
TURNS = 4


@pytest.fixture(autouse=True)
def quick_changes() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def storm(session: Session) -> None:
    """Send many events in one piece with each answer to ``talk``."""
    session.greet()
    events = [Event("STOP", {"n": number}) for number in range(EVENTS)]
    while True:
        request = session.request()
        if request.command == "talk":
            session.sock.sendall(b"".join(map(session.qmp.send_event, events)))
        session.answer(request, standard_answer(request))


def test_events_are_read_while_other_threads_take_them_in() -> None:
    def talk(monitor: BlockingMonitor, count: int) -> int:
        return sum(monitor.execute("talk") == {} for _ in range(count))

    def read(monitor: BlockingMonitor, ended: threading.Event) -> tuple[int, int]:
        received = 0
        with monitor.subscribe(capacity=200) as events:
            started.wait(30)
            seen = 0
            while not ended.is_set():
                # Read when the buffer is full: the next event makes room in it.
                if (lost := events.lost["STOP"]) != seen:
                    seen = lost
                    received += events.receive(timeout=0) is not None
            while events.receive(timeout=0) is not None:
                received += 1
            return received, events.lost["STOP"]

    started, ended = threading.Barrier(4), threading.Event()
    with (
        serve(storm) as path,
        blocking.open_monitor(path) as monitor,
        ThreadPoolExecutor(THREADS) as threads,
    ):
        readers = [threads.submit(read, monitor, ended) for _ in range(3)]
        started.wait(30)
        talkers = [threads.submit(talk, monitor, TURNS) for _ in range(2)]
        try:
            assert [talker.result(60) for talker in talkers] == [TURNS, TURNS]
        finally:
            ended.set()
        for reader in readers:
            received, lost = reader.result(60)
            assert received + lost == 2 * TURNS * EVENTS


def test_subscriptions_that_begin_while_others_end_all_begin() -> None:
    rounds = 50

    def hear(monitor: BlockingMonitor) -> int:
        heard = 0
        for _ in range(rounds):
            start.wait(30)
            for _ in range(10):
                with monitor.subscribe("RESUME"):
                    pass
            with monitor.subscribe("STOP") as events:
                begun.wait(30)
                told.wait(30)
                heard += events.receive(timeout=0) is not None
        return heard

    start, begun, told = (threading.Barrier(THREADS + 1) for _ in range(3))

    def script(session: Session) -> None:
        session.greet()
        while True:
            request = session.request()
            session.sock.sendall(session.qmp.send_event(Event("STOP")))
            session.answer(request, {})

    with (
        serve(script) as path,
        blocking.open_monitor(path) as monitor,
        ThreadPoolExecutor(THREADS) as threads,
        ExitStack() as standing,
    ):
        for _ in range(50):  # the more there are, the longer it takes to end one
            standing.enter_context(monitor.subscribe("RESUME"))
        listeners = [threads.submit(hear, monitor) for _ in range(THREADS)]
        for _ in range(rounds):
            start.wait(30)
            begun.wait(30)
            monitor.execute("tell")
            told.wait(30)
        assert [one.result(60) for one in listeners] == [rounds] * THREADS


def test_a_reader_does_not_wait_for_another_threads_command() -> None:
    asked, released = threading.Event(), threading.Event()

    def script(session: Session) -> None:
        session.greet()
        request = session.request()
        session.sock.sendall(session.qmp.send_event(Event("STOP")))
        asked.set()
        released.wait(30)
        session.answer(request, "done")
        attend(session)

    with (
        serve(script) as path,
        blocking.open_monitor(path, command_timeout=300) as monitor,
        ThreadPoolExecutor(1) as threads,
        monitor.subscribe() as events,
    ):
        command = threads.submit(monitor.execute, "slow")
        assert asked.wait(30)
        event = events.receive(timeout=300)
        assert event is not None
        assert event.name == "STOP"
        assert events.receive(timeout=0.01) is None
        assert not command.done()
        released.set()
        assert command.result(30) == "done"


def test_closing_ends_what_other_threads_do() -> None:
    def use(monitor: BlockingMonitor) -> int:
        count = 0
        with suppress(MonitorClosed):
            while True:
                with monitor.subscribe(capacity=2) as events:
                    monitor.execute("talk")
                    events.receive(timeout=0)
                count += 1
                if count == 5:
                    used.release()
        return count

    used = threading.Semaphore(0)
    with serve(storm) as path, ThreadPoolExecutor(THREADS) as threads:
        with blocking.open_monitor(path) as monitor:
            users = [threads.submit(use, monitor) for _ in range(THREADS)]
            for _ in users:
                assert used.acquire(timeout=300)
        assert all(user.result(60) >= 5 for user in users)


def test_closing_wakes_who_waits_for_ever_in_another_thread() -> None:
    def read(monitor: BlockingMonitor) -> list[str]:
        with monitor.subscribe() as events:
            subscribed.set()
            return [event.name for event in events]  # ends in order

    asked, subscribed = threading.Event(), threading.Event()

    def script(session: Session) -> None:
        session.greet()
        session.request()
        asked.set()
        session.request()

    with serve(script) as path, ThreadPoolExecutor(2) as threads:
        with blocking.open_monitor(path, command_timeout=math.inf) as monitor:
            reader = threads.submit(read, monitor)
            assert subscribed.wait(30)
            command = threads.submit(monitor.execute, "slow")
            assert asked.wait(30)
        assert reader.result(30) == []
        with pytest.raises(MonitorClosed, match="by us"):
            command.result(30)


def test_closing_takes_nothing_from_under_another_threads_hands(
    fake: ThreadedFake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread that is reading a message may finish that before the rest is dropped."""
    reading, waiting = threading.Event(), threading.Event()
    overlaps: list[bool] = []
    main = threading.current_thread()

    class Turn:
        """Tells when the main thread waits for its turn."""

        def acquire(self, *, blocking: bool = True, timeout: float = -1) -> bool:
            if threading.current_thread() is main:
                waiting.set()
            return turn.acquire(blocking=blocking, timeout=timeout)

        def release(self) -> None:
            turn.release()

    with ThreadPoolExecutor(1) as threads:
        with blocking.open_monitor(fake.socket) as monitor:
            connection, turn = monitor._connection, monitor._turn  # noqa: SLF001
            read, close = connection.next_message, connection.close

            def read_slowly() -> object:
                if threading.current_thread() is not main:
                    reading.set()
                    assert waiting.wait(120)
                    reading.clear()
                return read()

            def note_close() -> object:
                overlaps.append(reading.is_set())
                waiting.set()
                return close()

            monkeypatch.setattr(connection, "next_message", read_slowly)
            monkeypatch.setattr(connection, "close", note_close)
            monkeypatch.setattr(monitor, "_turn", Turn())
            asked = threads.submit(monitor.execute, "query-status")
            assert reading.wait(120)
        assert isinstance(asked.exception(120), MonitorClosed | None)
    assert overlaps[-1:] == [False]
