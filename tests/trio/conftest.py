"""What the tests of trio's front end share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Generator


@pytest.fixture
def no_descriptor_leaks() -> Generator[None]:
    """Let no test leave a descriptor open: neither by success nor by failure."""
    before = descriptors()
    yield
    assert descriptors() == before


def descriptors() -> dict[str, str]:
    """Return what is open: descriptor, and what it is to."""
    seen: dict[str, str] = {}
    for link in Path("/proc/self/fd").iterdir():
        try:
            seen[link.name] = str(link.readlink())
        except FileNotFoundError:  # the one that listed the folder
            continue
    return seen
