"""Monitors over libvirt's passthrough: for blocking code, on asyncio and on trio."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import threading
import time
from collections import deque
from concurrent.futures import Future, wait
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from attrs import define, field

from qmpballoon._checks import require_command, require_kind
from qmpballoon._transport.asyncio_clock import AsyncioClock
from qmpballoon._transport.error_messages import copy_error, make_command_timeout
from qmpballoon._transport.monitor_base import BlockingClock, MonitorBase, TrioClock
from qmpballoon._transport.own_monitor import DescriptorNotSentError
from qmpballoon.errors import (
    MonitorClosed,
    MonitorError,
    MonitorTimeout,
    MonitorUnreachable,
    make_command_error,
)
from qmpballoon.qmp.connection import encode
from qmpballoon.qmp.messages import Failure, Return, parse
from qmpballoon.qmp.own_monitor import GETFD

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from qmpballoon.libvirt.domain import Domain

__all__ = ["AsyncioLibvirtMonitor", "LibvirtMonitor", "TrioLibvirtMonitor"]

_log = logging.getLogger("qmpballoon.libvirt")

# libvirt's error codes that say that the command was not passed on. After any other,
# QEMU may have carried it out. Source: virterror.h.
_NOT_RUNNING: Final = ("VIR_ERR_NO_DOMAIN", "VIR_ERR_OPERATION_INVALID")
_NOT_ALLOWED: Final = (
    "VIR_ERR_NO_SUPPORT",
    "VIR_ERR_OPERATION_DENIED",
    "VIR_ERR_ACCESS_DENIED",
    "VIR_ERR_AUTH_FAILED",
)
# The daemon is on another host, or older than 8.2.
_NO_DESCRIPTORS: Final = ("VIR_ERR_ARGUMENT_UNSUPPORTED", "VIR_ERR_NO_SUPPORT")


class _Passthrough(MonitorBase):
    """Passes commands to a domain, one after the other, from threads.

    They are passed on in the order in which they were given. libvirt itself serves
    threads that wait for the same VM in any order. But if a command timed out, the one
    that undoes it must come after it.
    """

    def __init__(
        self,
        domain: Domain,
        *,
        name: str | None = None,
        command_timeout: float,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        require_kind(name, str, "name")
        if name is None:
            name = f"libvirt's monitor of {domain.name()}"
        super().__init__(
            name=name, pid=None, command_timeout=command_timeout, wall_clock=wall_clock
        )
        self._domain = domain
        self._libvirt = import_module("libvirt")
        self._passthrough = import_module("libvirt_qemu")
        self._given: deque[_Call] = deque()
        self._turn = threading.Lock()

    @property
    def takes_descriptors(self) -> bool:
        """Whether file descriptors may be sent; only trying tells whether they can.

        :meta private:
        """
        return True

    def _submit(
        self,
        command: str,
        arguments: Mapping[str, object] | None,
        descriptor: int | None = None,
    ) -> Future[object]:
        """Begin to run a command; the future gets its result.

        Args:
            command: The command.
            arguments: Its arguments.
            descriptor: A file descriptor; QEMU gets a copy with the command.
        """
        require_command(command, arguments)
        request = encode({"execute": command, "arguments": dict(arguments or {})})
        self._log_line(_log, logging.DEBUG, "%s: %s", self.name, command)
        # The caller may give up, and close its own before the thread has sent it.
        try:
            copy = None if descriptor is None else os.dup(descriptor)
        except OSError as error:
            raise DescriptorNotSentError(error.strerror) from None
        call = _Call(command, request.decode(), copy)
        self._given.append(call)
        # A daemon: a thread that hangs must not delay the end of the program.
        threading.Thread(target=self._work, name=self.name, daemon=True).start()
        return call.future

    def _work(self) -> None:
        """Pass on the commands that wait."""
        with self._turn:
            # Not only this thread's: Ctrl-C may have kept another from starting.
            while self._given:
                call = self._given.popleft()
                try:
                    call.future.set_result(self._run(call))
                except BaseException as error:  # noqa: BLE001 - raised to the caller
                    call.future.set_exception(error)

    def _run(self, call: _Call) -> object:
        command = call.command
        try:
            answer = self._pass_on(call)
        except self._libvirt.libvirtError as error:
            if call.descriptor is not None and self._is_refused(error):
                raise DescriptorNotSentError(error.get_error_message()) from None
            raise self._translate(command, error) from error
        finally:
            call.close()
        match parse(json.loads(answer)):
            case Return(value):
                return value
            case Failure(error_class, desc):
                raise make_command_error(command, error_class, desc, self.name)
            case other:
                raise AssertionError(f"libvirt passed on {other!r}")

    def _pass_on(self, call: _Call) -> str:
        answer: str
        if call.descriptor is None:
            answer = self._passthrough.qemuMonitorCommand(self._domain, call.request, 0)
        else:
            answer, _ = self._passthrough.qemuMonitorCommandWithFiles(
                self._domain, call.request, [call.descriptor], 0
            )
        return answer

    def _is_refused(self, error: Any) -> bool:  # noqa: ANN401 - libvirt's
        """Tell whether libvirt cannot pass descriptors, and has sent nothing."""
        return error.get_error_code() in self._get_codes(*_NO_DESCRIPTORS)

    def _translate(self, command: str, error: Any) -> MonitorError:  # noqa: ANN401
        """Return this library's exception for one that libvirt raised."""
        translated = self._explain(command, error)
        translated.vm = self.name
        return translated

    def _explain(self, command: str, error: Any) -> MonitorError:  # noqa: ANN401
        said = f"{self.name}: {error.get_error_message()}"
        code = error.get_error_code()
        if code in self._get_codes(*_NOT_RUNNING):
            return MonitorClosed(f"{said}; start the VM")
        if code in self._get_codes(*_NOT_ALLOWED):
            return MonitorUnreachable(
                f"{said}; open a QEMU connection that may write, as a user who may"
            )
        if code in self._get_codes("VIR_ERR_OPERATION_TIMEOUT"):
            return MonitorTimeout(f"{said}; something else keeps the VM busy")
        return copy_error(MonitorClosed(said), (command,))

    def _get_codes(self, *names: str) -> set[object]:
        return {getattr(self._libvirt, name, None) for name in names}

    def _make_timeout(self, command: str, timeout: float) -> MonitorError:
        late = make_command_timeout(self.name, command, timeout)
        return copy_error(late, (command,))


@define(eq=False)
class _Call:
    """One command to pass on, and its result.

    Attributes:
        command: Its name.
        request: The text to pass on.
        descriptor: A file descriptor that goes with it, and is closed after it.
        future: Gets its result.
    """

    command: str
    request: str
    descriptor: int | None
    future: Future[object] = field(factory=Future[object])

    def close(self) -> None:
        if self.descriptor is not None:
            os.close(self.descriptor)


class LibvirtMonitor(_Passthrough, BlockingClock):
    """A :class:`~qmpballoon.blocking.SyncMonitor` over libvirt; threads may share it.

    Args:
        domain: A ``libvirt.virDomain``.
        name: The name that messages use for the monitor.
        command_timeout: Seconds for each command.
        wall_clock: Returns seconds since the epoch, for the age of statistics.

    Attributes:
        name: The name that messages use for the monitor.
        pid: The process id of QEMU; ``None`` until :func:`find_balloon` has found it.
    """

    def execute(
        self,
        command: str,
        arguments: Mapping[str, object] | None = None,
        *,
        timeout: float | None = None,
    ) -> object:
        """Run one QMP command and return its result.

        If Ctrl-C interrupts the call, QEMU may or may not have carried out the command.

        Args:
            command: The command's name, as in the QMP reference.
            arguments: Its arguments, of JSON types only.
            timeout: Seconds for the reply, including the time that the command waits
                for its turn; ``math.inf`` for no limit. By default the monitor's own.

        Returns:
            The decoded value of ``return``.

        Raises:
            CommandError: QEMU refused the command.
            MonitorError: There is no reply; its type says why.
        """
        return self._exchange(command, arguments, self._choose_timeout(timeout))

    def send_descriptor(self, name: str, number: int, *, timeout: float) -> None:
        """Hand QEMU a copy of a file descriptor, under a name.

        :meta private:
        """
        self._exchange(GETFD, {"fdname": name}, timeout, number)

    def _exchange(
        self,
        command: str,
        arguments: Mapping[str, object] | None,
        timeout: float,
        descriptor: int | None = None,
    ) -> object:
        future = self._submit(command, arguments, descriptor)
        wait([future], min(timeout, threading.TIMEOUT_MAX))
        if not future.done():
            raise self._make_timeout(command, timeout)
        return future.result()


class _AsyncPassthrough(_Passthrough):
    """What the monitors on event loops share; they differ in how they wait."""

    async def execute(
        self,
        command: str,
        arguments: Mapping[str, object] | None = None,
        *,
        timeout: float | None = None,
    ) -> object:
        """Run one QMP command and return its result.

        If the call is cancelled, QEMU may or may not have carried out the command.

        Args:
            command: The command's name, as in the QMP reference.
            arguments: Its arguments, of JSON types only.
            timeout: Seconds for the reply, including the time that the command waits
                for its turn; ``math.inf`` for no limit. By default the monitor's own.

        Returns:
            The decoded value of ``return``.

        Raises:
            CommandError: QEMU refused the command.
            MonitorError: There is no reply; its type says why.
        """
        return await self._exchange(command, arguments, self._choose_timeout(timeout))

    async def send_descriptor(self, name: str, number: int, *, timeout: float) -> None:
        """Hand QEMU a copy of a file descriptor, under a name.

        :meta private:
        """
        await self._exchange(GETFD, {"fdname": name}, timeout, number)

    async def _exchange(
        self,
        command: str,
        arguments: Mapping[str, object] | None,
        timeout: float,
        descriptor: int | None = None,
    ) -> object:
        """Pass a command on, and wait for its reply; as :meth:`execute`."""
        raise NotImplementedError


class AsyncioLibvirtMonitor(_AsyncPassthrough, AsyncioClock):
    """A :class:`~qmpballoon.monitor.Monitor` over libvirt, on asyncio.

    Args:
        domain: A ``libvirt.virDomain``.
        name: The name that messages use for the monitor.
        command_timeout: Seconds for each command.
        wall_clock: Returns seconds since the epoch, for the age of statistics.

    Attributes:
        name: The name that messages use for the monitor.
        pid: The process id of QEMU; ``None`` until :func:`find_balloon_asyncio` has
            found it.
    """

    async def _exchange(
        self,
        command: str,
        arguments: Mapping[str, object] | None,
        timeout: float,
        descriptor: int | None = None,
    ) -> object:
        future = asyncio.wrap_future(self._submit(command, arguments, descriptor))
        # Retrieves the error of a late reply, which asyncio would log otherwise.
        future.add_done_callback(lambda late: late.cancelled() or late.exception())
        await self.wait(future, self.now() + timeout)
        if not future.done():
            raise self._make_timeout(command, timeout)
        return future.result()


class TrioLibvirtMonitor(_AsyncPassthrough, TrioClock):
    """A :class:`~qmpballoon.monitor.Monitor` over libvirt, on trio.

    Args:
        domain: A ``libvirt.virDomain``.
        name: The name that messages use for the monitor.
        command_timeout: Seconds for each command.
        wall_clock: Returns seconds since the epoch, for the age of statistics.

    Attributes:
        name: The name that messages use for the monitor.
        pid: The process id of QEMU; ``None`` until :func:`find_balloon_trio` has found
            it.
    """

    async def _exchange(
        self,
        command: str,
        arguments: Mapping[str, object] | None,
        timeout: float,
        descriptor: int | None = None,
    ) -> object:
        import trio  # noqa: PLC0415 - programs on asyncio do without it

        await trio.lowlevel.checkpoint_if_cancelled()
        token, done = trio.lowlevel.current_trio_token(), trio.Event()

        def tell(_: Future[object]) -> None:
            with suppress(trio.RunFinishedError):  # no task waits any more
                token.run_sync_soon(done.set)

        future = self._submit(command, arguments, descriptor)
        future.add_done_callback(tell)
        with trio.move_on_after(timeout):
            await done.wait()
            return future.result()
        raise self._make_timeout(command, timeout)
