"""An orchestrator on asyncio that shares its qemu.qmp client with qmpballoon.

It goes on sending commands to QEMU, and receiving its events, while a reclaim runs over
the same connection: a monitor serves one client only. Needs qemu.qmp (``pip install
qemu.qmp``).
"""

from __future__ import annotations

import asyncio

from _common import make_parser, parse_arguments
from qemu.qmp import EventListener, QMPClient

from qmpballoon import format_size
from qmpballoon.asyncio import adopt_client


async def listen(listener: EventListener) -> None:
    """Print QEMU's events about the balloon; there is at most one a second."""
    async for event in listener:
        print(f"event: {event['data']}")


async def look(client: QMPClient) -> None:
    """Query the VM's status every second, in place of an orchestrator's other work."""
    while True:
        print(f"status: {await client.execute('query-status')}")
        await asyncio.sleep(1)


async def orchestrate(socket: str) -> None:
    """Reclaim from a guest while the other tasks run."""
    client = QMPClient("vm1")
    await client.connect(socket)
    # However the block ends, the client is disconnected.
    async with adopt_client(client) as balloon:
        with client.listener("BALLOON_CHANGE") as listener:
            tasks = [asyncio.create_task(listen(listener))]
            tasks.append(asyncio.create_task(look(client)))
            try:
                report = await balloon.reclaim()
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
    print(f"{report.outcome}: {format_size(report.handed_over)} handed over")


if __name__ == "__main__":
    with parse_arguments(make_parser(__doc__)) as options:
        asyncio.run(orchestrate(options.socket))
