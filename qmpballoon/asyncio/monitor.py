"""A connected ``QMPClient`` as a monitor."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Final

from attrs import define
from qemu.qmp import (
    ExecInterruptedError,
    ExecuteError,
    QMPError,
    Runstate,
    StateError,
)

from qmpballoon._checks import require_command, require_seconds
from qmpballoon._transport import proc
from qmpballoon._transport.asyncio_time import AsyncioTime
from qmpballoon._transport.errors import not_answered, retold
from qmpballoon.asyncio.subscription import EventSubscription, bound
from qmpballoon.errors import MonitorClosed, ProtocolError, command_error
from qmpballoon.qmp import MAX_IN_FLIGHT
from qmpballoon.qmp.connection import encode
from qmpballoon.qmp.events import EventBuffer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from qemu.qmp import QMPClient

__all__ = ["COMMAND_TIMEOUT", "UNREAD_EVENTS", "AsyncioMonitor", "line"]

COMMAND_TIMEOUT: Final = 10.0
"""Seconds for one command, waiting for its turn included."""
UNREAD_EVENTS: Final = 1000
"""How many events a client may hold for a reader that does not come."""


class AsyncioMonitor(AsyncioTime):
    """A :class:`~qmpballoon.monitor.Monitor` over a connected ``QMPClient``.

    Tasks may share it. At most eight of its commands are with QEMU at a time;
    further ones wait. What others send through the client does not count.

    Args:
        client: Connected, and used by whomever else it pleases.
        name: What messages call it.
        command_timeout: Seconds for each command that gives none of its own.
        unread_events: As for :func:`find_balloon`.

    Attributes:
        client: The client.
        name: What messages call it.
        pid: The process id of QEMU, ``None`` where it is not known.
    """

    def __init__(
        self,
        client: QMPClient,
        *,
        name: str | None = None,
        command_timeout: float = COMMAND_TIMEOUT,
        unread_events: int | None = UNREAD_EVENTS,
    ) -> None:
        super().__init__()
        self.client = client
        self.name: str = name or f"the monitor of {client.name or 'a qemu.qmp client'}"
        self.pid: int | None = None
        self._command_timeout = require_seconds(command_timeout, "command_timeout")
        self._turns = asyncio.Semaphore(MAX_IN_FLIGHT)
        self._tasks: set[asyncio.Task[object]] = set()  # asyncio's own are weak
        if unread_events is not None:
            bound(client.events, unread_events)

    def resident(self) -> int | None:
        """Return QEMU's resident memory in bytes, ``None`` if it cannot be known."""
        return None if self.pid is None else proc.resident(self.pid)

    async def execute(
        self,
        command: str,
        arguments: Mapping[str, object] | None = None,
        *,
        timeout: float | None = None,
    ) -> object:
        """Run one QMP command and return what QEMU returns for it.

        Args:
            command: The command's name, as in the QMP reference.
            arguments: Its arguments, JSON types only.
            timeout: Seconds for the answer, waiting for a turn included;
                ``math.inf`` for ever. By default the monitor's own.

        Raises:
            CommandError: QEMU refused the command.
            MonitorTimeout: No answer in time. The monitor stays usable.
            MonitorClosed: The client is not connected (any more).
            ProtocolError: The peer sent nonsense.
            TypeError: The command is no name, or the arguments are no JSON.
            ValueError: Likewise, by their values.

        Cancellation: if a call is cancelled, the command may or may not have
        been carried out; its answer is swallowed. The monitor stays usable.
        """
        if timeout is None:
            timeout = self._command_timeout
        else:
            require_seconds(timeout, "timeout")
        require_command(command, arguments)
        call = _Call(command, _copied(arguments))
        task = asyncio.create_task(self._exchange(call))
        self._tasks.add(task)
        task.add_done_callback(self._forget)
        try:
            await self.wait(task, self.now() + timeout)
        finally:
            if not call.sent:
                task.cancel()
        if not task.done() or task.cancelled():
            raise retold(not_answered(self.name, command, timeout), call.unknown)
        error = task.exception()
        if error is None:
            return task.result()
        raise self._translated(error, call) from error

    def subscribe(self, *names: str, capacity: int = 64) -> EventSubscription:
        """Return a subscription to QEMU's events; it begins with its ``with`` block.

        Args:
            names: Which events, such as ``"BALLOON_CHANGE"``; none means all.
            capacity: How many to hold while nobody reads, at least 1.

        Raises:
            TypeError: A name is no text, or the capacity no whole number.
            ValueError: The capacity is below 1.
        """
        return EventSubscription(self, EventBuffer(names, capacity))

    async def _exchange(self, call: _Call) -> object:
        async with self._turns:
            call.sent = True
            return await self.client.execute(call.command, call.arguments)

    def _forget(self, task: asyncio.Task[object]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # it was told to the caller, if there still was one

    def _translated(self, error: BaseException, call: _Call) -> BaseException:
        """Say in this library's exceptions what qemu.qmp raised."""
        match error:
            case ExecuteError():
                kind, desc = error.error_class, str(error)
                return command_error(call.command, kind, desc, self.name)
            case StateError():
                return self._closed()
            case ExecInterruptedError():
                return retold(self._closed(), call.unknown)
            case QMPError():
                return ProtocolError(f"{self.name}: {line(error)}", call.unknown)
            case _:
                return error

    def _closed(self) -> MonitorClosed:
        return MonitorClosed(f"{self.name} is not connected (any more)")

    def _raise_if_closed(self) -> None:
        if self.client.runstate is not Runstate.RUNNING:
            raise self._closed()


@define
class _Call:
    """One command of one caller."""

    command: str
    arguments: Mapping[str, object] | None
    sent: bool = False

    @property
    def unknown(self) -> tuple[str, ...]:
        return (self.command,) if self.sent else ()


def _copied(arguments: Mapping[str, object] | None) -> Mapping[str, object] | None:
    """Return what JSON makes of the arguments.

    qemu.qmp encodes them later, in a task whose end is that of the connection.
    """
    if arguments is None:
        return None
    copied: dict[str, object] = json.loads(encode(arguments))
    return copied


def line(error: Exception) -> str:
    """Return the first line of what an error says."""
    return str(error).partition("\n")[0] or type(error).__name__
