"""The balloon of a VM whose monitor belongs to libvirt.

::

    domain = find_domain("vm1")                       # or any virDomain of yours
    balloon = find_balloon(domain)                    # plain calls
    balloon = await find_balloon_asyncio(domain)      # or coroutines
    balloon = await find_balloon_trio(domain)

libvirt keeps QEMU's monitor to itself, and passes commands through
(``virDomainQemuMonitorCommand``). It marks such a domain as tainted
("custom-monitor") in its log, which is meant for support, and changes nothing.

That call waits for as long as QEMU takes and cannot be broken off. So each command
has a thread of its own, and whoever asks waits for it with a deadline. An event
loop is not held up; neither is Ctrl-C, nor the end of the program.

``libvirt-python`` is needed, by ``pip install 'qmpballoon[libvirt]'``.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from concurrent.futures import Future
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, Protocol
from urllib.parse import urlsplit

from qmpballoon import host, plain
from qmpballoon.aiotime import AsyncioTime
from qmpballoon.balloon import find
from qmpballoon.checks import require_seconds
from qmpballoon.errors import (
    MonitorClosed,
    MonitorError,
    MonitorTimeout,
    MonitorUnreachable,
    command_error,
)
from qmpballoon.failures import not_answered, retold
from qmpballoon.qmp.connection import encode
from qmpballoon.qmp.messages import Failure, Return, parse

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import AbstractContextManager

    from qmpballoon.balloon.device import Balloon
    from qmpballoon.monitor import Monitor

__all__ = [
    "AsyncioLibvirtMonitor",
    "Domain",
    "LibvirtMonitor",
    "TrioLibvirtMonitor",
    "find_balloon",
    "find_balloon_asyncio",
    "find_balloon_trio",
    "find_domain",
    "find_pid",
    "silence",
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


class Domain(Protocol):
    """As much of ``libvirt.virDomain`` as is needed here."""

    def name(self) -> str:
        """Return the domain's name."""
        ...

    def connect(self) -> Any:  # noqa: ANN401 - libvirt-python has no usable types
        """Return its connection."""
        ...


def find_domain(name: str, uri: str | None = None) -> Domain:
    """Connect to libvirt and look a VM up by its name.

    This waits for as long as libvirt does. The connection ends when the domain is
    forgotten.

    Args:
        name: The domain's name, as ``virsh list`` shows it.
        uri: Which libvirt, such as ``"qemu+ssh://host/system"``. By default what
            the environment variable ``LIBVIRT_DEFAULT_URI`` says; without that,
            libvirt takes ``qemu:///system`` for root, and else ``qemu:///session``.

    Raises:
        MonitorUnreachable: libvirt cannot be connected to, or has no such VM.
        ImportError: libvirt-python is not installed.
    """
    libvirt = import_module("libvirt")
    try:
        connection = libvirt.open(uri)
    except libvirt.libvirtError as error:
        raise MonitorUnreachable(
            f"libvirt cannot be reached: {error.get_error_message()}: is its daemon"
            " running? LIBVIRT_DEFAULT_URI says which one is meant"
        ) from error
    try:
        domain: Domain = connection.lookupByName(name)
    except libvirt.libvirtError as error:
        raise MonitorUnreachable(
            f"libvirt at {connection.getURI()} has no VM {name!r}"
            f" ({error.get_error_message()}): `virsh list` shows which it has, and"
            " LIBVIRT_DEFAULT_URI chooses another libvirt, such as qemu:///system"
        ) from error
    return domain


def find_balloon(
    domain: Domain,
    *,
    command_timeout: float = COMMAND_TIMEOUT,
    wall_clock: Callable[[], float] = time.time,
) -> plain.BlockingBalloon:
    """Find the balloon of a running domain, in plain calls.

    Args:
        domain: A ``libvirt.virDomain`` of the QEMU driver, over a connection that
            may write.
        command_timeout: Seconds for each command.
        wall_clock: Tells seconds since the epoch, for the age of statistics.

    Raises:
        NoBalloonDevice: The VM has none.
        MonitorClosed: The domain does not run.
        MonitorUnreachable: libvirt does not pass commands on for you.
        MonitorTimeout: QEMU, or libvirt, does not answer.
        ImportError: libvirt-python is not installed.
    """
    monitor = LibvirtMonitor(domain, command_timeout=command_timeout)
    monitor.pid = plain.run(find_pid(domain, plain.Neutral(monitor)))
    return plain.find_balloon(monitor, resident=monitor.resident, wall_clock=wall_clock)


async def find_balloon_asyncio(
    domain: Domain,
    *,
    command_timeout: float = COMMAND_TIMEOUT,
    wall_clock: Callable[[], float] = time.time,
) -> Balloon:
    """Find the balloon of a running domain, for use on asyncio.

    Args and raises: as :func:`find_balloon`.

    Cancellation: at once, with no effect.
    """
    monitor = AsyncioLibvirtMonitor(domain, command_timeout=command_timeout)
    monitor.pid = await find_pid(domain, monitor)
    return await find.find_balloon(
        monitor, resident=monitor.resident, wall_clock=wall_clock
    )


async def find_balloon_trio(
    domain: Domain,
    *,
    command_timeout: float = COMMAND_TIMEOUT,
    wall_clock: Callable[[], float] = time.time,
) -> Balloon:
    """Find the balloon of a running domain, for use on trio.

    Args and raises: as :func:`find_balloon`.

    Cancellation: at once, with no effect.
    """
    monitor = TrioLibvirtMonitor(domain, command_timeout=command_timeout)
    monitor.pid = await find_pid(domain, monitor)
    return await find.find_balloon(
        monitor, resident=monitor.resident, wall_clock=wall_clock
    )


def silence() -> None:
    """Have libvirt-python, in all of this process, not print the errors it raises."""
    import_module("libvirt").registerErrorHandler(_ignore, None)


def _ignore(_context: object, _error: object) -> None:
    """Leave an error to the exception that tells of it."""


async def find_pid(domain: Domain, monitor: Monitor) -> int | None:
    """Find the process id of a domain's QEMU, if libvirt's daemon is on this host.

    Args:
        domain: The domain.
        monitor: The way to its QEMU.

    Cancellation: at once, with no effect.
    """
    address: str = domain.connect().getURI()
    if urlsplit(address).hostname:
        return None
    return await host.find_qemu_pid(monitor)


class _Passthrough:
    """Commands to a domain, each in a thread of its own."""

    def __init__(self, domain: Domain, *, command_timeout: float) -> None:
        super().__init__()
        self.name: str = f"libvirt's monitor of {domain.name()}"
        self.pid: int | None = None
        self._command_timeout = require_seconds(command_timeout, "command_timeout")
        self._domain = domain
        self._libvirt = import_module("libvirt")
        self._pass_on = import_module("libvirt_qemu").qemuMonitorCommand

    def resident(self) -> int | None:
        """Return QEMU's resident memory in bytes, ``None`` if it cannot be known."""
        return None if self.pid is None else host.resident(self.pid)

    def _submit(
        self, command: str, arguments: Mapping[str, object] | None
    ) -> Future[object]:
        """Begin to run a command; what comes of it is the future's."""
        request = encode({"execute": command, "arguments": dict(arguments or {})})
        future = Future[object]()

        def work() -> None:
            try:
                future.set_result(self._run(command, request.decode()))
            except BaseException as error:  # noqa: BLE001 - whoever waits is told
                future.set_exception(error)

        # A daemon: one that hangs is not to hold up the end of the program.
        threading.Thread(target=work, name=self.name, daemon=True).start()
        return future

    def _run(self, command: str, request: str) -> object:
        try:
            answer = self._pass_on(self._domain, request, 0)
        except self._libvirt.libvirtError as error:
            raise self._translated(command, error) from error
        match parse(json.loads(answer)):
            case Return(value):
                return value
            case Failure(error_class, desc):
                raise command_error(command, error_class, desc)
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
    """A :class:`~qmpballoon.plain.PlainMonitor` over libvirt; threads may share it.

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
