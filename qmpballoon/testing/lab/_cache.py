"""The cache folder: safe for many processes at once."""

from __future__ import annotations

import fcntl
import os
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

__all__ = ["cache_folder", "locked", "write_whole"]

_VARIABLE: Final = "QMPBALLOON_CACHE"
_POLL: Final = 0.1


def cache_folder() -> Path:
    """Return the folder's path: ``$QMPBALLOON_CACHE``, or ``~/.cache/qmpballoon``.

    Where ``XDG_CACHE_HOME`` is set, it stands for ``~/.cache``. The folder may not
    exist yet.
    """
    if own := os.environ.get(_VARIABLE):
        return Path(own).absolute()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "qmpballoon"


def write_whole(path: Path, text: str) -> None:
    """Write a file so that no process ever sees a part of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
        file.write(text)
    Path(file.name).replace(path)


@contextmanager
def locked(path: Path, waiting: Callable[[], None]) -> Generator[None]:
    """Hold a lock, so that no other process is in the block.

    The kernel releases the lock of a process that ends.

    Args:
        path: The lock file. It is made if it does not exist, and stays.
        waiting: Called ten times a second while another process has the lock. An
            exception that it raises ends the waiting.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                waiting()
                time.sleep(_POLL)
        yield
