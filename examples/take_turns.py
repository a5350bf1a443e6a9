"""Let VMs give memory one after the other, with a thread for each VM.

A thread connects again if its QEMU goes away and comes back. Ctrl-C and SIGTERM end all
of them, and every guest has its full size again.
"""

from __future__ import annotations

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import takewhile

from _common import make_parser, parse_arguments

from qmpballoon import MiB, QmpBalloonError, format_size
from qmpballoon.blocking import BlockingBalloon, open_balloon, stay_connected

AMOUNT = 256 * MiB  # from each VM, in its turn
SECONDS = 0.5  # of a turn
STOP, TURN = threading.Event(), threading.Lock()


def serve(socket: str, rounds: int) -> None:
    """Let one VM give memory in its turns, until the program ends."""
    rng = random.Random()  # noqa: S311 - it spreads attempts, and hides nothing
    attempts = stay_connected(lambda: open_balloon(socket), rng, sleep=STOP.wait)
    for connection in takewhile(lambda _: not STOP.is_set(), attempts):
        try:
            with connection as balloon:
                # By a run that was killed, or by this one before QEMU hung up.
                if (owed := balloon.read_owed()) is not None:
                    balloon.resize(owed, on_stall="settle")
                for _ in range(rounds):
                    give(socket, balloon)
        except QmpBalloonError as error:
            print(error)
        else:
            return


def give(socket: str, balloon: BlockingBalloon) -> None:
    """Wait for the VM's turn, and let it give memory; the program's end ends that."""
    with TURN:
        if not STOP.is_set():
            report = balloon.keep(AMOUNT, seconds=SECONDS, until=STOP.is_set)
            print(f"{socket} gave {format_size(report.handed_over)}")


if __name__ == "__main__":
    parser = make_parser(__doc__, several=True)
    parser.add_argument("--rounds", type=int, default=2, help="turns of each VM [2]")
    with parse_arguments(parser) as options, ThreadPoolExecutor() as threads:
        done = [threads.submit(serve, vm, options.rounds) for vm in options.socket]
        try:
            for each in done:
                each.result()
        finally:
            STOP.set()
