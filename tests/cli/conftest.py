"""What the command's tests have in common."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path


@pytest.fixture
def socket_path(tmp_path: Path) -> Path:
    """Where a VM's monitor is."""
    return tmp_path / "qmp"


@pytest.fixture
def listener(tmp_path: Path) -> Generator[socket.socket]:
    """A socket that tells whether anybody has connected."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "qmp"))
        listening.listen()
        listening.settimeout(0)
        yield listening
