"""What the monitors of all front ends share: name, process, deadlines, clocks.

The clock for asyncio has a module of its own, because it also holds back
cancellations: :mod:`qmpballoon._transport.asyncio_clock`.
"""

from __future__ import annotations

import logging
import math
import sys
import time
import traceback
from typing import TYPE_CHECKING, Final

from qmpballoon._checks import require_seconds
from qmpballoon._transport import qemu_process
from qmpballoon._transport.error_messages import copy_error, make_command_timeout
from qmpballoon._transport.owed_size import OwedSizeFile
from qmpballoon.errors import MonitorError, ProtocolError, make_command_error
from qmpballoon.qmp.messages import Failure, Return

if TYPE_CHECKING:
    from collections.abc import Callable

    import trio

    from qmpballoon.monitor import OwedSize

__all__ = [
    "COMMAND_TIMEOUT",
    "BlockingClock",
    "MonitorBase",
    "TrioClock",
]

# QEMU answers the commands of this library in milliseconds, but its main loop also does
# other work, such as a migration's last phase or I/O on a storage that hangs. Chosen,
# not measured: long enough for such a pause, short enough that an orchestrator notices
# a QEMU that is stopped.
COMMAND_TIMEOUT: Final = 10.0
"""Seconds for one command, including the time it waits for its turn."""


class MonitorBase:
    """The part of a monitor that does not depend on how it waits.

    Attributes:
        name: The name that messages use for the monitor.
        pid: The process id of QEMU; ``None`` if it is not known.
    """

    def __init__(
        self,
        *,
        name: str,
        pid: int | None,
        command_timeout: float,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__()  # asyncio's clock has a state
        self.name: str = name
        self.pid: int | None = pid
        self._command_timeout = require_seconds(command_timeout, "command_timeout")
        self._wall_clock = wall_clock
        # When a message that the peer has begun must have ended.
        self._message_deadline = math.inf

    def __repr__(self) -> str:
        """Return which monitor this is."""
        return f"<{type(self).__name__}: {self.name}>"

    def resident(self) -> int | None:
        """Return QEMU's resident memory in bytes; ``None`` if it cannot be known."""
        return None if self.pid is None else qemu_process.read_resident(self.pid)

    def processor_time(self) -> float | None:
        """Return how long QEMU has run, in seconds; ``None`` if it cannot be known."""
        if self.pid is None:
            return None
        return qemu_process.read_processor_time(self.pid)

    @property
    def owed_size(self) -> OwedSize | None:
        """The note of the size that the guest must get back; ``None`` if not kept."""
        return None if self.pid is None else OwedSizeFile(self.pid)

    def wall_clock(self) -> float:
        """Return seconds since the epoch, for the age of statistics."""
        return self._wall_clock()

    def _log_line(
        self, logger: logging.Logger, level: int, text: str, *args: object
    ) -> None:
        """Log a line, which a handler or a filter of the program may fail to take.

        What it raises is printed, as logging itself does. Raised, it could end a task
        that serves other monitors, or leave those waiting who wait for this one.
        """
        try:
            logger.log(level, text, *args, stacklevel=2)
        except Exception:  # noqa: BLE001 - it is the program's own
            if logging.raiseExceptions and sys.stderr is not None:
                traceback.print_exc()

    def _time_message(self, pending: int, now: float, *, is_new: bool) -> None:
        """Note how much of an unfinished message there is.

        A message must end within the time for a command: nobody waits for a reply that
        comes later. Otherwise a peer could make us keep an unfinished message for ever.

        Args:
            pending: Bytes of an unfinished message; 0 if there is none.
            now: Seconds on the monitor's clock.
            is_new: Whether this is a new message, and not the one that was noted last.
        """
        if not pending:
            self._message_deadline = math.inf
        elif is_new or self._message_deadline == math.inf:
            self._message_deadline = now + self._command_timeout

    def _require_message_in_time(self, now: float) -> None:
        """Raise ProtocolError if the peer has not ended its message in time."""
        if now >= self._message_deadline:
            raise ProtocolError(
                f"the peer has begun a message, and not ended it within"
                f" {self._command_timeout:g} s"
            )

    def _choose_timeout(self, timeout: float | None) -> float:
        """Return the seconds for a command: those given, or the monitor's own."""
        if timeout is None:
            return self._command_timeout
        return require_seconds(timeout, "timeout")

    def _read_reply(
        self,
        command: str,
        reply: Return | Failure | MonitorError | None,
        timeout: float,
        *,
        sent: bool,
    ) -> object:
        """Return the result of a command, or raise the error that it ended with.

        Args:
            command: The command's name.
            reply: The reply, or why none comes; ``None`` if the time is over.
            timeout: The seconds that the command had.
            sent: Whether it was sent, so that its outcome is unknown without a reply.
        """
        if isinstance(reply, Return):  # the most frequent case, without a match
            return reply.value
        unknown = (command,) if sent else ()
        match reply:
            case Failure(error_class, desc):
                raise make_command_error(command, error_class, desc, self.name)
            case MonitorError():
                raise copy_error(reply, unknown)
            case _:
                late = make_command_timeout(self.name, command, timeout)
                raise copy_error(late, unknown)


class BlockingClock:
    """The clock of a monitor in blocking code."""

    def now(self) -> float:
        """Return the monotonic time in seconds."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Wait for that many seconds; zero or less returns at once."""
        time.sleep(max(seconds, 0.0))


class TrioClock:
    """The clock of a monitor on trio.

    It loads trio when it is used: programs without trio load libvirt's monitors too.
    """

    def now(self) -> float:
        """Return trio's time in seconds."""
        import trio  # noqa: PLC0415 - see the class

        return trio.current_time()

    async def sleep(self, seconds: float) -> None:
        """Wait for that many seconds.

        If the call is cancelled, it ends at once and has no effect.
        """
        import trio  # noqa: PLC0415 - see the class

        await trio.sleep(max(seconds, 0.0))

    def shield(self, seconds: float) -> trio.CancelScope:
        """Return a scope that outside cancellations do not reach.

        Args:
            seconds: The scope ends after that many seconds at the latest.
        """
        import trio  # noqa: PLC0415 - see the class

        return trio.move_on_after(seconds, shield=True)
