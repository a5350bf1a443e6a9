"""What an operator sees of a cluster, and of what is wrong in it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from attrs import asdict, evolve
from clusters import now, open_cluster
from worlds import simulated

from qmpballoon.cluster import (
    ClusterView,
    HostState,
    HostView,
    Job,
    JobProgress,
    MemoryBus,
    MemoryServer,
    Offer,
    Policy,
    Room,
    find_room,
    look,
    plan_job,
)
from qmpballoon.cluster.bus import PRESENCE, make_state_key
from qmpballoon.cluster.documents import VmSummary
from qmpballoon.sizes import GiB

if TYPE_CHECKING:
    from collections.abc import Sequence

PROGRESS = JobProgress("0" * 8, GiB, GiB, "done", 0.0, "its detail")
STATE = HostState(
    *("h1", 0.0, 8 * GiB, 2 * GiB, GiB),
    room=Room(GiB, 2 * GiB, 3 * GiB),
    offer=Offer(GiB, 2 * GiB, 3 * GiB),
    vms=1,
    unknown_vms=1,
    policy_revision=7,
    progress=PROGRESS,
    notes=("its note",),
)
HOST = HostView("h1", STATE, (VmSummary("vm", "healthy"),), 0.0, "its problem")
UNREADABLE = HostView("h2", None, problem="no JSON")


@simulated
async def test_a_view_tells_what_is_wrong() -> None:
    async with open_cluster(2) as cluster:
        bus, server = cluster.server.connect("viewer"), cluster.server
        server.cut_off = {"h0", "h1"}
        server.put("qb:host:h9:state", b"{")
        copied = server.read("qb:host:h1:state")
        assert copied
        server.put("qb:host:h8:state", copied)
        server.put("qb:host:h0:vms", b"7")
        server.put("qb:policy", b"7")
        server.put("qb:job", b"7")
        view = await look(bus, now() - 60)
        by_name = {host.name: host for host in view.hosts}
        assert by_name["h9"].condition == "malformed"
        assert "no JSON" in by_name["h9"].problem
        assert "it says that it is h1" in by_name["h8"].problem
        assert "s ahead of this one" in by_name["h1"].problem
        assert by_name["h0"].state
        assert by_name["h0"].vms == ()
        assert "no JSON object" in by_name["h0"].problem
        assert len(by_name["h1"].vms) == 3
        assert len(view.notes) == 2
        assert (view.policy, view.job) == (None, None)
        lagging = await look(bus, now() + 3600, with_vms=False)
        assert "3601 s behind this one" in lagging.hosts[0].problem
        late = await look(bus, now() + 6, with_vms=False)
        assert {host.condition for host in late.hosts} == {"silent", "malformed"}
        assert plan_job(late, GiB, now()).spread.lacking == GiB
        only = plan_job(await look(bus, now()), GiB, now(), hosts="h1")
        assert only.job.quotas == {"h1": GiB}


@pytest.mark.parametrize(
    ("age", "condition"),
    [(0.0, "healthy"), (5.0, "healthy"), (5.1, "silent"), (None, "silent")],
)
def test_a_host_without_a_new_state_is_silent(
    age: float | None, condition: str
) -> None:
    host = evolve(HOST, age=age)
    assert host.condition == condition
    assert len(find_room(ClusterView((host,)), GiB)) == (condition == "healthy")


def test_what_is_wrong_with_a_host_is_listed() -> None:
    job = "job 00000000: its detail"
    unknown = "1 of its VMs do not say how they are"
    assert HOST.list_notes() == ["its problem", unknown, job, "its note"]
    quiet = evolve(STATE, unknown_vms=0, progress=evolve(PROGRESS, detail=""), notes=())
    for state in (quiet, evolve(quiet, progress=None)):
        assert evolve(HOST, state=state, problem="").list_notes() == []
    assert UNREADABLE.list_notes() == ["no JSON"]


def test_a_host_is_printed_with_what_is_known_of_it() -> None:
    document: Any = HOST.to_json()
    assert document["job"] == asdict(PROGRESS)
    assert document["room"] == asdict(STATE.room)
    assert document["offer"] == asdict(STATE.offer)
    assert document["host"] == {
        "total": 8 * GiB,
        "available": 2 * GiB,
        "reserve": GiB,
    }
    assert (document["policy_rev"], document["unknown_vms"]) == (7, 1)
    assert document["notes"] == ["its note"]
    assert [vm["name"] for vm in document["vms"]] == ["vm"]
    assert evolve(HOST, state=evolve(STATE, progress=None)).to_json()["job"] is None
    unreadable = UNREADABLE.to_json()
    assert (unreadable["state"], unreadable["notes"]) == ("malformed", [])
    for name in ("host", "room", "offer", "job", "policy_rev", "unknown_vms"):
        assert unreadable[name] is None


def test_a_cluster_is_described_by_what_its_hosts_have_together() -> None:
    many = evolve(HOST, state=evolve(STATE, vms=2))
    view = ClusterView((HOST, many, UNREADABLE), Policy(7, comment="by night"))
    memory, offers, policy = view.describe()
    assert memory == "They have 4 GiB available of 16 GiB, with 3 VMs"
    assert "2 GiB that is idle, 4 GiB of cold cache and 6 GiB of cache in" in offers
    assert policy == "The policy is revision 7 (by night)"
    assert ClusterView((HOST,)).describe()[0].endswith(", with 1 VM")
    assert ClusterView(()).describe() == ["The server has no policy"]
    assert ClusterView((), Policy(7)).describe() == ["The policy is revision 7"]


def test_the_progress_of_the_last_job_is_that_of_its_hosts() -> None:
    hosts = (HOST, UNREADABLE)
    job = Job("0" * 8, GiB, True, False, 0.0, 1.0, {"h1": GiB, "h2": GiB})  # noqa: FBT003
    report = ClusterView(hosts, job=job).report_job()
    assert report is not None
    assert [host.progress for host in report.hosts] == [PROGRESS, None]
    assert ClusterView(hosts).report_job() is None
    document = ClusterView(hosts, Policy(7), job, ("a note",)).to_json()
    assert (document["policy"], document["job"]) == (asdict(Policy(7)), asdict(job))
    document = ClusterView(hosts).to_json()
    assert (document["policy"], document["job"]) == (None, None)


def test_room_is_found_where_least_has_to_be_done_for_it() -> None:
    """Of hosts that need the same, where there is more."""
    rooms = [
        *(Room(3, 4, 5), Room(2, 9, 9), Room(1, 3, 9), Room(0, 2, 9), Room(1, 1, 9)),
        *(Room(1, 1, 2), Room(1, 1, 1), Room(0, 0, 0)),
    ]
    levels = ["now"] * 2 + ["after-cold"] * 2 + ["to-floors"] * 2 + ["none"] * 2
    hosts = [
        HostView(f"h{number}", evolve(STATE, room=room), age=0.0)
        for number, room in enumerate(rooms)
    ]
    expected = [
        (host.name, level, room)
        for host, level, room in zip(hosts, levels, rooms, strict=True)
    ]
    assert find_room(ClusterView((*reversed(hosts), UNREADABLE)), 2) == expected


@pytest.mark.parametrize("vanishes", [False, True])
@simulated
async def test_hosts_are_seen_however_many_there_are(*, vanishes: bool) -> None:
    """One answer of the server has 256 values at most, whatever becomes of a host."""
    server, sizes = MemoryServer(), list[int]()
    names = [f"h{number:03}" for number in range(600)]
    for name in names:
        server.put(make_state_key(name), evolve(STATE, name=name, at=now()).to_bytes())

    class Recording(MemoryBus):
        async def get(self, keys: Sequence[str], /) -> dict[str, bytes]:
            sizes.append(len(keys))
            found = await MemoryBus.get(self, keys)
            if vanishes:
                found.pop(make_state_key("h300"), None)
            return found

    view = await look(Recording(server, "viewer"), now(), with_vms=False)
    seen = [host.name for host in view.hosts]
    assert seen == [name for name in names if not (vanishes and name == "h300")]
    assert sizes == [256, 256, 90]


@pytest.mark.parametrize(
    ("age", "problem"),
    [
        (-6.0, "its clock is 6 s ahead of this one"),
        *((-5.0, ""), (0.0, ""), (6.0, ""), (PRESENCE + 5.0, "")),
        (PRESENCE + 6.0, f"its clock is {PRESENCE + 6:.0f} s behind this one"),
    ],
)
@simulated
async def test_a_clock_that_cannot_be_right_is_a_problem(
    age: float, problem: str
) -> None:
    """What a host has said vanishes from the server after a while."""
    server = MemoryServer()
    state = evolve(STATE, at=1000.0, policy_revision=None)
    server.put(make_state_key("h1"), state.to_bytes())
    view = await look(server.connect("viewer"), 1000.0 + age)
    assert [host.problem for host in view.hosts] == [problem]
    assert [host.age for host in view.hosts] == [max(age, 0.0)]
