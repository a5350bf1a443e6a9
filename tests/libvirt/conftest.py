"""What the tests of libvirt's front end share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from fake_libvirt import FakeDomain, install
from scenarios import CACHE, MEMORY

from qmpballoon import blocking
from qmpballoon.testing import GuestConfig, MachineConfig, serve

if TYPE_CHECKING:
    from collections.abc import Iterator

MACHINE = MachineConfig(memory=MEMORY, guest=GuestConfig(used=60 << 20, cache=CACHE))


@pytest.fixture
def domain(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDomain]:
    install(monkeypatch)
    with serve(MACHINE) as fake, blocking.open_monitor(fake.socket) as monitor:
        domain = FakeDomain(monitor)
        domain.hang.set()
        yield domain
