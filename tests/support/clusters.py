"""Simulated hosts on a bus in memory: the agents are real, their guests are figures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import trio
from attrs import define, evolve, field

from qmpballoon.cluster.agent import Agent, LocalView
from qmpballoon.cluster.documents import VmSummary
from qmpballoon.cluster.room import SMALLEST_GIFT
from qmpballoon.fleet.guests import Guest, Host
from qmpballoon.fleet.policy import Rules, take
from qmpballoon.fleet.vm_spec import Bounds
from qmpballoon.sizes import GiB, MiB

if TYPE_CHECKING:
    from collections.abc import Callable

    from qmpballoon.cluster.documents import Quota
    from qmpballoon.cluster.memory import MemoryServer
    from qmpballoon.fleet.vm_spec import Limit

__all__ = [
    "EPOCH",
    "MemoryStore",
    "SimulatedHost",
    "make_agent",
    "make_guest",
    "now",
    "run_at_once",
]

EPOCH = 1_750_000_000.0  # what the time is when trio's clock shows 0


def now() -> float:
    """Return the seconds since 1970 in the simulated world."""
    return EPOCH + trio.current_time()


async def run_at_once(call: Callable[..., Any], *args: object) -> Any:  # noqa: ANN401 - what it returns
    """Run what waits for no real disk."""
    await trio.lowlevel.checkpoint()
    return call(*args)


def make_guest(
    name: str,
    total: int = 4 * GiB,
    **figures: Any,  # noqa: ANN401 - a guest's
) -> Guest:
    """Return a guest that has all its RAM, and half of that available."""
    return evolve(
        Guest(
            name=name,
            actual=total,
            total=total,
            available=total // 2,
            headroom=128 * MiB,
            floor=total // 8,
            ceiling=total,
            free=total // 8,
        ),
        **figures,
    )


@define
class MemoryStore:
    """What a host keeps, in memory; a ``Store`` that can fail.

    Attributes:
        files: What is kept.
        is_full: Whether nothing can be written.
        written: How often something was written.
    """

    files: dict[str, bytes] = field(factory=dict[str, bytes])
    is_full: bool = False
    written: int = 0

    def toggle(self) -> None:
        self.is_full = not self.is_full

    def read(self, name: str) -> bytes | None:
        return self.files.get(name)

    def write(self, name: str, data: bytes) -> None:
        if self.is_full:
            raise OSError(28, "No space left on device")
        self.written += 1
        self.files[name] = data


@define(slots=False)  # so that tests can have one of its methods fail
class SimulatedHost:
    """A host whose guests are figures, and give what they are asked for in time.

    Attributes:
        guests: The guests, by name.
        total: Bytes of its memory.
        pace: Bytes that a guest gives in a second.
        rules: What it keeps now.
        is_kept_back: Whether it shares nothing out.
        takings: The jobs that were begun, with what was taken for each.
        most: The most that was ever taken for a job.
        returned: Bytes that guests got back.
        limit: Changes the limits of VMs.
    """

    guests: dict[str, Guest]
    total: int = 64 * GiB
    pace: int = 512 * MiB
    rules: Rules = field(factory=lambda: Rules.for_host(64 * GiB))
    is_kept_back: bool = False
    takings: list[tuple[str, int]] = field(factory=list[tuple[str, int]])
    returned: int = 0
    floors: dict[str, int] = field(factory=dict[str, int])
    limit: Limit = lambda _, __, own: own

    @property
    def held(self) -> int:
        return sum(guest.actual for guest in self.guests.values())

    def look(self) -> LocalView:
        vms = [
            VmSummary(
                name=guest.name,
                state="healthy",
                actual=guest.actual,
                total=guest.total,
                available=guest.available,
                resident=guest.actual,
            )
            for guest in self.guests.values()
        ]
        host = Host(total=self.total, available=self.total - self.held)
        return LocalView(host, list(self.guests.values()), vms, self.held)

    def follow(self, rules: Rules, limit: Limit) -> None:
        self.rules, self.limit = rules, limit
        for name, guest in self.guests.items():
            own = self.floors.setdefault(name, guest.floor)
            bounds = Bounds(own, guest.ceiling, guest.headroom)
            floor = limit(name, guest.total, bounds).floor
            self.guests[name] = evolve(guest, floor=floor)

    def keep_back(self, *, is_kept: bool) -> None:
        self.is_kept_back = is_kept

    async def take(
        self, quota: Quota, rules: Rules, on_progress: Callable[[int], None]
    ) -> int:
        number = len(self.takings)
        self.takings.append((quota.job, 0))
        exact = evolve(rules, dead_band=SMALLEST_GIFT)
        given: dict[str, int] = {}
        try:
            while (left := quota.amount - sum(given.values())) > 0:
                plan = take(
                    min(left, self.pace * len(self.guests)),
                    self.guests.values(),
                    exact,
                    takes_hot=quota.takes_hot,
                )
                if not plan.moves:
                    break
                for move in plan.moves:
                    given[move.name] = given.get(move.name, 0) - move.change
                    self.shrink(move.name, -move.change)
                on_progress(sum(given.values()))
                self.takings[number] = (quota.job, sum(given.values()))
                await trio.sleep(1)
            taken, kept = sum(given.values()), quota.hold
        except trio.Cancelled:
            kept = False
            raise
        finally:
            if not kept:
                for name, size in given.items():
                    self.shrink(name, -size)
                    self.returned += size
        return taken

    def shrink(self, name: str, size: int) -> None:
        """Have a guest give some of what it has available; or get it, if below 0."""
        guest = self.guests[name]
        self.guests[name] = evolve(
            guest,
            actual=guest.actual - size,
            available=guest.available - size,
            free=max(0, guest.free - size),
        )


def make_agent(
    server: MemoryServer,
    name: str,
    host: SimulatedHost,
    store: MemoryStore,
    **options: Any,  # noqa: ANN401 - an agent's
) -> Agent:
    """Return the agent of a simulated host."""
    return Agent(
        name=name,
        bus=server.connect(name),
        host=host,
        rules=Rules.for_host(host.total),
        store=store,  # type: ignore[arg-type]
        clock=now,
        run_blocking=run_at_once,
        **options,
    )
