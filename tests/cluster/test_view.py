"""What an operator sees of a cluster, and of what is wrong in it."""

from __future__ import annotations

from clusters import now, open_cluster
from worlds import simulated

from qmpballoon.cluster import look, plan_job
from qmpballoon.sizes import GiB


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
