"""All blocking calls are there, and only what never suspends becomes one."""

from __future__ import annotations

import inspect

import pytest
import trio

from qmpballoon.balloon.balloon import Balloon
from qmpballoon.balloon.sampling import Sampler
from qmpballoon.blocking.balloon import BlockingBalloon, BlockingSampler, run_sync

INNER = {"begin"}  # a sampler's, for who makes it


@pytest.mark.parametrize(
    ("original", "blocking"), [(Balloon, BlockingBalloon), (Sampler, BlockingSampler)]
)
def test_every_method_has_its_blocking_call(original: type, blocking: type) -> None:
    names = {name for name in vars(original) if not name.startswith("_")} - INNER
    assert names <= {*dir(blocking)}
    for name in names:
        method = getattr(original, name)
        if inspect.iscoroutinefunction(method):
            call = getattr(blocking, name)
            assert not inspect.iscoroutinefunction(call)
            assert inspect.signature(call) == inspect.signature(method)
            assert call.__doc__ == method.__doc__


def test_what_awaits_an_event_loop_is_refused() -> None:
    async def pause() -> None:
        await trio.lowlevel.cancel_shielded_checkpoint()

    with pytest.raises(RuntimeError, match="needs an event loop"):
        run_sync(pause())


def test_exceptions_come_through() -> None:
    async def fail() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_sync(fail())
