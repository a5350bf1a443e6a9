"""Finding the balloon of a domain, and its QEMU."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qmpballoon import libvirt

if TYPE_CHECKING:
    from fake_libvirt import FakeDomain


def test_a_qemu_elsewhere_is_not_looked_for_here(domain: FakeDomain) -> None:
    domain.uri = "qemu+ssh://other.example/system"
    assert libvirt.find_balloon(domain).resident() is None
