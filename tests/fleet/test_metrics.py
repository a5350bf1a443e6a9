"""The metrics of a fleet, read back by the parsers that Prometheus' users have."""

from __future__ import annotations

import time
import urllib.request
from typing import TYPE_CHECKING

import pytest
from attrs import evolve
from pages import HOST, RULES, SEEN, WELL, page
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics import exposition, parser
from prometheus_client.parser import text_string_to_metric_families

from qmpballoon.fleet.metrics import FleetCollector, FleetSnapshot, serve_metrics
from qmpballoon.fleet.vm import VM_STATES
from qmpballoon.sizes import GiB

if TYPE_CHECKING:
    from prometheus_client import Metric


def open_page(snapshot: FleetSnapshot = SEEN) -> str:
    registry = CollectorRegistry()
    registry.register(FleetCollector(lambda: snapshot))
    text: bytes = exposition.generate_latest(registry)  # type: ignore[no-untyped-call]
    return text.decode()


def families(snapshot: FleetSnapshot = SEEN) -> dict[str, Metric]:
    found = parser.text_string_to_metric_families(open_page(snapshot))  # type: ignore[no-untyped-call]
    return {family.name: family for family in found}


def values(name: str) -> dict[str, float]:
    """Return the samples of a metric by their VMs."""
    samples = families()[f"qmpballoon_{name}"].samples
    return {sample.labels.get("vm", ""): sample.value for sample in samples}


def test_figures_arrive() -> None:
    assert values("host_memory_available_bytes") == {"": 8 * GiB}
    assert values("host_memory_reserve_bytes") == {"": 4 * GiB}
    sizes = values("vm_memory_actual_bytes")
    assert sizes == {WELL.name: 2 * GiB, "stale": 2 * GiB}
    assert values("vm_memory_target_bytes") == {}
    assert values("vm_given_bytes") == dict.fromkeys([WELL.name, "stale", "gone"], 5)
    assert values("vm_connection_losses")["gone"] == 2


def test_what_a_silent_guest_said_is_left_out_but_not_when() -> None:
    assert values("guest_memory_available_bytes") == {WELL.name: GiB}
    assert values("guest_oom_kills") == {WELL.name: 3}
    updated = values("guest_last_update_timestamp_seconds")
    assert updated == {WELL.name: 1_750_000_000, "stale": 1_750_000_000}


def test_what_a_guest_does_not_report_is_absent_not_zero() -> None:
    assert values("guest_swap_in_bytes") == {}


def test_each_vm_is_in_one_state() -> None:
    samples = families()["qmpballoon_vm_state"].samples
    assert len(samples) == 3 * len(VM_STATES)
    on = {s.labels["vm"]: s.labels["qmpballoon_vm_state"] for s in samples if s.value}
    assert on == {WELL.name: "healthy", "stale": "stale", "gone": "gone"}


def test_names_follow_the_rules() -> None:
    for name, family in families().items():
        assert name.startswith("qmpballoon_")
        assert family.documentation.endswith(".")
        if family.type == "memory":
            assert name.endswith(("_bytes", "_seconds", "_pressed"))
        if family.type == "counter":
            assert all(s.name.endswith("_total") for s in family.samples)


def test_the_older_format_parses_too() -> None:
    found = {family.name: family for family in text_string_to_metric_families(page())}
    (sample,) = found["qmpballoon_host_memory_total_bytes"].samples
    assert sample.value == 64 * GiB


def test_a_thousand_vms_are_scraped_within_a_second() -> None:
    views = [evolve(WELL, name=f"vm{number}") for number in range(1000)]
    with serve_metrics(lambda: FleetSnapshot(HOST, RULES, views), "127.0.0.1", 0) as (
        host,
        port,
    ):
        start = time.process_time()  # of this process, which serves it, too
        text = fetch(host, port)
        seconds = time.process_time() - start
    assert text.count('vm="vm999"') > 20
    assert seconds < 1


def test_nobody_listens_any_more_afterwards() -> None:
    with serve_metrics(lambda: SEEN, "127.0.0.1", 0) as (host, port):
        assert "qmpballoon_vm_info" in fetch(host, port)
    with pytest.raises(OSError, match="refused"):
        fetch(host, port)


def fetch(host: str, port: int) -> str:
    address = f"http://{host}:{port}/metrics"
    with urllib.request.urlopen(address, timeout=30) as answer:
        text: bytes = answer.read()
    return text.decode()
