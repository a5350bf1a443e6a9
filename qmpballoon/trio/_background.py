"""Tasks behind an ``async with`` block that its user does not see.

A plain nursery shows: it puts what the block raises into an exception group, and
its tasks end as soon as anything around it is cancelled.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from types import TracebackType
    from typing import Self

__all__ = ["Background"]


class Background:
    """Runs tasks that end with its block, and wraps no exception.

    Being cancelled from outside does not end them, only the end of the block does: on
    its way out the block may have to put things in order under a shield, and would
    wait in vain for answers if nobody read them any more.
    """

    def __init__(self) -> None:
        self._scopes: set[trio.CancelScope] = set()

    def start_soon(self, task: Callable[[], Awaitable[None]]) -> None:
        """Start a task."""
        scope = trio.CancelScope(shield=True)
        self._scopes.add(scope)
        self._nursery.start_soon(self._run, task, scope)

    async def _run(
        self, task: Callable[[], Awaitable[None]], scope: trio.CancelScope
    ) -> None:
        with scope:
            await task()
        self._scopes.discard(scope)

    async def __aenter__(self) -> Self:
        self._manager = trio.open_nursery()
        self._nursery = await self._manager.__aenter__()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for scope in self._scopes:
            scope.cancel()
        # The block's exception is not shown to the nursery, which would put it
        # into a group.
        await self._manager.__aexit__(None, None, None)
