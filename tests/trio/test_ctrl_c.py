"""Ctrl-C at every line that a call of a monitor runs through."""

from __future__ import annotations

import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio
from qmp_peers import serve, stream_of
from trio.testing import wait_all_tasks_blocked

import qmpballoon
from qmpballoon.trio import TrioMonitor, open_monitor

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from types import FrameType, TracebackType

pytestmark = pytest.mark.usefixtures("no_descriptor_leaks")

PACKAGE = str(Path(qmpballoon.__file__).parent)


class Press:
    """Presses Ctrl-C before the so-manieth line of the package that its block runs."""

    def __init__(self, number: int) -> None:
        self._left = number

    @property
    def was_pressed(self) -> bool:
        return self._left <= 0

    def __enter__(self) -> None:
        self._before = sys.gettrace()  # such as what measures coverage
        sys.settrace(self._choose)

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        sys.settrace(self._before)

    def _choose(self, frame: FrameType, event: str, arg: object) -> Any:  # noqa: ANN401
        del event, arg
        is_ours = frame.f_code.co_filename.startswith(PACKAGE)
        return self._step if is_ours else None

    def _step(self, frame: FrameType, event: str, arg: object) -> Any:  # noqa: ANN401
        del frame, arg
        if event == "line":
            self._left -= 1
            if self._left == 0:
                signal.raise_signal(signal.SIGINT)
        return self._step


@pytest.fixture(autouse=True)
def default_handler() -> Iterator[None]:
    """Have trio handle Ctrl-C: it does if nobody else does."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


async def execute(monitor: TrioMonitor) -> None:
    await monitor.execute("echo", {"a": 1})


async def execute_all(monitor: TrioMonitor) -> None:
    await monitor.execute_all([("echo", {"a": 1}), ("echo", {"a": 2})])


def served() -> socket.socket:
    """Return the client's end of a connection that is served until the run ends."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)  # noqa: FBT003
    trio.lowlevel.spawn_system_task(serve, stream_of(theirs))
    return ours


@pytest.mark.parametrize("call", [execute, execute_all])
def test_the_monitor_goes_on(call: Callable[[TrioMonitor], Awaitable[None]]) -> None:
    async def press_at(number: int) -> bool:
        press = Press(number)
        async with open_monitor(served()) as monitor:
            with suppress(KeyboardInterrupt):
                with press:
                    await call(monitor)
                await trio.lowlevel.checkpoint()  # where it comes late
            # All eight that may be under way at once can be again.
            async with trio.open_nursery() as callers:
                for _ in range(8):
                    callers.start_soon(execute, monitor)
        return press.was_pressed

    number = 1
    while trio.run(press_at, number):
        number += 1
    assert number > 20  # it was pressed at all


def test_nothing_is_left_open() -> None:
    async def press_at(number: int) -> bool:
        press, target = Press(number), served()
        tasks = trio.lowlevel.current_statistics().tasks_living
        with suppress(KeyboardInterrupt), press:
            async with open_monitor(target):
                pass
        with suppress(KeyboardInterrupt):
            await trio.lowlevel.checkpoint()  # where it comes late
        target.close()  # if it was not taken over
        await wait_all_tasks_blocked()
        assert trio.lowlevel.current_statistics().tasks_living <= tasks
        return press.was_pressed

    number = 1
    while trio.run(press_at, number):
        number += 1
    assert number > 20
