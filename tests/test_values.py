"""Values are compared by content, can be keys, and are shown on one line."""

from __future__ import annotations

import copy
import inspect
import pickle
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any

import attrs
import pytest

from qmpballoon import GiB, MiB, address, balloon, export, fleet, qmp, testing
from qmpballoon.testing import lab

PACKAGES = (
    *("qmpballoon", "qmpballoon.address", "qmpballoon.balloon", "qmpballoon.export"),
    *("qmpballoon.fleet", "qmpballoon.qmp", "qmpballoon.testing"),
    *("qmpballoon.testing.lab", "qmpballoon.trio", "qmpballoon.asyncio"),
    *("qmpballoon.blocking", "qmpballoon.libvirt"),
)
WIDEST = 400  # characters of a repr: a line of a log, not of a terminal

FIGURES: dict[str, Any] = {
    name: 12_345_678_901 + number
    for number, (name, field) in enumerate(
        attrs.fields_dict(balloon.GuestStats).items()
    )
    if str(field.type) == "int | None"
}
STATS = balloon.GuestStats(
    last_update=datetime(2026, 1, 1, tzinfo=UTC),
    age=0.5,
    extra={"stat-new": 5},
    **FIGURES,
)
TIMELINE = balloon.Timeline()
TIMELINE.add(balloon.Sample(0.0, GiB, 2 * GiB, available=GiB, mark="reached"))
SNAPSHOT = balloon.Snapshot(STATS, 2 * GiB, GiB)
READS = balloon.DiskReads(MiB, 8)
CHANGE = export.Change("guest: free", GiB, None)
DIAGNOSIS = balloon.Diagnosis("slow", "it is slow")
UNIX = address.UnixAddress("/run/vm1.qmp")
VM = fleet.VmSpec("vm1", UNIX, floor="1GiB")
BOUNDS = fleet.Bounds(GiB, 2 * GiB, 64 * MiB)
COUNTERS = fleet.VmCounters(moves=3)
VIEW = fleet.VmView(
    name="vm1",
    address="unix:/run/vm1.qmp",
    state="healthy",
    detail="",
    actual=GiB,
    total=2 * GiB,
    target=None,
    resident=GiB,
    bounds=BOUNDS,
    stats=STATS,
    counters=COUNTERS,
)
MOVE = fleet.Move("vm1", 2 * GiB, GiB, "the host is short of memory")
RULES = fleet.Rules(reserve=GiB, buffer=GiB)
HOST = fleet.Host(64 * GiB, 32 * GiB)

VALUES: list[Any] = [
    address.AbstractAddress("vm1"),
    address.LibvirtVm("vm1"),
    address.TcpAddress("host", 4444),
    UNIX,
    balloon.BalloonInfo(GiB, 2 * GiB, None, {"max_mem": GiB}),
    DIAGNOSIS,
    READS,
    balloon.ReadRates(0.0, 1.5, None),
    balloon.Guard(headroom=GiB),
    balloon.Guard().compute_limits(GiB),
    balloon.Guard().compute_limits(GiB).pressure,
    balloon.Guard().compute_limits(GiB).rereads,
    STATS,
    balloon.Plan(
        *(2 * GiB, GiB, GiB, GiB // 2, GiB // 2, GiB + 1, 64 * MiB, 64 * MiB),
        binding="headroom",
        seconds=1.5,
    ),
    balloon.Progress(
        *(1.0, "inflating", "moving", 2 * GiB, GiB, GiB + 1, 1e9, 0.1, TIMELINE[0])
    ),
    balloon.ReclaimReport(
        *("done", "all of it", GiB, GiB, 2.0, False, SNAPSHOT, SNAPSHOT), TIMELINE
    ),
    balloon.ResizeResult("settled", GiB, 2 * GiB, GiB, GiB, 1.0, DIAGNOSIS),
    TIMELINE[0],
    SNAPSHOT,
    balloon.StallLimits(),
    balloon.VmInfo("vm1", "running", "10.0.2"),
    CHANGE,
    export.Facts(sentence="Requested 1 GiB.", changes=[CHANGE], remarks=["None."]),
    BOUNDS,
    fleet.ClusterLink(is_connected=True, policy_revision=3),
    fleet.FleetPlan((MOVE,)),
    fleet.FleetReclaimReport(
        GiB, GiB, held=False, vms=(fleet.VmReclaimReport("vm1", GiB, GiB, GiB),)
    ),
    fleet.VmReclaimReport("vm1", GiB, GiB, GiB),
    fleet.FleetSnapshot(HOST, RULES, (VIEW,)),
    fleet.Guest("vm1", GiB, 2 * GiB, GiB, 64 * MiB, 64 * MiB, 2 * GiB),
    HOST,
    fleet.HostMemory(),
    MOVE,
    fleet.Refused("4000", "its user is not trusted"),
    RULES,
    fleet.Settings(),
    COUNTERS,
    fleet.LeftGuest("vm1", GiB, 2 * GiB),
    fleet.SmallGuest("vm1", GiB, 2 * GiB, GiB),
    VM,
    VIEW,
    qmp.Event("RTC_CHANGE", {"offset": 3}, 5.0),
    qmp.Failure("GenericError", "no", {"id": 1}),
    qmp.Greeting(qmp.Version(10, 0, 2), ("oob",)),
    qmp.Limits(),
    qmp.Request("balloon", {"value": GiB}, [1]),
    qmp.Return({"actual": GiB}, 1),
    qmp.Version(10, 0, 2),
    testing.FaultPlan(),
    testing.GuestConfig(claims={"free-memory": 5}),
    testing.MachineConfig(),
    testing.WorkloadStep(5, GiB),
    testing.FileReads("loop", GiB, MiB),
    lab.FetchProgress("fetching linux", Path("cache"), 10, 0.5),
    *export.SERIES,
]
# They have a state of their own, and no content to be compared by; a profile is one of
# a kind, and found by its version.
NO_VALUES = {testing.ThreadedFake, testing.Profile}

each_value = pytest.mark.parametrize(
    "value", VALUES, ids=lambda value: type(value).__name__
)


def is_frozen(kind: object) -> bool:
    return (
        inspect.isclass(kind)
        and attrs.has(kind)
        and kind.__setattr__.__name__ == "_frozen_setattrs"  # type: ignore[comparison-overlap, unused-ignore]
    )


def test_every_public_value_is_among_them() -> None:
    modules = [import_module(name) for name in PACKAGES]
    public = {getattr(module, name) for module in modules for name in module.__all__}
    frozen = {kind for kind in public if is_frozen(kind)}
    assert {kind.__name__ for kind in frozen - NO_VALUES} <= {
        type(value).__name__ for value in VALUES
    }


@each_value
def test_it_is_compared_by_content_and_can_be_a_key(value: object) -> None:
    twin = copy.deepcopy(value)
    assert value == twin
    assert not value != twin  # noqa: SIM202 - both operators
    assert {value: 1}[twin] == 1


@each_value
def test_it_can_be_sent_to_another_process(value: object) -> None:
    assert pickle.loads(pickle.dumps(value)) == value  # noqa: S301 - our own


@each_value
def test_it_is_shown_on_one_line(value: object) -> None:
    assert "\n" not in repr(value)
    # A simulated VM has as many options as QEMU's command line.
    assert len(repr(value)) <= WIDEST or isinstance(value, testing.MachineConfig)


def test_what_differs_in_a_mapping_differs() -> None:
    for one, other in (
        (balloon.BalloonInfo(1, extra={"a": 1}), balloon.BalloonInfo(1)),
        (balloon.GuestStats(extra={"a": 1}), balloon.GuestStats(extra={"a": 2})),
        (qmp.Event("A", {"a": 1}), qmp.Event("A", {"a": 2})),
    ):
        assert one != other


def test_no_argument_of_a_command_is_shown() -> None:
    request = qmp.Request("set_password", {"password": "swordfish"})
    assert "swordfish" not in repr(request)
