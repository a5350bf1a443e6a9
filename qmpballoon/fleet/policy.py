"""Which guests give memory and which get some: the host and the guests in, moves out.

Pure: the same state always makes the same plan. These are the rules.

1. *Spare and need.* A guest can spare the memory that it has available, page cache
   included, beyond one and a half times its headroom and what it is about to use. It is
   in need if it has less available than its headroom, or will have before the next
   plan. A guest without statistics is left alone.
2. *Reserve, buffer, hard reserve.* The host keeps its reserve. Above the reserve it
   holds a buffer, and guests in need get memory from the buffer at once. When half of
   the buffer is gone, guests with spare memory give some until the buffer is full. A
   guest in distress would soon kill processes: it has less than its headroom, or uses
   up all that it has before it can be helped again. It gets back what was taken from
   it, from the reserve as well, down to the hard reserve. A VM starts with all its RAM,
   so everything in its balloon was taken from it; its ceiling bounds what it gets.
   Below the hard reserve the host comes first. (ESX has such steps, too: Waldspurger,
   "Memory resource management in VMware ESX Server", 2002.)
3. *Free first, then give.* Only memory that is free now is given away. The memory that
   a plan frees is given by the next plan, if it did become free. So a guest that does
   not give up memory cannot push the host below its reserve. Memory is freed one plan
   before guests need it: their usage rate tells when.
4. *Promised memory counts as gone.* A guest that was given memory and has not touched
   it yet may touch it at any time.
5. *Shrink slowly, grow fast.* What a guest gives in one plan is limited, unless the
   host has less than half of its reserve. A guest in need gets all that it lacks, and
   what it is about to use in the next few plans. It gets no more than that: memory that
   it does not use would be taken back.
6. *No unnecessary moves.* While no guest is in need, and the host has between half a
   buffer and two buffers above its reserve, nothing moves. Making guests equal is no
   reason to move them. A move smaller than the dead band is not made; if the host is
   below its reserve, the dead band is 1 MiB at most. What the host has to spare is
   shared out only when all VMs are known.
7. *A share for each.* A guest gets what it needs up to its fair share: the fleet's
   memory, divided by RAM and weight. Beyond their shares, all guests together hold at
   most 16 times as much as is left to be given. So guests that always say they are in
   need, true or not, leave a 17th of the spare memory. Guests below their fair shares
   are served first. (Switches share their buffers by the same rule: Choudhury and
   Hahne, "Dynamic queue length thresholds", 1998.)
8. *No reward for a stall.* A guest that did not give what it said it could is not asked
   again for a while. The others give its part. It gets what it needs, and nothing else.
9. *Cold first.* Page cache that a guest reads again and again is hot, and counts as
   needed. If a guest lacks some of it, it gets that back after all other needs, from
   what the host has above half of its buffer and from what others can spare. Hot cache
   is worth less than the reserve: while the host lacks some of its reserve, and cold
   memory is not enough, hot cache is taken like any other.
10. *A reserve out of reach is a wish.* The host may lack some of its reserve and half
    of its buffer even with all guests at their floors. Then no guest has to give its
    last page for it. Guests keep half of what they do not use, unless others are in
    distress, or the host is below its hard reserve.

Policies differ in which guests give and get first: see :data:`PolicyName`. Each of them
respects all floors, ceilings and headrooms, and the host's reserves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

from attrs import Factory, asdict, evolve, field, frozen

from qmpballoon._checks import require_size
from qmpballoon.balloon.device import PAGE
from qmpballoon.fleet.water_filling import Recipient, fill
from qmpballoon.sizes import MiB, format_size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from qmpballoon.fleet.guests import Guest, Host

__all__ = [
    "FleetPlan",
    "Move",
    "PolicyName",
    "Rules",
    "make_plan",
    "take",
]

PolicyName = Literal["available", "proportional", "shares"]
"""What is made equal among the guests:

* ``available``: the memory that a guest has available above its headroom and its hot
  cache, as a share of its RAM. The default.
* ``proportional``: how far a guest's size is between its floor and its ceiling, as in
  XAPI's squeezed.
* ``shares``: a guest's size, as by Proxmox VE's shares, but with page cache counted as
  available.

Each is divided by the guest's weight."""

# Beyond their fair shares, guests may hold this many times what is left. With 1, half
# would be left, which is too much while a guest may be about to kill processes. With
# 16, a 17th is left, 6 %. Of the powers of two, this is the smallest with which the
# tides of benchmarks/fleet_policies.py kill no more processes than without the rule.
_GREED: Final = 16

# The part of the reserve that the host keeps whatever guests need: a quarter.
_HARD_SHARE: Final = 4

# The part of its RAM that a guest gives in one plan at most: an eighth. The guest's
# next statistics are seen before it has to give more.
_MAX_SHRINK: Final = 8


@frozen
class Rules:
    """What the host keeps, and which moves are worth making; in bytes.

    Attributes:
        reserve: How much memory the host keeps available.
        buffer: How much it holds above the reserve for guests in need.
        dead_band: Moves smaller than this are not made, unless a guest is in need.
            While the host is below its reserve, it is 1 MiB at most.
        policy: Which guests give and get first.
        reserve_hard: The part of the reserve that the host keeps whatever guests need.
            The rest is for guests that are about to kill processes. By default a
            quarter of the reserve.

    Raises:
        TypeError: A size is not a whole number.
        ValueError: A size is below 0, the hard reserve is above the reserve, or there
            is no such policy.
    """

    reserve: int
    buffer: int
    dead_band: int = 16 * MiB
    policy: PolicyName = "available"
    reserve_hard: int = field(
        default=Factory(
            lambda self: _compute_hard(require_size(self.reserve, "reserve")),
            takes_self=True,
        )
    )

    def __attrs_post_init__(self) -> None:
        """Refuse negative or contradictory sizes, and unknown policies."""
        for name in ("reserve", "buffer", "dead_band", "reserve_hard"):
            require_size(getattr(self, name), name)
        if self.reserve_hard > self.reserve:
            raise ValueError(
                f"reserve_hard is {format_size(self.reserve_hard)}: it is a part of"
                f" the reserve, which is {format_size(self.reserve)}; lower the one or"
                " raise the other"
            )
        if self.policy not in _MEASURES:
            choices = ", ".join(_MEASURES)
            raise ValueError(f"policy is {self.policy!r}: it must be one of {choices}")

    @classmethod
    def for_host(
        cls,
        total: int,
        reserve: int | None = None,
        policy: PolicyName = "available",
        reserve_hard: int | None = None,
    ) -> Rules:
        """Return the rules for a host.

        The buffer is a quarter of the reserve, and at least 64 MiB.

        Args:
            total: The host's memory in bytes.
            reserve: Bytes; by default 5 % of the host's memory and 256 MiB.
            policy: Which guests give and get first.
            reserve_hard: Bytes; by default a quarter of the reserve.

        Raises:
            TypeError: A size is not a whole number.
            ValueError: A size is below 0, or the hard reserve is above the reserve.
        """
        reserve = 256 * MiB + total // 20 if reserve is None else reserve
        if reserve_hard is None:
            reserve_hard = _compute_hard(reserve)
        return cls(
            reserve=reserve,
            buffer=max(64 * MiB, reserve // 4),
            policy=policy,
            reserve_hard=reserve_hard,
        )


def _compute_hard(reserve: int) -> int:
    """Return the hard reserve if none is given."""
    return reserve // _HARD_SHARE


@frozen
class Move:
    """One change of one guest's size, in bytes.

    Attributes:
        name: The VM's name.
        before: The size that the guest has.
        target: The size that it should have.
        reason: Why, for people.
    """

    name: str
    before: int
    target: int
    reason: str

    @property
    def change(self) -> int:
        """Bytes that the guest gets; negative if it gives."""
        return self.target - self.before


@frozen
class FleetPlan:
    """The moves to make now.

    Attributes:
        moves: The moves; those of guests that give come first.
        wanted: How many bytes the guests should free.
        lacking: How many of these no guest can free.
        unreachable: How many bytes the host would lack of its reserve and half of its
            buffer if all guests were at their floors; 0 if none, or if that is not
            known.
    """

    moves: tuple[Move, ...] = ()
    wanted: int = 0
    lacking: int = 0
    unreachable: int = 0

    def to_json(self) -> dict[str, object]:
        """Return it as the command prints it: bytes."""
        return {
            "moves": [{**asdict(move), "change": move.change} for move in self.moves],
            "wanted": self.wanted,
            "lacking": self.lacking,
            "unreachable": self.unreachable,
        }


def describe_unreachable(plan: FleetPlan, rules: Rules) -> str:
    """Say that the host's reserve cannot be reached, and what to do; in one line.

    Args:
        plan: A plan that says so.
        rules: What the host should keep.
    """
    return (
        f"the reserve of {format_size(rules.reserve)} and half its buffer cannot be"
        f" reached: with all guests at their floors {format_size(plan.unreachable)}"
        " would be lacking; so guests keep half of what they do not use, while the host"
        f" has more than {format_size(rules.reserve_hard)} available: lower the reserve"
        " or the floors, or move VMs away"
    )


def make_plan(host: Host, guests: Iterable[Guest], rules: Rules) -> FleetPlan:
    """Decide what is moved now, so that the host has its reserve and its buffer.

    Args:
        host: The host's memory.
        guests: The guests that can be moved, and those that are moving. In any order.
        rules: What the host keeps.
    """
    everyone = sorted(guests, key=lambda guest: guest.name)
    at_rest = [guest for guest in everyone if not guest.is_moving]
    free = host.available - rules.reserve
    if host.pressed:
        free -= rules.buffer
    slack = max(0, free - host.promised)
    for_distress = max(0, host.available - host.promised - rules.reserve_hard)
    unreachable = _count_unreachable(host, rules)
    # For a reserve that cannot be reached, guests give less, unless others need it.
    is_wish = unreachable > 0 and for_distress > sum(g.distress for g in at_rest)
    need = _count_need(at_rest, everyone, slack)
    kept = rules.buffer // 2 if any(guest.hot_need for guest in at_rest) else 0
    wanted = max(0, need + kept - slack) - sum(map(_predict_gain, everyone))
    if free < rules.buffer // 2:
        wanted += rules.buffer - free
    wanted = max(0, wanted)
    candidates = [_keep_half(guest) for guest in at_rest] if is_wish else at_rest
    donors = _choose_donors(candidates, wanted, takes_hot=free < 0) if wanted else []
    # Below the reserve, small moves are better than none.
    dead_band = min(rules.dead_band, MiB) if free < 0 else rules.dead_band
    shrinks = _plan_shrinks(
        donors,
        wanted,
        evolve(rules, dead_band=dead_band),
        _explain_shrinks(host, rules, need),
        uncapped=host.available < rules.reserve // 2,
    )
    grants = _share_for_needs(at_rest, everyone, slack, for_distress)
    kept = sum(grants.values()) + rules.buffer // 2
    grants |= _share_for_hot(at_rest, everyone, slack, kept)
    left = slack - max(need, sum(grants.values())) - rules.buffer
    has_surplus = host.is_complete and not wanted and left > rules.buffer
    surplus = _share_surplus(at_rest, left, rules) if has_surplus else {}
    ceilings = _enforce_ceilings(at_rest, shrinks)
    grows = _plan_grows(at_rest, grants, slack, surplus)
    return FleetPlan(
        moves=(*shrinks, *ceilings, *grows),
        wanted=wanted,
        lacking=max(0, wanted - sum(donor.gain for donor in donors)),
        unreachable=unreachable,
    )


def _count_unreachable(host: Host, rules: Rules) -> int:
    """Return the bytes that the host would lack with all guests at their floors.

    With its reserve and half of its buffer, the host lacks nothing.
    """
    if host.above_floors is None:
        return 0
    goal = rules.reserve + rules.buffer // 2
    return max(0, goal - host.available - host.above_floors)


def _count_need(guests: Sequence[Guest], everyone: Sequence[Guest], slack: int) -> int:
    """Return the bytes that guests need by the next plan, which gives what this frees.

    Args:
        guests: Those that can be given some.
        everyone: All guests, which have their shares.
        slack: Bytes that the host has above its reserve.
    """
    needs = [max(g.compute_need(2), g.distress, g.hot_need) for g in guests]
    return sum(_limit_needs(guests, everyone, needs, slack))


def take(
    amount: int, guests: Iterable[Guest], rules: Rules, *, takes_hot: bool = True
) -> FleetPlan:
    """Plan to take an amount now, from the guests that have most to spare.

    A guest may give more than an eighth of its RAM: the caller wants the memory soon.

    Args:
        amount: Bytes.
        guests: As for :func:`make_plan`.
        rules: The policy and the dead band count. A dead band larger than the amount is
            lowered to it.
        takes_hot: Whether hot cache is taken like any other if the cold memory of all
            guests is not enough.
    """
    everyone = sorted(guests, key=lambda guest: guest.name)
    at_rest = [guest for guest in everyone if not guest.is_moving]
    donors = _choose_donors(at_rest, amount, takes_hot=takes_hot)
    reason = f"{format_size(amount)} were asked for"
    exact = evolve(rules, dead_band=min(rules.dead_band, max(amount, PAGE)))
    return FleetPlan(
        moves=tuple(_plan_shrinks(donors, amount, exact, reason, uncapped=True)),
        wanted=amount,
        lacking=max(0, amount - sum(donor.gain for donor in donors)),
    )


# Shrinking


def _choose_donors(
    guests: Iterable[Guest], wanted: int, *, takes_hot: bool
) -> list[Guest]:
    """Return the guests that can give some.

    Args:
        guests: Those at rest.
        wanted: The bytes that they should give together.
        takes_hot: Whether hot cache is taken like any other if their cold memory is not
            enough.
    """
    candidates = [
        guest
        for guest in guests
        if not (guest.is_stalled or guest.need or guest.distress)
    ]
    if takes_hot and sum(guest.gain for guest in candidates) < wanted:
        candidates = [evolve(guest, hot=0) for guest in candidates]
    return [guest for guest in candidates if guest.gain >= PAGE]


def _keep_half(guest: Guest) -> Guest:
    """Return a guest that keeps half of all that it may have and does not use."""
    return evolve(guest, floor=guest.halfway)


def _predict_gain(guest: Guest) -> int:
    """Return the bytes that the host gains soon from the guest's present move.

    A move counts for what it delivers, not for what it still owes.
    """
    if guest.target is None:
        return 0
    given = max(0, guest.actual - guest.target)
    if guest.delivers is not None:
        given = min(given, guest.delivers)
    return guest.compute_gain(given)


def _plan_shrinks(
    donors: Sequence[Guest], wanted: int, rules: Rules, reason: str, *, uncapped: bool
) -> list[Move]:
    """Lower the highest guests until the wanted bytes are freed."""
    measure = _MEASURES[rules.policy]
    # Divided among all of them, the shares would be smaller than the dead band.
    count = max(1, wanted // max(1, rules.dead_band))
    highest = sorted(donors, key=lambda g: measure(g)[0] / measure(g)[1], reverse=True)
    chosen = highest[:count] if wanted else []
    # Lowering the highest is raising the lowest with the sign changed.
    recipients = [
        Recipient(
            filled=-measure(g)[0],
            weight=measure(g)[1],
            limit=g.gain if uncapped else min(g.gain, g.total // _MAX_SHRINK),
        )
        for g in chosen
    ]
    moves: list[Move] = []
    for guest, share in zip(chosen, fill(wanted, recipients), strict=True):
        given = guest.compute_reduction(share) // PAGE * PAGE
        if share and given >= rules.dead_band:
            why = f"{reason}; {_describe_guest(guest)}"
            moves.append(Move(guest.name, guest.actual, guest.actual - given, why))
    return moves


def _enforce_ceilings(guests: Iterable[Guest], shrinks: Iterable[Move]) -> list[Move]:
    """Shrink guests that are above their ceilings and do not shrink already."""
    shrinking = {move.name for move in shrinks}
    moves: list[Move] = []
    for guest in guests:
        given = min(guest.actual - guest.ceiling, guest.spare) // PAGE * PAGE
        if given > 0 and guest.name not in shrinking and not guest.is_stalled:
            ceiling = format_size(guest.ceiling)
            why = f"its ceiling is {ceiling}; {_describe_guest(guest)}"
            moves.append(Move(guest.name, guest.actual, guest.actual - given, why))
    return moves


# Growing


@frozen
class _Shares:
    """How much of the fleet's memory guests may have for their needs.

    Attributes:
        total: Bytes that the guests have, and that they could be given.
        weight: The sum of all guests' weights, each times the guest's RAM.
        left: Bytes that are left to be given: what the host and guests can spare.
        beyond: Bytes that guests have beyond their fair shares, and cannot spare.
    """

    total: int
    weight: float
    left: int
    beyond: int = 0

    @classmethod
    def of(cls, guests: Sequence[Guest], slack: int) -> _Shares:
        # Guests on their way count too: what they give, and what they can spare then.
        shares = cls(
            total=slack + sum(guest.actual for guest in guests),
            weight=sum(guest.weight * guest.total for guest in guests),
            left=slack + sum(guest.gain for guest in guests),
        )
        beyond = (max(0, -shares.count_below(g) - g.gain) for g in guests)
        return evolve(shares, beyond=sum(beyond))

    def count_below(self, guest: Guest) -> int:
        """Return what a guest lacks of its fair share; below 0 if it has more."""
        fair = int(self.total * (guest.weight * guest.total / self.weight))
        return max(fair, guest.floor) - guest.actual

    def limit(
        self, guests: Sequence[Guest], needs: Sequence[int]
    ) -> tuple[list[int], list[int]]:
        """Return what guests may get of what they need.

        Returns:
            What each may get before any gets more than its fair share; and what each
            may get in all.
        """
        firsts = [
            max(0, min(need, self.count_below(guest)))
            for guest, need in zip(guests, needs, strict=True)
        ]
        # What is given for the first needs is no longer left for the others.
        left = self.left - sum(firsts)
        most = max(0, (_GREED * left - self.beyond) // (_GREED + 1))
        recipients = [
            _make_recipient(guest, "available", need - first, first)
            for guest, need, first in zip(guests, needs, firsts, strict=True)
        ]
        others = fill(most, recipients) if recipients else []
        return firsts, [a + b for a, b in zip(firsts, others, strict=True)]


def _plan_grows(
    guests: Sequence[Guest],
    grants: Mapping[str, int],
    slack: int,
    surplus: Mapping[str, int],
) -> list[Move]:
    """Give guests in need what they need, then share the surplus out."""
    source = ", from the host's reserve" if sum(grants.values()) > slack else ""
    moves: list[Move] = []
    for guest in guests:
        share, why = surplus.get(guest.name, 0), _SURPLUS
        if guest.name in grants:
            share = grants[guest.name]
            why = f"in need{source}: {_describe_guest(guest)}"
            if guest.hot_need:
                why = f"it reads again what was taken from it: {_describe_guest(guest)}"
        if share:
            moves.append(Move(guest.name, guest.actual, guest.actual + share, why))
    return moves


def _share_for_needs(
    guests: Sequence[Guest], everyone: Sequence[Guest], slack: int, for_distress: int
) -> dict[str, int]:
    """Share out what guests need: first those in distress, then the others.

    Args:
        guests: Those that can be given some.
        everyone: All guests, which have their shares.
        slack: Bytes that the host has above its reserve.
        for_distress: Bytes that it has above its hard reserve.
    """
    distressed = [guest for guest in guests if guest.distress]
    wants = [max(guest.need, guest.distress) for guest in distressed]
    grants = _fill_needs(distressed, everyone, wants, for_distress, for_distress)
    others = [guest for guest in guests if guest.need and not guest.distress]
    left = max(0, slack - sum(grants.values()))
    needs = [guest.need for guest in others]
    return grants | _fill_needs(others, everyone, needs, left, slack)


def _share_for_hot(
    guests: Sequence[Guest], everyone: Sequence[Guest], slack: int, kept: int
) -> dict[str, int]:
    """Share out what guests lack for their hot cache.

    Args:
        guests: Those that can be given some.
        everyone: All guests, which have their shares.
        slack: Bytes that the host has above its reserve.
        kept: Bytes of ``slack`` that are for other needs.
    """
    needy = [guest for guest in guests if guest.hot_need]
    needs = [guest.hot_need for guest in needy]
    return _fill_needs(needy, everyone, needs, max(0, slack - kept), slack)


def _limit_needs(
    guests: Sequence[Guest],
    everyone: Sequence[Guest],
    needs: Sequence[int],
    slack: int,
) -> list[int]:
    """Return how much guests may get of what they need, within the rule of shares."""
    if not any(needs):
        return [0] * len(needs)  # the usual case, and computing shares takes long
    return _Shares.of(everyone, slack).limit(guests, needs)[1]


def _fill_needs(
    needy: Sequence[Guest],
    everyone: Sequence[Guest],
    needs: Sequence[int],
    amount: int,
    slack: int,
) -> dict[str, int]:
    """Share an amount out: first up to the guests' fair shares, then the rest.

    Args:
        needy: Those that get some.
        everyone: All guests, which have their shares.
        needs: How much each of the needy needs.
        amount: Bytes.
        slack: Bytes from which the shares of all guests are computed.
    """
    if not needy:
        return {}
    firsts, most = _Shares.of(everyone, slack).limit(needy, needs)
    grants = [0] * len(needy)
    for wanted in (firsts, most):
        recipients = [
            _make_recipient(guest, "available", want - granted, granted)
            for guest, want, granted in zip(needy, wanted, grants, strict=True)
        ]
        given = fill(amount - sum(grants), recipients)
        grants = [a + b for a, b in zip(grants, given, strict=True)]
    return {g.name: share for g, share in zip(needy, grants, strict=True) if share}


def _share_surplus(
    guests: Sequence[Guest], surplus: int, rules: Rules
) -> dict[str, int]:
    """Raise the lowest guests that are not in need: those have got their part."""
    others = [
        guest
        for guest in guests
        if not (guest.need or guest.distress or guest.hot_need or guest.is_stalled)
        and guest.room >= PAGE
    ]
    count = max(1, surplus // max(1, rules.dead_band))
    measure = _MEASURES[rules.policy]
    lowest = sorted(others, key=lambda g: measure(g)[0] / measure(g)[1])[:count]
    recipients = [_make_recipient(g, rules.policy, g.room) for g in lowest]
    shares = zip(lowest, fill(surplus, recipients), strict=True)
    return {
        guest.name: share
        for guest, share in shares
        if share >= min(rules.dead_band, guest.room)
    }


def _make_recipient(
    guest: Guest, policy: PolicyName, limit: int, granted: int = 0
) -> Recipient:
    filled, weight = _MEASURES[policy](guest)
    return Recipient(filled + granted, weight, limit)


# A guest's level under each policy: bytes, and the weight to divide them by.
_MEASURES: Final[Mapping[PolicyName, Callable[[Guest], tuple[int, float]]]] = {
    "available": lambda g: (g.available - g.headroom - g.hot, g.weight * g.total),
    "proportional": lambda g: (
        g.actual - g.floor,
        g.weight * max(PAGE, g.ceiling - g.floor),
    ),
    "shares": lambda g: (g.actual, g.weight),
}

# Reasons

_SURPLUS: Final = "the host has memory to spare"


def _describe_guest(guest: Guest) -> str:
    hot = f", and {format_size(guest.hot)} of hot cache" if guest.hot else ""
    return (
        f"the guest has {format_size(guest.available)} available, and is to keep"
        f" {format_size(guest.headroom)}{hot}"
    )


def _explain_shrinks(host: Host, rules: Rules, need: int) -> str:
    if host.pressed:
        return "tasks on the host wait for memory"
    if host.available - rules.reserve < rules.buffer // 2:
        return "the host is short of memory"
    return f"other guests need {format_size(need)}"
