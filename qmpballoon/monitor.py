"""The interface between the code that drives the balloon and the code that does I/O.

Everything in :mod:`qmpballoon.balloon` calls the four methods of :class:`Monitor` and
awaits nothing else. So the same code runs on trio, on asyncio over a connection that
somebody else owns, in blocking code, and on a virtual clock in tests.

To drive a balloon over a connection of your own, write a class with these methods. A
monitor may also have the following members. The monitors of this package have them:

- ``name: str``, with which messages begin.
- ``pid: int | None``, the process id of QEMU on this host, ``None`` if it is not known.
- ``resident() -> int | None``, QEMU's resident memory in bytes, ``None`` if it is not
  known. With it, samples and reports show how much memory the host has got.
- ``processor_time() -> float | None``, the seconds for which QEMU and its guest have
  run on processors. With it, a fleet polls guests that do nothing less often.
- ``wall_clock() -> float | None``, seconds since the epoch by the host's clock. With
  it, statistics have an age.
- ``owed_size: OwedSize | None``, a note of the size that the guest must get back. With
  it, a run gives back what an earlier run took before it was killed, and leaves a guest
  alone from which a run of another process has taken memory.
"""

from __future__ import annotations

import logging
from typing import (
    TYPE_CHECKING,
    Final,
    Protocol,
    TypeAlias,
    TypeVar,
    runtime_checkable,
)

from qmpballoon.errors import CommandError, QmpBalloonError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence
    from contextlib import AbstractContextManager

__all__ = ["Monitor", "OwedSize"]

E = TypeVar("E", bound=QmpBalloonError)
Command: TypeAlias = "tuple[str, Mapping[str, object] | None]"
"""The name and the arguments of a command.

:meta private:
"""

# A library must not print its log: warnings go to the program's own handlers, if any.
logging.getLogger("qmpballoon").addHandler(logging.NullHandler())


@runtime_checkable
class Monitor(Protocol):
    """A QMP monitor and a clock: all that the balloon's code calls or awaits."""

    async def execute(
        self, command: str, arguments: Mapping[str, object] | None = None
    ) -> object:
        """Run one QMP command and return its result.

        The call must end in bounded time: a monitor has a deadline for each command.
        If the call is cancelled, QEMU may or may not have carried out the command, and
        the monitor stays usable.

        Args:
            command: The command's name, as in the QMP reference.
            arguments: Its arguments, of JSON types only.

        Returns:
            The decoded value of ``return``.

        Raises:
            CommandError: QEMU refused the command.
            MonitorError: There is no reply. If QEMU may have carried out the command,
                ``unknown_outcome`` has its name.
        """
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait for that many seconds; zero or less only lets other tasks run."""
        ...

    def now(self) -> float:
        """Return the time in seconds on a clock that never goes back.

        Only differences mean anything.
        """
        ...

    def shield(self, seconds: float) -> AbstractContextManager[object]:
        """Return a context manager inside which cancellations are held back.

        After a cancellation, giving a guest its memory back takes a command. On an
        event loop where a cancelled task stays cancelled, that command would be
        cancelled, too. Elsewhere ``contextlib.nullcontext()`` is enough.

        Args:
            seconds: The cancellation is held back for that long at most.
        """
        ...


UNNOTED: Final = "qmpballoon_unnoted"
"""The attribute of a log record that says why such a note could not be written.

:meta private:
"""


class OwedSize(Protocol):
    """A note of the size that a guest must get back; it outlives this process."""

    def read(self) -> int | None:
        """Return the size in bytes; ``None`` if none is owed, or none can be read.

        What a process that runs holds is not owed.
        """
        ...

    def read_holder(self) -> int | None:
        """Return the id of the process that holds the guest's memory, if any.

        It runs, and gives the memory back itself. It can be this process.
        """
        ...

    def note(
        self,
        size: int,
        *,
        is_returning: bool = False,
        is_held: bool = False,
        own: int | None = None,
    ) -> int | None:
        """Note the size that the guest must get back, unless somebody else holds it.

        Args:
            size: Bytes.
            is_returning: Whether QEMU has already been asked to give it back.
            is_held: Whether this process holds the memory, and gives it back itself.
            own: The process whose hold this ends; that of any other stands.

        Returns:
            The id of a process that holds the memory; then nothing was noted.

        Raises:
            OSError: It cannot be noted.
        """
        ...

    def clear(self, own: int | None = None) -> None:
        """Forget it.

        Args:
            own: The process whose hold this ends; the note of any other stands.

        Raises:
            OSError: It cannot be forgotten.
        """
        ...


async def execute_all(monitor: Monitor, *commands: Command) -> list[object]:
    """Run commands that do not depend on each other: together, if the monitor can.

    Returns:
        The result of each, or the :exc:`CommandError` with which QEMU refused it.

    Raises:
        MonitorError: One has no reply.

    :meta private:
    """
    at_once: Callable[[Sequence[Command]], Awaitable[list[object]]] | None
    at_once = getattr(monitor, "execute_all", None)
    if at_once is None:
        return await execute_in_turn(monitor, commands)
    results: list[object] = await at_once(commands)
    return results


async def execute_in_turn(
    monitor: Monitor, commands: Sequence[Command]
) -> list[object]:
    """Run commands one after the other; as :func:`execute_all`."""
    results: list[object] = []
    for command, arguments in commands:
        try:
            results.append(await monitor.execute(command, arguments))
        except CommandError as error:
            results.append(error)
    return results


def prefix_name(monitor: object, message: str) -> str:
    """Return a message about a VM with the name of its monitor, if any, before it."""
    name = getattr(monitor, "name", None)
    return f"{name}: {message}" if name else message


def make_error(kind: Callable[..., E], monitor: object, why: str, *fields: object) -> E:
    """Make an exception about the VM behind a monitor.

    Args:
        kind: The exception's class.
        monitor: The VM's monitor. Its name, if it has one, begins the message.
        why: The rest of the message.
        fields: The further arguments of the exception's class.
    """
    error = kind(prefix_name(monitor, why), *fields)
    error.vm = getattr(monitor, "name", None)
    return error


def read_resident(monitor: object) -> int | None:
    """Return the resident memory of a monitor's QEMU in bytes, if it is known."""
    resident: Callable[[], int | None] | None = getattr(monitor, "resident", None)
    return None if resident is None else resident()


def read_processor_time(monitor: object) -> float | None:
    """Return how long a monitor's QEMU has run, in seconds, if it is known."""
    time: Callable[[], float | None] | None = getattr(monitor, "processor_time", None)
    return None if time is None else time()


def read_wall_clock(monitor: object) -> float | None:
    """Return seconds since the epoch by a monitor's wall clock, if it has one."""
    clock: Callable[[], float | None] | None = getattr(monitor, "wall_clock", None)
    return None if clock is None else clock()


def find_owed_size(monitor: object) -> OwedSize | None:
    """Return the note of the size that a monitor's guest is owed, if it has one."""
    owed: OwedSize | None = getattr(monitor, "owed_size", None)
    return owed
