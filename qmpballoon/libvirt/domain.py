"""Finding a domain of libvirt, and keeping libvirt from printing its errors.

What talks to its QEMU is :mod:`~qmpballoon.libvirt.monitor`.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, Protocol

from qmpballoon.errors import MonitorUnreachable

__all__ = ["Domain", "find_domain", "silence"]


class Domain(Protocol):
    """The part of ``libvirt.virDomain`` that this package uses."""

    def name(self) -> str:
        """Return the domain's name."""
        ...

    def connect(self) -> Any:  # noqa: ANN401 - libvirt-python has no usable types
        """Return its connection."""
        ...


def find_domain(name: str, uri: str | None = None) -> Domain:
    """Connect to libvirt and look a VM up by its name.

    The call blocks for as long as libvirt does, without a deadline. The connection is
    closed when the domain object is freed.

    Args:
        name: The domain's name, as ``virsh list`` shows it.
        uri: Which libvirt, such as ``"qemu+ssh://host/system"``. By default the one
            that the environment variable ``LIBVIRT_DEFAULT_URI`` names; without it,
            libvirt takes ``qemu:///system`` for root and ``qemu:///session`` for other
            users.

    Raises:
        MonitorUnreachable: libvirt cannot be connected to, or has no such VM.
        ImportError: libvirt-python is not installed.
    """
    libvirt = import_module("libvirt")
    try:
        connection = libvirt.open(uri)
    except libvirt.libvirtError as error:
        raise MonitorUnreachable(
            f"libvirt's VM {name!r}: libvirt cannot be reached"
            f" ({error.get_error_message()}): is its daemon running?"
            " LIBVIRT_DEFAULT_URI says which one is meant"
        ) from error
    try:
        domain: Domain = connection.lookupByName(name)
    except libvirt.libvirtError as error:
        raise MonitorUnreachable(
            f"libvirt at {connection.getURI()} has no VM {name!r}"
            f" ({error.get_error_message()}): `virsh list` shows which it has, and"
            " LIBVIRT_DEFAULT_URI chooses another libvirt, such as qemu:///system"
        ) from error
    return domain


def silence() -> None:
    """Keep libvirt-python from printing the errors that it raises.

    This holds for the whole process.
    """
    import_module("libvirt").registerErrorHandler(_ignore, None)


def _ignore(_context: object, _error: object) -> None:
    """Print nothing: the exception says the same."""
