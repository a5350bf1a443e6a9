"""Move memory among VMs, in threads: one VM after the other gives some for a while.

Each VM has a thread, which connects again if its QEMU goes away and comes back. Ctrl-C
and SIGTERM end all of them, and every guest has its full size again. After SIGKILL, the
next run gives back what this one owes.
"""

from __future__ import annotations

import random
import threading
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TYPE_CHECKING

from _common import make_parser, parse_arguments

from qmpballoon import MiB, QmpBalloonError, format_size
from qmpballoon.blocking import open_balloon, stay_connected

if TYPE_CHECKING:
    from qmpballoon.blocking import BlockingBalloon

AMOUNT = 256 * MiB  # from each VM, in its turn


class Turns:
    """VMs that give memory one after the other."""

    def __init__(self, seconds: float, rounds: int) -> None:
        self.stop = threading.Event()
        self._turn = threading.Lock()
        self._seconds = seconds
        self._rounds = rounds

    def serve(self, socket: str) -> None:
        """Let one VM take its turns; return when the program ends."""
        connections = stay_connected(
            lambda: open_balloon(socket, name=socket),
            random.Random(),  # noqa: S311 - it spreads attempts, and hides nothing
            sleep=self.stop.wait,  # a pause ends when the program does
        )
        for connection in connections:
            if self.stop.is_set():
                return
            try:
                with connection as balloon:
                    # By a run that was killed, or by this one before QEMU hung up.
                    if (owed := balloon.read_owed()) is not None:
                        balloon.resize(owed, on_stall="settle")
                    for _ in range(self._rounds):
                        self._give(socket, balloon)
            except QmpBalloonError as error:
                print(error)
            else:
                return

    def _give(self, socket: str, balloon: BlockingBalloon) -> None:
        """Let a VM give memory in its turn; the end of the program ends that."""
        with self._turn:
            if not self.stop.is_set():
                report = balloon.keep(
                    AMOUNT, seconds=self._seconds, until=self.stop.is_set
                )
                print(f"{socket} gave {format_size(report.handed_over)}")


def run(sockets: list[str], turns: Turns) -> None:
    """Run a thread for each VM, until all have ended or Ctrl-C."""
    with ThreadPoolExecutor(len(sockets)) as threads:
        ended = [threads.submit(turns.serve, socket) for socket in sockets]
        try:
            # Not Thread.join: before Python 3.13, a thread whose join Ctrl-C interrupts
            # counts as ended, and would be killed at the end of the program.
            wait(ended)
        finally:
            turns.stop.set()
    for each in ended:
        each.result()


if __name__ == "__main__":
    parser = make_parser(__doc__, several=True)
    parser.add_argument("--seconds", type=float, default=0.5, help="of a turn [0.5]")
    parser.add_argument("--rounds", type=int, default=2, help="turns of each VM [2]")
    with parse_arguments(parser) as options:
        run(options.socket, Turns(options.seconds, options.rounds))
