"""A fleet as it was seen, with all that a page of metrics can show."""

from __future__ import annotations

from datetime import UTC, datetime

from attrs import evolve
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest

from qmpballoon.balloon.results import DiskReads
from qmpballoon.balloon.stats import GuestStats
from qmpballoon.fleet.guests import Host
from qmpballoon.fleet.metrics import ClusterLink, FleetCollector, FleetSnapshot
from qmpballoon.fleet.policy import Rules
from qmpballoon.fleet.vm_spec import Bounds
from qmpballoon.fleet.vm_view import VmCounters, VmView
from qmpballoon.sizes import GiB, MiB

__all__ = ["GONE", "HOST", "RULES", "SEEN", "STALE", "WELL", "page"]

HOST = Host(total=64 * GiB, available=8 * GiB, promised=MiB)
RULES = Rules(reserve=4 * GiB, buffer=GiB)
WELL = VmView(
    name='odd "name"\n',
    address="/run/vm.qmp",
    state="healthy",
    detail="",
    actual=2 * GiB,
    total=4 * GiB,
    target=None,
    resident=3 * GiB,
    bounds=Bounds(floor=GiB, ceiling=4 * GiB, headroom=128 * MiB),
    stats=GuestStats(
        last_update=datetime.fromtimestamp(1_750_000_000, UTC),
        total=2 * GiB,
        free=100 * MiB,
        available=GiB,
        disk_caches=950 * MiB,
        oom_kills=3,
    ),
    counters=VmCounters(given=5, taken=7, moves=4, stalls=1, losses=2),
    disk_reads=DiskReads(5 * GiB, 6),
    hot=700 * MiB,
)
STALE = evolve(WELL, name="stale", state="stale", disk_reads=None, hot=None)
GONE = evolve(
    WELL,
    name="gone",
    state="gone",
    disk_reads=None,
    hot=None,
    actual=None,
    total=None,
    resident=None,
    bounds=None,
    stats=GuestStats(),
)
SEEN = FleetSnapshot(
    HOST,
    RULES,
    [WELL, STALE, GONE],
    3,
    ClusterLink(is_connected=True, policy_revision=2),
)


def page(snapshot: FleetSnapshot = SEEN) -> str:
    """Return the page of metrics in the format that Prometheus has always read."""
    registry = CollectorRegistry()
    registry.register(FleetCollector(lambda: snapshot))
    return generate_latest(registry).decode()
