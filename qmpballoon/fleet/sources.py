"""Which VMs there are: by monitor sockets, by a file, by running QEMU processes.

A :class:`Source` is called again and again, because VMs start and stop. It connects to
nothing. Whether a VM runs is known once its monitor is connected to.

A TOML file lists VMs, and their limits as in :class:`~qmpballoon.fleet.VmSpec`::

    [defaults]                    # for each VM that has no value of its own
    headroom = "10%"

    [[vm]]
    name = "database"
    address = "/run/vms/database.qmp"
    floor = "4GiB"
    weight = 2

    [[vm]]
    sockets = "/run/vms/web-*.qmp"
    ceiling = "50%"

QEMU processes are found in /proc. Their monitors are read from their command lines:
see proc(5), and ``-qmp``, ``-mon``, ``-chardev socket`` and ``-name`` in QEMU's manual.
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
from qmpballoon.fleet.vm_spec import VmSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

__all__ = [
    "Source",
    "find_host_vms",
    "find_processes",
    "make_file_source",
    "make_socket_source",
    "make_source",
    "parse_monitors",
]

Source: TypeAlias = "Callable[[], list[VmSpec]]"
"""A function that returns the VMs that there are now."""

PLACES: Final = (
    "/run/qemu-server/*.qmp",  # Proxmox VE
    # Incus and LXD: the monitor is not on QEMU's command line.
    "/run/incus/*/qemu.monitor",
    "/var/log/incus/*/qemu.monitor",
    "/var/log/lxd/*/qemu.monitor",
    "/var/snap/lxd/common/lxd/logs/*/qemu.monitor",
)
"""Where VM managers put the monitor sockets of their VMs."""

_LIMITS: Final = frozenset({"floor", "ceiling", "headroom", "weight"})
# A socket with such a name is named after its folder.
_GENERIC_NAMES: Final = frozenset({"monitor", "qemu", "qmp", "qmp-monitor"})


def make_source(wanted: Sequence[str]) -> Source:
    """Return the source that a list of arguments describes.

    Args:
        wanted: TOML files (``*.toml``), globs of monitor sockets, or addresses such as
            ``tcp:HOST:PORT`` or ``libvirt:NAME``. If it is empty, the source returns
            the QEMUs that run on this host.

    Returns:
        The source. It returns each monitor once, and gives each VM a name of its own.

    Raises:
        OSError: A file, or the folder of a glob, cannot be read.
        ValueError: A file or an address is malformed. The message says where.
    """
    if not wanted:
        return find_host_vms
    parts = [_make_one_source(text) for text in wanted]
    return lambda: _make_distinct(spec for part in parts for spec in part())


def _make_one_source(text: str) -> Source:
    if text.endswith(".toml"):
        return make_file_source(Path(text))
    if text.startswith(("tcp:", "libvirt:")):
        named = _name_after_address(parse_vm(text))
        return lambda: [named]
    return _make_readable_source(text.removeprefix("unix:"))


# Sockets


def make_socket_source(pattern: str) -> Source:
    """Return a source of the unix sockets that match a glob; ``**`` is supported.

    A pattern without wildcards is always a VM, even if there is no socket.

    Raises:
        ValueError: The pattern is not a path that a socket can have.
    """
    if not glob.has_magic(pattern):
        named = _name_after_address(UnixAddress(pattern))
        return lambda: [named]
    return lambda: [
        VmSpec(_name_after_path(path), UnixAddress(str(path)))
        for path in _list_sockets(pattern)
    ]


def _make_readable_source(pattern: str) -> Source:
    """Return the source of a glob whose folder can be read.

    Raises:
        OSError: There is no permission to list the folder. Without this error the
            glob would match nothing, as if there were no VMs.
        ValueError: The pattern is not a path that a socket can have.
    """
    source = make_socket_source(pattern)
    if not glob.has_magic(pattern):
        return source
    parts = takewhile(lambda part: not glob.has_magic(part), Path(pattern).parts)
    folder = Path(*parts)
    # A folder that does not exist may be created later.
    if folder.is_dir() and not os.access(folder, os.R_OK | os.X_OK, effective_ids=True):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))
    return source


def _list_sockets(pattern: str) -> list[Path]:
    # Path.glob refuses absolute patterns.
    found = map(Path, sorted(glob.glob(pattern, recursive=True)))  # noqa: PTH207
    return [path for path in found if path.is_socket()]


# Names


def _name_after_address(vm: Vm) -> VmSpec:
    match vm:
        case UnixAddress(path):
            return VmSpec(_name_after_path(Path(path)), vm)
        case LibvirtVm(name):
            return VmSpec(name, vm)
        case _:
            return VmSpec(str(vm).removeprefix("tcp:"), vm)


def _name_after_path(path: Path) -> str:
    is_generic = path.stem in _GENERIC_NAMES and path.parent.name
    return path.parent.name if is_generic else path.stem


def _make_distinct(specs: Iterable[VmSpec]) -> list[VmSpec]:
    """Drop repeated addresses; where VMs share a name, use their addresses."""
    by_address: dict[Vm, VmSpec] = {}
    for spec in specs:
        by_address.setdefault(spec.address, spec)
    names = Counter(spec.name for spec in by_address.values())
    return [
        evolve(spec, name=str(spec.address)) if names[spec.name] > 1 else spec
        for spec in by_address.values()
    ]


# Files


def make_file_source(path: Path) -> Source:
    """Return the source that a TOML file describes. The file is read once.

    Args:
        path: The file. The module's description shows the format.

    Raises:
        OSError: The file, or the folder of a glob in it, cannot be read.
        ValueError: The file is malformed. The message says where.
    """
    try:
        entries = _read_document(tomllib.loads(path.read_text(encoding="utf-8")))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: {error}: save it as UTF-8") from error
    except RecursionError as error:
        raise ValueError(f"{path}: it is nested too deep") from error
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
    return lambda: [spec for entry in entries for spec in entry()]


def _read_document(document: dict[str, Any]) -> list[Source]:
    _refuse_unknown(document, {"defaults", "vm"})
    defaults, vms = document.get("defaults", {}), document.get("vm", [])
    if not _are_tables([defaults]):
        raise TypeError(f"defaults are {defaults!r}: write [defaults] above them")
    if not _are_tables(vms):
        raise TypeError(f"vm is {vms!r}: write [[vm]] above each VM's lines")
    _refuse_unknown(defaults, _LIMITS)
    tables: list[dict[str, Any]] = [{**defaults, **vm} for vm in vms]
    entries = [_read_vm(table) for table in tables]
    _refuse_repeated("named", [repr(vm["name"]) for vm in tables if "name" in vm])
    alone = [number for number, vm in enumerate(tables) if "address" in vm]
    specs = [spec for number in alone for spec in entries[number]()]
    _refuse_repeated("at", [str(spec.address) for spec in specs])
    return entries


def _are_tables(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(each, dict) for each in cast("list[object]", value)
    )


def _refuse_repeated(what: str, values: Iterable[str]) -> None:
    for text, count in Counter(values).items():
        if count > 1:
            raise ValueError(f"there are {count} VMs {what} {text}: leave one")


def _read_vm(table: dict[str, Any]) -> Source:
    """Read one ``[[vm]]`` table: one VM, or all VMs whose sockets match a glob."""
    _refuse_unknown(table, {"name", "address", "sockets"} | _LIMITS)
    limits: dict[str, Any] = {
        name: _read_limit(name, table[name]) for name in _LIMITS & table.keys()
    }
    # Check the limits now, and not when the first socket appears.
    evolve(VmSpec("any", UnixAddress("any")), **limits)
    match table:
        case {"name": name} if not (isinstance(name, str) and name):
            raise ValueError(f'name is {name!r}: give text, like "database"')
        case {"sockets": _, "name": _}:
            raise ValueError("sockets name their VMs themselves: leave name out")
        case {"sockets": str(pattern)} if "address" not in table:
            find = _make_readable_source(pattern)
            return lambda: [evolve(spec, **limits) for spec in find()]
        case {"address": address} if "sockets" not in table:
            spec = _name_after_address(parse_vm(address))
            named = evolve(spec, name=table.get("name", spec.name), **limits)
            return lambda: [named]
        case _:
            raise ValueError("a [[vm]] needs either an address or sockets (a glob)")


def _refuse_unknown(table: dict[str, Any], names: Collection[str]) -> None:
    for name in table:
        if name not in names:
            choices = ", ".join(sorted(names))
            raise ValueError(f"{name!r} is unknown: use {choices}")


def _read_limit(name: str, value: object) -> str | float:
    """Read a size, given as text or as bytes, or a weight."""
    match name, value:
        case "weight", int() | float() if not isinstance(value, bool):
            return _read_weight(value)
        case "floor" | "ceiling" | "headroom", str():
            return value
        case "floor" | "ceiling" | "headroom", int() if not isinstance(value, bool):
            return str(value)
        case _:
            kind = "a number" if name == "weight" else 'a size, like "2GiB" or "25%"'
            raise ValueError(f"{name} is {value!r}: give {kind}")


def _read_weight(value: float) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf  # VmSpec refuses it, as it refuses an `inf` in the file


# QEMU processes

_PROC: Final = Path("/proc")
_PROGRAMS: Final = ("qemu-system-", "qemu-kvm", "kvm")
# Where to connect to, by the host that QEMU listens on.
_ANYWHERE: Final = {"": "localhost", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - compared with


def find_host_vms() -> list[VmSpec]:
    """Return the VMs whose QEMUs run on this host, and those at :data:`PLACES`."""
    found = [VmSpec(name, address) for name, address in find_processes()]
    places = (spec for place in PLACES for spec in make_socket_source(place)())
    return _make_distinct([*found, *places])


def find_processes(proc: Path = _PROC) -> Iterator[tuple[str, Address]]:
    """Yield the VM's name and the monitor of each QEMU process that has a monitor.

    Of several monitors the last one is taken. The first is often held by another
    manager of the VM.

    Args:
        proc: Where the process file system is.
    """
    for process in sorted(proc.glob("[0-9]*"), key=lambda path: int(path.name)):
        try:
            line = (process / "cmdline").read_bytes().decode(errors="replace")
            folder = (process / "cwd").readlink()
        except OSError:  # it has ended, or belongs to another user
            continue
        program, *arguments = line.removesuffix("\0").split("\0")
        if not Path(program).name.startswith(_PROGRAMS):
            continue
        for address in parse_monitors(arguments, folder)[-1:]:
            yield _parse_name(arguments) or f"pid-{process.name}", address


def parse_monitors(arguments: Sequence[str], folder: Path) -> list[Address]:
    """Return the QMP monitors of a QEMU that a client can connect to.

    Args:
        arguments: QEMU's command line, without the program.
        folder: QEMU's working directory, which relative paths start from.
    """
    options = list(_split_options(arguments))
    chardevs = [
        _parse_members(text, "backend") for name, text in options if name == "chardev"
    ]
    by_id = {chardev.get("id"): chardev for chardev in chardevs}
    found: list[Address | None] = []
    for name, text in options:
        if name in ("qmp", "qmp-pretty"):
            found.append(_parse_shorthand(text, folder))
        elif name == "mon":
            mon = _parse_members(text, "chardev")
            if mon.get("mode") == "control":
                found.append(_make_address(by_id.get(mon.get("chardev"), {}), folder))
    return [address for address in found if address is not None]


def _split_options(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    for option, value in pairwise(arguments):
        if option.startswith("-"):
            yield option.lstrip("-"), value


def _parse_members(text: str, first: str) -> dict[str, str]:
    """Parse ``name=value,...``, QEMU's syntax for options.

    A name without a value is on. Two commas stand for one comma in a value.

    Args:
        text: The option's value.
        first: The name of the first member, which may be left out.
    """
    members: dict[str, str] = {}
    parts = text.replace(",,", "\0").split(",")
    for number, part in enumerate(parts):
        name, equals, value = part.replace("\0", ",").partition("=")
        if number == 0 and not equals:
            name, value = first, name
        members[name] = value if equals or number == 0 else "on"
    return members


def _parse_shorthand(text: str, folder: Path) -> Address | None:
    """Parse what ``-qmp`` takes: ``unix:PATH,server=on`` or ``tcp:HOST:PORT,...``."""
    members = _parse_members(text, "where")
    kind, _, rest = members.get("where", "").partition(":")
    if kind == "unix":
        members["path"] = rest
    elif kind == "tcp":
        members["host"], _, members["port"] = rest.rpartition(":")
    return _make_address(members, folder)


def _make_address(socket: dict[str, str], folder: Path) -> Address | None:
    """Return where to connect to; ``None`` if QEMU does not listen on the socket."""
    if socket.get("server") != "on":
        return None
    try:
        if "path" in socket:
            return parse_address(str(folder / socket["path"]))
        host = socket.get("host", "").strip("[]")
        return TcpAddress(_ANYWHERE.get(host, host), int(socket.get("port", "")))
    except ValueError:
        return None


def _parse_name(arguments: Sequence[str]) -> str:
    for option, text in _split_options(arguments):
        if option == "name":
            return _parse_members(text, "guest").get("guest", "")
    return ""
