"""What a running command tells systemd."""

from __future__ import annotations

import os
import socket
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import pytest
import trio
from command import PROGRAM, serve

from qmpballoon.cli import _session

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path


@contextmanager
def listening(address: str | bytes) -> Generator[socket.socket]:
    kind = socket.SOCK_DGRAM | socket.SOCK_NONBLOCK
    with socket.socket(socket.AF_UNIX, kind) as listener:
        listener.bind(address)
        yield listener


async def receive(listener: socket.socket) -> str:
    with trio.fail_after(300):
        await trio.lowlevel.wait_readable(listener)
    return listener.recv(4096).decode()


@pytest.mark.parametrize("abstract", [False, True])
@pytest.mark.parametrize("command", ["fleet run --period 0.2", "exporter --listen 0"])
async def test_systemd_is_told_what_the_service_does(
    *, abstract: bool, command: str, socket_path: Path, tmp_path: Path
) -> None:
    path = f"\0qmpballoon-{os.getpid()}" if abstract else str(tmp_path / "notify")
    environment = {
        **os.environ,
        "NOTIFY_SOCKET": path.replace("\0", "@"),
        "WATCHDOG_USEC": "200000",
    }
    environment.pop("WATCHDOG_PID", None)
    words = [*command.split(), str(socket_path)]
    with listening(path) as systemd:
        async with serve(socket_path), trio.open_nursery() as nursery:
            process = await nursery.start(
                partial(
                    trio.run_process,
                    [*PROGRAM, *words],
                    capture_stdout=True,
                    capture_stderr=True,
                    env=environment,
                )
            )
            assert await receive(systemd) == "READY=1"
            for _ in range(3):
                assert await receive(systemd) == "WATCHDOG=1"
            process.terminate()
            while (said := await receive(systemd)) == "WATCHDOG=1":
                pass
            assert said == "STOPPING=1"


async def test_a_service_that_does_nothing_does_not_feed_the_watchdog(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    del autojump_clock
    said: list[tuple[float, str]] = []
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    begun = trio.current_time()
    monkeypatch.setattr(
        _session,
        "_notify",
        lambda state: said.append((trio.current_time() - begun, state)),
    )
    async with _session.serve(lambda: trio.current_time() - begun < 40):
        await trio.sleep(100)
    assert said == [
        (0, "READY=1"),
        (0, "WATCHDOG=1"),
        (15, "WATCHDOG=1"),
        (30, "WATCHDOG=1"),
        (100, "STOPPING=1"),
    ]


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"},  # it is another process'
        {"WATCHDOG_USEC": "soon"},
        {"WATCHDOG_USEC": "0"},
        {"NOTIFY_SOCKET": "vsock:2:1234"},
        {"NOTIFY_SOCKET": "/nowhere/notify"},
        {"NOTIFY_SOCKET": "@" + "x" * 200},
    ],
)
async def test_where_systemd_does_not_listen_nothing_happens(
    environment: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    autojump_clock: trio.testing.MockClock,
) -> None:
    del autojump_clock
    for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    async with _session.serve(lambda: True):
        await trio.sleep(100)
