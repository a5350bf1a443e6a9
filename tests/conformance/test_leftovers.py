"""What a client leaves unread in a real QEMU harms none that comes after it."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest
from real import FETCHED, connected, qemu_command, running_qemu
from test_survival import NEGOTIATION

from qmpballoon import blocking

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.qemu, pytest.mark.conformance]

ROUNDS = (
    20  # QEMU has an answer left for the next client after a third of them, or more
)
# The ids are those that our own client gives its commands.
REQUESTS = b"".join(
    b'{"execute": "query-qmp-schema", "id": %d}' % ident for ident in range(1, 10)
)


@pytest.mark.parametrize("version", FETCHED)
def test_answers_that_an_earlier_client_left(version: str, tmp_path: Path) -> None:
    with running_qemu(qemu_command(version), tmp_path, ["-m", "64"]) as path:
        with connected(path):
            pass
        for _ in range(ROUNDS):
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect(str(path))
                sock.sendall(NEGOTIATION + REQUESTS)
                sock.recv(1)  # it has begun
            with blocking.open_monitor(str(path)) as monitor:
                assert monitor.execute("query-name") == {}
