"""The trio monitor on a real QEMU: what no model can vouch for."""

from __future__ import annotations

import asyncio
import functools
import os
import signal
import socket
import ssl
import subprocess
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pytest
import trio
import trustme
from attrs import frozen
from trio.testing import wait_all_tasks_blocked

from qmpballoon import asyncio as aio
from qmpballoon import blocking
from qmpballoon.errors import (
    CommandError,
    CommandNotFound,
    DeviceNotFound,
    MonitorBusy,
    MonitorClosed,
    MonitorTimeout,
    MonitorUnreachable,
    ProtocolError,
)
from qmpballoon.testing.lab import ProgressBar
from qmpballoon.testing.lab._parts import find_qemu
from qmpballoon.testing.lab._qemu import run_process, wait_ended
from qmpballoon.trio import TrioMonitor, open_monitor

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping, Sequence

LISTENS = b"00010000"  # the flag of a listening socket in /proc/net/unix
SECONDS = 30  # for QEMU to do what it does in one, on a machine that is busy
Process = subprocess.Popen[bytes]


@frozen
class Qemu:
    """A QEMU without a machine, which listens."""

    process: Process
    path: Path

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)
        if number == signal.SIGSTOP:
            # A thread that runs meanwhile stops when it comes to it, and may greet.
            os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WNOWAIT)


@asynccontextmanager
async def running_qemu(
    folder: Path, *options: str, mode: str = "mode=control"
) -> AsyncGenerator[Qemu, None]:
    """Run a QEMU with a monitor on a unix socket."""
    path = folder / "qmp"
    command = [
        *find_qemu(None, ProgressBar()).command,
        *("-machine", "none", "-accel", "tcg", "-display", "none", "-nodefaults"),
        *("-chardev", f"socket,id=qmp,path={path},server=on,wait=off"),
        *("-mon", f"chardev=qmp,{mode}"),
        *options,
    ]
    errors = folder / "stderr"
    async with run_process(command, errors) as process:
        with trio.fail_after(SECONDS):
            # There is a moment when it is bound, and not listened on yet.
            while not is_listening(path):
                assert process.poll() is None, errors.read_text()
                await trio.sleep(0.01)
        yield Qemu(process, path)


def is_listening(path: Path) -> bool:
    """Look without connecting: QEMU may close the next connection with that one."""
    sockets = Path("/proc/net/unix").read_bytes().splitlines()
    rows = [row.split(maxsplit=7) for row in sockets]
    return any(row[3] == LISTENS and row[-1] == os.fsencode(path) for row in rows)


@asynccontextmanager
async def monitored(
    folder: Path, *options: str, mode: str = "mode=control", oob: bool = False
) -> AsyncGenerator[tuple[Qemu, TrioMonitor], None]:
    """Run a QEMU, and yield it with its monitor."""
    async with (
        running_qemu(folder, *options, mode=mode) as qemu,
        open_monitor(qemu.path, timeout=SECONDS, oob=oob) as monitor,
    ):
        yield qemu, monitor


async def test_it_answers(tmp_path: Path) -> None:
    async with monitored(tmp_path) as (qemu, monitor):
        assert monitor.pid == qemu.process.pid
        assert monitor.greeting is not None
        assert monitor.greeting.version is not None
        assert monitor.greeting.version.major >= 7
        status = cast("Mapping[str, object]", await monitor.execute("query-status"))
        assert status["running"] is True
        children = await monitor.execute("qom-list", {"path": "/"})
        assert {"name": "machine", "type": "child<none-machine>"} in cast(
            "Sequence[object]", children
        )


async def test_it_refuses(tmp_path: Path) -> None:
    async with monitored(tmp_path) as (_, monitor):
        with pytest.raises(CommandNotFound, match="no-such-command"):
            await monitor.execute("no-such-command")
        with pytest.raises(DeviceNotFound, match="/nowhere"):
            await monitor.execute("qom-list", {"path": "/nowhere"})
        with pytest.raises(CommandError, match="balloon") as caught:
            await monitor.execute("query-balloon")
        assert caught.value.error_class == "DeviceNotActive"


async def test_the_schema_comes_through(tmp_path: Path) -> None:
    async with monitored(tmp_path) as (_, monitor):
        schema = await monitor.execute("query-qmp-schema")
        entries = cast("Sequence[Mapping[str, object]]", schema)
        commands = {item["name"] for item in entries if item["meta-type"] == "command"}
        assert {"balloon", "query-balloon", "qom-get", "qom-set"} <= commands


async def test_pretty_output_is_understood(tmp_path: Path) -> None:
    async with monitored(tmp_path, mode="mode=control,pretty=on") as (_, monitor):
        for _ in range(3):
            version = await monitor.execute("query-version")
            assert "qemu" in cast("Mapping[str, object]", version)
        assert await monitor.execute("query-qmp-schema")


async def test_a_human_monitor_is_told_of(tmp_path: Path) -> None:
    async with running_qemu(tmp_path, mode="mode=readline") as qemu:
        with pytest.raises(ProtocolError, match="HMP"):
            async with open_monitor(qemu.path, timeout=SECONDS):
                pytest.fail("that was no QMP")


async def test_callers_at_once_each_get_their_own_answer(tmp_path: Path) -> None:
    async with monitored(tmp_path) as (_, monitor):

        async def ask(kind: str) -> None:
            path = f"/{kind}"
            with pytest.raises(DeviceNotFound, match=path):
                await monitor.execute("qom-list", {"path": path})

        async with trio.open_nursery() as nursery:
            for number in range(50):
                nursery.start_soon(ask, f"number-{number}-")


async def test_a_second_client_is_busy_and_then_served(tmp_path: Path) -> None:
    async with running_qemu(tmp_path) as qemu:
        served = trio.Event()

        async def wait_for_service() -> None:
            async with open_monitor(qemu.path, timeout=SECONDS) as monitor:
                served.set()
                await monitor.execute("query-status")

        async with trio.open_nursery() as nursery:
            async with open_monitor(qemu.path, timeout=SECONDS) as monitor:
                with pytest.raises(MonitorBusy, match="another client") as caught:
                    async with open_monitor(qemu.path, timeout=0.3):
                        pytest.fail("there are two")
                assert caught.value.pid == monitor.pid
                assert monitor.pid is not None
                nursery.start_soon(wait_for_service)
                await monitor.execute("query-status")
                assert not served.is_set()
            with trio.fail_after(SECONDS):
                await served.wait()


async def test_a_full_backlog_is_busy_and_then_has_room(tmp_path: Path) -> None:
    async with running_qemu(tmp_path) as qemu:
        with ExitStack() as crowd:
            async with open_monitor(qemu.path, timeout=SECONDS):
                while True:
                    sock = crowd.enter_context(socket.socket(socket.AF_UNIX))
                    sock.setblocking(False)  # noqa: FBT003
                    if sock.connect_ex(os.fspath(qemu.path)):
                        break
                with pytest.raises(MonitorBusy, match="too many clients"):
                    async with open_monitor(qemu.path, timeout=0.3):
                        pytest.fail("there is no room")
        async with open_monitor(qemu.path, timeout=SECONDS) as monitor:
            await monitor.execute("query-status")


async def test_a_stopped_qemu_is_a_timeout_and_recovers(tmp_path: Path) -> None:
    async with monitored(tmp_path) as (qemu, monitor):
        qemu.signal(signal.SIGSTOP)
        with pytest.raises(MonitorTimeout) as caught:
            await monitor.execute("query-version", timeout=0.3)
        assert caught.value.unknown_outcome == ("query-version",)
        qemu.signal(signal.SIGCONT)
        assert "running" in cast(
            "Mapping[str, object]", await monitor.execute("query-status")
        )


async def test_connecting_to_a_stopped_qemu_is_busy(tmp_path: Path) -> None:
    async with running_qemu(tmp_path) as qemu:
        qemu.signal(signal.SIGSTOP)
        with pytest.raises(MonitorBusy, match="QEMU is stopped"):
            async with open_monitor(qemu.path, timeout=0.3):
                pytest.fail("it is stopped")


async def test_a_qemu_killed_in_mid_command_is_closed(tmp_path: Path) -> None:
    async with monitored(tmp_path) as (qemu, monitor):
        qemu.signal(signal.SIGSTOP)  # so that the command is on its way for sure

        async def kill() -> None:
            await wait_all_tasks_blocked()
            qemu.signal(signal.SIGKILL)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(kill)
            with pytest.raises(MonitorClosed, match="became of stop") as caught:
                await monitor.execute("stop")
        assert caught.value.unknown_outcome == ("stop",)
        with pytest.raises(MonitorClosed):
            await monitor.execute("query-status")
        await wait_ended(qemu.process)
        with pytest.raises(MonitorUnreachable, match="nobody listens"):
            async with open_monitor(qemu.path):
                pytest.fail("it is dead")


async def test_quit_is_answered_and_announced(tmp_path: Path) -> None:
    async with monitored(tmp_path) as (qemu, monitor):
        with monitor.subscribe() as events:
            assert await monitor.execute("quit") == {}
            event = await events.receive()
            assert event.name == "SHUTDOWN"
            assert event.data["reason"] == "host-qmp-quit"
            with pytest.raises(MonitorClosed):
                await events.receive()
        assert await wait_ended(qemu.process) == 0


async def test_events_are_received(tmp_path: Path) -> None:
    async with monitored(tmp_path) as (_, monitor):
        with monitor.subscribe("STOP", "RESUME") as events:
            await monitor.execute("stop")
            await monitor.execute("cont")
            received = [await events.receive() for _ in range(2)]
            assert [event.name for event in received] == ["STOP", "RESUME"]
            times = [event.timestamp or 0.0 for event in received]
            assert 0 < times[0] <= times[1]


async def test_cancelled_commands_leave_the_monitor_usable(tmp_path: Path) -> None:
    async with monitored(tmp_path) as (_, monitor):
        for steps in range(20):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(monitor.execute, "query-qmp-schema")
                for _ in range(steps):
                    await trio.lowlevel.checkpoint()
                nursery.cancel_scope.cancel()
            status = await monitor.execute("query-status")
            assert "running" in cast("Mapping[str, object]", status)


@pytest.mark.parametrize("oob", [True, False])
async def test_out_of_band_execution(tmp_path: Path, *, oob: bool) -> None:
    async with monitored(tmp_path, oob=oob) as (_, monitor):
        assert monitor.oob is oob
        if not oob:
            with pytest.raises(RuntimeError, match="not negotiated"):
                await monitor.execute("migrate-pause", oob=True)
            return
        with pytest.raises(CommandError, match="does not support OOB"):
            await monitor.execute("query-status", oob=True)
        # It is run, and finds nothing to pause.
        with pytest.raises(CommandError, match="migrat"):
            await monitor.execute("migrate-pause", oob=True)


# Over TCP.


async def port_of(monitor: TrioMonitor, chardev: str) -> int:
    """Return the TCP port that QEMU has chosen for a chardev."""
    chardevs = await monitor.execute("query-chardev")
    for device in cast("Sequence[Mapping[str, str]]", chardevs):
        if device["label"] == chardev:
            address = device["filename"].partition(",")[0]
            return int(address.rpartition(":")[2])
    raise AssertionError(chardevs)


def tcp_monitor(*options: str) -> list[str]:
    chardev = ["socket", "id=tcp", "host=127.0.0.1", "port=0", "server=on", "wait=off"]
    return [
        *("-chardev", ",".join([*chardev, *options])),
        *("-mon", "chardev=tcp,mode=control"),
    ]


async def test_tcp(tmp_path: Path) -> None:
    async with monitored(tmp_path, *tcp_monitor()) as (_, beside):
        port = await port_of(beside, "tcp")
        async with open_monitor(f"tcp:127.0.0.1:{port}", timeout=SECONDS) as monitor:
            assert monitor.pid is None
            assert "running" in cast(
                "Mapping[str, object]", await monitor.execute("query-status")
            )


@pytest.fixture
def tls_folder(tmp_path: Path) -> Path:
    """Return a folder as QEMU wants it, for the name localhost."""
    command = find_qemu(None, ProgressBar()).command
    known = subprocess.run(
        [*command, "-object", "help"], check=True, capture_output=True
    ).stdout
    if b"tls-creds-x509" not in known:
        pytest.skip("this QEMU has no tls-creds-x509")
    authority = trustme.CA()
    server = authority.issue_cert("localhost", common_name="localhost")
    authority.cert_pem.write_to_path(tmp_path / "ca-cert.pem")
    server.cert_chain_pems[0].write_to_path(tmp_path / "server-cert.pem")
    server.private_key_pem.write_to_path(tmp_path / "server-key.pem")
    return tmp_path


async def test_tls(tls_folder: Path) -> None:
    creds = f"tls-creds-x509,id=tls,dir={tls_folder},endpoint=server,verify-peer=no"
    options = ["-object", creds, *tcp_monitor("tls-creds=tls")]
    trusting = ssl.create_default_context(cafile=tls_folder / "ca-cert.pem")
    async with monitored(tls_folder, *options) as (_, beside):
        address = f"tcp:localhost:{await port_of(beside, 'tcp')}"
        async with open_monitor(address, timeout=SECONDS, tls=trusting) as monitor:
            assert await monitor.execute("query-qmp-schema")
            with pytest.raises(MonitorBusy, match="another client"):
                async with open_monitor(address, timeout=0.5, tls=trusting):
                    pytest.fail("there are two")
        with pytest.raises(MonitorUnreachable, match="certificate"):
            async with open_monitor(
                address, timeout=SECONDS, tls=ssl.create_default_context()
            ):
                pytest.fail("nobody vouches for it")


@pytest.mark.parametrize("door", ["asyncio", "blocking"])
async def test_tls_on_the_other_front_ends(tls_folder: Path, door: str) -> None:
    creds = f"tls-creds-x509,id=tls,dir={tls_folder},endpoint=server,verify-peer=no"
    options = ["-object", creds, *tcp_monitor("tls-creds=tls")]
    trusting = ssl.create_default_context(cafile=tls_folder / "ca-cert.pem")

    async def on_asyncio(address: str) -> object:
        async with aio.open_monitor(address, timeout=SECONDS, tls=trusting) as monitor:
            many = (monitor.execute("query-status") for _ in range(20))
            await asyncio.gather(*many)
            return await monitor.execute("query-qmp-schema")

    def in_blocking_code(address: str) -> object:
        with blocking.open_monitor(address, timeout=SECONDS, tls=trusting) as monitor:
            for _ in range(20):
                monitor.execute("query-status")
            return monitor.execute("query-qmp-schema")

    async with monitored(tls_folder, *options) as (_, beside):
        address = f"tcp:localhost:{await port_of(beside, 'tcp')}"
        if door == "asyncio":
            call = functools.partial(asyncio.run, on_asyncio(address))
        else:
            call = functools.partial(in_blocking_code, address)
        assert await trio.to_thread.run_sync(call)
