"""The command line of the examples, and the VMs that they run on.

The VMs are those whose sockets are given. With ``--simulated``, fake QEMUs are served
on unix sockets, so that every example runs unchanged without a VM.
"""

from __future__ import annotations

import argparse
import signal
import sys
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from qmpballoon import GiB, MiB, QmpBalloonError
from qmpballoon.testing import GuestConfig, MachineConfig, serve

if TYPE_CHECKING:
    from collections.abc import Generator

SIMULATED = MachineConfig(
    memory=4 * GiB,
    guest=GuestConfig(
        used=300 * MiB,
        cache=3 * GiB,
        # Bytes a second. Real guests are slower, and nobody wants to wait for this one.
        inflate_rate=4 * GiB,
        reclaim_rate=4 * GiB,
        deflate_rate=8 * GiB,
    ),
)
SEVERAL = 3


def make_parser(
    description: str | None, *, several: bool = False
) -> argparse.ArgumentParser:
    """Return a parser that takes the monitor socket of one VM, or of several."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    number = "*" if several else "?"
    parser.add_argument("socket", nargs=number, help="a VM's QMP monitor")
    parser.add_argument("--simulated", action="store_true", help="use simulated VMs")
    return parser


@contextmanager
def parse_arguments(parser: argparse.ArgumentParser) -> Generator[argparse.Namespace]:
    """Parse the command line; simulated VMs run within the block.

    SIGTERM ends the block as Ctrl-C does. By default it would end the process at once,
    and what was taken from a guest would not be given back.
    """
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
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
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            sys.exit(128 + signal.SIGINT)
