"""Running a test on asyncio."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Coroutine


def run(main: Coroutine[object, object, None]) -> None:
    """Run a test; nothing may be left running after it."""

    async def whole() -> None:
        async with asyncio.timeout(300):
            await main
        await asyncio.sleep(0)
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        assert not [task for task in rest if not task.done()]

    asyncio.run(whole())
