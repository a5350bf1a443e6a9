"""An orchestrator in thirty lines: take memory from the VMs that can spare most.

test_make_room.py shows how to test such a program.
"""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import trio
from _common import make_parser, parse_arguments

from qmpballoon import StatsUnavailable, format_size, open_balloon, parse_size

if TYPE_CHECKING:
    from collections.abc import Iterable

    from qmpballoon import Balloon, Plan

SMALLEST = 1 << 20  # bytes; less is not worth asking for


async def make_room(balloons: Iterable[Balloon], wanted: int) -> int:
    """Take up to ``wanted`` bytes from VMs and hold them; return the bytes taken."""
    plans: list[tuple[Balloon, Plan]] = []
    for balloon in balloons:
        try:
            plans.append((balloon, await balloon.plan_reclaim()))
        except StatsUnavailable:  # without statistics it is not safe to take memory
            continue
    taken = 0
    for balloon, plan in sorted(plans, key=lambda item: -item[1].amount):
        amount = min(wanted - taken, plan.amount)
        if amount < SMALLEST:
            continue
        try:
            report = await balloon.reclaim(amount, hold=True)
        except StatsUnavailable:  # it has stopped answering since
            continue
        taken += report.before.actual - report.after.actual
    return taken


async def main(sockets: list[str], wanted: int) -> None:
    """Free memory by shrinking the VMs behind these sockets."""
    async with AsyncExitStack() as stack:
        balloons = [
            await stack.enter_async_context(open_balloon(socket)) for socket in sockets
        ]
        taken = await make_room(balloons, wanted)
    print(f"{format_size(taken)} of {format_size(wanted)} taken")


if __name__ == "__main__":
    parser = make_parser(__doc__, several=True)
    parser.add_argument("--wanted", type=parse_size, default="1G", help="bytes [1G]")
    with parse_arguments(parser) as options:
        trio.run(main, options.socket, options.wanted)
