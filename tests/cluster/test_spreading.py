"""What hosts are asked for adds up, hurts least, and stays within what they offer."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmpballoon.balloon.device import PAGE
from qmpballoon.cluster.documents import Offer
from qmpballoon.cluster.spreading import spread
from qmpballoon.sizes import GiB

SIZES = st.integers(0, 40 * PAGE)
OFFERS = st.dictionaries(
    st.sampled_from([f"h{number}" for number in range(9)]),
    st.builds(Offer, SIZES, SIZES, SIZES),
)
AMOUNTS = st.integers(1, 1000 * PAGE)
KINDS = ("idle", "cold", "hot")


def whole(size: int) -> int:
    return size // PAGE * PAGE


@given(AMOUNTS, OFFERS)
def test_the_sum_is_the_amount_or_all_that_is_offered(
    amount: int, offers: dict[str, Offer]
) -> None:
    made = spread(amount, offers)
    offered = sum(
        whole(getattr(offer, kind)) for offer in offers.values() for kind in KINDS
    )
    assert sum(made.quotas.values()) == min(whole(amount), offered)
    assert made.lacking == whole(amount) - sum(made.quotas.values())


@given(AMOUNTS, OFFERS)
def test_no_host_is_asked_for_more_than_it_offers_of_each_kind(
    amount: int, offers: dict[str, Offer]
) -> None:
    for host, part in spread(amount, offers).parts.items():
        for kind in KINDS:
            assert 0 <= getattr(part, kind) <= getattr(offers[host], kind)
            assert getattr(part, kind) % PAGE == 0
        assert part.total > 0


@given(AMOUNTS, OFFERS)
def test_what_hurts_is_taken_only_when_nothing_else_is_left(
    amount: int, offers: dict[str, Offer]
) -> None:
    parts = spread(amount, offers).parts
    for gentler, harder in pairwise(KINDS):
        if any(getattr(part, harder) for part in parts.values()):
            for host, offer in offers.items():
                taken = getattr(parts.get(host, Offer()), gentler)
                assert taken == whole(getattr(offer, gentler))


@given(AMOUNTS, OFFERS)
def test_those_who_have_most_give_first(amount: int, offers: dict[str, Offer]) -> None:
    parts = spread(amount, offers).parts
    for kind in KINDS:
        left = {
            host: whole(getattr(offer, kind)) - getattr(parts.get(host, Offer()), kind)
            for host, offer in offers.items()
        }
        for host in offers:
            if getattr(parts.get(host, Offer()), kind):
                # By rounding, one may have a page less than others.
                assert left[host] >= max(left.values()) - PAGE


@given(AMOUNTS, AMOUNTS, OFFERS)
def test_with_a_larger_amount_nobody_is_asked_for_less(
    first: int, second: int, offers: dict[str, Offer]
) -> None:
    less, more = sorted([first, second])
    small, large = spread(less, offers), spread(more, offers)
    for host, part in small.parts.items():
        for kind in KINDS:
            assert getattr(large.parts[host], kind) >= getattr(part, kind)


@given(AMOUNTS, OFFERS, st.randoms(use_true_random=False))
def test_the_same_input_makes_the_same_plan(
    amount: int, offers: dict[str, Offer], rng: object
) -> None:
    names = list(offers)
    rng.shuffle(names)  # type: ignore[attr-defined]
    again = spread(amount, {name: offers[name] for name in names})
    assert again == spread(amount, offers)
    assert list(again.parts) == sorted(again.parts)


@given(AMOUNTS, OFFERS)
def test_hot_cache_is_left_alone_on_request(
    amount: int, offers: dict[str, Offer]
) -> None:
    made = spread(amount, offers, takes_hot=False)
    assert not made.takes_hot
    cold = {host: Offer(offer.idle, offer.cold) for host, offer in offers.items()}
    assert made == spread(amount, cold)
    assert spread(amount, offers).takes_hot == (
        made.lacking > 0 and any(offer.hot >= PAGE for offer in offers.values())
    )


def test_an_example() -> None:
    offers = {
        "a": Offer(idle=4 * GiB, cold=8 * GiB),
        "b": Offer(idle=2 * GiB, cold=2 * GiB, hot=64 * GiB),
        "c": Offer(),
    }
    assert spread(3 * GiB, offers).quotas == {"a": 5 * GiB // 2, "b": GiB // 2}
    assert spread(13 * GiB, offers).quotas == {"a": 21 * GiB // 2, "b": 5 * GiB // 2}
    assert spread(20 * GiB, offers).quotas == {"a": 12 * GiB, "b": 8 * GiB}


def test_hosts_that_offer_the_same_give_a_page_each_in_turn() -> None:
    offers = {name: Offer(idle=5 * PAGE) for name in ("a", "b", "c")}
    assert spread(2 * PAGE, offers).quotas == {"a": PAGE, "b": PAGE}
    assert spread(7 * PAGE, offers).quotas == {
        "a": 3 * PAGE,
        "b": 2 * PAGE,
        "c": 2 * PAGE,
    }


@pytest.mark.parametrize("amount", [0, -1, 2**63])
def test_amounts_that_cannot_be_are_refused(amount: int) -> None:
    with pytest.raises(ValueError, match="amount is"):
        spread(amount, {})
