"""What the command's tests have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def socket_path(tmp_path: Path) -> Path:
    """Where a VM's monitor is."""
    return tmp_path / "qmp"
