"""What is known of a VM: its state, and whether its figures belong together."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from attrs import evolve

from qmpballoon.address import UnixAddress
from qmpballoon.balloon.results import Diagnosis, DiskReads, Outcome, ResizeResult
from qmpballoon.balloon.stats import GuestStats
from qmpballoon.fleet.vm import VmRecord
from qmpballoon.fleet.vm_spec import VmSpec
from qmpballoon.sizes import GiB, MiB


def answer(second: int, available: int = GiB, age: float | None = None) -> GuestStats:
    """Return a sample of that second."""
    update = datetime.fromtimestamp(second, UTC)
    return GuestStats(last_update=update, age=age, available=available)


def seen(*looks: tuple[float, int, GuestStats]) -> VmRecord:
    """Return what is known after some looks: when, what size, what sample."""
    record = VmRecord(VmSpec("vm", UnixAddress("/run/vm.qmp")), stale_after=5.0)
    record.note_connected(0.0)
    record.note_ram(4 * GiB, 4 * GiB)
    for now, actual, stats in looks:
        record.note_poll(now, actual, stats, None)
    return record


def ended(outcome: Outcome, before: int, requested: int, actual: int) -> ResizeResult:
    diagnosis = None if outcome == "reached" else Diagnosis("slow", "it is slow")
    return ResizeResult(outcome, requested, before, actual, actual, 1.0, diagnosis)


def test_before_anything_is_known() -> None:
    record = VmRecord(VmSpec("vm", UnixAddress("/run/vm.qmp")), stale_after=5.0)
    assert record.get_state(0.0) == "connecting"
    assert not record.is_known(0.0)
    assert record.make_view(0.0).to_json()["balloon"] is None


def test_a_sample_from_before_we_came_counts_for_nothing() -> None:
    record = seen((0.0, 2 * GiB, answer(1)), (1.0, 2 * GiB, answer(1)))
    assert record.get_state(1.0) == "connecting"
    assert record.make_guest(1.0) is None


def test_who_answers_anew_is_healthy() -> None:
    record = seen((0.0, 2 * GiB, GuestStats()), (1.0, 2 * GiB, answer(1)))
    assert record.get_state(1.0) == "healthy"
    assert record.is_known(1.0)
    guest = record.make_guest(1.0)
    assert guest is not None
    assert (guest.actual, guest.available) == (2 * GiB, GiB)


def test_figures_of_two_sizes_do_not_belong_together() -> None:
    record = seen(
        (0.0, 2 * GiB, GuestStats()),
        (1.0, GiB, answer(1)),
    )
    assert record.get_state(1.0) == "healthy"
    assert record.make_guest(1.0) is None
    assert not record.is_known(1.0)
    record.note_poll(2.0, GiB, answer(2), None)
    assert record.make_guest(2.0) is not None


def test_no_more_than_there_is_can_be_available() -> None:
    record = seen((0.0, GiB, GuestStats()), (1.0, GiB, answer(1, 3 * GiB)))
    guest = record.make_guest(1.0)
    assert guest is not None
    assert guest.available == GiB


def test_silence() -> None:
    record = seen((0.0, GiB, GuestStats()), (1.0, GiB, answer(1)))
    record.note_poll(6.0, GiB, answer(1), None)
    assert record.get_state(6.0) == "healthy"
    record.note_poll(6.5, GiB, answer(1), None)
    assert record.get_state(6.5) == "stale"
    assert record.make_guest(6.5) is None
    record.note_poll(7.0, GiB, answer(7), None)
    assert record.get_state(7.0) == "healthy"


def test_a_vm_that_cannot_even_be_looked_at_is_stale() -> None:
    record = seen((0.0, GiB, GuestStats()), (1.0, GiB, answer(1)))
    record.note_timeout("QEMU does not answer")
    assert record.get_state(7.0) == "stale"
    assert record.make_view(7.0).detail == "QEMU does not answer"


def test_no_driver() -> None:
    record = seen((0.0, GiB, GuestStats()), (6.0, GiB, GuestStats()))
    assert record.get_state(5.0) == "connecting"
    assert record.get_state(6.0) == "no-driver"


def test_a_lost_vm_is_void() -> None:
    record = seen((0.0, GiB, GuestStats()), (1.0, GiB, answer(1)))
    record.note_lost("gone", "QEMU went away")
    view = record.make_view(1.0)
    assert (view.state, view.detail, view.actual) == ("gone", "QEMU went away", None)
    assert view.counters.losses == 1
    record.note_lost("gone", "still away")
    assert record.counters.losses == 1
    assert record.make_guest(1.0) is None


def test_a_guest_was_found_with_what_it_has_when_it_is_first_moved() -> None:
    record = seen((0.0, GiB, GuestStats()), (1.0, 2 * GiB, answer(1)))
    small = record.find_small()
    assert small is not None
    assert (small.actual, small.found) == (2 * GiB, 2 * GiB)  # it grew by itself
    record.note_move_started(1.0, 3 * GiB)
    record.note_move_ended(2.0, ended("reached", 2 * GiB, 3 * GiB, 3 * GiB))
    record = record.begin_anew()
    record.note_connected(3.0)
    record.note_ram(4 * GiB, 4 * GiB)
    record.note_poll(3.0, 3 * GiB, answer(3), None)
    small = record.find_small()
    assert small is not None
    assert (small.actual, small.found) == (3 * GiB, 2 * GiB)
    record.note_lost("gone", "QEMU went away")
    assert record.find_small() is None


def test_moves_are_counted() -> None:
    record = seen((0.0, 2 * GiB, GuestStats()), (1.0, 2 * GiB, answer(1)))
    record.note_move_started(1.0, GiB)
    guest = record.make_guest(1.0)
    assert guest is not None
    assert guest.is_moving
    record.note_progress(2.0, GiB + 512 * MiB)
    assert record.make_view(2.0).actual == GiB + 512 * MiB
    record.note_move_ended(3.0, ended("reached", 2 * GiB, GiB, GiB))
    counters = record.counters
    assert (counters.moves, counters.taken, counters.stalls) == (1, GiB, 0)
    record.note_move_started(1.0, 2 * GiB)
    record.note_move_ended(4.0, ended("reached", GiB, 2 * GiB, 2 * GiB))
    counters = record.counters
    assert (counters.moves, counters.given) == (2, GiB)
    # What it said before it moved does not count any more.
    assert record.make_guest(4.0) is None


def test_what_a_move_saw_of_its_guest_counts_if_it_did_not_reach_its_target() -> None:
    """The guest is in trouble, and cannot wait for figures of its new size."""

    def watched() -> VmRecord:
        record = seen((0.0, 2 * GiB, GuestStats()), (1.0, 2 * GiB, answer(1)))
        record.note_move_started(1.0, GiB)
        record.note_progress(2.5, 2 * GiB - 64 * MiB, 600 * MiB)
        return record

    record = watched()
    # In one and a half seconds its use has increased by 360 MiB.
    assert record.is_out_soon(2.5)
    record.note_move_ended(3.0, ended("settled", 2 * GiB, GiB, 2 * GiB - 32 * MiB))
    guest = record.make_guest(3.0)
    assert guest is not None
    assert guest.available == 632 * MiB
    assert guest.usage_increase == 240 * MiB
    assert guest.is_stalled
    # This sample may be older. The next one cannot be.
    record.note_poll(3.5, 2 * GiB - 32 * MiB, answer(3), None)
    assert record.make_guest(3.5) == guest
    record.note_poll(4.5, 2 * GiB - 32 * MiB, answer(4, GiB), None)
    guest = record.make_guest(4.5)
    assert guest is not None
    assert guest.available == GiB
    assert not record.is_out_soon(4.5)  # it does not shrink
    record = watched()
    record.note_move_ended(3.0, ended("reached", 2 * GiB, GiB, GiB))
    assert record.make_guest(3.0) is None


def test_who_shrinks_and_uses_no_more_is_not_out_of_memory() -> None:
    record = seen((0.0, 2 * GiB, GuestStats()), (1.0, 2 * GiB, answer(1)))
    record.note_move_started(1.0, GiB + 64 * MiB)
    record.note_progress(2.5, GiB + 64 * MiB, 64 * MiB)
    assert not record.is_out_soon(2.5)


@pytest.mark.parametrize(
    ("resident", "above"),
    [(None, 2 * GiB), (3 * GiB, 2 * GiB), (GiB, GiB), (MiB, 0)],
)
def test_what_the_host_could_gain_down_to_its_floor(
    resident: int | None, above: int
) -> None:
    record = seen((0.0, 2 * GiB + 128 * MiB, answer(1)))
    record.note_resident(resident)
    # Memory that QEMU has for itself is not the guest's to give.
    assert record.above_floor == (above if above != GiB else GiB - 128 * MiB)
    unknown = VmRecord(VmSpec("vm", UnixAddress("/run/vm.qmp")), stale_after=5.0)
    assert unknown.above_floor == 0


@pytest.mark.parametrize(("actual", "state"), [(1900, "stalled"), (1400, "healthy")])
def test_who_gives_less_than_half_is_left_alone_for_a_while(
    actual: int, state: str
) -> None:
    record = seen((0.0, 2 * GiB, GuestStats()), (1.0, 2 * GiB, answer(1)))
    record.note_move_started(1.0, GiB)
    record.note_move_ended(2.0, ended("settled", 2 * GiB, GiB, actual * MiB))
    record.note_poll(3.0, actual * MiB, answer(3), None)
    record.note_poll(4.0, actual * MiB, answer(4), None)
    assert record.get_state(4.0) == state
    assert record.counters.stalls == 1
    guest = record.make_guest(4.0)
    assert guest is not None
    assert guest.is_stalled == (state == "stalled")


def test_rests_get_longer_until_a_move_succeeds() -> None:
    record = seen((0.0, 2 * GiB, GuestStats()), (1.0, 2 * GiB, answer(1)))

    def rest(now: float) -> float:
        record.note_move_ended(now, ended("settled", 2 * GiB, GiB, 2 * GiB))
        record.note_poll(now, 2 * GiB, answer(int(now)), None)
        end = now
        while record.get_state(end) == "stalled":
            end += 1
            record.note_poll(end, 2 * GiB, answer(int(end)), None)
        return end - now

    first, second = rest(10.0), rest(1000.0)
    assert second == 2 * first
    record.note_move_ended(2000.0, ended("reached", 2 * GiB, GiB, GiB))
    assert rest(3000.0) == first


def test_what_was_given_is_promised_until_it_is_touched() -> None:
    record = seen((0.0, GiB, GuestStats()))
    record.note_poll(1.0, GiB, answer(1), GiB)
    record.note_move_started(1.0, GiB + 512 * MiB)
    assert record.count_promised(4.0) == 512 * MiB
    record.note_move_ended(2.0, ended("reached", GiB, GiB + 512 * MiB, GiB + 512 * MiB))
    record.note_poll(3.0, GiB + 512 * MiB, answer(3), GiB + 100 * MiB)
    assert record.count_promised(4.0) == 412 * MiB
    record.note_poll(4.0, GiB + 512 * MiB, answer(4), GiB + 512 * MiB)
    assert record.count_promised(4.0) == 0


def test_what_is_not_free_in_the_guest_was_touched_or_never_will_be() -> None:
    """A kernel keeps some memory to itself, and the host never gives that."""
    record = seen((0.0, GiB, GuestStats()))
    record.note_poll(1.0, GiB, evolve(answer(1), free=200 * MiB), 900 * MiB)
    guest = record.make_guest(1.0)
    assert guest is not None
    assert guest.untouched == 124 * MiB
    record.note_poll(2.0, GiB, evolve(answer(2), free=20 * MiB), 900 * MiB)
    guest = record.make_guest(2.0)
    assert guest is not None
    assert guest.untouched == 20 * MiB


def test_a_sample_from_before_a_grant_does_not_say_that_it_was_used() -> None:
    record = seen((0.0, GiB, GuestStats()))
    record.note_poll(1.0, GiB, evolve(answer(1), free=0), GiB)
    record.note_move_started(1.0, GiB + 512 * MiB)
    record.note_move_ended(1.5, ended("reached", GiB, GiB + 512 * MiB, GiB + 512 * MiB))
    record.note_poll(2.0, GiB + 512 * MiB, evolve(answer(2), free=0), GiB)
    assert record.count_promised(4.0) == 512 * MiB


def usage_increase(record: VmRecord, now: float) -> int:
    guest = record.make_guest(now)
    assert guest is not None
    return guest.usage_increase


def test_the_usage_increase_is_of_what_is_used_whatever_the_size() -> None:
    record = seen((0.0, 2 * GiB, GuestStats()), (1.0, 2 * GiB, answer(1)))
    assert usage_increase(record, 1.0) == 0
    record.note_poll(2.0, 2 * GiB, answer(2, GiB - 100 * MiB), None)
    assert usage_increase(record, 2.0) == 100 * MiB
    # A look that shows nothing new says nothing new.
    record.note_poll(3.0, 2 * GiB, answer(2, GiB - 100 * MiB), None)
    assert usage_increase(record, 3.0) == 100 * MiB
    # 1 GiB more, which the sample does not know of yet: then it does.
    record.note_poll(4.0, 3 * GiB, answer(3, GiB - 100 * MiB), None)
    record.note_poll(5.0, 3 * GiB, answer(4, 2 * GiB - 160 * MiB), None)
    assert usage_increase(record, 5.0) == 20 * MiB
    record.note_poll(6.0, 3 * GiB, answer(5, 2 * GiB), None)
    assert usage_increase(record, 6.0) == 0


@pytest.mark.parametrize(
    ("period", "ahead"), [(0.25, 100 * MiB), (1.0, 100 * MiB), (5.0, 500 * MiB)]
)
def test_the_usage_increase_is_looked_ahead_to_the_next_plan_and_a_second_at_least(
    period: float, ahead: int
) -> None:
    record = VmRecord(VmSpec("vm", UnixAddress("/run/vm.qmp")), 15.0, period)
    record.note_connected(0.0)
    record.note_ram(4 * GiB, 4 * GiB)
    for second in range(3):
        stats = answer(second, GiB - second * 100 * MiB)
        record.note_poll(float(second), 2 * GiB, stats, None)
    assert usage_increase(record, 2.0) == ahead


def test_the_usage_increase_begins_anew_with_the_connection() -> None:
    record = seen((0.0, 2 * GiB, GuestStats()), (1.0, 2 * GiB, answer(1)))
    record.note_poll(2.0, 2 * GiB, answer(2, GiB - 100 * MiB), None)
    record.note_lost("gone", "it is gone")
    record.note_connected(10.0)
    record.note_poll(10.0, 2 * GiB, answer(2, 0), None)
    record.note_poll(11.0, 2 * GiB, answer(3, 0), None)
    assert usage_increase(record, 11.0) == 0


def test_where_qemu_does_not_tell_the_ram_it_is_the_most_that_was_seen() -> None:
    record = VmRecord(VmSpec("vm", UnixAddress("/run/vm.qmp"), floor="50%"), 5.0)
    record.note_connected(0.0)
    record.note_poll(0.0, 2 * GiB, GuestStats(), None)
    record.note_ram(None, None)
    record.note_poll(1.0, GiB, GuestStats(), None)
    record.note_ram(None, None)
    assert record.total == 2 * GiB
    assert record.bounds is not None
    assert record.bounds.floor == GiB


def test_who_is_fresh_has_so_much_above_its_headroom() -> None:
    record = seen((0.0, 2 * GiB, GuestStats()), (1.0, 2 * GiB, answer(1)))
    assert record.bounds is not None
    view = record.make_view(1.0)
    assert view.above_headroom == GiB - record.bounds.headroom
    assert record.make_view(7.0).above_headroom is None  # stale
    record.note_poll(8.0, 2 * GiB, evolve(answer(8), available=None), None)
    assert record.make_view(8.0).above_headroom is None


def test_a_guest_that_does_not_say_what_is_available_cannot_be_moved() -> None:
    said = evolve(answer(1), available=None)
    record = seen((0.0, 2 * GiB, GuestStats()), (1.0, 2 * GiB, said))
    assert record.get_state(1.0) == "healthy"
    assert record.make_guest(1.0) is None


def test_no_more_than_there_is_can_be_free() -> None:
    said = evolve(answer(1), free=3 * GiB)
    guest = seen((0.0, GiB, GuestStats()), (1.0, GiB, said)).make_guest(1.0)
    assert guest is not None
    assert guest.free == GiB
    said = evolve(answer(1), free=GiB // 2)
    guest = seen((0.0, GiB, GuestStats()), (1.0, GiB, said)).make_guest(1.0)
    assert guest is not None
    assert guest.free == GiB // 2


def test_how_long_it_is_connected_counts_from_when_it_was() -> None:
    record = VmRecord(VmSpec("vm", UnixAddress("/run/vm.qmp")), stale_after=5.0)
    record.note_connected(1000.0)
    assert record.get_state(1005.0) == "connecting"
    assert record.get_state(1005.5) == "no-driver"


def test_why_it_stalled_is_shown_until_its_rest_is_over() -> None:
    record = seen((0.0, 2 * GiB, GuestStats()), (1.0, 2 * GiB, answer(1)))
    record.note_move_ended(10.0, ended("settled", 2 * GiB, GiB, 2 * GiB))
    for now, detail in [(11.0, "it is slow"), (39.0, "it is slow"), (40.0, "")]:
        record.note_poll(now, 2 * GiB, answer(int(now)), None)
        assert record.make_view(now).detail == detail


def test_who_stalls_for_no_known_reason_gave_too_little() -> None:
    record = seen((0.0, 2 * GiB, GuestStats()), (1.0, 2 * GiB, answer(1)))
    result = evolve(ended("settled", 2 * GiB, GiB, 2 * GiB), diagnosis=None)
    record.note_move_ended(10.0, result)
    record.note_poll(11.0, 2 * GiB, answer(11), None)
    assert "less than half" in record.make_view(11.0).detail


def test_a_ram_of_nothing_is_not_known() -> None:
    record = VmRecord(VmSpec("vm", UnixAddress("/run/vm.qmp")), stale_after=5.0)
    record.note_ram(None, None)
    assert (record.total, record.bounds) == (None, None)


def test_who_gives_half_does_not_rest_and_a_rest_ends_on_time() -> None:
    record = seen((0.0, 2 * GiB, GuestStats()), (1.0, 2 * GiB, answer(1)))
    record.note_move_ended(2.0, ended("settled", 2 * GiB, GiB, 2 * GiB - GiB // 2))
    record.note_poll(3.0, 2 * GiB - GiB // 2, answer(3), None)
    assert record.get_state(3.0) == "healthy"
    record.note_move_ended(10.0, ended("settled", 2 * GiB, GiB, 2 * GiB))
    record.note_poll(39.0, 2 * GiB, answer(39), None)
    record.note_poll(40.0, 2 * GiB, answer(40), None)
    for now, is_stalled in [(39.9, True), (40.0, False)]:
        guest = record.make_guest(now)
        assert guest is not None
        assert guest.is_stalled is is_stalled


def test_a_guest_whose_ram_is_not_known_cannot_be_moved() -> None:
    record = VmRecord(VmSpec("vm", UnixAddress("/run/vm.qmp")), stale_after=5.0)
    record.note_connected(0.0)
    record.note_poll(0.0, 2 * GiB, GuestStats(), None)
    record.note_poll(1.0, 2 * GiB, answer(1), None)
    assert record.get_state(1.0) == "healthy"
    assert record.make_guest(1.0) is None


def test_statistics_are_shown_once_there_are_any() -> None:
    record = seen((0.0, 2 * GiB, GuestStats()))
    assert record.make_view(0.0).to_json()["stats"] is None
    record.note_poll(1.0, 2 * GiB, answer(1), None)
    shown = record.make_view(1.0).to_json()["stats"]
    assert shown == {**answer(1).to_json(), "fresh": True}


def test_whoever_says_nonsense_is_left_alone_for_a_while() -> None:
    record = seen((0.0, GiB, GuestStats()), (1.0, GiB, answer(1)))
    assert record.make_guest(1.0) is not None
    record.note_poll(2.0, GiB, evolve(answer(2), nonsense=("stat-swap-in",)), None)
    # Its next answer makes sense, and is not believed yet.
    for second in range(3, 33):
        record.note_poll(float(second), GiB, answer(second), None)
        assert (record.get_state(second) == "nonsense") == (second < 32)
        assert (record.make_guest(second) is None) == (second < 32)
    record.note_poll(33.0, GiB, evolve(answer(33), nonsense=("stat-swap-in",)), None)
    assert "stat-swap-in" in record.make_view(33.0).detail
    assert record.is_known(33.0)
    assert not record.make_view(33.0).is_fresh


def test_more_memory_than_there_is_is_nonsense_once_the_ram_was_asked_for() -> None:
    record = seen((0.0, GiB, GuestStats()), (1.0, GiB, answer(1, 5 * GiB)))
    assert record.doubts_ram
    assert record.make_guest(1.0) is None
    assert record.get_state(1.0) == "healthy"
    record.note_ram(4 * GiB, 4 * GiB)
    assert record.get_state(1.0) == "nonsense"


def test_plugged_memory_is_not_nonsense() -> None:
    record = seen((0.0, GiB, GuestStats()), (1.0, GiB, answer(1, 5 * GiB)))
    record.note_ram(4 * GiB, 6 * GiB)  # virtio-mem: no balloon takes it
    assert record.get_state(1.0) == "healthy"
    assert record.make_guest(1.0) is not None
    record.note_poll(2.0, 5 * GiB, answer(2, GiB), None)
    assert record.doubts_ram
    record.note_ram(8 * GiB, 8 * GiB)
    assert record.bounds is not None
    assert record.bounds.ceiling == 8 * GiB


def test_what_was_granted_counts_whatever_the_guest_says_and_though_it_is_lost() -> (
    None
):
    record = seen((0.0, GiB, GuestStats()))
    record.note_move_started(1.0, 2 * GiB)
    record.note_move_ended(2.0, ended("reached", GiB, 2 * GiB, 2 * GiB))
    for second in range(3, 9):
        lie = evolve(answer(second), free=0, available=0)
        record.note_poll(float(second), 2 * GiB, lie, 100 * MiB)
        assert record.count_promised(second) == GiB
    record.note_poll(100.0, 2 * GiB, answer(100), 100 * MiB)
    record.note_lost("gone", "it hung up")
    record.note_connected(110.0)
    assert record.count_promised(110.0) == GiB
    record.note_lost("gone", "it is gone")
    assert record.count_promised(130.0) == GiB
    assert record.count_promised(130.5) == 0


def test_who_holds_what_nobody_knows_holds_all_that_it_has() -> None:
    record = seen((0.0, GiB, GuestStats()))
    assert record.count_held(0.0) == GiB
    record.note_move_started(1.0, 2 * GiB)
    assert record.count_held(1.0) + record.count_promised(1.0) == 2 * GiB
    record.note_poll(2.0, GiB, GuestStats(), 300 * MiB)
    assert record.count_held(2.0) == 300 * MiB
    record.note_lost("gone", "it does not answer")
    assert record.count_held(2.0) + record.count_promised(2.0) == 2 * GiB
    record.note_lost("gone", "nobody listens", has_ended=True)
    assert record.count_held(40.0) == 0


def test_who_is_lost_before_its_first_poll_holds_what_it_held() -> None:
    record = seen((0.0, 2 * GiB, GuestStats()))
    for _ in range(2):
        record.note_lost("gone", "it hung up")
        record.note_connected(1.0)
        assert record.count_held(1.0) == 2 * GiB
    new = VmRecord(record.spec, record.stale_after)
    new.note_connected(1.0)
    new.note_resident(GiB)
    new.note_lost("gone", "it hung up")
    assert new.count_held(2.0) == GiB


def test_a_failed_vm_holds_what_it_held() -> None:
    record = seen((0.0, GiB, GuestStats())).begin_anew()
    assert record.actual is None
    assert record.count_held(0.0) == GiB


def test_a_size_from_before_a_grant_does_not_take_the_promise_back() -> None:
    record = seen((0.0, GiB, answer(0)))
    record.note_move_started(1.0, 2 * GiB)
    # The guest had touched all that it had. The poll was under way.
    record.note_poll(1.1, GiB, answer(1), GiB)
    assert record.count_promised(1.1) == GiB


def test_what_a_guest_touches_between_polls_counts() -> None:
    record = seen((0.0, GiB, answer(0)))
    record.note_move_started(1.0, 2 * GiB)
    record.note_poll(2.0, 2 * GiB, answer(2), GiB)
    record.note_resident(3 * GiB // 2)
    assert record.count_held(2.5) == 3 * GiB // 2
    assert record.count_promised(2.5) == GiB // 2


@pytest.mark.parametrize("last", [3 * GiB // 4, GiB // 2])
def test_what_is_given_back_in_a_move_is_promised(last: int) -> None:
    record = seen((0.0, GiB, answer(0)))
    record.note_move_started(1.0, GiB // 4)
    record.note_poll(1.1, GiB, answer(1), GiB)
    for now, actual in enumerate((GiB // 2, GiB // 4, GiB // 2), 2):
        record.note_progress(now, actual)
    record.note_move_ended(5.0, ended("settled", GiB, GiB // 4, last))
    assert record.count_promised(5.0) == last - GiB // 4


def test_who_gives_slowly_counts_for_what_it_delivers() -> None:
    record = seen((0.0, 4 * GiB, GuestStats()), (1.0, 4 * GiB, answer(1)))
    record.note_move_started(1.0, 2 * GiB)
    for second in range(2, 6):
        record.note_progress(float(second), 4 * GiB - second * MiB)
    guest = record.make_guest(5.0)
    assert guest is not None
    assert guest.delivers is not None
    assert 0 < guest.delivers <= 4 * MiB


def test_a_vm_that_another_program_moves_is_left_alone_and_that_is_said() -> None:
    record = seen((0.0, 2 * GiB, GuestStats()), (1.0, 2 * GiB, answer(1)))
    record.note_poll(2.0, 2 * GiB, answer(2), None)
    record.note_poll(2.5, GiB, answer(2), None)
    assert record.doubts_ram  # or memory was plugged or unplugged
    record.note_ram(4 * GiB, 4 * GiB)
    for second in range(3, 11):
        record.note_poll(float(second), GiB, answer(second), None)
    assert record.get_state(10.0) == "stalled"
    assert "another program" in record.make_view(10.0).detail


def test_a_vm_whose_ram_grew_was_not_moved_by_another_program() -> None:
    record = seen((0.0, 2 * GiB, GuestStats()), (1.0, 2 * GiB, answer(1)))
    record.note_poll(2.0, 2 * GiB, answer(2), None)
    record.note_poll(2.5, 6 * GiB, answer(2), None)
    assert record.doubts_ram
    record.note_ram(8 * GiB, 8 * GiB)
    for second in range(3, 11):
        record.note_poll(float(second), 6 * GiB, answer(second), None)
    assert record.get_state(10.0) == "healthy"


def test_a_guest_whose_balloon_works_is_not_told_to_load_its_driver() -> None:
    record = VmRecord(VmSpec("vm", UnixAddress("/run/vm.qmp")), stale_after=5.0)
    record.note_connected(0.0)
    record.note_poll(0.0, GiB, GuestStats(), None)
    record.note_ram(2 * GiB, 2 * GiB)
    record.note_poll(6.0, GiB, GuestStats(), None)
    view = record.make_view(6.0)
    assert view.state == "stale"
    assert "virtio_balloon" not in view.detail
    assert "statistics" in view.detail


def test_a_vm_that_does_not_run_is_told_why_it_does_not() -> None:
    record = seen((0.0, GiB, GuestStats()))
    assert record.is_to_be_prompted(3.0)
    record.note_prompted(3.0, "the VM is not here yet")
    assert not record.is_to_be_prompted(5.0)
    record.note_poll(6.0, GiB, GuestStats(), None)
    view = record.make_view(6.0)
    assert (view.state, view.detail) == ("stale", "the VM is not here yet")


def at_rest(available: int) -> VmRecord:
    """Return what is known of a guest that was polled at 2.0.

    It had run for 10 seconds. It has 4 GiB, and is to keep 614 MiB available: half as
    much again as its headroom.
    """
    record = seen(
        (0.0, 4 * GiB, answer(0, available)), (1.0, 4 * GiB, answer(1, available))
    )
    record.note_turn(1.0, 10.0)
    record.note_turn(2.0, 10.0)
    record.note_poll(2.0, 4 * GiB, answer(2, available, age=0.5), None)
    return record


def may_wait(record: VmRecord, now: float, ran: float) -> bool:
    record.note_turn(now, ran)
    return record.may_wait(now)


def test_who_has_hardly_run_is_polled_every_fourth_period() -> None:
    record = at_rest(2 * GiB)
    for now in (3.0, 4.0, 5.02):
        assert may_wait(record, now, 10.01)
        record.note_idle(now)
        assert record.checked_at == now
        assert record.polled_at == 2.0
        assert record.get_state(now) == "healthy"
    assert not may_wait(record, 6.0, 10.01)


def test_who_may_have_used_what_it_is_to_keep_is_polled_at_once() -> None:
    record = at_rest(2 * GiB)
    guest = record.make_guest(2.0)
    assert guest is not None
    spare = guest.available - guest.desired_available
    assert may_wait(record, 3.0, 10.0 + spare / (20.1 * GiB))
    assert not may_wait(record, 3.0, 10.0 + spare / (19.9 * GiB))
    assert not may_wait(at_rest(guest.desired_available - MiB), 3.0, 10.0)


def test_who_moves_or_is_owed_memory_or_has_too_much_is_polled() -> None:
    moving, owed, more = (at_rest(2 * GiB) for _ in range(3))
    moving.note_move_started(2.0, 3 * GiB)
    owed.owed, owed.total = 5 * GiB, 5 * GiB
    more.note_poll(2.5, 5 * GiB, answer(3, 2 * GiB), None)
    for record in (moving, owed, more):
        assert not may_wait(record, 3.0, 10.0)


def test_who_runs_for_nobody_knows_how_long_is_polled() -> None:
    record = at_rest(2 * GiB)
    record.note_turn(3.0, None)
    assert not record.may_wait(3.0)
    record = at_rest(2 * GiB)
    record.note_connected(2.5)
    record.note_poll(2.5, 4 * GiB, answer(2, 2 * GiB), None)
    record.note_poll(3.0, 4 * GiB, answer(3, 2 * GiB, age=0.5), None)
    assert record.make_guest(3.0) is not None
    assert not may_wait(record, 3.5, 10.0)  # it may be another process


def test_who_is_polled_seldom_is_not_prompted_before_two_periods_are_over() -> None:
    record = seen((0.0, GiB, GuestStats()), (1.0, GiB, answer(1)))
    record.period = 4.0
    assert not record.is_to_be_prompted(9.0)
    assert record.is_to_be_prompted(9.1)


def test_nobody_waits_for_longer_than_until_it_counts_as_silent() -> None:
    record = at_rest(2 * GiB)
    record.stale_after = 2.0
    assert not may_wait(record, 3.0, 10.0)


def test_a_rise_after_a_rest_counts_from_the_end_of_the_rest() -> None:
    record = at_rest(2 * GiB)
    for now in (3.0, 4.0):
        record.note_idle(now)
    record.note_poll(5.0, 4 * GiB, answer(5, 2 * GiB - 100 * MiB), None)
    assert usage_increase(record, 5.0) == pytest.approx(100 * MiB, rel=0.01)


@pytest.mark.parametrize(("actual", "hot"), [(2 * GiB, True), (4 * GiB, False)])
def test_what_a_guest_reads_that_has_all_its_memory_is_not_read_again(
    actual: int, *, hot: bool
) -> None:
    record = seen()
    for second in range(60):
        read = max(0, second - 30) * 100 * MiB
        stats = evolve(answer(second, 600 * MiB, age=0.5), free=50 * MiB)
        record.note_turn(second, 10.0)
        record.note_poll(second, actual, stats, None, DiskReads(read, 0))
        record.note_ram(4 * GiB, 4 * GiB)
    view = record.make_view(59)
    assert bool(view.hot) == hot
    # A guest that lacks some of what it reads is not at rest, although it has not run.
    assert may_wait(record, 60, 10.0) != hot
