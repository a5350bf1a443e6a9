"""The commands that a balloon device knows, and what their failures mean for it.

Sources: QAPI reference, ``query-balloon``, ``qom-get``, ``qom-set``,
``query-memory-size-summary``, ``query-memory-devices``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, cast

from attrs import field, frozen

from qmpballoon._checks import is_size
from qmpballoon.errors import (
    BalloonUnavailable,
    CommandError,
    CommandNotFound,
    DeviceNotFound,
    NoBalloonDevice,
    ProtocolError,
)
from qmpballoon.monitor import said_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from qmpballoon.monitor import Monitor

__all__ = ["NO_DEVICE", "BalloonInfo", "Commands"]

NO_DEVICE: Final = (
    "this VM has no balloon: start it with -device virtio-balloon-pci,id=balloon0"
)
_FEATURES: Final = (
    "deflate-on-oom",
    "free-page-reporting",
    "free-page-hint",
    "page-poison",
)


@frozen
class BalloonInfo:
    """How large a guest is.

    Attributes:
        actual: Bytes the guest has: all its RAM less what is in the balloon.
        total: Bytes of RAM the VM was given, plugged DIMMs included; ``None``
            where QEMU is too old to tell.
        target: Bytes the guest was last asked to come to *by this object*;
            ``None`` if it never was. QEMU does not tell the target.
        extra: What else QEMU says; Proxmox VE's adds some members.
    """

    actual: int
    total: int | None = None
    target: int | None = None
    extra: Mapping[str, object] = field(factory=dict[str, object])

    @property
    def ballooned(self) -> int | None:
        """Bytes in the balloon, where that is known."""
        return None if self.total is None else self.total - self.actual


@frozen
class Commands:
    """One device's commands.

    Attributes:
        monitor: The way to QEMU.
        path: The device's path in QOM.
    """

    monitor: Monitor
    path: str

    async def query(self, target: int | None) -> BalloonInfo:
        """Ask how large the guest is; the target is the one that is known."""
        actual, extra = await self.query_balloon()
        return BalloonInfo(actual, await self.total(), target, extra)

    async def query_balloon(self) -> tuple[int, dict[str, object]]:
        """Return the bytes the guest has, and what else QEMU says."""
        answer = await self.execute("query-balloon")
        match answer:
            case {"actual": int(actual)} if is_size(actual):
                extra = dict(cast("Mapping[str, object]", answer))
                del extra["actual"]
                return actual, extra
            case _:
                raise ProtocolError(
                    said_of(self.monitor, f"query-balloon returned {answer!r:.80}")
                )

    async def total(self) -> int | None:
        """Sum up the RAM that a balloon can be about: the base and the DIMMs."""
        try:
            summary = await self.execute("query-memory-size-summary")
            match summary:
                case {"base-memory": int(base), "plugged-memory": 0} if is_size(base):
                    return base
                case {"base-memory": int(base)} if is_size(base):
                    # Virtio-mem and NVDIMMs count as plugged, but cannot be
                    # ballooned: look which devices there are.
                    return base + _dimms(await self.execute("query-memory-devices"))
                case _:
                    return None
        except CommandNotFound:
            return None

    async def features(self) -> dict[str, bool]:
        """Return which optional features are on, of those that this QEMU knows."""
        features: dict[str, bool] = {}
        for name in _FEATURES:
            try:
                features[name] = bool(await self.get(name))
            except CommandError:
                continue
        return features

    async def get(self, name: str) -> object:
        """Read a property of the device."""
        return await self.execute("qom-get", {"path": self.path, "property": name})

    async def set(self, name: str, value: object) -> None:
        """Write a property of the device."""
        arguments = {"path": self.path, "property": name, "value": value}
        await self.execute("qom-set", arguments)

    async def execute(
        self, command: str, arguments: Mapping[str, object] | None = None
    ) -> object:
        """Run a command; say what its failures mean for a balloon."""
        try:
            return await self.monitor.execute(command, arguments)
        except DeviceNotFound as error:
            raise NoBalloonDevice(self._gone) from error
        except CommandError as error:
            match error.error_class:
                case "DeviceNotActive":
                    raise NoBalloonDevice(self._gone) from error
                case "KVMMissingCap":
                    why = f"this host cannot drive a balloon: {error.desc}"
                    raise BalloonUnavailable(said_of(self.monitor, why)) from error
                case _:
                    raise

    @property
    def _gone(self) -> str:
        """Say what has become of a device that was found before."""
        gone = (
            f"the balloon {self.path} is gone: it was unplugged; open the VM anew once"
            " it has one again"
        )
        return said_of(self.monitor, gone)


def _dimms(devices: object) -> int:
    total = 0
    for device in cast("list[object]", devices) if isinstance(devices, list) else []:
        match device:
            case {"type": "dimm", "data": {"size": int(size)}} if is_size(size):
                total += size
            case _:
                pass
    return total
