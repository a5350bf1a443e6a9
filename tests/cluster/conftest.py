"""A server without a password, for tests of what goes over it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from valkey_server import run_server

if TYPE_CHECKING:
    from collections.abc import Iterator

    from valkey_server import Server


@pytest.fixture(scope="session")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Run one for tests that leave it alone."""
    with run_server(tmp_path_factory.mktemp("bus")) as server:
        yield server
