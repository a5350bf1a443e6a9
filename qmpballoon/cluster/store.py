"""What a host keeps on its disk: the last policy, and the jobs that it has begun.

A file is written beside the old one, forced to the disk, and then replaces it. So after
a power failure the content is either the old or the new one. A checksum detects content
that a disk has damaged, or that somebody has edited.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from attrs import frozen

from qmpballoon.cluster._fields import Malformed
from qmpballoon.cluster.bus import LARGEST_VALUE

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Store"]

_MODE: Final = 0o600  # other users need not know the policy
_DIGEST: Final = 64  # characters of a SHA-256 checksum


@frozen
class Store:
    """A folder with small files.

    Attributes:
        folder: The folder. It is created with the first file.
    """

    folder: Path

    def read(self, name: str) -> bytes | None:
        """Return what was stored under a name; ``None`` if nothing was.

        Raises:
            Malformed: It is not what was written, or cannot be read.
        """
        path = self.folder / name
        try:
            with path.open("rb") as file:
                content = file.read(_DIGEST + 1 + LARGEST_VALUE + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise Malformed(f"{path} cannot be read: {error.strerror}") from error
        digest, _, data = content.partition(b"\n")
        if digest != _compute_digest(data):
            raise Malformed(f"{path} is damaged: its checksum is wrong")
        return data

    def write(self, name: str, data: bytes) -> None:
        """Store data under a name. It is on the disk when this returns.

        Raises:
            OSError: It cannot be written. What was stored before is still there.
        """
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        new = self.folder / f".{name}.new"
        with suppress(FileNotFoundError):
            new.unlink()
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        with open(os.open(new, flags, _MODE), "wb") as file:  # noqa: PTH123 - a mode
            file.write(_compute_digest(data) + b"\n" + data)
            file.flush()
            os.fsync(file.fileno())
        new.replace(self.folder / name)
        folder = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)  # the name, too
        finally:
            os.close(folder)


def _compute_digest(data: bytes) -> bytes:
    return hashlib.sha256(data).hexdigest().encode()
