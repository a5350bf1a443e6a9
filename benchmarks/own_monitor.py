"""How long does somebody else's client wait for a monitor that we have one beside?

Three guests run in a real QEMU 11.1. On the shared monitor of each a client connects,
negotiates, asks ``query-status`` and leaves, 200 times a minute, as a manager of VMs
does. How long it waits for its greeting, which QEMU sends when nobody else holds the
monitor, is measured while

- ``nobody``: nothing else is done;
- ``balloon``: a bare client on the *second* monitor of the first guest takes memory and
  gives it back, all the time: what QEMU and its guest cost by themselves;
- ``reclaim``: ``qmpballoon reclaim --own-monitor`` runs on the first guest, again and
  again;
- ``fleet``: ``qmpballoon fleet status --watch`` supervises all three.

It can also wait because QEMU's main loop does something else, or the machine does: that
is what ``nobody`` and ``balloon`` are for. The last row says how long it takes us to
connect, have a monitor added, and leave: nobody waits for us for longer than that.

::

    python benchmarks/own_monitor.py
    python benchmarks/own_monitor.py --seconds 10
"""

from __future__ import annotations

import argparse
import json
import socket
import subprocess
import sys
import threading
import time
from contextlib import AsyncExitStack, ExitStack, contextmanager
from statistics import median, quantiles
from typing import TYPE_CHECKING, Final

import trio

from qmpballoon import MiB, blocking
from qmpballoon.testing import lab

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

_MEMORY: Final = 256 * MiB
_SMALL: Final = 160 * MiB
_PERIOD: Final = 0.3  # seconds from one visit to the next: 200 a minute
_OPENINGS: Final = 50  # times that a monitor is added
_PROGRAM: Final = (sys.executable, "-c", "from qmpballoon.cli import main; main()")


def visit(path: str) -> float:
    """Connect, negotiate, ask and leave; return the seconds until it was greeted."""
    began = time.monotonic()
    with socket.socket(socket.AF_UNIX) as sock, sock.makefile("rb") as lines:
        while True:
            try:
                sock.connect(path)
                break
            except BlockingIOError:  # the queue of those who wait is full
                time.sleep(0.001)
        lines.readline()
        waited = time.monotonic() - began
        for command in ("qmp_capabilities", "query-status"):
            sock.sendall(json.dumps({"execute": command}).encode())
            while b'"return"' not in lines.readline():
                pass
    return waited


def keep_visiting(path: str, ended: threading.Event, took: list[float]) -> None:
    """Visit a monitor in regular intervals."""
    due = time.monotonic()
    while not ended.is_set():
        took.append(visit(path))
        due += _PERIOD
        ended.wait(max(due - time.monotonic(), 0))


@contextmanager
def visited(paths: Sequence[str]) -> Generator[list[float]]:
    """Have all of these monitors visited within the block; yield the seconds."""
    took: list[float] = []
    ended = threading.Event()
    with ExitStack() as stack:
        for path in paths:
            thread = threading.Thread(target=keep_visiting, args=(path, ended, took))
            thread.start()
            stack.callback(thread.join)
        stack.callback(ended.set)
        yield took


def do_nothing(_: Sequence[lab.Guest], ended: threading.Event) -> None:
    """Leave the guests alone."""
    ended.wait()


def move_balloon(guests: Sequence[lab.Guest], ended: threading.Event) -> None:
    """Move the first guest's balloon with a bare client, on its second monitor."""
    with blocking.open_monitor(guests[0].second_socket) as monitor:
        while not ended.is_set():
            for size in (_SMALL, _MEMORY):
                monitor.execute("balloon", {"value": size})
                while monitor.execute("query-balloon") != {"actual": size}:
                    time.sleep(0.04)  # as often as a reclaim looks


def reclaim(guests: Sequence[lab.Guest], ended: threading.Event) -> None:
    """Reclaim from the first guest."""
    amount = str(_MEMORY - _SMALL)
    command = (*_PROGRAM, "reclaim", str(guests[0].socket), amount, "--own-monitor")
    while not ended.is_set():
        subprocess.run([*command, "--json"], check=True, capture_output=True)


def supervise(guests: Sequence[lab.Guest], ended: threading.Event) -> None:
    """Supervise all guests, again and again for some seconds."""
    command = (*_PROGRAM, "fleet", "status", *(str(each.socket) for each in guests))
    with subprocess.Popen(
        [*command, "--watch", "--json"], stdout=subprocess.PIPE
    ) as it:
        ended.wait()
        it.terminate()
        it.communicate()


PHASES: Final = {
    "nobody": do_nothing,
    "balloon": move_balloon,
    "reclaim": reclaim,
    "fleet": supervise,
}


def measure_opening(path: str) -> list[float]:
    """Return for how many seconds each of our connections was on a shared monitor."""
    took: list[float] = []
    for _ in range(_OPENINGS):
        began = time.monotonic()
        with blocking.open_monitor(path, own=True):
            took.append(time.monotonic() - began)
    return took


def describe(name: str, took: Sequence[float]) -> str:
    """Return one row of the table, in milliseconds."""
    late = quantiles(took, n=100, method="inclusive")[98]
    figures = (median(took), late, max(took))
    return f"{name:10}{len(took):7}" + "".join(
        f"{each * 1000:9.1f}" for each in figures
    )


def run_phase(
    name: str,
    phase: Callable[[Sequence[lab.Guest], threading.Event], None],
    guests: Sequence[lab.Guest],
    seconds: float,
) -> None:
    """Do it for so many seconds, with other clients beside it; print the row."""
    ended = threading.Event()
    worker = threading.Thread(target=phase, args=(guests, ended))
    with visited([str(each.socket) for each in guests]) as took:
        worker.start()
        time.sleep(seconds)
        ended.set()
        worker.join()
    print(describe(name, took), flush=True)


async def main() -> None:
    """Boot the guests, and print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--qemu", default="11.1")
    arguments = parser.parse_args()
    async with AsyncExitStack() as stack:
        guests = [
            await stack.enter_async_context(
                lab.boot(memory=_MEMORY, qemu=arguments.qemu, saved=True)
            )
            for _ in range(3)
        ]
        print(f"{'':10}{'visits':>7}{'median':>9}{'99 %':>9}{'longest':>9}  ms")
        for name, phase in PHASES.items():
            await trio.to_thread.run_sync(
                run_phase, name, phase, guests, arguments.seconds
            )
        opening = await trio.to_thread.run_sync(measure_opening, str(guests[0].socket))
        print(describe("ours", opening))


if __name__ == "__main__":
    trio.run(main)
