"""Set the policy of a cluster: see what a new one would change, and apply that.

Between the two, the operator looks at the change. So it is applied only if the server
still has the policy that it was compared with.
"""

from __future__ import annotations

import difflib
import json
from typing import TYPE_CHECKING

from attrs import field, frozen

from qmpballoon.cluster._fields import Malformed
from qmpballoon.cluster.bus import POLICY_KEY
from qmpballoon.cluster.documents import Policy, parse_policy, parse_policy_fields
from qmpballoon.cluster.view import look
from qmpballoon.errors import ClusterBusy

if TYPE_CHECKING:
    from collections.abc import Mapping

    from qmpballoon.cluster.bus import Bus

__all__ = ["PolicyChange", "apply_policy", "format_policy", "prepare_policy"]


@frozen
class PolicyChange:
    """A policy that is about to be applied.

    Attributes:
        before: The policy on the server; ``None`` if there is none that can be read.
        after: The new policy.
        expected: The bytes that are on the server now.
    """

    before: Policy | None
    after: Policy
    expected: bytes | None = field(default=None, repr=False)

    def describe(self) -> list[str]:
        """Return the lines of a diff; none if nothing changes but the revision."""
        before = format_policy(self.before).splitlines() if self.before else []
        after = format_policy(self.after).splitlines()
        old = f"revision {self.before.revision}" if self.before else "no policy"
        new = f"revision {self.after.revision}"
        return list(difflib.unified_diff(before, after, old, new, lineterm=""))


def format_policy(policy: Policy) -> str:
    """Return a policy as TOML, as its file would be."""
    blocks: list[str] = []
    if policy.comment:
        blocks.append(f"comment = {_quote(policy.comment)}")
    for wish in policy.wishes:
        lines = ["[[wish]]", f"hosts = {_quote(wish.hosts)}"]
        if wish.reserve is not None:
            lines.append(f"reserve = {_quote(wish.reserve)}")
        if wish.floors:
            floors = sorted(wish.floors.items())
            pairs = ", ".join(f"{_quote(vm)} = {_quote(size)}" for vm, size in floors)
            lines.append(f"floors = {{ {pairs} }}")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks) + "\n"


def _quote(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)  # a basic string of TOML's, too


async def prepare_policy(
    bus: Bus, table: Mapping[str, object], now: float
) -> PolicyChange:
    """Return what applying a policy would change. Nothing is changed.

    Its revision is above all that the server and the hosts know. So hosts follow it
    even if the server was emptied, or has fallen back to an older copy. Revisions that
    cannot exist are ignored: otherwise a host could use the revisions up.

    Args:
        bus: The server.
        table: The policy, as read from a TOML file.
        now: Seconds since 1970.

    Raises:
        BusError: The server cannot be asked.
        Malformed: The policy is malformed; the message says where.
    """
    parse_policy_fields(table, 1)  # before anything is asked
    view = await look(bus, now, with_vms=False)
    expected = (await bus.get([POLICY_KEY])).get(POLICY_KEY)
    try:
        before = None if expected is None else parse_policy(expected)
    except Malformed:
        before = None
    known = [
        host.state.policy_revision or 0
        for host in view.hosts
        if host.state and not host.state.has_impossible_revision(now)
    ]
    revision = 1 + max([before.revision if before else 0, *known])
    return PolicyChange(before, parse_policy_fields(table, revision), expected)


async def apply_policy(bus: Bus, change: PolicyChange) -> None:
    """Apply a policy, unless the server has another one meanwhile.

    Args:
        bus: The server.
        change: The change that was prepared, and shown to the operator.

    Raises:
        BusError: The server cannot be asked. The policy may have been applied or not.
        ClusterBusy: Somebody else has applied one meanwhile. Nothing was changed.
        Malformed: The policy is too large.
    """
    data = change.after.to_bytes()
    if not await bus.compare_and_set(POLICY_KEY, change.expected, data):
        raise ClusterBusy(
            "somebody else has applied a policy meanwhile: look at it, and apply yours"
            " again"
        )
