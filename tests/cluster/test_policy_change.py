"""A policy is applied to what was shown, above all revisions that can be."""

from __future__ import annotations

import tomllib
from typing import TYPE_CHECKING

import pytest
from attrs import evolve
from clusters import now, open_cluster
from worlds import simulated

from qmpballoon.cluster import (
    HostState,
    MemoryBus,
    MemoryServer,
    apply_policy,
    format_policy,
    look,
    prepare_policy,
)
from qmpballoon.cluster._fields import Malformed
from qmpballoon.cluster.bus import (
    LARGEST_VALUE,
    POLICY_KEY,
    make_state_key,
    make_vms_key,
)
from qmpballoon.cluster.documents import Policy, Wish, parse_policy_fields
from qmpballoon.errors import ClusterBusy
from qmpballoon.sizes import GiB, parse_size

if TYPE_CHECKING:
    from collections.abc import Sequence


@simulated
async def test_a_policy_is_applied_to_what_was_shown_or_not_at_all() -> None:
    async with open_cluster(1) as cluster:
        bus = cluster.server.connect("operator")
        one, two = [
            await prepare_policy(
                bus, {"wish": [{"hosts": "*", "reserve": reserve}]}, now()
            )
            for reserve in ("8GiB", "9GiB")
        ]
        assert one.describe()[:2] == ["--- no policy", "+++ revision 1"]
        await apply_policy(bus, one)
        with pytest.raises(ClusterBusy, match="somebody else has applied"):
            await apply_policy(bus, two)
        await cluster.wait(2)
        change = await prepare_policy(bus, {"wish": [{"hosts": "*"}]}, now())
        assert change.before == one.after
        lines = change.describe()
        assert '-reserve = "8GiB"' in lines
        assert not [
            line for line in lines if line.startswith("+") and "rev" not in line
        ]
        assert not evolve(change, after=evolve(one.after, revision=2)).describe()
        # A server that was emptied does not know the revisions; the hosts do.
        cluster.server.empty()
        await cluster.wait(2)
        assert (await prepare_policy(bus, {}, now())).after.revision == 2
        with pytest.raises(Malformed):
            await prepare_policy(bus, {"wish": 7}, now())
        cluster.server.put(POLICY_KEY, Policy(7, (Wish("*"),)).to_bytes())
        assert (await prepare_policy(bus, {}, now())).after.revision == 8
        # What is there may be anything.
        cluster.server.put(POLICY_KEY, b"x" * (LARGEST_VALUE + 1))
        await apply_policy(bus, await prepare_policy(bus, {}, now()))


@simulated
async def test_no_host_can_use_the_revisions_up() -> None:
    async with open_cluster(1) as cluster:
        bus = cluster.server.connect("operator")
        for claim in (2**53 - 1, int(now() * 1000)):
            liar = HostState("liar", now(), GiB, GiB, 0, policy_revision=claim)
            cluster.server.put(make_state_key("liar"), liar.to_bytes())
            reserve = f"{8 + claim % 2}GiB"
            table = {"wish": [{"hosts": "*", "reserve": reserve}]}
            change = await prepare_policy(bus, table, now())
            await apply_policy(bus, change)
            await cluster.wait(3)
            status = cluster.members["h0"].agent.status
            assert status.policy_revision == change.after.revision
            assert cluster.members["h0"].host.rules.reserve == parse_size(reserve)
            view = await look(bus, now())
            assert ("cannot be" in view.hosts[1].problem) == (claim > 2**50)


@pytest.mark.parametrize(
    "policy",
    [
        Policy(1),
        Policy(2, (Wish("*"),), comment='"\\\U0001f600'),
        Policy(3, (Wish("a*", "8GiB", {"vm*": "1GiB", "\n": "5%"}), Wish("b", "5%"))),
    ],
)
def test_a_policy_is_shown_as_a_file_that_makes_the_same_policy(policy: Policy) -> None:
    shown = format_policy(policy)
    assert parse_policy_fields(tomllib.loads(shown), policy.revision) == policy


@simulated
async def test_what_vms_say_is_not_read_for_a_policy() -> None:
    """There may be thousands of them."""
    server, read = MemoryServer(), set[str]()
    server.put(make_state_key("h1"), HostState("h1", now(), GiB, GiB, 0).to_bytes())

    class Recording(MemoryBus):
        async def get(self, keys: Sequence[str], /) -> dict[str, bytes]:
            read.update(keys)
            return await MemoryBus.get(self, keys)

    await prepare_policy(Recording(server, "operator"), {}, now())
    assert make_state_key("h1") in read
    assert make_vms_key("h1") not in read
