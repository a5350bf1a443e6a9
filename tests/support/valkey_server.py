"""A real server, Valkey's or Redis', in a folder of its own, that tests ill-treat."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

PATIENCE = 120.0  # seconds; ends only what hangs


def find_server() -> str:
    """Return the program; without one the test is skipped, or fails where CI is set."""
    found = shutil.which("valkey-server") or shutil.which("redis-server")
    if found is None:
        tell = pytest.fail if os.environ.get("CI") else pytest.skip
        tell("no server to try a cluster on: install Debian's package redis-server")
    return found


class Server:
    """A server on a unix socket, and where its configuration says so on TCP, too.

    Attributes:
        path: The socket.
    """

    def __init__(
        self, folder: Path, options: Sequence[str] = (), before: Sequence[str] = ()
    ) -> None:
        self.path = folder / "bus.sock"
        self._program = find_server()
        self._folder = folder
        self._options = options
        self._before = before
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, empty, and wait until it listens."""
        self._process = subprocess.Popen(
            [
                *(*self._before, self._program, "--dir", f"{self._folder}"),
                *("--unixsocket", f"{self.path}", "--port", "0", "--save", ""),
                *("--daemonize", "no", "--logfile", f"{self._folder / 'log'}"),
                *self._options,
            ]
        )
        give_up = time.monotonic() + PATIENCE
        while not self._is_listening():
            assert self._process.poll() is None, (self._folder / "log").read_text()
            assert time.monotonic() < give_up
            time.sleep(0.01)

    def _is_listening(self) -> bool:
        with socket.socket(socket.AF_UNIX) as client:
            return client.connect_ex(os.fspath(self.path)) == 0

    def kill(self) -> None:
        """Kill it."""
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None

    def stop(self) -> None:
        """Have it stand still; connections to it can still be made."""
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Let it go on."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)


@contextmanager
def run_server(folder: Path, *options: str) -> Iterator[Server]:
    """Run a server within the block."""
    server = Server(folder, options)
    try:
        server.start()
        yield server
    finally:
        server.kill()


def free_port() -> int:
    """Return a TCP port that nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
