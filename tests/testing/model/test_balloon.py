"""The balloon device takes statistics from the guest when QEMU's does."""

from __future__ import annotations

import pytest
from talk import UNSET, Client, make, set_interval

from qmpballoon.sizes import GiB
from qmpballoon.testing import PROFILES, SECOND, GuestConfig, profile


def last_update(client: Client) -> int:
    answer = client.execute("qom-get", path="balloon0", property="guest-stats")
    update: int = answer["last-update"]
    return update


def test_the_driver_answers_once_at_probe() -> None:
    client = make()
    first = last_update(client)
    client.advance(10 * SECOND)
    assert first == last_update(client) == client.machine.config.epoch // SECOND


def test_an_interval_from_nothing_fires_at_once_and_then_at_every_one() -> None:
    client = make()
    client.advance(10 * SECOND)
    epoch = client.machine.config.epoch // SECOND
    set_interval(client, 3)
    client.advance(SECOND // 10)
    assert last_update(client) == epoch + 10
    client.advance(3 * SECOND)
    assert last_update(client) == epoch + 13
    set_interval(client, 3)
    set_interval(client, 5)
    client.advance(4 * SECOND)
    assert last_update(client) == epoch + 13
    client.advance(2 * SECOND)
    assert last_update(client) == epoch + 18
    set_interval(client, 0)
    client.advance(20 * SECOND)
    assert last_update(client) == epoch + 18


def test_rearming_the_interval_makes_the_guest_answer_at_once() -> None:
    client = make(guest=GuestConfig(cache=GiB), memory=4 * GiB)
    set_interval(client, 1)
    client.execute("balloon", value=2 * GiB)
    totals = set()
    for _ in range(20):
        set_interval(client, 0)
        set_interval(client, 1)
        client.advance(SECOND // 25)
        totals.add(client.stats()["stat-total-memory"])
    assert len(totals) == 20


def test_the_statistics_clock_stands_while_the_vm_does() -> None:
    client = make()
    set_interval(client, 2)
    client.advance(SECOND)
    client.execute("stop")
    client.advance(100 * SECOND)
    before = last_update(client)
    client.execute("cont")
    client.advance(SECOND // 2)
    assert last_update(client) == before
    client.advance(SECOND)
    assert last_update(client) > before + 100


def test_a_guest_that_never_answers_keeps_its_first_sample() -> None:
    client = make(guest=GuestConfig(stats_delay=None))
    first = last_update(client)
    set_interval(client, 1)
    client.advance(30 * SECOND)
    assert last_update(client) == first


def test_no_driver_no_movement_no_statistics() -> None:
    client = make(guest=GuestConfig(driver=False), memory=GiB)
    set_interval(client, 1)
    assert client.execute("balloon", value=GiB // 2) == {}
    client.advance(60 * SECOND)
    assert client.execute("query-balloon")["actual"] == GiB
    assert set(client.stats().values()) == {UNSET}
    assert last_update(client) == 0


@pytest.mark.parametrize("version", PROFILES)
def test_statistics_have_the_versions_names(version: str) -> None:
    client = make(version)
    wanted = {f"stat-{name}" for name in profile(version).stat_names}
    assert set(client.stats()) == wanted
    assert UNSET not in client.stats().values()


def test_an_old_kernel_does_not_fill_the_new_statistics() -> None:
    client = make(guest=GuestConfig(extended_stats=False))
    stats = client.stats()
    assert stats["stat-oom-kills"] == stats["stat-alloc-stalls"] == UNSET
    assert stats["stat-disk-caches"] < UNSET


@pytest.mark.parametrize("version", PROFILES)
def test_a_reset_keeps_actual_until_the_driver_is_back(version: str) -> None:
    client = make(version, memory=2 * GiB, guest=GuestConfig(cache=0))
    client.execute("balloon", value=GiB)
    set_interval(client, 1)
    client.advance(10 * SECOND)
    client.execute("system_reset")
    forgotten = last_update(client) == 0
    assert forgotten is profile(version).reset_clears_stats
    client.advance(SECOND)
    assert client.execute("query-balloon")["actual"] == GiB
    client.advance(SECOND * 3 // 2 + SECOND // 100)
    assert GiB < client.execute("query-balloon")["actual"] < 2 * GiB
    client.advance(10 * SECOND)
    assert client.execute("query-balloon")["actual"] == GiB
