"""An orchestrator in thirty lines: free memory on a host, where it hurts least.

Asks every VM what it could spare, takes from those that can spare most, and holds
what it took. How to test such a thing: test_make_room.py.
"""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import trio
from _common import parsed, vm_parser

from qmpballoon import StatsUnavailable, format_size, open_balloon, parse_size

if TYPE_CHECKING:
    from collections.abc import Iterable

    from qmpballoon import Balloon, Plan

SMALLEST = 1 << 20  # bytes; less is not worth asking for


async def make_room(balloons: Iterable[Balloon], wanted: int) -> int:
    """Take up to ``wanted`` bytes from VMs, and hold them; return how many it were."""
    plans: list[tuple[Balloon, Plan]] = []
    for balloon in balloons:
        try:
            plans.append((balloon, await balloon.plan_reclaim()))
        except StatsUnavailable:  # no guest is taken from blindly
            continue
    taken = 0
    for balloon, plan in sorted(plans, key=lambda item: -item[1].amount):
        amount = min(wanted - taken, plan.amount)
        if amount >= SMALLEST:
            report = await balloon.reclaim(amount, hold=True)
            taken += report.before.actual - report.after.actual
    return taken


async def main(sockets: list[str], wanted: int) -> None:
    """Make room with the VMs behind these sockets."""
    async with AsyncExitStack() as stack:
        balloons = [
            await stack.enter_async_context(open_balloon(socket)) for socket in sockets
        ]
        taken = await make_room(balloons, wanted)
    print(f"{format_size(taken)} of {format_size(wanted)} taken")


if __name__ == "__main__":
    parser = vm_parser(__doc__, several=True)
    parser.add_argument("--wanted", type=parse_size, default="1G", help="bytes [1G]")
    with parsed(parser) as options:
        trio.run(main, options.socket, options.wanted)
