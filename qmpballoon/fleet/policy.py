"""Who gives memory and who gets some: the state of host and guests in, moves out.

Pure: the same state always makes the same plan. The rules, in their order:

1. *What counts.* A guest has to spare what it has available, page cache included,
   above its headroom and half as much again, and above what it is about to use if
   its use grows on. It is in need when it has less available than its headroom, or
   will have before the next plan. Guests that do not say are left alone.
2. *The host comes first.* It keeps its reserve. Above the reserve it holds a
   buffer, out of which a guest in need is served at once. When the buffer is half
   gone, guests that have something to spare fill it up again.
3. *Free first, then give.* Only memory that is free by now is given away. What a
   plan frees is given by the next one, if it did become free: a guest that does
   not let go cannot push the host below its reserve. So memory is freed a plan
   before it is needed, by how fast guests grow.
4. *What was promised counts as gone.* A guest that was given memory and has not
   touched it yet will.
5. *Shrink slowly, grow fast.* What a guest gives in one plan is capped, unless the
   host is in distress. A guest in need gets all it lacks, and its growth until a few
   plans later, but no more than that: what it does not use would be taken back.
6. *Leave well alone.* While nobody is in need, and the host has between half a
   buffer and two, there is nothing to do: nothing is levelled for its own sake. No
   move is made that is not worth its while; below the reserve small ones are, too.
7. *Refusers are not rewarded.* Who did not give what it said it could is not asked
   again for a while, the others take over its part, and it gets nothing beyond its
   need, either.

Policies differ in who gives and gets first: see :data:`PolicyName`. Floors, ceilings,
headrooms and the host's reserve are hard under each of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

from attrs import asdict, evolve, frozen

from qmpballoon._checks import require_size
from qmpballoon.balloon.device import PAGE
from qmpballoon.fleet.members import STEP, Host, Member
from qmpballoon.fleet.water_filling import Vessel, pour
from qmpballoon.sizes import MiB, format_size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

__all__ = [
    "FleetPlan",
    "Move",
    "PolicyName",
    "Rules",
    "make_plan",
    "take",
]

PolicyName = Literal["available", "proportional", "shares"]
"""What is levelled out among the guests: what they have available above their
headroom, in proportion to their RAM (ours); how far each is between its floor and
its ceiling (XAPI squeezed's measure); how much each has (Proxmox VE's shares, but with
cache counted as available). Each is divided by the guest's weight."""


@frozen
class Rules:
    """What the host keeps, and what is worth a move; in bytes.

    Attributes:
        reserve: What the host keeps available.
        buffer: What it holds above that for guests in need.
        dead_band: Moves smaller than this are not made, except to serve a need; below
            the reserve those smaller than 1 MiB.
        policy: Who gives and gets first.
    """

    reserve: int
    buffer: int
    dead_band: int = 16 * MiB
    policy: PolicyName = "available"

    def __attrs_post_init__(self) -> None:
        """Refuse what makes no sense."""
        for name in ("reserve", "buffer", "dead_band"):
            require_size(getattr(self, name), name)
        if self.policy not in _VIEWS:
            choices = ", ".join(_VIEWS)
            raise ValueError(f"policy is {self.policy!r}: it must be one of {choices}")

    @classmethod
    def for_host(
        cls, total: int, reserve: int | None = None, policy: PolicyName = "available"
    ) -> Rules:
        """Return rules for a host of so many bytes.

        Args:
            total: The host's memory in bytes.
            reserve: Bytes; by default 5 % and 256 MiB.
            policy: Who gives and gets first.
        """
        reserve = 256 * MiB + total // 20 if reserve is None else reserve
        return cls(reserve=reserve, buffer=max(64 * MiB, reserve // 4), policy=policy)


@frozen
class Move:
    """One change of one guest's size, in bytes.

    Attributes:
        name: The VM's.
        before: What it has.
        target: What it is to have.
        reason: Why, for people.
    """

    name: str
    before: int
    target: int
    reason: str

    @property
    def change(self) -> int:
        """Bytes it gets; negative if it gives."""
        return self.target - self.before


@frozen
class FleetPlan:
    """What is to be done now.

    Attributes:
        moves: What is moved; those that give come first.
        wanted: Bytes that guests were to free.
        lacking: Bytes of that nobody can free.
    """

    moves: tuple[Move, ...] = ()
    wanted: int = 0
    lacking: int = 0

    def to_json(self) -> dict[str, object]:
        """Return it as the command prints it: bytes."""
        return {
            "moves": [{**asdict(move), "change": move.change} for move in self.moves],
            "wanted": self.wanted,
            "lacking": self.lacking,
        }


def make_plan(host: Host, members: Iterable[Member], rules: Rules) -> FleetPlan:
    """Decide what is moved now.

    Args:
        host: The host as it is.
        members: The VMs that can be moved, those on their way included; others do
            not belong here. Their order does not matter.
        rules: What to keep to.
    """
    everyone = sorted(members, key=lambda member: member.name)
    still = [member for member in everyone if not member.moving]
    free = host.available - rules.reserve
    if host.pressed:
        free -= rules.buffer
    slack = max(0, free - host.promised)
    # What is freed now is given by the next plan: the need of that one counts.
    need = sum(member.need_until(2) for member in still)
    wanted = max(0, need - slack) - sum(map(_on_its_way, everyone))
    if free < rules.buffer // 2:
        wanted += rules.buffer - free
    wanted = max(0, wanted)
    donors = _donors(still)
    distress = host.available < rules.reserve // 2
    # Below the reserve, little is better than nothing.
    worth = min(rules.dead_band, MiB) if free < 0 else rules.dead_band
    reason = _why_take(host, rules, need)
    shrinks = _shrinks(
        donors, wanted, evolve(rules, dead_band=worth), reason, uncapped=distress
    )
    surplus = slack - need - rules.buffer
    if wanted or surplus <= rules.buffer:
        surplus = 0
    return FleetPlan(
        moves=(*shrinks, *_lids(still, shrinks), *_grows(still, slack, surplus, rules)),
        wanted=wanted,
        lacking=max(0, wanted - sum(donor.gain for donor in donors)),
    )


def take(amount: int, members: Iterable[Member], rules: Rules) -> FleetPlan:
    """Plan to take an amount now, wherever it hurts least.

    What one guest gives is not capped: whoever asks for this wants it soon.

    Args:
        amount: Bytes.
        members: As for :func:`make_plan`.
        rules: Whose policy is kept to, and whose dead band where the amount is not
            smaller.
    """
    everyone = sorted(members, key=lambda member: member.name)
    donors = _donors([member for member in everyone if not member.moving])
    reason = f"{format_size(amount)} were asked for"
    exact = evolve(rules, dead_band=min(rules.dead_band, max(amount, PAGE)))
    return FleetPlan(
        moves=tuple(_shrinks(donors, amount, exact, reason, uncapped=True)),
        wanted=amount,
        lacking=max(0, amount - sum(donor.gain for donor in donors)),
    )


# Giving


def _donors(members: Iterable[Member]) -> list[Member]:
    return [m for m in members if not (m.refuses or m.need) and m.gain >= PAGE]


def _on_its_way(member: Member) -> int:
    """Return what the host is about to gain by a move that goes on already."""
    if member.target is None:
        return 0
    given = max(0, member.actual - member.target)
    from_idle = min(given, member.idle)
    return from_idle + max(0, given - from_idle - member.untouched)


def _shrinks(
    donors: Sequence[Member], wanted: int, rules: Rules, reason: str, *, uncapped: bool
) -> list[Move]:
    """Lower the highest until enough is freed."""
    view = _VIEWS[rules.policy]
    # Many small moves would all fall below the dead band: a few have to do.
    count = max(1, wanted // max(1, rules.dead_band))
    highest = sorted(donors, key=lambda m: view(m)[0] / view(m)[1], reverse=True)
    chosen = highest[:count] if wanted else []
    vessels = [
        Vessel(
            height=-view(m)[0],
            width=view(m)[1],
            limit=m.gain if uncapped else min(m.gain, m.total // STEP),
        )
        for m in chosen
    ]
    moves: list[Move] = []
    for member, share in zip(chosen, pour(wanted, vessels), strict=True):
        given = member.price(share) // PAGE * PAGE
        if share and given >= rules.dead_band:
            why = f"{reason}; {_has(member)}"
            moves.append(Move(member.name, member.actual, member.actual - given, why))
    return moves


def _lids(members: Iterable[Member], shrinks: Iterable[Move]) -> list[Move]:
    """Bring guests below their ceilings that are above them."""
    shrinking = {move.name for move in shrinks}
    moves: list[Move] = []
    for member in members:
        given = min(member.actual - member.ceiling, member.spare) // PAGE * PAGE
        if given > 0 and member.name not in shrinking and not member.refuses:
            why = f"its ceiling is {format_size(member.ceiling)}; {_has(member)}"
            moves.append(Move(member.name, member.actual, member.actual - given, why))
    return moves


# Getting


def _grows(
    members: Sequence[Member], slack: int, surplus: int, rules: Rules
) -> list[Move]:
    """Serve the needs, then raise the lowest."""
    needy = [member for member in members if member.need]
    served = pour(slack, [_vessel(m, "available", m.need) for m in needy])
    grants = {m.name: share for m, share in zip(needy, served, strict=True) if share}
    if surplus:
        # Who is in need is served above, and shown in the next plan as it then is.
        content = [m for m in members if not (m.need or m.refuses or m.room < PAGE)]
        for member, share in _surplus(content, surplus, rules):
            if share and share >= min(rules.dead_band, member.room):
                grants[member.name] = share
    moves: list[Move] = []
    for member in members:
        if member.name in grants:
            share = grants[member.name]
            why = f"in need: {_has(member)}" if member.need else _SURPLUS
            moves.append(Move(member.name, member.actual, member.actual + share, why))
    return moves


def _surplus(
    members: Sequence[Member], surplus: int, rules: Rules
) -> Iterable[tuple[Member, int]]:
    count = max(1, surplus // max(1, rules.dead_band))
    view = _VIEWS[rules.policy]
    lowest = sorted(members, key=lambda m: view(m)[0] / view(m)[1])[:count]
    shares = pour(surplus, [_vessel(m, rules.policy, m.room) for m in lowest])
    return zip(lowest, shares, strict=True)


def _vessel(member: Member, policy: PolicyName, limit: int) -> Vessel:
    height, width = _VIEWS[policy](member)
    return Vessel(height, width, limit)


# How full a guest is, and what that is divided by.
_VIEWS: Final[Mapping[PolicyName, Callable[[Member], tuple[int, float]]]] = {
    "available": lambda m: (m.available - m.headroom, m.weight * m.total),
    "proportional": lambda m: (
        m.actual - m.floor,
        m.weight * max(PAGE, m.ceiling - m.floor),
    ),
    "shares": lambda m: (m.actual, m.weight),
}

# Words

_SURPLUS: Final = "the host has memory to spare"


def _has(member: Member) -> str:
    return (
        f"the guest has {format_size(member.available)} available, and is to keep"
        f" {format_size(member.headroom)}"
    )


def _why_take(host: Host, rules: Rules, need: int) -> str:
    if host.pressed:
        return "tasks on the host wait for memory"
    if host.available - rules.reserve < rules.buffer // 2:
        return "the host is short of memory"
    return f"other guests need {format_size(need)}"
