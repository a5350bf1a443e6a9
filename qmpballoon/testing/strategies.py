"""Hypothesis strategies for guests, workloads, faults and what clients say.

All of them shrink towards a quiet world: a small guest, no workload, no faults, short
and well-formed requests.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st

from qmpballoon.sizes import GiB, MiB
from qmpballoon.testing.faults import FaultPlan
from qmpballoon.testing.model.config import (
    SECOND,
    GuestConfig,
    MachineConfig,
    WorkloadStep,
)
from qmpballoon.testing.model.machine import Machine
from qmpballoon.testing.model.profiles import PROFILES, Profile, profile

if TYPE_CHECKING:
    import random

    from hypothesis.strategies import SearchStrategy

__all__ = [
    "fault_plans",
    "guest_stats",
    "guests",
    "ids",
    "machines",
    "malformed",
    "profiles",
    "request_scripts",
    "requests",
    "sizes",
    "workloads",
]

_UNSET = (1 << 64) - 1
_HOUR = 3600 * SECOND
_BALLOON = "/machine/peripheral/balloon0"


def sizes(smallest: int = 0, largest: int = 64 * GiB) -> SearchStrategy[int]:
    """Sizes in bytes, whole mebibytes more often than not."""
    mebibytes = st.integers(-(-smallest // MiB), largest // MiB)
    return mebibytes.map(lambda n: n * MiB) | st.integers(smallest, largest)


def profiles() -> SearchStrategy[Profile]:
    """QEMU versions, newest first."""
    return st.sampled_from(PROFILES[::-1]).map(profile)


def guest_stats(version: Profile | None = None) -> SearchStrategy[dict[str, int]]:
    """What ``guest-stats`` may hold: any names unset, any numbers.

    Args:
        version: Whose names; by default the newest version's.
    """
    names = (version or profile(PROFILES[-1])).stat_names
    value = st.just(_UNSET) | st.integers(0, _UNSET)
    return st.fixed_dictionaries({f"stat-{name}": value for name in names})


def workloads(
    largest: int = GiB, until: int = 60 * SECOND
) -> SearchStrategy[tuple[WorkloadStep, ...]]:
    """What a guest's processes do, in order.

    Args:
        largest: Bytes that one step may move.
        until: The last step's time at the latest, in nanoseconds.
    """
    step = st.builds(
        WorkloadStep,
        at=st.integers(0, until),
        delta=st.integers(-largest, largest),
        kind=st.sampled_from(["anonymous", "cache"]),
    )
    steps = st.lists(step, max_size=8)
    return steps.map(lambda found: tuple(sorted(found, key=lambda each: each.at)))


def _claims() -> SearchStrategy[dict[str, int | None]]:
    names = st.sampled_from(profile(PROFILES[-1]).stat_names)
    return st.dictionaries(names, st.none() | st.integers(0, _UNSET), max_size=3)


def guests(memory: int = 4 * GiB) -> SearchStrategy[GuestConfig]:
    """Guests with a driver, that fit in a VM of so many bytes."""
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
    """Whole machines, of any version, at their time 0."""
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


def fault_plans(until: int = 60 * SECOND) -> SearchStrategy[FaultPlan]:
    """Anything going wrong by a time, in nanoseconds; most often little does."""
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


# What clients say


def ids() -> SearchStrategy[Any]:
    """Ids of every JSON type."""
    text = st.text(st.characters(codec="utf-8", max_codepoint=0xFDCF), max_size=8)
    numbers = st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False)
    leaves = st.none() | st.booleans() | numbers | text
    return st.recursive(
        leaves,
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3)
        ),
        max_leaves=5,
    )


def _arguments() -> SearchStrategy[tuple[str, dict[str, Any]]]:
    path = st.sampled_from(["balloon0", _BALLOON, "/machine", "/nope", ""])
    interval = "guest-stats-polling-interval"
    name = st.sampled_from([interval, "guest-stats", "type", "nope"])
    value = st.integers(-1, 4 * GiB) | ids()
    return st.one_of(
        st.sampled_from(
            ["query-status", "query-balloon", "query-name", "stop", "system_reset"]
        ).map(lambda command: (command, {})),
        st.tuples(st.just("balloon"), st.fixed_dictionaries({"value": value})),
        st.tuples(st.just("qom-list"), st.fixed_dictionaries({"path": path})),
        st.tuples(
            st.just("qom-get"), st.fixed_dictionaries({"path": path, "property": name})
        ),
        st.tuples(
            st.just("qom-set"),
            st.fixed_dictionaries({"path": path, "property": name, "value": value}),
        ),
        st.tuples(
            st.sampled_from(["nope", "balloon", "query-balloon"]),
            st.dictionaries(st.sampled_from(["value", "x", "y", "z"]), value),
        ),
        _plugging(),
        _lines(),
    )


def _plugging() -> SearchStrategy[tuple[str, dict[str, Any]]]:
    name = st.sampled_from(["m1", "m2", "d1", "balloon0", "3", ""])
    size = st.sampled_from([MiB, 2 * MiB, 128 * MiB, 4096, 0]) | ids()
    # Whether there is more to be had is the host's business, and of the largest sizes
    # QEMU dies.
    size = size.filter(
        lambda value: not isinstance(value, int) or not GiB < value % (1 << 64)
    )
    backend = {"qom-type": st.just("memory-backend-ram"), "id": name, "size": size}
    flag = st.booleans() | ids()
    dimm = {
        "id": name | ids(),
        "memdev": name | ids(),
        "slot": st.integers(-2, 3) | ids(),
        "addr": sizes() | ids(),
        "node": st.integers(0, 1) | ids(),
        "x": ids(),
    }
    return st.one_of(
        st.tuples(
            st.just("object-add"),
            st.fixed_dictionaries(backend, optional={"share": flag, "x": flag}),
        ),
        st.tuples(
            st.just("device_add"),
            st.fixed_dictionaries({"driver": st.just("pc-dimm")}, optional=dimm),
        ),
        st.tuples(
            st.sampled_from(["object-del", "device_del"]),
            st.fixed_dictionaries({"id": name}),
        ),
    )


def _lines() -> SearchStrategy[tuple[str, dict[str, Any]]]:
    """Lines for the human monitor: sums, and what looks like one."""
    words = "1 300 0x10 08 2M + - ~ * / % & | ^ ( ) 'a' ' x 9223372036854775807"
    word = st.sampled_from([*words.split(), " "])
    line = st.lists(word, max_size=6).map(lambda words: f"balloon {''.join(words)}")
    return line.map(lambda each: ("human-monitor-command", {"command-line": each}))


def requests() -> SearchStrategy[dict[str, Any]]:
    """Well-formed requests, sensible and not."""

    def build(what: tuple[str, dict[str, Any]], extra: dict[str, Any]) -> Any:  # noqa: ANN401
        return {"execute": what[0], "arguments": what[1], **extra}

    extra = st.fixed_dictionaries({}, optional={"id": ids()})
    return st.builds(build, _arguments(), extra)


def malformed() -> SearchStrategy[bytes]:
    """Bytes that are not a request, followed by what gets QEMU back in step."""
    pieces = st.sampled_from(
        [*(bytes([char]) for char in b"{}[]:,\"'\\0159-.eE %\x00\xff"), b"true", b"x"]
    )
    garbage = st.lists(pieces, max_size=12).map(b"".join) | st.binary(max_size=24)
    # A line end ends strings and words, the control character everything else.
    return garbage.map(lambda data: data + b"\n\x01\n")


def request_scripts(length: int = 20) -> SearchStrategy[list[bytes]]:
    """What a client sends, chunk by chunk: mostly requests, some of them garbage.

    Args:
        length: Chunks at most.
    """
    encoded = requests().map(lambda request: json.dumps(request).encode())
    return st.lists(encoded | encoded | malformed(), max_size=length)
