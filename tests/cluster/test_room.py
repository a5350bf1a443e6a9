"""What a host says that it has room for, and can give, is what its fleet can do."""

from __future__ import annotations

from attrs import evolve
from clusters import make_guest
from hypothesis import given
from hypothesis import strategies as st

from qmpballoon.balloon.device import PAGE
from qmpballoon.cluster.documents import Offer, Room, VmSummary
from qmpballoon.cluster.room import SMALLEST_GIFT, compute_offer, compute_room
from qmpballoon.fleet.guests import Guest, Host
from qmpballoon.fleet.policy import Rules, take
from qmpballoon.sizes import GiB, MiB

RULES = evolve(Rules.for_host(64 * GiB), dead_band=SMALLEST_GIFT)


@st.composite
def guest_lists(draw: st.DrawFn) -> list[Guest]:
    sizes = st.integers(0, 4096).map(lambda size: size * MiB)
    guests: list[Guest] = []
    for number in range(draw(st.integers(0, 5))):
        actual = draw(sizes)
        available = min(draw(sizes), actual)
        guests.append(
            Guest(
                name=f"vm{number}",
                actual=actual,
                total=4 * GiB,
                available=available,
                headroom=draw(st.integers(0, 512)) * MiB,
                floor=draw(sizes),
                ceiling=4 * GiB,
                free=min(draw(sizes), available),
                untouched=min(draw(sizes), actual),
                target=draw(st.none() | sizes),
                is_stalled=draw(st.booleans()),
                hot=draw(sizes),
            )
        )
    return guests


@given(guest_lists())
def test_what_is_offered_can_be_taken_and_nothing_else(guests: list[Guest]) -> None:
    offer = compute_offer(guests, 2**50)
    plan = take(2**50, guests, evolve(RULES, dead_band=PAGE), takes_hot=True)
    assert offer.total <= 2**50 - plan.lacking
    by_name = {guest.name: guest for guest in guests}
    for move in plan.moves:
        assert move.target >= by_name[move.name].floor
    cold = take(2**50, guests, evolve(RULES, dead_band=PAGE), takes_hot=False)
    assert offer.idle + offer.cold <= 2**50 - cold.lacking
    # Only what is too little to be worth a move is not offered.
    assert 2**50 - plan.lacking - offer.total <= len(guests) * SMALLEST_GIFT
    needy = [each for each in guests if each.need or each.distress]
    assert not compute_offer(needy, 2**50).total
    assert compute_offer(guests, GiB).total == min(offer.total, GiB)


@given(guest_lists(), st.integers(-GiB, 64 * GiB), st.integers(0, 8 * GiB))
def test_room_grows_with_what_is_done_for_it(
    guests: list[Guest], available: int, resident: int
) -> None:
    vms = [
        VmSummary(guest.name, "healthy", actual=guest.actual, target=guest.target)
        for guest in guests
    ]
    host = Host(64 * GiB, available)
    room = compute_room(host, RULES, guests, vms, resident)
    assert 0 <= room.now <= room.after_cold <= room.to_floors
    assert room.now <= max(0, available - RULES.reserve)


def test_an_upper_bound_of_what_is_taken_counts() -> None:
    host = Host(total=64 * GiB, available=50 * GiB)
    reserve = RULES.reserve
    # A guest that has 8 GiB, of which its QEMU holds 2, may touch 6 more.
    small = VmSummary("a", "healthy", actual=8 * GiB, total=8 * GiB, resident=2 * GiB)
    room = compute_room(host, RULES, [], [small], 2 * GiB)
    assert room == Room(*[44 * GiB - reserve] * 3)
    # One that grows may have all that it grows to.
    growing = evolve(small, actual=4 * GiB, target=6 * GiB)
    assert compute_room(host, RULES, [], [growing], 2 * GiB).now == 46 * GiB - reserve
    # One of which only its RAM is known may have that, and one of which nothing is
    # known may have what its QEMU holds.
    silent = VmSummary("a", "gone", total=8 * GiB)
    assert compute_room(host, RULES, [], [silent], 0).now == 42 * GiB - reserve
    unknown = VmSummary("a", "busy", resident=2 * GiB)
    assert compute_room(host, RULES, [], [unknown], 2 * GiB).now == 50 * GiB - reserve
    # What QEMU itself needs beyond its guest's memory is gone already.
    large = evolve(small, resident=9 * GiB)
    assert compute_room(host, RULES, [], [large], 9 * GiB).now == 50 * GiB - reserve


def test_an_offer_by_what_it_costs() -> None:
    guest = make_guest("a", free=512 * MiB, hot=256 * MiB)
    # It keeps one and a half times its headroom; see Guest.desired_available.
    spare = 2 * GiB - 192 * MiB - 256 * MiB
    offer = Offer(512 * MiB, spare - 512 * MiB, 256 * MiB)
    assert compute_offer([guest], 64 * GiB) == offer
    for other in (
        evolve(guest, target=3 * GiB),
        evolve(guest, is_stalled=True),
        evolve(guest, available=64 * MiB),
        evolve(guest, floor=4 * GiB),
        evolve(guest, floor=4 * GiB - MiB + PAGE),
    ):
        assert compute_offer([other], 64 * GiB) == Offer()
    least = evolve(guest, floor=4 * GiB - SMALLEST_GIFT)
    assert compute_offer([least], 64 * GiB).total == SMALLEST_GIFT
    host = Host(64 * GiB, 40 * GiB)
    vms = [VmSummary("a", "healthy", actual=4 * GiB)]
    room = compute_room(host, RULES, [guest], vms, 4 * GiB)
    now = 40 * GiB - RULES.reserve
    assert room == Room(now, now + spare, now + 4 * GiB - guest.floor)
