"""Monitors over libvirt's passthrough: in plain calls, on asyncio and on trio."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import deque
from concurrent.futures import Future
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from qmpballoon._checks import require_command, require_seconds
from qmpballoon._transport import proc
from qmpballoon._transport.asyncio_time import AsyncioTime
from qmpballoon._transport.errors import not_answered, retold
from qmpballoon.errors import (
    MonitorClosed,
    MonitorError,
    MonitorTimeout,
    MonitorUnreachable,
    command_error,
)
from qmpballoon.qmp.connection import encode
from qmpballoon.qmp.messages import Failure, Return, parse

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import AbstractContextManager

    from qmpballoon.libvirt.domain import Domain

__all__ = [
    "COMMAND_TIMEOUT",
    "AsyncioLibvirtMonitor",
    "LibvirtMonitor",
    "TrioLibvirtMonitor",
]

COMMAND_TIMEOUT: Final = 10.0
"""Seconds for one command, waiting for its turn included."""

# What libvirt's error codes mean for a monitor; with any other the command may
# have been carried out. Source: virterror.h.
_NOT_RUNNING: Final = ("VIR_ERR_NO_DOMAIN", "VIR_ERR_OPERATION_INVALID")
_NOT_ALLOWED: Final = (
    "VIR_ERR_NO_SUPPORT",
    "VIR_ERR_OPERATION_DENIED",
    "VIR_ERR_ACCESS_DENIED",
    "VIR_ERR_AUTH_FAILED",
)


class _Passthrough:
    """Commands to a domain, one after the other, from threads.

    In the order in which they were given: libvirt serves threads that wait for the
    same VM in any, and what undoes a command that was given up has to come after it.
    """

    def __init__(self, domain: Domain, *, command_timeout: float) -> None:
        super().__init__()
        self.name: str = f"libvirt's monitor of {domain.name()}"
        self.pid: int | None = None
        self._command_timeout = require_seconds(command_timeout, "command_timeout")
        self._domain = domain
        self._libvirt = import_module("libvirt")
        self._pass_on = import_module("libvirt_qemu").qemuMonitorCommand
        self._given: deque[tuple[Future[object], str, str]] = deque()
        self._turn = threading.Lock()

    def resident(self) -> int | None:
        """Return QEMU's resident memory in bytes, ``None`` if it cannot be known."""
        return None if self.pid is None else proc.resident(self.pid)

    def _submit(
        self, command: str, arguments: Mapping[str, object] | None
    ) -> Future[object]:
        """Begin to run a command; what comes of it is the future's."""
        require_command(command, arguments)
        request = encode({"execute": command, "arguments": dict(arguments or {})})
        future = Future[object]()
        self._given.append((future, command, request.decode()))
        # A daemon: one that hangs is not to hold up the end of the program.
        threading.Thread(target=self._work, name=self.name, daemon=True).start()
        return future

    def _work(self) -> None:
        """Pass on what was given and not passed on yet."""
        with self._turn:
            # All of it: where Ctrl-C strikes, one may be without a thread.
            while self._given:
                future, command, request = self._given.popleft()
                try:
                    future.set_result(self._run(command, request))
                except BaseException as error:  # noqa: BLE001 - whoever waits is told
                    future.set_exception(error)

    def _run(self, command: str, request: str) -> object:
        try:
            answer = self._pass_on(self._domain, request, 0)
        except self._libvirt.libvirtError as error:
            raise self._translated(command, error) from error
        match parse(json.loads(answer)):
            case Return(value):
                return value
            case Failure(error_class, desc):
                raise command_error(command, error_class, desc, self.name)
            case other:
                raise AssertionError(f"libvirt passed on {other!r}")

    def _translated(self, command: str, error: Any) -> MonitorError:  # noqa: ANN401
        """Say in this library's exceptions what libvirt raised."""
        said = f"{self.name}: {error.get_error_message()}"
        code = error.get_error_code()
        if code in self._codes(*_NOT_RUNNING):
            return MonitorClosed(f"{said}; start the VM")
        if code in self._codes(*_NOT_ALLOWED):
            return MonitorUnreachable(
                f"{said}; open a QEMU connection that may write, as a user who may"
            )
        if code in self._codes("VIR_ERR_OPERATION_TIMEOUT"):
            return MonitorTimeout(f"{said}; something else keeps the VM busy")
        return retold(MonitorClosed(said), (command,))

    def _codes(self, *names: str) -> set[object]:
        return {getattr(self._libvirt, name, None) for name in names}

    def _late(self, command: str) -> MonitorError:
        late = not_answered(self.name, command, self._command_timeout)
        return retold(late, (command,))


class LibvirtMonitor(_Passthrough):
    """A monitor over libvirt, in plain calls; threads may share it.

    Args:
        domain: A ``libvirt.virDomain``.
        command_timeout: Seconds for each command.

    Attributes:
        name: What messages call it.
        pid: The process id of QEMU, ``None`` until :func:`find_balloon` has found it.
    """

    def execute(
        self, command: str, arguments: Mapping[str, object] | None = None
    ) -> object:
        """Run one QMP command and return what QEMU returns for it.

        Raises:
            CommandError: QEMU refused the command.
            MonitorError: No answer can be had.

        Ctrl-C: the command may or may not have been carried out.
        """
        future = self._submit(command, arguments)
        timeout = min(self._command_timeout, threading.TIMEOUT_MAX)
        try:
            return future.result(timeout)
        except TimeoutError:
            raise self._late(command) from None

    def sleep(self, seconds: float) -> None:
        """Wait for so many seconds; zero or less does nothing."""
        time.sleep(max(seconds, 0.0))

    def now(self) -> float:
        """Return the monotonic time in seconds."""
        return time.monotonic()


class AsyncioLibvirtMonitor(_Passthrough, AsyncioTime):
    """A :class:`~qmpballoon.monitor.Monitor` over libvirt, on asyncio.

    Args and attributes: as :class:`LibvirtMonitor`.
    """

    async def execute(
        self, command: str, arguments: Mapping[str, object] | None = None
    ) -> object:
        """Run one QMP command and return what QEMU returns for it.

        Raises:
            CommandError: QEMU refused the command.
            MonitorError: No answer can be had.

        Cancellation: the command may or may not have been carried out.
        """
        future = asyncio.wrap_future(self._submit(command, arguments))
        # What comes too late is of no interest, but asyncio would log it.
        future.add_done_callback(lambda late: late.cancelled() or late.exception())
        await self.wait(future, self.now() + self._command_timeout)
        if not future.done():
            raise self._late(command)
        return future.result()


class TrioLibvirtMonitor(_Passthrough):
    """A :class:`~qmpballoon.monitor.Monitor` over libvirt, on trio.

    Args and attributes: as :class:`LibvirtMonitor`.
    """

    def __init__(self, domain: Domain, *, command_timeout: float) -> None:
        super().__init__(domain, command_timeout=command_timeout)
        self._trio = import_module("trio")  # programs on asyncio do without

    async def execute(
        self, command: str, arguments: Mapping[str, object] | None = None
    ) -> object:
        """Run one QMP command and return what QEMU returns for it.

        Raises:
            CommandError: QEMU refused the command.
            MonitorError: No answer can be had.

        Cancellation: the command may or may not have been carried out.
        """
        trio = self._trio
        await trio.lowlevel.checkpoint_if_cancelled()
        token, done = trio.lowlevel.current_trio_token(), trio.Event()

        def tell(_: Future[object]) -> None:
            with suppress(trio.RunFinishedError):  # nobody waits any more
                token.run_sync_soon(done.set)

        future = self._submit(command, arguments)
        future.add_done_callback(tell)
        with trio.move_on_after(self._command_timeout):
            await done.wait()
            return future.result()
        raise self._late(command)

    async def sleep(self, seconds: float) -> None:
        """Wait for so many seconds.

        Cancellation: at once, with no effect.
        """
        await self._trio.sleep(max(seconds, 0.0))

    def now(self) -> float:
        """Return trio's time in seconds."""
        now: float = self._trio.current_time()
        return now

    def shield(self, seconds: float) -> AbstractContextManager[object]:
        """Let what is awaited inside go on, cancelled or not, for so long at most."""
        scope: AbstractContextManager[object]
        scope = self._trio.move_on_after(seconds, shield=True)
        return scope
