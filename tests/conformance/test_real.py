"""What is read from a QEMU is whole lines, and none is lost; needs no QEMU."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest
from real import RealMonitor

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def qemu() -> Iterator[tuple[RealMonitor, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield RealMonitor(ours), theirs


def test_a_line_too_many_is_seen_with_the_next_answer(
    qemu: tuple[RealMonitor, socket.socket],
) -> None:
    monitor, end = qemu
    end.sendall(b"answer\nand mo")
    assert monitor.receive(1) == b"answer\n"
    end.sendall(b"re\nnext\n")
    assert monitor.receive(1) == b"and more\nnext\n"
    assert monitor.receive(0) == b""
    end.sendall(b"the end\n")
    assert monitor.receive(1) == b"the end\n"


def test_all_is_what_comes_until_it_closes(
    qemu: tuple[RealMonitor, socket.socket],
) -> None:
    monitor, end = qemu
    end.sendall(b"answer\nlast wor")
    assert monitor.receive(1) == b"answer\n"
    end.sendall(b"ds")
    end.close()
    assert monitor.receive_all() == b"last words"
    assert monitor.closed


def test_too_few_lines_are_waited_for_and_given_up(
    qemu: tuple[RealMonitor, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monitor, end = qemu
    monkeypatch.setattr("real.DEADLINE", 0)
    end.sendall(b"answer\n")
    assert monitor.receive(2) == b"answer\n"
    assert not monitor.closed
