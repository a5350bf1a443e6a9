"""Compares fleet policies on the same simulated hosts, workloads and seeds.

Each host is overcommitted. Its guests, all of them simulated, read files into their
page caches, and now and then one of them needs a large part of its memory at once. A
policy sees what it would see on a real host, at the times at which it looks. This
project's policies see what a guest had available a second before (``--age``): guests
answer once a second, and are polled as often. Other policies see it at once. Besides
this project's policies there are those of Proxmox VE's and oVirt MoM's balloon
managers, implemented from their documentation, without their corner cases.

::

    python benchmarks/fleet_policies.py --seeds 5 --minutes 30

What is counted, averaged over the seeds:

* reserve: how far and how long the host was below 10 % of its memory, in GiB minutes;
* swaps: for how long the host had no memory left, in seconds;
* pressed: for how long guests had less than their headroom, in guest minutes;
* stalls: allocations in guests that had to wait; kills: processes killed;
* beside: those of them in a guest with less than its RAM, while the host had more than
  its hard reserve, a quarter of its reserve, and what the guests had not touched of
  their sizes;
* moved: memory that was moved in either direction, in GiB;
* relief: how long a guest that fell below its headroom stayed there, in seconds;
* reread: what guests read again from their disks because it was dropped from their page
  caches, in GiB. Only in the workload ``caches`` do they read anything again: half of
  them read a set of files in a loop.
"""

from __future__ import annotations

import argparse
from collections import deque
from random import Random
from statistics import mean
from typing import TYPE_CHECKING, Final, Protocol

from attrs import define, evolve, field, frozen

from qmpballoon.balloon.guard import Guard
from qmpballoon.fleet.guests import Guest, Host
from qmpballoon.fleet.hot_cache import CacheSample, HotCache
from qmpballoon.fleet.movement import Promise
from qmpballoon.fleet.policy import PolicyName, Rules, make_plan
from qmpballoon.fleet.usage import UsageRate
from qmpballoon.sizes import GiB, MiB
from qmpballoon.testing import (
    SECOND,
    FileReads,
    GuestConfig,
    Machine,
    MachineConfig,
    WorkloadStep,
    ramp,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TICK: Final = SECOND // 4
HOST: Final = 24 * GiB
RESERVE: Final = HOST // 10
HARD: Final = RESERVE // 4
SIZES: Final = (2, 2, 2, 3, 3, 4, 4, 4, 6, 8)  # GiB of RAM; 38 in all


@define
class Vm:
    """A simulated VM, as its host sees it."""

    name: str
    machine: Machine
    total: int
    headroom: int
    floor: int
    pressed_since: float | None = None
    kills: int = 0
    usage_rate: UsageRate = field(factory=UsageRate)
    hot_cache: HotCache = field(factory=HotCache)
    used: deque[tuple[float, int]] = field(factory=deque[tuple[float, int]])

    @property
    def seen_available(self) -> int:
        """Return the memory that it had available by its latest sample, at its size."""
        return max(0, self.actual - self.used[0][1])

    def note_available(self, seconds: float, age: float) -> None:
        """Note what it uses now; it is seen when it is so many seconds old."""
        self.used.append((seconds, self.actual - self.available))
        while len(self.used) > 1 and self.used[1][0] <= seconds - age:
            self.used.popleft()

    @property
    def actual(self) -> int:
        """Return the guest's size."""
        return self.total - self.machine.guest.memory.balloon

    @property
    def target(self) -> int:
        """Return the size that was last asked for."""
        return self.total - self.machine.guest.target

    @property
    def available(self) -> int:
        """Return the memory that the guest has available, page cache included."""
        return self.machine.guest.memory.available

    @property
    def free(self) -> int:
        """Return the memory that nothing in the guest uses."""
        return self.machine.guest.memory.free

    @property
    def untouched(self) -> int:
        """Return the memory that the guest has and has not touched yet."""
        return max(0, min(self.actual - self.machine.resident, self.free))

    def count_reread(self, seconds: int) -> int:
        """Return the bytes that it has read again within so many seconds."""
        steps = self.machine.guest.config.workload
        once = sum(
            step.delta
            for step in steps
            if step.kind == "cache" and step.at <= seconds * SECOND
        )
        return max(0, self.machine.guest.read - once)

    def ask(self, size: int) -> None:
        """Set the target, within the VM's limits."""
        self.machine.set_target(max(self.floor, min(size, self.total)))
        self.machine.settle()


class Policy(Protocol):
    """Looks at a host every tick, and moves memory."""

    def act(self, seconds: float, available: int, vms: list[Vm]) -> None:
        """Look, and move."""
        ...


class Nothing:
    """Leaves everything as it is."""

    def act(self, seconds: float, available: int, vms: list[Vm]) -> None:
        """Do nothing."""


@define
class Ours:
    """A plan every period; guests are watched while they shrink, as by ``resize``."""

    rules: Rules
    period: float
    age: float
    promises: dict[str, Promise] = field(factory=dict[str, Promise])

    def act(self, seconds: float, available: int, vms: list[Vm]) -> None:
        """Look, and move."""
        for vm in vms:
            vm.note_available(seconds, self.age)
            lacking = vm.headroom - vm.available
            if vm.target < vm.actual and lacking > 0:
                vm.ask(vm.actual + lacking)
            promise = self.promises.setdefault(vm.name, Promise())
            promise.observe(max(0, vm.actual - vm.machine.resident))
        if seconds % self.period:
            return
        for vm in vms:
            vm.usage_rate.add_sample(seconds, vm.actual - vm.seen_available)
            vm.hot_cache.observe(
                CacheSample(
                    at=seconds,
                    read=vm.machine.guest.read,
                    actual=vm.actual,
                    free=vm.free,
                    available=vm.available,
                    headroom=vm.headroom,
                    taken=vm.total - vm.actual,
                )
            )
        promised = sum(promise.count(seconds) for promise in self.promises.values())
        above = (min(vm.actual, vm.machine.resident) - vm.floor for vm in vms)
        above_floors = sum(max(0, size) for size in above)
        host = Host(HOST, available, promised, above_floors=above_floors)
        plan = make_plan(host, [make_guest(vm, self.period) for vm in vms], self.rules)
        for move in plan.moves:
            next(vm for vm in vms if vm.name == move.name).ask(move.target)
            self.promises[move.name].add(seconds, move.change)


def make_guest(vm: Vm, period: float) -> Guest:
    """Return a VM as :func:`make_plan` takes it."""
    return Guest(
        name=vm.name,
        actual=vm.actual,
        total=vm.total,
        available=vm.seen_available,
        headroom=vm.headroom,
        floor=vm.floor,
        ceiling=vm.total,
        target=None if abs(vm.target - vm.actual) < MiB else vm.target,
        free=vm.free,
        untouched=vm.untouched,
        usage_increase=vm.usage_rate.predict_increase(period),
        hot=vm.hot_cache.size,
    )


class Proxmox:
    """Every 10 s, moves towards 80 % of the host in use, at most 100 MiB a guest.

    The memory above the guests' minimums is shared equally. Guests that have little
    free memory (cache counts as used) grow first and shrink last.
    """

    PERIOD = 10
    STEP = 100 * MiB

    def act(self, seconds: float, available: int, vms: list[Vm]) -> None:
        """Look, and move."""
        if seconds % self.PERIOD:
            return
        goal = HOST * 8 // 10 - (HOST - available)
        if abs(goal) < 10 * MiB:
            return
        shared = sum(vm.actual - vm.floor for vm in vms) + goal
        each = max(0, shared) // len(vms)
        wants_more = goal > 0
        for eager in (True, False):
            for vm in vms:
                is_short = vm.free < vm.total // 4
                if (is_short == wants_more) is not eager or goal == 0:
                    continue
                desired = min(vm.floor + each, vm.total)
                change = desired - vm.actual
                if (change > 0) != wants_more and eager:
                    change = self.STEP if wants_more else -self.STEP
                change = max(-self.STEP, min(self.STEP, change))
                change = min(change, goal) if wants_more else max(change, goal)
                if (change > 0) == wants_more and change:
                    before = vm.target
                    vm.ask(vm.actual + change)
                    goal -= vm.target - before


@define
class Mom:
    """Every 15 s, shrinks all guests or grows those that are short, by at most 5 %.

    It shrinks them while the host has less than 20 % free. A guest keeps 20 % free, or
    5 % while the host has less than 5 %. What it uses, cache included, is averaged over
    five looks.
    """

    PERIOD = 15
    used: dict[str, deque[int]] = field(factory=dict[str, "deque[int]"])

    def act(self, seconds: float, available: int, vms: list[Vm]) -> None:
        """Look, and move."""
        if seconds % self.PERIOD:
            return
        for vm in vms:
            kept = self.used.setdefault(vm.name, deque(maxlen=5))
            kept.append(vm.actual - vm.free)
            used, free = mean(kept), vm.free
            if available < HOST // 5:
                spare = 0.05 if available < HOST // 20 else 0.2
                least = used + spare * vm.actual
                self._set(vm, max(vm.actual * 0.95, least, vm.floor), shrink=True)
            elif free < 0.2 * vm.actual:
                least = used + 0.2 * vm.actual
                self._set(vm, max(vm.actual * 1.05, min(least, vm.total)), shrink=False)

    @staticmethod
    def _set(vm: Vm, size: float, *, shrink: bool) -> None:
        change = size - vm.actual
        if abs(change) >= vm.actual * 0.0025 and (change < 0) == shrink:
            vm.ask(int(size))


@frozen
class Score:
    """The result of one policy on one host; see above for the figures."""

    reserve: float
    swaps: float
    pressed: float
    stalls: float
    kills: float
    beside: float
    moved: float
    relief: float
    reread: float


COLUMNS: Final = [attribute.name for attribute in Score.__attrs_attrs__]


@frozen
class Load:
    """What each guest needs now and then, besides reading files all the time.

    Each attribute is a range from which values are drawn. All but the size are in
    seconds.

    Attributes:
        size: The share of its RAM that is needed.
        rise: For how long the need grows.
        hold: For how long it stays.
        fall: For how long it shrinks.
        rest: For how long nothing is needed until the next time.
        first: For how long nothing is needed at the start.
        hot: The share of its RAM that is read in a loop by each second guest, in 2 to
            10 seconds.
    """

    size: tuple[float, float]
    rise: tuple[float, float]
    hold: tuple[float, float]
    rest: tuple[float, float]
    fall: tuple[float, float] = (0, 0)
    first: tuple[float, float] = (30, 300)
    hot: tuple[float, float] = (0, 0)

    def draw_files(self, rng: Random, total: int) -> Iterator[FileReads]:
        """Draw what a guest with ``total`` bytes of RAM reads again and again."""
        if any(self.hot):
            size = int(total * rng.uniform(*self.hot))
            yield FileReads("loop", size, int(size / rng.uniform(2, 10)))

    def draw_steps(
        self, rng: Random, total: int, seconds: int
    ) -> Iterator[WorkloadStep]:
        """Draw what a guest with ``total`` bytes of RAM does within ``seconds``."""
        time = rng.uniform(0, 60)
        while time < seconds:
            size = int(total * rng.uniform(0.05, 0.2))
            yield WorkloadStep(int(time * SECOND), size, "cache")
            time += rng.uniform(10, 60)
        time = rng.uniform(*self.first)
        while time < seconds:
            size = int(total * rng.uniform(*self.size))
            top = time + rng.uniform(*self.rise)
            ebb = top + rng.uniform(*self.hold)
            end = ebb + rng.uniform(*self.fall)
            yield from ramp(int(time * SECOND), int(top * SECOND), size, 64)
            if end > ebb:
                yield from ramp(int(ebb * SECOND), int(end * SECOND), -size, 64)
            else:
                yield WorkloadStep(int(ebb * SECOND), -size)
            time = end + rng.uniform(*self.rest)


LOADS: Final = {
    "bursts": Load(size=(0.2, 0.5), rise=(10, 60), hold=(30, 120), rest=(60, 400)),
    "tides": Load(
        size=(0.2, 0.5),
        rise=(180, 600),
        hold=(60, 300),
        fall=(60, 300),
        rest=(60, 600),
    ),
    "shortages": Load(
        size=(0.3, 0.6),
        rise=(60, 300),
        hold=(600, 1200),
        fall=(60, 300),
        rest=(30, 120),
    ),
    "spikes": Load(size=(0.05, 0.2), rise=(1, 5), hold=(5, 20), rest=(20, 200)),
    "caches": Load(
        size=(0.1, 0.3),
        rise=(10, 60),
        hold=(30, 120),
        rest=(60, 400),
        hot=(0.1, 0.3),
    ),
}


def make_vms(load: Load, seed: int, seconds: int) -> list[Vm]:
    """Make a host's VMs."""
    rng = Random(seed)  # noqa: S311 - a seed repeats it
    vms: list[Vm] = []
    for number, size in enumerate(SIZES):
        total = size * GiB
        used = int(total * rng.uniform(0.1, 0.3))
        cache = int((total - used) * rng.uniform(0.1, 0.5))
        steps = sorted(load.draw_steps(rng, total, seconds), key=lambda step: step.at)
        files = tuple(load.draw_files(rng, total)) if number % 2 else ()
        cache = max(cache, sum(each.size for each in files))
        guest = GuestConfig(used=used, cache=cache, workload=tuple(steps), files=files)
        limits = Guard().compute_limits(total)
        machine = Machine(MachineConfig(memory=total, guest=guest), rng=Random(number))  # noqa: S311
        vms.append(
            Vm(
                name=f"vm{number}",
                machine=machine,
                total=total,
                headroom=limits.headroom,
                # The same for all policies: Proxmox and MoM need a minimum that a
                # guest can work with.
                floor=total // 4,
            )
        )
    return vms


def run(policy: Policy, load: Load, seed: int, minutes: int) -> Score:
    """Let a policy manage a host, and return its score."""
    vms = make_vms(load, seed, minutes * 60)
    tick = TICK / SECOND
    below = swaps = pressed = moved = 0.0
    kills = beside = 0
    reliefs: list[float] = []
    sizes = {vm.name: vm.actual for vm in vms}
    stalls = {vm.name: vm.machine.guest.alloc_stalls for vm in vms}
    for step in range(1, minutes * 60 * SECOND // TICK + 1):
        seconds = step * tick
        for vm in vms:
            vm.machine.advance(step * TICK)
        available = HOST - sum(vm.machine.resident for vm in vms)
        untouched = sum(max(0, vm.actual - vm.machine.resident) for vm in vms)
        for vm in vms:
            killed = vm.machine.guest.oom_kills - vm.kills
            vm.kills += killed
            kills += killed
            if vm.actual < vm.total and available - untouched > HARD:
                beside += killed
        below += max(0, RESERVE - available) * tick
        swaps += tick * (available < 0)
        for vm in vms:
            moved += abs(vm.actual - sizes[vm.name])
            sizes[vm.name] = vm.actual
            is_pressed = vm.available < vm.headroom
            pressed += tick * is_pressed
            if is_pressed and vm.pressed_since is None:
                vm.pressed_since = seconds
            elif not is_pressed and vm.pressed_since is not None:
                reliefs.append(seconds - vm.pressed_since)
                vm.pressed_since = None
        policy.act(seconds, available, vms)
    reliefs += [
        minutes * 60 - vm.pressed_since for vm in vms if vm.pressed_since is not None
    ]
    return Score(
        reserve=below / GiB / 60,
        swaps=swaps,
        pressed=pressed / 60,
        stalls=sum(vm.machine.guest.alloc_stalls - stalls[vm.name] for vm in vms),
        kills=kills,
        beside=beside,
        moved=moved / GiB,
        relief=mean(reliefs) if reliefs else 0.0,
        reread=sum(vm.count_reread(minutes * 60) for vm in vms) / GiB,
    )


def make_ours(policy: PolicyName) -> Callable[[float, float], Policy]:
    """Return a function that makes one of this project's policies."""
    rules = evolve(Rules.for_host(HOST, RESERVE), policy=policy)
    return lambda period, age: Ours(rules, period, age)


# Functions of the seconds between two plans, and of those that samples are old. Only
# this project's policies use them.
POLICIES: Final[dict[str, Callable[[float, float], Policy]]] = {
    "none": lambda _, __: Nothing(),
    "available": make_ours("available"),
    "proportional": make_ours("proportional"),
    "shares": make_ours("shares"),
    "Proxmox's": lambda _, __: Proxmox(),
    "MoM's": lambda _, __: Mom(),
}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workload", choices=[*LOADS], action="append")
    parser.add_argument("--policy", choices=[*POLICIES], action="append")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--minutes", type=int, default=30)
    parser.add_argument(
        "--period", type=float, default=1.0, help="seconds between two plans of ours"
    )
    parser.add_argument(
        "--age", type=float, default=1.0, help="seconds by which our samples are old"
    )
    arguments = parser.parse_args()
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
    for workload in arguments.workload or LOADS:
        print(f"{workload:<14}" + "".join(f"{name:>10}" for name in COLUMNS))
        for name in arguments.policy or POLICIES:
            scores = [
                run(
                    POLICIES[name](arguments.period, arguments.age),
                    LOADS[workload],
                    seed,
                    arguments.minutes,
                )
                for seed in seeds
            ]
            means = [mean(getattr(score, name) for score in scores) for name in COLUMNS]
            figures = "".join(f"{value:>10.1f}" for value in means)
            print(f"{name:<14}{figures}", flush=True)
        print()


if __name__ == "__main__":
    main()
