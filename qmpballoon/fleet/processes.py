"""Monitors of the QEMU processes that run on this host, by their command lines.

Source: proc(5); QEMU's manual, ``-qmp``, ``-mon``, ``-chardev socket``, ``-name``.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Final

from qmpballoon.address import Address, TcpAddress, parse_address

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["monitors", "running"]

_PROC: Final = Path("/proc")
_PROGRAMS: Final = ("qemu-system-", "qemu-kvm", "kvm")
_ANYWHERE: Final = {"": "localhost", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - compared with


def running(proc: Path = _PROC) -> Iterator[tuple[str, Address]]:
    """Yield the name and the monitor of each QEMU that runs and has one.

    Of several monitors it is the last: the first is often the one that another
    manager of the VM holds.

    Args:
        proc: Where the process file system is.
    """
    for process in sorted(proc.glob("[0-9]*"), key=lambda path: int(path.name)):
        try:
            line = (process / "cmdline").read_bytes().decode(errors="replace")
            folder = (process / "cwd").readlink()
        except OSError:  # gone, or somebody else's
            continue
        program, *arguments = line.removesuffix("\0").split("\0")
        if not Path(program).name.startswith(_PROGRAMS):
            continue
        for address in monitors(arguments, folder)[-1:]:
            yield _name(arguments) or f"pid-{process.name}", address


def monitors(arguments: Sequence[str], folder: Path) -> list[Address]:
    """Return the QMP monitors of a QEMU that somebody can connect to.

    Args:
        arguments: Its command line, without the program.
        folder: What relative paths are relative to.
    """
    options = list(_options(arguments))
    chardevs = [
        _members(text, "backend") for name, text in options if name == "chardev"
    ]
    by_id = {chardev.get("id"): chardev for chardev in chardevs}
    found: list[Address | None] = []
    for name, text in options:
        if name in ("qmp", "qmp-pretty"):
            found.append(_shorthand(text, folder))
        elif name == "mon":
            mon = _members(text, "chardev")
            if mon.get("mode") == "control":
                found.append(_address(by_id.get(mon.get("chardev"), {}), folder))
    return [address for address in found if address is not None]


def _options(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    for option, value in pairwise(arguments):
        if option.startswith("-"):
            yield option.lstrip("-"), value


def _members(text: str, first: str) -> dict[str, str]:
    """Read ``name=value,...``; what comes first may leave its name out.

    A flag on its own is on; two commas stand for one in a value.
    """
    members: dict[str, str] = {}
    parts = text.replace(",,", "\0").split(",")
    for number, part in enumerate(parts):
        name, equals, value = part.replace("\0", ",").partition("=")
        if number == 0 and not equals:
            name, value = first, name
        members[name] = value if equals or number == 0 else "on"
    return members


def _shorthand(text: str, folder: Path) -> Address | None:
    """Read what ``-qmp`` takes: ``unix:PATH,server=on`` or ``tcp:HOST:PORT,…``."""
    members = _members(text, "where")
    kind, _, rest = members.get("where", "").partition(":")
    if kind == "unix":
        members["path"] = rest
    elif kind == "tcp":
        members["host"], _, members["port"] = rest.rpartition(":")
    return _address(members, folder)


def _address(socket: dict[str, str], folder: Path) -> Address | None:
    """Return where to connect to; ``None`` if QEMU does not listen there."""
    if socket.get("server") != "on":
        return None
    try:
        if "path" in socket:
            return parse_address(str(folder / socket["path"]))
        host = socket.get("host", "").strip("[]")
        return TcpAddress(_ANYWHERE.get(host, host), int(socket.get("port", "")))
    except ValueError:
        return None


def _name(arguments: Sequence[str]) -> str:
    for option, text in _options(arguments):
        if option == "name":
            return _members(text, "guest").get("guest", "")
    return ""
