"""The command line of the examples, and the VMs that they run on.

With ``--simulated``, fake QEMUs are served on unix sockets, so that every example runs
unchanged without a VM. A program of yours needs ``parse_arguments`` for SIGTERM only.
"""

from __future__ import annotations

import argparse
import signal
import sys
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from qmpballoon import GiB, QmpBalloonError
from qmpballoon.testing import GuestConfig, MachineConfig, serve

if TYPE_CHECKING:
    from collections.abc import Generator

RATE = 4 * GiB  # bytes a second; real guests are slower
GUEST = GuestConfig(cache=3 * GiB, inflate_rate=RATE, reclaim_rate=RATE)
SIMULATED = MachineConfig(memory=4 * GiB, guest=GUEST)


def make_parser(about: str | None, *, several: bool = False) -> argparse.ArgumentParser:
    """Return a parser that takes the monitor socket of one VM, or of several."""
    shape = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=about, formatter_class=shape)
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
        if options.simulated and isinstance(options.socket, list):
            vms = [stack.enter_context(serve(SIMULATED)) for _ in range(3)]
            options.socket = [vm.socket for vm in vms]
        elif options.simulated:
            options.socket = stack.enter_context(serve(SIMULATED)).socket
        if not options.socket:
            parser.error("give the socket of a VM's QMP monitor, or --simulated")
        try:
            yield options
        except QmpBalloonError as error:
            sys.exit(str(error))
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            sys.exit(128 + signal.SIGINT)
