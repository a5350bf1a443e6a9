"""The addresses of monitors and VMs, as users write them.

Every front end and the command read addresses with these functions, so that
``tcp:[::1]:4444`` means the same everywhere. Nothing is looked up or opened here.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, TypeAlias

from attrs import field, frozen

from qmpballoon._checks import LARGEST_PORT, read_port

if TYPE_CHECKING:
    from collections.abc import Collection

__all__ = [
    "AbstractAddress",
    "Address",
    "LibvirtVm",
    "TcpAddress",
    "UnixAddress",
    "Vm",
    "parse_address",
    "parse_vm",
]

_FORMS = "write unix:PATH, tcp:HOST:PORT, or the path of a socket"
_LIBVIRT = "libvirt:"
_ABSTRACT = "unix-abstract:"
_NOT_IN_HOSTS = frozenset("\0[]")  # brackets are around an IPv6 host
_PATH_MAX = 4095  # bytes, without the final NUL; see path_resolution(7)
_ABSTRACT_MAX = 107  # bytes, after the NUL that they begin with; see unix(7)


def _require_path(_address: object, _attribute: object, path: str) -> None:
    if not path or "\0" in path:
        raise ValueError(f"{path!r} cannot be the path of a socket: {_FORMS}")
    if _count_bytes(path) > _PATH_MAX:
        raise ValueError(
            f"the path {path[:40]!r}... is too long ({_PATH_MAX} bytes at most): use a"
            " relative path or a symbolic link"
        )


def _require_abstract(_address: object, _attribute: object, name: str) -> None:
    if not name or "\0" in name or _count_bytes(name) > _ABSTRACT_MAX:
        raise ValueError(
            f"{name[:120]!r} cannot be the name of an abstract socket: write"
            f" {_ABSTRACT}NAME, with 1 to {_ABSTRACT_MAX} bytes"
        )


def _count_bytes(text: str) -> int:
    try:
        return len(os.fsencode(text))
    except UnicodeEncodeError:
        raise ValueError(
            f"{text[:120]!r} is no text that a path can hold: {_FORMS}"
        ) from None


def _show(text: str) -> str:
    """Return a name as text that can be printed: bytes that are not UTF-8 escaped."""
    return os.fsencode(text).decode("utf-8", "backslashreplace")


def _require_host(_address: object, _attribute: object, host: str) -> None:
    if not host or set(host) & _NOT_IN_HOSTS:
        raise ValueError(
            f"{host!r} cannot be a host: an address needs one; write tcp:HOST:PORT, or"
            " tcp:[HOST]:PORT for IPv6"
        )


def _require_port(_address: object, _attribute: object, port: int) -> None:
    if not 1 <= port <= LARGEST_PORT:
        raise ValueError(f"the TCP port is {port}: it must be 1 to {LARGEST_PORT}")


@frozen
class UnixAddress:
    """A unix domain socket.

    Attributes:
        path: Its path in the file system: 1 to 4095 bytes. Bytes that are not UTF-8
            stand in it as in :func:`os.fsdecode`.
        pid: The process that must listen there; ``None`` for any. It is checked before
            anything is sent, by ``SO_PEERCRED`` of unix(7).
        users: The ids of the users who may listen there; ``None`` for any. If ``pid``
            is given, root may listen, too: QEMU may have given up its rights since
            then. Neither ``pid`` nor ``users`` counts when addresses are compared.
    """

    path: str = field(validator=_require_path)
    pid: int | None = field(default=None, kw_only=True, eq=False, repr=False)
    users: Collection[int] | None = field(
        default=None, kw_only=True, eq=False, repr=False
    )

    def __str__(self) -> str:
        """Return the path; bytes that are not UTF-8 are escaped."""
        return _show(self.path)


@frozen
class AbstractAddress:
    """A unix domain socket without a path, in Linux' abstract namespace.

    QEMU makes one with ``-chardev socket,path=NAME,abstract=on``. It can be reached
    only from the same network namespace, and by every user there.

    Attributes:
        name: Its name: 1 to 107 bytes.
        pid: As for :class:`UnixAddress`.
        users: As for :class:`UnixAddress`.
    """

    name: str = field(validator=_require_abstract)
    pid: int | None = field(default=None, kw_only=True, eq=False, repr=False)
    users: Collection[int] | None = field(
        default=None, kw_only=True, eq=False, repr=False
    )

    def __str__(self) -> str:
        """Return the address as :func:`parse_address` reads it."""
        return f"{_ABSTRACT}{_show(self.name)}"


@frozen
class TcpAddress:
    """A TCP port.

    Attributes:
        host: A host name or an IP address, without brackets.
        port: 1 to 65535.
    """

    host: str = field(validator=_require_host)
    port: int = field(validator=_require_port)

    def __str__(self) -> str:
        """Return the address as :func:`parse_address` reads it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"tcp:{host}:{self.port}"


@frozen
class LibvirtVm:
    """A VM whose monitor libvirt holds.

    Attributes:
        name: Its name in libvirt.
    """

    name: str

    def __str__(self) -> str:
        """Return the address as :func:`parse_vm` reads it."""
        return f"{_LIBVIRT}{self.name}"


Address: TypeAlias = UnixAddress | AbstractAddress | TcpAddress
"""The address of a monitor's socket."""
Vm: TypeAlias = Address | LibvirtVm
"""The address of a VM: its monitor's socket, or its name in libvirt."""


def parse_vm(text: object) -> Vm:
    """Read the address of a VM.

    Args:
        text: A text as for :func:`parse_address`, or ``"libvirt:NAME"``.

    Raises:
        TypeError: It is not text.
        ValueError: It cannot be an address.
    """
    if not isinstance(text, str):
        raise TypeError(f"{text!r} is no monitor's address: {_FORMS}")
    if not text.startswith(_LIBVIRT):
        return parse_address(text)
    if name := text.removeprefix(_LIBVIRT):
        return LibvirtVm(name)
    raise ValueError("the VM of libvirt has no name: write libvirt:NAME")


def parse_address(
    address: str | os.PathLike[str] | tuple[str, int] | Address,
) -> Address:
    """Read the address of a monitor's socket.

    Args:
        address: ``"unix:PATH"``, ``"unix-abstract:NAME"``, ``"tcp:HOST:PORT"`` (an IPv6
            host in brackets), a bare path, ``(host, port)``, or a parsed address.

    Raises:
        TypeError: It is of none of these types.
        ValueError: It cannot be an address. ``"libvirt:NAME"`` is not a socket, and is
            refused, too: such VMs are reached with :mod:`qmpballoon.libvirt`.
    """
    match address:
        case UnixAddress() | AbstractAddress() | TcpAddress():
            return address
        case (str(host), int(port)):
            return TcpAddress(host, port)
        case str() | os.PathLike():
            return _parse_text(os.fspath(address))
        case _:
            raise TypeError(f"{address!r} is no monitor's address: {_FORMS}")


def _parse_text(text: str) -> Address:
    if text.startswith("tcp:"):
        host, colon, number = text.removeprefix("tcp:").rpartition(":")
        port = read_port(number)
        if not colon or port is None:
            raise ValueError(f"{text!r} has no port: write tcp:HOST:PORT")
        return TcpAddress(host.removeprefix("[").removesuffix("]"), port)
    if text.startswith(_ABSTRACT):
        return AbstractAddress(text.removeprefix(_ABSTRACT))
    if text.startswith(_LIBVIRT):
        raise ValueError(
            f"{text!r} is a VM of libvirt, not a socket: give its domain to"
            " qmpballoon.libvirt.find_balloon, or write unix:PATH"
        )
    return UnixAddress(text.removeprefix("unix:"))
