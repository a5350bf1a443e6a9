"""libvirt's passthrough with a libvirt that is none, for where there is no daemon."""

from __future__ import annotations

import json
import sys
import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
from attrs import define, field
from frontends import on_each
from scenarios import CACHE, MEMORY, SCENARIOS, a_second_client
from through_libvirt import ALL

from qmpballoon import (
    CommandError,
    MonitorClosed,
    MonitorError,
    MonitorTimeout,
    MonitorUnreachable,
    blocking,
    libvirt,
)
from qmpballoon.testing.background import serve
from qmpballoon.testing.machine import GuestConfig, MachineConfig

if TYPE_CHECKING:
    from collections.abc import Iterator

    from frontends import FrontEnd, Scenario

MACHINE = MachineConfig(memory=MEMORY, guest=GuestConfig(used=60 << 20, cache=CACHE))
CODES = {
    "VIR_ERR_NO_DOMAIN": 42,
    "VIR_ERR_OPERATION_INVALID": 55,
    "VIR_ERR_NO_SUPPORT": 3,
    "VIR_ERR_OPERATION_DENIED": 29,
    "VIR_ERR_AUTH_FAILED": 45,
    "VIR_ERR_OPERATION_TIMEOUT": 68,
    "VIR_ERR_OPERATION_FAILED": 9,
}


class LibvirtError(Exception):
    """As much of libvirt's exception as is looked at."""

    def get_error_code(self) -> int:
        return CODES[self.args[0]]

    def get_error_message(self) -> str:
        return "libvirt's words"


@define
class FakeDomain:
    """A domain whose commands go to a fake QEMU.

    Attributes:
        monitor: The way there.
        fails: The error code with which it fails, if it does.
        hang: Its commands wait for this.
        uri: Of its connection.
    """

    monitor: blocking.BlockingMonitor
    fails: str | None = None
    hang: threading.Event = field(factory=threading.Event)
    uri: str = "qemu:///system"

    def name(self) -> str:
        return "vm1"

    def connect(self) -> SimpleNamespace:
        return SimpleNamespace(getURI=lambda: self.uri)

    def run(self, request: str, flags: int) -> str:
        assert flags == 0
        self.hang.wait(10)
        if self.fails is not None:
            raise LibvirtError(self.fails)
        message = json.loads(request)
        try:
            value = self.monitor.execute(message["execute"], message.get("arguments"))
        except CommandError as error:
            told = {"class": error.error_class, "desc": error.desc}
            return json.dumps({"error": told, "id": "libvirt-7"})
        return json.dumps({"return": value, "id": "libvirt-7"})


@pytest.fixture
def domain(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDomain]:
    names = SimpleNamespace(libvirtError=LibvirtError, **CODES)
    monkeypatch.setitem(sys.modules, "libvirt", names)
    passthrough = SimpleNamespace(qemuMonitorCommand=FakeDomain.run)
    monkeypatch.setitem(sys.modules, "libvirt_qemu", passthrough)
    with serve(MACHINE) as fake, blocking.open_monitor(fake.socket) as monitor:
        domain = FakeDomain(monitor)
        domain.hang.set()
        yield domain


@on_each(*ALL)
@pytest.mark.parametrize(
    "scenario",
    [scenario for scenario in SCENARIOS if scenario is not a_second_client],
    ids=lambda scenario: scenario.__name__,
)
def test_scenarios(front: FrontEnd, scenario: Scenario, domain: FakeDomain) -> None:
    front.run(scenario(front, domain))


@on_each(*ALL)
@pytest.mark.parametrize(
    ("code", "error", "unknown"),
    [
        ("VIR_ERR_NO_DOMAIN", MonitorClosed, ()),
        ("VIR_ERR_OPERATION_INVALID", MonitorClosed, ()),
        ("VIR_ERR_NO_SUPPORT", MonitorUnreachable, ()),
        ("VIR_ERR_OPERATION_DENIED", MonitorUnreachable, ()),
        ("VIR_ERR_AUTH_FAILED", MonitorUnreachable, ()),
        ("VIR_ERR_OPERATION_TIMEOUT", MonitorTimeout, ()),
        ("VIR_ERR_OPERATION_FAILED", MonitorClosed, ("query-balloon",)),
    ],
)
def test_errors(
    front: FrontEnd,
    domain: FakeDomain,
    code: str,
    error: type[MonitorError],
    unknown: tuple[str, ...],
) -> None:
    async def fail() -> None:
        async with front.open_balloon(domain) as balloon:  # type: ignore[arg-type]
            domain.fails = code
            await balloon.query()

    with pytest.raises(error, match="vm1: libvirt's words") as caught:
        front.run(fail())
    assert caught.value.unknown_outcome == unknown


@on_each(*ALL)
def test_a_libvirt_that_hangs(front: FrontEnd, domain: FakeDomain) -> None:
    async def hang() -> None:
        async with front.open_balloon(domain, command_timeout=1) as balloon:  # type: ignore[arg-type]
            domain.hang.clear()
            await balloon.query()

    try:
        with pytest.raises(MonitorTimeout, match=r"within 1 s") as caught:
            front.run(hang())
    finally:
        domain.hang.set()
    assert caught.value.unknown_outcome == ("query-balloon",)


def test_a_qemu_elsewhere_is_not_looked_for_here(domain: FakeDomain) -> None:
    domain.uri = "qemu+ssh://other.example/system"
    assert libvirt.find_balloon(domain).resident() is None
