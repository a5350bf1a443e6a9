"""A resize reports what came of it, and leaves no target the guest cannot reach."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from attrs import evolve
from faults import Cancelled, at_every_call, monitor_of
from hypothesis import given, settings
from hypothesis import strategies as st
from simulation import make_balloon, make_machine, plug, run

from qmpballoon.balloon._tracker import StallLimits
from qmpballoon.balloon.device import PAGE
from qmpballoon.balloon.guard import RESIZE_HEADROOM, Guard
from qmpballoon.errors import (
    BalloonStalled,
    BalloonTimeout,
    CommandError,
    CommandNotFound,
    MonitorClosed,
    MonitorTimeout,
    NoBalloonDevice,
    UnsafeTarget,
)
from qmpballoon.sizes import GiB, MiB
from qmpballoon.testing import SECOND, GuestConfig, Machine, WorkloadStep

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from qmpballoon.balloon.balloon import Balloon
    from qmpballoon.balloon.results import ResizeResult
    from qmpballoon.balloon.sampling import Progress

BOOTED = 60 * SECOND  # by then make_machine's guest is up


def resize(
    machine: Machine,
    target: int,
    **options: Any,  # noqa: ANN401 - what resize takes
) -> tuple[ResizeResult, Balloon]:
    """Resize, and return what came of it, stalled or not."""
    balloon = make_balloon(machine)
    try:
        return run(balloon.resize(target, **options)), balloon
    except BalloonStalled as stalled:
        return stalled.result, balloon


def left_alone(machine: Machine) -> int:
    """Return the guest's size some time later."""
    machine.advance(machine.now + 300 * SECOND)
    assert machine.actual is not None
    return machine.actual


@settings(max_examples=25)
@given(st.integers(300 * MiB, 3 * GiB), st.integers(300 * MiB, 3 * GiB))
def test_it_arrives_and_says_so(first: int, second: int) -> None:
    machine = make_machine(memory=2 * GiB)
    before = 2 * GiB
    for target in (first, second):
        result, balloon = resize(machine, target)
        rounded = min(-(-target // PAGE) * PAGE, 2 * GiB)
        assert (result.outcome, result.diagnosis) == ("reached", None)
        assert (result.requested, result.before) == (target, before)
        assert result.actual == result.target == rounded == run(balloon.actual())
        assert 0 <= result.seconds < 60
        before = left_alone(machine)
        assert before == rounded


@pytest.mark.parametrize("reach", [0.25, 0.5, 1, 2, 16])
def test_arriving_is_never_taken_for_a_stall(reach: float) -> None:
    # Whatever the speed: some look at it finds it within a hair of its target.
    for megabytes in range(40, 48):
        guest = GuestConfig(inflate_rate=int(reach * 100 * MiB))
        target = GiB - megabytes * MiB
        result, _ = resize(make_machine(guest, memory=GiB), target)
        assert (result.outcome, result.actual) == ("reached", target)


def test_progress_is_told_all_the_way() -> None:
    machine = make_machine(memory=2 * GiB)
    seen: list[Progress] = []
    resize(machine, GiB, on_progress=seen.append)
    assert {each.stage for each in seen} == {"inflating"}
    assert [each.seconds for each in seen] == sorted(each.seconds for each in seen)
    assert [each.actual for each in seen] == sorted(
        (each.actual for each in seen), reverse=True
    )
    assert seen[-1].phase == "reached"
    assert {each.target for each in seen} == {GiB}
    halfway = seen[len(seen) // 2]
    assert halfway.time_left is not None
    assert halfway.phase == "moving"
    seen.clear()
    resize(machine, 2 * GiB, on_progress=seen.append)
    assert {each.stage for each in seen} == {"deflating"}


def test_the_floor_itself_is_not_below_the_floor() -> None:
    result, _ = resize(make_machine(memory=2 * GiB), GiB, guard=Guard(floor=GiB))
    assert (result.outcome, result.actual) == ("reached", GiB)


def test_a_guest_that_answers_is_at_no_time_asked_for_what_it_needs() -> None:
    spare = 40 * MiB
    machine = make_machine(memory=GiB)
    machine.guest.memory.allocate(
        machine.guest.memory.available - RESIZE_HEADROOM - spare
    )
    _, balloon = resize(machine, 512 * MiB, on_stall="settle")
    assert min(monitor_of(balloon).targets()) >= GiB - spare - MiB


def test_a_guest_at_its_floor_is_left_with_its_headroom() -> None:
    machine = make_machine(GuestConfig(used=300 * MiB), memory=GiB)
    result, balloon = resize(machine, 64 * MiB, on_stall="settle")
    assert result.outcome == "settled"
    assert result.diagnosis is not None
    assert result.diagnosis.kind == "guest-at-floor"
    assert result.actual == result.target == run(balloon.actual())
    assert left_alone(machine) == result.actual
    assert (
        RESIZE_HEADROOM - MiB
        <= machine.guest.memory.available
        <= RESIZE_HEADROOM + 9 * MiB
    )
    assert machine.guest.oom_kills == 0


def test_nothing_that_the_guest_lacks_from_the_start_is_taken() -> None:
    used = GiB - 60 * MiB
    machine = make_machine(GuestConfig(used=used, cache=0), memory=GiB)
    result, _ = resize(machine, 256 * MiB, on_stall="settle")
    assert (result.outcome, result.actual) == ("settled", GiB)


def test_raising_settles_first() -> None:
    balloon = make_balloon(make_machine(memory=GiB))
    with pytest.raises(BalloonStalled, match="no more to give") as caught:
        run(balloon.resize(64 * MiB))
    assert "\n" not in str(caught.value)
    assert caught.value.diagnosis is caught.value.result.diagnosis
    assert caught.value.result.outcome == "stalled"
    assert left_alone(monitor_of(balloon).machine) == caught.value.result.actual


def test_rolling_back_ends_where_it_began() -> None:
    machine = make_machine(memory=GiB)
    result, _ = resize(machine, 64 * MiB, on_stall="rollback")
    assert (result.outcome, result.actual, result.target) == ("rolled-back", GiB, GiB)
    assert result.diagnosis is not None
    assert left_alone(machine) == GiB


def test_rolling_back_a_growth_takes_nothing_that_is_needed_by_now() -> None:
    machine = make_machine(GuestConfig(deflate_rate=128 * MiB), memory=GiB)
    run(make_balloon(machine).resize(512 * MiB))
    # What it gets back is in use before it is all there.
    later(machine, 1.8, partial(machine.guest.memory.allocate, 150 * MiB))
    balloon = make_balloon(machine)
    monitor_of(balloon).before_call = ticking(machine)
    size = 512 * MiB
    machine.guest.memory.allocate(machine.guest.memory.available - 40 * MiB)
    result = run(balloon.resize(GiB, timeout=2, on_stall="rollback"))
    assert result.outcome == "rolled-back"
    assert result.actual > size + 100 * MiB
    assert machine.guest.memory.available >= RESIZE_HEADROOM - 2 * MiB


def test_a_deadline_is_for_all_of_it() -> None:
    machine = make_machine(memory=2 * GiB)
    start = machine.now
    result, _ = resize(machine, GiB, timeout=0.5, on_stall="settle")
    assert result.outcome == "timed-out"
    assert GiB < result.actual < 2 * GiB
    assert machine.now - start < 0.7 * SECOND
    assert left_alone(machine) == result.actual


def test_a_guest_that_has_the_size_needs_no_time() -> None:
    for target in (2 * GiB, 3 * GiB):  # more than its memory is all of it
        result, _ = resize(make_machine(memory=2 * GiB), target, timeout=0)
        assert (result.outcome, result.actual) == ("reached", 2 * GiB)


@pytest.mark.parametrize(("timeout", "word"), [(0.0, "did not move"), (0.5, "more")])
def test_time_that_is_up_is_not_blamed_on_the_guest(timeout: float, word: str) -> None:
    balloon = make_balloon(make_machine(memory=2 * GiB))
    with pytest.raises(BalloonTimeout, match=f"time was up.*{word}") as caught:
        run(balloon.resize(GiB, timeout=timeout))
    assert caught.value.result.outcome == "timed-out"
    assert "swaps" not in str(caught.value)


@pytest.mark.parametrize("timeout", [0.26, 0.28, 0.3, 0.32, 0.34])
def test_a_guest_in_need_when_time_is_up_gets_its_headroom(timeout: float) -> None:
    burst = WorkloadStep(at=BOOTED + SECOND // 4, delta=250 * MiB)
    guest = GuestConfig(used=450 * MiB, cache=0, workload=(burst,))
    machine = make_machine(guest, memory=GiB)
    result, _ = resize(machine, 200 * MiB, timeout=timeout, on_stall="settle")
    assert result.outcome == "timed-out"
    left_alone(machine)
    # Within the controller's own slack.
    assert machine.guest.memory.available >= RESIZE_HEADROOM - 4 * MiB
    assert machine.guest.oom_kills == 0


def test_a_guest_that_is_silent_when_time_is_up_is_asked_to_have_everything() -> None:
    """It has not been silent long enough for that to be trouble before."""
    guest = GuestConfig(silent_after=BOOTED + SECOND // 8)
    result, balloon = resize(make_machine(guest), GiB, timeout=2, on_stall="settle")
    assert result.outcome == "timed-out"
    assert balloon.target == 2 * GiB


def test_no_more_is_taken_while_it_is_asked_how_the_guest_is() -> None:
    """A guest that does not answer is waited for, and nobody watches it meanwhile."""
    guest = GuestConfig(silent_after=0)
    result, _ = resize(
        make_machine(guest), GiB, timeout=0.5, on_stall="settle", unguarded=True
    )
    assert result.outcome == "timed-out"
    # It gives 256 MiB a second.
    assert result.actual > 2 * GiB - 200 * MiB


@pytest.mark.parametrize("unguarded", [False, True])
def test_without_a_driver_it_stalls_within_seconds(*, unguarded: bool) -> None:
    machine = make_machine(GuestConfig(driver=False))
    start = machine.now
    result, balloon = resize(machine, GiB, unguarded=unguarded)
    assert result.diagnosis is not None
    assert (result.outcome, result.diagnosis.kind) == ("stalled", "no-driver")
    assert machine.now - start < 10 * SECOND
    assert balloon.target == 2 * GiB  # a driver that comes later finds nothing to do


@pytest.mark.parametrize("when", [0, 0.3])
@pytest.mark.parametrize("target", [GiB, 3 * GiB])
def test_a_paused_vm_is_named(when: float, target: int) -> None:
    machine = make_machine(memory=4 * GiB)
    run(make_balloon(machine).resize(2 * GiB))
    later(machine, when, machine.stop)
    result, _ = resize_meanwhile(machine, target)
    assert result.diagnosis is not None
    assert result.diagnosis.kind == "paused"
    machine.resume()
    assert left_alone(machine) == result.actual


@pytest.mark.parametrize("version", ["7.2", "10.0"])
@pytest.mark.parametrize("boot_time", [1, 60])
def test_a_reset_is_recovered_from_or_named(version: str, boot_time: int) -> None:
    guest = GuestConfig(boot_time=boot_time * SECOND)
    machine = make_machine(guest, version=version, memory=4 * GiB)
    later(machine, 0.5, partial(machine.reset, by_guest=False))
    result, _ = resize_meanwhile(machine, GiB)
    if boot_time == 1:
        assert result.outcome == "reached"
    else:
        assert result.diagnosis is not None
        assert result.diagnosis.kind == "reset"


def restarted_unseen(memory: int, version: str = "10.0") -> Machine:
    """Return a VM whose guest has all, while QEMU says that it has half.

    It was restarted, and its balloon called off before the new driver was there: that
    one has nothing to do, and so says nothing.
    """
    machine = make_machine(memory=memory, version=version)
    run(make_balloon(machine).resize(memory // 2))
    machine.reset(by_guest=True)
    run(make_balloon(machine).set_target(memory))
    machine.advance(machine.now + 60 * SECOND)
    assert machine.actual == memory // 2
    assert machine.guest.memory.balloon == 0
    return machine


@pytest.mark.parametrize("version", ["7.2", "10.0"])
@pytest.mark.parametrize("on_stall", ["raise", "settle", "rollback"])
def test_a_guest_that_has_more_than_qemu_says_is_made_to_tell(
    on_stall: str, version: str
) -> None:
    machine = restarted_unseen(2 * GiB, version)
    result, balloon = resize(machine, 2 * GiB, on_stall=on_stall)
    assert (result.outcome, result.actual) == ("reached", 2 * GiB)
    assert run(balloon.actual()) == 2 * GiB
    assert left_alone(machine) == 2 * GiB


@pytest.mark.parametrize("timeout", [0.0, 0.5, 5.001, 5.03])
@pytest.mark.parametrize("on_stall", ["raise", "settle", "rollback"])
def test_a_guest_that_has_more_than_qemu_says_is_not_shrunk_to_that(
    on_stall: str, timeout: float
) -> None:
    machine = restarted_unseen(2 * GiB)
    result, _ = resize(machine, 2 * GiB, on_stall=on_stall, timeout=timeout)
    assert result.outcome == "timed-out"
    assert result.seconds <= timeout
    left_alone(machine)
    assert machine.guest.memory.balloon < MiB


@pytest.mark.parametrize("unguarded", [False, True])
def test_memory_plugged_meanwhile_is_taken_too_or_named(*, unguarded: bool) -> None:
    machine = make_machine(memory=2 * GiB, slots=1, max_memory=8 * GiB)
    later(machine, 0.5, partial(plug, machine, GiB))
    result, balloon = resize_meanwhile(machine, GiB, unguarded=unguarded)
    assert run(balloon.actual()) == result.actual
    if unguarded:  # asked once, for what it then was
        assert result.diagnosis is not None
        assert result.diagnosis.kind == "hot-plug"
        assert result.actual == 2 * GiB
    else:
        assert (result.outcome, result.actual) == ("reached", GiB)


def test_a_guest_in_trouble_is_waited_for_until_it_has_all_back() -> None:
    rates = dict.fromkeys(("inflate_rate", "reclaim_rate", "deflate_rate"), 128 * MiB)
    guest = GuestConfig(**rates, silent_after=BOOTED + SECOND)  # type: ignore[arg-type]
    machine = make_machine(guest, memory=2 * GiB)
    result, _ = resize(machine, GiB, timeout=5, on_stall="settle")
    assert result.outcome == "timed-out"
    assert result.actual == result.target == 2 * GiB


@pytest.mark.parametrize(
    ("unguarded", "left"),
    [(True, "and was left there"), (False, "then asked to go back to 2 GiB")],
)
def test_what_a_guest_that_hangs_was_asked_for_is_said(
    left: str, *, unguarded: bool
) -> None:
    machine = make_machine(memory=2 * GiB)

    def hang() -> None:
        guest = machine.guest
        guest.stall(3600 * SECOND)
        guest.config = evolve(guest.config, silent_after=guest.now)

    later(machine, 0.3, hang)
    balloon = make_balloon(machine)
    monitor_of(balloon).before_call = ticking(machine)
    with pytest.raises(BalloonStalled, match=left):
        run(balloon.resize(GiB, unguarded=unguarded))
    targets = monitor_of(balloon).targets()
    if not unguarded:  # what it is given back is not taken again
        assert set(targets[targets.index(2 * GiB) :]) == {2 * GiB}


def test_pages_that_are_never_freed_are_noticed() -> None:
    # The guest hands over what it can in the time, and QEMU keeps it.
    machine = make_machine(GuestConfig(used=GiB, cache=900 * MiB), memory=2 * GiB)
    balloon = make_balloon(machine)
    balloon.resident = lambda: 2 * GiB  # type: ignore[method-assign]
    with pytest.raises(BalloonStalled) as caught:
        run(balloon.resize(1200 * MiB, timeout=0.5))
    assert caught.value.diagnosis is not None
    assert caught.value.diagnosis.kind == "inhibited"


def test_a_guest_that_reports_nothing_is_asked_as_it_is() -> None:
    machine = make_machine(GuestConfig(stats_delay=None), memory=GiB)
    result, _ = resize(machine, 512 * MiB)
    assert result.outcome == "reached"


def test_a_guest_that_begins_to_report_is_listened_to() -> None:
    # Its driver comes only when the target is set: as when it is still booting.
    guest = GuestConfig(used=300 * MiB, boot_time=3 * SECOND)
    machine = make_machine(guest, memory=GiB)
    machine.reset(by_guest=True)
    result, _ = resize(machine, 64 * MiB, on_stall="settle")
    assert result.diagnosis is not None
    assert result.diagnosis.kind in {"guest-at-floor", "reset"}
    left_alone(machine)
    assert machine.guest.memory.available >= RESIZE_HEADROOM - MiB


def test_an_old_qemu_without_a_total_will_do() -> None:
    machine = make_machine(memory=2 * GiB)
    balloon = make_balloon(machine)
    monitor = monitor_of(balloon)
    execute = monitor.execute

    async def old(
        command: str, arguments: Mapping[str, object] | None = None
    ) -> object:
        if command in {"query-memory-size-summary", "x-query-virtio-status"}:
            raise CommandNotFound(command, "CommandNotFound", "no such command")
        return await execute(command, arguments)

    monitor.execute = old  # type: ignore[method-assign]
    assert run(balloon.resize(GiB)).outcome == "reached"
    assert run(balloon.resize(2 * GiB)).outcome == "reached"


def test_the_device_taken_away_meanwhile_is_told() -> None:
    machine = make_machine(memory=2 * GiB)

    def unplug() -> None:
        machine.device = None

    later(machine, 0.5, unplug)
    with pytest.raises(NoBalloonDevice):
        resize_meanwhile(machine, GiB)


# Arguments


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"target": 0}, ValueError),
        ({"target": -GiB}, ValueError),
        ({"target": 1.5}, TypeError),
        ({"target": True}, TypeError),
        ({"target": 2**63}, ValueError),
        ({"target": 31 * MiB}, UnsafeTarget),
        ({"target": GiB, "guard": Guard(floor=2 * GiB)}, UnsafeTarget),
        ({"target": GiB, "guard": 32 * MiB}, TypeError),
        ({"target": GiB, "guard": Guard(), "unguarded": True}, ValueError),
        ({"target": GiB, "unguarded": None}, TypeError),
        ({"target": GiB, "unguarded": 1}, TypeError),
        ({"target": GiB, "timeout": -1}, ValueError),
        ({"target": GiB, "timeout": None}, TypeError),
        ({"target": GiB, "on_stall": "hope"}, ValueError),
        ({"target": GiB, "on_progress": 5}, TypeError),
        ({"target": GiB, "limits": 5}, TypeError),
    ],
)
def test_nonsense_is_refused_before_anything_is_sent(
    arguments: dict[str, Any], error: type[Exception]
) -> None:
    balloon = make_balloon(make_machine())
    with pytest.raises(error) as caught:
        run(balloon.resize(**arguments))
    assert "\n" not in str(caught.value)
    assert monitor_of(balloon).calls == 0


# Whatever happens

FAST = GuestConfig(
    used=64 * MiB,
    cache=100 * MiB,
    inflate_rate=2 * GiB,
    reclaim_rate=2 * GiB,
    deflate_rate=GiB // 2,
)


def small() -> Machine:
    machine = make_machine(FAST, memory=512 * MiB)
    assert machine.device is not None
    machine.device.set_interval(7, machine.guest.now)
    return machine


def shrunken() -> Machine:
    machine = small()
    run(make_balloon(machine).resize(256 * MiB))
    return machine


IN_A_HURRY = StallLimits(window=0.3)
OPERATIONS: dict[str, tuple[Callable[[], Machine], Callable[[Balloon], Any]]] = {
    "shrink": (small, lambda balloon: balloon.resize(256 * MiB)),
    "shrink unwatched": (
        small,
        lambda balloon: balloon.resize(256 * MiB, unguarded=True),
    ),
    "settle": (small, lambda balloon: balloon.resize(64 * MiB, on_stall="settle")),
    "raise": (small, lambda balloon: balloon.resize(64 * MiB, limits=IN_A_HURRY)),
    "roll back": (
        small,
        lambda balloon: balloon.resize(64 * MiB, on_stall="rollback"),
    ),
    "grow": (shrunken, lambda balloon: balloon.resize(512 * MiB)),
    "roll back a growth": (
        shrunken,
        lambda balloon: balloon.resize(512 * MiB, timeout=0.1, on_stall="rollback"),
    ),
    "roll back a growth that was not seen": (
        shrunken,
        lambda balloon: balloon.resize(512 * MiB, timeout=0.01, on_stall="rollback"),
    ),
}


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_cancelled_at_any_await_nothing_is_left_pulling(
    name: str, *, after: bool
) -> None:
    make, operation = OPERATIONS[name]
    for left in at_every_call(make, operation, lambda _: Cancelled(), after=after):
        assert isinstance(left.raised, Cancelled)
        assert left.target >= left.actual
        assert left.interval == 7


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_a_timeout_at_any_await_leaves_nothing_pulling(
    name: str, *, after: bool
) -> None:
    def failure(_: Machine) -> BaseException:
        return MonitorTimeout("too late", ("balloon",))

    make, operation = OPERATIONS[name]
    for left in at_every_call(make, operation, failure, after=after):
        # At the very end of a block, restoring the interval failed: no harm.
        assert left.raised is None or isinstance(
            left.raised, MonitorTimeout | BalloonStalled
        )
        assert left.target >= left.actual


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_end_of_qemu_at_any_await_is_told(name: str) -> None:
    def end(machine: Machine) -> None:
        machine.quit()

    make, operation = OPERATIONS[name]
    for left in at_every_call(make, operation, end):
        if isinstance(left.raised, MonitorClosed):
            assert left.raised.unknown_outcome
        else:  # it was after the last command
            assert left.raised is None or isinstance(left.raised, BalloonStalled)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_callback_that_raises_leaves_nothing_pulling(number: int) -> None:
    machine = small()
    seen: list[Progress] = []

    def broken(progress: Progress) -> None:
        seen.append(progress)
        if len(seen) == number:
            raise KeyError

    with pytest.raises(KeyError):
        run(make_balloon(machine).resize(200 * MiB, on_progress=broken))
    assert machine.device is not None
    assert machine.device.interval == 7
    # The cleanup's own look at it is a moment later.
    assert seen[-1].actual - 4 * MiB <= left_alone(machine) <= seen[-1].actual


def test_a_cleanup_that_fails_does_not_hide_why_it_began() -> None:
    machine = small()
    balloon = make_balloon(machine)

    def broken(_: Progress) -> None:
        machine.device = None
        raise KeyError

    with pytest.raises((KeyError, CommandError, NoBalloonDevice)) as caught:
        run(balloon.resize(200 * MiB, on_progress=broken))
    assert caught.type is KeyError


# What is done to a machine while it is resized


def later(machine: Machine, seconds: float, act: Callable[[], object]) -> None:
    """Do something to a machine so many seconds from now."""
    EVENTS[id(machine)] = (machine.now + round(seconds * SECOND), act)


EVENTS: dict[int, tuple[int, Callable[[], object]]] = {}


def ticking(machine: Machine) -> Callable[[int], None]:
    def tick(_: int) -> None:
        at, act = EVENTS.get(id(machine), (machine.now + 1, lambda: None))
        if machine.now >= at:
            del EVENTS[id(machine)]
            act()

    return tick


def resize_meanwhile(
    machine: Machine,
    target: int,
    **options: Any,  # noqa: ANN401 - what resize takes
) -> tuple[ResizeResult, Balloon]:
    balloon = make_balloon(machine)
    monitor_of(balloon).before_call = ticking(machine)
    return run(balloon.resize(target, on_stall="settle", **options)), balloon


# Somebody else


def set_by_another(machine: Machine, target: int) -> None:
    session = machine.connect()
    session.receive(
        b'{"execute": "qmp_capabilities"}'
        b'{"execute": "balloon", "arguments": {"value": %d}}' % target
    )
    assert b"error" not in session.take_output()
    machine.disconnect(session)


@pytest.mark.parametrize("other", [GiB // 2, GiB + GiB // 4])
def test_another_client_s_target_is_noticed_while_growing(other: int) -> None:
    machine = make_machine(GuestConfig(deflate_rate=GiB), memory=2 * GiB)
    run(make_balloon(machine).resize(GiB))
    later(machine, 0.2, partial(set_by_another, machine, other))
    result, balloon = resize_meanwhile(machine, 2 * GiB)
    assert result.diagnosis is not None
    assert (result.outcome, result.diagnosis.kind) == ("settled", "overridden")
    assert balloon.target == result.actual


def test_another_client_s_target_is_overruled_while_shrinking() -> None:
    machine = make_machine(memory=4 * GiB)
    later(machine, 0.5, partial(set_by_another, machine, 4 * GiB))
    result, _ = resize_meanwhile(machine, 2 * GiB)
    assert (result.outcome, result.actual) == ("reached", 2 * GiB)


def test_another_client_s_target_is_overruled_before_the_guest_has_moved() -> None:
    machine = make_machine(memory=4 * GiB)
    balloon = make_balloon(machine)
    monitor = monitor_of(balloon)
    others: list[int] = []

    def interfere(_: int) -> None:
        if not others and monitor.targets():
            others.append(4 * GiB)
            set_by_another(machine, 4 * GiB)

    monitor.after_call = interfere
    # One step, after which there is no other target to set.
    result = run(balloon.resize(4 * GiB - 64 * MiB, on_stall="settle"))
    assert (result.outcome, others) == ("reached", [4 * GiB])


def test_that_the_host_has_nothing_is_told_although_it_was_reached() -> None:
    guest = GuestConfig(used=GiB, cache=900 * MiB)
    balloon = make_balloon(make_machine(guest, memory=2 * GiB))
    balloon.resident = lambda: 2 * GiB  # type: ignore[method-assign]
    result = run(balloon.resize(1536 * MiB))
    assert result.outcome == "reached"
    assert result.diagnosis is not None
    assert result.diagnosis.kind == "inhibited"
