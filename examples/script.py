"""A script without an event loop: free memory on the host while a large job runs.

It takes memory from one VM, holds it while the job runs, and gives it back even if the
job fails, or the script is ended with Ctrl-C or SIGTERM.
"""

from __future__ import annotations

import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING

from _common import make_parser, parse_arguments

from qmpballoon import MiB, format_size
from qmpballoon.blocking import open_balloon

if TYPE_CHECKING:
    from collections.abc import Generator


@contextmanager
def borrow_memory(socket: str, amount: int) -> Generator[int]:
    """Hold up to ``amount`` bytes of a guest's memory; yield the bytes held."""
    with open_balloon(socket) as balloon:
        before = balloon.actual()
        try:
            report = balloon.reclaim(amount, hold=True)
            yield report.handed_over if report.held else 0
        finally:
            balloon.resize(before)


if __name__ == "__main__":
    parser = make_parser(__doc__)
    parser.add_argument("--job", default="true", help="a shell command [true]")
    with (
        parse_arguments(parser) as options,
        borrow_memory(options.socket, 512 * MiB) as size,
    ):
        print(f"borrowed {format_size(size)}")
        status = subprocess.run(["sh", "-c", options.job], check=False).returncode  # noqa: S607 - the user's own shell
        print(f"the job ended with {status}")
