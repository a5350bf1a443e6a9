"""Monitors that cannot be reached, are silent, or are none: status 4, and in time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
from command import line_of, run, serve
from in_process import only_line, status_of
from trio_peers import serve_whoever_comes

from qmpballoon.qmp import Connection, Greeting, Role, Version

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path


COMMANDS = [["status"], ["resize", "1G"], ["reclaim"], ["watch"]]


async def listen(
    path: Path,
    handler: Callable[[trio.SocketStream], Awaitable[object]],
    task_status: trio.TaskStatus[list[trio.SocketListener]],
) -> None:
    """Let a handler serve whoever connects to a unix socket."""
    with trio.socket.socket(trio.socket.AF_UNIX) as listener:
        await listener.bind(str(path))
        listener.listen()
        await serve_whoever_comes(
            handler, [trio.SocketListener(listener)], task_status=task_status
        )


async def silent(_: trio.SocketStream) -> None:
    await trio.sleep_forever()


async def web_server(stream: trio.SocketStream) -> None:
    await stream.send_all(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")


async def only_greeting(stream: trio.SocketStream) -> None:
    greeting = Greeting(Version(10, 0, 2))
    await stream.send_all(Connection(Role.SERVER).send_greeting(greeting))
    await trio.sleep_forever()


async def closing(stream: trio.SocketStream) -> None:
    await stream.aclose()


@pytest.mark.parametrize("handler", [silent, web_server, only_greeting, closing])
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
async def test_what_is_no_monitor(
    command: list[str],
    handler: Callable[[trio.SocketStream], Awaitable[object]],
    socket_path: Path,
    nursery: trio.Nursery,
) -> None:
    await nursery.start(listen, socket_path, handler)
    name, *rest = command
    with trio.fail_after(300):
        result = await run(name, socket_path, *rest, "--connect-timeout", "0.5")
    assert result.returncode == 4
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert str(socket_path) in line


async def test_somebody_else_holds_the_monitor(socket_path: Path) -> None:
    async with serve(socket_path), await trio.open_unix_socket(socket_path) as other:
        assert await other.receive_some()  # greeted, and so served
        result = await run("status", socket_path, "--connect-timeout", "0.5")
    assert result.returncode == 4
    assert "another client holds it" in result.stderr


async def test_qemu_answers_too_slowly(socket_path: Path) -> None:
    async with serve(socket_path, reply_delay=500_000_000):
        result = await run("status", socket_path, "--timeout", "1")
    assert result.returncode == 4
    assert "within 1 s" in result.stderr


async def test_a_vm_without_a_balloon(socket_path: Path) -> None:
    async with serve(socket_path, balloon=None):
        for command in (["status"], ["resize", "1G"], ["reclaim"], ["watch"]):
            name, *rest = command
            result = await run(name, socket_path, *rest, "--json")
            assert result.returncode == 5
            assert result.stdout == ""
            assert "virtio-balloon-pci" in line_of(result)


@pytest.mark.parametrize("path", ["/nowhere/qmp", "/etc/passwd", "/"])
def test_no_socket(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of("resize", path, "1G") == 4
    assert path in only_line(capsys)
