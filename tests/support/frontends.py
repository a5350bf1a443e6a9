"""Every front end behind one face, so that what is to hold for all is written once.

A scenario is a coroutine function that is given a :class:`FrontEnd`. The blocking
front end runs it too: its blocking calls are wrapped in coroutines that never
suspend. So what is tested is what its users call.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeAlias, TypedDict, TypeVar, Unpack, cast

import pytest
import trio
from attrs import define
from qemu.qmp import QMPClient

from qmpballoon import asyncio as aio
from qmpballoon import blocking
from qmpballoon import trio as client
from qmpballoon.balloon.balloon import Balloon
from qmpballoon.balloon.sampling import Sampler
from qmpballoon.blocking import balloon

if TYPE_CHECKING:
    from collections.abc import (
        AsyncGenerator,
        AsyncIterator,
        Awaitable,
        Callable,
        Coroutine,
        Generator,
    )
    from contextlib import AbstractAsyncContextManager

    from qmpballoon._transport.own_monitor import Own
    from qmpballoon.blocking import Target

T = TypeVar("T")
Scenario: TypeAlias = "Callable[..., Coroutine[Any, Any, None]]"


class Options(TypedDict, total=False):
    """What all of them let their users choose."""

    name: str
    timeout: float
    command_timeout: float
    own: Own


class FrontEnd:
    """One way to the balloon."""

    name = "none"

    def run(self, main: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine to its end."""
        raise NotImplementedError

    def open_balloon(
        self, target: Target, **options: Unpack[Options]
    ) -> AbstractAsyncContextManager[Balloon]:
        """Connect and find the balloon."""
        raise NotImplementedError

    @contextmanager
    def interrupted(self) -> Generator[Callable[[], None]]:
        """Yield what cancels the caller; the block swallows the cancellation."""
        raise NotImplementedError


class Trio(FrontEnd):
    name = "trio"

    def run(self, main: Coroutine[Any, Any, T]) -> T:
        async def start() -> T:
            with trio.fail_after(300):
                return await main

        return trio.run(start)

    def open_balloon(
        self, target: Target, **options: Unpack[Options]
    ) -> AbstractAsyncContextManager[Balloon]:
        return client.open_balloon(target, **options)

    @contextmanager
    def interrupted(self) -> Generator[Callable[[], None]]:
        with trio.CancelScope() as scope:
            yield scope.cancel


class Asyncio(FrontEnd):
    name = "asyncio"

    def run(self, main: Coroutine[Any, Any, T]) -> T:
        return asyncio.run(asyncio.wait_for(main, 300))

    def open_balloon(
        self, target: Target, **options: Unpack[Options]
    ) -> AbstractAsyncContextManager[Balloon]:
        return aio.open_balloon(target, **options)

    @contextmanager
    def interrupted(self) -> Generator[Callable[[], None]]:
        task = asyncio.current_task()
        assert task is not None

        def strike() -> None:
            task.cancel()

        with suppress(asyncio.CancelledError):
            yield strike
        task.uncancel()


class SharedClient(Asyncio):
    """An orchestrator's own client."""

    name = "client"

    @asynccontextmanager
    async def open_balloon(
        self, target: Target, **options: Unpack[Options]
    ) -> AsyncGenerator[Balloon, None]:
        qmp = QMPClient("vm")
        await qmp.connect(str(target))
        try:
            timeout = options.get("command_timeout", aio.COMMAND_TIMEOUT)
            name = options.get("name")
            yield await aio.find_balloon(qmp, name=name, command_timeout=timeout)
        finally:
            with suppress(Exception):  # what ended the connection is raised again
                await qmp.disconnect()


class Blocking(FrontEnd):
    name = "blocking"

    def run(self, main: Coroutine[Any, Any, T]) -> T:
        return balloon.run_sync(main)

    @asynccontextmanager
    async def open_balloon(
        self, target: Target, **options: Unpack[Options]
    ) -> AsyncGenerator[Balloon, None]:
        with blocking.open_balloon(target, **options) as balloon:
            yield cast("Balloon", Awaited(balloon, Balloon))

    @contextmanager
    def interrupted(self) -> Generator[Callable[[], None]]:
        with suppress(KeyboardInterrupt):
            yield functools.partial(signal.raise_signal, signal.SIGINT)


@define
class Awaited:
    """Blocking calls, as coroutines wherever ``like`` has coroutines."""

    blocking: Any
    like: type

    def __getattr__(self, name: str) -> object:
        value = getattr(self.blocking, name)
        if name == "monitor":
            return Awaited(value, client.TrioMonitor)
        if name == "sampler":
            return self._sampler
        if name == "stats_interval":
            return self._stats_interval
        if name == "watch":
            return self._watch
        if inspect.iscoroutinefunction(getattr(self.like, name, None)):
            return self._awaited(value)
        return value

    def _awaited(self, call: Callable[..., T]) -> Callable[..., Awaitable[T]]:
        async def awaited(*args: object, **kwargs: object) -> T:
            return call(*args, **kwargs)

        return awaited

    @asynccontextmanager
    async def _sampler(self) -> AsyncIterator[Any]:
        with self.blocking.sampler() as sampler:
            yield Awaited(sampler, Sampler)

    async def _watch(self, interval: float) -> AsyncIterator[Any]:
        for sample in self.blocking.watch(interval):
            yield sample

    @asynccontextmanager
    async def _stats_interval(self, seconds: int) -> AsyncIterator[None]:
        with self.blocking.stats_interval(seconds):
            yield


CONNECTING = [Trio(), Asyncio(), Blocking()]
"""Those that connect by themselves."""
ALL = [*CONNECTING, SharedClient()]


def elsewhere(call: Callable[[], object]) -> None:
    """Call that in another thread: in trio's own the fake refuses to wait."""
    with ThreadPoolExecutor(1) as thread:
        thread.submit(call).result()


def on(*front_ends: FrontEnd) -> Callable[[Scenario], Callable[..., None]]:
    """Run an async test on each of these front ends."""

    def decorate(scenario: Scenario) -> Callable[..., None]:
        # Keeps the signature, from which pytest reads which fixtures are wanted.
        @functools.wraps(scenario)
        def test(front: FrontEnd, **fixtures: object) -> None:
            front.run(scenario(front=front, **fixtures))

        return on_each(*front_ends)(test)

    return decorate


def on_each(*front_ends: FrontEnd) -> pytest.MarkDecorator:
    """Give a test each of these front ends."""
    return pytest.mark.parametrize("front", front_ends, ids=lambda front: front.name)
