"""``qmpballoon web``, and `fleet run --web`, in processes of their own."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import stat
import time
from typing import TYPE_CHECKING, Any

import pytest
import trio
from command import Running, serve, start
from in_process import status_of
from worlds import open_world, simulated, supervised

from qmpballoon.cli._fleet_session import Alone
from qmpballoon.cli.fleet import _Shown
from qmpballoon.fleet.guests import Host
from qmpballoon.fleet.host_memory import HostMemory
from qmpballoon.fleet.policy import FleetPlan, Rules
from qmpballoon.sizes import GiB
from qmpballoon.web.board import Board

if TYPE_CHECKING:
    from pathlib import Path

LINK = re.compile(r"pages at http://([^/]+)(/\S*)\?token=(\S+)(?: on unix:(.*))?\n")


async def link_of(stream: trio.abc.ReceiveStream) -> tuple[str, str, str, str]:
    """Return host, path, token and socket of the link that is printed."""
    seen = ""
    with trio.fail_after(300):
        while (match := LINK.search(seen)) is None:
            piece = bytes(await stream.receive_some(1000)).decode()
            assert piece, seen
            seen += piece
    return match[1], match[2], match[3], match[4]


async def connect(host: str, path: str) -> trio.SocketStream:
    if path:
        return await trio.open_unix_socket(path)
    name, _, port = host.rpartition(":")
    return await trio.open_tcp_stream(name, int(port))


async def get(
    host: str, path: str, token: str, unix: str = "", body: object = None
) -> tuple[int, str]:
    """Ask as curl would."""
    data = b"" if body is None else json.dumps(body).encode()
    head = (
        f"{'GET' if body is None else 'POST'} {path} HTTP/1.1\r\nHost: {host}\r\n"
        f"Authorization: Bearer {token}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(data)}\r\nConnection: close\r\n\r\n"
    )
    async with await connect(host, unix) as stream:
        await stream.send_all(head.encode() + data)
        text = b"".join([bytes(piece) async for piece in stream]).decode()
    first, _, rest = text.partition("\r\n\r\n")
    return int(first.split()[1]), rest


async def end(running: Running) -> None:
    running.process.send_signal(signal.SIGINT)
    with trio.fail_after(300):
        assert await running.process.wait() == 0


async def document_of(*where: str) -> dict[str, Any]:
    status, text = await get(*where)
    assert status == 200
    value = json.loads(text)
    assert isinstance(value, dict)
    return value


async def test_from_the_link_to_a_change_and_the_end(tmp_path: Path) -> None:
    path, secret = tmp_path / "vm.qmp", tmp_path / "token"
    command = ("web", path, "--listen", "0", "--allow-changes", "--reserve", "0")
    async with (
        serve(path, memory=2 * GiB) as fake,
        start(*command, "--token-file", secret) as running,
    ):
        host, top, token, _ = await link_of(running.stdout)
        assert host.startswith("127.0.0.1:")
        assert secret.read_text().strip() == token
        assert stat.S_IMODE(secret.stat().st_mode) == 0o600
        assert (await get(host, top, "wrong"))[0] == 403
        with trio.fail_after(300):
            while "healthy" not in (await get(host, top, token))[1]:  # noqa: ASYNC110 - another process
                await trio.sleep(0.05)
        ask = {"vm": "vm", "amount": "25%", "hold": True}
        assert (await get(host, "/api/reclaim", token, "", ask))[0] == 202
        with trio.fail_after(300):
            while True:
                job = (await document_of(host, "/api/job?vm=vm", token))["job"]
                if job["state"] == "done":
                    break
                await trio.sleep(0.05)
        assert fake.machine.guest.memory.balloon == GiB // 2
        # Somebody reads a stream, and does not read: the end does not wait for him.
        reader = await connect(host, "")
        request = f"GET /events HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer "
        await reader.send_all(f"{request}{token}\r\n\r\n".encode())
        assert await reader.receive_some(1)
        await end(running)
        said = await running.said()
        await reader.aclose()
    assert "qmpballoon: vm: asked for: reclaim 512 MiB, and keep it\n" in said
    assert "qmpballoon: vm is left with 1.5 GiB, to which it was moved" in said


async def test_a_unix_socket_behind_a_proxy(tmp_path: Path) -> None:
    path, listening = tmp_path / "vm.qmp", tmp_path / "pages"
    command = ("web", path, "--listen", f"unix:{listening}", "--prefix", "/vms/")
    names = ("--allow-host", "vms.example.com")
    async with (
        serve(path, memory=2 * GiB),
        start(*command, *names, "--reserve", "0") as running,
    ):
        host, top, token, unix = await link_of(running.stdout)
        assert (host, top, unix) == ("localhost", "/vms/", str(listening))
        assert stat.S_IMODE(listening.stat().st_mode) == 0o600
        for where in ("vms.example.com", "localhost"):
            assert (await get(where, "/vms/api/fleet", token, unix))[0] == 200
        assert (await get("evil.example", "/vms/", token, unix))[0] == 403
        assert (await get(host, "/vms/api/stop", token, unix, {}))[0] == 403
        await end(running)
    assert not listening.exists()


async def test_a_fleet_shows_what_it_decides_and_why(tmp_path: Path) -> None:
    path = tmp_path / "vm.qmp"
    # A reserve that the host has not: guests are to give.
    command = ("fleet", "run", "--web", "0", "--limit", "1G", "--period", "0.3", path)
    async with (
        serve(path, memory=2 * GiB),
        start(*command, "--reserve", "256M") as running,
    ):
        host, _, token, _ = await link_of(running.stderr)
        with trio.fail_after(300):
            while True:
                log = (await document_of(host, "/api/log", token))["entries"]
                if any("is moved" in entry["text"] for entry in log):
                    break
                await trio.sleep(0.05)
        (entry, *_) = [each for each in log if "is moved" in each["text"]]
        assert entry["vm"] == "vm"
        assert "2 GiB \u2192 " in entry["text"]
        assert (await get(host, "/api/stop", token, "", {}))[0] == 403
        await end(running)


async def test_a_cluster_is_shown(joined: str) -> None:
    async with start("web", "--cluster", joined, "--listen", "0") as running:
        host, top, token, _ = await link_of(running.stdout)
        assert "1 host: 1 healthy" in (await get(host, top, token))[1]
        (seen,) = (await document_of(host, "/api/cluster", token))["hosts"]
        assert seen["name"] == "h1"
        assert (await get(host, "/api/fleet", token))[0] == 404
        await end(running)


@simulated
async def test_what_a_cluster_asks_of_a_member_is_on_its_page() -> None:
    class Asked(Alone):
        def describe_changes(self) -> list[str]:
            return ["takes 1 GiB for the cluster's job 7"]

    board = Board(wall_clock=time.time)
    rules = Rules.for_host(GiB)
    async with open_world() as world, supervised(world) as fleet:
        member = Asked(world.read, lambda: rules)
        shown = _Shown(fleet, HostMemory(), member, board, as_json=False)
        shown.show(Host(total=GiB, available=GiB), FleetPlan())
    assert [entry.text for entry in board.entries] == member.describe_changes()


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ("web --cluster valkey://bus VM", "VMS is for this host's VMs: leave it out"),
        ("web --cluster valkey://bus --allow-changes", "--allow-changes is for this"),
        ("web --cluster valkey://bus --reserve 1G", "--reserve is for this host's"),
        ("web --cluster valkey://u:secret@bus", "holds a password"),
        ("web --listen everywhere", "has no port"),
        ("web --listen 99999", "port 99999 is too large: give 65535 or less; 0 is"),
        (f"web --listen {'9' * 5000}", "port 99999999999999999999 is too large"),
        ("web --listen ::1", "write [HOST]:PORT"),
        ("web --prefix vms", "no prefix"),
        ("web --prefix /v;x=1", "no prefix"),
        ("web --prefix /v\x7f", "no prefix"),
        ("web --prefix //elsewhere.example", "no prefix"),
        ("web --listen unix:/nowhere/pages VM", "cannot listen on unix:/nowhere/pages"),
        ("web --listen 0 --token-file /nowhere/token VM", "/nowhere/token cannot be"),
        ("fleet run --once --web 0 VM", "--once ends before"),
    ],
)
def test_what_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: str, why: str
) -> None:
    words = [str(tmp_path) if word == "VM" else word for word in arguments.split()]
    assert status_of(*words) == 2
    (line,) = [each for each in capsys.readouterr().err.splitlines() if why in each]
    assert line.startswith("qmpballoon: ")


@pytest.mark.parametrize(
    ("token", "mode", "why"),
    [("x" * 43, 0o644, "holds a secret"), ("short", 0o600, "no secret of 32")],
)
def test_a_token_that_is_no_good(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], token: str, mode: int, why: str
) -> None:
    file = tmp_path / "token"
    file.write_text(token)
    file.chmod(mode)
    assert status_of("web", "--listen", 0, "--token-file", file, tmp_path / "vm") == 2
    assert why in capsys.readouterr().err.splitlines()[-1]


def test_a_token_that_somebody_else_knows(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = tmp_path / "token"
    file.write_text("x" * 43)
    file.chmod(0o600)
    if os.geteuid() == 0:
        os.chown(file, 65534, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 65534)
    assert status_of("web", "--listen", 0, "--token-file", file, tmp_path / "vm") == 2
    assert "belongs to another user" in capsys.readouterr().err.splitlines()[-1]
    monkeypatch.undo()
    file.unlink()
    os.mkfifo(file, 0o600)
    assert status_of("web", "--listen", 0, "--token-file", file, tmp_path / "vm") == 2
    assert "holds no secret" in capsys.readouterr().err.splitlines()[-1]


def test_a_port_that_is_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert status_of("web", "--listen", port, tmp_path / "vm.qmp") == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use; give" in line
