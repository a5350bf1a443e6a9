"""When a guest is in trouble, and for how long it can be left unobserved."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from attrs import evolve
from faults import monitor_of
from hypothesis import given
from hypothesis import strategies as st
from observing import observe
from simulation import make_balloon, make_machine, run
from suffering import NEEDS, SUFFERINGS, Suffering, SufferingKind

from qmpballoon.balloon._alarms import Alarms, compute_pause
from qmpballoon.balloon._pressure import PressureLimits
from qmpballoon.balloon._working_set import RereadLimits
from qmpballoon.balloon.guard import Guard, GuestLimits
from qmpballoon.balloon.stats import GuestStats
from qmpballoon.sizes import GiB, MiB
from qmpballoon.testing import GuestConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Any

    from qmpballoon.balloon.balloon import Balloon

LIMITS = GuestLimits(headroom=100 * MiB, floor=64 * MiB, stale_after=3)


@pytest.mark.parametrize(
    ("available", "in_trouble", "is_short"),
    [
        (100 * MiB, False, False),
        (75 * MiB, False, False),
        (75 * MiB - 1, False, True),
        (50 * MiB, False, True),
        (50 * MiB - 1, True, True),
        (0, True, True),
    ],
)
def test_a_guest_is_short_below_three_quarters_and_in_trouble_below_half(
    available: int, *, in_trouble: bool, is_short: bool
) -> None:
    alarms = Alarms(LIMITS, GuestStats(available=GiB))
    alarm = alarms.judge(observe(0.0, GiB, GuestStats(available=available)))
    assert (alarm.level, alarm.kind) == (
        ("trouble", "headroom") if in_trouble else ("none", None)
    )
    assert alarms.is_short(available) is is_short


def test_a_guest_that_had_less_than_its_headroom_is_expected_to_keep_that() -> None:
    alarms = Alarms(LIMITS, GuestStats(available=40 * MiB))
    alarm = alarms.judge(observe(0.0, GiB, GuestStats(available=20 * MiB)))
    assert alarm.level == "none"
    alarm = alarms.judge(observe(0.1, GiB, GuestStats(available=19 * MiB)))
    assert alarm.reason == "the guest has 19 MiB available, and is to keep 100 MiB"


@pytest.mark.parametrize(
    ("first", "now", "silence", "words"),
    [
        (0, 0, 3.0, None),
        (0, 0, 3.1, "has not answered for 3.1 s"),
        (1, 1, 0.0, None),
        (1, 2, 0.0, "killed a process"),
        (None, 2, 0.0, None),
        (1, None, 0.0, None),
    ],
)
def test_silence_and_killed_processes_are_trouble(
    first: int | None, now: int | None, silence: float, words: str | None
) -> None:
    alarms = Alarms(LIMITS, GuestStats(available=GiB, oom_kills=first))
    alarm = alarms.judge(
        observe(0.0, GiB, GuestStats(available=GiB, oom_kills=now), silence=silence)
    )
    assert (words or "") in alarm.reason
    assert alarm.level == ("none" if words is None else "trouble")


def test_a_guest_that_no_longer_reports_is_in_trouble() -> None:
    alarms = Alarms(LIMITS, GuestStats(available=GiB))
    assert "no longer says" in alarms.judge(observe(0.0, GiB, GuestStats())).reason


def test_a_guest_that_allocates_a_gib_a_second_is_looked_at_twice() -> None:
    assert compute_pause(GiB) == 0.5
    assert compute_pause(0) == 0


@given(st.integers(0, 64 * GiB), st.floats(0, 10))
def test_an_answer_and_the_next_look_are_never_too_far_apart(
    spare: int, age: float
) -> None:
    pause = compute_pause(spare, age)
    assert pause <= compute_pause(spare)
    assert (pause + age) * GiB <= spare + 1  # byte, as floats are not exact


# Memory pressure

PRESSED = GuestLimits(
    headroom=100 * MiB,
    floor=64 * MiB,
    stale_after=3,
    pressure=PressureLimits.of(GiB, None, None),
)


def test_pressure_holds_and_is_trouble_when_it_lasts() -> None:
    alarms = Alarms(PRESSED, GuestStats(available=GiB, swap_out=0))
    alarms.judge(observe(0.0, GiB, GuestStats(available=GiB, swap_out=0)))
    seen = [
        alarms.judge(
            observe(tick / 2, GiB, GuestStats(available=GiB, swap_out=tick * 4 * MiB))
        )
        for tick in range(1, 10)
    ]
    assert [alarm.level for alarm in seen] == ["hold"] * 6 + ["trouble"] * 3
    assert [alarm.begins for alarm in seen] == [True] + [False] * 8
    assert {alarm.kind for alarm in seen} == {"pressure"}
    assert alarms.is_pressed
    assert alarms.holds == 1


def test_trouble_comes_before_pressure_that_only_holds() -> None:
    alarms = Alarms(PRESSED, GuestStats(available=GiB, swap_out=0))
    alarms.judge(observe(0.0, GiB, GuestStats(available=GiB, swap_out=0)))
    alarm = alarms.judge(observe(1.0, GiB, GuestStats(available=MiB, swap_out=GiB)))
    assert (alarm.level, alarm.kind) == ("trouble", "headroom")


def test_what_is_expected_begins_anew_and_its_own_rates_stay() -> None:
    alarms = Alarms(PRESSED, GuestStats(available=GiB))
    for tick in range(3):  # it swaps all the time
        swapped = tick * 2 * MiB
        alarms.judge(
            observe(tick / 8, GiB, GuestStats(available=GiB, swap_out=swapped))
        )
    alarms.begin_anew(GuestStats(available=60 * MiB))
    assert alarms.threshold == 30 * MiB
    for tick in range(3, 40):
        swapped = tick * 2 * MiB
        stats = GuestStats(available=60 * MiB, swap_out=swapped)
        assert alarms.judge(observe(tick / 8, GiB, stats)).level == "none"


READS = evolve(PRESSED, rereads=RereadLimits.of(GiB, 60))


def test_what_is_read_again_holds_whether_there_is_pressure_or_not() -> None:
    calm = GuestStats(available=GiB, swap_out=0)
    alarms = Alarms(READS, calm, GiB)
    alarms.judge(observe(0.0, GiB, calm, reads=0))
    alarms.end_baseline()
    small = GiB // 2
    alarm = alarms.judge(observe(1.0, small, calm, reads=100 * MiB))
    assert (alarm.level, alarm.kind, alarm.size) == ("hold", "reads", small + 16 * MiB)
    assert alarm.begins
    swaps = GuestStats(available=GiB, swap_out=8 * MiB)
    alarm = alarms.judge(observe(2.0, small, swaps, reads=200 * MiB))
    assert (alarm.level, alarm.kind, alarm.size) == (
        *("hold", "pressure", small + 48 * MiB),
    )
    alarm = alarms.judge(observe(3.0, small, calm, silence=9.0, reads=300 * MiB))
    assert (alarm.level, alarm.kind) == ("trouble", "silence")


@pytest.mark.parametrize("swapped", [0, 8 * MiB])
@pytest.mark.parametrize("reads", [0, 8 * MiB])
def test_a_guest_is_quiet_that_neither_swaps_nor_reads(
    swapped: int, reads: int
) -> None:
    stats = GuestStats(available=GiB, swap_out=0)
    alarms = Alarms(READS, stats)
    alarms.judge(observe(0.0, GiB, stats, reads=0))
    stats = evolve(stats, swap_out=swapped)
    alarms.judge(observe(0.1, GiB, stats, reads=reads))
    assert alarms.is_quiet == (swapped == reads == 0)


# One rule for all calls

CALLS: dict[str, Callable[[Balloon], Coroutine[Any, Any, Any]]] = {
    "reclaim": lambda balloon: balloon.reclaim(),
    "keep": lambda balloon: balloon.keep(seconds=60),
    "resize": lambda balloon: balloon.resize(512 * MiB, on_stall="settle"),
    "resize with a guard": lambda balloon: balloon.resize(
        512 * MiB, on_stall="settle", guard=Guard()
    ),
}


def suffer(
    kind: SufferingKind, call: str, begins: float = 0.0
) -> tuple[Suffering, Any]:
    """Let a guest suffer during a call; return what came of it."""
    guest = GuestConfig(used=128 * MiB, cache=512 * MiB, inflate_rate=512 * MiB)
    machine = make_machine(guest, memory=2 * GiB)
    balloon = make_balloon(machine)
    suffering = Suffering(machine, kind, begins)
    monitor_of(balloon).before_call = suffering.look
    result = run(CALLS[call](balloon))
    suffering.look()
    return suffering, result


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("kind", SUFFERINGS)
def test_a_guest_that_suffers_is_let_alone_by_all_calls(
    kind: SufferingKind, call: str
) -> None:
    suffering, result = suffer(kind, call)
    assert suffering.lowest >= suffering.least
    assert suffering.told >= NEEDS
    if call.startswith("resize"):
        assert result.outcome == "settled"
        assert result.diagnosis is not None
        assert result.target == suffering.told


@pytest.mark.parametrize("kind", SUFFERINGS)
def test_a_guest_that_begins_to_suffer_while_it_is_kept_small_gets_everything(
    kind: SufferingKind,
) -> None:
    suffering, report = suffer(kind, "keep", begins=80)
    assert suffering.lowest < NEEDS
    assert suffering.told == 2 * GiB
    assert 15 < report.seconds < 40
    words = {
        "swap-out": "the guest swaps",
        "major-faults": "major faults",
        "silence": "has not answered",
    }
    assert words[kind] in report.reason


@pytest.mark.parametrize("call", ["reclaim", "keep", "resize"])
def test_limits_that_are_infinite_are_none(call: str) -> None:
    guest = GuestConfig(used=128 * MiB, cache=512 * MiB, inflate_rate=512 * MiB)
    machine = make_machine(guest, memory=2 * GiB)
    balloon = make_balloon(machine)
    suffering = Suffering(machine, "swap-out")
    monitor_of(balloon).before_call = suffering.look
    blind = Guard(swap_rate=float("inf"))
    calls: dict[str, Coroutine[Any, Any, Any]] = {
        "reclaim": balloon.reclaim(guard=blind),
        "keep": balloon.keep(guard=blind, seconds=20),
        "resize": balloon.resize(512 * MiB, guard=blind),
    }
    chosen = calls.pop(call)
    for other in calls.values():
        other.close()
    run(chosen)
    assert suffering.lowest <= 512 * MiB
