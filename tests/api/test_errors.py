"""What goes wrong on the way to QEMU is told alike by every front end."""

from __future__ import annotations

import asyncio
import errno
import gc
import logging
import os
import pickle
import select
import socket
import ssl
from typing import TYPE_CHECKING, Any, Unpack, cast

import pytest
import trio
from frontends import ALL, CONNECTING, elsewhere, on
from scripted import Session, attend, serve, standard_answer

from qmpballoon import (
    BalloonStalled,
    CommandError,
    MonitorBusy,
    MonitorClosed,
    MonitorError,
    MonitorTimeout,
    MonitorUnreachable,
    NoBalloonDevice,
    ProtocolError,
    QmpBalloonError,
    StallLimits,
    StatsUnavailable,
    UnsafeTarget,
    blocking,
)
from qmpballoon import asyncio as aio
from qmpballoon import trio as client
from qmpballoon.sizes import GiB
from qmpballoon.testing import GuestConfig, MachineConfig
from qmpballoon.testing import serve as serve_fake

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from frontends import FrontEnd, Options

    from qmpballoon import Balloon
    from qmpballoon.blocking import Target
    from qmpballoon.testing import ThreadedFake


QUICK = StallLimits(window=0.5)
WITHOUT_DRIVER = MachineConfig(guest=GuestConfig(driver=False))


@pytest.fixture
def fake(request: pytest.FixtureRequest) -> Iterator[ThreadedFake]:
    """A fake QEMU, by default a VM of 2 GiB."""
    with serve_fake(getattr(request, "param", None)) as fake:
        yield fake


def greet_and_attend(session: Session) -> None:
    session.greet()
    attend(session)


async def error_of(
    front: FrontEnd, target: Target, **options: Unpack[Options]
) -> MonitorError:
    """Return the error that opening a balloon raises."""
    with pytest.raises(MonitorError) as caught:
        async with front.open_balloon(target, **options):
            pytest.fail("it opened")
    return caught.value


async def execute(balloon: Balloon, command: str, *, timeout: float) -> object:
    """Run a command with a deadline of its own, which all of our monitors know."""
    return await cast("Any", balloon.monitor).execute(command, timeout=timeout)


def errors_of(target: Target, **options: Unpack[Options]) -> set[tuple[type, str]]:
    """Return the errors of all front ends, by type and words."""
    errors = [front.run(error_of(front, target, **options)) for front in CONNECTING]
    return {(type(error), str(error)) for error in errors}


def test_nothing_there(tmp_path: Path) -> None:
    path = tmp_path / "qmp"
    said = f"there is no socket at {path}: is the VM running?"
    assert errors_of(path) == {(MonitorUnreachable, said)}


@pytest.mark.parametrize("path", ["[::1]:4444", "localhost:4444"])
def test_a_port_that_is_not_said_to_be_one(path: str) -> None:
    said = f"there is no socket at {path}: write tcp:{path} for a TCP port"
    assert errors_of(path) == {(MonitorUnreachable, said)}


def test_no_socket_but_a_file(tmp_path: Path) -> None:
    path = tmp_path / "qmp"
    path.touch()
    said = f"{path} is no socket: give the path of a -qmp unix:PATH monitor"
    assert errors_of(path) == {(MonitorUnreachable, said)}


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("file/qmp", "one of its folders is a file"),
        ("loop", "it leads through too many symbolic links"),
        ("loop/qmp", "it leads through too many symbolic links"),
        (f"{'x' * 256}/qmp", "one of its names is too long"),
    ],
)
def test_a_path_that_can_be_no_socket_s(tmp_path: Path, path: str, why: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    said = (
        f"there is no socket at {tmp_path / path}: {why}: give the path of a -qmp"
        " unix:PATH monitor"
    )
    assert errors_of(tmp_path / path) == {(MonitorUnreachable, said)}


def test_a_socket_of_datagrams(tmp_path: Path) -> None:
    path = tmp_path / "qmp"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(str(path))
        said = f"{path} is no stream socket: give the path of a -qmp unix:PATH monitor"
        assert errors_of(path) == {(MonitorUnreachable, said)}


def test_a_socket_that_a_dead_qemu_left(tmp_path: Path) -> None:
    path = tmp_path / "qmp"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
    said = f"nobody listens at {path} any more: the VM has ended"
    assert errors_of(path) == {(MonitorUnreachable, said)}


@on(*CONNECTING)
async def test_a_port_that_nobody_listens_on(front: FrontEnd) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
        error = await error_of(front, ("127.0.0.1", port))
    assert isinstance(error, MonitorUnreachable)
    assert f"cannot connect to tcp:127.0.0.1:{port}: " in str(error)


@on(*CONNECTING)
async def test_a_host_that_does_not_exist(front: FrontEnd) -> None:
    error = await error_of(front, "tcp:no-such-host.invalid:4444")
    assert isinstance(error, MonitorUnreachable)


def test_a_full_backlog(tmp_path: Path) -> None:
    path = tmp_path / "qmp"
    waiting: list[socket.socket] = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(0)
        try:
            error = 0
            while error != errno.EAGAIN:
                waiting.append(socket.socket(socket.AF_UNIX))
                waiting[-1].settimeout(0)
                error = waiting[-1].connect_ex(str(path))
            said = (
                f"too many clients wait for {path} already: close the client that"
                " holds it, or give the VM a second -qmp monitor"
            )
            assert errors_of(path, timeout=0.1) == {(MonitorBusy, said)}
        finally:
            for sock in waiting:
                sock.close()


def say_nothing(session: Session) -> None:
    while session.sock.recv(1000):
        pass


def greet_and_stop(session: Session) -> None:
    session.sock.sendall(b'{"QMP": {"version": {}, "capabilities": []}}\r\n')
    say_nothing(session)


def say(text: bytes) -> Callable[[Session], None]:
    """Return a script that says something and waits for the client to leave."""

    def script(session: Session) -> None:
        session.sock.sendall(text)
        session.sock.recv(1000)

    return script


def test_a_greeting_and_then_nothing() -> None:
    with serve(greet_and_stop) as path:
        said = f"the monitor on {path} greeted, and did not answer in time"
        assert errors_of(path, timeout=0.2) == {(MonitorTimeout, said)}


def test_no_greeting() -> None:
    with serve(lambda session: session.sock.recv(1)) as path:
        ((kind, said),) = errors_of(path, timeout=0.2)
    assert kind is MonitorBusy
    assert said.startswith(f"the monitor on {path} did not greet in time: ")


def test_a_peer_that_hangs_up() -> None:
    with serve(lambda session: session.sock.close()) as path:
        said = f"the monitor on {path}: the connection was closed by QEMU"
        assert errors_of(path) == {(MonitorClosed, said)}


def shut_one_direction(session: Session) -> None:
    """Read no more once a command says so, and still be there."""
    session.greet()
    while (request := session.request()).command != "shut":
        session.answer(request, standard_answer(request))
    session.sock.shutdown(socket.SHUT_RD)
    session.answer(request, {})
    left = select.poll()
    left.register(session.sock, 0)
    left.poll(120_000)  # until the client has left


@on(*CONNECTING)
async def test_a_peer_that_reads_no_more(front: FrontEnd) -> None:
    with serve(shut_one_direction) as path:
        async with front.open_balloon(path, command_timeout=120) as balloon:
            await balloon.monitor.execute("shut")
            with pytest.raises(MonitorClosed, match="broke"):
                await balloon.actual()


class FailingHandler(logging.Handler):
    """A program's handler that has a bug."""

    def emit(self, record: logging.LogRecord) -> None:
        """Fail."""
        raise ZeroDivisionError(record.getMessage())


@on(*CONNECTING)
async def test_a_handler_of_the_log_that_fails_disturbs_no_connection(
    front: FrontEnd, fake: ThreadedFake, capsys: pytest.CaptureFixture[str]
) -> None:
    log, handler = logging.getLogger(f"qmpballoon.{front.name}"), FailingHandler()
    log.addHandler(handler)
    log.setLevel(logging.DEBUG)
    try:
        async with front.open_balloon(fake.socket) as other:
            for _ in range(10):  # more than may be under way at once
                await other.actual()
        async with front.open_balloon(fake.socket) as balloon:
            await balloon.monitor.execute("quit")
            with pytest.raises(MonitorClosed):
                await balloon.actual()
    finally:
        log.removeHandler(handler)
        log.setLevel(logging.NOTSET)
    printed = capsys.readouterr().err
    for said in (": connected", ": query-balloon, id ", ": the connection "):
        assert f"ZeroDivisionError: the monitor on {fake.socket}{said}" in printed


def over_tls(target: Target, tls: ssl.SSLContext) -> tuple[type, str]:
    """Return what is raised where TLS does not come about, alike on every front end."""

    async def on_trio() -> None:
        async with client.open_monitor(target, tls=tls, timeout=0.2):
            pytest.fail("it opened")

    with pytest.raises((MonitorError, TypeError, ValueError)) as caught:
        trio.run(on_trio)
    with (
        pytest.raises(type(caught.value)) as plain,
        blocking.open_monitor(target, tls=tls, timeout=0.2),
    ):
        pytest.fail("it opened")
    assert str(plain.value) == str(caught.value)

    async def on_asyncio() -> None:
        async with aio.open_monitor(target, tls=tls, timeout=0.2):
            pytest.fail("it opened")

    with pytest.raises(type(caught.value)) as other:
        asyncio.run(on_asyncio())
    assert str(other.value) == str(caught.value)
    return type(caught.value), str(caught.value)


def test_a_peer_that_does_not_speak_tls() -> None:
    tls = ssl.create_default_context()
    tls.check_hostname = False
    with serve(say(b'{"QMP": {}}\r\n')) as path:
        kind, said = over_tls(path, tls)
    assert kind is MonitorUnreachable
    assert said.startswith(f"the monitor on {path}: no TLS handshake: ")


def test_no_tls_handshake_in_time() -> None:
    tls = ssl.create_default_context()
    tls.check_hostname = False
    with serve(say_nothing) as path:
        kind, said = over_tls(path, tls)
    assert kind is MonitorBusy
    assert said.startswith(f"the monitor on {path}: no TLS handshake in time: ")


def test_tls_without_a_name_to_check() -> None:
    with serve(say_nothing) as path:
        kind, said = over_tls(path, ssl.create_default_context())
    assert kind is ValueError
    assert "set its check_hostname to False" in said


def test_tls_that_is_no_context() -> None:
    with serve(say_nothing) as path:
        kind, said = over_tls(path, cast("ssl.SSLContext", "yes"))
    assert kind is TypeError
    assert said == "tls is 'yes': it must be a SSLContext"


@pytest.mark.parametrize("text", [b"SSH-2.0-OpenSSH\r\n", b"[]\r\n", b'{"x": 1}\r\n'])
@on(*CONNECTING)
async def test_another_protocol(front: FrontEnd, text: bytes) -> None:
    with serve(say(text)) as path:
        assert isinstance(await error_of(front, path), ProtocolError)


@on(*ALL)
async def test_qemu_ends_in_the_middle_of_a_command(front: FrontEnd) -> None:
    def script(session: Session) -> None:
        session.greet()
        while (request := session.request()).command != "balloon":
            session.answer(request, standard_answer(request))

    with serve(script) as path:
        async with front.open_balloon(path) as balloon:
            with pytest.raises(MonitorClosed, match="what became of balloon") as caught:
                await balloon.set_target(1 << 29)
            assert caught.value.unknown_outcome == ("balloon",)
            assert balloon.target is None
            with pytest.raises(MonitorClosed) as again:
                await balloon.query()
            assert again.value.unknown_outcome == ()


@on(*ALL)
async def test_qemu_is_killed_between_two_commands(
    front: FrontEnd, fake: ThreadedFake
) -> None:
    async with front.open_balloon(fake.socket) as balloon:
        elsewhere(fake.kill)
        with pytest.raises(MonitorClosed):
            await balloon.resize(1 << 30)


@on(*ALL)
async def test_qemu_quits(front: FrontEnd, fake: ThreadedFake) -> None:
    async with front.open_balloon(fake.socket) as balloon:
        assert await balloon.monitor.execute("quit") == {}
        with pytest.raises(MonitorClosed):
            await balloon.query()


@on(*ALL)
async def test_an_answer_that_comes_too_late_is_not_taken_for_another(
    front: FrontEnd,
) -> None:
    def script(session: Session) -> None:
        session.greet()
        while True:
            request = session.request()
            if request.command == "slow":
                slow = request
            elif request.command == "quick":
                session.answer(slow, "slow")
                session.answer(request, "quick")
            else:
                session.answer(request, standard_answer(request))

    with serve(script) as path:
        async with front.open_balloon(path) as balloon:
            with pytest.raises(MonitorTimeout) as caught:
                await execute(balloon, "slow", timeout=0.2)
            assert "did not answer 'slow' within 0.2 s" in str(caught.value)
            assert caught.value.unknown_outcome == ("slow",)
            assert await balloon.monitor.execute("quick") == "quick"


@on(*ALL)
async def test_late_commands_keep_their_places_with_qemu(front: FrontEnd) -> None:
    seen: list[str] = []

    def script(session: Session) -> None:
        session.greet()
        held = []
        while True:
            request = session.request()
            seen.append(request.command)
            if request.command == "hold":
                held.append(request)
            elif request.command == "release":
                for late in held:
                    session.answer(late, {})
                session.answer(request, "released")
            else:
                session.answer(request, standard_answer(request))

    with serve(script) as path:
        async with front.open_balloon(path) as balloon:
            seen.clear()
            for _ in range(7):
                with pytest.raises(MonitorTimeout):
                    await execute(balloon, "hold", timeout=0.05)
            assert await balloon.monitor.execute("release") == "released"
            for _ in range(8):
                with pytest.raises(MonitorTimeout):
                    await execute(balloon, "hold", timeout=0.05)
            with pytest.raises(MonitorTimeout) as caught:
                await execute(balloon, "release", timeout=0.05)
            # It waited for its turn in vain, and never was sent.
            assert caught.value.unknown_outcome == ()
        assert seen == ["hold"] * 7 + ["release"] + ["hold"] * 8


@on(*ALL)
async def test_nonsense_instead_of_an_answer(front: FrontEnd) -> None:
    def script(session: Session) -> None:
        session.greet()
        while (request := session.request()).command != "query-balloon":
            session.answer(request, standard_answer(request))
        session.sock.sendall(b'{"return": }\r\n')
        session.sock.recv(1000)

    with serve(script) as path:
        async with front.open_balloon(path) as balloon:
            with pytest.raises((ProtocolError, MonitorClosed)) as caught:
                await balloon.query()
            assert caught.value.unknown_outcome == ("query-balloon",)


@pytest.mark.parametrize("fake", [MachineConfig(balloon=None)], indirect=True)
@on(*ALL)
async def test_no_balloon(front: FrontEnd, fake: ThreadedFake) -> None:
    with pytest.raises(NoBalloonDevice, match="virtio-balloon-pci,id=balloon0"):
        async with front.open_balloon(fake.socket):
            pytest.fail("it opened")


@pytest.mark.parametrize("fake", [WITHOUT_DRIVER], indirect=True)
@on(*ALL)
async def test_a_guest_without_a_driver(front: FrontEnd, fake: ThreadedFake) -> None:
    async with front.open_balloon(fake.socket) as balloon:
        with pytest.raises(StatsUnavailable, match="load virtio_balloon"):
            await balloon.refresh_stats(timeout=0.2)
        await balloon.monitor.execute("stop")
        with pytest.raises(StatsUnavailable, match="the VM is paused"):
            await balloon.refresh_stats(timeout=0.2)


@on(*CONNECTING)
async def test_what_is_connected_is_taken_over(
    front: FrontEnd, fake: ThreadedFake
) -> None:
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(fake.socket)
    async with front.open_balloon(sock) as balloon:
        assert await balloon.is_running()
    assert sock.fileno() == -1
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(fake.socket)
    async with front.open_balloon(sock.detach()) as balloon:
        assert await balloon.is_running()


@on(*CONNECTING)
async def test_a_datagram_socket_is_refused(front: FrontEnd) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, theirs, pytest.raises(ValueError, match="QMP needs one"):
        async with front.open_balloon(ours):
            pytest.fail("it opened")


@pytest.mark.parametrize("descriptor", [-1, 10**20])
@on(*CONNECTING)
async def test_a_number_that_is_no_descriptor(front: FrontEnd, descriptor: int) -> None:
    with pytest.raises(ValueError, match=f"descriptor {descriptor} is no socket"):
        async with front.open_balloon(descriptor):
            pytest.fail("it opened")


@on(*CONNECTING)
async def test_what_is_no_connection_is_left_alone(
    front: FrontEnd, tmp_path: Path
) -> None:
    with (
        (tmp_path / "file").open("w") as file,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagrams,
        socket.socket() as closed,
    ):
        closed.close()
        for target in (file.fileno(), datagrams.fileno(), closed, -1):
            with pytest.raises(
                ValueError, match=r"no socket|needs one|closed|negative"
            ):
                async with front.open_balloon(target):
                    pytest.fail("it opened")
        gc.collect()  # a socket that was made of a descriptor must not close it
        os.fstat(datagrams.fileno())
        file.write("still open")


@pytest.mark.filterwarnings("error")
def test_a_socket_that_is_not_connected() -> None:
    made = [socket.socket(socket.AF_UNIX) for _ in CONNECTING]
    errors = [
        front.run(error_of(front, sock))
        for front, sock in zip(CONNECTING, made, strict=True)
    ]
    (said,) = {(type(error), str(error)) for error in errors}
    assert said[0] is MonitorUnreachable
    assert said[1].startswith("the connected monitor is not connected: ")
    assert [sock.fileno() for sock in made] == [-1] * len(made)


@on(*CONNECTING)
async def test_a_monitor_is_called_the_same_whatever_its_address_is_written_as(
    front: FrontEnd,
) -> None:
    with serve(lambda _: None, family=socket.AF_INET) as (host, port):
        error = await error_of(front, (host, port), timeout=0.2)
    assert str(error).startswith(f"the monitor on tcp:{host}:{port}: ")


@on(*CONNECTING)
async def test_over_tcp(front: FrontEnd) -> None:
    with serve(greet_and_attend, family=socket.AF_INET) as place:
        for target in (place, f"tcp:{place[0]}:{place[1]}"):
            async with front.open_balloon(target) as balloon:
                assert await balloon.actual() == 1 << 30


@pytest.mark.parametrize(
    ("command", "arguments", "complaint"),
    [
        (123, None, "the command is of type int"),
        (b"query-status", None, "the command is of type bytes"),
        (["query-status"], {}, "the command is of type list"),
        ("balloon", "value", "the arguments are of type str"),
        ("balloon", [("value", 1)], "the arguments are of type list"),
        ("balloon", {1: 2}, "an argument's name is of type int"),
        ("balloon", {"value": 1, None: 2}, "an argument's name is of type NoneType"),
    ],
)
@on(*ALL)
async def test_what_is_no_command_is_refused_before_anything_is_sent(
    front: FrontEnd,
    fake: ThreadedFake,
    command: Any,  # noqa: ANN401 - that is the point
    arguments: Any,  # noqa: ANN401
    complaint: str,
) -> None:
    async with front.open_balloon(fake.socket) as balloon:
        with pytest.raises(TypeError, match=complaint):
            await balloon.monitor.execute(command, arguments)
        assert await balloon.actual() == 2 * GiB


def called(front: FrontEnd, fake: ThreadedFake) -> str:
    """Return what messages call a fake's monitor."""
    return "the monitor " + ("of vm" if front.name == "client" else f"on {fake.socket}")


@pytest.mark.parametrize("fake", [WITHOUT_DRIVER], indirect=True)
@on(*ALL)
async def test_every_error_says_of_which_vm_it_is(
    front: FrontEnd, fake: ThreadedFake
) -> None:
    messages = []
    async with front.open_balloon(fake.socket) as balloon:
        with pytest.raises(UnsafeTarget) as unsafe:
            await balloon.resize(1)
        messages.append(str(unsafe.value))
        with pytest.raises(CommandError) as refused:
            await balloon.monitor.execute("balloon", {"value": -1})
        messages.append(str(refused.value))
        with pytest.raises(StatsUnavailable) as silent:
            await balloon.refresh_stats(timeout=0.2)
        messages.append(str(silent.value))
        limits = StallLimits(window=0.3)
        with pytest.raises(BalloonStalled) as stalled:
            await balloon.resize(GiB, unguarded=True, limits=limits)
        messages.append(str(stalled.value))
    name = called(front, fake)
    assert [message.partition(": ")[0] for message in messages] == [name] * 4


@pytest.mark.parametrize("fake", [MachineConfig(balloon=None)], indirect=True)
@on(*ALL)
async def test_a_vm_without_a_balloon_is_named(
    front: FrontEnd, fake: ThreadedFake
) -> None:
    with pytest.raises(NoBalloonDevice) as caught:
        async with front.open_balloon(fake.socket):
            pytest.fail("it opened")
    assert str(caught.value).startswith(
        f"{called(front, fake)}: this VM has no balloon"
    )


# Which VM it was


@on(*ALL)
async def test_every_error_says_which_vm_it_is_about(
    front: FrontEnd, fake: ThreadedFake
) -> None:
    async def die(balloon: Balloon) -> None:
        elsewhere(fake.kill)
        await balloon.query()

    calls: list[tuple[type[QmpBalloonError], Callable[[Balloon], Any]]] = [
        (CommandError, lambda balloon: balloon.monitor.execute("balloon")),
        (UnsafeTarget, lambda balloon: balloon.resize(1)),
        (StatsUnavailable, lambda balloon: balloon.refresh_stats(timeout=0)),
        (BalloonStalled, lambda balloon: balloon.resize(GiB, limits=QUICK)),
        (MonitorClosed, die),
    ]

    async with front.open_balloon(fake.socket, name="web-1") as balloon:
        await balloon.monitor.execute("stop")
        for kind, call in calls:
            with pytest.raises(kind) as caught:
                await call(balloon)
            assert caught.value.vm == "web-1"
            assert str(caught.value).startswith("web-1")
            assert pickle.loads(pickle.dumps(caught.value)).vm == "web-1"  # noqa: S301 - our own


def test_an_error_of_connecting_says_which_vm_it_is_about(tmp_path: Path) -> None:
    path = tmp_path / "qmp"
    for front in CONNECTING:
        error = front.run(error_of(front, path, name="web-1"))
        assert error.vm == "web-1"
        assert str(error) == f"web-1: there is no socket at {path}: is the VM running?"
        assert front.run(error_of(front, path)).vm is None
        with pytest.raises(TypeError, match="name is 5: it must be a str"):
            front.run(error_of(front, path, name=cast("Any", 5)))


@on(*CONNECTING)
async def test_without_a_name_it_is_what_messages_say(
    front: FrontEnd, fake: ThreadedFake
) -> None:
    async with front.open_balloon(fake.socket) as balloon:
        with pytest.raises(UnsafeTarget) as caught:
            await balloon.resize(1)
    assert caught.value.vm == f"the monitor on {fake.socket}"
