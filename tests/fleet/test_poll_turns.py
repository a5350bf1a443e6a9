"""Turns of many who wait, on one timer and a mock clock."""

from __future__ import annotations

import trio
from worlds import simulated

from qmpballoon.fleet.poll_turns import PollTurns


async def note(turns: PollTurns[str], who: str, due: float, log: list[str]) -> None:
    await turns.wait(who, due)
    log.append(who)


@simulated
async def test_each_is_woken_when_it_is_its_turn() -> None:
    turns, log = PollTurns[str](1.0, lambda _: False), list[str]()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(turns.run)
        began = trio.current_time()
        # The timer runs already when the earlier one comes.
        nursery.start_soon(note, turns, "late", began + 3, log)
        await trio.sleep(0.5)
        nursery.start_soon(note, turns, "early", began + 1, log)
        for seconds, expected in ((0.4, []), (0.2, ["early"]), (1.8, ["early"])):
            await trio.sleep(seconds)
            assert log == expected
        await trio.sleep(0.2)
        assert log == ["early", "late"]
        nursery.cancel_scope.cancel()


@simulated
async def test_who_has_nothing_to_do_waits_for_the_next_turn() -> None:
    asked, log = list[str](), list[str]()

    def may_pass(who: str) -> bool:
        asked.append(who)
        return len(asked) < 4

    turns = PollTurns[str](1.0, may_pass)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(turns.run)
        nursery.start_soon(note, turns, "idle", trio.current_time() + 1, log)
        await trio.sleep(3.5)
        assert (len(asked), log) == (3, [])
        await trio.sleep(1)
        assert (len(asked), log) == (4, ["idle"])
        nursery.cancel_scope.cancel()


@simulated
async def test_who_is_woken_or_cancelled_has_no_turn_any_more() -> None:
    asked, log = list[str](), list[str]()

    def may_pass(who: str) -> bool:
        asked.append(who)
        return False

    turns = PollTurns[str](1.0, may_pass)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(turns.run)
        now = trio.current_time()
        nursery.start_soon(note, turns, "woken", now + 1, log)
        with trio.move_on_after(0.5):
            await turns.wait("cancelled", now + 1)
        turns.wake("woken")
        turns.wake("cancelled")
        turns.wake("nobody")
        await trio.sleep(0.1)
        assert log == ["woken"]
        # The turn of its first wait is not that of the second.
        nursery.start_soon(note, turns, "woken", now + 3, log)
        await trio.sleep(1.4)
        assert asked == []
        await trio.sleep(1.1)
        assert asked == log[1:] == ["woken"]
        nursery.cancel_scope.cancel()


@simulated
async def test_those_who_left_delay_nobody() -> None:
    turns, log = PollTurns[str](1.0, lambda _: False), list[str]()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(turns.run)
        due = trio.current_time() + 1
        with trio.move_on_after(0.5):
            async with trio.open_nursery() as leaving:
                for number in range(10):
                    leaving.start_soon(turns.wait, f"left{number}", due)
        nursery.start_soon(note, turns, "stays", due, log)
        await trio.sleep_until(due + 0.05)
        assert log == ["stays"]
        nursery.cancel_scope.cancel()


@simulated
async def test_who_is_late_is_asked_once_and_then_after_half_a_period() -> None:
    asked = list[str]()

    def may_pass(who: str) -> bool:
        asked.append(who)
        return True

    turns = PollTurns[str](1.0, may_pass)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(turns.run)
        nursery.start_soon(turns.wait, "late", trio.current_time() - 10)
        await trio.sleep(0.4)
        assert asked == ["late"]
        await trio.sleep(0.3)
        assert asked == ["late", "late"]
        nursery.cancel_scope.cancel()
