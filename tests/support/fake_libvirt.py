"""A libvirt that is none: a module to be imported in its place, and a domain."""

from __future__ import annotations

import json
import sys
import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from attrs import define, field

from qmpballoon import CommandError

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

    from qmpballoon import blocking

__all__ = ["CODES", "FakeConnection", "FakeDomain", "LibvirtError", "install"]

CODES = {
    "VIR_ERR_NO_DOMAIN": 42,
    "VIR_ERR_OPERATION_INVALID": 55,
    "VIR_ERR_NO_SUPPORT": 3,
    "VIR_ERR_OPERATION_DENIED": 29,
    "VIR_ERR_AUTH_FAILED": 45,
    "VIR_ERR_OPERATION_TIMEOUT": 68,
    "VIR_ERR_OPERATION_FAILED": 9,
    "VIR_ERR_ARGUMENT_UNSUPPORTED": 74,
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
        takes_no_descriptors: The error code with which it refuses them, if it does.
        hang: Its commands wait for this.
        uri: Of its connection.
        closed: Whether that was closed.
        came: What was passed on, in this order.
    """

    monitor: blocking.BlockingMonitor
    fails: str | None = None
    takes_no_descriptors: str | None = None
    hang: threading.Event = field(factory=threading.Event)
    uri: str = "qemu:///system"
    closed: bool = False
    came: list[str] = field(factory=list[str])

    def name(self) -> str:
        return "vm1"

    def connect(self) -> SimpleNamespace:
        return SimpleNamespace(getURI=lambda: self.uri, close=self._close)

    def _close(self) -> None:
        self.closed = True

    def run_with_files(
        self, request: str, files: list[int], flags: int
    ) -> tuple[str, list[object]]:
        if self.takes_no_descriptors is not None:
            raise LibvirtError(self.takes_no_descriptors)
        return self.run(request, flags, *files), []

    def run(self, request: str, flags: int, file: int | None = None) -> str:
        assert flags == 0
        message = json.loads(request)
        self.came.append(message["execute"])
        self.hang.wait(10)
        if self.fails is not None:
            raise LibvirtError(self.fails)
        try:
            value = self._pass_on(message["execute"], message.get("arguments"), file)
        except CommandError as error:
            told = {"class": error.error_class, "desc": error.desc}
            return json.dumps({"error": told, "id": "libvirt-7"})
        return json.dumps({"return": value, "id": "libvirt-7"})

    def _pass_on(
        self, command: str, arguments: dict[str, Any], file: int | None
    ) -> object:
        if file is None:
            return self.monitor.execute(command, arguments)
        assert command == "getfd"
        self.monitor.send_descriptor(arguments["fdname"], file, timeout=60)
        return {}


@define
class FakeConnection:
    """A connection to a libvirt that has one domain.

    Attributes:
        domain: The domain.
    """

    domain: FakeDomain

    def lookupByName(self, name: str) -> FakeDomain:  # noqa: N802 - libvirt's name
        if name != self.domain.name():
            raise LibvirtError("VIR_ERR_NO_DOMAIN")
        return self.domain

    def getURI(self) -> str:  # noqa: N802 - libvirt's name
        return self.domain.uri


def install(
    monkeypatch: pytest.MonkeyPatch,
    connect: Callable[[str | None], object] | None = None,
) -> None:
    """Have libvirt imported from here.

    Args:
        monkeypatch: Undoes it after the test.
        connect: What ``libvirt.open`` does.
    """
    names = SimpleNamespace(
        libvirtError=LibvirtError,
        open=connect,
        registerErrorHandler=lambda *_: None,
        **CODES,
    )
    monkeypatch.setitem(sys.modules, "libvirt", names)
    passthrough = SimpleNamespace(
        qemuMonitorCommand=FakeDomain.run,
        qemuMonitorCommandWithFiles=FakeDomain.run_with_files,
    )
    monkeypatch.setitem(sys.modules, "libvirt_qemu", passthrough)
