"""Which VMs there are: by monitor sockets, by a file, by running QEMU processes.

A :class:`Source` is called again and again, because VMs start and stop. It connects to
nothing. Whether a VM runs is known once its monitor is connected to.

One QEMU is one VM, even if several monitors, paths, links, or entries of a file lead to
it. An entry that names one VM has precedence over a glob. Of several monitors that a
glob matches, the last one on QEMU's command line is taken, because a manager of the VM
often holds the first. A monitor that such a manager needs is never taken.

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
"""

from __future__ import annotations

import errno
import glob
import math
import os
import stat
import tomllib
from collections import Counter
from contextlib import suppress
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar, cast

from attrs import evolve, frozen

from qmpballoon._printable import make_printable
from qmpballoon.address import LibvirtVm, UnixAddress, Vm, parse_vm
from qmpballoon.fleet.processes import (
    QemuProcess,
    choose_users,
    find_folder_problem,
    find_manager,
    find_processes,
    identify_socket,
)
from qmpballoon.fleet.vm_spec import Refused, VmSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Hashable, Iterable, Sequence

__all__ = ["Source", "make_source"]

Source: TypeAlias = "Callable[[], Sequence[VmSpec | Refused]]"
"""A function that returns the VMs that there are now, and what was refused."""

_LIMITS: Final = frozenset({"floor", "ceiling", "headroom", "weight"})
# A socket with such a name is named after its folder.
_GENERIC_NAMES: Final = frozenset({"monitor", "qemu", "qmp", "qmp-monitor"})


@frozen
class _Candidate:
    """A VM that an argument or an entry of a file leads to.

    Attributes:
        spec: The VM.
        is_specific: Whether the VM itself was named, and not matched by a glob.
    """

    spec: VmSpec
    is_specific: bool


_Entry: TypeAlias = "Callable[[], Sequence[_Candidate | Refused]]"


def make_source(wanted: Sequence[str], *, users: Sequence[str] = ()) -> Source:
    """Return the source that a list of arguments describes.

    Args:
        wanted: TOML files (``*.toml``), globs of monitor sockets, or addresses such as
            ``tcp:HOST:PORT`` or ``libvirt:NAME``. If it is empty, the source returns
            the QEMUs that run on this host.
        users: The users whose QEMUs and sockets are trusted, by name or id. The user of
            this process is trusted as well. If that is root, only the users named here
            are trusted; if there are none, root and the users that VM managers'
            packages run QEMU as. This concerns VMs that are found by processes and
            globs. An address that is given explicitly is trusted.

    Returns:
        The source. It returns each QEMU once, and gives each VM a name of its own. What
        cannot be trusted or reached is returned as refused, with the reason. It raises
        nothing: an entry that cannot be read is refused, and its VMs stay.

    Raises:
        OSError: A file, or the folder of a glob, cannot be read.
        ValueError: A file or an address is malformed, or there is no such user. The
            message says where.
    """
    trusted = choose_users(users)
    read_processes = _keep_last(
        "/proc", lambda last: find_processes(trusted, known=last)
    )
    if not wanted:
        return lambda: _make_distinct(map(_manage, read_processes()))
    entries = [entry for text in wanted for entry in _make_entries(text, trusted)]

    def find() -> list[VmSpec | Refused]:
        scanned = read_processes()
        processes = [each for each in scanned if isinstance(each, QemuProcess)]
        found = [each for entry in entries for each in entry()]
        candidates = [each for each in found if isinstance(each, _Candidate)]
        # Refused processes are not reported, as nobody asked for them. A search that
        # failed is reported.
        refused = [
            each
            for each in (*scanned, *found)
            if isinstance(each, Refused) and each.pid is None
        ]
        return [*_make_distinct(_merge(candidates, processes)), *refused]

    return find


_T = TypeVar("_T")


def _keep_last(
    name: str, find: Callable[[Sequence[_T | Refused]], Sequence[_T | Refused]]
) -> Callable[[], Sequence[_T | Refused]]:
    """Return a function that raises nothing: what was found last time stays.

    Args:
        name: The name of the search in messages, if it fails.
        find: Called with what was found last time; returns what there is now.
    """
    last: Sequence[_T | Refused] = ()

    def find_or_keep() -> Sequence[_T | Refused]:
        nonlocal last
        try:
            last = find(last)
        except Exception as error:  # noqa: BLE001 - whatever it is, others go on
            reason = f"it cannot be searched: {make_printable(str(error))}"
            kept = [each for each in last if not isinstance(each, Refused)]
            return [*kept, Refused(make_printable(name), reason)]
        return last

    return find_or_keep


def _make_entries(text: str, trusted: Collection[int]) -> list[_Entry]:
    if text.endswith(".toml"):
        return _read_file(Path(text), trusted)
    if text.startswith(("tcp:", "libvirt:", "unix-abstract:")):
        return [_make_specific(_name_after_address(parse_vm(text)))]
    return [_make_readable_entry(text.removeprefix("unix:"), trusted)]


def _make_specific(spec: VmSpec) -> _Entry:
    return lambda: [_Candidate(spec, is_specific=True)]


# One QEMU, one VM


def _manage(found: QemuProcess | Refused) -> VmSpec | Refused:
    """Return the VM of a QEMU that was found by its process."""
    if isinstance(found, Refused):
        return found
    monitor = found.choose_monitor()
    if monitor is None:
        return Refused(found.name, found.explain_refusal(), pid=found.pid)
    return VmSpec(
        found.name,
        monitor.address,
        is_named=False,
        process=found.identity,
        socket=monitor.socket,
    )


def _merge(
    candidates: Sequence[_Candidate], processes: Sequence[QemuProcess]
) -> list[VmSpec | Refused]:
    """Return one VM for each QEMU that candidates lead to, in their order."""
    owners = {
        monitor.identity: (process, number)
        for process in processes
        for number, monitor in enumerate(process.monitors)
    }
    groups: dict[Hashable, list[tuple[tuple[bool, int], VmSpec]]] = {}
    by_identity: dict[Hashable, QemuProcess] = {}
    for each in candidates:
        address = each.spec.address
        socket = None if isinstance(address, LibvirtVm) else identify_socket(address)
        process, number = owners.get(address if socket is None else socket, (None, 0))
        identity = process.identity if process else None
        spec = evolve(each.spec, process=identity, socket=socket)
        # A VM that was named comes first; of the others, the last on the command line.
        rank = (each.is_specific, 0 if each.is_specific else number)
        known = (each for each in (identity, socket) if each is not None)
        key = next(known, address)
        if process is not None:
            by_identity[key] = process
        groups.setdefault(key, []).append((rank, spec))
    return [
        _take_free(max(group, key=lambda pair: pair[0])[1], by_identity.get(key))
        for key, group in groups.items()
    ]


def _take_free(spec: VmSpec, process: QemuProcess | None) -> VmSpec | Refused:
    """Return a VM with a monitor that no manager of VMs needs."""
    address = spec.address
    if isinstance(address, LibvirtVm) or not (manager := find_manager(address)):
        return spec
    monitor = process.choose_monitor() if process else None
    if monitor is None:
        reason = f"this monitor is {manager}"
        pid = process.pid if process else None
        return Refused(spec.name, reason, str(address), pid)
    return evolve(spec, address=monitor.address, socket=monitor.socket)


def _make_distinct(found: Iterable[VmSpec | Refused]) -> list[VmSpec | Refused]:
    """Name VMs that share a name by their addresses, whatever QEMU calls them."""
    found = list(found)
    names = Counter(each.name for each in found if isinstance(each, VmSpec))
    return [
        evolve(each, name=str(each.address), is_named=True)
        if isinstance(each, VmSpec) and names[each.name] > 1
        else each
        for each in found
    ]


# Sockets


def _make_readable_entry(pattern: str, trusted: Collection[int]) -> _Entry:
    """Return the entry of a path, or of a glob whose folder can be read.

    A pattern without wildcards is always a VM, even if there is no socket. ``**`` is
    supported.

    Raises:
        OSError: There is no permission to list the folder, or it cannot be reached.
            Without this error the glob would match nothing, as if there were no VMs.
        ValueError: The pattern is not a path that a socket can have.
    """
    if not glob.has_magic(pattern):
        return _make_specific(_name_after_address(UnixAddress(pattern)))
    parts = takewhile(lambda part: not glob.has_magic(part), Path(pattern).parts)
    folder = Path(*parts)
    # A folder that does not exist may be created later. Path.is_dir, from Python 3.14
    # on, takes one that cannot be reached for one that does not exist.
    with suppress(FileNotFoundError, NotADirectoryError):
        is_folder = stat.S_ISDIR(folder.stat().st_mode)
        may_list = os.access(folder, os.R_OK | os.X_OK, effective_ids=True)
        if is_folder and not may_list:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))
    return _keep_last(pattern, lambda _: _find_sockets(pattern, trusted))


def _find_sockets(pattern: str, trusted: Collection[int]) -> list[_Candidate | Refused]:
    # If no descriptor is left, a glob matches nothing without an error: raise it here.
    os.close(os.open("/", os.O_PATH | os.O_CLOEXEC))
    # Path.glob refuses absolute patterns.
    found = map(Path, sorted(glob.glob(pattern, recursive=True)))  # noqa: PTH207
    return [_examine_socket(path, trusted) for path in found if _may_be_socket(path)]


def _may_be_socket(path: Path) -> bool:
    try:
        return path.is_socket()
    except (OSError, ValueError):
        return False


def _examine_socket(path: Path, trusted: Collection[int]) -> _Candidate | Refused:
    """Return what a socket leads to; whatever goes wrong concerns this socket only."""
    name = make_printable(str(path))
    try:
        if problem := find_folder_problem(str(path), trusted):
            return Refused(name, problem, name)
        address = UnixAddress(str(path), users=trusted)
        return _Candidate(_name_after_address(address), is_specific=False)
    except Exception as error:  # noqa: BLE001 - see above
        return Refused(name, f"it cannot be looked at: {error!r}", name)


# Names


def _name_after_address(vm: Vm) -> VmSpec:
    match vm:
        case UnixAddress(path):
            return VmSpec(_name_after_path(Path(path)), vm)
        case LibvirtVm(name):
            return VmSpec(make_printable(name), vm)
        case _:
            text = str(vm).removeprefix("tcp:").removeprefix("unix-abstract:")
            return VmSpec(make_printable(text), vm)


def _name_after_path(path: Path) -> str:
    is_generic = path.stem in _GENERIC_NAMES and path.parent.name
    return make_printable(path.parent.name if is_generic else path.stem)


# Files


def _read_file(path: Path, trusted: Collection[int]) -> list[_Entry]:
    """Return the entries of a TOML file, which is read once.

    Raises:
        OSError: The file, or the folder of a glob in it, cannot be read.
        ValueError: The file is malformed. The message says where.
    """
    try:
        # Editors on Windows begin a file with a byte-order mark.
        document = tomllib.loads(_read_text(path).removeprefix("\ufeff"))
        return _read_document(document, trusted)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: {error}: save it as UTF-8") from error
    except RecursionError as error:
        raise ValueError(f"{path}: it is nested too deep") from error
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:  # its own message may not name the file
        raise OSError(error.errno, error.strerror, str(path)) from error


def _read_document(document: dict[str, Any], trusted: Collection[int]) -> list[_Entry]:
    _refuse_unknown(document, {"defaults", "vm"})
    defaults, vms = document.get("defaults", {}), document.get("vm", [])
    if not _are_tables([defaults]):
        raise TypeError(f"defaults are {defaults!r}: write [defaults] above them")
    if not _are_tables(vms):
        raise TypeError(f"vm is {vms!r}: write [[vm]] above each VM's lines")
    _refuse_unknown(defaults, _LIMITS)
    tables: list[dict[str, Any]] = [{**defaults, **vm} for vm in vms]
    read = [_read_vm(table, trusted) for table in tables]
    _refuse_repeated("named", [repr(vm["name"]) for vm in tables if "name" in vm])
    specs = [each for each in read if isinstance(each, VmSpec)]
    _refuse_repeated("at", [str(spec.address) for spec in specs])
    return [_make_specific(each) if isinstance(each, VmSpec) else each for each in read]


def _are_tables(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(each, dict) for each in cast("list[object]", value)
    )


def _refuse_repeated(what: str, values: Iterable[str]) -> None:
    for text, count in Counter(values).items():
        if count > 1:
            raise ValueError(f"there are {count} VMs {what} {text}: leave one")


def _read_vm(table: dict[str, Any], trusted: Collection[int]) -> VmSpec | _Entry:
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
            find = _make_readable_entry(pattern, trusted)
            return lambda: [_limit(each, limits) for each in find()]
        case {"address": address} if "sockets" not in table:
            spec = _name_after_address(parse_vm(address))
            name = make_printable(table.get("name", spec.name))
            return evolve(spec, name=name, **limits)
        case _:
            raise ValueError("a [[vm]] needs either an address or sockets (a glob)")


def _limit(found: _Candidate | Refused, limits: dict[str, Any]) -> _Candidate | Refused:
    if isinstance(found, Refused):
        return found
    return evolve(found, spec=evolve(found.spec, **limits))


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
