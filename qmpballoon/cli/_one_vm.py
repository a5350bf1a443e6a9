"""Runs a subcommand that works with one VM, without an event loop if it can.

Loading trio takes longer than the rest of such a subcommand. So a VM on a socket is
driven by the blocking front end. A VM that libvirt manages is driven on trio, because
libvirt's calls block, and have to be left behind on threads (``cli/_connect.py``).

A signal has the same effect in both: it ends the present wait for QEMU or for time to
pass, and every later one that is not shielded. So every ``finally`` of the library
runs, and gives back what was taken from a guest. A second signal changes nothing.
"""

from __future__ import annotations

import math
import signal
import threading
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

from qmpballoon._transport.monitor_base import COMMAND_TIMEOUT
from qmpballoon.address import LibvirtVm
from qmpballoon.blocking.balloon import SyncMonitorAdapter, run_sync
from qmpballoon.blocking.connect import open_monitor
from qmpballoon.cli import _output
from qmpballoon.cli._writer import open_writers
from qmpballoon.errors import MonitorTimeout, QmpBalloonError
from qmpballoon.monitor import Monitor

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Mapping
    from types import FrameType
    from typing import Any

    from qmpballoon._transport.own_monitor import Own
    from qmpballoon.address import Vm
    from qmpballoon.balloon.balloon import Balloon
    from qmpballoon.blocking.monitor import BlockingMonitor

__all__ = ["UNANSWERED", "VmMonitor", "explain_interruption", "run_with_monitor"]

_T = TypeVar("_T")
UNANSWERED: Final = "and QEMU does not answer what it has now"
"""What messages say after the size that a guest is asked to have."""
_QUERY_TIMEOUT: Final = 3.0  # seconds; the user waits for the process to end


class VmMonitor(Monitor, Protocol):
    """The monitor of a VM.

    Attributes:
        pid: The process id of QEMU; ``None`` if it is not known.
    """

    pid: int | None


def run_with_monitor(
    vm: Vm,
    main: Callable[[VmMonitor], Coroutine[Any, Any, _T]],
    *,
    connect_timeout: float,
    own: Own,
    timeout: float = math.inf,
    ask_to_end: Callable[[], bool] = lambda: False,
) -> _T:
    """Connect to a VM, run a coroutine function, and return what it returns.

    Meanwhile threads write what it prints, so that it waits for no reader.

    Args:
        vm: The VM.
        main: The coroutine function; it awaits nothing but the monitor it is given.
        connect_timeout: Seconds for connecting.
        own: Whether to ask QEMU for a monitor of one's own.
        timeout: Seconds for the coroutine.
        ask_to_end: Called when a signal comes. If it returns true, the coroutine ends
            by itself, and only the next signal interrupts it.

    Raises:
        MonitorTimeout: QEMU has not answered everything in time.
        _output.Interrupted: A signal came, or the reader of standard output has gone.
        OSError: Standard output cannot be written.
    """
    late = MonitorTimeout(
        f"the monitor on {vm} did not answer everything within {timeout:g} s: QEMU is"
        " stopped or overloaded"
    )
    if isinstance(vm, LibvirtVm):
        return _run_on_trio(vm, main, connect_timeout, own, timeout, late, ask_to_end)
    signals = _Signals(ask_to_end)
    results: list[_T] = []
    try:
        with (
            _output.take_log(),
            open_writers() as written,
            signals.take(),
            ExitStack() as closing,
        ):
            if written:
                # What cannot be written ends the command even if it says nothing more.
                written.on_failure = _interrupt_main_thread
            try:
                with signals.interrupt():
                    monitor = closing.enter_context(
                        open_monitor(vm, timeout=connect_timeout, own=own)
                    )
                adapter = _InterruptedMonitor(monitor, signals, timeout, late)
                results.append(run_sync(main(adapter)))
            except KeyboardInterrupt:
                if not signals.has_ended:
                    raise
            except Exception:
                if not signals.received:
                    raise
            # Even if it is done: nobody may be there to read the result.
            if signals.received:
                raise _output.Interrupted(signals.received[0])
            if results:
                return results[0]
            _output.check_output()
            raise AssertionError  # it was interrupted for one of these reasons
    except BrokenPipeError as error:
        raise _output.explain_unwritable(error) from error


def _run_on_trio(  # noqa: PLR0917 - as run_with_monitor
    vm: Vm,
    main: Callable[[VmMonitor], Coroutine[Any, Any, _T]],
    connect_timeout: float,
    own: Own,
    timeout: float,
    late: MonitorTimeout,
    ask_to_end: Callable[[], bool],
) -> _T:
    # Loaded only where it is needed.
    import trio  # noqa: PLC0415

    from qmpballoon.cli import _connect, _session  # noqa: PLC0415

    async def connect() -> _T:
        async with _connect.open_monitor(
            vm, timeout=connect_timeout, own=own
        ) as monitor:
            with trio.move_on_after(timeout):
                return await main(monitor)
        raise late

    return _session.run(connect, ask_to_end=ask_to_end)


class _Signals:
    """The signals that end the subcommand.

    Attributes:
        received: The signal that did, if any.
        has_ended: Whether the subcommand is to end.
    """

    def __init__(self, ask_to_end: Callable[[], bool]) -> None:
        self.received: list[int] = []
        self.has_ended = False
        self.is_shielded = False
        self._ask_to_end = ask_to_end
        self._has_asked = False
        self._is_waiting = False
        self._other: int | None = None  # a signal other than SIGINT

    @contextmanager
    def take(self) -> Generator[None]:
        """Take the signals in within the block, which is to be in the main thread."""
        before = {number: signal.getsignal(number) for number in _output.list_signals()}
        try:
            for number in before:
                is_ctrl_c = number == signal.SIGINT
                signal.signal(number, self._end if is_ctrl_c else self._pass_on)
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def interrupt(self) -> Generator[None]:
        """Raise :exc:`KeyboardInterrupt` from the block if the subcommand is to end."""
        self._is_waiting = not self.is_shielded
        try:
            if self.has_ended and self._is_waiting:
                raise KeyboardInterrupt
            yield
        finally:
            self._is_waiting = False

    def _pass_on(self, number: int, _: FrameType | None) -> None:
        # The blocking front end delays SIGINT, and no other, while it writes or reads.
        self._other = number
        signal.raise_signal(signal.SIGINT)

    def _end(self, number: int, _: FrameType | None) -> None:
        number, self._other = self._other or number, None
        if self.has_ended:
            return
        if not _output.is_unwritable():
            if not self._has_asked and self._ask_to_end():
                self._has_asked = True
                return
            self.received.append(number)
        self.has_ended = True
        if self._is_waiting:
            raise KeyboardInterrupt


def _interrupt_main_thread() -> None:
    """Wake the main thread, if it waits; called on another one."""
    main = threading.main_thread().ident
    if main is not None:
        signal.pthread_kill(main, signal.SIGINT)


class _InterruptedMonitor(SyncMonitorAdapter):
    """A monitor that never suspends, and whose waits signals end.

    Args:
        monitor: The blocking monitor.
        signals: Ends the waits.
        timeout: Seconds for all commands together, from now on.
        late: Raised when they are over.
    """

    def __init__(
        self,
        monitor: BlockingMonitor,
        signals: _Signals,
        timeout: float,
        late: MonitorTimeout,
    ) -> None:
        super().__init__(monitor)
        self.pid = monitor.pid
        self._blocking = monitor
        self._signals = signals
        self._deadline = monitor.now() + timeout
        self._late = late

    async def execute(
        self, command: str, arguments: Mapping[str, object] | None = None
    ) -> object:
        """Run one QMP command and return its result."""
        left = self._deadline - self.now()
        timeout = min(COMMAND_TIMEOUT, max(left, 0.0))
        with self._signals.interrupt():
            try:
                return self._blocking.execute(command, arguments, timeout=timeout)
            except MonitorTimeout:
                if left <= timeout and not self._signals.is_shielded:
                    raise self._late from None
                raise

    async def sleep(self, seconds: float) -> None:
        """Wait for that many seconds; zero or less returns at once."""
        with self._signals.interrupt():
            self._blocking.sleep(min(seconds, self._deadline - self.now()))

    @contextmanager
    def shield(self, seconds: float) -> Generator[None]:
        """Hold interruptions back, for so many seconds at most."""
        signals = self._signals
        before = self._deadline, signals.is_shielded
        self._deadline, signals.is_shielded = self.now() + seconds, True
        try:
            yield
        finally:
            self._deadline, signals.is_shielded = before


@asynccontextmanager
async def explain_interruption(
    balloon: Balloon, describe: Callable[[int | None, int | None], str]
) -> AsyncGenerator[None]:
    """Print what has become of a guest if a signal ends the block.

    Args:
        balloon: The guest's balloon.
        describe: Returns what to print. It is given the target that was set last
            (``None``: none was) and the guest's size now, in bytes (``None``: QEMU does
            not answer in time).
    """
    try:
        yield
    except Exception:
        raise
    except BaseException:  # on trio this is not KeyboardInterrupt
        if _output.is_unwritable():  # whoever read it has gone: end quietly
            raise
        _output.note(f"interrupted: {await _explain(balloon, describe)}")
        raise


async def _explain(
    balloon: Balloon, describe: Callable[[int | None, int | None], str]
) -> str:
    if balloon.is_target_in_doubt:  # QEMU has been waited for already
        return (
            "which size the guest was asked for last is not known, because QEMU does"
            " not answer: see `qmpballoon status` once it does"
        )
    actual = None
    with balloon.monitor.shield(_QUERY_TIMEOUT), suppress(QmpBalloonError):
        actual = await balloon.actual()
    return describe(balloon.target, actual)
