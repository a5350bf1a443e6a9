"""A guest's statistics are read, and figures that make no sense are left out."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmpballoon.balloon.stats import GuestStats

UNSET = 2**64 - 1
NAMES = {
    "stat-swap-in": "swap_in",
    "stat-swap-out": "swap_out",
    "stat-major-faults": "major_faults",
    "stat-minor-faults": "minor_faults",
    "stat-free-memory": "free",
    "stat-total-memory": "total",
    "stat-available-memory": "available",
    "stat-disk-caches": "disk_caches",
    "stat-htlb-pgalloc": "hugetlb_allocations",
    "stat-htlb-pgfail": "hugetlb_failures",
    "stat-oom-kills": "oom_kills",
    "stat-alloc-stalls": "alloc_stalls",
    "stat-async-scans": "async_scans",
    "stat-direct-scans": "direct_scans",
    "stat-async-reclaims": "async_reclaims",
    "stat-direct-reclaims": "direct_reclaims",
}
figures = st.integers(0, 2**63)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


def wire(last_update: object = 1_700_000_000, **stats: object) -> dict[str, object]:
    return {
        "stats": {name.replace("_", "-"): value for name, value in stats.items()},
        "last-update": last_update,
    }


@given(st.fixed_dictionaries({}, optional=dict.fromkeys(NAMES, figures)))
def test_every_figure_lands_under_its_name_and_what_is_missing_is_none(
    reported: dict[str, int],
) -> None:
    stats = GuestStats.from_wire({"stats": reported, "last-update": 1})
    for name, attribute in NAMES.items():
        assert getattr(stats, attribute) == reported.get(name)
    assert stats.extra == {}


NONSENSE: list[object] = [
    None,
    True,
    1.5,
    "7",
    -7,
    -(2**64),
    2**64,
    10**400,
    -(10**400),
    [],
    {},
]


@pytest.mark.parametrize("unset", [UNSET, -1, *NONSENSE])
def test_what_is_unset_or_nonsense_is_none_and_never_zero(unset: object) -> None:
    stats = GuestStats.from_wire(wire(stat_free_memory=unset, stat_new=unset))
    assert stats.free is None
    assert stats.extra == {}


@pytest.mark.parametrize("value", NONSENSE)
def test_what_no_guest_can_mean_is_named(value: object) -> None:
    stats = GuestStats.from_wire(wire(stat_free_memory=value, stat_new=value))
    assert stats.nonsense == ("stat-free-memory",)
    assert "stat-free-memory" in (stats.find_nonsense() or "")


@pytest.mark.parametrize("value", [UNSET, -1, 0, 2**64 - 2])
def test_what_is_unset_or_fits_64_bits_is_no_nonsense(value: int) -> None:
    stats = GuestStats.from_wire(wire(stat_swap_in=value))
    assert stats.nonsense == ()
    assert stats.find_nonsense(0) is None


@pytest.mark.parametrize("name", ["total", "free", "available", "disk_caches"])
def test_memory_is_at_most_what_the_vm_can_have(name: str) -> None:
    stats = GuestStats(**{name: 2**31})  # type: ignore[arg-type]
    assert stats.find_nonsense() is None
    assert stats.find_nonsense(2**31) is None
    found = stats.find_nonsense(2**31 - 4096)
    assert found is not None
    assert "2 GiB" in found


@given(st.dictionaries(st.sampled_from(sorted(NAMES)), json_values))
def test_whatever_was_read_can_be_shown(reported: dict[str, object]) -> None:
    """Charts, metrics and recordings take any figure as a float."""
    stats = GuestStats.from_wire({"stats": reported, "last-update": 10**400})
    json.dumps(stats.to_json())
    for attribute in NAMES.values():
        float(getattr(stats, attribute) or 0)


def test_zero_is_a_figure() -> None:
    assert GuestStats.from_wire(wire(stat_free_memory=0)).free == 0


def test_names_that_qemu_adds_are_kept() -> None:
    assert GuestStats.from_wire(wire(stat_new=7)).extra == {"stat-new": 7}


@given(json_values)
def test_no_answer_whatever_raises(value: object) -> None:
    GuestStats.from_wire(value, 1.0)
    GuestStats.from_wire({"stats": value, "last-update": value}, 1.0)


@given(st.dictionaries(st.sampled_from(sorted(NAMES)), json_values))
def test_no_figure_whatever_raises(reported: dict[str, object]) -> None:
    GuestStats.from_wire({"stats": reported, "last-update": 2**62}, 1.0).to_json()


def test_a_guest_that_never_answered_has_no_time() -> None:
    stats = GuestStats.from_wire(wire(0), 100.0)
    assert (stats.last_update, stats.age) == (None, None)


def test_age_is_by_the_clock_that_is_given() -> None:
    assert GuestStats.from_wire(wire(1000), 1002.5).age == 2.5
    assert GuestStats.from_wire(wire(1000)).age is None


def test_a_sample_from_the_future_has_no_age() -> None:
    # The clock was set back, or it is another host's: 0 would mean a fresh sample.
    assert GuestStats.from_wire(wire(4600), 1000.0).age is None


@pytest.mark.parametrize(
    ("reported", "reclaimable"),
    [
        ({"available": 5, "free": 3, "disk_caches": 9}, 5),
        ({"free": 3, "disk_caches": 9}, 12),
        ({"free": 3}, 3),
        ({"disk_caches": 9}, None),
        ({}, None),
    ],
)
def test_reclaimable_is_the_best_that_is_known(
    reported: dict[str, Any], reclaimable: int | None
) -> None:
    assert GuestStats(**reported).reclaimable == reclaimable


@pytest.mark.parametrize("name", [*NAMES.values(), "last_update", "extra", "nonsense"])
def test_a_sample_is_new_if_anything_but_its_age_is(name: str) -> None:
    old = GuestStats(last_update=datetime(2026, 1, 1, tzinfo=UTC), age=0.1)
    assert old.is_same_sample(GuestStats(last_update=old.last_update, age=0.9))
    changed: dict[str, Any] = {"last_update": old.last_update, name: 1}
    if name == "last_update":
        changed[name] = datetime(2026, 1, 2, tzinfo=UTC)
    elif name == "extra":
        changed[name] = {"stat-new": 1}
    elif name == "nonsense":
        changed[name] = ("stat-free-memory",)
    assert not old.is_same_sample(GuestStats(**changed))


def test_json_has_an_iso_time_with_its_zone_and_every_figure() -> None:
    printed = GuestStats.from_wire(wire(0x5F5E100, stat_new=7), 0x5F5E100).to_json()
    assert printed["last_update"] == "1973-03-03T09:46:40+00:00"
    assert printed["extra"] == {"stat-new": 7}
    assert set(printed) == {
        *NAMES.values(),
        "last_update",
        "age",
        "extra",
        "nonsense",
    }


def test_a_figure_that_makes_no_sense_does_not_hide_those_behind_it() -> None:
    stats = {"stat-free-memory": "much", "stat-swap-in": -1, "stat-swap-out": 7}
    seen = GuestStats.from_wire({"stats": stats, "last-update": 0})
    assert (seen.free, seen.swap_in, seen.swap_out) == (None, None, 7)


def test_a_sample_of_this_very_second_has_no_age_and_one_of_the_future_none() -> None:
    value = {"stats": {}, "last-update": 1000}
    assert GuestStats.from_wire(value, wall_time=1000.0).age == 0
    assert GuestStats.from_wire(value, wall_time=999.0).age is None
