"""Metrics of a fleet, for Prometheus.

A scrape is answered from what was last known of all VMs, and so it waits for no VM. If
a guest does not answer any more, its statistics are left out: a graph then has a gap,
where old figures would draw a flat line. The time of its last answer stays, as do all
counters.

Names follow Prometheus' rules: base units, and ``_total`` for counters. See "Metric and
label naming" and "Writing exporters" in Prometheus' documentation.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from attrs import frozen
from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    InfoMetricFamily,
    StateSetMetricFamily,
)
from prometheus_client.registry import Collector

from qmpballoon.fleet.vm import VM_STATES

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

    from qmpballoon.fleet.guests import Host
    from qmpballoon.fleet.policy import Rules
    from qmpballoon.fleet.vm import VmView

__all__ = ["FleetCollector", "FleetSnapshot", "serve_metrics"]


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


@frozen
class FleetSnapshot:
    """A fleet at one moment.

    Attributes:
        host: The host's memory.
        rules: What the host keeps.
        views: The VMs.
    """

    host: Host
    rules: Rules
    views: Sequence[VmView]


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
        yield from _collect_host(seen.host, seen.rules)
        yield from _collect_vms(seen.views)
        yield from _collect_guests([view for view in seen.views if view.is_fresh])
        yield from _collect_counters(seen.views)


@contextmanager
def serve_metrics(
    snapshot: Callable[[], FleetSnapshot], host: str, port: int
) -> Generator[tuple[str, int]]:
    """Serve the metrics over HTTP, on a thread, within the block.

    Args:
        snapshot: As for :class:`FleetCollector`; called on the server's thread.
        host: The address to listen on.
        port: The port to listen on; 0 takes a free one.

    Yields:
        The address and the port that it listens on.

    Raises:
        OSError: The address or the port cannot be listened on.
    """
    registry = CollectorRegistry()
    registry.register(FleetCollector(snapshot))
    server, thread = start_http_server(port, host, registry)
    try:
        yield host, server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


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
        "host_memory_promised_bytes",
        "Memory that guests were given and have not touched yet.",
        host.promised,
    )
    yield _make_gauge(
        "host_memory_pressed",
        "Whether tasks on the host wait for memory.",
        host.pressed,
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
        family = GaugeMetricFamily(f"qmpballoon_{name}", text, labels=["vm"])
        for view in views:
            figure = value(view)
            if figure is not None:
                family.add_metric([view.name], figure)
        yield family


def _collect_guests(views: Sequence[VmView]) -> Iterator[Metric]:
    for statistic, text in _GUEST_GAUGES.items():
        name = f"qmpballoon_guest_memory_{statistic}_bytes"
        family = GaugeMetricFamily(name, text, labels=["vm"])
        for view in views:
            figure = getattr(view.stats, statistic)
            if figure is not None:
                family.add_metric([view.name], figure)
        yield family
    for statistic, name, text in _GUEST_COUNTERS:
        counter = CounterMetricFamily(f"qmpballoon_guest_{name}", text, labels=["vm"])
        for view in views:
            figure = getattr(view.stats, statistic)
            if figure is not None:
                counter.add_metric([view.name], figure)
        yield counter


def _collect_counters(views: Sequence[VmView]) -> Iterator[Metric]:
    for attribute, name, text in _COUNTERS:
        counter = CounterMetricFamily(f"qmpballoon_vm_{name}", text, labels=["vm"])
        for view in views:
            counter.add_metric([view.name], getattr(view.counters, attribute))
        yield counter
