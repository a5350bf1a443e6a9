"""What a real QEMU survives, the fake survives; both are put to it here."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, TypeAlias

import pytest
from real import (
    VERSIONS,
    RealMonitor,
    connected,
    fake_qemu,
    qemu_command,
    running_qemu,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

NEGOTIATION = b'{"execute": "qmp_capabilities"}'


@contextlib.contextmanager
def real(version: str, folder: Path) -> Iterator[Path]:
    with running_qemu(qemu_command(version), folder, ["-m", "64"]) as path:
        yield path


Start: TypeAlias = "Callable[[str, Path], contextlib.AbstractContextManager[Path]]"
REAL = pytest.param(real, marks=[pytest.mark.qemu, pytest.mark.conformance])
BOTH = pytest.mark.parametrize("start", [REAL, fake_qemu], ids=["real", "fake"])


@contextlib.contextmanager
def client(path: Path) -> Iterator[RealMonitor]:
    """Connect and negotiate."""
    with connected(path) as sock:
        monitor = RealMonitor(sock)
        # What a client did not read, QEMU may send to the next one, before it greets.
        while b'"QMP"' not in (said := monitor.receive(1)):
            assert said
        monitor.send(NEGOTIATION)
        assert b'"return"' in monitor.receive(1)
        yield monitor


def is_alive(monitor: RealMonitor) -> bool:
    """Tell whether it comes back in step and answers."""
    monitor.send(b'\n\x01\n{"execute": "query-status", "id": "alive"}')
    data = b""
    while b'"id": "alive"' not in data and not monitor.closed:
        data = data[-100:] + monitor.receive(1)
    return not monitor.closed


@BOTH
@pytest.mark.parametrize("version", VERSIONS)
def test_a_megabyte_of_garbage(version: str, start: Start, tmp_path: Path) -> None:
    with start(version, tmp_path) as path, client(path) as monitor:
        monitor.send(b"garbage\xff{\n" * ((1 << 20) // 10))
        assert is_alive(monitor)


@BOTH
@pytest.mark.parametrize("opening", [b"[", b'{"a":'])
@pytest.mark.parametrize("version", VERSIONS)
def test_one_level_too_many(
    version: str, opening: bytes, start: Start, tmp_path: Path
) -> None:
    with start(version, tmp_path) as path, client(path) as monitor:
        monitor.send(opening * 1025)
        assert b"nesting depth limit exceeded" in monitor.receive(1)
        assert is_alive(monitor)


@BOTH
@pytest.mark.parametrize("version", VERSIONS)
def test_a_client_that_never_reads(version: str, start: Start, tmp_path: Path) -> None:
    with start(version, tmp_path) as path:
        with client(path) as monitor:
            # Some megabytes of answers, more than any socket holds.
            monitor.send(b'{"execute": "query-commands"}' * 300)
        with client(path) as monitor:
            assert is_alive(monitor)
