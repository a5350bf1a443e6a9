"""Running a subcommand on trio until it is done, or a signal says to end.

SIGINT, SIGTERM and SIGHUP (the terminal was closed) cancel the subcommand, so that
every ``finally`` of the library runs: what was taken from a guest is given back before
the process exits. A second signal changes nothing. All that runs then has deadlines of
its own, a few seconds each.
"""

from __future__ import annotations

import signal
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Final, TypeVar

import trio

from qmpballoon.cli import _output
from qmpballoon.errors import QmpBalloonError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable

    from qmpballoon.address import Vm
    from qmpballoon.balloon.balloon import Balloon
    from qmpballoon.monitor import Monitor

__all__ = ["last_word", "run", "vm_name"]

_T = TypeVar("_T")
_LAST_WORD: Final = 3.0  # seconds for asking, before the process ends


def run(main: Callable[[], Awaitable[_T]]) -> _T:
    """Run a coroutine function and return what it returns.

    Raises:
        _output.Interrupted: A signal came, and it was cancelled.
    """
    return trio.run(_until_signalled, main)


async def _until_signalled(main: Callable[[], Awaitable[_T]]) -> _T:
    results: list[_T] = []
    failures: list[Exception] = []
    received: list[int] = []

    async def watch(signals: AsyncIterator[int]) -> None:
        async for number in signals:
            received.append(number)
            nursery.cancel_scope.cancel()

    with trio.open_signal_receiver(*_ending()) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch, signals)
            try:
                results.append(await main())
            except Exception as error:  # noqa: BLE001 - a nursery would wrap it
                failures.append(error)
            nursery.cancel_scope.cancel()
    if received and not results:
        raise _output.Interrupted(received[0])
    if failures:
        raise failures[0]
    return results[0]


def _ending() -> list[signal.Signals]:
    """Name the signals that ask us to end."""
    numbers = [signal.SIGINT, signal.SIGTERM]
    # Ignored, it is nohup's word that we are to outlive the terminal.
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    return numbers


@asynccontextmanager
async def last_word(
    balloon: Balloon, describe: Callable[[int | None, int], str]
) -> AsyncGenerator[None]:
    """Say what has become of a balloon if the block is cancelled.

    Args:
        balloon: The balloon.
        describe: Puts it in words, from the target that was set last (``None``: none
            was) and the bytes the guest has now.
    """
    try:
        yield
    except trio.Cancelled:
        word = "it is not known what the guest is left with: QEMU does not answer"
        with balloon.monitor.shield(_LAST_WORD), suppress(QmpBalloonError):
            word = describe(balloon.target, await balloon.actual())
        _output.note(f"interrupted: {word}")
        raise


async def vm_name(monitor: Monitor, vm: Vm) -> str:
    """Return the VM's name, or where one is that is without a name."""
    match await monitor.execute("query-name"):
        case {"name": str(name)} if name:
            return name
        case _:
            return str(vm)
