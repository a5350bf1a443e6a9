"""What the calls of a balloon return, and the words they use.

This module has values only, and imports no other part of the balloon. So the exceptions
can carry these results without a circular import.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final, Literal

from attrs import asdict, field, frozen

from qmpballoon.sizes import format_size

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "OVERRIDDEN",
    "AlarmKind",
    "BalloonInfo",
    "Binding",
    "Diagnosis",
    "DiskReads",
    "Ending",
    "EndingKind",
    "OnStall",
    "Outcome",
    "Phase",
    "Plan",
    "ReadRates",
    "ReclaimOutcome",
    "ResizeResult",
    "Stage",
    "StallKind",
    "VmInfo",
    "describe_holder",
]

Phase = Literal["waiting", "moving", "slowing", "stalled", "reached"]
"""The state of a balloon on its way to a target: it has not moved yet; it moves; it
moves at less than a quarter of its best rate; it is below the stall limits; it is at
the target."""

Stage = Literal["inflating", "keeping", "deflating"]
"""What a call does with a balloon: it takes memory from the guest; it keeps what was
taken; it gives memory to the guest."""

OnStall = Literal["raise", "settle", "rollback"]
"""What ``resize`` does when the balloon does not reach its target."""

Outcome = Literal["reached", "stalled", "settled", "rolled-back", "timed-out"]
"""How a resize ended."""

StallKind = Literal[
    "no-driver",
    "paused",
    "guest-at-floor",
    "slow",
    "reset",
    "hot-plug",
    "inhibited",
    "overridden",
]
"""Why a balloon did not reach its target."""

ReclaimOutcome = Literal["done", "stopped", "refused"]
"""How a reclaim ended: it took what was planned; it stopped early because the guest
was in trouble; it took nothing, as the guest had nothing to spare."""

Binding = Literal["headroom", "floor", "amount"]
"""Which limit keeps a plan from taking more."""

EndingKind = Literal[
    "reached", "stalled", "timed-out", "spent", "trouble", "given-back"
]
"""How one movement of the balloon ended: at its target; stalled; out of time; with a
guest that has no more to spare; with a guest in trouble; with the memory given back
after it was kept for a while. Timelines use the same words as marks."""

AlarmKind = Literal[
    "silence", "oom-kill", "unreported", "headroom", "pressure", "reads"
]
"""What is wrong with a guest: it does not answer; its OOM killer killed a process; it
no longer reports what it has available; it has less than half of its headroom; it is
under memory pressure; it reads again what was taken from it."""

OVERRIDDEN: Final = (
    "another client sets targets, too; turn its ballooning off for this VM"
)
"""What messages say of a balloon that moves away from the target we set."""


@frozen
class BalloonInfo:
    """The size of a guest.

    Attributes:
        actual: Bytes the guest has: its RAM less what is in the balloon.
        total: Bytes of RAM of the VM, plugged DIMMs included; ``None`` if QEMU is
            too old to tell.
        target: The last target in bytes that *this object* set; ``None`` if it set
            none. QEMU has no command that returns the target.
        extra: Other members of QEMU's answer; Proxmox VE's QEMU adds some.
        capacity: Bytes of memory that the guest can have: its RAM, and memory that the
            balloon cannot take, such as that of a virtio-mem device; ``None`` if QEMU
            is too old to tell.
    """

    actual: int
    total: int | None = None
    target: int | None = None
    extra: Mapping[str, object] = field(factory=dict[str, object], hash=False)
    capacity: int | None = None

    @property
    def ballooned(self) -> int | None:
        """Bytes in the balloon; ``None`` if ``total`` is not known."""
        return None if self.total is None else self.total - self.actual


@frozen
class DiskReads:
    """What a VM has read from its disks since its QEMU was started.

    Only disks with a medium count. Files that the guest reads by virtiofs or a network
    file system do not come from a disk of QEMU.

    Attributes:
        bytes: Bytes read, by all disks together.
        operations: Requests that read them.
    """

    bytes: int
    operations: int


@frozen
class ReadRates:
    """How fast a VM reads from its disks around a reclaim, in bytes a second.

    Each is ``None`` if there was no time to measure it.

    Attributes:
        before: At the beginning, while only free memory is taken.
        during: While the guest's page cache is taken, too.
        after: From then on, until the reclaim returned.
    """

    before: float | None
    during: float | None
    after: float | None


@frozen
class VmInfo:
    """Which VM it is, and whether it runs.

    Attributes:
        name: The name that QEMU was started with; ``None`` if it has none.
        status: The run state, such as ``"running"`` or ``"paused"``; ``RunState`` in
            the QAPI reference.
        qemu_version: QEMU's version, such as ``"10.0.2"``; ``None`` if it is not known.
    """

    name: str | None
    status: str
    qemu_version: str | None


@frozen
class Diagnosis:
    """Why a balloon stalled.

    Attributes:
        kind: The reason, for programs.
        detail: The reason and what to do about it, for people.
    """

    kind: StallKind
    detail: str

    def to_json(self) -> dict[str, object]:
        """Return it as the command prints it."""
        return asdict(self)


@frozen
class ResizeResult:
    """How a resize ended.

    Attributes:
        outcome: How it ended.
        requested: Bytes that were asked for.
        before: Bytes the guest had at the beginning.
        actual: Bytes it has.
        target: Bytes of the target that is set in QEMU now.
        seconds: Seconds it took.
        diagnosis: Why the target was not reached, or why the host did not get the
            memory although it was reached; otherwise ``None``.
    """

    outcome: Outcome
    requested: int
    before: int
    actual: int
    target: int
    seconds: float
    diagnosis: Diagnosis | None = None

    def to_json(self) -> dict[str, object]:
        """Return it as the command prints it: bytes and seconds."""
        return asdict(self)


@frozen
class Ending:
    """How one movement of the balloon ended.

    Attributes:
        kind: In a word.
        reason: What kept the guest from going on, in a few words; empty if nothing
            did.
        alarm: What was wrong with the guest at the end; ``None`` if nothing was.
    """

    kind: EndingKind
    reason: str = ""
    alarm: AlarmKind | None = None


@frozen
class Plan:
    """What a reclaim would take; all sizes are bytes.

    Attributes:
        actual: What the guest has.
        target: What it would be left with.
        amount: What would be taken.
        from_free: The part of ``amount`` that is free memory now.
        from_cache: The part of ``amount`` that is page cache now.
        available: What the guest reports as available.
        headroom: The part of ``available`` that it keeps.
        floor: The size below which it is never taken.
        binding: Which limit keeps the plan from taking more.
        seconds: An estimate of the time for taking the memory and giving it back.
        owed: The size that an interrupted run owes the guest, if it has less. A reclaim
            first gives it that size, and then plans anew.
        holder: The id of another process that holds memory of the guest. While it
            does, a reclaim is refused.
    """

    actual: int
    target: int
    amount: int
    from_free: int
    from_cache: int
    available: int
    headroom: int
    floor: int
    binding: Binding
    seconds: float
    owed: int | None = None
    holder: int | None = None

    def describe(self) -> str:
        """Return the plan as a sentence, then what a reclaim does instead, if so."""
        instead = ""
        if self.holder is not None:
            instead = (
                ". A reclaim is refused now, because memory of the guest is"
                f" {describe_holder(self.holder)}"
            )
        elif self.owed is not None:
            instead = (
                f". A reclaim first gives it {format_size(self.owed)}, which a run that"
                " was interrupted owes it, and then plans anew"
            )
        return f"{self._describe_taking()}{instead}"

    def _describe_taking(self) -> str:
        keeps = f"the guest has {format_size(self.available)} available"
        if self.amount == 0:
            why = {
                "headroom": f"{keeps}, and is to keep {format_size(self.headroom)}",
                "floor": f"its {format_size(self.actual)} are not above the floor of"
                f" {format_size(self.floor)}",
                "amount": "less than a page was asked for",
            }[self.binding]
            return f"nothing to take: {why}"
        binding = {
            "headroom": f"a headroom of {format_size(self.headroom)} stays",
            "floor": f"the floor of {format_size(self.floor)} is reached",
            "amount": "no more was asked for",
        }[self.binding]
        return (
            f"{format_size(self.amount)} can be taken, {format_size(self.from_free)}"
            f" of it free memory and {format_size(self.from_cache)} page cache:"
            f" {keeps}, and {binding}. The guest goes from"
            f" {format_size(self.actual)} to {format_size(self.target)}, in about"
            f" {self.seconds:.0f} s"
        )


def describe_holder(pid: int) -> str:
    """Say by which process memory of a guest is held, and what to do about it."""
    if pid == os.getpid():
        return (
            "held by a call of this process on another balloon of this VM, and given"
            " back when that ends: wait for it, or cancel it"
        )
    return (
        f"held by process {pid}, which gives it back when it ends: wait for that, or"
        f" stop it (kill {pid})"
    )
