"""Connecting again and again: how long each attempt waits, and when one has failed."""

from __future__ import annotations

import asyncio
import random
import threading
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import TYPE_CHECKING

import pytest
import trio
from asyncio_runs import run
from scripted import Session, serve, standard_answer

from qmpballoon import MonitorClosed, MonitorUnreachable, blocking
from qmpballoon import asyncio as aio
from qmpballoon import trio as client
from qmpballoon._transport.reconnection import (
    AsyncReconnection,
    Backoff,
    BlockingReconnection,
)
from qmpballoon.blocking.balloon import run_sync

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator

# What each attempt comes to: it does not open, or what its block raises.
REFUSED = MonitorUnreachable("nobody there")
LOST = MonitorClosed("gone")
BUG = ZeroDivisionError("a bug")
ENOUGH = KeyError("enough")


class NoJitter(random.Random):
    """Chooses the longest pause, and sees from what it may choose."""

    def uniform(self, a: float, b: float) -> float:
        assert (a, b) == (0.5, 1.0)
        return b


class Attempts:
    """Attempts that end as they are told to, and the pauses before them."""

    def __init__(self, *ends: Exception | None) -> None:
        self.pauses: list[float] = []
        self._left = iter(ends)
        self._backoff = Backoff(NoJitter(), 0.5, 5.0)

    @contextmanager
    def open_blocking(self) -> Generator[Exception | None]:
        end = next(self._left)
        if end is REFUSED:
            raise end
        yield end

    @asynccontextmanager
    async def open_async(self) -> AsyncGenerator[Exception | None]:
        with self.open_blocking() as end:
            yield end

    async def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)

    async def run_async(self) -> None:
        async for connection in AsyncReconnection(
            self.open_async, self._backoff, self.sleep
        ):
            with suppress(MonitorUnreachable, MonitorClosed, ZeroDivisionError):
                async with connection as end:
                    if end is not None:
                        raise end

    def run_blocking(self) -> None:
        for connection in BlockingReconnection(
            self.open_blocking, self._backoff, self.pauses.append
        ):
            with (
                suppress(MonitorUnreachable, MonitorClosed, ZeroDivisionError),
                connection as end,
            ):
                if end is not None:
                    raise end


@pytest.mark.parametrize("use_async", [True, False])
def test_pauses_grow_while_it_fails_and_are_short_after_it_worked(
    *, use_async: bool
) -> None:
    ends = (*[REFUSED] * 5, None, LOST, REFUSED, LOST, BUG, BUG, LOST)
    attempts = Attempts(*ends, ENOUGH)
    with pytest.raises(KeyError):
        run_sync(attempts.run_async()) if use_async else attempts.run_blocking()
    assert attempts.pauses == [
        *(0.0, 1.0, 2.0, 4.0, 5.0, 5.0),  # refused
        *(0.5, 0.5, 1.0, 0.5),  # left in order, lost, refused, lost
        *(1.0, 2.0, 0.5),  # bugs, lost
    ]


def test_pauses_are_spread_by_the_given_random_numbers() -> None:
    def draw(seed: int) -> list[float]:
        backoff = Backoff(random.Random(seed), 1.0, 8.0)
        return [backoff.begin_attempt() for _ in range(50)]

    drawn = draw(1)
    assert drawn == draw(1) != draw(2)
    assert drawn[0] == 0
    assert all(4.0 <= pause <= 8.0 for pause in drawn[4:])
    assert len({*drawn[4:]}) == len(drawn[4:])


def test_a_thousand_failures_are_no_overflow() -> None:
    backoff = Backoff(random.Random(1), 0.5, 30.0)
    assert max(backoff.begin_attempt() for _ in range(3000)) <= 30


@pytest.mark.parametrize("bad", [{"first_pause": -1}, {"longest_pause": float("nan")}])
def test_a_bad_pause_is_refused_at_once(bad: dict[str, float]) -> None:
    for door in (client, aio, blocking):
        with pytest.raises(ValueError, match="_pause"):
            door.stay_connected(
                lambda: pytest.fail("nobody asked"), random.Random(), **bad
            )


# On each front end, a QEMU that leaves when told to.


def leave_when_told(session: Session) -> None:
    session.greet()
    while (request := session.request()).command != "leave":
        session.answer(request, standard_answer(request))


def test_on_trio() -> None:
    sizes: list[int] = []

    async def main(path: str) -> None:
        async for connection in client.stay_connected(
            lambda: client.open_balloon(path), random.Random(1), first_pause=0.001
        ):
            try:
                async with connection as balloon:
                    sizes.append(await balloon.actual())
                    if len(sizes) == 3:
                        break
                    await balloon.monitor.execute("leave", timeout=30)
            except MonitorClosed:
                sizes.append(0)

    with serve(leave_when_told) as path:
        trio.run(main, path)
    assert sizes == [1 << 30, 0, 1 << 30]


def test_on_asyncio() -> None:
    sizes: list[int] = []

    async def main(path: str) -> None:
        async for connection in aio.stay_connected(
            lambda: aio.open_balloon(path), random.Random(1), first_pause=0.001
        ):
            try:
                async with connection as balloon:
                    sizes.append(await balloon.actual())
                    if len(sizes) == 3:
                        break
                    await balloon.monitor.execute("leave", timeout=30)
            except MonitorClosed:
                sizes.append(0)

    with serve(leave_when_told) as path:
        run(main(path))
    assert sizes == [1 << 30, 0, 1 << 30]


def test_in_blocking_code() -> None:
    sizes: list[int] = []
    with serve(leave_when_told) as path:
        for connection in blocking.stay_connected(
            lambda: blocking.open_balloon(path), random.Random(1), first_pause=0.001
        ):
            try:
                with connection as balloon:
                    sizes.append(balloon.actual())
                    if len(sizes) == 3:
                        break
                    balloon.monitor.execute("leave", timeout=30)
            except MonitorClosed:
                sizes.append(0)
    assert sizes == [1 << 30, 0, 1 << 30]


@pytest.mark.usefixtures("no_descriptor_leaks")
def test_another_thread_can_end_a_pause_in_blocking_code() -> None:
    stop = threading.Event()
    connections = blocking.stay_connected(
        lambda: blocking.open_balloon("/no/such/socket"),
        random.Random(0),
        first_pause=3600,
        longest_pause=3600,
        sleep=stop.wait,
    )
    with pytest.raises(MonitorUnreachable), next(connections):
        pytest.fail("there is nothing to connect to")
    stopper = threading.Timer(0, stop.set)
    stopper.start()
    next(connections)
    assert stop.is_set()
    stopper.join()


@pytest.mark.usefixtures("no_descriptor_leaks")
def test_an_iteration_can_be_cancelled_at_any_moment_and_holds_nothing_open() -> None:
    async def stay(path: str, turns: int) -> None:
        async for connection in aio.stay_connected(
            lambda: aio.open_balloon(path), random.Random(1)
        ):
            async with connection as balloon:
                await balloon.actual()
                if turns % 2:
                    return

    async def main(path: str) -> None:
        for turns in range(30):
            staying = asyncio.create_task(stay(path, turns))
            for _ in range(turns):
                await asyncio.sleep(0)
            staying.cancel()
            with suppress(asyncio.CancelledError):
                await staying

    with serve(leave_when_told) as path:
        run(main(path))
