"""What a run leaves when it is interrupted, and what the next one makes of it.

A process that is killed does nothing any more: here its monitor fails from then on. One
that is cancelled asks for the guest's memory back, and does not wait for it.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from faults import Cancelled, monitor_of
from hypothesis import given
from hypothesis import strategies as st
from notes import Note
from simulation import make_balloon, make_machine, run

from qmpballoon.errors import (
    BalloonBusy,
    MonitorClosed,
    StatsUnavailable,
    UnsafeTarget,
)
from qmpballoon.sizes import GiB, MiB, format_size
from qmpballoon.testing import SECOND, GuestConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Any

    from qmpballoon.balloon.balloon import Balloon
    from qmpballoon.balloon.sampling import Progress
    from qmpballoon.monitor import OwedSize
    from qmpballoon.testing import Machine

RAM = GiB
GUEST = GuestConfig(
    used=100 * MiB,
    cache=700 * MiB,
    inflate_rate=GiB,
    deflate_rate=256 * MiB,
)


def open_balloon(machine: Machine, note: OwedSize | None) -> Balloon:
    """Connect to a machine as a new process does."""
    balloon = make_balloon(machine)
    monitor_of(balloon).owed_size = note  # type: ignore[attr-defined]
    return balloon


CALLS: dict[str, Callable[[Balloon], Coroutine[Any, Any, object]]] = {
    "reclaim": lambda balloon: balloon.reclaim(),
    "a part": lambda balloon: balloon.reclaim(200 * MiB),
    "keep": lambda balloon: balloon.keep(seconds=0.5),
}
calls = st.sampled_from(sorted(CALLS))


GONE = MonitorClosed("the process is gone")


def interrupt(
    balloon: Balloon, call: str, when: Callable[[int], bool], error: BaseException
) -> bool:
    """Run a call, and end it at one of its awaits; return whether it came to that."""
    monitor = monitor_of(balloon)

    async def fail(*_: object) -> object:
        raise GONE

    def strike(number: int) -> None:
        if when(number):
            if error is GONE:  # nothing comes from that process any more
                monitor.execute = fail  # type: ignore[assignment, method-assign]
            raise error

    monitor.before_call = strike
    try:
        run(CALLS[call](balloon))
    except (Cancelled, MonitorClosed):
        return True
    return False


def come_to_rest(machine: Machine) -> int:
    machine.advance(machine.now + 60 * SECOND)
    return machine.actual or 0


@given(first=calls, second=calls, at=st.integers(1, 400), killed=st.booleans())
def test_in_the_end_the_guest_has_its_ram(
    *, first: str, second: str, at: int, killed: bool
) -> None:
    machine, note = make_machine(GUEST, memory=RAM), Note()
    error = GONE if killed else Cancelled()
    interrupt(open_balloon(machine, note), first, at.__eq__, error)
    assert not note.is_held  # although this process goes on
    run(CALLS[second](open_balloon(machine, note)))
    assert come_to_rest(machine) == RAM
    assert note.size is None


@given(first=calls, second=calls, at=st.integers(1, 400))
def test_a_guest_on_its_way_back_is_waited_for_although_nothing_is_noted(
    first: str, second: str, at: int
) -> None:
    machine = make_machine(GUEST, memory=RAM)
    interrupt(open_balloon(machine, None), first, at.__eq__, Cancelled())
    run(CALLS[second](open_balloon(machine, None)))
    assert come_to_rest(machine) == RAM


def leave_small(machine: Machine, note: Note | None) -> int:
    """Kill a process when a guest has little; return the guest's size at rest."""
    balloon = open_balloon(machine, note)

    def is_small(_: int) -> bool:
        return (machine.actual or 0) < RAM // 2

    assert interrupt(balloon, "reclaim", is_small, GONE)
    return come_to_rest(machine)


@pytest.mark.parametrize(("left", "outcome"), [(GiB, "done"), (64 * MiB, "refused")])
def test_who_finds_a_guest_small_and_nothing_noted_says_how_it_leaves_it(
    left: int, outcome: str
) -> None:
    machine = make_machine(GUEST, memory=RAM)
    size = leave_small(machine, None)
    machine.guest.memory.allocate(max(0, machine.guest.memory.available - left))
    report = run(open_balloon(machine, None).reclaim(32 * MiB))
    assert (report.outcome, come_to_rest(machine)) == (outcome, size)
    shown = f"it is left with {format_size(size)}, as it was found, and not all of its"
    assert f"{shown} 1 GiB: `resize 100%`" in report.reason
    assert (report.ram, report.leaves_small) == (RAM, outcome == "done")


def test_what_is_given_back_is_said() -> None:
    machine, note = make_machine(GUEST, memory=RAM), Note()
    leave_small(machine, note)
    assert open_balloon(machine, note).read_owed() == RAM
    report = run(open_balloon(machine, note).reclaim(32 * MiB))
    assert (
        "it has 1 GiB again, which a run that was interrupted owed it" in report.reason
    )
    assert report.given_back_to == report.before.actual == RAM
    assert not report.leaves_small
    assert note.size is None


def test_a_guest_with_nothing_to_spare_gets_it_back_too() -> None:
    machine, note = make_machine(GUEST, memory=RAM), Note()
    size = leave_small(machine, note)
    machine.guest.memory.allocate(size - 64 * MiB)
    run(open_balloon(machine, note).reclaim())
    assert come_to_rest(machine) == RAM


def test_a_plan_moves_nothing() -> None:
    machine, note = make_machine(GUEST, memory=RAM), Note()
    size = leave_small(machine, note)
    balloon = open_balloon(machine, note)
    run(balloon.plan_reclaim())
    assert monitor_of(balloon).targets() == []
    assert (come_to_rest(machine), note.size) == (size, RAM)


@pytest.mark.parametrize("call", ["resize", "set_target", "hold"])
def test_whoever_decides_anew_owes_nothing(call: str) -> None:
    machine, note = make_machine(GUEST, memory=RAM), Note()
    leave_small(machine, note)
    balloon = open_balloon(machine, note)
    match call:
        case "resize":
            run(balloon.resize(RAM // 2))
        case "set_target":
            run(balloon.set_target(RAM // 2))
        case _:
            assert run(balloon.reclaim(hold=True)).given_back_to is None
    assert note.size is None
    assert come_to_rest(machine) < RAM


def test_the_size_at_the_end_can_be_given() -> None:
    machine = make_machine(GUEST, memory=RAM)
    leave_small(machine, None)
    report = run(open_balloon(machine, None).reclaim(give_back_to=2 * RAM))
    assert come_to_rest(machine) == RAM == report.given_back_to
    balloon = open_balloon(machine, None)
    with pytest.raises(UnsafeTarget, match="is to have 512 MiB at the end, and has 1"):
        run(balloon.reclaim(give_back_to=RAM // 2))
    with pytest.raises(ValueError, match="give_back_to and hold"):
        run(balloon.reclaim(give_back_to=RAM, hold=True))
    assert monitor_of(balloon).targets() == []


def test_what_is_on_its_way_back_is_noted_as_that() -> None:
    machine, note = make_machine(GUEST, memory=RAM), Note()
    balloon = open_balloon(machine, note)
    assert interrupt(balloon, "reclaim", (60).__eq__, Cancelled())
    assert note == Note(RAM, is_returning=True)


def test_what_cannot_be_noted_is_said_and_stops_nobody(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Note, "note", fail)
    machine = make_machine(GUEST, memory=RAM)
    report = run(open_balloon(machine, Note()).reclaim())
    assert report.outcome == "done"
    assert "cannot be noted: [Errno 28] No space left" in caplog.text


def test_who_is_interrupted_right_after_noting_holds_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ctrl-C in blocking code; the process may run on."""
    machine, note = make_machine(GUEST, memory=RAM), Note()
    write = Note.note

    def interrupt(note: Note, size: int, *, is_held: bool, **_: object) -> None:
        write(note, size, is_held=is_held)
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(Note, "note", interrupt)
    balloon = open_balloon(machine, note)
    with pytest.raises(KeyboardInterrupt):
        run(balloon.reclaim())
    assert (note.is_held, note.holder) == (False, None)
    for each in (balloon, open_balloon(machine, note)):
        assert run(each.reclaim(64 * MiB)).outcome == "done"


def test_nothing_is_noted_before_something_can_be_taken() -> None:
    machine, note = make_machine(GuestConfig(driver=False), memory=RAM), Note()
    with pytest.raises(StatsUnavailable):
        run(open_balloon(machine, note).reclaim())
    assert note.size is None


# What another process holds


HOLDER = 4242
HELD = f"nothing was taken: .* is held by process {HOLDER}, .*kill {HOLDER}"


@pytest.mark.parametrize("call", CALLS)
def test_who_finds_that_another_holds_memory_takes_nothing(call: str) -> None:
    machine, note = make_machine(GUEST, memory=RAM), Note()
    size = leave_small(machine, note)
    note.holder = HOLDER
    balloon = open_balloon(machine, note)
    assert (balloon.read_owed(), balloon.read_holder()) == (None, HOLDER)
    with pytest.raises(BalloonBusy, match=HELD):
        run(CALLS[call](balloon))
    with pytest.raises(BalloonBusy, match=HELD):
        run(balloon.reclaim(give_back_to=RAM))
    planned = run(balloon.plan_reclaim())
    assert (planned.owed, planned.holder) == (None, HOLDER)
    assert f"refused now, because memory of the guest is held by process {HOLDER}" in (
        planned.describe()
    )
    assert monitor_of(balloon).targets() == []
    assert (come_to_rest(machine), note.holder) == (size, HOLDER)
    note.holder = None  # it is killed
    planned = run(balloon.plan_reclaim())
    assert (planned.owed, planned.holder) == (RAM, None)
    assert "A reclaim first gives it 1 GiB, which a run that" in planned.describe()
    run(CALLS[call](balloon))
    planned = run(balloon.plan_reclaim())
    assert (planned.owed, planned.holder) == (None, None)
    assert planned.describe().endswith(" s")
    assert come_to_rest(machine) == RAM


@pytest.mark.parametrize("call", CALLS)
def test_two_balloons_in_one_process_do_not_take_what_the_other_holds(
    call: str,
) -> None:
    machine, note = make_machine(GUEST, memory=RAM), Note()
    balloon, other = (open_balloon(machine, note) for _ in range(2))
    seen: list[tuple[int | None, int | None]] = []

    def interfere(_: object) -> None:
        seen.append((other.read_owed(), other.read_holder()))
        assert balloon.read_holder() is None
        if len(seen) == 1:
            with pytest.raises(BalloonBusy, match="on another balloon of this VM"):
                run(CALLS[call](other))

    run(balloon.reclaim(on_progress=interfere))
    assert set(seen) == {(None, os.getpid())}
    assert monitor_of(other).targets() == []
    assert (come_to_rest(machine), note) == (RAM, Note())
    assert run(other.reclaim(64 * MiB)).outcome == "done"


@given(call=calls, at=st.integers(1, 12))
def test_of_two_that_begin_at_once_one_takes_memory(call: str, at: int) -> None:
    """Each has found no note before it writes its own."""
    machine, note = make_machine(GUEST, memory=RAM), Note()
    balloon = open_balloon(machine, note)
    monitor = monitor_of(balloon)

    def begin(number: int) -> None:
        if number == at and not note.is_held:
            note.note(RAM)
            note.holder = HOLDER

    monitor.before_call = begin
    try:
        run(CALLS[call](balloon))
    except BalloonBusy:
        assert (note.holder, note.size) == (HOLDER, RAM)
        assert monitor.targets() == []
    else:
        assert note == Note()  # the other was later, and refused


@pytest.mark.parametrize("call", ["reclaim", "resize"])
def test_the_note_of_one_that_began_meanwhile_stands(call: str) -> None:
    """As after a resize by a third, which ends the note of the first."""
    machine, note = make_machine(GUEST, memory=RAM), Note()
    balloon = open_balloon(machine, note)

    def begin(_: object) -> None:
        note.size, note.holder = RAM, HOLDER

    match call:
        case "reclaim":
            run(balloon.reclaim(64 * MiB, on_progress=begin))
        case _:
            run(balloon.resize(RAM // 2, on_progress=begin))
    assert (note.size, note.holder) == (RAM, HOLDER)


@pytest.mark.parametrize("call", ["resize", "set_target"])
def test_who_decides_anew_ends_what_another_holds(call: str) -> None:
    machine, note = make_machine(GUEST, memory=RAM), Note(size=RAM, holder=HOLDER)
    balloon = open_balloon(machine, note)
    run(balloon.resize(RAM // 2) if call == "resize" else balloon.set_target(RAM // 2))
    assert (note.size, note.holder) == (None, None)


def test_what_a_guest_does_not_take_back_is_not_held_for_ever() -> None:
    machine, note = make_machine(GUEST, memory=RAM), Note()
    balloon = open_balloon(machine, note)
    held: set[bool] = set()

    def hang(progress: Progress) -> None:
        held.add(note.is_held)
        if progress.stage == "deflating":
            machine.guest.stall(3600 * SECOND)

    report = run(balloon.reclaim(on_progress=hang))
    assert held == {True}
    assert "has yet to take" in report.reason
    assert (note.size, note.is_held) == (RAM, False)
    run(balloon.set_target(RAM // 2))  # whoever decides anew owes nothing
    assert note.size is None
