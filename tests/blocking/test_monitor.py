"""What only blocking calls have to handle: Ctrl-C, threads, and unread events."""

from __future__ import annotations

import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from scripted import Session, serve

from qmpballoon import (
    MonitorClosed,
    MonitorTimeout,
    blocking,
)
from qmpballoon.qmp import Event

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType
    from typing import Any

    from qmpballoon.testing import ThreadedFake

    Tracer = Callable[[FrameType, str, Any], Any]


def test_ctrl_c_while_waiting_for_an_answer() -> None:
    """The late answer is swallowed, and the monitor stays usable."""

    def script(session: Session) -> None:
        session.greet()
        while True:
            request = session.request()
            if request.command == "slow":
                os.kill(os.getpid(), signal.SIGINT)
                late = request
            else:
                if request.command == "quick":
                    session.answer(late, "late")
                session.answer(request, request.command)

    with serve(script) as path, blocking.open_monitor(path) as monitor:
        for _ in range(3):
            with pytest.raises(KeyboardInterrupt):
                monitor.execute("slow")
            assert monitor.execute("quick") == "quick"
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_while_sending_leaves_no_reply_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The command goes out whole, and its reply is dropped when it comes."""

    def script(session: Session) -> None:
        session.greet()
        while True:
            request = session.request()
            session.answer(request, request.command)

    with serve(script) as path, blocking.open_monitor(path) as monitor:
        replies: dict[object, object] = {}
        monkeypatch.setattr(monitor, "_replies", replies)
        queue = monitor._queue  # noqa: SLF001 - what is interrupted

        def interrupt(data: bytes) -> None:
            signal.raise_signal(signal.SIGINT)
            queue(data)

        with monkeypatch.context() as patched:
            patched.setattr(monitor, "_queue", interrupt)
            with pytest.raises(KeyboardInterrupt):
                monitor.execute("interrupted")
        assert monitor.execute("next") == "next"
        assert not replies


# Run by itself: whatever else is in the process, such as a tool that measures coverage,
# may not bear being interrupted anywhere.
STORM = """
import os, signal, sys
from qmpballoon import CommandNotFound, blocking

struck = 0
signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGINT))
with blocking.open_monitor(sys.argv[1], timeout=120, command_timeout=120) as monitor:
    for turn in range(300):
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.00002 * (turn % 50 + 1))
            while True:
                monitor.execute("query-name")
        except KeyboardInterrupt:
            struck += 1
        assert "actual" in monitor.execute("query-balloon")
        try:
            monitor.execute("nope")
        except CommandNotFound:
            continue
        sys.exit("it was not refused")
print(struck)
"""


def test_ctrl_c_at_any_moment(fake: ThreadedFake) -> None:
    """Wherever it strikes, replies and commands still belong together."""
    command = [sys.executable, "-c", STORM, fake.socket]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("300\n", "")


def test_ctrl_c_where_a_command_ends_gives_no_later_one_its_reply(
    fake: ThreadedFake,
) -> None:
    """Ids are used again, so nothing may be left under one of them."""
    place = 0

    def interrupt_at(number: int) -> bool:
        """Interrupt a command at a line; return whether it has so many lines."""
        lines = 0

        def trace(frame: FrameType, event: str, _: object) -> Tracer | None:
            nonlocal lines
            if frame.f_code.co_name != "_exchange":
                return None
            lines += event == "line"
            if lines == number and event == "line":
                signal.raise_signal(signal.SIGINT)
            return trace

        tracer = sys.gettrace()
        sys.settrace(trace)
        try:
            monitor.execute("query-status")
        except KeyboardInterrupt:
            return True
        finally:
            sys.settrace(tracer)
        return False

    with blocking.open_monitor(fake.socket) as monitor:
        while interrupt_at(place := place + 1):
            for _ in range(10):
                assert monitor.execute("query-name") == {}
    assert place > len(("send", "wait", "return", "abandon", "pop"))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("does", ["execute", "receive"])
def test_ctrl_c_right_after_taking_its_turn_locks_no_thread_out(
    does: str, fake: ThreadedFake, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Struck:
        """A lock: whoever takes it is interrupted at once."""

        def acquire(self, *, blocking: bool = True, timeout: float = -1) -> bool:
            taken = turn.acquire(blocking=blocking, timeout=timeout)
            signal.raise_signal(signal.SIGINT)
            return taken

        def release(self) -> None:
            turn.release()

    with (
        blocking.open_monitor(fake.socket) as monitor,
        monitor.subscribe() as events,
        ThreadPoolExecutor(1) as threads,
    ):
        turn = monitor._turn  # noqa: SLF001 - what is interrupted
        calls: dict[str, Callable[[], object]] = {
            "execute": lambda: monitor.execute("query-status"),
            "receive": lambda: events.receive(0),
        }
        with monkeypatch.context() as patched:
            patched.setattr(monitor, "_turn", Struck())
            with pytest.raises(KeyboardInterrupt):
                calls[does]()
        asked = threads.submit(monitor.execute, "query-name")
        assert asked.result(120) == {}


def test_a_descriptor_that_others_closed(fake: ThreadedFake) -> None:
    """As daemons do, that close all descriptors when they start."""
    with blocking.open_monitor(fake.socket) as monitor:
        os.close(monitor._socket.fileno())  # noqa: SLF001 - none of ours does this
        with pytest.raises(MonitorClosed, match="Bad file descriptor"):
            monitor.execute("query-status")


def test_a_number_that_was_taken_from_a_monitor_is_left_to_who_has_it(
    fake: ThreadedFake,
) -> None:
    """Neither shut down nor closed."""
    one, two = socket.socketpair()
    with two:
        with blocking.open_monitor(fake.socket) as monitor, one:
            number = monitor._socket.fileno()  # noqa: SLF001 - none of ours does this
            os.dup2(one.fileno(), number)
        with socket.socket(fileno=number) as one:
            assert one.send(b"x") == len(two.recv(1))


FORK = """
import os, sys
from qmpballoon import MonitorClosed, blocking

with blocking.open_balloon(sys.argv[1]) as balloon:
    with balloon.stats_interval(7):
        if not (child := os.fork()):
            try:
                balloon.query()
            except MonitorClosed as error:
                print(error, flush=True)
            sys.exit(3)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
        assert balloon.query().actual
        assert balloon.get_stats_interval() == 7
"""


def test_a_forked_process_leaves_the_connection_alone(fake: ThreadedFake) -> None:
    command = [sys.executable, "-c", FORK, fake.socket]
    done = subprocess.run(command, capture_output=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr.decode()
    (told,) = done.stdout.decode().splitlines()
    assert "belongs to process" in told


def test_threads_share_a_monitor(fake: ThreadedFake) -> None:
    with (
        blocking.open_monitor(fake.socket) as monitor,
        ThreadPoolExecutor(8) as threads,
    ):
        answers = threads.map(
            lambda n: monitor.execute("query-balloon" if n % 2 else "query-status"),
            range(400),
        )
        for number, answer in enumerate(answers):
            assert isinstance(answer, dict)
            assert ("actual" in answer) == bool(number % 2)


def test_a_turn_that_does_not_come_in_time() -> None:
    asked, let_go = threading.Event(), threading.Event()

    def script(session: Session) -> None:
        session.greet()
        request = session.request()
        asked.set()
        let_go.wait(10)
        session.answer(request, {})

    with serve(script) as path, blocking.open_monitor(path) as monitor:
        with ThreadPoolExecutor(1) as thread:
            first = thread.submit(monitor.execute, "first", timeout=math.inf)
            asked.wait(10)
            with pytest.raises(MonitorTimeout, match="'second' within") as caught:
                monitor.execute("second", timeout=0.05)
            let_go.set()
            assert first.result() == {}
        assert caught.value.unknown_outcome == ()


def test_events(fake: ThreadedFake) -> None:
    with blocking.open_monitor(fake.socket) as monitor:
        with monitor.subscribe("STOP", capacity=1) as events:
            assert events.receive(timeout=0.01) is None
            for _ in range(3):
                monitor.execute("stop")
                monitor.execute("cont")
            assert next(iter(events)).name == "STOP"
            assert events.receive(timeout=0) is None
            assert events.lost == {"STOP": 2}
            fake.kill()
            with pytest.raises(MonitorClosed):
                events.receive()
        assert monitor.greeting is not None
        assert monitor.resident() is None


def test_events_come_in_a_block(fake: ThreadedFake) -> None:
    with blocking.open_monitor(fake.socket) as monitor:
        with monitor.subscribe("STOP", "RESUME") as events:
            monitor.execute("stop")
            monitor.execute("query-status")
        received = events.receive()
        assert received is not None
        assert received.name == "STOP"
        with pytest.raises(RuntimeError, match="with block"):
            events.receive(timeout=300)


def test_a_flood_of_events_holds_up_no_deadline() -> None:
    def script(session: Session) -> None:
        session.greet()
        session.request()
        flood = session.qmp.send_event(Event("X")) * 1000
        end = time.monotonic() + 3
        while time.monotonic() < end:
            session.sock.sendall(flood)

    with serve(script) as path, blocking.open_monitor(path) as monitor:
        began = time.monotonic()
        with pytest.raises(MonitorTimeout):
            monitor.execute("unanswered", timeout=0.1)
        assert time.monotonic() - began < 2


def test_a_peer_that_never_pauses_holds_up_no_deadline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """There is always something to move, however fast it is moved."""

    def script(session: Session) -> None:
        session.greet()
        session.request()

    with serve(script) as path, blocking.open_monitor(path) as monitor:
        began = time.monotonic()

        def transfer() -> bool:
            assert time.monotonic() < began + 3
            return True

        monkeypatch.setattr(monitor, "_wait_for_socket", lambda _: True)
        monkeypatch.setattr(monitor, "_transfer", transfer)
        with pytest.raises(MonitorTimeout):
            monitor.execute("unanswered", timeout=0.1)


def test_a_command_larger_than_the_socket_takes_at_once() -> None:
    def script(session: Session) -> None:
        session.greet()
        request = session.request()
        session.answer(request, len(str(request.arguments["text"])))

    with serve(script) as path, blocking.open_monitor(path) as monitor:
        assert monitor.execute("x", {"text": "x" * 5_000_000}) == 5_000_000


def test_a_peer_that_does_not_read() -> None:
    leave = threading.Event()

    def script(session: Session) -> None:
        session.greet()
        leave.wait(10)

    with serve(script) as path:
        with (
            blocking.open_monitor(path) as monitor,
            pytest.raises(MonitorTimeout) as caught,
        ):
            monitor.execute("x", {"text": "x" * 5_000_000}, timeout=0.1)
        leave.set()
    assert caught.value.unknown_outcome == ("x",)
