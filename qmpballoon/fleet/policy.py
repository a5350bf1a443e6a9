"""Which guests give memory and which get some: the host and the guests in, moves out.

Pure: the same state always makes the same plan. These are the rules.

1. *What counts.* A guest can spare the memory that it has available, page cache
   included, above one and a half times its headroom and what it is about to use. It is
   in need if it has less available than its headroom, or will have before the next
   plan. A guest without statistics is left alone.
2. *The host comes first.* The host keeps its reserve. Above the reserve it holds a
   buffer, and guests in need get memory from the buffer at once. When half of the
   buffer is gone, guests with spare memory give some until the buffer is full.
3. *Free first, then give.* Only memory that is free now is given away. The memory that
   a plan frees is given by the next plan, if it did become free. So a guest that does
   not let go of memory cannot push the host below its reserve. Memory is freed one
   plan before guests need it: their usage rate tells when.
4. *Promised memory counts as gone.* If a guest was given memory and has not touched it
   yet, it still may.
5. *Shrink slowly, grow fast.* What a guest gives in one plan is limited, unless the
   host has less than half of its reserve. A guest in need gets all that it lacks, and
   what it is about to use in the next few plans. It gets no more than that: memory that
   it does not use would be taken back.
6. *No unnecessary moves.* While no guest is in need, and the host has between half a
   buffer and two buffers above its reserve, nothing moves. Guests are not made equal
   for its own sake. A move smaller than the dead band is not made; if the host is below
   its reserve, the dead band is 1 MiB at most. What the host has to spare is shared
   out only when all VMs are known.
7. *A share for each.* A guest gets what it needs up to its fair share: the fleet's
   memory by RAM and weight. Beyond their shares, all guests together hold at
   most 16 times as much as what is left to be given. So guests that always say they are
   in need, true or not, leave a 17th of the memory that is to spare. Guests below their
   fair share are served first. (Switches share their
   buffers by the same rule: Choudhury and Hahne, "Dynamic queue length thresholds",
   1998.)
8. *No reward for a stall.* A guest that did not give what it said it could is not asked
   again for a while. The others give its part. It gets what it needs, and nothing else.

Policies differ in which guests give and get first: see :data:`PolicyName`. Each keeps
all floors, ceilings and headrooms, and the host's reserve.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

from attrs import asdict, evolve, frozen

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

* ``available``: the memory that a guest has available above its headroom, as a share of
  its RAM. The default.
* ``proportional``: how far a guest's size is between its floor and its ceiling, as in
  XAPI's squeezed.
* ``shares``: a guest's size, as by Proxmox VE's shares, but with page cache counted as
  available.

Each is divided by the guest's weight."""

# How many times as much as what is left guests may hold beyond their fair shares. With
# 1 half would be left: too much, while a guest may be about to kill processes. With 16
# a 17th is left, 6 %. Of the powers of two, this is the smallest with which the tides
# of benchmarks/fleet_policies.py kill no more than without it.
_GREED: Final = 16

# The part of its RAM that a guest gives in one plan at most: one 8th. What the guest
# says then is seen before it has to give the next one.
_MAX_SHRINK: Final = 8


@frozen
class Rules:
    """What the host keeps, and which moves are worth making; in bytes.

    Attributes:
        reserve: How much memory the host keeps available.
        buffer: How much it holds above the reserve for guests in need.
        dead_band: Moves smaller than this are not made, unless a guest is in need.
            Below the reserve it is 1 MiB at most.
        policy: Which guests give and get first.

    Raises:
        TypeError: A size is not a whole number.
        ValueError: A size is below 0, or there is no such policy.
    """

    reserve: int
    buffer: int
    dead_band: int = 16 * MiB
    policy: PolicyName = "available"

    def __attrs_post_init__(self) -> None:
        """Refuse negative sizes and unknown policies."""
        for name in ("reserve", "buffer", "dead_band"):
            require_size(getattr(self, name), name)
        if self.policy not in _MEASURES:
            choices = ", ".join(_MEASURES)
            raise ValueError(f"policy is {self.policy!r}: it must be one of {choices}")

    @classmethod
    def for_host(
        cls, total: int, reserve: int | None = None, policy: PolicyName = "available"
    ) -> Rules:
        """Return the rules for a host.

        The buffer is a quarter of the reserve, and at least 64 MiB.

        Args:
            total: The host's memory in bytes.
            reserve: Bytes; by default 5 % of the host's memory and 256 MiB.
            policy: Which guests give and get first.
        """
        reserve = 256 * MiB + total // 20 if reserve is None else reserve
        return cls(reserve=reserve, buffer=max(64 * MiB, reserve // 4), policy=policy)


@frozen
class Move:
    """One change of one guest's size, in bytes.

    Attributes:
        name: The VM's name.
        before: The size that the guest has.
        target: The size that it is to have.
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
        wanted: How many bytes the guests are to free.
        lacking: How many of them no guest can free.
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
    # What is freed now is given by the next plan. So that plan's need counts.
    donors = _choose_donors(at_rest)
    shares = _Shares.of(everyone, slack)
    need = sum(shares.limit(at_rest, [g.compute_need(2) for g in at_rest])[1])
    wanted = max(0, need - slack) - sum(map(_predict_gain, everyone))
    if free < rules.buffer // 2:
        wanted += rules.buffer - free
    wanted = max(0, wanted)
    # Below the reserve, small moves are better than none.
    dead_band = min(rules.dead_band, MiB) if free < 0 else rules.dead_band
    shrinks = _plan_shrinks(
        donors,
        wanted,
        evolve(rules, dead_band=dead_band),
        _explain_shrinks(host, rules, need),
        uncapped=host.available < rules.reserve // 2,
    )
    surplus = slack - need - rules.buffer
    if wanted or surplus <= rules.buffer or not host.is_complete:
        surplus = 0
    return FleetPlan(
        moves=(
            *shrinks,
            *_enforce_ceilings(at_rest, shrinks),
            *_plan_grows(at_rest, slack, surplus, rules, shares),
        ),
        wanted=wanted,
        lacking=max(0, wanted - sum(donor.gain for donor in donors)),
    )


def take(amount: int, guests: Iterable[Guest], rules: Rules) -> FleetPlan:
    """Plan to take an amount now, from the guests that have most to spare.

    What one guest gives is not limited to a share of its RAM: the caller wants the
    memory soon.

    Args:
        amount: Bytes.
        guests: As for :func:`make_plan`.
        rules: The policy and the dead band count. A dead band larger than the amount is
            lowered to it.
    """
    everyone = sorted(guests, key=lambda guest: guest.name)
    donors = _choose_donors([guest for guest in everyone if not guest.is_moving])
    reason = f"{format_size(amount)} were asked for"
    exact = evolve(rules, dead_band=min(rules.dead_band, max(amount, PAGE)))
    return FleetPlan(
        moves=tuple(_plan_shrinks(donors, amount, exact, reason, uncapped=True)),
        wanted=amount,
        lacking=max(0, amount - sum(donor.gain for donor in donors)),
    )


# Shrinking


def _choose_donors(guests: Iterable[Guest]) -> list[Guest]:
    return [g for g in guests if not (g.is_stalled or g.need) and g.gain >= PAGE]


def _predict_gain(guest: Guest) -> int:
    """Return the bytes that the host gains soon by the guest's present move.

    A move counts for what it delivers, not for what it still owes.
    """
    if guest.target is None:
        return 0
    given = max(0, guest.actual - guest.target)
    if guest.delivers is not None:
        given = min(given, guest.delivers)
    from_idle = min(given, guest.idle)
    return from_idle + max(0, given - from_idle - guest.untouched)


def _plan_shrinks(
    donors: Sequence[Guest], wanted: int, rules: Rules, reason: str, *, uncapped: bool
) -> list[Move]:
    """Lower the highest guests until the wanted bytes are freed."""
    measure = _MEASURES[rules.policy]
    # Among all of them, the shares would be smaller than the dead band.
    count = max(1, wanted // max(1, rules.dead_band))
    highest = sorted(donors, key=lambda g: measure(g)[0] / measure(g)[1], reverse=True)
    chosen = highest[:count] if wanted else []
    # Lowering the highest is the same as raising the lowest, with the sign changed.
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
        weight: Of all guests together, by their RAM.
        left: Bytes that are left to be given: what the host and guests can spare.
        beyond: Bytes that guests have beyond their fair shares, and cannot spare.
    """

    total: int
    weight: float
    left: int
    beyond: int = 0

    @classmethod
    def of(cls, guests: Sequence[Guest], slack: int) -> _Shares:
        # What a guest on its way gives is still to be had, and so is what is left then.
        shares = cls(
            total=slack + sum(guest.actual for guest in guests),
            weight=sum(guest.weight * guest.total for guest in guests),
            left=slack + sum(guest.gain for guest in guests),
        )
        beyond = (max(0, -shares.count_below(g) - g.gain) for g in guests)
        return evolve(shares, beyond=sum(beyond))

    def count_below(self, guest: Guest) -> int:
        """Return the bytes that a guest lacks of its fair share; below 0: has more."""
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
        # What is given away then is beyond the shares, and is not left any more.
        left = self.left - sum(firsts)
        most = max(0, (_GREED * left - self.beyond) // (_GREED + 1))
        recipients = [
            _make_recipient(guest, "available", need - first, first)
            for guest, need, first in zip(guests, needs, firsts, strict=True)
        ]
        others = fill(most, recipients) if recipients else []
        return firsts, [a + b for a, b in zip(firsts, others, strict=True)]


def _plan_grows(
    guests: Sequence[Guest], slack: int, surplus: int, rules: Rules, shares: _Shares
) -> list[Move]:
    """Give guests in need what they need, then share the surplus out."""
    grants = _share_for_needs([guest for guest in guests if guest.need], slack, shares)
    if surplus:
        # A guest in need has got its part. The next plan sees what it has then.
        others = [g for g in guests if not (g.need or g.is_stalled or g.room < PAGE)]
        for guest, share in _share_surplus(others, surplus, rules):
            if share and share >= min(rules.dead_band, guest.room):
                grants[guest.name] = share
    moves: list[Move] = []
    for guest in guests:
        if guest.name in grants:
            share = grants[guest.name]
            why = f"in need: {_describe_guest(guest)}" if guest.need else _SURPLUS
            moves.append(Move(guest.name, guest.actual, guest.actual + share, why))
    return moves


def _share_for_needs(
    needy: Sequence[Guest], slack: int, shares: _Shares
) -> dict[str, int]:
    """Share out what guests need: first up to their fair shares, then the rest."""
    firsts, needs = shares.limit(needy, [guest.need for guest in needy])
    grants = [0] * len(needy)
    for wanted in (firsts, needs):
        recipients = [
            _make_recipient(guest, "available", want - granted, granted)
            for guest, want, granted in zip(needy, wanted, grants, strict=True)
        ]
        given = fill(slack - sum(grants), recipients)
        grants = [a + b for a, b in zip(grants, given, strict=True)]
    return {g.name: share for g, share in zip(needy, grants, strict=True) if share}


def _share_surplus(
    guests: Sequence[Guest], surplus: int, rules: Rules
) -> Iterable[tuple[Guest, int]]:
    """Raise the lowest guests."""
    count = max(1, surplus // max(1, rules.dead_band))
    measure = _MEASURES[rules.policy]
    lowest = sorted(guests, key=lambda g: measure(g)[0] / measure(g)[1])[:count]
    recipients = [_make_recipient(g, rules.policy, g.room) for g in lowest]
    return zip(lowest, fill(surplus, recipients), strict=True)


def _make_recipient(
    guest: Guest, policy: PolicyName, limit: int, granted: int = 0
) -> Recipient:
    filled, weight = _MEASURES[policy](guest)
    return Recipient(filled + granted, weight, limit)


# A guest's level under each policy: bytes, and the weight to divide them by.
_MEASURES: Final[Mapping[PolicyName, Callable[[Guest], tuple[int, float]]]] = {
    "available": lambda g: (g.available - g.headroom, g.weight * g.total),
    "proportional": lambda g: (
        g.actual - g.floor,
        g.weight * max(PAGE, g.ceiling - g.floor),
    ),
    "shares": lambda g: (g.actual, g.weight),
}

# Reasons

_SURPLUS: Final = "the host has memory to spare"


def _describe_guest(guest: Guest) -> str:
    return (
        f"the guest has {format_size(guest.available)} available, and is to keep"
        f" {format_size(guest.headroom)}"
    )


def _explain_shrinks(host: Host, rules: Rules, need: int) -> str:
    if host.pressed:
        return "tasks on the host wait for memory"
    if host.available - rules.reserve < rules.buffer // 2:
        return "the host is short of memory"
    return f"other guests need {format_size(need)}"
