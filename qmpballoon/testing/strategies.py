"""Hypothesis strategies for VMs, guests, workloads and faults.

They shrink towards a quiet world: a small guest, no workload, no faults.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

from qmpballoon.sizes import GiB, MiB
from qmpballoon.testing.faults import FaultPlan
from qmpballoon.testing.model.config import (
    SECOND,
    FileReads,
    GuestConfig,
    MachineConfig,
    WorkloadStep,
)
from qmpballoon.testing.model.machine import Machine
from qmpballoon.testing.model.memory import PAGE
from qmpballoon.testing.model.profiles import PROFILES, Profile, profile

if TYPE_CHECKING:
    import random

    from hypothesis.strategies import SearchStrategy

__all__ = [
    "fault_plans",
    "file_reads",
    "fleets",
    "guest_stats",
    "guests",
    "hostile_machines",
    "machines",
    "profiles",
    "register_profile",
    "shares",
    "sizes",
    "workloads",
]

_UNSET = (1 << 64) - 1
"""How QEMU shows a statistic that the guest did not tell."""

_MEMORY = ("available-memory", "free-memory", "disk-caches")
"""The statistics that decide what a guest can spare, and what it needs."""


def sizes(smallest: int = 0, largest: int = 64 * GiB) -> SearchStrategy[int]:
    """Sizes in bytes, most of them whole mebibytes.

    Args:
        smallest: Least size, in bytes.
        largest: Largest size, in bytes.
    """
    mebibytes = st.integers(-(-smallest // MiB), largest // MiB)
    return mebibytes.map(lambda n: n * MiB) | st.integers(smallest, largest)


def register_profile(name: str = "qmpballoon") -> settings:
    """Register a profile of hypothesis' settings for tests in simulated worlds.

    It has no deadline, as a world takes as long as its guest needs; and it leaves out
    the phase that explains a failure, because hypothesis then traces every line that
    the world runs, which takes minutes.

    The pytest plugin calls this for ``pytest --hypothesis-profile=qmpballoon``. In a
    ``conftest.py``, call it before ``settings.load_profile("qmpballoon")``.

    Args:
        name: The name to register it by.

    Returns:
        The profile. Pass it to ``settings`` to change something for one test, as in
        ``@settings(register_profile(), max_examples=25)``.
    """
    profile = settings(
        deadline=None,
        phases=set(Phase) - {Phase.explain},
        suppress_health_check=[HealthCheck.too_slow],
    )
    settings.register_profile(name, profile)
    return profile


def shares(whole: int) -> SearchStrategy[int]:
    """Sizes in bytes as shares of a whole, from a 16th to all of it.

    Use it for what is wished for, with the RAM of all guests as the whole. Sizes drawn
    from a range of bytes are mostly small, or more than any guest can give; shares
    reach the cases in which several guests have to give.

    Args:
        whole: All of it, in bytes.
    """
    return st.integers(1, 16).map(lambda part: whole * part // 16)


def fleets(
    memory: int = 2 * GiB, *, smallest: int = 1, largest: int = 4
) -> SearchStrategy[list[MachineConfig]]:
    """VMs of one host, most of which can give something.

    Of each guest's RAM, up to a half is in use and some is page cache. One in four has
    no driver, or does not answer.

    Args:
        memory: RAM of each, in bytes.
        smallest: The least number of VMs.
        largest: The largest number of VMs.
    """
    willing = st.builds(
        GuestConfig, used=sizes(0, memory // 2), cache=sizes(0, memory // 2)
    )
    odd = st.sampled_from([GuestConfig(driver=False), GuestConfig(stats_delay=None)])
    guest = st.one_of(willing, willing, willing, odd)
    config = st.builds(MachineConfig, memory=st.just(memory), guest=guest)
    return st.lists(config, min_size=smallest, max_size=largest)


def profiles() -> SearchStrategy[Profile]:
    """Profiles of QEMU versions; they shrink towards the newest."""
    return st.sampled_from(PROFILES[::-1]).map(profile)


def guest_stats(version: Profile | None = None) -> SearchStrategy[dict[str, int]]:
    """What ``guest-stats`` may hold: any statistic unset, any numbers.

    Args:
        version: The version whose statistics they are; by default the newest.
    """
    names = (version or profile(PROFILES[-1])).stat_names
    value = st.just(_UNSET) | st.integers(0, _UNSET)
    return st.fixed_dictionaries({f"stat-{name}": value for name in names})


def workloads(
    largest: int = GiB, until: int = 60 * SECOND
) -> SearchStrategy[tuple[WorkloadStep, ...]]:
    """What a guest's processes do, in order of time.

    Args:
        largest: Most bytes that one step allocates or frees.
        until: Latest time of a step, in nanoseconds of the guest's clock.
    """
    step = st.builds(
        WorkloadStep,
        at=st.integers(0, until),
        delta=st.integers(-largest, largest),
        kind=st.sampled_from(["anonymous", "cache"]),
    )
    steps = st.lists(step, max_size=8)
    return steps.map(lambda found: tuple(sorted(found, key=lambda each: each.at)))


def file_reads(
    largest: int = GiB, until: int = 60 * SECOND
) -> SearchStrategy[tuple[FileReads, ...]]:
    """Files that a guest's processes read, for a ``GuestConfig``'s ``files``.

    Args:
        largest: Most bytes of the files of one kind.
        until: Latest time at which files begin to be read, in nanoseconds of the
            guest's clock.
    """
    files = st.builds(
        FileReads,
        kind=st.sampled_from(["loop", "zipf", "stream"]),
        size=sizes(PAGE, largest),
        rate=sizes(PAGE, GiB),
        begin=st.just(0) | st.integers(0, until),
        end=st.none() | st.integers(0, until),
    )
    return st.lists(files, max_size=3).map(tuple)


def _claims() -> SearchStrategy[dict[str, int | None]]:
    names = st.sampled_from(profile(PROFILES[-1]).stat_names)
    return st.dictionaries(names, st.none() | st.integers(0, _UNSET), max_size=3)


def guests(memory: int = 4 * GiB) -> SearchStrategy[GuestConfig]:
    """Guests with a balloon driver.

    Args:
        memory: RAM of the VM that they are to fit in, in bytes.
    """
    return st.builds(
        GuestConfig,
        used=sizes(0, memory // 4),
        cache=sizes(0, memory),
        swap=st.just(0) | sizes(0, memory),
        refaults=st.just(0) | st.integers(1, 99),
        stats_delay=st.none() | st.integers(0, SECOND),
        silent_after=st.none() | st.integers(0, 60 * SECOND),
        frozen_after=st.none() | st.integers(0, 60 * SECOND),
        claims=_claims(),
        extended_stats=st.booleans(),
        workload=workloads(memory // 2),
    )


@st.composite
def machines(draw: st.DrawFn) -> Machine:
    """Whole machines of any version, just started."""
    memory = draw(st.integers(64, 16 * 1024)) * MiB
    config = draw(
        st.builds(
            MachineConfig,
            memory=st.just(memory),
            slots=st.just(2),
            max_memory=st.just(memory + 16 * GiB),
            deflate_on_oom=st.booleans(),
            free_page_reporting=st.booleans(),
            guest=guests(memory),
        )
    )
    rng: random.Random = draw(st.randoms(use_true_random=False))
    return Machine(config, draw(profiles()), rng)


def _nonsense() -> SearchStrategy[dict[str, object]]:
    """Statistics that no guest can mean, as a QEMU that is broken or hostile shows."""
    odd: list[object] = [10**400, -(10**400), 1 << 64, -7, 1.5, True, "7", [], None]
    value: SearchStrategy[object] = st.sampled_from(odd) | st.integers()
    names = st.sampled_from(_MEMORY) | st.sampled_from(profile(PROFILES[-1]).stat_names)
    return st.dictionaries(names, value, min_size=1, max_size=3)


def _lies(memory: int) -> SearchStrategy[dict[str, int | None]]:
    """What a guest says that is always in need, or always has plenty."""
    likely = [0, memory // 2, memory - 1, memory, memory + 1, 2 * memory]
    size: SearchStrategy[int | None] = st.sampled_from(likely)
    in_need: dict[str, int | None] = dict.fromkeys(_MEMORY, 0)
    each: dict[str, SearchStrategy[int | None]] = dict.fromkeys(_MEMORY, size)
    return st.just(in_need) | st.fixed_dictionaries(each)


def hostile_machines(memory: int = 4 * GiB) -> SearchStrategy[MachineConfig]:
    """VMs whose guests and QEMUs lie, dawdle, fall silent and take memory back.

    Args:
        memory: Their RAM, in bytes.
    """
    no_claims: dict[str, int | None] = {}
    no_nonsense: dict[str, object] = {}
    rate = st.sampled_from([1 << 18, 3 << 19, 1 << 21, 1 << 30])
    guest = st.builds(
        GuestConfig,
        used=sizes(0, memory // 2),
        cache=sizes(0, memory // 2),
        inflate_rate=rate,
        reclaim_rate=rate,
        deflate_rate=rate,
        stats_delay=st.sampled_from([SECOND // 1000, SECOND, 4 * SECOND, None]),
        silent_after=st.none() | st.integers(0, 60 * SECOND),
        frozen_after=st.none() | st.integers(0, 60 * SECOND),
        claims=st.just(no_claims) | _lies(memory) | _claims(),
        workload=st.just(()) | workloads(memory // 2),
        files=st.just(()) | file_reads(memory),
    )
    return st.builds(
        MachineConfig,
        memory=st.just(memory),
        disks=st.sampled_from([0, 1]),
        slots=st.just(1),
        max_memory=st.just(memory + GiB),
        deflate_on_oom=st.booleans(),
        reply_delay=st.sampled_from([0, 0, SECOND // 10, SECOND]),
        shows=st.just(no_nonsense) | _nonsense(),
        guest=guest,
    )


def fault_plans(until: int = 60 * SECOND) -> SearchStrategy[FaultPlan]:
    """Any combination of faults; most have few.

    Args:
        until: Latest time of a fault, in nanoseconds.
    """
    moment = st.none() | st.integers(0, until)
    pause = st.just(0) | st.integers(0, SECOND)
    return st.builds(
        FaultPlan,
        chunk=st.none() | st.integers(1, 64),
        cut_after=st.none() | st.integers(0, 10_000),
        reply_delay=pause,
        event_delay=pause,
        event_copies=st.integers(1, 3),
        freeze_at=moment,
        freeze_for=st.integers(0, until),
        kill_at=moment,
        stall_at=moment,
        stall_for=st.integers(0, until),
        reset_at=moment,
        plug_at=moment,
    )
