"""What the pages show, and that whoever reads them is told what has changed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
from attrs import evolve
from pages import GONE, WELL
from worlds import simulated

from qmpballoon.balloon.sampling import Sample
from qmpballoon.sizes import GiB
from qmpballoon.web.board import Board, History, LivePage

if TYPE_CHECKING:
    from collections.abc import Iterator


def make_board() -> Board:
    return Board(wall_clock=lambda: 1000 + trio.current_time())


def test_a_history_is_bounded_and_keeps_first_and_last() -> None:
    history = History()
    for t in range(10_000):
        history.add(Sample(float(t), None, GiB))
    times = [sample.t for sample in history]
    assert times == sorted(times)
    assert len(times) <= 600
    assert times[0] == 0
    assert times[-300:] == list(range(9700, 10_000))


def test_a_history_does_not_go_back() -> None:
    history = History()
    for t in (2.0, 1.0):
        history.add(Sample(t, None, GiB))
    assert [sample.t for sample in history] == [2.0, 2.0]


@simulated
async def test_a_sample_is_taken_each_second_and_whenever_the_size_changes() -> None:
    board = make_board()
    for actual in (2, 2, 2, 1, 1):
        board.note([evolve(WELL, actual=actual * GiB)])
        await trio.sleep(0.5)
    (vm,) = board.vms.values()
    assert [(sample.t, sample.actual) for sample in vm.history] == [
        (0.0, 2 * GiB),
        (1.0, 2 * GiB),
        (1.5, GiB),
    ]


@simulated
async def test_what_was_requested_last_stays_until_the_vm_is_lost() -> None:
    board = make_board()
    lost = evolve(GONE, name=WELL.name)
    for view in (WELL, evolve(WELL, target=GiB), WELL, lost, WELL):
        board.note([view])
        await trio.sleep(1)
    (vm,) = board.vms.values()
    targets = [sample.target for sample in vm.history]
    assert targets == [None, GiB, GiB, None]


@simulated
async def test_states_are_marked_and_told() -> None:
    board = make_board()
    for view in (WELL, evolve(WELL, state="stale", detail="it hangs"), WELL):
        board.note([view])
        await trio.sleep(1)
    board.note([])
    assert [entry.text for entry in board.entries] == [
        *("is stale: it hangs", "is healthy", "is not in the fleet any more"),
    ]
    assert [entry.at for entry in board.entries] == [1001, 1002, 1003]
    (vm,) = board.vms.values()
    assert [sample.mark for sample in vm.history] == [None, "stale", "healthy"]
    assert not vm.is_there


@simulated
async def test_few_of_those_that_are_gone_are_remembered() -> None:
    board = make_board()
    for number in range(200):
        board.note([evolve(WELL, name=f"vm{number}")])
    assert len(board.vms) == 51
    assert len({vm.number for vm in board.vms.values()}) == 51
    assert len(board.entries) <= 500


@simulated
async def test_a_reader_is_told_what_has_changed_since_it_read() -> None:
    shown = {"a": "1", "b": "1"}
    page = LivePage(shown.items)
    await page.update(1)
    assert page.list_since(0) == {"a": "1", "b": "1"}
    shown["a"] = "2"
    await page.update(1)
    assert page.list_since(1) == {}, "drawn once a tick"
    await page.update(2)
    assert page.list_since(1) == {"a": "2"}
    del shown["b"]
    await page.update(3)
    assert page.list_since(1) == {"a": "2", "b": ""}
    assert page.list_since(2) == {"b": ""}
    assert page.list_since(3) == {}
    shown["b"] = "1"
    await page.update(4)
    assert page.list_since(3) == {"b": "1"}
    # Another reader may be ahead: then that is what this one has seen.
    assert await page.update(2) == 4


@simulated
async def test_what_was_removed_is_forgotten_in_time() -> None:
    tick = 0
    page = LivePage(lambda: [(f"part {tick}", "text")])
    for tick in range(1, 1100):
        await page.update(tick)
    assert len(page.list_since(0)) < 1000
    assert 0 < page.forgotten < 1100


@simulated
async def test_a_large_page_keeps_nobody_waiting() -> None:
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    def draw() -> Iterator[tuple[str, str]]:
        for number in range(100):
            yield str(number), "text"

    async with trio.open_nursery() as nursery:
        nursery.start_soon(count)
        await LivePage(draw).update(1)
        nursery.cancel_scope.cancel()
    assert turns >= 99


@simulated
async def test_a_tick_is_waited_for() -> None:
    board = make_board()
    board.note([])
    await board.wait(0)
    with pytest.raises(trio.TooSlowError), trio.fail_after(5):
        await board.wait(1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(board.wait, 1)
        await trio.sleep(1)
        board.begin_tick()
