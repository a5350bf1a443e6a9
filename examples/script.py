"""A plain script, without an event loop: make room on the host before a large job.

Takes memory from one VM, holds it while the job runs, and gives it back whatever
becomes of the job.
"""

from __future__ import annotations

import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING

from _common import parsed, vm_parser

from qmpballoon import MiB, format_size
from qmpballoon.blocking import open_balloon

if TYPE_CHECKING:
    from collections.abc import Generator


@contextmanager
def borrowed(socket: str, amount: int) -> Generator[int]:
    """Have up to so many bytes of a guest's memory; yield how many it could spare."""
    with open_balloon(socket) as balloon:
        before = balloon.actual()
        try:
            report = balloon.reclaim(amount, hold=True)
            yield report.handed_over if report.held else 0
        finally:
            balloon.resize(before)


if __name__ == "__main__":
    parser = vm_parser(__doc__)
    parser.add_argument("--job", default="true", help="a shell command [true]")
    with parsed(parser) as options, borrowed(options.socket, 512 * MiB) as size:
        print(f"borrowed {format_size(size)}")
        status = subprocess.run(["sh", "-c", options.job], check=False).returncode  # noqa: S607 - the user's own shell
        print(f"the job ended with {status}")
