"""Saved guests: a booted guest is saved once, and started again in place of booting.

QEMU writes the guest's state to a file, as for a migration, and reads it again with
``-incoming``. Starting a saved guest takes 0.3 s where booting takes 4 s.

Each saved guest is a folder in the cache folder. Its name is a digest of everything
that the guest depends on: QEMU, kernel, initramfs, QEMU's arguments, and what the
guest has cached, allocated and run. The folder holds QEMU's file and ``about.json``,
which has the file's size and checksum. It gets its name once it is complete, and a file
whose size or checksum is wrong is not used. The folders that were not used for the
longest time are removed when all of them need more than :data:`MOST_SPACE`.
"""

from __future__ import annotations

import hashlib
import json
import shlex
import shutil
import zlib
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import TYPE_CHECKING, Final, cast

import trio
from attrs import asdict, define, field, frozen

from qmpballoon.qmp.connection import Connection, Role, State
from qmpballoon.qmp.messages import Failure, Return
from qmpballoon.sizes import GiB
from qmpballoon.testing.lab._cache import cache_folder, locked
from qmpballoon.testing.lab._report import LabError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator, Mapping
    from pathlib import Path

__all__ = [
    "MOST_SPACE",
    "SavedGuest",
    "continue_guest",
    "find_saved",
    "identify_guest",
    "incoming_arguments",
    "lock_guest",
    "save_guest",
    "store_guest",
]

MOST_SPACE: Final = 4 * GiB
"""Bytes that all saved guests may need; a guest needs some 90 MiB."""

# Goes up with each change of what a saved guest is made of that its digest does not
# show, such as how the lab fills the page cache.
_FORMAT: Final = 1
_STATE: Final = "state"
_ABOUT: Final = "about.json"
_CHUNK: Final = 1 << 20
# Locks are files, and never removed; 256 of them serve all guests.
_LOCK_DIGITS: Final = 2
# Seconds between two questions to QEMU. It reads or writes a guest in 0.1 s.
_POLL: Final = 0.01
# QEMU's default of 128 MiB a second is for networks.
_BANDWIDTH: Final = 1 << 40


def identify_guest(depends: Mapping[str, object], *programs: Path) -> str:
    """Return a digest of everything that a guest depends on.

    Args:
        depends: What can be written as JSON.
        programs: Files that count with their path, size and time of modification.
    """
    stats = [(str(path), path.stat()) for path in programs]
    files = [[path, found.st_size, found.st_mtime_ns] for path, found in stats]
    text = json.dumps([_FORMAT, depends, files], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@frozen
class _About:
    """What ``about.json`` holds.

    Attributes:
        size: The size of QEMU's file in bytes.
        checksum: Its CRC-32.
        release: The guest kernel's release.
        console: What the guest's kernel has printed.
    """

    size: int
    checksum: int
    release: str
    console: str


@frozen
class SavedGuest:
    """A saved guest whose file is whole.

    Attributes:
        state: QEMU's file.
        release: The guest kernel's release.
        console: What the guest's kernel has printed.
    """

    state: Path
    release: str
    console: str


def _guests() -> Path:
    return cache_folder() / "guests"


def find_saved(key: str) -> SavedGuest | None:
    """Return a saved guest, or ``None`` if there is none or if it is damaged."""
    folder = _guests() / key
    try:
        about = _About(**json.loads((folder / _ABOUT).read_text()))
        whole = _measure(folder / _STATE) == (about.size, about.checksum)
        folder.touch()  # pruning goes by the time of the last use
    except (OSError, TypeError, ValueError):
        return None
    return SavedGuest(folder / _STATE, about.release, about.console) if whole else None


def _measure(path: Path) -> tuple[int, int]:
    """Return a file's size and CRC-32."""
    size = checksum = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            size += len(chunk)
            checksum = zlib.crc32(chunk, checksum)
    return size, checksum


@contextmanager
def lock_guest(key: str) -> Generator[None]:
    """Hold the lock under which a guest is saved or removed.

    Enter it in one of trio's threads: waiting for another process blocks. Cancelling
    the caller ends the waiting.

    Raises:
        LabError: There can be no files in the cache folder.
    """
    lock = _lock(key)
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LabError(f"guests cannot be saved: {error}") from error
    with locked(lock, trio.from_thread.check_cancelled):
        yield


def _lock(key: str) -> Path:
    return _guests() / "locks" / key[:_LOCK_DIGITS]


async def save_guest(key: str, monitor: Path, *, release: str, console: str) -> None:
    """Save a running guest, which stays stopped; the caller has its lock.

    Args:
        key: The guest's digest.
        monitor: The socket of a QMP monitor that nobody uses.
        release: The guest kernel's release.
        console: What the guest's kernel has printed.

    Raises:
        LabError: QEMU cannot save this guest.
    """
    # A process that was killed may have left this behind.
    unfinished = _guests() / f"{key}.unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        await _write_state(monitor, unfinished / _STATE)
        await trio.to_thread.run_sync(store_guest, unfinished, key, release, console)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def store_guest(unfinished: Path, key: str, release: str, console: str) -> None:
    """Complete a folder that has QEMU's file, give it its name, and make room.

    The caller has the guest's lock. See :func:`save_guest`.
    """
    about = _About(*_measure(unfinished / _STATE), release, console)
    (unfinished / _ABOUT).write_text(json.dumps(asdict(about)))
    shutil.rmtree(_guests() / key, ignore_errors=True)
    unfinished.rename(_guests() / key)
    _prune(keep=key)


def _prune(keep: str) -> None:
    """Remove the guests that were not used for the longest time."""
    found: list[tuple[float, int, Path]] = []
    for folder in _guests().iterdir():
        # Another process may remove it at the same time.
        with suppress(FileNotFoundError):
            size = sum(file.stat().st_size for file in folder.iterdir())
            found.append((folder.stat().st_mtime, size, folder))
    space = sum(size for _, size, _ in found)
    for _, size, folder in sorted(found):
        if space <= MOST_SPACE:
            return
        if folder.name not in {keep, "locks"} and _remove_unused(folder):
            space -= size


def _remove_unused(folder: Path) -> bool:
    """Remove a guest's folder, unless another process saves that guest."""

    def give_up() -> None:
        raise BlockingIOError

    try:
        with locked(_lock(folder.name), give_up):
            shutil.rmtree(folder, ignore_errors=True)
    except BlockingIOError:
        return False
    return True


def incoming_arguments(saved: SavedGuest) -> tuple[str, str]:
    """Return the arguments with which QEMU reads a saved guest."""
    return ("-incoming", f"exec:cat {shlex.quote(str(saved.state))}")


async def continue_guest(monitor: Path) -> None:
    """Wait until QEMU has read a saved guest, and let the guest run.

    Nothing may be sent to the guest before: what it receives while QEMU reads its
    state is lost.

    Raises:
        LabError: QEMU cannot read it.
    """
    async with _open_monitor(monitor) as qemu:
        # QEMU 7.2 has no event for this.
        while (  # noqa: ASYNC110
            status := await qemu.execute("query-status")
        )["status"] == "inmigrate":
            await trio.sleep(_POLL)
        if not status["running"]:
            await qemu.execute("cont")


async def _write_state(monitor: Path, path: Path) -> None:
    """Let QEMU write the guest's state to a file."""
    async with _open_monitor(monitor) as qemu:
        await qemu.execute("migrate-set-parameters", {"max-bandwidth": _BANDWIDTH})
        # The guest must not change pages that are written already.
        await qemu.execute("stop")
        uri = f"exec:cat >{shlex.quote(str(path))}"
        await qemu.execute("migrate", {"uri": uri})
        while True:
            progress = await qemu.execute("query-migrate")
            match progress.get("status"):
                case "completed":
                    return
                case "failed" | "cancelled":
                    reason = progress.get("error-desc", "QEMU does not say why")
                    raise LabError(f"the guest cannot be saved: {reason}")
                case _:
                    await trio.sleep(_POLL)


@define
class _Monitor:
    """A QMP monitor for the few commands that saving takes."""

    _stream: trio.SocketStream
    _connection: Connection = field(factory=lambda: Connection(Role.CLIENT))

    async def negotiate(self) -> None:
        """Take the greeting and leave capabilities negotiation behind."""
        await self._receive()
        await self._stream.send_all(self._connection.send_negotiation())
        while self._connection.state is not State.READY:
            await self._read()
            self._connection.next_message()

    async def execute(
        self, command: str, arguments: Mapping[str, object] | None = None
    ) -> Mapping[str, object]:
        """Run a command.

        Raises:
            LabError: QEMU refuses it.
            ConnectionError: QEMU has ended.
        """
        _, data = self._connection.send_command(command, arguments)
        await self._stream.send_all(data)
        while True:
            match await self._receive():
                case Return(value=value):
                    return cast("Mapping[str, object]", value)
                case Failure(desc=desc):
                    raise LabError(f"QEMU refuses {command}: {desc}")
                case _:
                    pass  # an event

    async def _receive(self) -> object:
        while (message := self._connection.next_message()) is None:
            await self._read()
        return message

    async def _read(self) -> None:
        data = await self._stream.receive_some()
        if not data:
            raise ConnectionResetError
        self._connection.receive_data(data)


@asynccontextmanager
async def _open_monitor(path: Path) -> AsyncGenerator[_Monitor]:
    """Connect to a monitor that nobody uses.

    Raises:
        LabError: QEMU ends while the block runs.
    """
    try:
        async with await trio.open_unix_socket(str(path)) as stream:
            monitor = _Monitor(stream)
            await monitor.negotiate()
            yield monitor
    except (OSError, trio.BrokenResourceError) as error:
        raise LabError("QEMU ended while it saved or read a guest") from error
