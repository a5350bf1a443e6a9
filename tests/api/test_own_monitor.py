"""A monitor of one's own: the shared one is free, and nothing stays behind."""

from __future__ import annotations

import errno
import logging
import os
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, cast

import pytest
import scripted
import trio
import trio.testing
from added_monitors import KILLED, left_behind, wait_until_gone
from attrs import evolve
from cancelling import descriptors
from frontends import CONNECTING, elsewhere, on

from qmpballoon import asyncio as aio
from qmpballoon import blocking
from qmpballoon import trio as client
from qmpballoon.blocking import BlockingMonitor
from qmpballoon.errors import (
    MonitorTimeout,
    OwnMonitorUnavailable,
    ProtocolError,
)
from qmpballoon.qmp import Request
from qmpballoon.qmp.own_monitor import GETFD
from qmpballoon.sizes import GiB
from qmpballoon.testing import (
    AsyncioFakeQemu,
    FakeQemu,
    Machine,
    MachineConfig,
    open_fake,
    profile,
    serve,
    simulate,
    simulate_asyncio,
    threaded,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from frontends import FrontEnd

    from qmpballoon._transport.own_monitor import Own
    from qmpballoon.testing import ThreadedFake

NEW, OLD = "11.1", "10.0"
CAPTION = "no monitor of one's own can be added"


@pytest.fixture
def fake(request: pytest.FixtureRequest) -> Iterator[ThreadedFake]:
    with serve(version=getattr(request, "param", NEW)) as fake:
        yield fake


old = pytest.mark.parametrize("fake", [OLD], indirect=True)


@pytest.fixture
def refusing(monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadedFake]:
    """A QEMU of a version that should know, and does not."""
    words = evolve(profile(NEW), has_monitor_objects=False)
    monkeypatch.setattr(threaded, "profile", lambda _: words)
    with serve(version=NEW) as fake:
        yield fake


def use_shared(fake: ThreadedFake) -> None:
    with blocking.open_balloon(fake.socket, timeout=10) as balloon:
        balloon.set_target(GiB)


@on(*CONNECTING)
async def test_the_shared_monitor_is_free_meanwhile(
    front: FrontEnd, fake: ThreadedFake
) -> None:
    async with front.open_balloon(fake.socket, own=True) as balloon:
        elsewhere(lambda: use_shared(fake))
        assert (await balloon.query()).total == 2 * GiB
        elsewhere(lambda: use_shared(fake))
    elsewhere(lambda: wait_until_gone(fake))


@on(*CONNECTING)
async def test_two_have_one_of_their_own_each(
    front: FrontEnd, fake: ThreadedFake
) -> None:
    async with (
        front.open_balloon(fake.socket, own=True) as one,
        front.open_balloon(fake.socket, own="auto") as other,
    ):
        assert await one.actual() == await other.actual()
    elsewhere(lambda: wait_until_gone(fake))


@on(*CONNECTING)
async def test_an_exception_leaves_nothing(front: FrontEnd, fake: ThreadedFake) -> None:
    before = descriptors()
    with pytest.raises(ZeroDivisionError):
        async with front.open_balloon(fake.socket, own=True):
            raise ZeroDivisionError
    elsewhere(lambda: wait_until_gone(fake))
    while descriptors() != before:  # the fake's ends are among them
        pass


@old
@on(*CONNECTING)
async def test_an_older_qemu_is_told_of(front: FrontEnd, fake: ThreadedFake) -> None:
    with pytest.raises(OwnMonitorUnavailable) as caught:
        async with front.open_balloon(fake.socket, own=True):
            pytest.fail("it opened")
    assert f"{CAPTION} (QEMU 10.0." in str(caught.value)
    assert "cannot, only 11.1 and later): give the VM" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.vm == f"the monitor on {fake.socket}"
    elsewhere(lambda: use_shared(fake))


@old
@on(*CONNECTING)
async def test_with_auto_an_older_one_is_shared(
    front: FrontEnd, fake: ThreadedFake, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "qmpballoon"):
        async with front.open_balloon(fake.socket, own="auto", name="vm1") as balloon:
            assert await balloon.actual() == 2 * GiB
    (line,) = [each for each in caplog.messages if CAPTION in each]
    assert line.startswith("vm1: ")
    assert line.endswith("; goes on with the shared one")


@on(*CONNECTING)
async def test_a_refusal_leaves_nothing(
    front: FrontEnd, refusing: ThreadedFake
) -> None:
    with pytest.raises(OwnMonitorUnavailable, match="QEMU refused object-add: Param"):
        async with front.open_balloon(refusing.socket, own=True):
            pytest.fail("it opened")
    elsewhere(lambda: _check_nothing_left(refusing))
    async with front.open_balloon(refusing.socket, own="auto") as balloon:
        assert await balloon.actual() == 2 * GiB
        elsewhere(lambda: _check_nothing_left(refusing))


def _check_nothing_left(fake: ThreadedFake) -> None:
    assert fake.do(left_behind) == []


@pytest.mark.parametrize(
    ("own", "error"), [("yes", ValueError), (2, TypeError), (None, TypeError)]
)
@on(*CONNECTING)
async def test_what_it_can_be(
    front: FrontEnd, own: object, error: type[Exception]
) -> None:
    with pytest.raises(error, match=f"own is {own!r}: it must be True, False or"):
        async with front.open_balloon("/nowhere", own=cast("Any", own)):
            pytest.fail("it opened")


async def test_a_stream_that_takes_no_descriptors() -> None:
    """As one over TCP or TLS."""
    machine = Machine(profile=profile(NEW))

    async def open_with(vm: FakeQemu, *, own: Own) -> int:
        near, far = trio.testing.memory_stream_pair()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(vm.serve, far)
            async with client.open_balloon(near, own=own) as balloon:
                return await balloon.actual()

    async with open_fake(machine) as vm:
        with pytest.raises(ExceptionGroup) as caught:
            await open_with(vm, own=True)
        assert caught.group_contains(OwnMonitorUnavailable, match="plain unix socket")
        assert await open_with(vm, own="auto") == 2 * GiB


def test_in_memory_on_trio() -> None:
    async def main(vm: FakeQemu) -> None:
        async with client.open_balloon(vm.connect(), own=True) as balloon:
            with balloon.monitor.subscribe("BALLOON_CHANGE") as events:
                await balloon.resize(GiB)
                await events.receive()
            async with client.open_balloon(vm.connect()) as shared:
                assert await shared.actual() == GiB
        await trio.sleep(1)
        assert left_behind(vm.machine) == []

    simulate(main, MachineConfig(), version=NEW)


def test_in_memory_on_asyncio() -> None:
    async def main(vm: AsyncioFakeQemu) -> None:
        async with (
            aio.open_balloon(vm.connect(), own=True) as balloon,
            aio.open_balloon(vm.connect()) as shared,
        ):
            await balloon.resize(GiB)
            assert await shared.actual() == GiB

    simulate_asyncio(main, MachineConfig(), version=NEW)


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Monitors that are added do not greet."""
    monkeypatch.setattr(Machine, "begin_serving", lambda *_: None)


@pytest.mark.usefixtures("silent")
def test_a_monitor_that_does_not_greet_is_taken_back_on_trio() -> None:
    async def main(vm: FakeQemu) -> None:
        with pytest.raises(MonitorTimeout, match="added a monitor, which did not gr"):
            async with client.open_balloon(vm.connect(), own=True):
                pytest.fail("it opened")
        assert left_behind(vm.machine) == []

    simulate(main, MachineConfig(), version=NEW)


@pytest.mark.usefixtures("silent")
def test_a_monitor_that_does_not_greet_is_taken_back_on_asyncio() -> None:
    async def main(vm: AsyncioFakeQemu) -> None:
        with pytest.raises(MonitorTimeout, match="added a monitor, which did not gr"):
            async with aio.open_balloon(vm.connect(), own=True):
                pytest.fail("it opened")
        assert left_behind(vm.machine) == []

    simulate_asyncio(main, MachineConfig(), version=NEW)


@on(*CONNECTING)
async def test_the_process_is_still_qemus(
    front: FrontEnd, fake: ThreadedFake, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = sys.modules[f"qmpballoon.{front.name}.connect"]
    pids = iter([os.getppid()])  # of the shared socket, and of no other
    monkeypatch.setattr(module, "find_peer_pid", lambda _: next(pids))
    async with front.open_balloon(fake.socket, own=True) as balloon:
        assert cast("Any", balloon.monitor).pid == os.getppid()
        assert cast("Any", balloon.monitor).resident()


@on(*CONNECTING)
async def test_what_one_left_that_was_killed_meanwhile_is_removed(
    front: FrontEnd, fake: ThreadedFake
) -> None:
    def leave() -> None:
        killed = subprocess.run(
            [sys.executable, "-c", KILLED, fake.socket, "chardev-add"], check=False
        )
        assert killed.returncode == -signal.SIGKILL
        assert fake.do(left_behind)

    def check() -> None:
        assert len(fake.do(left_behind)) == 1  # the one that is used

    elsewhere(leave)
    async with front.open_balloon(fake.socket, own=True):
        elsewhere(check)


@on(*CONNECTING)
async def test_what_another_client_has_is_no_leftover(
    front: FrontEnd, fake: ThreadedFake
) -> None:
    async with front.open_balloon(fake.socket, own=True) as balloon:
        elsewhere(lambda: use_own(fake))
        assert await balloon.actual() == 2 * GiB


def use_own(fake: ThreadedFake) -> None:
    with blocking.open_balloon(fake.socket, own=True) as balloon:
        balloon.query()


PROGRAM = """
import sys, time
from qmpballoon.blocking import open_monitor

with open_monitor(sys.argv[1], own=True):
    print("ready", flush=True)
    time.sleep(600)
"""


def test_nothing_is_left_of_one_that_was_killed(fake: ThreadedFake) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, fake.socket], stdout=subprocess.PIPE
    ) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == b"ready\n"
        assert len(fake.do(left_behind)) == 1
        program.send_signal(signal.SIGKILL)
    wait_until_gone(fake)


@on(*CONNECTING)
async def test_a_kernel_that_sends_no_descriptors(
    front: FrontEnd, fake: ThreadedFake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It limits how many a user may have on their way."""

    def refuse(*_: object) -> int:
        raise OSError(errno.ETOOMANYREFS, "Too many references")

    monkeypatch.setattr(socket, "send_fds", refuse)
    with pytest.raises(OwnMonitorUnavailable, match="No file descriptor supplied"):
        async with front.open_balloon(fake.socket, own=True, timeout=120):
            pytest.fail("it opened")
    async with front.open_balloon(fake.socket, own="auto") as balloon:
        assert await balloon.actual() == 2 * GiB


class Liar:
    """A QEMU that says yes to everything, and does with the descriptor as it likes."""

    def __init__(self, said: bytes) -> None:
        self.came: list[str] = []
        self.descriptors = 0
        self._said = said  # on the new monitor, before that is closed

    def attend(self, session: scripted.Session) -> None:
        session.greet()
        with ExitStack() as kept:
            while True:
                request, taken = self._receive(session)
                self.descriptors += len(taken)
                for number in taken:
                    theirs = kept.enter_context(socket.socket(fileno=number))
                    theirs.sendall(self._said)
                    theirs.close()
                self.came.append(request.command)
                session.answer(request, {})

    def _receive(self, session: scripted.Session) -> tuple[Request, list[int]]:
        taken: list[int] = []
        while (message := session.qmp.next_message()) is None:
            data, numbers, _, _ = socket.recv_fds(session.sock, 65536, 9)
            taken += numbers
            if not data:
                raise EOFError
            session.qmp.receive_data(data)
        assert isinstance(message, Request)
        return message, taken


@on(*CONNECTING)
async def test_a_qemu_that_drops_the_descriptor(front: FrontEnd) -> None:
    liar, before = Liar(b""), descriptors()
    with scripted.serve(liar.attend) as place:
        with pytest.raises(OwnMonitorUnavailable, match="QEMU closed it again"):
            async with front.open_balloon(place, own=True):
                pytest.fail("it opened")
        assert liar.came[-3:] == ["object-del", "chardev-remove", "closefd"]
    assert descriptors() == before


@on(*CONNECTING)
@pytest.mark.parametrize("said", [b"nonsense\r\n", b'{"QMP": 1}\r\n', b"\0" * 5000])
async def test_a_qemu_that_talks_nonsense_on_what_it_added(
    front: FrontEnd, said: bytes
) -> None:
    liar, before = Liar(said), descriptors()
    with scripted.serve(liar.attend) as place, pytest.raises(ProtocolError):
        async with front.open_balloon(place, own=True):
            pytest.fail("it opened")
    assert descriptors() == before


def test_ctrl_c_before_the_descriptor_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes with no other command then."""
    exchange = BlockingMonitor._exchange  # noqa: SLF001 - a moment in a command

    def interrupt(monitor: BlockingMonitor, command: str, *rest: Any) -> object:  # noqa: ANN401
        if command == GETFD:
            raise KeyboardInterrupt
        return exchange(monitor, command, *rest)

    monkeypatch.setattr(BlockingMonitor, "_exchange", interrupt)
    liar = Liar(b"")
    with (
        scripted.serve(liar.attend) as place,
        pytest.raises(KeyboardInterrupt),
        blocking.open_monitor(place, own=True),
    ):
        pytest.fail("it opened")
    assert liar.came[-3:] == ["object-del", "chardev-remove", "closefd"]
    assert liar.descriptors == 0
