"""What one guest can spare, what that gains the host, and what the guest needs."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from qmpballoon.fleet.guests import Guest
from qmpballoon.sizes import GiB, MiB


def make_guest(**figures: int) -> Guest:
    usual = {
        "actual": 2 * GiB,
        "total": 4 * GiB,
        "available": GiB,
        "headroom": 128 * MiB,
        "floor": 256 * MiB,
        "ceiling": 4 * GiB,
    }
    return Guest("vm", **{**usual, **figures})  # type: ignore[arg-type]


def test_what_is_about_to_be_used_is_not_spare() -> None:
    assert make_guest().spare == GiB - 192 * MiB
    assert make_guest(usage_increase=10 * MiB).spare == GiB - 252 * MiB
    # All that it has is used up within six plans.
    assert make_guest(usage_increase=150 * MiB).spare == 0


def test_the_need_is_looked_ahead_to() -> None:
    guest = make_guest(available=200 * MiB, usage_increase=30 * MiB)
    assert guest.compute_need(2) == 0
    assert make_guest(available=188 * MiB, usage_increase=30 * MiB).compute_need(2) == 0
    assert guest.compute_need(3) == 192 * MiB + 180 * MiB - 200 * MiB


def test_a_size_below_the_floor_is_a_need() -> None:
    assert make_guest(actual=GiB, floor=2 * GiB).need == GiB


def test_nobody_can_spare_what_is_below_the_floor() -> None:
    assert make_guest(floor=2 * GiB - 10 * MiB).spare == 10 * MiB
    assert make_guest(floor=3 * GiB).spare == 0


def test_free_memory_that_was_never_touched_is_no_gain() -> None:
    guest = make_guest(free=100 * MiB, untouched=40 * MiB)
    assert guest.idle == 60 * MiB
    # Beyond that, what was never touched goes with the cache.
    assert guest.gain == guest.spare - 40 * MiB
    assert guest.compute_reduction(60 * MiB) == 60 * MiB
    assert guest.compute_reduction(61 * MiB) == 101 * MiB
    assert make_guest(free=100 * MiB, untouched=2 * GiB).gain == 0


def test_a_guest_is_in_distress_below_its_headroom_now_or_by_the_next_plan() -> None:
    assert make_guest(available=128 * MiB).distress == 0
    assert make_guest(available=127 * MiB).distress == 65 * MiB
    assert make_guest(available=127 * MiB, ceiling=2 * GiB + MiB).distress == MiB
    growing = make_guest(available=192 * MiB, usage_increase=64 * MiB)
    assert growing.distress == 0
    growing = make_guest(available=192 * MiB, usage_increase=64 * MiB + 1)
    assert growing.distress == 192 * MiB + 6 * (64 * MiB + 1) - 192 * MiB
    assert make_guest(available=130 * MiB, usage_increase=3 * MiB).distress > 0
    # However small its headroom is, it is helped before all is used up.
    growing = make_guest(available=120 * MiB, usage_increase=50 * MiB, headroom=MiB)
    assert growing.distress > 0


def test_a_guest_that_has_a_target_moves() -> None:
    assert not make_guest().is_moving
    assert make_guest(target=GiB).is_moving


def test_halfway_is_between_what_is_used_and_all_that_it_may_have() -> None:
    assert make_guest(ceiling=3 * GiB).halfway == 2 * GiB
    assert make_guest(total=3 * GiB).halfway == 2 * GiB
    assert make_guest(total=3 * GiB, floor=5 * GiB // 2).halfway == 5 * GiB // 2


def test_hot_cache_is_not_spare_and_is_a_need_of_its_own() -> None:
    guest = make_guest(hot=500 * MiB)
    assert guest.spare == GiB - 692 * MiB
    assert guest.hot_need == 0
    lacks = make_guest(hot=GiB - 127 * MiB)
    assert lacks.spare == 0
    # It lacks 1 MiB, and gets half a headroom on top, so as not to come back at once.
    assert lacks.hot_need == 65 * MiB
    assert (lacks.need, lacks.distress) == (0, 0)
    assert make_guest(hot=GiB - 128 * MiB).hot_need == 0
    assert make_guest(hot=3 * GiB, available=100 * MiB).hot_need == 0  # it has a need
    assert make_guest(hot=3 * GiB, actual=GiB, floor=2 * GiB).hot_need == 0
    assert make_guest(hot=3 * GiB, ceiling=2 * GiB + MiB).hot_need == MiB


sizes = st.integers(0, 4 * GiB)


@given(sizes, sizes, st.floats(0, 1))
def test_a_reduction_yields_its_gain(free: int, untouched: int, share: float) -> None:
    guest = make_guest(free=min(free, GiB), untouched=min(untouched, 2 * GiB))
    gain = int(guest.gain * share)
    reduction = guest.compute_reduction(gain)
    assert gain <= reduction <= guest.spare
    # Idle memory goes first, then all that is untouched, then cache.
    idle = min(reduction, guest.idle)
    gained = idle + max(0, reduction - idle - guest.untouched)
    assert gained >= gain
    assert guest.compute_gain(reduction) == gained
