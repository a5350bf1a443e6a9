"""Being somebody who may not."""

from __future__ import annotations

import os
import stat
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

__all__ = ["as_somebody_else"]

ROOT: Final = 0
NOBODY: Final = 65534


@contextmanager
def as_somebody_else(path: Path) -> Generator[None]:
    """Take away our permission for a file: root has to become somebody else."""
    mode, user = path.stat().st_mode, os.geteuid()
    path.chmod(0)
    if user == ROOT:
        for folder in path.parents:  # pytest's folders are for their owner alone
            searched = folder.stat().st_mode | stat.S_IXGRP | stat.S_IXOTH
            if folder.stat().st_mode != searched:
                folder.chmod(searched)
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(user)
        path.chmod(mode)
