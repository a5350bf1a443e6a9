"""The same calls have the same results on every front end, on a real QEMU."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import pytest
import trio
from frontends import ALL, on_each
from scenarios import CACHE, MEMORY, SCENARIOS, interrupting_a_reclaim

from qmpballoon.testing import lab

if TYPE_CHECKING:
    from frontends import FrontEnd

pytestmark = pytest.mark.qemu


@on_each(*ALL)
async def test_on_qemu(front: FrontEnd) -> None:
    async with lab.boot(memory=MEMORY, cache=CACHE, saved=True) as guest:
        for scenario in SCENARIOS:
            if front.name == "blocking" and scenario is interrupting_a_reclaim:
                continue  # Ctrl-C is for the main thread, where this loop runs
            run = functools.partial(front.run, scenario(front, str(guest.socket)))
            await trio.to_thread.run_sync(run)
            assert await guest.oom_kills() == 0, scenario.__name__
