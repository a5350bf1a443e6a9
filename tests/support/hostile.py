"""VMs that are not to be believed, and other peers, as strategies draw them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio
import trio.testing
from attrs import define
from hypothesis import strategies as st

from qmpballoon.sizes import GiB
from qmpballoon.testing import NO_FAULTS, SECOND
from qmpballoon.testing.strategies import fault_plans, hostile_machines

if TYPE_CHECKING:
    from qmpballoon.testing import FaultPlan, MachineConfig

DURATION: Final = 24  # seconds in which faults come


@define
class Hostile:
    """A VM that is not to be believed."""

    config: MachineConfig
    faults: FaultPlan
    begins_at: int
    is_seen: bool


hostile_vms = st.builds(
    Hostile,
    config=hostile_machines(4 * GiB),
    faults=st.just(NO_FAULTS) | fault_plans(DURATION * SECOND),
    begins_at=st.integers(1, 8).map(lambda eighths: eighths * GiB // 2),
    is_seen=st.booleans(),
)


def babble() -> trio.abc.Stream:
    """Connect to a peer that is no QEMU."""
    ours, _ = trio.testing.memory_stream_pair()
    ours.receive_stream.put_data(b'{"QMP": ["' + b"\x00\xff" * 1000)
    return ours


def keep_silent() -> trio.abc.Stream:
    """Connect to a peer that never says anything."""
    return trio.testing.memory_stream_pair()[0]


strangers = st.lists(st.sampled_from([babble, keep_silent]), max_size=2)
