"""Where a monitor is, as users write it.

Shared by every front end and by the command, so that ``tcp:[::1]:4444`` means
the same everywhere. Pure: nothing is looked up and nothing is opened.
"""

from __future__ import annotations

import os
from typing import TypeAlias

from attrs import field, frozen

__all__ = [
    "Address",
    "LibvirtVm",
    "TcpAddress",
    "UnixAddress",
    "Vm",
    "parse_address",
    "parse_vm",
]

_HOW = "write unix:PATH, tcp:HOST:PORT, or the path of a socket"
_LIBVIRT = "libvirt:"
_PORT_MAX = 65535
_SUN_PATH_MAX = 107  # bytes; see unix(7)


def _is_path(_address: object, _attribute: object, path: str) -> None:
    if not path or "\0" in path:
        raise ValueError(f"{path!r} is no path of a socket: {_HOW}")
    if len(os.fsencode(path)) > _SUN_PATH_MAX:
        raise ValueError(
            f"the path {path!r} is too long for a socket ({_SUN_PATH_MAX} bytes at"
            " most): use a relative path or a symbolic link"
        )


def _is_host(_address: object, _attribute: object, host: str) -> None:
    if not host:
        raise ValueError("an address needs a host: write tcp:HOST:PORT")


def _is_port(_address: object, _attribute: object, port: int) -> None:
    if not 1 <= port <= _PORT_MAX:
        raise ValueError(f"there is no TCP port {port}: it is 1 to {_PORT_MAX}")


@frozen
class UnixAddress:
    """A unix domain socket.

    Attributes:
        path: Its path in the file system, at most 107 bytes.
    """

    path: str = field(validator=_is_path)

    def __str__(self) -> str:
        """Return the path, which is how users know the VM."""
        return self.path


@frozen
class TcpAddress:
    """A TCP port.

    Attributes:
        host: A name or an address, without brackets.
        port: 1 to 65535.
    """

    host: str = field(validator=_is_host)
    port: int = field(validator=_is_port)

    def __str__(self) -> str:
        """Return it as :func:`parse_address` reads it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"tcp:{host}:{self.port}"


@frozen
class LibvirtVm:
    """A VM whose monitor belongs to libvirt.

    Attributes:
        name: Its name there.
    """

    name: str

    def __str__(self) -> str:
        """Return it as :func:`parse_vm` reads it."""
        return f"{_LIBVIRT}{self.name}"


Address: TypeAlias = UnixAddress | TcpAddress
Vm: TypeAlias = Address | LibvirtVm
"""Where a VM is reached: at its monitor's socket, or through libvirt."""


def parse_vm(text: object) -> Vm:
    """Read an address, or ``libvirt:NAME``.

    Args:
        text: As for :func:`parse_address`, or a VM of libvirt's.

    Raises:
        TypeError: It is no text.
        ValueError: It cannot be either.
    """
    if not isinstance(text, str):
        raise TypeError(f"{text!r} is no monitor's address: {_HOW}")
    if not text.startswith(_LIBVIRT):
        return parse_address(text)
    if name := text.removeprefix(_LIBVIRT):
        return LibvirtVm(name)
    raise ValueError("libvirt's VM has no name: write libvirt:NAME")


def parse_address(
    address: str | os.PathLike[str] | tuple[str, int] | Address,
) -> Address:
    """Read an address in any of the forms in which it may be given.

    Args:
        address: ``"unix:PATH"``, ``"tcp:HOST:PORT"`` (an IPv6 host in brackets),
            a bare path, or ``(host, port)``.

    Raises:
        TypeError: It is of no such type.
        ValueError: It is of such a type and cannot be an address. So is
            ``"libvirt:NAME"``: for such VMs there is :mod:`qmpballoon.libvirt`.
    """
    match address:
        case UnixAddress() | TcpAddress():
            return address
        case (str(host), int(port)):
            return TcpAddress(host, port)
        case str() | os.PathLike():
            return _parse_text(os.fspath(address))
        case _:
            raise TypeError(f"{address!r} is no monitor's address: {_HOW}")


def _parse_text(text: str) -> Address:
    if text.startswith("tcp:"):
        host, colon, port = text.removeprefix("tcp:").rpartition(":")
        # int() would take "+1", "1_0" and digits of other scripts too.
        if not colon or not (port.isascii() and port.isdigit()):
            raise ValueError(f"{text!r} has no port: write tcp:HOST:PORT")
        return TcpAddress(host.removeprefix("[").removesuffix("]"), int(port))
    if text.startswith(_LIBVIRT):
        raise ValueError(
            f"{text!r} is a VM of libvirt's, and no socket: give its domain to"
            " qmpballoon.libvirt.find_balloon, or write unix:PATH"
        )
    return UnixAddress(text.removeprefix("unix:"))
