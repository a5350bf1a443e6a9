"""Each example runs on a real guest, as it is."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pytest
import trio
from example_runs import RUNS, Run

from qmpballoon import GiB, MiB
from qmpballoon.testing import lab

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
async def test_on_a_real_guest(run: Run, tmp_path: Path) -> None:
    async with lab.boot(memory=1 * GiB, cache=600 * MiB, saved=True) as guest:
        there = partial(run.on, str(guest.socket), folder=tmp_path)
        await trio.to_thread.run_sync(there)
        assert await guest.oom_kills() == 0
