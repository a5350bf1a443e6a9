"""A real QEMU for the fake to be held against, without a guest in it."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import select
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

import pytest

from qmpballoon.testing.lab import LabError
from qmpballoon.testing.lab._parts import find_qemu

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


DEADLINE = 30.0
"""Seconds that a QEMU gets to start, or to answer, on a busy machine."""


class RealMonitor:
    """A QMP connection to a real QEMU: bytes out, whole lines in."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._rest = b""
        self._kept: list[socket.socket] = []
        self.closed = False

    def send(self, data: bytes, descriptors: Sequence[str] = ()) -> None:
        """Send all of it; a QEMU that has gone does not mind.

        Args:
            data: The bytes.
            descriptors: The kinds of the file descriptors that go with them, as
                ``transcripts.Chunk`` has them.
        """
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            if descriptors:
                data = data[self._send_descriptors(data, descriptors) :]
            self._sock.sendall(data)

    def _send_descriptors(self, data: bytes, kinds: Sequence[str]) -> int:
        with contextlib.ExitStack() as stack:
            numbers: list[int] = []
            for kind in kinds:
                if kind == "file":
                    numbers.append(
                        stack.enter_context(Path(os.devnull).open()).fileno()
                    )
                    continue
                ours, theirs = socket.socketpair()
                numbers.append(stack.enter_context(theirs).fileno())
                if kind == "closed":
                    ours.close()
                else:
                    self._kept.append(ours)
            return socket.send_fds(self._sock, [data], numbers)

    def hand_over(self, data: bytes) -> RealMonitor:
        """Send bytes with one end of a connection; return a monitor on the other."""
        ours, theirs = socket.socketpair()
        with theirs:
            socket.send_fds(self._sock, [data], [theirs.fileno()])
        self._kept.append(ours)
        return RealMonitor(ours)

    def take(self) -> RealMonitor:
        """Return a monitor on the same connection, which nobody closes."""
        return RealMonitor(self._sock.dup())

    def leave(self) -> None:
        """Close the connection."""
        self._sock.close()

    def close(self) -> None:
        """Close the other ends of the sockets that were sent."""
        for each in self._kept:
            each.close()

    def receive(self, lines: int) -> bytes:
        """Return what comes: so many lines, and more if they came with them.

        Fewer, if QEMU closes the connection or does not say them in time.
        """
        data, self._rest = self._rest, b""
        deadline = time.monotonic() + DEADLINE
        while data.count(b"\n") < lines and not self.closed:
            left = max(deadline - time.monotonic(), 0)
            if not select.select([self._sock], [], [], left)[0]:
                return data
            chunk = self._read()
            self.closed = not chunk
            data += chunk
        if not self.closed:
            end = data.rfind(b"\n") + 1
            data, self._rest = data[:end], data[end:]
        return data

    def receive_all(self) -> bytes:
        """Return what comes until QEMU closes the connection, which it must."""
        return self.receive(sys.maxsize)

    def receive_exactly(self, size: int) -> bytes:
        """Return so many bytes, which need not be whole lines.

        Fewer, if QEMU closes the connection or does not say them in time.
        """
        deadline = time.monotonic() + DEADLINE
        while len(self._rest) < size and not self.closed:
            left = max(deadline - time.monotonic(), 0)
            if not select.select([self._sock], [], [], left)[0]:
                break
            chunk = self._read()
            self.closed = not chunk
            self._rest += chunk
        data, self._rest = self._rest[:size], self._rest[size:]
        return data

    def execute(self, command: str, **arguments: object) -> dict[str, Any]:
        """Run a command; return the whole answer, events left out."""
        request = {"execute": command, "arguments": arguments}
        self.send(json.dumps(request).encode())
        while True:
            for line in self.receive(1).splitlines():
                answer: dict[str, Any] = json.loads(line)
                if "event" not in answer:
                    return answer
            if self.closed:
                raise EOFError(command)

    def _read(self) -> bytes:
        try:
            return self._sock.recv(1 << 16)
        except ConnectionResetError:
            return b""


required = False
"""Whether a QEMU that cannot be had is a failure."""


def wanted(version: str) -> str:
    """Return the program to use, or the version itself where none is named.

    Args:
        version: Such as ``7.2``; ``QMPBALLOON_QEMU_7_2`` may name the program.
    """
    return os.environ.get(f"QMPBALLOON_QEMU_{version.replace('.', '_')}", version)


FETCHED: Final = ("7.2", "10.0", "11.1")
"""Versions that the lab fetches."""

VERSIONS: Final = (*FETCHED, *(["8.2"] if wanted("8.2") != "8.2" else []))
"""Versions that there are: no release of Debian has 8.2, so its program is named."""


def unavailable(version: str, error: LabError) -> NoReturn:
    """Skip a test for want of its QEMU, or fail it where that is asked for."""
    reason = f"no QEMU {version}: {error}"
    if required:
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


@functools.cache
def qemu_command(version: str) -> tuple[str, ...]:
    """Return how to start QEMU of a version; skips the test where it cannot be had."""
    try:
        return find_qemu(wanted(version), lambda _: None).command
    except LabError as error:
        unavailable(version, error)


@contextlib.contextmanager
def real_qemu(
    command: Sequence[str], folder: Path, options: Sequence[str]
) -> Iterator[RealMonitor]:
    """Run a QEMU as :func:`running_qemu` does, and connect to it."""
    with running_qemu(command, folder, options) as path, connected(path) as sock:
        monitor = RealMonitor(sock)
        try:
            yield monitor
        finally:
            monitor.close()


@contextlib.contextmanager
def running_qemu(
    command: Sequence[str], folder: Path, options: Sequence[str]
) -> Iterator[Path]:
    """Run a QEMU, stopped before its first instruction.

    Args:
        command: Starts it.
        folder: For its socket.
        options: What it has beside the machine.
    """
    path = folder / "qmp"
    path.unlink(missing_ok=True)
    process = subprocess.Popen(
        [
            *command,
            *("-machine", "q35", "-accel", "tcg", "-nodefaults", "-nographic", "-S"),
            *("-monitor", "none", "-qmp", f"unix:{path},server=on,wait=off"),
            *options,
        ],
    )
    try:
        yield path
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def fake_qemu(version: str, folder: Path) -> Iterator[Path]:
    """Run ``qmpballoon fake``, and return its socket's path."""
    path = folder / "fake"
    program = "from qmpballoon.cli import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", program, "fake", str(path), "--profile", version],
        stdout=subprocess.DEVNULL,
    )
    try:
        yield path
    finally:
        process.terminate()
        process.wait()


@contextlib.contextmanager
def connected(path: Path) -> Iterator[socket.socket]:
    """Connect to a monitor that may have to start first."""
    deadline = time.monotonic() + DEADLINE
    with socket.socket(socket.AF_UNIX) as sock:
        while True:
            try:
                sock.connect(str(path))
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
        yield sock
