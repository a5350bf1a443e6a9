"""A policy raises what a host keeps, and lowers nothing without leave."""

from __future__ import annotations

import json
from contextlib import suppress
from fnmatch import fnmatchcase

import pytest
from attrs import evolve
from hypothesis import example, given
from hypothesis import strategies as st

from qmpballoon.cluster._fields import Malformed
from qmpballoon.cluster.documents import Policy, Wish
from qmpballoon.cluster.wishes import (
    Judged,
    Permits,
    judge_policy,
    make_limit,
    raise_reserve,
)
from qmpballoon.fleet.policy import Rules
from qmpballoon.fleet.vm_spec import Bounds
from qmpballoon.sizes import GiB, MiB, parse_size

TOTAL = 64 * GiB
RULES = Rules.for_host(TOTAL, 4 * GiB)
BOUNDS = Bounds(floor=GiB, ceiling=8 * GiB, headroom=128 * MiB)
LOWER = Permits(lower_reserve=True, lower_floors=True)
SIZES = st.integers(0, 100).map(lambda size: f"{size}GiB") | st.integers(0, 100).map(
    lambda share: f"{share}%"
)
PATTERNS = st.sampled_from(["*", "h*", "h1", "x", "[h]1", ""])
WISHES = st.lists(
    st.builds(
        Wish, PATTERNS, st.none() | SIZES, st.dictionaries(PATTERNS, SIZES, max_size=3)
    ),
    max_size=4,
)


@given(WISHES)
def test_without_leave_nothing_is_lowered(wishes: list[Wish]) -> None:
    policy = Policy(1, tuple(wishes))
    rules, _ = raise_reserve(RULES, policy, "h1", TOTAL, Permits())
    assert RULES.reserve <= rules.reserve < TOTAL
    assert rules.reserve_hard >= RULES.reserve_hard
    assert rules.buffer >= RULES.buffer
    bounds = make_limit(policy, "h1", Permits())("h1", 8 * GiB, BOUNDS)
    assert BOUNDS.floor <= bounds.floor <= BOUNDS.ceiling
    assert evolve(bounds, floor=BOUNDS.floor) == BOUNDS


@given(WISHES, st.randoms(use_true_random=False), st.sampled_from([Permits(), LOWER]))
def test_their_order_does_not_matter(
    wishes: list[Wish], rng: object, permits: Permits
) -> None:
    shuffled = list(wishes)
    rng.shuffle(shuffled)  # type: ignore[attr-defined]
    one, two = Policy(1, tuple(wishes)), Policy(1, tuple(shuffled))
    assert raise_reserve(RULES, one, "h1", TOTAL, permits) == raise_reserve(
        RULES, two, "h1", TOTAL, permits
    )
    first, second = make_limit(one, "h1", permits), make_limit(two, "h1", permits)
    assert first("vm", GiB, BOUNDS) == second("vm", GiB, BOUNDS)


@pytest.mark.parametrize(
    ("wish", "permits", "reserve"),
    [
        (Wish("h*", "8GiB"), Permits(), 8),
        (Wish("h*", "25%"), Permits(), 16),
        (Wish("x*", "8GiB"), Permits(), 4),
        (Wish("h*", "2GiB"), Permits(), 4),
        (Wish("h*", "2GiB"), Permits(lower_floors=True), 4),
        (Wish("h*", "2GiB"), LOWER, 2),
        (Wish("h*"), LOWER, 4),
        (Wish("H*", "8GiB"), Permits(), 4),
    ],
)
def test_a_reserve(wish: Wish, permits: Permits, reserve: int) -> None:
    rules, note = raise_reserve(RULES, Policy(1, (wish,)), "h1", TOTAL, permits)
    assert rules == Rules.for_host(TOTAL, reserve * GiB)
    assert not note


def test_of_several_reserves_the_largest_counts() -> None:
    sizes = ("6GiB", "8GiB", "10%", None)
    policy = Policy(1, tuple(Wish(reserve=size) for size in sizes))
    for permits in (Permits(), LOWER):
        rules, _ = raise_reserve(RULES, policy, "h1", TOTAL, permits)
        assert rules.reserve == 8 * GiB


def test_a_raised_reserve_is_that_of_a_host_that_was_started_so() -> None:
    policy = Policy(1, (Wish(reserve="8GiB"),))
    for hard in (None, GiB // 2, 3 * GiB):
        own = evolve(Rules.for_host(TOTAL, 4 * GiB, "shares", hard), dead_band=64 * MiB)
        rules, _ = raise_reserve(own, policy, "h1", TOTAL, Permits())
        alone = Rules.for_host(TOTAL, 8 * GiB, "shares", hard)
        assert rules == evolve(alone, dead_band=64 * MiB)
    # A hard reserve is a part of the reserve, however low that is wished.
    own = Rules.for_host(TOTAL, 4 * GiB, reserve_hard=3 * GiB)
    low = Policy(1, (Wish(reserve="2GiB"),))
    rules, _ = raise_reserve(own, low, "h1", TOTAL, LOWER)
    assert (rules.reserve, rules.reserve_hard) == (2 * GiB, 2 * GiB)


def test_a_reserve_that_leaves_nothing_does_not_count() -> None:
    policy = Policy(1, (Wish(reserve="100%"),))
    rules, note = raise_reserve(RULES, policy, "h1", TOTAL, Permits())
    assert rules == RULES
    assert "leaves nothing" in note
    assert raise_reserve(RULES, None, "h1", TOTAL, Permits()) == (RULES, "")


@pytest.mark.parametrize(
    ("wish", "permits", "floor"),
    [
        (Wish("*", floors={"db*": "2GiB"}), Permits(), 2 * GiB),
        (Wish("*", floors={"db*": "50%"}), Permits(), 4 * GiB),
        (Wish("*", floors={"db*": "2GiB", "*": "3GiB"}), Permits(), 3 * GiB),
        (Wish("*", floors={"web": "2GiB"}), Permits(), GiB),
        (Wish("x", floors={"db*": "2GiB"}), Permits(), GiB),
        (Wish("*", floors={"db*": "64GiB"}), Permits(), 8 * GiB),
        (Wish("*", floors={"db*": "1MiB"}), Permits(lower_reserve=True), GiB),
        (Wish("*", floors={"db*": "1MiB"}), LOWER, MiB),
    ],
)
def test_a_floor(wish: Wish, permits: Permits, floor: int) -> None:
    limit = make_limit(Policy(1, (wish,)), "h1", permits)
    assert limit("db1", 8 * GiB, BOUNDS) == evolve(BOUNDS, floor=floor)


@example(size="500000000000%", total=TOTAL, permits=Permits())
@given(
    st.builds(
        "{}{}".format,
        st.integers(0, 10**15) | st.floats(0, 200).map("{:.6f}".format),
        st.sampled_from(["", "%", "k", "MB", "GiB", "P"]),
    ),
    st.integers(1, 2**63 - 1),
    st.sampled_from([Permits(), LOWER]),
)
def test_what_can_be_wished_can_be_followed_whatever_a_host_has(
    size: str, total: int, permits: Permits
) -> None:
    with suppress(Malformed):
        policy = Policy(1, (Wish("*", size, {"*": size}),))
        own = Rules.for_host(total)
        rules, _ = raise_reserve(own, policy, "h1", total, permits)
        assert rules == own or rules.reserve < total
        bounds = Bounds(total // 2, total, total // 8)
        assert make_limit(policy, "h1", permits)("vm", total, bounds).floor <= total


@given(
    st.dictionaries(
        st.text("ab*?[]!-.\n", max_size=4), st.integers(1, 9).map("{}".format)
    ),
    st.text("ab[]!-.\n", max_size=4),
)
def test_a_floor_is_that_of_all_globs_that_match(
    floors: dict[str, str], name: str
) -> None:
    bounds = make_limit(Policy(1, (Wish("*", None, floors),)), "h1", Permits())(
        name, 9, Bounds(0, 9, 0)
    )
    matching = [size for glob, size in floors.items() if fnmatchcase(name, glob)]
    assert bounds.floor == max(map(parse_size, matching), default=0)


def test_which_policy_counts() -> None:
    first, second = Policy(1, (Wish(reserve="8GiB"),)), Policy(2)
    assert judge_policy(None, first.to_bytes()).policy == first
    assert judge_policy(first, first.to_bytes()) == judge_policy(None, first.to_bytes())
    assert judge_policy(first, second.to_bytes()).policy == second
    assert not judge_policy(first, second.to_bytes()).note
    assert judge_policy(None, None) == Judged(None)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (None, "emptied"),
        (Policy(4).to_bytes(), "older"),
        (Policy(5, (Wish(reserve="9GiB"),)).to_bytes(), "another revision 5"),
        (b"", "no JSON"),
        (b"\xff", "no JSON"),
        (json.dumps({"kind": "policy", "v": 2, "revision": 9}).encode(), "version"),
        (json.dumps({"kind": "policy", "v": 1, "revision": -9}).encode(), "revision"),
    ],
)
def test_what_changes_nothing_is_told(data: bytes | None, words: str) -> None:
    known = Policy(5)
    judged = judge_policy(known, data)
    assert judged.policy is known
    assert words in judged.note
    assert "revision 5 goes on" in judged.note
    if data is not None and words in {"no JSON", "version", "revision"}:
        assert "own rules go on" in judge_policy(None, data).note
