"""An orchestrator on asyncio that shares its qemu.qmp client with qmpballoon.

It goes on talking to QEMU, and listening to its events, while a reclaim is on its way
over the same connection: a monitor serves one client only.
"""

from __future__ import annotations

import asyncio

from _common import parsed, vm_parser
from qemu.qmp import EventListener, QMPClient

from qmpballoon import format_size
from qmpballoon.asyncio import find_balloon


async def listen(listener: EventListener) -> None:
    """Print what QEMU says of the balloon, at most once a second."""
    async for event in listener:
        print(f"event: {event['data']}")


async def look(client: QMPClient) -> None:
    """Do what an orchestrator does all day."""
    while True:
        print(f"status: {await client.execute('query-status')}")
        await asyncio.sleep(1)


async def orchestrate(socket: str) -> None:
    """Reclaim from a guest while everything else goes on."""
    client = QMPClient("vm1")
    await client.connect(socket)
    try:
        with client.listener("BALLOON_CHANGE") as listener:
            tasks = [asyncio.create_task(listen(listener))]
            tasks.append(asyncio.create_task(look(client)))
            balloon = await find_balloon(client)
            report = await balloon.reclaim()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    finally:
        await client.disconnect()
    print(f"{report.outcome}: {format_size(report.handed_over)} handed over")


if __name__ == "__main__":
    with parsed(vm_parser(__doc__)) as options:
        asyncio.run(orchestrate(options.socket))
