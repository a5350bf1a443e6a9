"""What tests on faults in mid-flight share, and the page they are the source of.

Each such test has its row in ``docs/reference/faults.md``: the decorator
:func:`fault` names it by its first cell, and holds what the test returns against
the other two. So the page says what was seen, and nothing else.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any, cast

import trio
from attrs import define
from docblocks import DOCS

from qmpballoon.balloon import ReclaimReport
from qmpballoon.balloon.results import ResizeResult
from qmpballoon.errors import BalloonStalled, QmpBalloonError
from qmpballoon.testing.lab._qemu import wait_ended
from qmpballoon.trio import open_monitor

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping

    from qmpballoon.balloon.balloon import Balloon
    from qmpballoon.balloon.sampling import Progress
    from qmpballoon.testing.lab import Guest

__all__ = [
    "GONE",
    "SECONDS",
    "Call",
    "Row",
    "ask",
    "comes_to",
    "ends",
    "fault",
    "in_the_middle",
    "rows",
    "said",
    "stays_at",
]

PAGE = DOCS / "reference" / "faults.md"
SECONDS = 180  # for what takes a few, on a machine that is busy
GONE = "nothing: QEMU is gone"

Row = tuple[str, str]
"""What a caller gets, and what the guest is left with."""


def rows() -> dict[str, Row]:
    """Read the page: its rows by what happens in them, in their order."""
    found: dict[str, Row] = {}
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if line.startswith("|"):
            title, got, left = (cell.strip() for cell in line.strip("|").split("|"))
            assert title not in found, f"two rows for {title}"
            found[title] = (got, left)
    head, rule = list(found)[:2]
    assert not rule.strip("-")
    del found[head], found[rule]
    return found


def fault(
    title: str,
) -> Callable[[Callable[..., Awaitable[Row]]], Callable[..., Awaitable[None]]]:
    """Hold what a test returns against its row of the page."""

    def decorate(test: Callable[..., Awaitable[Row]]) -> Callable[..., Awaitable[None]]:
        @wraps(test)
        async def held(*args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - fixtures
            seen, row = await test(*args, **kwargs), rows()[title]
            assert seen == row, f"seen was {seen}, and {PAGE.name} says {row}"

        held.__dict__["fault"] = title
        return held

    return decorate


@define
class Call:
    """A call that is on its way.

    Attributes:
        before: Bytes the guest had.
        actual: Bytes the guest had when the call looked last.
        got: What it has returned or raised.
    """

    before: int
    actual: int
    got: object = None


@asynccontextmanager
async def in_the_middle(
    balloon: Balloon,
    call: Callable[..., Awaitable[object]],
    *args: object,
    **kwargs: object,
) -> AsyncGenerator[Call]:
    """Call something that shrinks the guest; the block begins in the middle of it.

    The block ends when the call has.
    """
    size = await balloon.actual()
    running, moved = Call(size, size), trio.Event()

    def look(seen: Progress) -> None:
        running.actual = seen.actual
        if seen.actual < size:
            moved.set()

    async def run() -> None:
        try:
            running.got = await call(*args, on_progress=look, **kwargs)
        except QmpBalloonError as error:
            running.got = error
        moved.set()

    with trio.fail_after(SECONDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            await moved.wait()
            assert running.got is None, f"too late: {running.got!r}"
            yield running


def said(got: object) -> str:
    """Say what a caller got as the page does."""
    match got:
        case BalloonStalled():
            assert got.diagnosis is not None
            return f"`BalloonStalled`, `{got.diagnosis.kind}`"
        case QmpBalloonError():
            assert len(str(got).splitlines()) == 1
            return f"`{type(got).__name__}`"
        case ResizeResult() | ReclaimReport():
            return f"`{got.outcome}`"
        case _:
            raise AssertionError(got)


async def ask(guest: Guest, command: str, **arguments: object) -> Mapping[str, Any]:
    """Ask QEMU on the guest's second monitor."""
    async with open_monitor(
        guest.second_socket, timeout=SECONDS, command_timeout=SECONDS
    ) as monitor:
        answer = await monitor.execute(command, arguments)
        return cast("Mapping[str, Any]", answer)


async def comes_to(guest: Guest, size: int) -> None:
    """Wait until the guest has a size, and see that nobody in it had to die."""
    with trio.fail_after(SECONDS):
        # QEMU tells of a change at most once a second: asking is quicker.
        while (await ask(guest, "query-balloon"))["actual"] != size:  # noqa: ASYNC110
            await trio.sleep(0.05)
    assert await guest.oom_kills() == 0


async def stays_at(guest: Guest, size: int) -> None:
    """See that the guest has a size, and that it was not told to go elsewhere."""
    await comes_to(guest, size)
    # To go elsewhere it would need its driver to run: it has, when this is done.
    await guest.fill_cache(1)
    assert (await ask(guest, "query-balloon"))["actual"] == size


async def ends(guest: Guest) -> str:
    """Wait until QEMU has ended."""
    with trio.fail_after(SECONDS):
        await wait_ended(guest.process)
    return GONE
