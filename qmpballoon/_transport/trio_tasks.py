"""Background tasks on trio that do not change the exceptions of their block.

A plain nursery wraps an exception of its block in an exception group. Everything here
that runs tasks behind an ``async with`` block of its users goes through
:class:`BackgroundTasks` instead, so that users catch exceptions as they were raised.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from types import TracebackType
    from typing import Self

__all__ = ["BackgroundTasks"]


class BackgroundTasks:
    """Runs tasks until its ``async with`` block ends; wraps no exception of the block.

    Ctrl-C is raised in the block, whenever it comes: no task ever gets a
    :exc:`KeyboardInterrupt`.

    The end of the block cancels the tasks and waits for them. If a task raises, the
    block is cancelled, and the exception comes in a group.

    Args:
        shield: Protect the tasks from cancellations outside the block, so that only
            the end of the block cancels them. This is for blocks that still need their
            tasks while they clean up, under a shield of their own.
    """

    def __init__(self, *, shield: bool) -> None:
        self._shield = shield
        # One for each running task. A list: mostly there is one, and a set takes three
        # times the memory.
        self._scopes: list[trio.CancelScope] = []
        self._all_ended = trio.lowlevel.ParkingLot()
        self._is_ending = False

    def start_soon(self, task: Callable[..., Awaitable[object]], *args: object) -> None:
        """Start a task."""
        self._nursery.start_soon(self._run, self._add_scope(), task, *args)

    async def start(
        self, task: Callable[..., Awaitable[object]], *args: object
    ) -> None:
        """Start a task and wait until it says so by its ``task_status``.

        Raises:
            Exception: Whatever the task raises before that, unwrapped.
        """
        await self._nursery.start(self._run, self._add_scope(), task, *args)

    async def wait(self) -> None:
        """Wait until all tasks have ended by themselves."""
        while self._scopes:
            await self._all_ended.park()

    def _add_scope(self) -> trio.CancelScope:
        scope = trio.CancelScope(shield=self._shield)
        self._scopes.append(scope)
        if self._is_ending:  # started by a task that has not noticed its own end
            scope.cancel()
        return scope

    @trio.lowlevel.enable_ki_protection
    async def _run(
        self,
        scope: trio.CancelScope,
        task: Callable[..., Awaitable[object]],
        *args: object,
        **task_status: object,
    ) -> None:
        try:
            with scope:
                await task(*args, **task_status)
        finally:
            self._scopes.remove(scope)
            if not self._scopes:
                self._all_ended.unpark_all()

    @trio.lowlevel.enable_ki_protection
    async def __aenter__(self) -> Self:
        self._manager = trio.open_nursery()
        self._nursery = await self._manager.__aenter__()
        return self

    @trio.lowlevel.enable_ki_protection
    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._is_ending = True
        for scope in self._scopes:
            scope.cancel()
        # The nursery is not shown the block's exception, so it cannot wrap it.
        try:
            await self._manager.__aexit__(None, None, None)
        except BaseExceptionGroup as group:
            # Ctrl-C while the tasks end; trio raises it where they are waited for.
            pressed, others = group.split(KeyboardInterrupt)
            if pressed is None or others is not None:
                raise
            raise KeyboardInterrupt from None
