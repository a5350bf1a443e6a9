"""Background tasks end with their block, and leave its exceptions as they are."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from qmpballoon._transport.trio_tasks import BackgroundTasks

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


async def test_an_exception_of_the_block_is_not_wrapped() -> None:
    async def fail() -> None:
        async with BackgroundTasks(shield=True) as tasks:
            tasks.start_soon(trio.sleep_forever)
            raise ValueError("as it was raised")

    with pytest.raises(ValueError, match="as it was raised"):
        await fail()


async def test_a_cancellation_of_the_block_is_not_wrapped() -> None:
    with trio.move_on_after(0) as scope:
        async with BackgroundTasks(shield=False) as tasks:
            tasks.start_soon(trio.sleep_forever)
            with pytest.raises(trio.Cancelled):
                await trio.sleep_forever()
            await trio.lowlevel.checkpoint()
    assert scope.cancelled_caught


@pytest.mark.parametrize("shield", [True, False])
async def test_only_a_shield_keeps_tasks_running_after_a_cancellation(
    *, shield: bool
) -> None:
    answered = []

    async def answer(asked: trio.Event, answer: trio.Event) -> None:
        await asked.wait()
        answer.set()

    with trio.CancelScope() as scope:
        async with BackgroundTasks(shield=shield) as tasks:
            asked, answer_came = trio.Event(), trio.Event()
            tasks.start_soon(answer, asked, answer_came)
            scope.cancel()
            with trio.move_on_after(1, shield=True):
                await trio.testing.wait_all_tasks_blocked()
                asked.set()
                await trio.testing.wait_all_tasks_blocked()
                answered.append(answer_came.is_set())
    assert answered == [shield]


async def test_the_end_of_the_block_cancels_the_tasks() -> None:
    ended = trio.Event()

    async def run() -> None:
        try:
            await trio.sleep_forever()
        finally:
            ended.set()

    async with BackgroundTasks(shield=True) as tasks:
        tasks.start_soon(run)
        await trio.testing.wait_all_tasks_blocked()
        assert not ended.is_set()
    assert ended.is_set()


async def test_a_task_that_fails_before_it_has_started_raises_that_error() -> None:
    async def listen(task_status: trio.TaskStatus[None]) -> None:
        del task_status
        raise OSError("no such folder")

    with pytest.raises(OSError, match="no such folder"):
        async with BackgroundTasks(shield=True) as tasks:
            await tasks.start(listen)


async def test_tasks_can_be_waited_for() -> None:
    done = []

    async def run(turns: int, task_status: trio.TaskStatus[None]) -> None:
        task_status.started()
        for _ in range(turns):
            await trio.lowlevel.checkpoint()
        done.append(turns)

    async with BackgroundTasks(shield=True) as tasks:
        await tasks.start(run, 3)
        await tasks.start(run, 9)
        await tasks.wait()
        assert done == [3, 9]


def press_ctrl_c() -> None:
    signal.raise_signal(signal.SIGINT)


async def press_soon() -> None:
    press_ctrl_c()
    await trio.sleep_forever()


async def press_at_the_end() -> None:
    try:
        await trio.sleep_forever()
    finally:
        press_ctrl_c()


@pytest.mark.parametrize("task", [press_soon, press_at_the_end])
def test_ctrl_c_reaches_the_block_and_no_task(
    task: Callable[[], Awaitable[None]],
) -> None:
    interrupted: list[str] = []

    async def watched() -> None:
        try:
            await task()
        except KeyboardInterrupt:
            interrupted.append("task")
            raise

    async def main() -> None:
        async with BackgroundTasks(shield=True) as tasks:
            tasks.start_soon(watched)
            await trio.testing.wait_all_tasks_blocked()
            if task is press_soon:
                await trio.sleep_forever()

    with pytest.raises(KeyboardInterrupt):
        trio.run(main)
    assert interrupted == []


async def test_a_task_that_is_started_while_the_others_end_ends_too() -> None:
    async def start_another() -> None:
        try:
            await trio.sleep_forever()
        finally:
            tasks.start_soon(trio.sleep_forever)

    with trio.fail_after(10):
        async with BackgroundTasks(shield=False) as tasks:
            tasks.start_soon(start_another)
            await trio.testing.wait_all_tasks_blocked()
