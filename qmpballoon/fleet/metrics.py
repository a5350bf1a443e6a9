"""A fleet as Prometheus sees it.

The page is made from what was last known of all VMs, so a scrape waits for no VM.
What a guest said before it fell silent is left out: in a graph a gap is honest, and
a flat line is not. When it last answered stays, as does every counter.

Names follow Prometheus' rules: base units, ``_total`` for what only grows.

Source: Prometheus' documentation, "Metric and label naming", "Writing exporters".
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

from qmpballoon.fleet.vm import STATES

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

    from qmpballoon.fleet.members import Host
    from qmpballoon.fleet.policy import Rules
    from qmpballoon.fleet.vm import View

__all__ = ["FleetCollector", "Snapshot", "serve"]


def _updated(view: View) -> float | None:
    updated = view.stats.last_update
    return None if updated is None else updated.timestamp()


_Value = Callable[["View"], float | None]

_GAUGES: Final[dict[str, tuple[str, _Value]]] = {
    "vm_memory_actual_bytes": (
        "What the guest has: its RAM less its balloon.",
        lambda view: view.actual,
    ),
    "vm_memory_ram_bytes": ("RAM the VM was given.", lambda view: view.total),
    "vm_memory_target_bytes": (
        "Where the balloon is being moved to; absent while it rests.",
        lambda view: view.target,
    ),
    "vm_memory_resident_bytes": (
        "What QEMU holds of the host's memory.",
        lambda view: view.resident,
    ),
    "vm_memory_floor_bytes": (
        "What the guest never goes below.",
        lambda view: view.bounds.floor if view.bounds else None,
    ),
    "vm_memory_ceiling_bytes": (
        "What the guest never goes above.",
        lambda view: view.bounds.ceiling if view.bounds else None,
    ),
    "vm_memory_headroom_bytes": (
        "What the guest is to keep available.",
        lambda view: view.bounds.headroom if view.bounds else None,
    ),
    "guest_last_update_timestamp_seconds": (
        "When the guest last answered, in seconds since the epoch.",
        _updated,
    ),
}
_GUEST_GAUGES: Final = {
    "total": "Memory the guest's kernel has.",
    "free": "Memory that nothing uses, not even a cache.",
    "available": "Memory that can be had without swapping, most page cache included.",
    "disk_caches": "Page cache.",
}
# Statistic, name of the metric, help.
_GUEST_COUNTERS: Final = (
    ("swap_in", "swap_in_bytes", "Read from swap."),
    ("swap_out", "swap_out_bytes", "Written to swap."),
    ("major_faults", "major_faults", "Page faults that had to wait for a disk."),
    ("minor_faults", "minor_faults", "Other page faults."),
    ("oom_kills", "oom_kills", "Processes killed for want of memory."),
    ("alloc_stalls", "alloc_stalls", "Allocations that had to reclaim memory first."),
)
_COUNTERS: Final = (
    ("given", "given_bytes", "Memory the guest was given."),
    ("taken", "taken_bytes", "Memory the guest gave."),
    ("moves", "moves", "Moves of the balloon that came to their end."),
    ("stalls", "stalls", "Moves that did not reach their target."),
    ("losses", "connection_losses", "How often the monitor's connection was lost."),
)


@frozen
class Snapshot:
    """A fleet at one moment.

    Attributes:
        host: The host.
        rules: What it is to keep.
        views: The VMs.
    """

    host: Host
    rules: Rules
    views: Sequence[View]


class FleetCollector(Collector):
    """Makes metrics of what is known of a fleet.

    Args:
        snapshot: Returns the fleet as it was last seen. Called from another thread.
    """

    def __init__(self, snapshot: Callable[[], Snapshot]) -> None:
        self._snapshot = snapshot

    def describe(self) -> Iterable[Metric]:
        """Name no metrics in advance: that takes a fleet."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics."""
        seen = self._snapshot()
        yield from _host(seen.host, seen.rules)
        yield from _vms(seen.views)
        yield from _guests([view for view in seen.views if view.is_fresh])
        yield from _counters(seen.views)


@contextmanager
def serve(
    snapshot: Callable[[], Snapshot], host: str, port: int
) -> Generator[tuple[str, int]]:
    """Serve the metrics over HTTP, from a thread, until the block is left.

    Args:
        snapshot: As for :class:`FleetCollector`.
        host: The address to listen on.
        port: 0 takes one that is free.

    Yields:
        Where it listens.

    Raises:
        OSError: Nobody can listen there.
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


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"qmpballoon_{name}", text, value=value)


def _host(host: Host, rules: Rules) -> Iterator[Metric]:
    yield _gauge("host_memory_total_bytes", "The host's memory.", host.total)
    yield _gauge(
        "host_memory_available_bytes",
        "What of it could be had without swapping.",
        host.available,
    )
    yield _gauge("host_memory_reserve_bytes", "What it is to keep.", rules.reserve)
    yield _gauge(
        "host_memory_promised_bytes",
        "What guests were given and have not touched yet.",
        host.promised,
    )
    yield _gauge(
        "host_memory_pressed", "Whether tasks on it wait for memory.", host.pressed
    )


def _vms(views: Sequence[View]) -> Iterator[Metric]:
    info = InfoMetricFamily("qmpballoon_vm", "Where a VM's monitor is.", labels=["vm"])
    state = StateSetMetricFamily("qmpballoon_vm_state", "How a VM is.", labels=["vm"])
    for view in views:
        info.add_metric([view.name], {"address": view.address})
        state.add_metric([view.name], {name: name == view.state for name in STATES})
    yield info
    yield state
    for name, (text, value) in _GAUGES.items():
        family = GaugeMetricFamily(f"qmpballoon_{name}", text, labels=["vm"])
        for view in views:
            figure = value(view)
            if figure is not None:
                family.add_metric([view.name], figure)
        yield family


def _guests(views: Sequence[View]) -> Iterator[Metric]:
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


def _counters(views: Sequence[View]) -> Iterator[Metric]:
    for attribute, name, text in _COUNTERS:
        counter = CounterMetricFamily(f"qmpballoon_vm_{name}", text, labels=["vm"])
        for view in views:
            counter.add_metric([view.name], getattr(view.counters, attribute))
        yield counter
