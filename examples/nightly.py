"""Reclaim from a list of VMs, one after the other, for a job that runs every night.

VMs that cannot be reached, or that have no memory to spare, are reported and skipped. A
line of a crontab: ``0 3 * * * nightly.py /run/vms/*.qmp``.
"""

from __future__ import annotations

import trio
from _common import make_parser, parse_arguments

from qmpballoon import Guard, MiB, QmpBalloonError, format_size, open_balloon

GUARD = Guard(headroom=256 * MiB)
LONGEST = 15 * 60  # seconds for one VM


async def reclaim(socket: str) -> int:
    """Reclaim from one VM; return the bytes that its guest handed over."""
    try:
        with trio.fail_after(LONGEST):  # cancelling gives the memory back
            async with open_balloon(socket) as balloon:
                report = await balloon.reclaim(guard=GUARD)
    except QmpBalloonError as error:
        print(f"{socket}: {error}")
        return 0
    except trio.TooSlowError:
        print(f"{socket}: it took too long")
        return 0
    size = format_size(report.handed_over)
    print(f"{socket}: {report.outcome}, {size} in {report.seconds:.0f} s")
    return report.handed_over


async def main(sockets: list[str]) -> None:
    """Reclaim from all VMs, one after the other, to keep the load on the host low."""
    sizes = [await reclaim(socket) for socket in sockets]
    print(f"{format_size(sum(sizes))} from {len(sizes)} VMs")


if __name__ == "__main__":
    with parse_arguments(make_parser(__doc__, several=True)) as options:
        trio.run(main, options.socket)
