"""The size that a guest must get back, in a file that outlives this process.

A process that has taken memory from a guest may be killed before it gives the memory
back. QEMU has no command that returns what the guest had before. So the size is written
to a file before the first target is sent, and the next run reads it.

The files are in ``/run/qmpballoon`` for root, in ``$XDG_RUNTIME_DIR/qmpballoon`` for
others, or in ``/run/user/UID/qmpballoon`` if that is not set. The variable
``QMPBALLOON_RUNTIME_DIR`` names another folder; if it is empty, nothing is noted. These
folders are emptied when the host restarts, which ends all QEMUs anyway. A file is named
after QEMU's process: its id and the time at which it began.

While the process that took the memory runs, it *holds* what it took, and gives it back
itself. So its file names it, by its id and the time at which it began, and others keep
away from that guest. The size is owed from the moment at which the process has ended,
even if nobody has waited for it (a zombie), or at which it says that it does not hold
the memory any more. In doubt nobody holds it, because then the guest gets its memory
back: where a file names no process, where ``/proc`` does not show the process
(``hidepid``), or where the process was forked from the one that took the memory and
outlived it. A process that replaces its program (``exec``) meanwhile counts as running
until that program has ended.

Of several processes that begin at the same moment, one holds the memory: who writes or
removes a file locks the folder before it looks whom the file names.

Processes in different pid or time namespaces do not see each other's files, even in one
folder: QEMU's process has another id, or began at another time, in each of them. So
each file also has the names of its process' namespaces. Otherwise the QEMUs of others
would seem to have ended, and their files would be removed.

Files that others could have written are not believed: the folder and its files must
belong to this user, and nobody else may write there. No symbolic link is followed.

Source: XDG Base Directory Specification; file-hierarchy(7); flock(2); namespaces(7).
"""

from __future__ import annotations

import errno
import fcntl
import json
import math
import os
import stat
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from qmpballoon._checks import is_size
from qmpballoon._transport.qemu_process import read_start_time, read_state

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["OwedSizeFile"]

_FOLDER: Final = "qmpballoon"
_RUN_USER: Final = Path("/run/user")
_VARIABLE: Final = "QMPBALLOON_RUNTIME_DIR"
_SUFFIX: Final = ".json"
_NEW: Final = ".new"  # follows the name of a file that is being written
_LONGEST: Final = 4096  # bytes of a file; ours have fewer than 200
_ENDED: Final = frozenset({"Z", "X", None})  # states of a process, as in proc(5)
_NAMESPACES: Final = ("pid", "time")  # in each, /proc shows other processes or times
# How often, and after how many seconds, a locked folder is tried again. Whoever locks
# it does so for less than a millisecond, unless it is stopped meanwhile.
_LOCK_TRIES: Final = 200
_LOCK_PAUSE: Final = 0.005
# Seconds for which a size still counts after QEMU was asked to give it back. A guest
# that can take its memory back does so within minutes. If it has less later, somebody
# else has decided that.
_RETURNS_WITHIN: Final = 600.0
# Seconds between two looks for files that are not needed. A look takes 25 microseconds
# for each file, and a fleet with a thousand of them writes as many at one moment.
_CLEAN_EVERY: Final = 60.0
_cleaned_at: Final[dict[Path, float]] = {}  # by folder, of which a process has one


def _read_boot_clock() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class OwedSizeFile:
    """The file of one QEMU.

    Args:
        pid: QEMU's process id.
        folder: Where the file is; by default as the module says.
        clock: Returns seconds on a clock that nobody sets and that does not stand while
            the host sleeps.
    """

    def __init__(
        self,
        pid: int,
        folder: Path | None = None,
        clock: Callable[[], float] = _read_boot_clock,
    ) -> None:
        self._pid = pid
        self._folder = folder or _find_folder()
        self._clock = clock

    def read(self) -> int | None:
        """Return the size in bytes; ``None`` if none is owed, or none can be read.

        What a process that runs holds is not owed.
        """
        with suppress(OSError, ValueError, TypeError, KeyError, RecursionError):
            return self._read()
        return None

    def read_holder(self) -> int | None:
        """Return the id of the process that holds the guest's memory.

        ``None`` if there is none, or if it has ended.
        """
        with suppress(OSError, ValueError, RecursionError):
            return _find_holder(self._load())
        return None

    def _read(self) -> int | None:
        noted: Any = self._load()
        size, asked_at = noted["size"], noted["asked_at"]
        if not is_size(size) or size == 0 or _find_holder(noted) is not None:
            return None
        is_old = asked_at is not None and not (
            0 <= self._clock() - asked_at <= _RETURNS_WITHIN
        )
        return None if is_old else size

    def _load(self) -> object:
        """Return what is noted; ``None`` if nothing can be noted."""
        name = self._name()
        if self._folder is None or name is None:
            return None
        with _Folder(self._folder) as folder:
            return json.loads(_read_file(name, folder))

    def note(
        self,
        size: int,
        *,
        is_returning: bool = False,
        is_held: bool = False,
        own: int | None = None,
    ) -> int | None:
        """Note the size that the guest must get back, unless somebody else holds it.

        Args:
            size: Bytes.
            is_returning: Whether QEMU has already been asked to give it back.
            is_held: Whether this process holds the memory, and gives it back itself.
            own: The process whose hold this ends; that of any other stands.

        Returns:
            The id of a process that holds the memory; then nothing was noted.

        Raises:
            OSError: It cannot be written.
        """
        name = self._name()
        if self._folder is None or name is None:
            return None
        asked_at = self._clock() if is_returning else None
        holder = _describe_self() if is_held else None
        text = json.dumps({"size": size, "asked_at": asked_at, "holder": holder})
        try:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            with _Folder(self._folder, lock=True) as folder:
                self._clean(self._folder, folder)
                if (other := _find_other(name, folder, own)) is None:
                    _write_file(name, folder, text)
                return other
        except OSError as error:
            if error.errno is None:
                raise
            # Files within are opened by the folder's descriptor: their errors lack it.
            raise OSError(error.errno, error.strerror, str(self._folder)) from error

    def clear(self, own: int | None = None) -> None:
        """Forget the size: the guest got it back, or somebody chose a new size.

        Args:
            own: The process whose hold this ends; the note of any other stands.

        Raises:
            OSError: The file cannot be removed.
        """
        name = self._name()
        if self._folder is None or name is None:
            return
        with suppress(FileNotFoundError), _Folder(self._folder, lock=True) as folder:
            if _find_other(name, folder, own) is None:
                os.unlink(name, dir_fd=folder)

    def _clean(self, path: Path, folder: int) -> None:
        """Remove what is not needed, unless that was done a moment ago."""
        now = self._clock()
        if not 0 <= now - _cleaned_at.get(path, -math.inf) < _CLEAN_EVERY:
            _cleaned_at[path] = now
            _remove_ended(folder)

    def _name(self) -> str | None:
        """Return the file's name; ``None`` if QEMU has ended."""
        started = read_start_time(self._pid)
        if started is None:
            return None
        return f"{self._pid}-{started}-{_read_namespaces()}{_SUFFIX}"


def _describe_self() -> dict[str, int | None]:
    """Return what tells this process from all others."""
    pid = os.getpid()
    return {"pid": pid, "started": read_start_time(pid)}


def _find_holder(noted: object) -> int | None:
    """Return the process that holds the memory, unless it has ended."""
    match noted:
        case {"holder": {"pid": int(pid), "started": int(started)}}:
            runs = read_start_time(pid) == started and read_state(pid) not in _ENDED
            return pid if runs else None
        case _:
            return None


def _find_other(name: str, folder: int, own: int | None) -> int | None:
    """Return the process that holds the memory by a file, unless it is that one."""
    with suppress(OSError, ValueError, RecursionError):
        holder = _find_holder(json.loads(_read_file(name, folder)))
        return None if holder == own else holder
    return None


def _find_folder() -> Path | None:
    """Return the folder for this user's files; ``None`` if nothing is noted."""
    given = os.environ.get(_VARIABLE)
    if given is not None:
        return Path(given) if Path(given).is_absolute() else None
    if os.geteuid() == 0:
        return Path("/run", _FOLDER)
    base = os.environ.get("XDG_RUNTIME_DIR", "")
    own = _RUN_USER / str(os.geteuid())
    if not base and os.path.isdir(own):  # noqa: PTH112 - a service may not look there
        return own / _FOLDER  # a job of cron has no such variable
    return Path(base, _FOLDER) if Path(base).is_absolute() else None


class _Folder:
    """A folder that is this user's own, as a descriptor in a ``with`` block.

    Args:
        path: The folder.
        lock: Whether to lock it, so that files are looked at and changed by one process
            at a time.

    Raises:
        OSError: There is none, it is not safe, or it stays locked.
    """

    def __init__(self, path: Path, *, lock: bool = False) -> None:
        self._path = path
        self._lock = lock
        self._descriptor = -1

    def __enter__(self) -> int:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        self._descriptor = os.open(self._path, flags)
        try:
            if not _is_ours(os.fstat(self._descriptor)):
                raise PermissionError(f"{self._path} is not this user's alone")
            if self._lock:
                _lock_folder(self._descriptor)
        except OSError:
            os.close(self._descriptor)
            raise
        return self._descriptor

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)  # this ends the lock, too


def _lock_folder(folder: int) -> None:
    for _ in range(_LOCK_TRIES):
        with suppress(BlockingIOError):
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        time.sleep(_LOCK_PAUSE)
    raise TimeoutError(errno.ETIMEDOUT, "another process has locked it")


def _is_ours(found: os.stat_result) -> bool:
    others_write = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return found.st_uid == os.geteuid() and not others_write


def _read_file(name: str, folder: int) -> bytes:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(name, flags, dir_fd=folder)
    try:
        found = os.fstat(descriptor)
        if not (stat.S_ISREG(found.st_mode) and _is_ours(found)):
            raise PermissionError(f"{name} is not this user's alone")
        return os.read(descriptor, _LONGEST)
    finally:
        os.close(descriptor)


def _write_file(name: str, folder: int, text: str) -> None:
    """Write a file in one step: others find the old one or the new one."""
    new = f".{name}{_NEW}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with open(os.open(new, flags, 0o600, dir_fd=folder), "w") as file:  # noqa: PTH123 - a descriptor
            file.write(text)
        os.replace(new, name, src_dir_fd=folder, dst_dir_fd=folder)
    except OSError:
        with suppress(OSError):
            os.unlink(new, dir_fd=folder)  # there is no room for it, perhaps
        raise


def _remove_ended(folder: int) -> None:
    """Remove the files of QEMUs that have ended, and those that were not finished.

    Only of this process' namespaces, and while the folder is locked.
    """
    ours = f"-{_read_namespaces()}{_SUFFIX}"
    for name in os.listdir(folder):
        process, own, rest = name.removeprefix(".").partition(ours)
        pid, _, started = process.partition("-")
        if not (own and pid.isdecimal() and started.isdecimal()):
            continue
        if rest or str(read_start_time(int(pid))) != started:
            with suppress(OSError):
                os.unlink(name, dir_fd=folder)


def _read_namespaces() -> str:
    """Return what tells this process' pid and time namespace from all others."""
    found = ["0"] * len(_NAMESPACES)
    for index, kind in enumerate(_NAMESPACES):
        with suppress(OSError):
            found[index] = str(Path("/proc/self/ns", kind).stat().st_ino)
    return "-".join(found)
