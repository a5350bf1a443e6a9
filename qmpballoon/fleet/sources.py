"""Which VMs there are: by sockets, by a file, by the processes that run.

A :class:`Source` is asked again and again, since VMs come and go. It does not
connect to anything; whether a VM is there, its monitor tells.

A file says what is wanted of each VM::

    [defaults]                    # for all that say nothing else
    headroom = "10%"

    [[vm]]
    name = "database"
    address = "/run/vms/database.qmp"
    floor = "4GiB"
    weight = 2

    [[vm]]
    sockets = "/run/vms/web-*.qmp"
    ceiling = "50%"
"""

from __future__ import annotations

import errno
import glob
import math
import os
import tomllib
from collections import Counter
from itertools import pairwise, takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias, cast

from attrs import evolve

from qmpballoon.address import (
    Address,
    LibvirtVm,
    TcpAddress,
    UnixAddress,
    Vm,
    parse_address,
    parse_vm,
)
from qmpballoon.fleet.spec import Spec

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

__all__ = [
    "Source",
    "from_file",
    "from_host",
    "from_sockets",
    "monitors",
    "running",
    "sources",
]

Source: TypeAlias = "Callable[[], list[Spec]]"
"""Returns the VMs that there are now."""

PLACES: Final = (
    "/run/qemu-server/*.qmp",  # Proxmox VE
    # Incus and LXD keep the monitor out of QEMU's command line.
    "/run/incus/*/qemu.monitor",
    "/var/log/incus/*/qemu.monitor",
    "/var/log/lxd/*/qemu.monitor",
    "/var/snap/lxd/common/lxd/logs/*/qemu.monitor",
)
"""Where managers of VMs keep their monitors."""

_LIMITS: Final = frozenset({"floor", "ceiling", "headroom", "weight"})
# A socket that is called like this is named after its folder.
_PLAIN: Final = frozenset({"monitor", "qemu", "qmp", "qmp-monitor"})


def sources(wanted: Sequence[str]) -> Source:
    """Return the source that a list of arguments means.

    Args:
        wanted: Files (``*.toml``), globs of sockets, or addresses, such as
            ``libvirt:NAME``; none means the QEMUs that run on this host.

    Raises:
        OSError: A file, or the folder of a glob, cannot be read.
        ValueError: A file or an address makes no sense; says what.
    """
    if not wanted:
        return from_host
    parts = [_source(text) for text in wanted]
    return lambda: _distinct(spec for part in parts for spec in part())


def _source(text: str) -> Source:
    if text.endswith(".toml"):
        return from_file(Path(text))
    if text.startswith(("tcp:", "libvirt:")):
        named = _named(parse_vm(text))
        return lambda: [named]
    return _readable(text.removeprefix("unix:"))


def from_sockets(pattern: str) -> Source:
    """Return a source of the sockets that match a glob, ``**`` included.

    A path without wildcards is a VM, whether a socket is there or not.

    Raises:
        ValueError: It is no path that a socket can have.
    """
    if not glob.has_magic(pattern):
        named = _named(UnixAddress(pattern))
        return lambda: [named]
    return lambda: [
        Spec(_socket_name(path), UnixAddress(str(path))) for path in _sockets(pattern)
    ]


def _readable(pattern: str) -> Source:
    """Return the source of a glob that somebody has asked for.

    Raises:
        OSError: Its folder may not be looked into: there would seem to be no VMs.
        ValueError: It is no path that a socket can have.
    """
    source = from_sockets(pattern)
    if not glob.has_magic(pattern):
        return source
    parts = takewhile(lambda part: not glob.has_magic(part), Path(pattern).parts)
    folder = Path(*parts)
    # One that is not there yet may come.
    if folder.is_dir() and not os.access(folder, os.R_OK | os.X_OK, effective_ids=True):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))
    return source


def from_host() -> list[Spec]:
    """Return the VMs whose QEMUs run here, and those at well-known places."""
    found = [Spec(name, address) for name, address in running()]
    places = (spec for place in PLACES for spec in from_sockets(place)())
    return _distinct([*found, *places])


def from_file(path: Path) -> Source:
    """Return the source that a file describes; it is read once.

    Args:
        path: A TOML file, see the module's description.

    Raises:
        OSError: It cannot be read, or the folder of a glob in it.
        ValueError: It makes no sense; says where.
    """
    try:
        entries = _entries(tomllib.loads(path.read_text(encoding="utf-8")))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: {error}: save it as UTF-8") from error
    except RecursionError as error:
        raise ValueError(f"{path}: it is nested too deep") from error
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
    return lambda: [spec for entry in entries for spec in entry()]


def _entries(document: dict[str, Any]) -> list[Source]:
    _only(document, {"defaults", "vm"})
    defaults, vms = document.get("defaults", {}), document.get("vm", [])
    if not _are_tables([defaults]):
        raise TypeError(f"defaults are {defaults!r}: write [defaults] above them")
    if not _are_tables(vms):
        raise TypeError(f"vm is {vms!r}: write [[vm]] above each VM's lines")
    _only(defaults, _LIMITS)
    tables: list[dict[str, Any]] = [{**defaults, **vm} for vm in vms]
    entries = [_entry(table) for table in tables]
    _each_once("of the name", [repr(vm["name"]) for vm in tables if "name" in vm])
    alone = [number for number, vm in enumerate(tables) if "address" in vm]
    specs = [spec for number in alone for spec in entries[number]()]
    _each_once("at", [str(spec.address) for spec in specs])
    return entries


def _are_tables(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(each, dict) for each in cast("list[object]", value)
    )


def _each_once(what: str, said: Iterable[str]) -> None:
    for text, count in Counter(said).items():
        if count > 1:
            raise ValueError(f"there are {count} VMs {what} {text}: leave one")


def _entry(table: dict[str, Any]) -> Source:
    """Read one ``[[vm]]``: a VM, or all whose sockets match."""
    _only(table, {"name", "address", "sockets"} | _LIMITS)
    limits: dict[str, Any] = {
        name: _limit(name, table[name]) for name in _LIMITS & table.keys()
    }
    # Refused now, and not once a socket is there.
    evolve(Spec("any", UnixAddress("any")), **limits)
    match table:
        case {"name": name} if not (isinstance(name, str) and name):
            raise ValueError(f'name is {name!r}: give text, like "database"')
        case {"sockets": _, "name": _}:
            raise ValueError("sockets name their VMs themselves: leave name out")
        case {"sockets": str(pattern)} if "address" not in table:
            find = _readable(pattern)
            return lambda: [evolve(spec, **limits) for spec in find()]
        case {"address": address} if "sockets" not in table:
            spec = _named(parse_vm(address))
            named = evolve(spec, name=table.get("name", spec.name), **limits)
            return lambda: [named]
        case _:
            raise ValueError("a [[vm]] needs either an address or sockets (a glob)")


def _only(table: dict[str, Any], names: Collection[str]) -> None:
    for name in table:
        if name not in names:
            choices = ", ".join(sorted(names))
            raise ValueError(f"{name!r} is not known here: there are {choices}")


def _limit(name: str, value: object) -> str | float:
    """Take sizes as text or as bytes, weights as numbers."""
    match name, value:
        case "weight", int() | float() if not isinstance(value, bool):
            return _weight(value)
        case "floor" | "ceiling" | "headroom", str():
            return value
        case "floor" | "ceiling" | "headroom", int() if not isinstance(value, bool):
            return str(value)
        case _:
            kind = "a number" if name == "weight" else 'a size, like "2GiB" or "25%"'
            raise ValueError(f"{name} is {value!r}: give {kind}")


def _weight(value: float) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf  # which is no weight, as a file can have it too


def _sockets(pattern: str) -> list[Path]:
    # Path.glob cannot take a pattern that is absolute.
    found = map(Path, sorted(glob.glob(pattern, recursive=True)))  # noqa: PTH207
    return [path for path in found if path.is_socket()]


def _named(vm: Vm) -> Spec:
    """Return a VM that is called after its address."""
    match vm:
        case UnixAddress(path):
            return Spec(_socket_name(Path(path)), vm)
        case LibvirtVm(name):
            return Spec(name, vm)
        case _:
            return Spec(str(vm).removeprefix("tcp:"), vm)


def _socket_name(path: Path) -> str:
    return path.parent.name if path.stem in _PLAIN and path.parent.name else path.stem


def _distinct(specs: Iterable[Spec]) -> list[Spec]:
    """Leave each monitor out but once, and give each VM a name of its own."""
    by_address: dict[Vm, Spec] = {}
    for spec in specs:
        by_address.setdefault(spec.address, spec)
    names = Counter(spec.name for spec in by_address.values())
    return [
        evolve(spec, name=str(spec.address)) if names[spec.name] > 1 else spec
        for spec in by_address.values()
    ]


# QEMU processes, by their command lines

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
