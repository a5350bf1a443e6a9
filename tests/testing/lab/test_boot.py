"""Guests that cannot be booted are refused before anything is started."""

from __future__ import annotations

import pytest

from qmpballoon.sizes import GiB, MiB
from qmpballoon.testing import lab


@pytest.mark.parametrize(
    "options",
    [
        {"memory": MiB},
        {"machine": "z80"},
        {"cpus": 0},
        {"memory": GiB, "cache": GiB - MiB, "hog": MiB},
    ],
)
async def test_options_that_cannot_be_had(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="must be"):
        async with lab.boot(**options):  # type: ignore[arg-type]
            pass


async def test_a_paused_guest_cannot_work() -> None:
    with pytest.raises(ValueError, match="call fill_cache and hog once it is ready"):
        async with lab.boot(paused=True, hog=MiB):
            pass
