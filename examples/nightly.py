"""Reclaim every night from a list of VMs, one after the other.

VMs that cannot be reached, or that have no memory to spare, are reported and skipped.
``--now`` runs one round at once.
"""

from __future__ import annotations

import math
from datetime import datetime, time, timedelta
from functools import partial

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


async def reclaim_all(sockets: list[str]) -> None:
    """Reclaim from all VMs, one after the other, to keep the load on the host low."""
    sizes = [await reclaim(socket) for socket in sockets]
    print(f"{format_size(sum(sizes))} from {len(sizes)} VMs")


def count_seconds_until(at: time, now: datetime) -> float:
    """Return the seconds until the next time of day ``at``."""
    today = datetime.combine(now.date(), at, tzinfo=now.tzinfo)
    return (today - now) / timedelta(seconds=1) % (24 * 3600)


async def reclaim_every_night(
    sockets: list[str], at: time, nights: float = math.inf
) -> None:
    """Reclaim at the time of day ``at``, for a number of nights."""
    while nights > 0:
        await trio.sleep(count_seconds_until(at, datetime.now().astimezone()))
        await reclaim_all(sockets)
        nights -= 1


if __name__ == "__main__":
    parser = make_parser(__doc__, several=True)
    parser.add_argument(
        "--at", type=time.fromisoformat, default=time(3), help="[03:00]"
    )
    parser.add_argument("--now", action="store_true", help="one round, at once")
    with parse_arguments(parser) as options:
        if options.now:
            trio.run(reclaim_all, options.socket)
        else:
            trio.run(partial(reclaim_every_night, options.socket, options.at))
