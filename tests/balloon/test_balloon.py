"""Whatever a QEMU answers, the balloon raises nothing but our own exceptions."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmpballoon.balloon.balloon import Balloon, find_balloon
from qmpballoon.blocking.balloon import run_sync
from qmpballoon.errors import ProtocolError, QmpBalloonError, make_command_error
from qmpballoon.sizes import GiB, MiB

if TYPE_CHECKING:
    from collections.abc import Mapping

PATIENCE = 5000  # commands; with a deadline of a few seconds no operation needs more
GOOD: dict[str, object] = {
    "query-balloon": {"actual": GiB},
    "query-status": {"running": True},
    "query-memory-size-summary": {"base-memory": 2 * GiB, "plugged-memory": 1},
    "query-memory-devices": [{"type": "dimm", "data": {"size": 128 * MiB}}],
    "qom-list": [{"name": "b", "type": "child<virtio-balloon-pci>"}],
}
FIGURES = [
    "total-memory",
    "free-memory",
    "available-memory",
    "disk-caches",
    "oom-kills",
]
integers = st.sampled_from([-1, 0, 1, 2**63, 2**64 - 1, 2**64, 10**400, -(10**4200)])
scalars = st.none() | st.booleans() | integers | st.floats(allow_nan=False) | st.text()
names = st.sampled_from(
    ["actual", "base-memory", "plugged-memory", "running", "status", "name", "type"]
    + ["data", "size", "stats", "last-update", "child<virtio-balloon-pci>", "dimm"]
    + [f"stat-{name}" for name in FIGURES]
)
values = st.recursive(
    scalars | names,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner),
    max_leaves=8,
)
failures = st.sampled_from(["GenericError", "CommandNotFound", "DeviceNotFound"]).map(
    lambda name: make_command_error("it", name, "no")
)


class Liar:
    """A monitor that answers well, but for some of its answers."""

    def __init__(
        self, lies: Mapping[int, object], good: Mapping[str, object] = GOOD
    ) -> None:
        self._lies = lies
        self._good = good
        self._time = 0.0
        self._commands = 0

    async def execute(
        self, command: str, arguments: Mapping[str, object] | None = None
    ) -> object:
        self._time += 0.01
        self._commands += 1
        assert self._commands < PATIENCE, "it goes on for ever"
        lie = self._lies.get(self._commands, self)
        if isinstance(lie, Exception):
            raise lie
        if lie is not self:
            return lie
        if command == "qom-get":
            return self._property((arguments or {}).get("property"))
        return self._good.get(command, {})

    def _property(self, name: object) -> object:
        if name != "guest-stats":
            return 1
        stats = {f"stat-{name}": 256 * MiB for name in FIGURES}
        return {"stats": stats, "last-update": int(self.wall_clock())}

    async def sleep(self, seconds: float) -> None:
        self._time += max(seconds, 0.0)

    def now(self) -> float:
        return self._time

    def wall_clock(self) -> float:
        return 1e9 + self._time

    def shield(self, seconds: float) -> contextlib.AbstractContextManager[None]:
        del seconds
        return contextlib.nullcontext()


OPERATIONS: dict[str, Any] = {
    "find": lambda balloon: balloon.features(),
    "query": lambda balloon: balloon.query(),
    "stats": lambda balloon: balloon.refresh_stats(timeout=1),
    "interval": lambda balloon: balloon.get_stats_interval(),
    "running": lambda balloon: balloon.is_running(),
    "resize": lambda balloon: balloon.resize(GiB // 2, timeout=5),
    "settle": lambda balloon: balloon.resize(GiB // 2, timeout=5, on_stall="settle"),
    "roll back": lambda balloon: balloon.resize(GiB, timeout=5, on_stall="rollback"),
    "plan": lambda balloon: balloon.plan_reclaim(),
    "reclaim": lambda balloon: balloon.reclaim(128 * MiB),
}


@pytest.mark.parametrize("operation", OPERATIONS)
@given(lies=st.dictionaries(st.integers(1, 30), values | failures, min_size=1))
def test_lies_are_errors_of_ours(operation: str, lies: dict[int, object]) -> None:
    liar = Liar(lies)

    async def main() -> object:
        balloon: Balloon = await find_balloon(liar)
        return await OPERATIONS[operation](balloon)

    try:
        result = run_sync(main())
    except QmpBalloonError:
        return
    if to_json := getattr(result, "to_json", None):
        assert json.dumps(to_json())


@pytest.mark.parametrize("size", [-1, True, 2**63, 10**400, 1.0, "1", None])
@pytest.mark.parametrize("operation", ["query", "resize", "reclaim"])
def test_a_size_that_is_none_is_a_protocol_error(operation: str, size: object) -> None:
    liar = Liar({}, good=GOOD | {"query-balloon": {"actual": size}})
    balloon = Balloon(liar, "/b", "virtio-balloon-pci")
    with pytest.raises(ProtocolError, match="query-balloon returned"):
        run_sync(OPERATIONS[operation](balloon))


@pytest.mark.parametrize("seconds", [-1, True, 2**32, 10**400, 1.0, "1", None])
def test_an_interval_that_is_none_is_a_protocol_error(seconds: object) -> None:
    balloon = Balloon(Liar({1: seconds}), "/b", "virtio-balloon-pci")
    with pytest.raises(ProtocolError, match="statistics interval of /b is"):
        run_sync(balloon.refresh_stats())
