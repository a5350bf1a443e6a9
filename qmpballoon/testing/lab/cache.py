"""The folder for what was fetched and found out, safe for many processes at once."""

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
    """Say where things are kept: ``$QMPBALLOON_CACHE``, or ``~/.cache/qmpballoon``.

    ``XDG_CACHE_HOME`` is heeded. The folder may not exist yet.
    """
    if own := os.environ.get(_VARIABLE):
        return Path(own).absolute()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "qmpballoon"


def write_whole(path: Path, text: str) -> None:
    """Write a file so that nobody ever sees a part of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
        file.write(text)
    Path(file.name).replace(path)


@contextmanager
def locked(path: Path, waiting: Callable[[], None]) -> Generator[None]:
    """Be the only process in the block; a killed process holds no lock.

    Args:
        path: The lock file; made if need be, and left behind.
        waiting: Called ten times a second while another process holds it; may
            raise to give up.
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
