"""What is noted of a guest for other processes: in memory, or by another process."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

from attrs import define

from qmpballoon._transport.owed_size import OwedSizeFile
from qmpballoon._transport.qemu_process import read_start_time

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Note", "hold_elsewhere", "write_holder"]


@define
class Note:
    """The note of one guest, as this process sees it.

    Attributes:
        size: Bytes that the guest is to get back.
        is_returning: Whether QEMU was asked to give them back.
        is_held: Whether this process noted that it holds them.
        holder: The process that holds them.
    """

    size: int | None = None
    is_returning: bool = False
    is_held: bool = False
    holder: int | None = None

    def read(self) -> int | None:
        return self.size if self.holder is None else None

    def read_holder(self) -> int | None:
        return self.holder

    def note(
        self,
        size: int,
        *,
        is_returning: bool = False,
        is_held: bool = False,
        own: int | None = None,
    ) -> int | None:
        if self.holder not in (None, own):
            return self.holder
        self.size, self.is_returning, self.is_held = size, is_returning, is_held
        self.holder = os.getpid() if is_held else None
        return None

    def clear(self, own: int | None = None) -> None:
        if self.holder in (None, own):
            self.size = self.holder = None
            self.is_held = False


def hold_elsewhere(folder: Path, pid: int, size: int) -> int:
    """Write the note of a QEMU as another process does that holds memory of its guest.

    Args:
        folder: Where notes are.
        pid: QEMU's process id.
        size: Bytes that the guest is to get back.

    Returns:
        The id of that process, which runs.
    """
    holder = os.getppid()
    write_holder(folder, pid, size, {"pid": holder, "started": read_start_time(holder)})
    return holder


def write_holder(folder: Path, pid: int, size: int, holder: object) -> None:
    """Write the note of a QEMU with anything as its holder."""
    OwedSizeFile(pid, folder).note(size)
    (file,) = folder.iterdir()
    file.write_text(json.dumps({**json.loads(file.read_text()), "holder": holder}))
