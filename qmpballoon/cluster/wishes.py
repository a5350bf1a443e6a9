"""How a host applies a policy that comes from elsewhere.

Pure. Such a policy is a wish within the host's own limits: it may raise a reserve or a
floor. It lowers nothing that was set on the host itself, unless the host permits that.
Nothing changes if the data is not a policy, if the policy is older than one that the
host has seen, or if it has vanished.
"""

from __future__ import annotations

import re
from fnmatch import fnmatchcase, translate
from typing import TYPE_CHECKING, Final

from attrs import evolve, frozen

from qmpballoon.cluster._fields import Malformed
from qmpballoon.cluster.documents import parse_policy
from qmpballoon.fleet.policy import Rules
from qmpballoon.sizes import format_size, parse_size

if TYPE_CHECKING:
    from qmpballoon.cluster.documents import Policy
    from qmpballoon.fleet.vm_spec import Bounds, Limit

__all__ = ["Judged", "Permits", "judge_policy", "make_limit", "raise_reserve"]

_MAGIC: Final = re.compile(r"[*?[]")  # what makes a glob of a name


@frozen
class Permits:
    """What a host permits a policy to lower.

    Attributes:
        lower_reserve: The host's reserve.
        lower_floors: The floors of its VMs.
    """

    lower_reserve: bool = False
    lower_floors: bool = False


@frozen
class Judged:
    """What a host does about the policy on the server.

    Attributes:
        policy: The policy that it follows from now on; ``None`` for its own rules.
        note: Why this is not the one on the server; empty if it is.
    """

    policy: Policy | None
    note: str = ""


def judge_policy(known: Policy | None, data: bytes | None) -> Judged:
    """Decide which policy counts.

    Args:
        known: The last policy that the host has followed.
        data: What the server has now; ``None`` for nothing.
    """
    goes_on = (
        f"revision {known.revision} goes on" if known else "the host's own rules go on"
    )
    if data is None:
        if known is None:
            return Judged(None)
        note = "the server has no policy, as after it was emptied"
        return Judged(known, f"{note}: {goes_on}; apply a policy again")
    try:
        policy = parse_policy(data)
    except Malformed as error:
        return Judged(known, f"{error}: {goes_on}; apply a policy again")
    if known is None or policy == known or policy.revision > known.revision:
        return Judged(policy)
    if policy.revision == known.revision:
        why = f"the server has another revision {policy.revision} than the one seen"
    else:
        why = f"the server's revision {policy.revision} is older than one seen before"
    return Judged(known, f"{why}: {goes_on}; apply the policy again")


def raise_reserve(
    own: Rules, policy: Policy | None, host: str, total: int, permits: Permits
) -> tuple[Rules, str]:
    """Return the rules of a host, with the reserve that a policy wishes.

    They are the same as if the host had been started with that reserve.

    Args:
        own: The host's own rules, which were set when it was started.
        policy: The policy.
        host: The host's name.
        total: How much memory it has.
        permits: What it permits.

    Returns:
        The rules, and why a wish does not count; empty if all do.
    """
    sizes = [
        parse_size(wish.reserve, whole=total)
        for wish in (policy.wishes if policy else ())
        if wish.reserve is not None and fnmatchcase(host, wish.hosts)
    ]
    if not sizes:
        return own, ""
    reserve = max(sizes)
    if reserve >= total:
        return own, (
            f"the policy's reserve of {format_size(reserve)} leaves nothing of this"
            f" host's {format_size(total)}: {format_size(own.reserve)} go on"
        )
    if reserve == own.reserve:
        return own, ""
    if reserve < own.reserve and not permits.lower_reserve:
        return own, ""
    default = Rules.for_host(total, own.reserve)
    is_default = own.reserve_hard == default.reserve_hard
    hard = None if is_default else min(own.reserve_hard, reserve)
    raised = Rules.for_host(total, reserve, own.policy, hard)
    return evolve(raised, dead_band=own.dead_band), ""


def make_limit(policy: Policy | None, host: str, permits: Permits) -> Limit:
    """Return a function that raises the floors of a host's VMs as a policy wishes.

    A floor is never above the VM's ceiling.

    Args:
        policy: The policy.
        host: The host's name.
        permits: What the host permits.

    Returns:
        For :meth:`qmpballoon.fleet.Supervisor.set_limit`.
    """
    # A policy may name each VM of a cluster, and many VMs ask at once. So plain names
    # are looked up in a dictionary, and globs are compiled once.
    named: dict[str, set[str]] = {}
    globs: list[tuple[re.Pattern[str], str]] = []
    for wish in policy.wishes if policy else ():
        if not fnmatchcase(host, wish.hosts):
            continue
        for pattern, size in wish.floors.items():
            if _MAGIC.search(pattern):
                globs.append((re.compile(translate(pattern)), size))
            else:
                named.setdefault(pattern, set()).add(size)

    def limit(name: str, total: int, own: Bounds) -> Bounds:
        found = {size for pattern, size in globs if pattern.match(name)}
        found |= named.get(name, set())
        if not found:
            return own
        floor = min(max(parse_size(size, whole=total) for size in found), own.ceiling)
        if floor < own.floor and not permits.lower_floors:
            return own
        return evolve(own, floor=floor)

    return limit
