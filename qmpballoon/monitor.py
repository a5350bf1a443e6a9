"""The seam between what decides and what does I/O.

Everything in :mod:`qmpballoon.balloon` is written against :class:`Monitor` and
awaits nothing else. So the same source runs on trio, on asyncio over a
connection that somebody else owns, in blocking code, and on a virtual clock in
tests. To drive a balloon over a transport of your own, write these methods. If it has
a ``name``, messages begin with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import AbstractContextManager

__all__ = ["Monitor", "prefix_name"]


@runtime_checkable
class Monitor(Protocol):
    """All that balloon code may await or ask for."""

    async def execute(
        self, command: str, arguments: Mapping[str, object] | None = None
    ) -> object:
        """Run one QMP command and return what QEMU returns for it.

        It has to end in bounded time: an implementation has a deadline of its
        own for each command.

        Args:
            command: The command's name, as in the QMP reference.
            arguments: Its arguments, JSON types only.

        Returns:
            The decoded value of ``return``.

        Raises:
            CommandError: QEMU refused the command.
            MonitorError: No answer can be had. Where the outcome is open, the
                error names the command in ``unknown_outcome``.

        Cancellation: if a call is cancelled, the command may or may not have
        been carried out. The monitor stays usable.
        """
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait for so many seconds; zero or less only gives way to others."""
        ...

    def now(self) -> float:
        """Return seconds on a clock that never goes back; its zero means nothing."""
        ...

    def shield(self, seconds: float) -> AbstractContextManager[object]:
        """Let what is awaited inside go on although the caller was cancelled.

        Giving a guest its memory back on the way out takes a command, and on an
        event loop whose cancellation persists that command would be cancelled
        too. Where cancellation strikes once, ``contextlib.nullcontext()`` will do.

        Args:
            seconds: For so long at most.
        """
        ...


def prefix_name(monitor: object, message: str) -> str:
    """Return a message about a VM with the name of its monitor, if any, before it."""
    name = getattr(monitor, "name", None)
    return f"{name}: {message}" if name else message
