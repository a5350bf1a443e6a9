"""The metrics of a fleet, read back by the parsers that Prometheus' users have."""

from __future__ import annotations

import http.client
import os
import socket
import threading
import time
import urllib.request
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from attrs import evolve
from pages import HOST, RULES, SEEN, WELL, page
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics import exposition, parser
from prometheus_client.parser import text_string_to_metric_families

from qmpballoon._printable import make_printable
from qmpballoon.fleet import metrics
from qmpballoon.fleet.metrics import FleetCollector, FleetSnapshot, serve_metrics
from qmpballoon.fleet.vm_view import VM_STATES
from qmpballoon.sizes import GiB, MiB

ALL = "0.0.0.0"  # noqa: S104 - that is what is tested
NAME = make_printable(WELL.name)
# Gauges that count something, or are 0 or 1.
WITHOUT_A_UNIT = {
    "qmpballoon_cluster_connected",
    "qmpballoon_cluster_notes",
    "qmpballoon_cluster_policy_revision",
    "qmpballoon_host_memory_pressed",
    "qmpballoon_refused",
}

if TYPE_CHECKING:
    from collections.abc import Callable

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
    assert values("vm_disk_read_bytes") == {NAME: 5 * GiB}
    assert values("vm_disk_reads") == {NAME: 6}
    assert values("vm_memory_hot_bytes") == {NAME: 700 * MiB}
    assert values("refused") == {"": 3}
    assert values("host_memory_available_bytes") == {"": 8 * GiB}
    assert values("host_memory_reserve_bytes") == {"": 4 * GiB}
    assert values("host_memory_reserve_hard_bytes") == {"": GiB}
    sizes = values("vm_memory_actual_bytes")
    assert sizes == {NAME: 2 * GiB, "stale": 2 * GiB}
    assert values("vm_memory_target_bytes") == {}
    assert values("vm_given_bytes") == dict.fromkeys([NAME, "stale", "gone"], 5)
    assert values("vm_connection_losses")["gone"] == 2


def test_what_a_silent_guest_said_is_left_out_but_not_when() -> None:
    assert values("guest_memory_available_bytes") == {NAME: GiB}
    assert values("guest_oom_kills") == {NAME: 3}
    updated = values("guest_last_update_timestamp_seconds")
    assert updated == {NAME: 1_750_000_000, "stale": 1_750_000_000}


def test_what_a_guest_does_not_report_is_absent_not_zero() -> None:
    assert values("guest_swap_in_bytes") == {}


def test_each_vm_is_in_one_state() -> None:
    samples = families()["qmpballoon_vm_state"].samples
    assert len(samples) == 3 * len(VM_STATES)
    on = {s.labels["vm"]: s.labels["qmpballoon_vm_state"] for s in samples if s.value}
    assert on == {NAME: "healthy", "stale": "stale", "gone": "gone"}


def test_names_follow_the_rules() -> None:
    assert families().keys() > WITHOUT_A_UNIT
    for name, family in families().items():
        assert name.startswith("qmpballoon_")
        assert family.documentation.endswith(".")
        if family.type == "gauge" and name not in WITHOUT_A_UNIT:
            assert name.endswith(("_bytes", "_seconds"))
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


def test_names_that_cannot_be_labels_are_shown_escaped_and_stay_apart() -> None:
    names = [os.fsdecode(b"caf\xe9"), r"caf\xe9", "two\nlines", "\x1b[31m", "x" * 999]
    views = [evolve(WELL, name=name, address="/\udcff") for name in names]
    found = families(FleetSnapshot(HOST, RULES, views))
    samples = found["qmpballoon_vm"].samples
    labels = [sample.labels["vm"] for sample in samples]
    assert labels[:4] == [r"caf\xe9", r"caf\xe9 (2)", r"two\nlines", r"\x1b[31m"]
    assert len(labels[4]) <= 255
    assert {sample.labels["address"] for sample in samples} == {r"/\xff"}


# Whoever connects


def ask(port: int, path: str, host: str | None) -> tuple[int, str]:
    """Send a request with a ``Host`` header, or without."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.putrequest("GET", path, skip_host=True)
    if host is not None:
        connection.putheader("Host", host)
    connection.endheaders()
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, text


@pytest.mark.parametrize(
    ("host", "listens_on", "status"),
    [
        ("localhost", "127.0.0.1", 200),
        ("LOCALHOST.:9729", "127.0.0.1", 200),
        ("127.0.0.1:80", "127.0.0.1", 200),
        ("127.9.9.9", "127.0.0.1", 200),
        ("[::1]:9729", "127.0.0.1", 200),
        (socket.gethostname(), "127.0.0.1", 200),
        ("vms.example:9729", "127.0.0.1", 200),  # was given
        ("evil.example", "127.0.0.1", 403),
        ("192.0.2.1", "127.0.0.1", 403),
        ("192.0.2.1", ALL, 200),
        ("[2001:db8::1]:80", ALL, 200),
        ("evil.example", ALL, 403),
        ("localhost.evil.example", "127.0.0.1", 403),
        ("127.0.0.1.evil.example", "127.0.0.1", 403),
        ("[::1", "127.0.0.1", 200),
        ("", "127.0.0.1", 403),
        (None, "127.0.0.1", 403),
    ],
)
def test_only_known_names_are_served(
    host: str | None, listens_on: str, status: int
) -> None:
    with serve_metrics(lambda: SEEN, listens_on, 0, ["vms.example"]) as (_, port):
        seen, text = ask(port, "/metrics", host)
    assert seen == status
    assert ("qmpballoon_vm_info" in text) == (status == 200)
    assert ("--allow-host" in text) == (status == 403)


@pytest.mark.parametrize("path", ["/", "/metrics/", "/metrics/x", "/favicon.ico", "//"])
def test_other_paths_are_not_found(path: str) -> None:
    with serve_metrics(lambda: SEEN, "127.0.0.1", 0) as (host, port):
        assert ask(port, path, host)[0] == 404


def open_socket(port: int) -> socket.socket:
    opened = socket.create_connection(("127.0.0.1", port), timeout=30)
    opened.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nX: ")
    return opened


def is_cut(opened: socket.socket) -> bool:
    """Wait for the other end of a connection to close it."""
    try:
        return opened.recv(1) == b""
    except ConnectionError:
        return True


def test_connections_are_few_and_the_oldest_gives_way() -> None:
    before = threading.active_count()
    with serve_metrics(lambda: SEEN, "127.0.0.1", 0) as (host, port):
        opened = [open_socket(port) for _ in range(60)]
        assert all(is_cut(each) for each in opened[:40])
        assert "qmpballoon_vm_info" in fetch(host, port)
        # One of them is the thread that accepts, and some have yet to end.
        assert threading.active_count() - before <= 40
        for each in opened:
            each.close()


@pytest.mark.parametrize("what", ["request", "answer"])
def test_who_is_slow_is_cut(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_DEADLINE", 0.0)
    views = [evolve(WELL, name=f"vm{number}") for number in range(5000)]
    seen = FleetSnapshot(HOST, RULES, views if what == "answer" else [WELL])
    with (
        serve_metrics(lambda: seen, "127.0.0.1", 0) as (_, port),
        open_socket(port) as opened,
    ):
        if what == "answer":
            with suppress(ConnectionError):  # it may be cut by now
                opened.sendall(b"y\r\n\r\n")
        # Nothing more is sent, and nothing is read before it is cut.
        wait_for(lambda: not has_handler())
        assert not has_handler()


def has_handler() -> bool:
    return any("process_request" in thread.name for thread in threading.enumerate())


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition() and time.monotonic() < deadline:
        threading.Event().wait(0.02)


def test_a_flood_of_scrapes_asks_the_fleet_seldom() -> None:
    asked: list[int] = []

    def snapshot() -> FleetSnapshot:
        asked.append(1)
        return SEEN

    begun = time.monotonic()
    with serve_metrics(snapshot, "127.0.0.1", 0) as (host, port):
        for _ in range(50):
            fetch(host, port)
    assert len(asked) <= 1 + (time.monotonic() - begun) / 0.2


def test_what_fails_is_told_to_whoever_asks_and_to_nobody_else(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail() -> FleetSnapshot:
        raise KeyError

    with serve_metrics(fail, "127.0.0.1", 0) as (host, port):
        assert ask(port, "/metrics", host)[0] == 500
        assert ask(port, "/", host)[0] == 404
    assert capsys.readouterr() == ("", "")
