"""Runs a subcommand on trio until it is done, or until a signal ends it.

SIGINT, SIGTERM and SIGHUP (the terminal was closed) cancel the subcommand. So every
``finally`` of the library runs, and gives back what was taken from a guest, before the
process exits. A second signal changes nothing: the cleanup has deadlines of its own, a
few seconds each. A subcommand that can end on its own is asked to do so first.
"""

from __future__ import annotations

import math
import os
import socket
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import trio

from qmpballoon._transport.trio_tasks import BackgroundTasks
from qmpballoon.cli import _output
from qmpballoon.cli._writer import open_writers

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable

    from qmpballoon.cli._writer import BackgroundWriter

__all__ = ["run", "serve"]

_T = TypeVar("_T")


def run(
    main: Callable[[], Awaitable[_T]],
    *,
    outlives_reader: bool = False,
    ask_to_end: Callable[[], bool] = lambda: False,
) -> _T:
    """Run a coroutine function and return what it returns.

    Meanwhile threads write what it prints, so that it waits for no reader.

    Args:
        main: The coroutine function.
        outlives_reader: Go on when standard output cannot be written any more. That
            becomes an error only in the end.
        ask_to_end: Called when a signal comes. If it returns true, the coroutine ends
            by itself, and only the next signal cancels it.

    Raises:
        _output.Interrupted: A signal came, and the coroutine was cancelled; or the
            reader of standard output has gone.
        OSError: Standard output cannot be written.
    """
    try:
        with (
            _output.take_log(),
            open_writers(is_strict=not outlives_reader) as written,
        ):
            try:
                return trio.run(_run_until_signal, main, written, ask_to_end)
            except _output.Interrupted:
                if written and written.error and outlives_reader:
                    # The writer says what was lost; it is no success.
                    raise written.error from None
                raise
    except BrokenPipeError as error:
        if outlives_reader:
            raise
        raise _output.explain_unwritable(error) from error


async def _run_until_signal(
    main: Callable[[], Awaitable[_T]],
    written: BackgroundWriter[bytes] | None,
    ask_to_end: Callable[[], bool],
) -> _T:
    results: list[_T] = []
    received: list[int] = []
    scope = trio.CancelScope()
    if written:
        # What cannot be written ends the command even if it says nothing more.
        written.on_failure = partial(
            _call_soon, trio.lowlevel.current_trio_token(), scope.cancel
        )

    async def watch(signals: AsyncIterator[int]) -> None:
        asked = False
        async for number in signals:
            if not asked and ask_to_end():
                asked = True
                continue
            received.append(number)
            scope.cancel()

    with trio.open_signal_receiver(*_output.list_signals()) as signals:
        async with BackgroundTasks(shield=False) as tasks:
            tasks.start_soon(watch, signals)
            try:
                with scope:
                    results.append(await main())
            except Exception:
                if not received:
                    raise
    # Even if it is done: nobody may be there to read the result, and this was the end.
    if received:
        raise _output.Interrupted(received[0])
    if results:
        return results[0]
    _output.check_output()
    raise AssertionError  # it was cancelled for one of these reasons


def _call_soon(token: trio.lowlevel.TrioToken, call: Callable[[], object]) -> None:
    """Call something in trio's thread, if trio still runs."""
    with suppress(trio.RunFinishedError):
        token.run_sync_soon(call)


# As a service of systemd's. Its protocol is a datagram a state (sd_notify(3)), which
# takes fewer lines than a dependency: sdnotify has not been released since 2017, and
# cysystemd and systemd-python need a compiler and libsystemd.


@asynccontextmanager
async def serve(is_alive: Callable[[], bool]) -> AsyncGenerator[None]:
    """Tell systemd that the service is ready, feed its watchdog, and say when it stops.

    Where systemd has not started the process, this does nothing.

    Args:
        is_alive: Tells whether the service does what it is for. While it does not, the
            watchdog is not fed, and then systemd starts the service again.
    """
    _notify("READY=1")
    async with BackgroundTasks(shield=False) as tasks:
        tasks.start_soon(_feed_watchdog, is_alive)
        try:
            yield
        finally:
            _notify("STOPPING=1")


async def _feed_watchdog(is_alive: Callable[[], bool]) -> None:
    # Twice as often as needed, as sd_watchdog_enabled(3) recommends.
    interval = _read_watchdog_time() / 2
    while math.isfinite(interval):
        if is_alive():
            _notify("WATCHDOG=1")
        await trio.sleep(interval)


def _read_watchdog_time() -> float:
    """Return the seconds after which systemd misses us; infinite if it does not."""
    text = os.environ.get("WATCHDOG_USEC", "")
    for_us = os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
    is_set = for_us and text.isascii() and text.isdigit() and int(text) > 0
    return int(text) / 1e6 if is_set else math.inf


def _notify(state: str) -> None:
    """Tell systemd a state, if it listens; this does not block."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    if address.startswith("@"):  # how systemd writes an abstract socket
        address = f"\0{address[1:]}"
    kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
    with suppress(OSError), socket.socket(socket.AF_UNIX, kind) as sending:
        sending.sendto(state.encode(), address)
