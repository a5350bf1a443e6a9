"""Finding a domain by its name."""

from __future__ import annotations

import pytest
from fake_libvirt import FakeConnection, FakeDomain, LibvirtError, install

from qmpballoon import MonitorUnreachable, libvirt


def test_a_vm_by_its_name(domain: FakeDomain, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str | None] = []

    def connect(uri: str | None) -> FakeConnection:
        asked.append(uri)
        return FakeConnection(domain)

    install(monkeypatch, connect)
    assert libvirt.find_domain("vm1") is domain
    assert libvirt.find_domain("vm1", "qemu:///session") is domain
    assert asked == [None, "qemu:///session"]
    with pytest.raises(MonitorUnreachable, match=r"qemu:///system has no VM 'vm2'"):
        libvirt.find_domain("vm2")


def test_no_libvirt_to_connect_to(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: str | None) -> None:
        raise LibvirtError("VIR_ERR_OPERATION_FAILED")

    install(monkeypatch, refuse)
    with pytest.raises(MonitorUnreachable, match="is its daemon running"):
        libvirt.find_domain("vm1")


def test_a_libvirt_that_cannot_be_reached_is_told_with_the_vms_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(_: object) -> None:
        raise LibvirtError("VIR_ERR_AUTH_FAILED")

    install(monkeypatch, refuse)
    with pytest.raises(MonitorUnreachable, match="'vm1': libvirt cannot be reached"):
        libvirt.find_domain("vm1")
