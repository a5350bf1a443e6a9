"""Metrics of a fleet, for Prometheus.

A scrape is answered from the last known state of all VMs, so it waits for no VM. If a
guest no longer answers, its statistics are left out. A graph then has a gap, where old
figures would draw a flat line. The time of its last answer stays, as do all counters.

The server trusts nobody. Otherwise, anybody who can connect could hold its threads, and
a web page in a browser could read the metrics through a name of its own that points
here (DNS rebinding). So connections are few and short, and only requests to known names
are answered.

Names follow Prometheus' rules: base units, and ``_total`` for counters. See "Metric and
label naming" and "Writing exporters" in Prometheus' documentation.
"""

from __future__ import annotations

import io
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from attrs import evolve, field, frozen
from prometheus_client import (
    CollectorRegistry,
    make_wsgi_app,  # pyright: ignore[reportUnknownVariableType] - theirs
)
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    InfoMetricFamily,
    StateSetMetricFamily,
)
from prometheus_client.registry import Collector

from qmpballoon._printable import make_printable
from qmpballoon._transport.http_hosts import KnownHosts
from qmpballoon.fleet.vm_view import VM_STATES

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

    from prometheus_client.metrics_core import Metric

    from qmpballoon.fleet.guests import Host
    from qmpballoon.fleet.policy import Rules
    from qmpballoon.fleet.vm_view import VmView

__all__ = ["ClusterLink", "FleetCollector", "FleetSnapshot", "serve_metrics"]


def _read_last_update(view: VmView) -> float | None:
    updated = view.stats.last_update
    return None if updated is None else updated.timestamp()


_Value = Callable[["VmView"], float | None]

# Name: help, value.
_GAUGES: Final[dict[str, tuple[str, _Value]]] = {
    "vm_memory_actual_bytes": (
        "Memory that the guest has: its RAM less its balloon.",
        lambda view: view.actual,
    ),
    "vm_memory_ram_bytes": ("The VM's RAM.", lambda view: view.total),
    "vm_memory_target_bytes": (
        "Size that the guest is moving to; absent if it does not move.",
        lambda view: view.target,
    ),
    "vm_memory_resident_bytes": (
        "Memory of the host that QEMU holds.",
        lambda view: view.resident,
    ),
    "vm_memory_floor_bytes": (
        "Size that the guest never goes below.",
        lambda view: view.bounds.floor if view.bounds else None,
    ),
    "vm_memory_ceiling_bytes": (
        "Size that the guest never goes above.",
        lambda view: view.bounds.ceiling if view.bounds else None,
    ),
    "vm_memory_headroom_bytes": (
        "Memory that the guest keeps available.",
        lambda view: view.bounds.headroom if view.bounds else None,
    ),
    "vm_memory_hot_bytes": (
        "Page cache above its headroom that the guest reads again and again.",
        lambda view: view.hot if view.is_fresh else None,
    ),
    "guest_last_update_timestamp_seconds": (
        "When the guest last answered, in seconds since the epoch.",
        _read_last_update,
    ),
}
# Statistic: help.
_GUEST_GAUGES: Final = {
    "total": "Memory that the guest's kernel manages.",
    "free": "Memory that nothing uses, not even a cache.",
    "available": "Memory to be had without swapping, most of the page cache included.",
    "disk_caches": "Page cache.",
}
# Statistic, name of the metric, help.
_GUEST_COUNTERS: Final = (
    ("swap_in", "swap_in_bytes", "Read from swap."),
    ("swap_out", "swap_out_bytes", "Written to swap."),
    ("major_faults", "major_faults", "Page faults that waited for a disk."),
    ("minor_faults", "minor_faults", "Other page faults."),
    ("oom_kills", "oom_kills", "Processes killed for want of memory."),
    (
        "alloc_stalls",
        "alloc_stalls",
        "Allocations that waited for reclaim.",
    ),
)
# Counter, name of the metric, help.
_COUNTERS: Final = (
    ("given", "given_bytes", "Memory that the guest was given."),
    ("taken", "taken_bytes", "Memory that was taken from the guest."),
    ("moves", "moves", "Moves of the balloon that have ended."),
    ("stalls", "stalls", "Moves that did not reach their target."),
    ("losses", "connection_losses", "How often the monitor's connection was lost."),
)
# What the VM has read from its disks, name of the metric, help.
_DISK_COUNTERS: Final = (
    ("bytes", "disk_read_bytes", "Read from the VM's disks."),
    ("operations", "disk_reads", "Reads from the VM's disks."),
)
_LONGEST_LABEL: Final = 255  # characters; NAME_MAX, the longest name of a file


@frozen
class ClusterLink:
    """How a host is in its cluster.

    Attributes:
        is_connected: Whether the cluster's server answers.
        policy_revision: The revision of the cluster's policy that the host follows;
            ``None`` if it has only its own rules.
        notes: How many things are not as they should be.
    """

    is_connected: bool
    policy_revision: int | None = None
    notes: int = 0


@frozen
class FleetSnapshot:
    """A fleet at one moment.

    Attributes:
        host: The host's memory.
        rules: What the host keeps.
        views: The VMs.
        refused: How many QEMUs and sockets were found and are not managed.
        cluster: How the host is in its cluster; ``None``: it is in none.
    """

    host: Host
    rules: Rules
    views: Sequence[VmView] = field(repr=False)
    refused: int = 0
    cluster: ClusterLink | None = None


class FleetCollector(Collector):
    """Makes metrics of what is known of a fleet.

    Args:
        snapshot: Returns the fleet as it is now. Called on the thread that collects.
    """

    def __init__(self, snapshot: Callable[[], FleetSnapshot]) -> None:
        self._snapshot = snapshot

    def describe(self) -> Iterable[Metric]:
        """Return nothing: the metrics depend on the fleet."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics."""
        seen = self._snapshot()
        views = _make_labels(seen.views)
        yield from _collect_host(seen.host, seen.rules)
        yield _make_gauge(
            "refused",
            "QEMUs and sockets that were found and are not managed.",
            seen.refused,
        )
        if seen.cluster is not None:
            yield from _collect_cluster(seen.cluster)
        yield from _collect_vms(views)
        yield from _collect_guests([view for view in views if view.is_fresh])
        yield from _collect_counters(views)
        yield from _collect_disk_reads(views)


def _make_labels(views: Sequence[VmView]) -> list[VmView]:
    """Return VMs with names and addresses that can be labels, no two names alike."""
    used: set[str] = set()
    labelled: list[VmView] = []
    for view in views:
        name = plain = make_printable(view.name, _LONGEST_LABEL)
        number = 1
        while name in used:
            number += 1
            name = f"{plain} ({number})"
        used.add(name)
        labelled.append(evolve(view, name=name, address=make_printable(view.address)))
    return labelled


# The server

# Connections at a time; each has a thread. A Prometheus, its replica and some people
# need one each, for milliseconds.
_MOST_CONNECTIONS: Final = 16
_PAUSE: Final = 0.1  # seconds before the next connection if one cannot be accepted
_DEADLINE: Final = 10.0  # seconds for a connection; Prometheus' own scrape_timeout
# Seconds for which a snapshot serves all scrapes: for each the event loop asks all VMs'
# records, which takes 10 ms for 1,000 VMs. So a flood of scrapes takes 5 % of its time.
_REUSE: Final = 0.2


@contextmanager
def serve_metrics(
    snapshot: Callable[[], FleetSnapshot],
    host: str,
    port: int,
    names: Iterable[str] = (),
) -> Generator[tuple[str, int]]:
    """Serve the metrics over HTTP, on threads, within the block.

    Only ``/metrics`` is served, and only to requests whose ``Host`` is ``localhost``,
    the machine's name, the address that is listened on, another address (of the
    loopback, if that is listened on), or one of the names given. There are 16
    connections at most, for 10 seconds each; another one ends the oldest.

    Args:
        snapshot: As for :class:`FleetCollector`; called on a thread of the server's.
        host: The address to listen on.
        port: The port to listen on; 0 takes a free one.
        names: Other names under which the server can be reached.

    Yields:
        The address and the port that it listens on.

    Raises:
        OSError: The address or the port cannot be listened on.
    """
    registry = CollectorRegistry()
    registry.register(FleetCollector(_Recent(snapshot)))
    server = _Server(host, port)
    app: Any = make_wsgi_app(registry)  # pyright: ignore[reportUnknownVariableType]
    server.set_app(_guard_app(app, KnownHosts.of(host, names)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield host, server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Recent:
    """Returns the fleet as it is, or as it was a moment ago."""

    def __init__(self, snapshot: Callable[[], FleetSnapshot]) -> None:
        self._snapshot = snapshot
        self._lock = threading.Lock()
        self._taken_at = float("-inf")
        self._seen: FleetSnapshot | None = None

    def __call__(self) -> FleetSnapshot:
        with self._lock:
            if self._seen is None or time.monotonic() - self._taken_at > _REUSE:
                self._seen = self._snapshot()
                self._taken_at = time.monotonic()
            return self._seen


class _Handler(WSGIRequestHandler):
    """Handles one connection, and writes no log: anybody could fill it."""

    timeout = _DEADLINE  # of each read and write; the server sees to the whole

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name
        """Log nothing."""

    def get_stderr(self) -> io.StringIO:
        """Return where the WSGI server writes tracebacks: nowhere."""
        return io.StringIO()


class _Server(socketserver.ThreadingMixIn, WSGIServer):
    """Serves few connections at a time, each on a thread, and each for a short time."""

    daemon_threads = True
    block_on_close = False
    # With a short queue, a few clients that wait would shut out all others.
    request_queue_size = socket.SOMAXCONN

    def __init__(self, host: str, port: int) -> None:
        family, *_, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        self.address_family = family
        self._opened: dict[Any, float] = {}  # sockets, the oldest first
        self._lock = threading.Lock()
        super().__init__((str(address[0]), port), _Handler)

    def server_bind(self) -> None:
        """Bind the socket, without the search for a name by DNS that is usual here."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment] # which a family decides
        self.setup_environ()

    def get_request(self) -> tuple[Any, Any]:
        """Accept a connection."""
        try:
            return super().get_request()
        except OSError:
            # No descriptor is left. Without a pause the next attempt would be now.
            time.sleep(_PAUSE)
            raise

    def process_request(self, request: Any, client_address: Any) -> None:  # noqa: ANN401 - as above it
        """Take a connection; where there are too many, end the oldest."""
        with self._lock:
            if len(self._opened) >= _MOST_CONNECTIONS:
                _cut(next(iter(self._opened)))
                del self._opened[next(iter(self._opened))]
            self._opened[request] = time.monotonic()
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:  # noqa: ANN401 - as above it
        """End a connection."""
        with self._lock:
            self._opened.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """End connections that take too long; called twice a second."""
        with self._lock:
            for request, opened_at in self._opened.items():
                if time.monotonic() - opened_at > _DEADLINE:
                    _cut(request)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ANN401 - as above it
        """Print nothing: it is not an error if a client ends its connection."""


def _cut(request: socket.socket) -> None:
    """End a connection under its thread, which then reads or writes in vain."""
    with suppress(OSError):
        request.shutdown(socket.SHUT_RDWR)


def _guard_app(app: WSGIApplication, known: KnownHosts) -> WSGIApplication:
    """Return an application that answers only what it is meant for."""

    def refuse(start_response: StartResponse, status: str, why: str) -> list[bytes]:
        start_response(status, [("Content-Type", "text/plain; charset=utf-8")])
        return [f"{why}\n".encode()]

    def guarded(
        environ: WSGIEnvironment, start_response: StartResponse
    ) -> Iterable[bytes]:
        if not known.has(environ.get("HTTP_HOST", "")):
            why = "this is not a name of this server: allow it with --allow-host"
            return refuse(start_response, "403 Forbidden", why)
        if environ.get("PATH_INFO") != "/metrics":
            return refuse(start_response, "404 Not Found", "see /metrics")
        return app(environ, start_response)

    return guarded


# The metrics


def _make_gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"qmpballoon_{name}", text, value=value)


def _collect_host(host: Host, rules: Rules) -> Iterator[Metric]:
    yield _make_gauge("host_memory_total_bytes", "The host's memory.", host.total)
    yield _make_gauge(
        "host_memory_available_bytes",
        "Memory of the host to be had without swapping.",
        host.available,
    )
    yield _make_gauge(
        "host_memory_reserve_bytes", "Memory that the host keeps.", rules.reserve
    )
    yield _make_gauge(
        "host_memory_reserve_hard_bytes",
        "Memory that the host keeps whatever guests need.",
        rules.reserve_hard,
    )
    yield _make_gauge(
        "host_memory_promised_bytes",
        "Memory that guests were given and have not touched yet.",
        host.promised,
    )
    yield _make_gauge(
        "host_memory_pressed",
        "Whether tasks on the host wait for memory.",
        host.pressed,
    )


def _collect_cluster(link: ClusterLink) -> Iterator[Metric]:
    yield _make_gauge(
        "cluster_connected", "Whether the cluster's server answers.", link.is_connected
    )
    yield _make_gauge(
        "cluster_notes", "What does not hold as it should in a cluster.", link.notes
    )
    if link.policy_revision is not None:
        yield _make_gauge(
            "cluster_policy_revision",
            "The revision of the cluster's policy that the host lives by.",
            link.policy_revision,
        )


def _collect_vms(views: Sequence[VmView]) -> Iterator[Metric]:
    info = InfoMetricFamily("qmpballoon_vm", "Where a VM's monitor is.", labels=["vm"])
    state = StateSetMetricFamily(
        "qmpballoon_vm_state", "The state of a VM.", labels=["vm"]
    )
    for view in views:
        info.add_metric([view.name], {"address": view.address})
        state.add_metric([view.name], {name: name == view.state for name in VM_STATES})
    yield info
    yield state
    for name, (text, value) in _GAUGES.items():
        gauge = GaugeMetricFamily(f"qmpballoon_{name}", text, labels=["vm"])
        yield _fill(gauge, views, value)


def _collect_guests(views: Sequence[VmView]) -> Iterator[Metric]:
    for statistic, text in _GUEST_GAUGES.items():
        name = f"qmpballoon_guest_memory_{statistic}_bytes"
        gauge = GaugeMetricFamily(name, text, labels=["vm"])
        yield _fill(gauge, views, attrgetter(f"stats.{statistic}"))
    for statistic, name, text in _GUEST_COUNTERS:
        counter = CounterMetricFamily(f"qmpballoon_guest_{name}", text, labels=["vm"])
        yield _fill(counter, views, attrgetter(f"stats.{statistic}"))


def _collect_counters(views: Sequence[VmView]) -> Iterator[Metric]:
    for attribute, name, text in _COUNTERS:
        counter = CounterMetricFamily(f"qmpballoon_vm_{name}", text, labels=["vm"])
        yield _fill(counter, views, attrgetter(f"counters.{attribute}"))


def _collect_disk_reads(views: Sequence[VmView]) -> Iterator[Metric]:
    known = [view for view in views if view.disk_reads is not None]
    for attribute, name, text in _DISK_COUNTERS:
        counter = CounterMetricFamily(f"qmpballoon_vm_{name}", text, labels=["vm"])
        yield _fill(counter, known, attrgetter(f"disk_reads.{attribute}"))


def _fill(
    family: GaugeMetricFamily | CounterMetricFamily,
    views: Sequence[VmView],
    value: _Value,
) -> Metric:
    """Add the figure of each VM for which it is known to a metric, and return that."""
    for view in views:
        figure = value(view)
        if figure is not None:
            family.add_metric([view.name], figure)
    return family
