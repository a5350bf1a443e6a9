"""What the tests of the lab's parts share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the lab a cache folder of the test's own."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("QMPBALLOON_CACHE", str(folder))
    return folder
