"""Where an example's VMs come from: sockets that are given, or simulated VMs.

``--simulated`` serves fake QEMUs on unix sockets, so that every example runs without
a VM, unchanged.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from qmpballoon import GiB, MiB, QmpBalloonError
from qmpballoon.testing import GuestConfig, MachineConfig, serve

if TYPE_CHECKING:
    from collections.abc import Generator

SIMULATED = MachineConfig(
    memory=4 * GiB, guest=GuestConfig(used=300 * MiB, cache=3 * GiB)
)
SEVERAL = 3


def vm_parser(
    description: str | None, *, several: bool = False
) -> argparse.ArgumentParser:
    """Return a parser that takes the socket of a VM's monitor, or those of several."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    number = "*" if several else "?"
    parser.add_argument("socket", nargs=number, help="a VM's QMP monitor")
    parser.add_argument("--simulated", action="store_true", help="fake what is needed")
    return parser


@contextmanager
def parsed(parser: argparse.ArgumentParser) -> Generator[argparse.Namespace]:
    """Parse the command line; the VMs are there within the block."""
    options = parser.parse_args()
    with ExitStack() as stack:
        if options.simulated:
            several = isinstance(options.socket, list)
            sockets = [
                stack.enter_context(serve(SIMULATED, seed=seed)).socket
                for seed in range(SEVERAL if several else 1)
            ]
            options.socket = sockets if several else sockets[0]
        if not options.socket:
            parser.error("give the socket of a VM's QMP monitor, or --simulated")
        try:
            yield options
        except QmpBalloonError as error:
            sys.exit(str(error))
